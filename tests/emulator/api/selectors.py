"""Label and field selectors, as text and as conditions on objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tests.emulator.api.errors import ApiError
from tests.emulator.api.kinds import Kind, Object
from tests.emulator.api.objects import at

Condition = Callable[[Object], bool]
SET_BASED = re.compile(r"^(?P<key>[^\s!=(),]+)\s+(?P<verb>in|notin)\s*\((?P<values>[^()]*)\)$")
COMPARISON = re.compile(r"^(?P<key>[^\s!=(),]+)\s*(?P<sign>==|=|!=)\s*(?P<value>[^\s!=(),]*)$")
PRESENCE = re.compile(r"^(?P<not>!?)\s*(?P<key>[^\s!=(),]+)$")
OUTSIDE_PARENTHESES = re.compile(r",(?![^()]*\))")

INVOLVED = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "events": (
        *(f"involvedObject.{part}" for part in INVOLVED),
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "secrets": ("type",),
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
    "jobs.batch": ("status.successful",),
    "replicasets.apps": ("status.replicas",),
    "services": ("spec.clusterIP", "spec.type"),
}
"""What the real server can select by beside name and namespace."""


def label_condition(text: str) -> Condition:
    """Whether an object's labels satisfy a selector.

    Raises:
        ApiError: 400, not a selector.
    """
    tests = [_requirement(part.strip()) for part in OUTSIDE_PARENTHESES.split(text) if part.strip()]
    return lambda value: all(test(value["metadata"].get("labels") or {}) for test in tests)


def _requirement(text: str) -> Callable[[Mapping[str, str]], bool]:
    if match := SET_BASED.match(text):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["verb"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := COMPARISON.match(text):
        key, value = match["key"], match["value"]
        if match["sign"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := PRESENCE.match(text):
        key, present = match["key"], not match["not"]
        return lambda labels: (key in labels) == present
    raise ApiError(400, f"unable to parse requirement: found '{text}', expected: !, identifier, or 'end of string'")


def field_requirements(text: str) -> list[tuple[str, str, bool]]:
    """A field selector as (path, value, whether it must be equal)."""
    found = []
    for part in (part for part in text.split(",") if part):
        match = re.match(r"^([^=!]+)(!=|==|=)(.*)$", part)
        if not match:
            raise ApiError(400, f"invalid selector: '{text}'; can't understand '{part}'")
        found.append((match[1], match[3], match[2] != "!="))
    return found


def field_condition(kind: Kind, text: str) -> Condition:
    """Whether an object's fields satisfy a selector.

    Raises:
        ApiError: 400, not a selector or a field that this kind cannot be selected by.
    """
    wanted = field_requirements(text)
    for path, _, _ in wanted:
        if path not in ("metadata.name", "metadata.namespace", *FIELDS.get(kind.resource, ())):
            raise ApiError(400, _not_selectable(kind, path))
    return lambda value: all((_text(at(value, path)) == expected) == equal for path, expected, equal in wanted)


def _not_selectable(kind: Kind, path: str) -> str:
    if kind.custom or kind.resource in FIELDS:
        return f"field label not supported: {path}"
    return f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"'


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
