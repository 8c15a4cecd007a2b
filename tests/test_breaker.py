"""When failures repeat themselves, and what is said then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raytune_autotuner.errors import FailureClass
from raytune_autotuner.foresight import Case, search_end
from raytune_autotuner.records import Failure, SearchEnd

NOT_FOUND = "OSError: /models/x does not appear to have a file named config.json"


def case(number: int, kind: FailureClass | None = None, reason: str = "", **more: Any) -> Case:
    """One that worked, or failed like this; each ends a minute after the one before."""
    outcome: Any = "completed" if kind is None else "failed" if kind == "infrastructure" else "infeasible"
    failure = Failure(kind, reason, "the log", "the hint") if kind else None
    fields: dict[str, Any] = {"parameters": {"x": number}, "ended_at": f"2026-01-01T00:{number:02}:00+00:00", **more}
    return Case(f"search-{number}", fields.pop("parameters"), outcome, failure, number=number, **fields)


def failing(first: int, count: int, kind: FailureClass, reason: str) -> list[Case]:
    return [case(first + n, kind, f"{reason} in pod t-{first + n}-engine") for n in range(count)]


def end(cases: list[Case], limit: int | None = 5) -> SearchEnd | None:
    return search_end(cases, limit)


def test_five_failures_alike_end_the_search() -> None:
    """Whatever numbers and names of pods are in the message; it says what, how often, and what to do."""
    cases = [case(0), *failing(1, 5, "infrastructure", "node is lost")]
    assert end(cases[:-1]) is None
    found = end(cases)
    assert found is not None
    assert (found.cause, found.kind, found.count, found.log_tail) == (
        "identical_failures",
        "infrastructure",
        5,
        "the log",
    )
    assert found.reason.startswith(
        "5 trials in a row failed alike (infrastructure: node is lost in pod t-5-engine), the last search-5; "
        "others worked before; the hint. Mend it and resume the experiment, or set "
    )
    assert end(cases, limit=None) is None
    assert end(cases, limit=6) is None


@pytest.mark.parametrize(
    "between",
    [case(20), case(20, "infrastructure", "the disk is full"), case(20, "out_of_memory", "node is lost in pod x1")],
)
def test_anything_else_between_them_begins_anew(between: Case) -> None:
    """A success, another reason, another class."""
    five = [
        case(0),
        *failing(21, 4, "infrastructure", "node is lost"),
        *failing(18, 2, "infrastructure", "node is lost"),
    ]
    assert end(five) is not None
    assert end([*five, between]) is None


@pytest.mark.parametrize("kind", ["pruned", "no_fit", "interrupted"])
def test_what_was_not_run_neither_counts_nor_interrupts(kind: FailureClass) -> None:
    """It says nothing about the next one."""
    cases = failing(10, 5, "not_ready", "not ready in time")
    assert end([*cases[:3], case(12, kind, "so"), *cases[3:]]) is not None
    assert end([*cases[:4], case(19, kind, "so")]) is None


def test_a_runtime_that_does_not_start_is_told_earlier() -> None:
    """The baseline and the first two of the search, of a kind that no searched parameter explains."""
    first = [case(0, "crash", NOT_FOUND, parameters={}), case(1, "crash", NOT_FOUND), case(2, "crash", NOT_FOUND)]
    found = end(first)
    assert found is not None
    assert "3 trials in a row failed alike" in found.reason
    assert "nothing has worked so far" in found.reason
    assert end(first[:2]) is None
    assert end([case(3, "crash", NOT_FOUND), *first[1:]]) is None
    memory = failing(0, 5, "out_of_memory", "CUDA out of memory")
    memory[0] = replace(memory[0], parameters={})
    assert end(memory[:4]) is None
    assert end(memory) is not None


def test_a_search_where_much_fails_goes_on() -> None:
    """Five in a row are chance where half of all fail; a dozen are not."""
    mixed = [case(n, "out_of_memory", "CUDA out of memory") if n % 2 else case(n) for n in range(20)]
    assert end([*mixed, *failing(20, 5, "out_of_memory", "CUDA out of memory")]) is None
    assert end([*mixed, *failing(20, 12, "out_of_memory", "CUDA out of memory")]) is not None


def test_an_experiment_without_trials_goes_on() -> None:
    """And so does one whose last trial worked."""
    assert end([]) is None
    assert end([*failing(1, 9, "crash", "it broke"), case(30)]) is None
