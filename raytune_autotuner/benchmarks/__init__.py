"""What sends the load. A benchmark measures one rung against an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.records import Endpoint, Metrics, Rung


class Benchmark(Protocol):
    """A load generator for one workload. An object serves one trial and is used from one thread."""

    def prepare(self) -> None:
        """Start what can be started before there is an endpoint; returns at once, never raises for slowness."""

    def run(
        self, endpoint: Endpoint, rung: Rung, folder: Path, deadline: Deadline, check: Callable[[], None]
    ) -> Metrics:
        """Measure one rung; raw output goes into ``folder`` (created; must not exist), free of secrets.

        ``check`` is called about once a second while the load runs; what it raises ends the rung.

        Raises:
            TrialInfeasible: ``request_errors`` (too many failed requests) or ``timeout`` (deadline passed).
            TransientError: the load generator itself failed.
        """

    def close(self) -> None:
        """End every process and connection of this object. Idempotent."""
