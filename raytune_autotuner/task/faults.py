"""pydantic's errors in the words of whoever wrote the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raytune_autotuner.task.taskfile import Fault, Steps, at, found, meant

EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "none_required": "null",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
"""What would have been valid, by pydantic's type of error."""

LIMITS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def explain(error: ValidationError, data: Any, model: type[BaseModel]) -> Iterator[Fault]:
    """The faults that a validation of ``data`` found, one for each place."""
    by_place: dict[Steps, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_place.setdefault(_steps(details, data), []).append(details)
    for steps, group in by_place.items():
        # An error of a whole that has errors inside is only their echo, e.g. from another member of a union.
        if not any(other[: len(steps)] == steps and other != steps for other in by_place):
            yield _fault(steps, group, data, model)


def _steps(details: ErrorDetails, data: Any) -> Steps:
    """The way to the value, without the labels that pydantic puts in for the members of a union."""
    steps: list[str | int] = []
    for step in details["loc"]:
        if (isinstance(data, dict) and step in data) or (isinstance(data, list) and isinstance(step, int)):
            data = data[step]  # type: ignore[index]
            steps.append(step)
    if details["type"] == "missing":
        steps.append(details["loc"][-1])
    return (*steps, *details.get("ctx", {}).get("steps", ()))


def _fault(steps: Steps, group: Sequence[ErrorDetails], data: Any, model: type[BaseModel]) -> Fault:
    first = group[0]
    kind, context = first["type"], first.get("ctx", {})
    value = at(data, steps)
    if kind == "missing":
        return steps, "is missing" + _described(steps, data, model)
    if kind == "extra_forbidden":
        return steps, _unknown(str(steps[-1]), _fields(_inside(model, steps[:-1], data)))
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _tag_fault(steps, value, _inside(model, steps, data))
    if kind in LIMITS:
        return (
            steps,
            f"found {found(value)}; it must be {LIMITS[kind].format(**{k: _plain(v) for k, v in context.items()})}",
        )
    if kind in ("too_short", "string_too_short"):
        return steps, "is empty; at least one is needed" if kind == "too_short" else "is empty"
    if kind in ("too_long", "string_too_long"):
        return steps, f"found {found(value)}, which is too long; at most {context['max_length']} are allowed"
    if kind == "string_pattern_mismatch":
        described = _described(steps, data, model) or f": {context['pattern']}"
        return steps, f"found {found(value)}, which is not of the right form{described}"
    expected = [_expected(details) for details in group]
    if all(expected):
        described = _described(steps, data, model) if len(group) > 1 else ""
        tags = _all_tags(_inside(model, steps, data))
        return steps, _wrong(value, [e for e in expected if e], tags) + described
    return steps, first["msg"].removeprefix("Value error, ")


def _expected(details: ErrorDetails) -> str | None:
    if details["type"] == "literal_error":
        return ", ".join(_quoted(details["ctx"]["expected"]))
    return EXPECTED.get(details["type"])


def _wrong(value: Any, expected: Sequence[str], tags: Sequence[str]) -> str:
    words = [e for e in dict.fromkeys(expected) if e != "a whole number" or "a number" not in expected]
    valid = " or ".join(words)
    hint = meant(value, words[-1].split(", ")) if isinstance(value, str) else ""
    example = f", e.g. {{type: {tags[0]}, ...}}" if tags else ""
    return f"found {found(value)}; valid {'are' if ', ' in valid else 'is'} {valid}{example}{hint}{_slip(value, words)}"


def _slip(value: Any, expected: Sequence[str]) -> str:
    """What was probably meant when only the notation is wrong."""
    if expected == ["a list"] and isinstance(value, str | int | float) and value != "":
        return f" (write {json.dumps([value])})"
    if isinstance(value, str) and re.fullmatch(r"[-+.\d]+", value) and expected[0].endswith("number"):
        return " (write it without quotes)"
    if expected == ["text"] and isinstance(value, int | float):
        return " (write it in quotes)"
    return ""


def _tag_fault(steps: Steps, value: Any, annotation: Any) -> Fault:
    tags = _all_tags(annotation)
    valid = f"valid are {', '.join(tags)}"
    if not isinstance(value, dict) or "type" not in value:
        return (*steps, "type"), f"is missing; {valid}"
    tag = value["type"]
    return (*steps, "type"), f"found {found(tag)}; {valid}" + (meant(tag, tags) if isinstance(tag, str) else "")


def _plain(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _unknown(name: str, valid: Sequence[str]) -> str:
    return f"there is no such field{meant(name, valid)}; valid are {', '.join(valid)}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text) or [text]


def _described(steps: Steps, data: Any, model: type[BaseModel]) -> str:
    """The description of the field, as the end of a sentence."""
    owner = _inside(model, steps[:-1], data)
    fields = getattr(owner, "model_fields", {})
    text = fields[steps[-1]].description if steps and steps[-1] in fields else None
    return f": {text}" if text else ""


def _fields(annotation: Any) -> list[str]:
    return list(getattr(annotation, "model_fields", {}))


def _inside(annotation: Any, steps: Steps, data: Any) -> Any:
    """The type of the value at the end of the way; of a union the member that the data chooses."""
    annotation = _chosen(annotation, data)
    if not steps:
        return annotation
    step = steps[0]
    inner: Any = None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = annotation.model_fields[str(step)].annotation if step in annotation.model_fields else None
    elif arguments := get_args(annotation):
        inner = arguments[1] if get_origin(annotation) is dict else arguments[0]
    return _inside(inner, steps[1:], at(data, (step,)))


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [m for argument in get_args(annotation) for m in _members(argument)]
    return [annotation]


def _chosen(annotation: Any, data: Any) -> Any:
    members = [m for m in _members(annotation) if m is not type(None)]
    models = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    if len(models) > 1:
        tag = data.get("type") if isinstance(data, dict) else None
        return next((m for m in models if tag in _tags(m)), annotation)
    return models[0] if models else members[0] if len(members) == 1 else annotation


def _all_tags(annotation: Any) -> list[str]:
    """The values of ``type`` that choose between the members of a union."""
    members = _members(annotation)
    return [tag for member in members for tag in _tags(member)] if len(members) > 1 else []


def _tags(model: Any) -> Sequence[str]:
    fields: Mapping[str, Any] = getattr(model, "model_fields", {})
    kind = fields["type"].annotation if "type" in fields else None
    return get_args(kind) if get_origin(kind) is Literal else ()
