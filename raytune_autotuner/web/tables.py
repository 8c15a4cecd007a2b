"""The trials of an experiment as rows: filtered, sorted and cut into pages on the server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytune_autotuner.objectives import over_loads, rank
from raytune_autotuner.records import Metrics, Parameters, Score
from raytune_autotuner.summary import ENDINGS, ending, origin
from raytune_autotuner.web.reader import Snapshot, Trial

PAGE_SIZE = 50
LARGEST_PAGE = 500
MOST_PARAMETER_COLUMNS = 8
METRICS = ("output_tokens_per_s", "ttft_p99_s", "tpot_p95_s", "e2e_p99_s")
"""Those in the table; a trial's page has all."""
STANDINGS = ("running", *ENDINGS)


@dataclass(frozen=True)
class Row:
    """One trial as the table shows it."""

    name: str
    number: int
    purpose: str
    standing: str
    """How it ended, in words, or ``running``."""
    phase: str
    """What it does now, in words; empty when it has ended."""
    reason: str
    rungs: int
    total_rungs: int
    parameters: Parameters
    score: Score | None
    """At the last rung that it finished."""
    complete: bool
    """Whether that was the last one of all."""
    metrics: Mapping[str, float]
    wall_s: float
    node: str | None
    origin: str = ""
    """Where it was taken over from, in words; empty when it was measured here."""
    is_winner: bool = False


@dataclass(frozen=True)
class Query:
    """What part of the table is wanted, in which order."""

    text: str = ""
    standing: str = ""
    purpose: str = ""
    sort: str = "number"
    descending: bool = True
    page: int = 1
    size: int = PAGE_SIZE


@dataclass(frozen=True)
class Page:
    rows: Sequence[Row]
    total: int
    """Rows on all pages."""
    page: int
    pages: int
    query: Query


def rows(snapshot: Snapshot) -> list[Row]:
    winner = snapshot.results.winner
    name = winner.trial.name if winner else None
    return [row(each, trial, snapshot, each == name) for each, trial in snapshot.trials.items()]


def row(name: str, trial: Trial, snapshot: Snapshot, is_winner: bool = False) -> Row:
    known = trial.record or trial.state
    record, state = trial.record, trial.state
    last = record.rungs[-1] if record and record.rungs else None
    running = snapshot.is_running and record is None
    return Row(
        name=name,
        number=trial.number,
        purpose=known.trial.purpose if known else name.partition("-")[0],
        standing=ending(record) if record else "running" if running else "interrupted",
        phase=" ".join((state.phase, state.detail)).strip() if state and running else "",
        reason=_reason(trial, last.score if last else None),
        rungs=len(record.rungs) if record else max(0, state.rung) if state else 0,
        total_rungs=known.total_rungs if known else 0,
        parameters=known.parameters if known else {},
        score=(record.score or (last.score if last else None)) if record else state.score if state else None,
        complete=bool(record and record.score),
        metrics=_metrics(last.metrics) if last else {},
        wall_s=sum(known.phases.values()) if known else 0.0,
        node=known.node if known else None,
        origin=origin(record) if record else "",
        is_winner=is_winner,
    )


def _reason(trial: Trial, score: Score | None) -> str:
    record = trial.record
    if record is None:
        return ""
    if record.failure:
        said = record.failure.reason.splitlines()
        return f"{record.failure.kind.replace('_', ' ')}: {said[0] if said else ''}".rstrip(": ")
    if record.outcome == "stopped":
        return "others were better at this rung"
    return f"breaks the SLO: {score.worst}" if score and score.violation else ""


def _metrics(metrics: Metrics) -> dict[str, float]:
    found = {}
    for name in METRICS:
        if metrics.loads and all(name in load.values for load in metrics.loads):
            found[name] = over_loads(metrics, name)
    return found


def parameter_columns(all_rows: Sequence[Row]) -> list[str]:
    """The parameters that have a column each; none when there are too many."""
    names = list(dict.fromkeys(name for row in all_rows for name in row.parameters))
    return names if len(names) <= MOST_PARAMETER_COLUMNS else []


def page(found: Sequence[Row], query: Query) -> Page:
    """The rows that are wanted; a page beyond the last one is the last one."""
    chosen = sorted((row for row in found if _fits(row, query)), key=lambda row: row.number)
    chosen = _sorted(chosen, query)
    size = min(max(1, query.size), LARGEST_PAGE)
    pages = max(1, math.ceil(len(chosen) / size))
    number = min(max(1, query.page), pages)
    return Page(chosen[(number - 1) * size : number * size], len(chosen), number, pages, query)


def _fits(row: Row, query: Query) -> bool:
    if query.standing and row.standing != query.standing:
        return False
    if query.purpose and row.purpose != query.purpose:
        return False
    said = " ".join((row.name, f"#{row.number}", row.reason, *(f"{k}={v}" for k, v in row.parameters.items())))
    return all(word in said.lower() for word in query.text.lower().split())


def _sorted(chosen: Sequence[Row], query: Query) -> list[Row]:
    """Rows without a value come last in either order."""
    value = _key(query.sort)
    known = [row for row in chosen if value(row) is not None]
    unknown = [row for row in chosen if value(row) is None]
    return [*sorted(known, key=lambda row: _comparable(value(row)), reverse=query.descending), *unknown]


def _comparable(value: Any) -> tuple[int, Any]:
    """Numbers before text, so that values of several types have an order."""
    if isinstance(value, tuple):
        return (0, value)
    return (0, (value,)) if isinstance(value, int | float) else (1, str(value))


def _key(sort: str) -> Callable[[Row], Any]:
    kind, _, name = sort.partition(":")
    if kind == "metric":
        return lambda row: row.metrics.get(name)
    if kind == "parameter":
        return lambda row: row.parameters.get(name)
    return KEYS.get(kind, KEYS["number"])


KEYS: Mapping[str, Callable[[Row], Any]] = {
    "number": lambda row: row.number,
    "standing": lambda row: row.standing,
    "rung": lambda row: row.rungs,
    "score": lambda row: tuple(-each for each in rank(row.score)) if row.score else None,
    "wall": lambda row: row.wall_s,
    "purpose": lambda row: row.purpose,
    "reason": lambda row: row.reason or None,
    "node": lambda row: row.node,
}
"""Scores sort by how good they are: a descending one begins with the best."""
