"""The few objects that kubectl sends as protobuf: what its ``create`` commands make, and reviews.

Field numbers are those of Kubernetes' ``generated.proto`` files, where they never change.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\0"
Shape = dict[int, tuple[str, Any]]
"""Fields by number: the name, and how to read it (str, bool, int, bytes, a shape; [..] repeated; {..} a map)."""

OWNER: Shape = {1: ("kind", str), 3: ("name", str), 4: ("uid", str), 5: ("apiVersion", str)}
METADATA: Shape = {
    1: ("name", str),
    2: ("generateName", str),
    3: ("namespace", str),
    5: ("uid", str),
    6: ("resourceVersion", str),
    11: ("labels", {"": str}),
    12: ("annotations", {"": str}),
    13: ("ownerReferences", [OWNER]),
    14: ("finalizers", [str]),
}
RESOURCE: Shape = {
    1: ("namespace", str),
    2: ("verb", str),
    3: ("group", str),
    4: ("version", str),
    5: ("resource", str),
    6: ("subresource", str),
    7: ("name", str),
}
PATH: Shape = {1: ("path", str), 2: ("verb", str)}
KINDS: dict[str, Shape] = {
    "Namespace": {1: ("metadata", METADATA)},
    "ServiceAccount": {1: ("metadata", METADATA)},
    "ConfigMap": {1: ("metadata", METADATA), 2: ("data", {"": str}), 3: ("binaryData", {"": bytes})},
    "Secret": {1: ("metadata", METADATA), 2: ("data", {"": bytes}), 3: ("type", str), 4: ("stringData", {"": str})},
    "SelfSubjectAccessReview": {
        1: ("metadata", METADATA),
        2: ("spec", {1: ("resourceAttributes", RESOURCE), 2: ("nonResourceAttributes", PATH)}),
    },
    "SelfSubjectRulesReview": {1: ("metadata", METADATA), 2: ("spec", {1: ("namespace", str)})},
    "SelfSubjectReview": {1: ("metadata", METADATA)},
    "TokenRequest": {1: ("metadata", METADATA), 2: ("spec", {1: ("audiences", [str]), 4: ("expirationSeconds", int)})},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", int),
        2: ("preconditions", {1: ("uid", str), 2: ("resourceVersion", str)}),
        3: ("orphanDependents", bool),
        4: ("propagationPolicy", str),
        5: ("dryRun", [str]),
    },
}
UNKNOWN: Shape = {1: ("type", {1: ("apiVersion", str), 2: ("kind", str)}), 2: ("raw", memoryview)}


def decode(data: bytes) -> dict[str, Any]:
    """The object in an envelope of Kubernetes' protobuf encoding.

    Raises:
        KeyError: of a kind that is not known here.
        ValueError: no such envelope.
    """
    if not data.startswith(MAGIC):
        raise ValueError("no protobuf envelope")
    envelope = _message(memoryview(data)[len(MAGIC) :], UNKNOWN)
    type_: dict[str, Any] = envelope["type"]
    return type_ | _message(envelope.get("raw", memoryview(b"")), KINDS[type_["kind"]])


def _message(data: memoryview, shape: Shape) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for number, raw in _fields(data):
        if number not in shape:
            continue
        name, how = shape[number]
        if isinstance(how, list):
            result.setdefault(name, []).append(_value(raw, how[0]))
        elif isinstance(how, dict) and "" in how:
            entry = _message(raw, {1: ("key", str), 2: ("value", how[""])})  # type: ignore[arg-type]
            result.setdefault(name, {})[entry.get("key", "")] = entry.get("value", "")
        else:
            result[name] = _value(raw, how)
    return {name: value for name, value in result.items() if value != ""}


def _value(raw: memoryview | int, how: Any) -> Any:
    if isinstance(raw, int):
        return how(raw)
    if isinstance(how, dict):
        return _message(raw, how)
    if how is bytes:
        return base64.b64encode(raw).decode()
    return raw if how is memoryview else bytes(raw).decode()


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
        elif wire == 2:
            size, place = _varint(data, place)
            yield number, data[place : place + size]
            place += size
        else:
            raise ValueError(f"wire type {wire}")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data):
            raise ValueError("cut off")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
