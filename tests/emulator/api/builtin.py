"""Schemas of the built-in kinds, derived from the models of the official client.

The client's models are generated from Kubernetes' own OpenAPI document, so they tell every field, its type and
whether it is required, without a copy of that document here.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from kubernetes.client import models

from tests.emulator.api.kinds import Kind, Object
from tests.emulator.api.schema import Schema

QUANTITIES = {"limits", "requests", "capacity", "allocatable", "hard", "used", "overhead", "allocated_resources"}
MODELS = {
    "Event": "CoreV1Event",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
}
UNCHECKED = {"CustomResourceDefinition"}
"""Recursive and huge; a fault in one shows when its resource is used."""
SCALARS: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "bytes": {"type": "string"},
    "datetime": {"type": "string", "format": "date-time"},
    "object": {"x-kubernetes-preserve-unknown-fields": True},
}
ZEROS = {"string": "", "integer": 0, "number": 0, "boolean": False, "array": []}
GO_TYPES = {
    "string": "string",
    "integer": "int",
    "number": "float64",
    "boolean": "bool",
    "array": "slice",
    "object": "map",
}


@functools.cache
def schema_of(kind: str) -> Schema:
    """The schema of a built-in kind; without one anything is allowed."""
    model = MODELS.get(kind, f"V1{kind}")
    if kind in UNCHECKED or not hasattr(models, model):
        return {"x-kubernetes-preserve-unknown-fields": True}
    return _model(model)


@functools.cache
def metadata_schema() -> Schema:
    return _model("V1ObjectMeta")


@functools.cache
def _model(name: str) -> Schema:
    model: Any = getattr(models, name)
    keys: dict[str, str] = model.attribute_map
    fields = getattr(model, "model_fields", {})
    return {
        "type": "object",
        "properties": {keys[field]: _field(field, type_) for field, type_ in model.openapi_types.items()},
        "required": [keys[field] for field, facts in fields.items() if facts.is_required()],
    }


def _field(field: str, type_: str) -> Schema:
    if field in QUANTITIES and type_.lower().startswith("dict"):
        return {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": True, "quantity": True}}
    return _type(type_)


def _type(type_: str) -> Schema:
    if match := re.match(r"(?i)^list\[(.*)\]$", type_):
        return {"type": "array", "items": _type(match[1])}
    if match := re.match(r"(?i)^dict[\[(]str, (.*)[\])]$", type_):
        return {"type": "object", "additionalProperties": _type(match[1])}
    return SCALARS[type_] if type_ in SCALARS else _model(type_)


def decode(value: Any, schema: Schema) -> Any:
    """What Go's decoder makes of the value, in place: null is absence, a quantity is a string."""
    if isinstance(value, list):
        return [decode(part, schema.get("items") or {}) for part in value]
    if not isinstance(value, dict):
        return str(value) if schema.get("quantity") and not isinstance(value, bool) else value
    properties: dict[str, Schema] = schema.get("properties") or {}
    others: Schema = schema.get("additionalProperties") or {}
    for key in [key for key, part in value.items() if part is None]:
        del value[key]
    for key, part in value.items():
        value[key] = decode(part, properties.get(key, others))
    return value


def fill(value: Any, schema: Schema) -> None:
    """Give a status the zero values that the real server writes for fields it never leaves out, in place."""
    if isinstance(value, list):
        for part in value:
            fill(part, schema.get("items") or {})
    if not isinstance(value, dict):
        return
    properties = schema.get("properties") or {}
    for key in schema.get("required") or ():
        zero = ZEROS.get(properties.get(key, {}).get("type", ""))
        if key not in value and zero is not None and properties[key].get("format") != "date-time":
            value[key] = list(zero) if isinstance(zero, list) else zero
    for key, part in value.items():
        fill(part, properties.get(key) or {})


def fill_status(kind: Kind, value: Object) -> None:
    if "status" in value:
        fill(value["status"], schema_of(kind.kind).get("properties", {}).get("status", {}))


def go_words(path: str, detail: str, schema: Schema) -> str:
    """A type fault as Go's JSON decoder words it."""
    found = detail.split('"')[1].replace("boolean", "bool").replace("integer", "number")
    expected = next((go for name, go in GO_TYPES.items() if f"of type {name}" in detail), "string")
    plain = re.sub(r"\[\d+\]", "", path)
    return f"json: cannot unmarshal {found} into Go struct field .{plain} of type {expected}"
