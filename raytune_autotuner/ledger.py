"""What the tuning itself cost, and what was not spent: from the records of an experiment alone. Pure.

Everything is in GPU-seconds: the seconds of a phase times the GPUs that the trial held in it (in machine-seconds, times
one, where there are no GPUs). A saving is never more than what would surely have been spent: where nothing was measured
that it could be taken from, nothing is claimed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from raytune_autotuner.errors import FailureClass
from raytune_autotuner.records import TrialRecord, TrialState

WAITING = frozenset({"queue", "schedule"})
"""Phases in which a trial holds no GPU yet: for a reservation, and for a node of the cluster."""
NEVER_PLACED: frozenset[FailureClass] = frozenset({"no_fit", "constraint"})
"""What is refused for this would not have got a GPU in any case, so that nothing was saved by it."""
DOES_NOT_START: frozenset[FailureClass] = frozenset(
    {"out_of_memory", "bad_flag", "unsupported", "crash", "not_applied", "not_ready"}
)


@dataclass(frozen=True)
class Savings:
    """GPU-seconds that were not spent; each is estimated by what the experiment itself has measured."""

    early_stop: float = 0.0
    """The rungs that early-stopped trials did not run, each by the median wall time of those that ran it."""
    duplicates: float = 0.0
    """What configurations cost that the strategy proposed again after they were measured; each counts once, however
    often it came up."""
    refused: float = 0.0
    """Trials refused before they ran, by the median of those of their class of failure that did run (of all failures,
    when none of the class did). What could never have been placed saves nothing."""
    fast_failure: float = 0.0
    """Deployments that failed before they were ready, and were ended then and not when their time was over."""
    reused: float = 0.0
    """What the measurements cost that were taken over from earlier experiments."""

    @property
    def total(self) -> float:
        return self.early_stop + self.duplicates + self.refused + self.fast_failure + self.reused


@dataclass(frozen=True)
class Ledger:
    """What the tuning itself cost. Seconds are weighted by the GPUs held (by 1 where there are none)."""

    unit: str
    by_phase: dict[str, float]
    total: float
    wasted: float
    """Spent on configurations that cannot work and on faults of the infrastructure."""
    saved_by_early_stop: float
    """``saved.early_stop``, for readers of before."""
    saved: Savings = Savings()
    by_purpose: dict[str, float] = field(default_factory=dict)
    """Baseline, search, confirming runs and so on."""
    waited: dict[str, float] = field(default_factory=dict)
    """For a reservation or a node, in trial-seconds: nothing is charged for it."""
    cost: float | None = None
    """``total`` in money, where a GPU has a price."""


@dataclass(frozen=True)
class Terms:
    """What a ledger needs to know besides the records."""

    patience_s: float | None = None
    """How long a deployment that never gets ready would have been waited for."""
    price_per_gpu_hour: float | None = None
    repeated: frozenset[str] = frozenset()
    """Hashes of configurations that were proposed again after they were measured."""


def ledger(records: Sequence[TrialRecord], terms: Terms = Terms()) -> Ledger:
    by_phase, waited = Counter[str](), Counter[str]()
    by_purpose: dict[str, float] = {}
    for record in records:
        by_phase.update(charged(record))
        purpose = record.trial.purpose
        by_purpose[purpose] = by_purpose.get(purpose, 0.0) + held_s(record)
        waited.update({phase: s for phase, s in record.phases.items() if phase in WAITING})
    total = sum(by_phase.values())
    saved = savings(records, terms)
    has_gpus = any(record.gpus for record in records)
    price = terms.price_per_gpu_hour if has_gpus else None
    return Ledger(
        unit="GPU-seconds" if has_gpus else "machine-seconds",
        by_phase=_rounded(by_phase),
        total=round(total, 1),
        wasted=round(sum(held_s(r) for r in records if r.outcome in ("infeasible", "failed")), 1),
        saved_by_early_stop=saved.early_stop,
        saved=saved,
        by_purpose=_rounded(by_purpose),
        waited=_rounded(waited),
        cost=None if price is None else round(total * price / 3600, 2),
    )


def charged(trial: TrialRecord | TrialState) -> dict[str, float]:
    """GPU-seconds of a trial by phase (machine-seconds where it had no GPU)."""
    weight = max(1, trial.gpus)
    return {phase: s * weight for phase, s in trial.phases.items() if phase not in WAITING and s > 0}


def held_s(trial: TrialRecord | TrialState) -> float:
    """GPU-seconds of a trial in all."""
    return sum(charged(trial).values())


def own_s(trial: TrialRecord | TrialState) -> float:
    """Seconds that a trial held its GPUs, however many."""
    return sum(s for phase, s in trial.phases.items() if phase not in WAITING and s > 0)


def was_stopped_early(record: TrialRecord) -> bool:
    """Stopped for what it measured (others were better, or see ``CUT``), not by somebody or the budget."""
    return record.outcome == "stopped" and (record.failure is None or record.failure.kind in CUT)


CUT = ("slo_lost", "saturated")
"""Kinds of failure of a trial that was ended within a rung because it could not become good any more."""


def was_refused(record: TrialRecord) -> bool:
    """Whether a trial was found impossible before it held anything."""
    return record.outcome == "infeasible" and record.reused_from is None and not record.rungs and not own_s(record)


def savings(records: Sequence[TrialRecord], terms: Terms) -> Savings:
    return Savings(
        early_stop=round(_by_early_stop(records), 1),
        duplicates=round(_by_duplicates(records, terms.repeated), 1),
        refused=round(_by_refusals(records), 1),
        fast_failure=round(_by_fast_failure(records, terms.patience_s), 1),
        reused=round(sum(r.reused_from.held_s for r in records if r.reused_from), 1),
    )


def _by_early_stop(records: Sequence[TrialRecord]) -> float:
    walls: dict[int, list[float]] = {}
    for record in records:
        for rung in record.rungs:
            walls.setdefault(rung.rung, []).append(rung.wall_s)
    return sum(
        median(walls[rung]) * max(1, record.gpus)
        for record in records
        if was_stopped_early(record) and record.reused_from is None
        for rung in range(len(record.rungs), record.total_rungs)
        if rung in walls
    )


def _by_duplicates(records: Sequence[TrialRecord], repeated: frozenset[str]) -> float:
    return sum(held_s(r) for r in records if r.trial.purpose == "search" and r.trial.config in repeated)


def _by_refusals(records: Sequence[TrialRecord]) -> float:
    ran = [r for r in records if r.outcome == "infeasible" and r.failure and own_s(r)]
    costs: dict[FailureClass, list[float]] = {}
    for record in ran:
        assert record.failure is not None
        costs.setdefault(record.failure.kind, []).append(held_s(record))
    usual = median(map(held_s, ran)) if ran else 0.0
    refused = (r.failure.kind for r in records if was_refused(r) and r.failure)
    return sum(median(costs[kind]) if kind in costs else usual for kind in refused if kind not in NEVER_PLACED)


def _by_fast_failure(records: Sequence[TrialRecord], patience_s: float | None) -> float:
    if patience_s is None:
        return 0.0
    return sum(
        max(0.0, patience_s - own_s(r)) * max(1, r.gpus)
        for r in records
        if r.outcome == "infeasible" and r.failure and r.failure.kind in DOES_NOT_START
        if own_s(r) and not r.rungs and not r.phases.get("warmup") and not r.phases.get("benchmark")
    )


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(s, 1) for name, s in sorted(seconds.items()) if s}


def spent_s(records: Iterable[TrialRecord]) -> float:
    """GPU-seconds of all trials that have ended."""
    return sum(map(held_s, records))
