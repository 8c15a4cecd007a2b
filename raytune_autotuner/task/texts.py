"""Texts of a certain form, as types for the models of files."""

from __future__ import annotations

import keyword
import re
from typing import Annotated

from pydantic import AfterValidator

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


VariableName = Annotated[str, AfterValidator(_variable_name)]
ExpressionText = Annotated[str, AfterValidator(_expression)]
ScenarioText = Annotated[str, AfterValidator(_scenario)]
ParameterName = Annotated[str, AfterValidator(_parameter_name)]
