"""Texts of a certain form, as types for the models of files."""

from __future__ import annotations

import keyword
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from raytune_autotuner.task import expressions, scenarios


def _expression(text: str) -> str:
    expressions.parse(text)
    return text


def _scenario(text: str) -> str:
    scenarios.parse(text)
    return text


def _is_name(text: str) -> bool:
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)
    return bool(plain) and not keyword.iskeyword(text) and text not in expressions.RESERVED


def _parameter_name(name: str) -> str:
    """A name that expressions can use."""
    if not _is_name(name):
        plain = re.sub(r"\W", "_", name.strip("-"))
        hint = f"; write {plain}" if _is_name(plain) else ""
        raise ValueError(f"`{name}` is not a parameter's name: letters, digits and _ are valid{hint}")
    return name


def _variable_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # may be the key itself, so it is not repeated
        raise ValueError("this is the NAME of an environment variable, such as OPENAI_API_KEY, never the key itself")
    return name


def _environment_name(name: str) -> str:
    if not name or "=" in name:
        raise ValueError(f"`{name}` is not an environment variable's name; write NAME: value")
    return name


EnvironmentName = Annotated[str, AfterValidator(_environment_name)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
ExpressionText = Annotated[str, AfterValidator(_expression)]
ScenarioText = Annotated[str, AfterValidator(_scenario)]
ParameterName = Annotated[str, AfterValidator(_parameter_name)]


UNITS_S = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
LENGTH = r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d)\s*"


def _seconds(value: object) -> object:
    """A length of time as people write it; a number stays what it is."""
    if not isinstance(value, str):
        return value
    if found := re.fullmatch(LENGTH, value):
        return float(found[1]) * UNITS_S[found[2]]
    raise ValueError(f"`{value}` is no length of time: write seconds, or a number with s, min, h or d, e.g. 8h")


Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": f"^{LENGTH}$"}]}),
]
"""Seconds, written as a number or as a text such as ``8h``."""
