"""Plain helpers on API objects: copies, times, dotted paths."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta, timezone
from typing import Any

Object = dict[str, Any]
SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Of generated names: no vowels, nothing that looks alike."""


def copied(value: Any) -> Any:
    """A deep copy of JSON data; several times faster than ``copy.deepcopy``."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, list):
        return [copied(part) for part in value]
    return value


def timestamp(after_s: float = 0.0) -> str:
    """The time now (or later) as metav1.Time has it: RFC 3339, whole seconds, UTC."""
    moment = datetime.now(timezone.utc) + timedelta(seconds=after_s)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def at(value: Any, path: str) -> Any:
    """What stands at a dotted path; None where there is nothing."""
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def random_suffix() -> str:
    return "".join(secrets.choice(SUFFIX_ALPHABET) for _ in range(5))


def owner_uids(value: Object) -> list[str]:
    return [owner.get("uid", "") for owner in value["metadata"].get("ownerReferences") or ()]
