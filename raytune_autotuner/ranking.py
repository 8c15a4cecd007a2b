"""Which trial is best, once it is taken out what time and nodes did to what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from raytune_autotuner.confirmation import refuted
from raytune_autotuner.objectives import Context
from raytune_autotuner.records import TrialRecord, eligible
from raytune_autotuner.task.spec import FEWEST_BASELINES, Task
from raytune_autotuner.verdict import Drift, Measurement, Run, drift, log_goodness, measured
from raytune_autotuner.verdict.drift import too_few

BOOTSTRAPS = 40
"""For a least noise that is roughly known; each costs about a millisecond."""


@dataclass(frozen=True)
class Ranking:
    """The trials that went to the end, best first: whoever keeps the SLO, then by what was measured."""

    order: tuple[TrialRecord, ...]
    drift: Drift
    """What the baseline's runs showed; where they differ beyond noise, ``order`` has it taken out."""
    goodness: Mapping[str, float]
    """By trial, the logarithm of its value turned so that larger is better, without drift."""
    refuted: Mapping[str, str] = field(default_factory=dict)
    """By configuration, why it did not hold up when it was measured again; the latest comes last."""

    @property
    def winner(self) -> TrialRecord | None:
        """The best that keeps the SLO, and that was not refuted as long as there is another."""
        kept = [record for record in self.order if record.score and record.score.violation == 0]
        return next(iter(eligible(kept, self.refuted)), None)

    @property
    def better(self) -> tuple[TrialRecord, ...]:
        """Those that were refuted although they had measured better than the winner, which may be one of them."""
        winner = self.winner
        kept = self.order if winner is None or winner.trial.config in self.refuted else self._before(winner)
        return tuple(record for record in kept if record.trial.config in self.refuted)

    def _before(self, winner: TrialRecord) -> tuple[TrialRecord, ...]:
        return self.order[: self.order.index(winner)]


def rank(records: Iterable[TrialRecord], task: Task) -> Ranking:
    """From the folder's records alone, so that the search and whoever reads its results see the same winner.

    Confirming runs say who is out, and nothing else here, not even of drift: who is being confirmed stays the same
    meanwhile.
    """
    records = list(records)
    found = drift_of((record for record in records if record.trial.purpose != "confirm"), task)
    own = [record for record in _whole(records) if not record.trial.again]
    goodness = {record.trial.name: _goodness(record, found) for record in own}
    first = _baseline(own)
    out = refuted(records, first.trial.config) if first else {}
    return Ranking(tuple(sorted(own, key=lambda r: _key(r, goodness))), found, goodness, out)


def drift_of(records: Iterable[TrialRecord], task: Task) -> Drift:
    """What those of the records that are of the baseline show."""
    ended = _whole(records)
    first = _baseline(ended)
    same = [record for record in ended if first and record.trial.config == first.trial.config]
    if len(same) < FEWEST_BASELINES:
        return too_few(len(same))
    return drift([_run(record, task) for record in same], task.optimization.confirm.confidence)


def _whole(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.outcome == "completed" and record.score]


def _baseline(ended: Iterable[TrialRecord]) -> TrialRecord | None:
    return next((record for record in ended if record.trial.purpose == "baseline"), None)


def _goodness(record: TrialRecord, found: Drift) -> float:
    assert record.score is not None
    return log_goodness(record.score) + found.correction(_at_s(record), record.node)


def _key(record: TrialRecord, goodness: Mapping[str, float]) -> tuple[float, float]:
    assert record.score is not None
    return (record.score.violation, -goodness[record.trial.name])


def _run(record: TrialRecord, task: Task) -> Run:
    """Of a baseline; its trial and its repeats all have the whole workload as their last rung."""
    measurement = Measurement(record.rungs[-1].metrics, Context(record.gpus, task.optimization))
    seed = task.optimization.seed + record.number
    return measured("baseline", measurement, seed, record.node, _at_s(record), BOOTSTRAPS)


def _at_s(record: TrialRecord) -> float:
    """Seconds since the epoch, in the middle of what it took."""
    return datetime.fromisoformat(record.started_at).timestamp() + record.since_start_s / 2
