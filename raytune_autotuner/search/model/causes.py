"""Why configurations fail: the conditions that explain it best, and what follows for those that were never tried.

For each reason that an engine gave, every condition on one parameter (``= a``, ``≠ a``, ``≤ a``, ``≥ a``) and every
pair of them is a possible cause. A cause must hold for the failures and must not hold for what works; how likely it is
follows from Bayes' rule. A failure that the causes found so far do not explain has another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.search.model.process import Array

SINGLE = 0.5
"""Prior that a single condition is the cause; the rest is shared by the pairs."""
ANOTHER = 0.1
"""A failure with the same words that a cause does not hold for."""
DESPITE = 0.01
"""Something works although the cause holds."""
EXPLAINED = 0.5
CAUSES = 4
"""Of one reason, at most."""

THRESHOLDS = 12
"""Of one parameter, at most."""

Held = NDArray[np.bool_]


@dataclass(frozen=True)
class Condition:
    column: int
    sign: str
    value: float

    def holds(self, rows: Array) -> Held:
        at = rows[:, self.column]
        there = at >= 0 if self.sign in "≤≥" else np.full(len(at), True)
        compared = {"=": at == self.value, "≠": at != self.value, "≤": at <= self.value, "≥": at >= self.value}
        return np.asarray(compared[self.sign] & there)


class Causes:
    """What is believed of one reason to fail, after failures and successes."""

    def __init__(self, failures: Array, successes: Array, ordered: Sequence[bool]) -> None:
        conditions = list(_conditions(np.vstack([failures, successes]), ordered))
        self._conditions = conditions
        left = failures
        self._likely: list[tuple[NDArray[np.intp], NDArray[np.intp], Array]] = []
        while conditions and len(left) and len(self._likely) < CAUSES:
            found = _posterior(self._held(left), self._held(successes))
            self._likely.append(found)
            unexplained = left[self._odds(left, found) < EXPLAINED]
            if len(unexplained) == len(left):
                break
            left = unexplained

    def log_works(self, rows: Array) -> Array:
        """The logarithm of the odds that none of the causes holds."""
        held = self._held(rows)
        total = np.zeros(len(rows))
        for found in self._likely:
            total += np.log(np.maximum(1 - _share(held, found), 1e-6))
        return total

    def _odds(self, rows: Array, found: tuple[NDArray[np.intp], NDArray[np.intp], Array]) -> Array:
        return _share(self._held(rows), found)

    def _held(self, rows: Array) -> Held:
        """By condition and row."""
        return np.array([condition.holds(rows) for condition in self._conditions]).reshape(
            len(self._conditions), len(rows)
        )


def _conditions(rows: Array, ordered: Sequence[bool]) -> list[Condition]:
    """Those that hold for some rows and not for others."""
    found: list[Condition] = []
    for column, ranked in enumerate(ordered):
        values = _thinned(np.unique(rows[:, column]))
        signs = ("≤", "≥") if ranked else ("=", "≠")
        found += [Condition(column, sign, float(value)) for value in values for sign in signs]
    kept: dict[tuple[int, bytes], Condition] = {}
    for condition in found:
        held = condition.holds(rows)
        if held.any() and not held.all():
            kept.setdefault((condition.column, held.tobytes()), condition)
    return list(kept.values())


def _thinned(values: Array) -> Array:
    """Of a range without steps, some that are spread over those that were seen."""
    chosen = np.linspace(0, len(values) - 1, min(len(values), THRESHOLDS)).round().astype(int)
    return np.asarray(values[chosen])


def _posterior(failing: Held, working: Held) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Pairs of conditions (one with itself is a single one) and their probabilities."""
    count = len(failing)
    a, b = np.triu_indices(count)
    single = a == b
    prior = np.where(single, SINGLE / max(1, count), (1 - SINGLE) / max(1, len(a) - count))
    missed = failing.shape[1] - _together(failing)[a, b]
    despite = _together(working)[a, b]
    log = np.log(prior) + missed * np.log(ANOTHER) + despite * np.log(DESPITE)
    weight = np.exp(log - log.max())
    keep = weight > 1e-6
    return a[keep], b[keep], weight[keep] / weight[keep].sum()


def _together(held: Held) -> Array:
    """For how many rows two conditions hold at the same time."""
    numbers = held.astype(float)
    return np.asarray(numbers @ numbers.T)


def _share(held: Held, found: tuple[NDArray[np.intp], NDArray[np.intp], Array]) -> Array:
    a, b, weight = found
    return np.asarray(weight @ (held[a] & held[b]))
