"""What one parameter of the search may be: a choice, a range, a flag."""

from __future__ import annotations

import json
import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from raytune_autotuner.records import ParameterValue
from raytune_autotuner.task.texts import ExpressionText


class Model(BaseModel):
    """Common settings of every part of the task: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


Scalar = Annotated[ParameterValue, Field(description="text, a number, true, false or null")]


class ParameterCommon(Model):
    when: ExpressionText | None = Field(
        None, description="the parameter is used only when this holds, e.g. `enable_dp and tp_size > 1`"
    )
    flag: str | None = Field(
        None,
        pattern=r"^--?[A-Za-z][A-Za-z0-9_.-]*$",
        description="the command-line flag, e.g. --my-flag, of a parameter that the engine file does not know",
    )


def _fault(field: str, message: str) -> PydanticCustomError:
    """A fault of one field that shows only beside another field."""
    return PydanticCustomError("task", "{message}", {"message": message, "steps": (field,)})


class Choice(ParameterCommon):
    type: Literal["choice"]
    values: tuple[Scalar, ...] = Field(
        min_length=1, description="what to choose from; true is the flag alone, false and null leave the flag out"
    )

    @model_validator(mode="after")
    def _no_value_twice(self) -> Choice:
        seen = [json.dumps(value) for value in self.values]
        if twice := sorted({value for value in seen if seen.count(value) > 1}):
            raise _fault("values", f"{', '.join(twice)} is given twice")
        return self


class IntRange(ParameterCommon):
    type: Literal["int"]
    low: int = Field(description="the smallest value")
    high: int = Field(description="the largest value, itself included")
    step: int = Field(1, ge=1, description="distance between values, counted from low")
    log: bool = Field(False, description="search by ratio instead of by difference, e.g. 1, 10, 100")

    @model_validator(mode="after")
    def _is_range(self) -> IntRange:
        _check_range(self.low, self.high, self.log, self.step)
        return self


class FloatRange(ParameterCommon):
    type: Literal["float"]
    low: float = Field(description="the smallest value")
    high: float = Field(description="the largest value, itself included")
    step: float | None = Field(None, gt=0, description="distance between values, counted from low; needed for a grid")
    log: bool = Field(False, description="search by ratio instead of by difference, e.g. 0.01, 0.1, 1")

    @model_validator(mode="after")
    def _is_range(self) -> FloatRange:
        _check_range(self.low, self.high, self.log, self.step)
        return self


MAX_STEPS = 2**53
"""Indices beyond this are not exact."""


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if low >= high:
        raise _fault("high", f"found {high:g}; it must be more than low, which is {low:g}")
    if log and low <= 0:
        raise _fault("low", f"found {low:g}; with log it must be more than 0")
    if not math.isfinite(high - low):
        raise _fault("high", f"the range from {low:g} to {high:g} is too wide")
    if step is None:
        return
    steps = (high - low) / step
    if steps > MAX_STEPS:
        raise _fault("step", f"found {step:g}, which makes more than {MAX_STEPS:g} values")
    if round(steps, 6) < 1:
        raise _fault("step", f"found {step:g}, which is more than the whole range from {low:g} to {high:g}")
    if not math.isclose(steps, round(steps), rel_tol=1e-6):
        below = low + math.floor(steps) * step
        raise _fault(
            "step",
            f"found {step:g}, which does not lead from {low:g} to {high:g}; write high as {below:g} or another step",
        )


class Boolean(ParameterCommon):
    type: Literal["bool"]


Parameter = Annotated[Choice | IntRange | FloatRange | Boolean, Field(discriminator="type")]
