"""How much better the winner is, cleared of drift and nodes, and how uncertain that is.

Least squares on the log goodness, with what else may have changed it taken out (see ``design``). The noise of a
run is what is left over, but never less than what the requests within the runs say, and never less than
``FEW_RUNS_NOISE`` as long as there is little to learn it from: two runs may agree by chance, and noise that jumps
between two levels makes that likely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from raytune_autotuner.verdict.design import Columns, design_of
from raytune_autotuner.verdict.runs import Run, in_order

FEW_RUNS_NOISE = 0.03
"""Standard deviation of a run, relative, that is assumed at least while fewer than ``ENOUGH`` degrees are left."""
ENOUGH = 3
UNKNOWN_NOISE = 0.1
"""The same where nothing was repeated."""


@dataclass(frozen=True)
class Effect:
    """``delta`` is the winner's gain in log goodness."""

    delta: float
    error: float
    """Standard error of ``delta``."""
    variance: float
    """Of one run."""
    freedom: float
    """Degrees of freedom of ``variance``; infinite when it was not estimated."""

    def half(self, alpha: float) -> float:
        """Half the width of the interval that misses with probability ``alpha``, on both sides together."""
        return quantile(1 - alpha / 2, self.freedom) * self.error


def quantile(probability: float, freedom: float) -> float:
    """Student's t, or the normal distribution for infinite freedom."""
    return float(special.ndtri(probability) if math.isinf(freedom) else special.stdtrit(freedom, probability))


def effect(runs: Sequence[Run], response: Callable[[Run], float] = lambda run: run.log_goodness) -> Effect | None:
    """The effect on ``response``, or ``None`` when each side ran on nodes of its own.

    Both sides must be there.
    """
    runs = in_order(runs)
    design = design_of(tuple((run.side, run.node) for run in runs))
    if design is None:
        return None
    y = np.array([response(run) for run in runs])
    delta = float(design.cleared @ y) / design.weight
    rest = y - design.disturbed @ y - delta * design.cleared
    within = float(np.mean([run.within_variance for run in runs]))
    if design.freedom == 0:
        variance, freedom = UNKNOWN_NOISE**2, math.inf
    else:
        least = FEW_RUNS_NOISE**2 if design.freedom < ENOUGH else 0.0
        variance, freedom = max(least, float(rest @ rest) / design.freedom), design.freedom
    variance = max(within, variance)
    return Effect(delta, math.sqrt(variance / design.weight), variance, freedom)


def chance(y: Columns, known: Columns, more: Columns, least_variance: float = 0.0) -> float:
    """How likely ``more`` columns explain by chance as much as they do beyond ``known`` (F test); 1 if none do."""
    (before, rank_before), (after, rank_after) = (_rest(y, x) for x in (known, np.hstack([known, more])))
    freedom, added = len(y) - rank_after, rank_after - rank_before
    if freedom < 1 or added < 1:
        return 1.0
    variance = max(after / freedom, least_variance, 1e-18)
    return float(special.fdtrc(added, freedom, (before - after) / added / variance))


def _rest(y: Columns, x: Columns) -> tuple[float, int]:
    """What the columns leave of the sum of squares, and how many of them say something of their own."""
    fitted, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    rest = y - x @ fitted
    return float(rest @ rest), int(rank)
