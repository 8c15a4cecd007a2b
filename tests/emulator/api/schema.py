"""Structural OpenAPI schemas (of CRDs, and derived ones of built-in kinds) applied to objects.

Three passes, as in the real server: ``prune`` drops what a schema does not know and tells its paths, ``default``
fills in defaults, ``faults`` finds values that break the schema. Only what an object has is visited, so the size of
a schema costs nothing.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from tests.emulator.api.errors import FieldFault
from tests.emulator.api.objects import Object, copied

Schema = dict[str, Any]
TYPE_FAULT = "FieldValueTypeInvalid"
JSON_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def prune(value: Any, schema: Schema, path: str = "") -> list[str]:
    """Drop the fields that the schema does not know, in place; returns their paths."""
    if isinstance(value, list):
        items = schema.get("items") or {}
        return [gone for index, part in enumerate(value) for gone in prune(part, items, f"{path}[{index}]")]
    if not isinstance(value, dict):
        return []
    dropped: list[str] = []
    for key in list(value):
        part = _property(schema, key)
        if part is not None:
            dropped += prune(value[key], part, _below(path, key))
        elif not _open(schema):
            del value[key]
            dropped.append(_below(path, key))
    return dropped


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _property(schema: Schema, key: str) -> Schema | None:
    """The schema of one field; None where the schema names none."""
    known: Schema | None = (schema.get("properties") or {}).get(key)
    if known is None and isinstance(schema.get("additionalProperties"), dict):
        known = schema["additionalProperties"]
    return known


def _open(schema: Schema) -> bool:
    return bool(schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("additionalProperties"))


def default(value: Any, schema: Schema) -> None:
    """Fill in the defaults of what is missing (or null where null is not allowed), in place."""
    if isinstance(value, list):
        for part in value:
            default(part, schema.get("items") or {})
    if not isinstance(value, dict):
        return
    for key, part in (schema.get("properties") or {}).items():
        if "default" in part and (key not in value or (value[key] is None and not part.get("nullable"))):
            value[key] = copied(part["default"])
    for key, below in value.items():
        part = _property(schema, key)
        if part:
            default(below, part)


def faults(value: Any, schema: Schema, path: str = "") -> Iterator[FieldFault]:
    """What breaks the schema, field by field, in the words of the real server."""
    if value is None and schema.get("nullable"):
        return
    wrong_type = _type_fault(value, schema, path)
    if wrong_type:
        yield wrong_type
        return
    yield from _value_faults(value, schema, path)
    if isinstance(value, dict):
        yield from _object_faults(value, schema, path)
    elif isinstance(value, list):
        yield from _list_faults(value, schema, path)


def json_type(value: Any) -> str:
    if value is None:
        return "null"
    return next(name for name, type_ in _TYPE_NAMES.items() if isinstance(value, type_))


_TYPE_NAMES = {"boolean": bool, "integer": int, "number": float, "string": str, "array": list, "object": dict}


def _type_fault(value: Any, schema: Schema, path: str) -> FieldFault | None:
    if schema.get("x-kubernetes-int-or-string"):
        expected = "integer,string"
        fits = isinstance(value, (int, str)) and not isinstance(value, bool)
    else:
        expected = schema.get("type", "")
        fits = not expected or _is_a(value, expected)
    if fits:
        return None
    found = json_type(value)
    detail = f'Invalid value: "{found}": {path} in body must be of type {expected}: "{found}"'
    return FieldFault(path, TYPE_FAULT, detail)


def _is_a(value: Any, expected: str) -> bool:
    if isinstance(value, bool):
        return expected == "boolean"
    if isinstance(value, float) and expected == "integer":
        return value.is_integer()
    return isinstance(value, JSON_TYPES[expected])  # type: ignore[arg-type]


def invalid(path: str, shown: str, why: str) -> FieldFault:
    return FieldFault(path, "FieldValueInvalid", f"Invalid value: {shown}: {why}")


def required(path: str) -> FieldFault:
    return FieldFault(path, "FieldValueRequired", "Required value")


def _value_faults(value: Any, schema: Schema, path: str) -> Iterator[FieldFault]:
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(json.dumps(choice) for choice in schema["enum"])
        detail = f"Unsupported value: {json.dumps(value)}: supported values: {supported}"
        yield FieldFault(path, "FieldValueNotSupported", detail)
    if isinstance(value, str):
        yield from _string_faults(value, schema, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _number_faults(value, schema, path)
    yield from _combination_faults(value, schema, path)


def _string_faults(value: str, schema: Schema, path: str) -> Iterator[FieldFault]:
    shown = json.dumps(value)
    if "pattern" in schema and not _pattern(schema["pattern"]).search(value):
        yield invalid(path, shown, f"{path} in body should match '{schema['pattern']}'")
    if len(value) < schema.get("minLength", 0):
        yield invalid(path, shown, f"{path} in body should be at least {schema['minLength']} chars long")
    if len(value) > schema.get("maxLength", len(value)):
        detail = f"Too long: may not be more than {schema['maxLength']} bytes"
        yield FieldFault(path, "FieldValueTooLong", detail)
    if schema.get("format") == "date-time" and not _is_time(value):
        yield invalid(path, shown, f"{path} in body must be of type date-time: {shown}")


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(re.sub(r"\.\d+", "", value).replace("Z", "+00:00")).tzinfo is not None
    except ValueError:
        return False


def _number_faults(value: float, schema: Schema, path: str) -> Iterator[FieldFault]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (value < low or (value == low and schema.get("exclusiveMinimum"))):
        than = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        yield invalid(path, str(value), f"{path} in body should be {than} {low}")
    if high is not None and (value > high or (value == high and schema.get("exclusiveMaximum"))):
        than = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        yield invalid(path, str(value), f"{path} in body should be {than} {high}")


def _combination_faults(value: Any, schema: Schema, path: str) -> Iterator[FieldFault]:
    for part in schema.get("allOf") or ():
        yield from faults(value, part, path)
    fitting = {word: [_fits(value, part) for part in schema.get(word) or ()] for word in ("anyOf", "oneOf")}
    shown = json.dumps(value) if isinstance(value, str) else '""'
    if fitting["anyOf"] and not any(fitting["anyOf"]):
        yield invalid(path, shown, f"{path} in body must validate at least one schema (anyOf)")
    if fitting["oneOf"] and sum(fitting["oneOf"]) != 1:
        found = "Found none valid" if not any(fitting["oneOf"]) else f"Found {sum(fitting['oneOf'])} valid alternatives"
        yield invalid(path, shown, f"{path} in body must validate one and only one schema (oneOf). {found}")
    if isinstance(schema.get("not"), dict) and _fits(value, schema["not"]):
        yield invalid(path, shown, f"{path} in body must not validate the schema (not)")


def _fits(value: Any, schema: Schema) -> bool:
    return next(faults(value, schema), None) is None


def _object_faults(value: Object, schema: Schema, path: str) -> Iterator[FieldFault]:
    for key in schema.get("required") or ():
        if key not in value:
            yield required(_below(path, key))
    for key, below in value.items():
        part = _property(schema, key)
        if part:
            yield from faults(below, part, _below(path, key))


def _list_faults(value: list[Any], schema: Schema, path: str) -> Iterator[FieldFault]:
    if len(value) < schema.get("minItems", 0):
        yield invalid(path, str(len(value)), f"{path} in body should have at least {schema['minItems']} items")
    if len(value) > schema.get("maxItems", len(value)):
        detail = f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
        yield FieldFault(path, "FieldValueTooMany", detail)
    for index, part in enumerate(value):
        yield from faults(part, schema.get("items") or {}, f"{path}[{index}]")
    yield from _duplicates(value, schema, path)


def _duplicates(value: list[Any], schema: Schema, path: str) -> Iterator[FieldFault]:
    keys = schema.get("x-kubernetes-list-map-keys")
    if schema.get("x-kubernetes-list-type") not in ("set", "map") and not schema.get("uniqueItems"):
        return
    seen: list[Any] = []
    for index, part in enumerate(value):
        identity = {key: part.get(key) for key in keys} if keys and isinstance(part, dict) else part
        if identity in seen:
            yield FieldFault(f"{path}[{index}]", "FieldValueDuplicate", f"Duplicate value: {json.dumps(identity)}")
        seen.append(identity)
