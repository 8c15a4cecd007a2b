"""What plots are drawn from: an experiment's results, and where its trials stand that still run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from raytune_autotuner.ledger import held_s, own_s
from raytune_autotuner.objectives import over_loads, subject
from raytune_autotuner.records import Metrics, Score, TrialRecord, TrialState
from raytune_autotuner.results import Results

PER_GPU = frozenset({"maximize_throughput_per_gpu", "minimize_cost", "maximize_goodput", "maximize_goodput_tokens"})
"""Objectives for which twice the throughput on twice the GPUs is no gain."""
THROUGHPUTS = ("output_tokens_per_s", "input_tokens_per_s", "requests_per_s")
LATENCIES = ("ttft_p99_s", "e2e_p99_s")


@dataclass(frozen=True)
class View:
    results: Results
    states: tuple[TrialState, ...] = ()
    """Of all trials, or of those that run."""
    now: datetime | None = None
    """For what still runs; by default the last change that was written."""

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        return self.results.records

    @property
    def searched(self) -> tuple[TrialRecord, ...]:
        """The baseline and the search: what competes."""
        return tuple(r for r in self.records if r.trial.purpose in ("baseline", "search"))

    @property
    def running(self) -> tuple[TrialState, ...]:
        ended = {record.trial.name for record in self.records}
        return tuple(s for s in self.states if s.outcome is None and s.trial.name not in ended)

    @property
    def unit(self) -> str:
        return "GPU-hours" if any(r.gpus for r in self.records) else "machine-hours"

    @property
    def objective(self) -> str:
        """What the score is, and its unit, for an axis."""
        score = next((r.rungs[-1].score for r in self.records if r.rungs), None)
        name = subject(self.results.task.optimization)
        return f"{name} ({score.unit})" if score and score.unit else name

    @property
    def per_gpu(self) -> bool:
        """Whether throughputs are shown for each GPU, because that is what an objective is about."""
        optimization = self.results.task.optimization
        return not PER_GPU.isdisjoint(optimization.objectives or (optimization.objective,))

    def held_up(self, record: TrialRecord) -> bool:
        """Whether the trial's configuration did not fail or break the SLO when it was measured again."""
        return record.trial.config not in self.results.ranking.refuted

    def ended_at(self) -> dict[str, datetime]:
        """When each trial ended, by its name: as it was written, else as its phases add up."""
        written = {s.trial.name: when(s.updated_at) for s in self.states if s.outcome is not None}
        return {r.trial.name: written.get(r.trial.name) or _adds_up(r) for r in self.records}

    def contenders(self) -> tuple[tuple[str, TrialRecord], ...]:
        """The trials that are worth a look from near, by what they are."""
        results = self.results
        found = [("baseline", results.baseline), ("winner", results.winner), ("closest to the SLO", results.closest)]
        kept: dict[str, tuple[str, TrialRecord]] = {}
        for name, record in found:
            if record is not None and record.rungs and record.trial.name not in kept:
                kept[record.trial.name] = (f"{name} (#{record.number})", record)
        return tuple(kept.values())


def when(moment: str) -> datetime:
    """A moment of a record; where no zone is given it is UTC."""
    found = datetime.fromisoformat(moment)
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def spent_h(record: TrialRecord) -> float:
    """GPU-hours, or hours of the machine where there are no GPUs."""
    return held_s(record) / 3600


def last_score(record: TrialRecord) -> Score | None:
    """Of a trial that was measured to the end."""
    return record.score if record.outcome == "completed" else None


def throughput_metric(records: Sequence[TrialRecord]) -> str | None:
    """The throughput that these trials have: tokens out, else tokens in, else requests."""
    return next((name for name in THROUGHPUTS if any(_positive(m, name) for m in _measured(records))), None)


def latency_metric(view: View, records: Sequence[TrialRecord]) -> str | None:
    """The latency that matters: of the SLO, else the first token's, else the whole request's."""
    limited = [name for name in view.results.task.optimization.slo if name.startswith(("ttft", "tpot", "e2e"))]
    return next((name for name in (*limited, *LATENCIES) if any(has(m, name) for m in _measured(records))), None)


def has(metrics: Metrics, name: str) -> bool:
    return bool(metrics.loads) and all(name in load.values for load in metrics.loads)


def throughput(view: View, record: TrialRecord, name: str) -> float | None:
    """Over all loads of the last rung; per GPU where that is what the objective is about."""
    metrics = record.rungs[-1].metrics
    if not has(metrics, name):
        return None
    each = max(1, record.gpus) if view.per_gpu else 1
    return over_loads(metrics, name) / each


def worst(record: TrialRecord, name: str) -> float | None:
    """The largest over the loads of the last rung, as an SLO sees it."""
    metrics = record.rungs[-1].metrics
    return max(load.values[name] for load in metrics.loads) if has(metrics, name) else None


def _measured(records: Sequence[TrialRecord]) -> Iterator[Metrics]:
    return (record.rungs[-1].metrics for record in records if record.rungs)


def _positive(metrics: Metrics, name: str) -> bool:
    return has(metrics, name) and any(load.values[name] > 0 for load in metrics.loads)


def _adds_up(record: TrialRecord) -> datetime:
    return when(record.started_at) + timedelta(seconds=own_s(record))
