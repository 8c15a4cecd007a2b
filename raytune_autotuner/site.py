"""Where an experiment's engines run, and what it has to set up there and take down again.

A site is a value that travels to the workers and makes a backend there (and a benchmark, where the place has one of
its own). ``Local`` needs nothing; ``ome_site.Ome`` is a namespace of a Kubernetes cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from raytune_autotuner.backends import Backend
from raytune_autotuner.backends.local import LocalBackend
from raytune_autotuner.benchmarks import Benchmark
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.packing import WHOLE, GpuNode, Need, pods
from raytune_autotuner.records import TrialId


class Site(Protocol):
    """The seam between an experiment and where its engines run."""

    def backend(self, trial: TrialId, gpus: int, node: str | None = None) -> Backend:
        """A backend for one trial whose engine takes that many GPUs in each replica, on ``node`` if that is given."""

    def notes(self) -> tuple[str, ...]:
        """What of the task is without effect on how it is measured here."""

    def gpus(self, engine_gpus: int) -> int:
        """What a trial takes in all."""

    def need(self, engine_gpus: int) -> Need:
        """What a trial reserves whose engine takes that many GPUs."""

    def gpu_nodes(self) -> Sequence[GpuNode] | None:
        """The nodes of the cluster and what they have free; ``None`` where engines run on the nodes of Ray."""

    def benchmark(self, trial: TrialId) -> Benchmark | None:
        """The site's own way to measure; ``None`` for genai-bench beside the trial."""

    def held(
        self, folder: ExperimentFolder, open: Collection[TrialId], ended: Callable[[str], None]
    ) -> AbstractContextManager[Site]:
        """The site as the experiment's own, cleaned up before (but for what ``open`` trials may go on with) and after.

        ``ended`` hears which trials, by name, had left something until the end.
        """


@dataclass(frozen=True)
class Local:
    """A node of Ray. A trial without GPUs gets it to itself, so that trials do not disturb each other."""

    cpus: float | None = None

    def backend(self, trial: TrialId, gpus: int, node: str | None = None) -> Backend:
        return LocalBackend()

    def notes(self) -> tuple[str, ...]:
        return ()

    def gpus(self, engine_gpus: int) -> int:
        return engine_gpus

    def need(self, engine_gpus: int) -> Need:
        cpus = self.cpus or (1.0 if engine_gpus else WHOLE)
        return Need(pods(engine_gpus), cpus)

    def gpu_nodes(self) -> None:
        return None

    def benchmark(self, trial: TrialId) -> Benchmark | None:
        return None

    @contextmanager
    def held(
        self, folder: ExperimentFolder, open: Collection[TrialId], ended: Callable[[str], None]
    ) -> Iterator[Local]:
        yield self
