"""What an experiment may cost at most, and whether another trial fits into what is left of it. Pure.

A hard stop works in two steps. No trial is begun that is expected to bring what has been spent, what is running and
what confirming the winner will cost over the budget: a trial of the search is expected to take as long as the longest
one so far (before any has ended: as long as the plan has it at worst), a confirming run as long as whole runs did on
the median. What runs all the same when the budget is used up is ended in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from raytune_autotuner.ledger import own_s
from raytune_autotuner.records import Purpose, TrialRecord
from raytune_autotuner.task.spec import Optimization

FIRST: frozenset[Purpose] = frozenset({"baseline", "confirm"})
"""What the search keeps money back for, and is not ended for its sake."""


ONE_RUNG: frozenset[Purpose] = frozenset({"confirm", "control"})
"""Runs of the last rung alone."""


@dataclass(frozen=True)
class Limits:
    """``None`` is no limit."""

    gpu_s: float | None
    """GPU-seconds; machine-seconds where there are no GPUs."""
    wall_s: float | None
    place: str = "gpu_hours"
    """The field that ``gpu_s`` comes from."""
    price_per_gpu_hour: float | None = None

    @classmethod
    def of(cls, optimization: Optimization) -> Limits | None:
        budget, price = optimization.budget, optimization.price_per_gpu_hour
        if budget is None:
            return None
        by_field = {"gpu_hours": budget.gpu_hours and budget.gpu_hours * 3600}
        if budget.cost is not None and price is not None:
            by_field["cost"] = budget.cost / price * 3600
        given = {name: seconds for name, seconds in by_field.items() if seconds is not None}
        place = min(given, key=lambda name: given[name], default="gpu_hours")
        return cls(given.get(place), budget.wall_time, place, price)

    def said(self, gpu_s: float, unit: str = "GPU-hours") -> str:
        """An amount in the unit in which the limit was given."""
        if self.place == "cost" and self.price_per_gpu_hour:
            return f"{gpu_s / 3600 * self.price_per_gpu_hour:,.2f} in money"
        return f"{hours(gpu_s)} {unit}"


@dataclass(frozen=True)
class Expectation:
    """Seconds for which a trial holds its GPUs."""

    search_s: float
    confirm_s: float
    teardown_s: float = 0.0
    """Of it, those that come after it was told to end."""


def expect(records: Sequence[TrialRecord], at_worst_s: float) -> Expectation:
    """What trials to come are expected to take, from those that have ended."""
    whole = [r for r in records if r.outcome == "completed" and r.reused_from is None]
    again = [own_s(r) for r in whole if r.trial.purpose in ONE_RUNG]
    others = [own_s(r) for r in whole if r.trial.purpose not in ONE_RUNG]
    teardowns = [r.phases["teardown"] for r in records if "teardown" in r.phases]
    return Expectation(
        search_s=max(others, default=at_worst_s),
        confirm_s=median(again or others or [at_worst_s]),
        teardown_s=median(teardowns) if teardowns else 0.0,
    )


@dataclass(frozen=True)
class Open:
    """A trial that waits or runs."""

    purpose: Purpose
    gpus: int
    own_s: float = 0.0
    """For so long it has held its GPUs."""

    @property
    def weight(self) -> int:
        return max(1, self.gpus)


@dataclass(frozen=True)
class Reserve:
    """Confirming runs that are to be paid for in any case: how many there still are, and the GPUs of all together."""

    runs: int = 0
    gpus: int = 0


@dataclass(frozen=True)
class Standing:
    """What has been spent, what runs, and what is kept back."""

    limits: Limits
    ended_s: float
    """GPU-seconds of the trials that have ended."""
    open: tuple[Open, ...]
    elapsed_s: float
    """For so long the experiment has run, all its sessions together."""
    expected: Expectation
    reserve: Reserve
    unit: str = "GPU-hours"

    @property
    def spent_s(self) -> float:
        return self.ended_s + sum(each.own_s * each.weight for each in self.open)

    def lacking(self, gpus: int) -> str | None:
        """Why a trial of the search with so many GPUs is not begun; ``None`` when it may be."""
        trial_s, limits = self.expected.search_s, self.limits
        if limits.gpu_s is not None:
            wanted = self._committed_s() + trial_s * max(1, gpus) + self._kept_s()
            if wanted > limits.gpu_s:
                return (
                    f"the budget of {self._said(limits.gpu_s)}: {self._said(self._committed_s())} are spent or "
                    f"running, {self._said(self._kept_s())} are kept for confirming the winner, and another trial "
                    f"may take {self._said(trial_s * max(1, gpus))}"
                )
        if limits.wall_s is not None and self.elapsed_s + trial_s + self._kept_wall_s() > limits.wall_s:
            return (
                f"the budget of {hours(limits.wall_s)} hours: {hours(self.elapsed_s)} are over, "
                f"{hours(self._kept_wall_s())} are kept for confirming the winner, and another trial may take "
                f"{hours(trial_s)}"
            )
        return None

    def payable(self, gpus: Iterable[int]) -> int:
        """How many of these confirming runs, which come one after the other, can be paid for."""
        gpu_s, wall_s, number = self._committed_s(), self.elapsed_s, 0
        for each in gpus:
            gpu_s += self.expected.confirm_s * max(1, each)
            wall_s += self.expected.confirm_s
            if _over(gpu_s, self.limits.gpu_s) or _over(wall_s, self.limits.wall_s):
                break
            number += 1
        return number

    def used_up(self, purpose: Purpose) -> str | None:
        """Why a running trial has to end now; ``None`` while it may go on."""
        kept = purpose not in FIRST
        ending_s = sum(self.expected.teardown_s * each.weight for each in self.open)
        gpu_s = self.spent_s + ending_s + (self._kept_s() if kept else 0.0)
        if _over(gpu_s, self.limits.gpu_s):
            assert self.limits.gpu_s is not None
            return f"the budget of {self._said(self.limits.gpu_s)} is used up" + (KEPT if kept else "")
        wall_s = self.elapsed_s + self.expected.teardown_s + (self._kept_wall_s() if kept else 0.0)
        if _over(wall_s, self.limits.wall_s):
            assert self.limits.wall_s is not None
            return f"the budget of {hours(self.limits.wall_s)} hours is used up" + (KEPT if kept else "")
        return None

    def _said(self, gpu_s: float) -> str:
        return self.limits.said(gpu_s, self.unit)

    def _committed_s(self) -> float:
        """What was spent, with what is running when it ends as expected."""
        return self.ended_s + sum(max(each.own_s, self._expected_s(each)) * each.weight for each in self.open)

    def _expected_s(self, trial: Open) -> float:
        return self.expected.confirm_s if trial.purpose in ONE_RUNG else self.expected.search_s

    def _kept_s(self) -> float:
        return self.reserve.gpus * self.expected.confirm_s

    def _kept_wall_s(self) -> float:
        return self.reserve.runs * self.expected.confirm_s


KEPT = ", but for what confirming the winner costs"


def _over(amount: float, limit: float | None) -> bool:
    return limit is not None and amount > limit


def hours(seconds: float) -> str:
    """Hours in figures for people: two that count, and none after the point from ten on."""
    found = seconds / 3600
    return f"{found:,.0f}" if found >= 10 else f"{found:.2g}"
