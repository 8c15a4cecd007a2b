"""A trial that has ended, as far as it tells of others: without its samples, so that all of them can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from raytune_autotuner.records import Failure, Outcome, Parameters, Phase, TrialRecord

SERVING: tuple[Phase, ...] = ("warmup", "benchmark", "client")
"""A trial that was in one of these had an engine that was ready."""


@dataclass(frozen=True)
class Case:
    """One trial that has ended."""

    trial: str
    parameters: Parameters
    outcome: Outcome
    failure: Failure | None = None
    rungs: int = 0
    """So many were measured."""
    started: bool = True
    """Whether the engine got ready."""
    number: int = 0
    """Order of proposal."""
    ended_at: str = ""
    """UTC, ISO 8601."""
    gpu_s: float = 0.0
    """What it has cost; machine-seconds where there are no GPUs."""
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the server said of its own configuration."""
    node: str | None = None
    """The node of the cluster that it ran on, where that is known and one."""

    @property
    def interrupted(self) -> bool:
        return self.failure is not None and self.failure.kind == "interrupted"

    @classmethod
    def of(cls, record: TrialRecord) -> Case:
        return cls(
            trial=record.trial.name,
            parameters=record.parameters,
            outcome=record.outcome,
            failure=record.failure,
            rungs=len(record.rungs),
            started=bool(record.rungs) or any(phase in record.phases for phase in SERVING),
            number=record.number,
            ended_at=_later(record.started_at, record.since_start_s),
            gpu_s=sum(s for phase, s in record.phases.items() if phase != "queue") * max(1, record.gpus),
            info=record.engine_info,
            node=record.node,
        )


def _later(moment: str, seconds: float) -> str:
    try:
        return (datetime.fromisoformat(moment) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    except ValueError:
        return moment
