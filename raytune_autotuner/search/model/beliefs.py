"""What a search believes of configurations that it never tried: how good they are, and whether they work at all.

How many rungs are left and which node it was are columns of the process, like the parameters: so short rungs teach what
whole ones would show as far as they go together, and a slow node's readings do not stand beside a fast one's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import log_ndtr

from raytune_autotuner.search.model.causes import Causes
from raytune_autotuner.search.model.process import EXPECTED, Array, Kernel, Process, log_improvement

WHOLE = 0
"""Rungs left after the last one."""
SHORT_NOISE = 2.0
"""Variance of a shorter rung's noise relative to the last one's."""
FAR = 0.8
"""Whoever is further behind the best than this, as a logarithm, teaches that it is bad, not how bad."""
SLO_FAR = 1.0
SLO_SAFE = -0.5
"""When every reading is this far within its limits, limits are left out of account."""
SLO_TOLERANCE = 0.01
XI = 0.01
"""An improvement counts when it is more than this, as a logarithm."""
LEFT = -2 - EXPECTED
"""The column of the rungs left."""
SLOPE, DOUBT = 0.8, 0.4
"""How far what was expected beforehand shows in what is measured, as a share, and how sure that is."""
CAUTION = 2.0
"""A failure costs more than its GPU-hours: it teaches nothing of the loss."""


@dataclass
class Trying:
    """What was heard of one configuration."""

    row: list[float]
    losses: dict[int, float] = field(default_factory=dict)
    """By rungs left; a rung that was cut short has none."""
    slo: dict[int, float] = field(default_factory=dict)
    """By rungs left, the worst metric relative to its limit; more than 1 breaks it."""
    node: int = 0
    failure: str | None = None
    """Why it cannot work, in words that are the same for the same cause."""
    closed: bool = False
    """Whether nothing more is to be expected."""

    @property
    def works(self) -> bool:
        return bool(self.slo) and self.failure is None

    @property
    def pending(self) -> bool:
        return not (self.slo or self.failure or self.closed)

    @property
    def missed(self) -> bool:
        """Whether it cannot work, or broke the SLO."""
        return self.failure is not None or max(self.slo.values(), default=0.0) > 1

    @property
    def keeps(self) -> bool:
        """Whether it works, and kept the SLO so far."""
        return self.works and not self.missed

    @property
    def may_be_best(self) -> bool:
        """It kept the SLO to the end, or is not there yet. What a short rung shows of the others is no yardstick."""
        if self.failure is not None:
            return False
        return self.slo[WHOLE] <= 1 if WHOLE in self.slo else not self.closed

    @property
    def rank(self) -> tuple[float, float]:
        """By the last of its rungs."""
        return self.at(min(self.slo))

    def at(self, left: int) -> tuple[float, float]:
        """Its rank at a rung: whoever keeps the SLO comes first."""
        return (max(0.0, self.slo[left] - 1), self.losses.get(left, math.inf))


BEST, LATEST = 60, 60
"""The process is fitted to so many of each, since its cost grows with the cube of their number."""


def most_telling(tried: Sequence[Trying]) -> list[Trying]:
    """The best and the latest of those that were heard of, the latest failures, and all that run, in their order."""
    heard = [n for n, each in enumerate(tried) if each.works]
    failing = [n for n, each in enumerate(tried) if each.failure]
    best = sorted(heard, key=lambda n: tried[n].rank)[:BEST]
    kept = {*best, *heard[-LATEST:], *failing[-BEST - LATEST :]}
    return [each for n, each in enumerate(tried) if n in kept or each.pending]


@dataclass(frozen=True)
class _Readings:
    """One row for each rung of each configuration; before what is expected stand the columns of rung and node."""

    x: Array
    y: Array
    """NaN where a rung was cut short."""
    slo: Array
    noise: Array

    @classmethod
    def of(cls, tried: Iterable[Trying]) -> _Readings:
        found = [(each, left) for each in tried for left in each.slo]
        x = np.array([[*each.row[:-EXPECTED], left, each.node, *each.row[-EXPECTED:]] for each, left in found])
        y = np.array([logarithm(each.losses[left]) if left in each.losses else math.nan for each, left in found])
        for left in np.unique(x[:, LEFT][~np.isnan(y)]):
            there = x[:, LEFT] == left
            y[there] = np.minimum(y[there], np.nanmin(y[there]) + FAR)
        slo = np.clip([math.log(max(each.slo[left], 1e-3)) for each, left in found], -SLO_FAR, SLO_FAR)
        return cls(x, y, slo, np.where(x[:, LEFT] == WHOLE, 1.0, SHORT_NOISE))

    @property
    def losses(self) -> tuple[Array, Array, Array]:
        """Rows, values and noise of those that are known."""
        known = ~np.isnan(self.y)
        return self.x[known], self.y[known], self.noise[known]


def logarithm(loss: float) -> float:
    """Monotone in the loss, and one per cent counts alike whatever its size; a loss that is maximised is negative.

    So is -0.0, the worst of those.
    """
    return math.copysign(1.0, loss) * math.log(max(abs(loss), 1e-12))


class Beliefs:
    """Of one experiment; ``columns`` says which parameters are ranks."""

    def __init__(self, ordered: Sequence[bool]) -> None:
        self._ordered = np.array(ordered, dtype=bool)
        with_rung_and_node = np.append(self._ordered, [False, False])
        rung, node = len(self._ordered), len(self._ordered) + 1
        self._loss = Process(Kernel(with_rung_and_node, {rung: 0.0, node: -3.0}), SLOPE, DOUBT, expected=-2)
        self._slo = Process(Kernel(with_rung_and_node, {rung: -1.0, node: -4.0}), SLOPE, DOUBT, expected=-1)

    def prospects(self, rows: Array, tried: Sequence[Trying], bar: float | None, *, learn: bool) -> Array:
        """How much each is expected to improve on the best so far, and the odds that its last rung keeps the SLO.

        As logarithms, shape (2, n). ``bar`` is a loss that is there anyway: the baseline's.
        """
        return np.stack(self._log_gain(rows, tried, bar, learn))

    def may_win(
        self, one: Trying, finals: Sequence[Trying], tried: Sequence[Trying], bar: float | None, *, gain: float
    ) -> bool:
        """Whether the last rung may well show ``one`` to keep the SLO and to be better than those that were there.

        ``gain`` is how much better, as a logarithm, it has to be expected to be.
        """
        readings, rows = _Readings.of(tried), np.array([each.row for each in (one, *finals)])
        self._loss.fit(*readings.losses, learn=False)
        mean, deviation = self._loss.predict(_at_the_end(rows))
        marks = [m for m, each in zip(mean[1:], finals, strict=True) if each.slo[WHOLE] <= 1]
        marks += [] if bar is None else [logarithm(bar)]
        if not marks:
            return True
        promised = log_improvement(min(marks) - XI, mean[:1], deviation[:1])
        return float((promised + self._log_keeps_slo(rows[:1], readings, learn=False))[0]) > math.log(gain)

    def _log_gain(self, rows: Array, tried: Sequence[Trying], bar: float | None, learn: bool) -> tuple[Array, Array]:
        readings = _Readings.of(tried) if any(each.losses for each in tried) else None
        if readings is None or len(readings.losses[1]) < 3:
            return np.zeros(len(rows)), np.zeros(len(rows))
        okay = self._log_keeps_slo(rows, readings, learn=learn)
        self._loss.fit(*readings.losses, learn=learn)
        best = self._best(tried, bar)
        if pending := [each.row for each in tried if each.pending]:
            self._believe(readings, _at_the_end(np.array(pending)))
        return log_improvement(best - XI, *self._loss.predict(_at_the_end(rows))), okay

    def _best(self, tried: Sequence[Trying], bar: float | None) -> float:
        heard = [each for each in tried if each.losses]
        mean, _ = self._loss.predict(_at_the_end(np.array([each.row for each in heard])))
        keeping = [m for m, each in zip(mean, heard, strict=True) if each.may_be_best and each.rank[0] == 0]
        keeping += [] if bar is None else [logarithm(bar)]
        return float(min(keeping, default=max(mean)))

    def _believe(self, readings: _Readings, rows: Array) -> None:
        """Take what runs for measured as expected, so that others are proposed beside it."""
        mean, _ = self._loss.predict(rows)
        x, y, noise = readings.losses
        self._loss.fit(np.vstack([x, rows]), np.append(y, mean), np.append(noise, np.ones(len(mean))), learn=False)

    def _log_keeps_slo(self, rows: Array, readings: _Readings, *, learn: bool) -> Array:
        """At the last rung: a short one breaks limits that the whole one keeps."""
        if readings.slo.max() < SLO_SAFE:
            return np.zeros(len(rows))
        self._slo.fit(readings.x, readings.slo, np.ones(len(readings.slo)), learn=learn)
        mean, deviation = self._slo.predict(_at_the_end(rows))
        return np.asarray(log_ndtr((SLO_TOLERANCE - mean) / deviation))

    def log_works(self, rows: Array, tried: Sequence[Trying]) -> Array:
        """Each reason to fail has causes of its own, so it is looked at without those that failed for another one."""
        total, rows = np.zeros(len(rows)), rows[:, :-EXPECTED]
        working = np.array([each.row[:-EXPECTED] for each in tried if each.works]).reshape(-1, rows.shape[1])
        for failure in sorted({each.failure for each in tried if each.failure}):
            failing = np.array([each.row[:-EXPECTED] for each in tried if each.failure == failure])
            total += Causes(failing, working, self._ordered.tolist()).log_works(rows)
        return total


def _at_the_end(rows: Array) -> Array:
    """After the last rung, on the first node."""
    rung_and_node = np.tile([float(WHOLE), 0.0], (len(rows), 1))
    return np.hstack([rows[:, :-EXPECTED], rung_and_node, rows[:, -EXPECTED:]])
