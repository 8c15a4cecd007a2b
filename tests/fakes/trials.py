"""A backend and a benchmark without processes: they obey the real protocols and keep a journal.

What they do is read from the trial's own parameters, so that a test states it as data:
``speed`` sets the latency (seconds per request), ``fault`` is ``<step>:<what>``, where the step is start, warmup,
rung0, rung1 … or stop, and what is a failure class, transient, always_transient, environment, bug, hang,
disk_full or killed_once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from raytune_autotuner.backends import Deployment, Progress
from raytune_autotuner.benchmarks import Answered, Check
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import FAILURE_CLASSES, EnvironmentFault, StorageFault, TransientError, TrialInfeasible
from raytune_autotuner.metrics import summarise
from raytune_autotuner.objectives import Context
from raytune_autotuner.records import (
    Endpoint,
    Load,
    LoadMetrics,
    Metrics,
    Parameters,
    RequestSamples,
    Rung,
    TrialId,
    config_hash,
)
from raytune_autotuner.setup import Setup
from raytune_autotuner.trial import Job, Trial


def sample_metrics(
    rung: int, e2e_s: float, *, level: int = 4, requests: int = 20, noise: float = 0.0, seed: int = 0, tokens: int = 100
) -> Metrics:
    """One load in which every request takes about ``e2e_s``."""
    rng = np.random.default_rng(seed)
    e2e = tuple(float(e2e_s * (1 + noise * z)) for z in rng.standard_normal(requests))
    samples = RequestSamples(
        ttft_s=tuple(0.1 * e for e in e2e),
        tpot_s=tuple(0.9 * e / (tokens - 1) for e in e2e),
        e2e_s=e2e,
        input_tokens=(100.0,) * requests,
        output_tokens=(float(tokens),) * requests,
    )
    load = LoadMetrics(
        load=Load("D(100,100)", level),
        concurrency=level,
        completed=requests,
        errors=0,
        duration_s=sum(e2e) / level,
        values=summarise(samples, level, 0.0),
        samples=samples,
    )
    return Metrics(rung, (load,), traffic_s=0.0, client_overhead_s=0.0)


@dataclass
class Faults:
    """Raises at one step what the parameters ask for; a transient fault only the first time."""

    spec: str
    raised: int = 0

    def at(self, step: str) -> None:
        where, _, what = self.spec.partition(":")
        if where != step:
            return
        self.raised += 1
        if what in FAILURE_CLASSES:
            raise TrialInfeasible(what, f"{what} at {step}", log_tail="the log", hint="the hint")  # type: ignore[arg-type]
        if what == "environment":
            raise EnvironmentFault(f"environment at {step}")
        if what == "disk_full":
            raise StorageFault("No space left on device")
        if what == "bug":
            raise ZeroDivisionError(f"bug at {step}")
        if what == "always_transient" or self.raised == 1:
            raise TransientError(f"transient at {step}")


@dataclass
class FakeBackend:
    faults: Faults
    journal: list[str] = field(default_factory=list)
    running: bool = False
    leftover: bool = False
    patience_s: float = 0.0
    """What it was given to end its engine."""
    deadlines: list[Deadline] = field(default_factory=list)
    """Of its starts."""

    def start(self, deployment: Deployment, deadline: Deadline, progress: Progress) -> Endpoint:
        self.journal.append("start")
        self.deadlines.append(deadline)
        progress("load", "the model")
        self.running = True
        self.faults.at("start")
        return Endpoint(
            "http://127.0.0.1:1",
            deployment.served_name,
            info={"speed": 1},
            argv=deployment.argv,
            leftover=self.leftover,
        )

    def check(self) -> None:
        self.journal.append("check")

    def stop(self, deadline: Deadline) -> bool:
        found = self.leftover and "stop" not in self.journal
        self.journal.append("stop")
        self.patience_s = deadline.seconds
        self.running = False
        self.faults.at("stop")
        return found


@dataclass
class FakeBenchmark:
    faults: Faults
    e2e_s: float
    journal: list[str] = field(default_factory=list)
    open: bool = False

    def prepare(self) -> None:
        self.open = True

    def run(self, endpoint: Endpoint, rung: Rung, folder: Path, deadline: Deadline, check: Check) -> Metrics:
        folder.mkdir(parents=True)
        check()
        if self.faults.spec == f"rung{rung.index}:hang":
            while not deadline.expired:
                time.sleep(0.02)
                check()
        if self.faults.spec == f"rung{rung.index}:killed_once" and not list(folder.parent.glob("*-attempt-2")):
            os.kill(os.getpid(), signal.SIGKILL)
        self.faults.at("warmup" if rung.index < 0 else f"rung{rung.index}")
        self.journal.append(f"rung {rung.index}")
        metrics = sample_metrics(rung.index, self.e2e_s, level=rung.loads[0].level)
        (load,) = metrics.loads
        ended_s = tuple(self.e2e_s * (1 + n // load.concurrency) for n in range(load.completed))
        cut = check(Answered(load.samples, ended_s))
        return replace(metrics, loads=(replace(load, cut=cut or ""),))

    def close(self) -> None:
        self.open = False


@dataclass(frozen=True)
class FakeSetup(Setup):
    """Real experiments over fake trials; ``baseline_speed`` is what the runtime's own flags give."""

    baseline_speed: float = 2.0
    trial_timeout_s: float = 60.0

    @contextmanager
    def shared_client(self, scratch: Path) -> Iterator[Path | None]:
        yield None

    def trial(
        self,
        trial: TrialId,
        number: int,
        parameters: Parameters,
        queued_s: float = 0.0,
        node: str | None = None,
    ) -> Trial:
        job = Job(
            deployment=self._deployment(trial, parameters),
            number=number,
            rungs=self.rungs[-1:] if trial.purpose == "confirm" else self.rungs,
            warmup_requests=1,
            context=Context(0, self.task.optimization),
            timeout_s=self.trial_timeout_s,
            queued_s=queued_s,
            limited=self.task.optimization.budget is not None,
        )
        faults = Faults(str(parameters.get("fault", "")))
        speed = float(parameters.get("speed") or self.baseline_speed)
        if faults.spec == "again:slow" and trial.purpose == "confirm":
            speed *= 5
        return Trial(job, FakeBackend(faults), FakeBenchmark(faults, speed), self.folder)


def trial_id(parameters: Parameters) -> TrialId:
    return TrialId("single", config_hash(parameters))
