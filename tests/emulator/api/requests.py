"""Requests and responses, and what a path means: verb, resource, subresource, namespace, name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.emulator.api import protobuf
from tests.emulator.api.errors import ApiError
from tests.emulator.api.kinds import Object
from tests.emulator.api.rbac import ANONYMOUS, Attempt, User
from tests.emulator.api.selectors import field_requirements

VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass
class Request:
    """One HTTP request; ``user`` and ``attempt`` are filled in on its way."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    user: User = ANONYMOUS
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    version: str = ""
    attempt: Attempt = field(default_factory=lambda: Attempt(""))

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        self.path = unquote(parts.path)
        self._all = parse_qs(parts.query, keep_blank_values=True)
        self.query = {key: values[-1] for key, values in self._all.items()}
        self.version, self.attempt = _meaning(self.method, self.path, self.query)

    def values(self, key: str) -> list[str]:
        """All values of a query parameter that may be given more than once."""
        return self._all.get(key, [])

    def flag(self, key: str) -> bool:
        return self.query.get(key, "").lower() in ("true", "1")

    def number(self, key: str) -> int | None:
        """An integer parameter; raises ``ApiError`` 400 when it is none."""
        text = self.query.get(key)
        if text is not None and not text.lstrip("-").isdigit():
            raise ApiError(400, f'strconv.ParseInt: parsing "{text}": invalid syntax')
        return int(text) if text else None

    @property
    def resource(self) -> str:
        """As the store names it."""
        return f"{self.attempt.resource}.{self.attempt.group}" if self.attempt.group else self.attempt.resource

    @property
    def dry_run(self) -> bool:
        return "All" in self.values("dryRun")

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "application/json").partition(";")[0].strip()

    def json(self) -> Any:
        """The body.

        Raises:
            ApiError: 400, not what it is announced as; 415, protobuf of a kind that is not known here.
        """
        try:
            if self.content_type == protobuf.MEDIA_TYPE and self.body:
                return protobuf.decode(self.body)
            return _yaml(self.body) if "yaml" in self.content_type else json.loads(self.body or b"{}")
        except ValueError as error:
            raise ApiError(400, f"couldn't get version/kind; json parse error: {error}") from error
        except KeyError as error:
            words = "the body of the request was in an unknown format - accepted media types include:"
            raise ApiError(415, f"{words} application/json, application/yaml") from error


def _yaml(text: bytes) -> Any:
    import yaml

    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _meaning(method: str, path: str, query: Mapping[str, str]) -> tuple[str, Attempt]:
    parts = [part for part in path.split("/") if part]
    verb = VERBS.get(method, method.lower())
    if len(parts) > 2 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) > 3 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return "", Attempt(verb, path=path)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in ("status", "finalize"):
            rest = rest[2:]
    resource, name, subresource = [*rest, "", ""][:3]
    verb = _verb(verb, name, query)
    return version, Attempt(verb, group, resource, subresource, namespace, name or _selected(query, verb))


def _verb(verb: str, name: str, query: Mapping[str, str]) -> str:
    if verb == "get" and query.get("watch", "").lower() in ("true", "1"):
        return "watch"
    if not name:
        return {"get": "list", "delete": "deletecollection"}.get(verb, verb)
    return verb


def _selected(query: Mapping[str, str], verb: str) -> str:
    """The one name that a list or watch is restricted to."""
    if verb == "create" or "fieldSelector" not in query:
        return ""
    wanted = field_requirements(query["fieldSelector"])
    return next((value for path, value, equal in wanted if path == "metadata.name" and equal), "")


@dataclass
class Response:
    """An answer in full."""

    code: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Stream:
    """An answer that goes on; an empty chunk only asks whether the client is still there."""

    chunks: Iterator[bytes]
    content_type: str = "application/json"


@dataclass
class Upgrade:
    """The connection is handed over to another protocol."""

    serve: Callable[[Any], None]
    """Called with the connection (see ``server``)."""


Answer = Response | Stream | Upgrade


def reply(value: Object, code: int = 200, warnings: list[str] | None = None) -> Response:
    """An object as an answer."""
    answer = Response(code, json.dumps(value, separators=(",", ":")).encode())
    if warnings:
        answer.headers["Warning"] = ", ".join(f"299 - {json.dumps(warning)}" for warning in warnings)
    return answer


def refuse(error: ApiError) -> Response:
    """A refusal as an answer."""
    answer = reply(error.status(), error.code)
    if error.code == 429:
        answer.headers["Retry-After"] = str(error.details.get("retryAfterSeconds", 1))
    return answer
