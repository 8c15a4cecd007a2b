"""How an experiment stands, as numbers and as one line for people. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from raytune_autotuner.earlier import age
from raytune_autotuner.ledger import charged, was_stopped_early
from raytune_autotuner.objectives import rank
from raytune_autotuner.records import Score, TrialRecord, eligible, refuted_configs

BEYOND = 1000.0
"""A larger gain, relative, only says that one of the two values is next to nothing: no percentage is told then."""


@dataclass(frozen=True)
class Summary:
    """Where all trials of an experiment stand."""

    planned: int
    """At most so many trials, those that confirm the answer included."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Of those that have ended, by ``ending``."""
    running: int = 0
    waiting: int = 0
    waiting_gpus: int = 0
    """What all that wait want in all."""
    best: Score | None = None
    """Of the trials that were measured to the end and keep the SLO (see ``records.eligible``)."""
    baseline: Score | None = None
    held_s: Mapping[str, float] = field(default_factory=dict)
    """GPU-seconds by phase; machine-seconds where there are no GPUs."""
    has_gpus: bool = False

    @property
    def ended(self) -> int:
        return sum(self.outcomes.values())


def ending(record: TrialRecord) -> str:
    """How a trial ended, in words; what somebody interrupted was not stopped for being worse."""
    if record.outcome != "stopped":
        return record.outcome
    if was_stopped_early(record):
        return "stopped early"
    return "out of budget" if record.failure and record.failure.kind == "budget" else "interrupted"


def origin(record: TrialRecord) -> str:
    """Where a measurement was taken over from, and how old it is; empty of one that was made here."""
    reused = record.reused_from
    return f"from {reused.experiment}, {age(datetime.fromisoformat(reused.measured_at))} old" if reused else ""


ENDINGS = ("completed", "stopped early", "infeasible", "failed", "out of budget", "interrupted")


def summarise(
    records: Iterable[TrialRecord], planned: int, running: int = 0, waiting: int = 0, waiting_gpus: int = 0
) -> Summary:
    """The standing of an experiment from the records of the trials that have ended."""
    records = list(records)
    measured = [r for r in records if not r.trial.again and r.outcome == "completed" and r.score]
    kept = [r for r in measured if r.score and not r.score.violation]
    scores = sorted((r.score for r in eligible(kept, refuted_configs(records)) if r.score), key=rank)
    spent: Counter[str] = Counter()
    for record in records:
        spent.update(charged(record))
    return Summary(
        planned=planned,
        outcomes=dict(Counter(ending(r) for r in records)),
        running=running,
        waiting=waiting,
        waiting_gpus=waiting_gpus,
        best=scores[0] if scores else None,
        baseline=next((r.score for r in measured if r.trial.purpose == "baseline"), None),
        held_s=dict(spent),
        has_gpus=any(r.gpus for r in records),
    )


def gain(best: Score, baseline: Score) -> float | None:
    """How much better, relative to the baseline: 0.2 is a fifth more throughput, or 1.2 times as fast.

    ``None`` where that says nothing (see ``BEYOND``).
    """
    more, less = (best.value, baseline.value) if best.direction == "max" else (baseline.value, best.value)
    found = more / less - 1 if less else math.inf
    return found if found <= BEYOND else None


def line(summary: Summary) -> str:
    """The standing in one line."""
    parts = [f"{summary.ended} of {summary.planned} trials" + _listed(summary)]
    parts += [part for part in (_open(summary), _best(summary), _spent(summary)) if part]
    return "; ".join(parts)


def _listed(summary: Summary) -> str:
    ended = [f"{summary.outcomes[each]} {each}" for each in ENDINGS if summary.outcomes.get(each)]
    return ": " + ", ".join(ended) if ended else ""


def _open(summary: Summary) -> str:
    wanted = f" for {summary.waiting_gpus} GPU{'s' * (summary.waiting_gpus != 1)}" if summary.waiting_gpus else ""
    parts = [f"{summary.running} running"] if summary.running else []
    parts += [f"{summary.waiting} waiting{wanted}"] if summary.waiting else []
    return ", ".join(parts)


def _best(summary: Summary) -> str:
    best, baseline = summary.best, summary.baseline
    if best is None:
        return ""
    better = gain(best, baseline) if baseline and baseline.loss != best.loss else None
    over = "" if better is None else f" ({100 * better:+.0f} % over the baseline)"
    return f"best {shown(best.value)} {best.unit}{over}"


def shown(value: float) -> str:
    """Three figures at least, and never as a power of ten where a person would write it out."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _spent(summary: Summary) -> str:
    hours = sum(summary.held_s.values()) / 3600
    unit = "GPU-hours" if summary.has_gpus else "machine-hours"
    return f"{hours:.1f} {unit}" if hours >= 0.05 else ""
