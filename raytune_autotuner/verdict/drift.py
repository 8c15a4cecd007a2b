"""Whether the machines changed while the search went on, from the baseline's repeats.

The baseline is the same each time, so what its values differ by beyond noise is due to when and where it ran.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.task.spec import FEWEST_BASELINES
from raytune_autotuner.verdict.design import Columns, nodes
from raytune_autotuner.verdict.effect import chance
from raytune_autotuner.verdict.runs import Run, in_order

SHUFFLES = 2000
NEIGHBOURS = 3
"""So many runs tell the level at one moment."""


@dataclass(frozen=True)
class Drift:
    """How the level differed from that of the first run, in log goodness."""

    words: str
    times: tuple[float, ...] = ()
    """Seconds, as in ``Run.started_at``; empty when time made no difference."""
    levels: tuple[float, ...] = ()
    by_node: Mapping[str, float] = field(default_factory=dict)
    """Empty when nodes made no difference."""

    @property
    def significant(self) -> bool:
        return bool(self.times or self.by_node)

    def correction(self, started_at: float, node: str | None = None) -> float:
        """What to add to a log goodness that was measured then and there.

        Linear between the baseline's runs and constant beyond them; 0 for a node it never ran on.
        """
        level = float(np.interp(started_at, self.times, self.levels)) if self.times else 0.0
        return -level - self.by_node.get(node or "", 0.0)


def drift(baseline_runs: Sequence[Run], confidence: float = 0.95) -> Drift:
    """What time and node did to the baseline; both are tested at ``confidence``."""
    runs = in_order(baseline_runs)
    if len(runs) < FEWEST_BASELINES:
        return too_few(len(runs))
    y, time = np.array([run.log_goodness for run in runs]), _time(runs)
    least = float(np.mean([run.within_variance for run in runs]))
    by_node: dict[str, float] = {}
    if chance(y, time, nodes([run.node for run in runs]), least) < 1 - confidence:
        by_node = _by_node(runs, y, time)
        y = y - np.array([by_node[run.node or ""] for run in runs])
    steady = chance(y, time[:, :1], time[:, 1:], least)
    wandering = _wandering(y) if float(np.var(y, ddof=1)) > least else 1.0
    levels = _levels(time[:, 1], y) if min(steady, wandering) < (1 - confidence) / 2 else ()
    times = tuple(run.started_at for run in runs) if levels else ()
    return Drift(_words(levels, by_node, len(runs)), times, levels, by_node)


def too_few(count: int) -> Drift:
    """Of so many runs of the baseline."""
    return Drift(f"too few runs of the baseline to tell drift from noise ({count} of {FEWEST_BASELINES})")


def _time(runs: Sequence[Run]) -> Columns:
    """A constant and the time, scaled to [0, 1]."""
    at = np.array([run.started_at for run in runs])
    span = float(np.ptp(at)) or 1.0
    return np.stack([np.ones(len(runs)), (at - at[0]) / span], axis=1)


def _by_node(runs: Sequence[Run], y: Columns, time: Columns) -> dict[str, float]:
    """Each node's level beside that of the first run's node, with a steady drift taken out."""
    names = sorted({run.node or "" for run in runs})
    fitted = np.linalg.lstsq(np.hstack([time, nodes([run.node for run in runs])]), y, rcond=None)[0][2:]
    levels = dict(zip(names, [0.0, *map(float, fitted)], strict=True))
    return {name: level - levels[runs[0].node or ""] for name, level in levels.items()}


def _wandering(y: Columns) -> float:
    """How likely neighbours are as close by chance (von Neumann's ratio, against shuffled orders)."""
    shuffled = np.random.default_rng(0).permuted(np.tile(y, (SHUFFLES, 1)), axis=1)
    steps = np.square(np.diff(shuffled)).sum(axis=1)
    return float((1 + np.sum(steps <= np.square(np.diff(y)).sum() * (1 + 1e-9))) / (1 + SHUFFLES))


def _levels(time: Columns, y: Columns) -> tuple[float, ...]:
    """The level at each run, from a straight line through its nearest neighbours, beside the first."""
    smooth = [_line_at(at, time, y) for at in time]
    return tuple(level - smooth[0] for level in smooth)


def _line_at(at: float, time: Columns, y: Columns) -> float:
    nearest: NDArray[np.int64] = np.argsort(np.abs(time - at), kind="stable")[:NEIGHBOURS]
    x = np.stack([np.ones(len(nearest)), time[nearest] - at], axis=1)
    return float(np.linalg.lstsq(x, y[nearest], rcond=None)[0][0])


def _words(levels: Sequence[float], by_node: Mapping[str, float], count: int) -> str:
    found = []
    if levels:
        far = max(levels, key=abs)
        found.append(f"the level changed by up to {math.expm1(far):+.1%} over time")
    if by_node:
        named = ", ".join(f"{name or 'unknown'} {math.expm1(level):+.1%}" for name, level in by_node.items())
        found.append(f"nodes differ ({named})")
    said = " and ".join(found) or "no drift beyond noise"
    return f"{said}, in {count} runs of the baseline"
