"""What sends the load. A benchmark measures one rung against an endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.records import Endpoint, Metrics, RequestSamples, Rung


@dataclass(frozen=True)
class Answered:
    """The requests of a load that have ended so far."""

    samples: RequestSamples
    """Of all that were answered, the first wave as well."""
    ended_s: tuple[float, ...]
    """When each of them ended, in seconds since any one moment; they stand in this order."""
    errors: int = 0
    cpu: float | None = None
    """Cores that the client used meanwhile."""

    @property
    def span_s(self) -> float:
        """From the first request's start until the last one's end."""
        starts = [end - e2e for end, e2e in zip(self.ended_s, self.samples.e2e_s, strict=True)]
        return self.ended_s[-1] - min(starts) if starts else 0.0


class Check(Protocol):
    """Looks after a load while it runs; what it raises ends the rung.

    A reason that it returns ends the load: what was answered until then is its result, marked with the reason.
    """

    def __call__(self, answered: Answered | None = None) -> str | None:
        """``answered`` is ``None`` where a client cannot tell."""


class Benchmark(Protocol):
    """A load generator for one workload. An object serves one trial and is used from one thread."""

    def prepare(self) -> None:
        """Start what can be started before there is an endpoint; returns at once, never raises for slowness."""

    def run(self, endpoint: Endpoint, rung: Rung, folder: Path, deadline: Deadline, check: Check) -> Metrics:
        """Measure one rung; raw output goes into ``folder`` (created; must not exist), free of secrets.

        ``check`` is called about once a second while the load runs.

        Raises:
            TrialInfeasible: ``request_errors`` (too many failed requests) or ``timeout`` (deadline passed).
            TransientError: the load generator itself failed.
        """

    def close(self) -> None:
        """End every process and connection of this object. Idempotent."""
