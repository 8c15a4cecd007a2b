"""What a verdict is made from: runs of the whole workload."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from raytune_autotuner.objectives import LEAST, Context, score
from raytune_autotuner.records import Metrics, Score

Side = Literal["baseline", "winner"]


@dataclass(frozen=True)
class Measurement:
    """One run of the whole workload, with what its objective needs."""

    metrics: Metrics
    context: Context

    @property
    def score(self) -> Score:
        return score(self.metrics, self.context)


@dataclass(frozen=True)
class Run:
    """One run as the statistics see it."""

    side: Side
    score: Score
    within_variance: float = 0.0
    """Of the log goodness, as the requests of this run alone show it (see ``noise``)."""
    node: str | None = None
    started_at: float = 0.0
    """Seconds since any one moment; runs of the same moment keep the order in which they are given."""

    @property
    def log_goodness(self) -> float:
        return log_goodness(self.score)


def log_goodness(score: Score) -> float:
    """The logarithm of the value, turned so that larger is better; differences are relative gains."""
    value = math.log(max(score.value, LEAST))
    return value if score.direction == "max" else -value


def in_order(runs: Iterable[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.started_at)


def of(side: Side, runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if run.side == side]
