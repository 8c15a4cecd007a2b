"""Where an experiment's engines run, and what it has to set up there and take down again.

A site is a value that travels to the workers and makes a backend there (and a benchmark, where the place has one of
its own). ``Local`` needs nothing; ``ome_site.Ome`` is a namespace of a Kubernetes cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from raytune_autotuner.backends import Backend
from raytune_autotuner.backends.local import LocalBackend
from raytune_autotuner.benchmarks import Benchmark
from raytune_autotuner.records import TrialId


class Site(Protocol):
    """The seam between an experiment and where its engines run."""

    def backend(self, gpus: int) -> Backend:
        """A backend for one trial whose engine takes that many GPUs in each replica."""

    def notes(self) -> tuple[str, ...]:
        """What of the task is without effect on how it is measured here."""

    def gpus(self, engine_gpus: int) -> int:
        """What a trial takes in all."""

    def reserved(self, gpus: int) -> dict[str, float]:
        """What a trial with that many GPUs in all reserves in Ray."""

    def declared(self) -> dict[str, float]:
        """Custom resources that a Ray of our own offers."""

    def benchmark(self, trial: TrialId) -> Benchmark | None:
        """The site's own way to measure; ``None`` for genai-bench beside the trial."""

    def held(self, experiment: str, holder: str) -> AbstractContextManager[Site]:
        """The site as the experiment's own, cleaned up afterwards; ``holder`` says for people who has it."""


@dataclass(frozen=True)
class Local:
    """This machine. A trial without GPUs gets it to itself, so that trials do not disturb each other."""

    cpus: float | None = None

    def backend(self, gpus: int) -> Backend:
        return LocalBackend()

    def notes(self) -> tuple[str, ...]:
        return ()

    def gpus(self, engine_gpus: int) -> int:
        return engine_gpus

    def reserved(self, gpus: int) -> dict[str, float]:
        cpus = self.cpus or (1.0 if gpus else float(os.cpu_count() or 1))
        return {"CPU": cpus, "GPU": float(gpus)}

    def declared(self) -> dict[str, float]:
        return {}

    def benchmark(self, trial: TrialId) -> Benchmark | None:
        return None

    @contextmanager
    def held(self, experiment: str, holder: str) -> Iterator[Local]:
        yield self
