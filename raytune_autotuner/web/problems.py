"""Errors as answers: problem details (RFC 9457), with the place of each fault in a task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel
from starlette.responses import JSONResponse

from raytune_autotuner.errors import Problem, SpecError

MEDIA_TYPE = "application/problem+json"
PLACE = re.compile(r"(?P<place>.*?)(?: \(line (?P<line>\d+)\))?$", re.DOTALL)


class Fault(BaseModel):
    """One thing that is wrong with a task."""

    place: str
    """As ``optimization.max_iterations``; empty for the whole."""
    line: int | None = None
    message: str

    @classmethod
    def of(cls, problem: Problem) -> Fault:
        found = PLACE.match(problem.place)
        assert found is not None  # everything matches
        line = found["line"]
        return cls(place=found["place"], line=int(line) if line else None, message=problem.message)


class ProblemDetails(BaseModel):
    """What went wrong, for programs."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    faults: list[Fault] = []


def problem(
    status: int, detail: str, faults: list[Fault] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=detail, faults=faults or [])
    return JSONResponse(body.model_dump(), status, dict(headers or {}), MEDIA_TYPE)


def of_spec_error(error: SpecError, status: int = 422) -> JSONResponse:
    return problem(status, str(error), [Fault.of(each) for each in error.problems])
