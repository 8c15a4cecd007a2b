"""What must never be shown: values of environment variables, keys and tokens, wherever they turn up."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import yaml

HIDDEN = "•••"
SECRET_WORDS = frozenset(
    {"key", "apikey", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials"}
    | {"authorization", "bearer", "pat"}
)
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
NAMED = re.compile(
    r"(?P<name>[\w.-]*(?:key|token|secret|passw(?:or)?d|passphrase|credentials?|authorization)[\"']?\s*[:=]\s*)"
    r"(?P<open>[\"']?)(?P<value>(?:Bearer\s+|Basic\s+)?[^\s\"',}\])]+)",
    re.IGNORECASE,
)
FLAGGED = re.compile(r"(?P<name>--[\w-]*(?:key|token|secret|password)[\w-]*[ =])(?P<value>[^\s\"']+)", re.IGNORECASE)
BEARER = re.compile(r"\b(?P<name>Bearer\s+)(?P<value>[\w.~+/=-]{8,})")
URL = re.compile(r"(?P<name>\w+://)(?P<value>[^/\s:@]+:[^/\s@]+)(?=@)")
SHORTEST_SECRET = 8
HARMLESS = re.compile(r"^(?:-?\d+(?:\.\d+)?|true|false|null|none)?$", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name may be a secret: ``api_key``, ``HF_TOKEN``; not ``max_total_tokens``."""
    words = {word.lower() for word in WORD.findall(name)}
    return bool(words & SECRET_WORDS) and not name.endswith(("_env", "_tokens"))


def hidden(value: Any, name: str = "") -> Any:
    """Plain data without its secrets."""
    if isinstance(value, Mapping):
        within_env = name == "env"
        return {k: HIDDEN if within_env and v else hidden(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_variable(each) for each in value] if name == "env" else command_line(value)
    if isinstance(value, str):
        return HIDDEN if is_secret_name(name) and value and not HARMLESS.match(value) else text(value)
    return value


def _variable(given: Any) -> Any:
    """One of a container's (Kubernetes' ``EnvVar``); what comes from a Secret is no value."""
    if not isinstance(given, Mapping):
        return hidden(given)
    return {k: HIDDEN if k == "value" and v else hidden(v, str(k)) for k, v in given.items()}


def command_line(words: Sequence[Any]) -> list[Any]:
    """A list without secrets, where a flag may announce one: ``--api-key VALUE``."""
    shown: list[Any] = []
    before = ""
    for word in words:
        announced = before.startswith("-") and "=" not in before and is_secret_name(before)
        secret = announced and isinstance(word, str) and not word.startswith("-") and not HARMLESS.match(word)
        shown.append(HIDDEN if secret else hidden(word))
        before = word if isinstance(word, str) else ""
    return shown


def text(given: str, values: Iterable[str] | None = None) -> str:
    """A text without what looks like a secret in it, and without those that this process knows."""
    for pattern in (NAMED, FLAGGED):
        given = pattern.sub(_masked, given)
    given = URL.sub(lambda found: found["name"] + HIDDEN, BEARER.sub(lambda found: found["name"] + HIDDEN, given))
    for value in own_secrets() if values is None else values:
        given = given.replace(value, HIDDEN)
    return given


def json_text(given: str) -> str:
    """A JSON file without its secrets."""
    try:
        return json.dumps(hidden(json.loads(given)), indent=1, ensure_ascii=False)
    except ValueError:
        return text(given)


def yaml_text(given: str) -> str:
    """A YAML file without its secrets, as it was written where it has none."""
    try:
        found = list(yaml.safe_load_all(given))
    except (yaml.YAMLError, ValueError):
        return text(given)
    shown = [hidden(each) for each in found]
    return text(given) if shown == found else str(yaml.safe_dump_all(shown, sort_keys=False, allow_unicode=True))


def _masked(found: re.Match[str]) -> str:
    name = found["name"].rstrip(" \t:=\"'")
    if HARMLESS.match(found["value"]) or not is_secret_name(name):
        return found[0]
    return found[0][: found.start("value") - found.start()] + HIDDEN


@cache
def own_secrets() -> tuple[str, ...]:
    """The values of this process's own variables whose names say that they are secret."""
    named = (value for name, value in os.environ.items() if is_secret_name(name))
    return tuple(value for value in named if len(value) >= SHORTEST_SECRET)
