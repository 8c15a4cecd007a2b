"""One trial: deploy, wait until ready, benchmark in rungs of rising cost, tear down. Knows no Ray.

``Trial.step`` runs one rung (the first one deploys), so a scheduler can decide between rungs; ``run`` does all
of them in a row. Whatever happens, the engine is stopped and an outcome is written.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from raytune_autotuner.backends import Backend, Deployment
from raytune_autotuner.benchmarks import Answered, Benchmark, Check
from raytune_autotuner.canary import Exam, Sitting
from raytune_autotuner.clock import Clock
from raytune_autotuner.cutoff import SHORT_SLACK
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.caches import reset
from raytune_autotuner.engines.engine_metrics import EngineMetrics
from raytune_autotuner.engines.server_info import differences
from raytune_autotuner.errors import EnvironmentFault, StorageFault, Superseded, TransientError, TrialInfeasible
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.measuring import Bench, in_words, measure
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import (
    Endpoint,
    Failure,
    Load,
    Metrics,
    Outcome,
    Parameters,
    Rung,
    RungRecord,
    Score,
    TrialId,
    TrialRecord,
    TrialState,
)

ATTEMPTS = 2
"""How often a deployment is tried when the infrastructure fails."""
TEARDOWN_S = 3600.0
"""Of any backend; each has a sooner limit of its own."""
KEEP_S = 15.0
"""So often the logs of a running trial are brought to a storage elsewhere."""
WARMUP_RUNG = -1
RESET_S = 20.0
"""How long an engine may take to empty its caches, once its last request has ended."""
QUEUE = "queue_length"
"""The engine files' name for how many requests wait."""


@dataclass(frozen=True)
class Job:
    """What one trial is to do."""

    deployment: Deployment
    number: int
    rungs: tuple[Rung, ...]
    warmup_requests: int
    context: Context
    timeout_s: float
    queued_s: float = 0.0
    notes: tuple[str, ...] = ()
    node: str | None = None
    """Where the trial was given its GPUs, when that is one node."""
    api_key: str | None = field(default=None, repr=False)
    exam: Exam | None = None
    """Of the quality of its answers; ``None`` when nothing that it sets may change them."""
    limited: bool = False
    """Whether the experiment has a budget, so that the trial may be asked to end."""

    @property
    def trial(self) -> TrialId:
        return self.deployment.trial

    @property
    def parameters(self) -> Parameters:
        return self.deployment.parameters

    @property
    def cuts(self) -> bool:
        """Whether its hopeless loads are ended early; what others are compared with never is."""
        return self.trial.purpose == "search" and self.context.optimization.cut_hopeless


class Stopped(Exception):
    """The experiment was asked to end while this trial ran."""


class Halted(Exception):
    """This trial was asked to end while it ran, because nothing is left of the budget."""


class Trial:
    """A running trial. Used from one thread; ``finish`` may be called at any time and more than once.

    Where an earlier worker was cut short in it, the trial goes on: with the rungs that were measured, and with what
    was spent on it.
    """

    def __init__(self, job: Job, backend: Backend, benchmark: Benchmark, folder: ExperimentFolder) -> None:
        self.job = job
        before = folder.state(job.trial.name)
        before = before if before and before.outcome is None else None
        self.rungs = _kept(folder.rungs(job.trial.name), job.rungs) if before else []
        self.record: TrialRecord | None = None
        self._backend = backend
        self._benchmark = benchmark
        self._folder = folder
        self._deadline = Deadline.after(job.timeout_s)
        self._clock = Clock(_with(before.phases if before else {}, "queue", job.queued_s))
        self._started_at = before.started_at if before else utc_now()
        self._unattended_s = before.unattended_s + seconds_since(before.updated_at) if before else 0.0
        self._endpoint: Endpoint | None = None
        self._argv = job.deployment.argv
        self._info: Mapping[str, Any] = {}
        self._differences: tuple[str, ...] = ()
        self._announced = ("queue", "", -1)
        self._redeployed: list[str] = []
        self._sitting = Sitting(job.exam, job.trial, folder)
        if before and (endpoint := folder.endpoint(job.trial.name)):
            self._take_in(endpoint)

    def step(self) -> TrialRecord | None:
        """Run the next rung; the record when the trial has ended with it, else ``None``."""
        try:
            self._check_stop()
            if self._cut is None and len(self.rungs) < len(self.job.rungs):
                self._retrying(self.job.rungs[len(self.rungs)])
                self._sitting.compare()  # the baseline may have answered meanwhile
        except TrialInfeasible as error:
            return self.finish("infeasible", Failure(error.kind, error.reason, error.log_tail, error.hint))
        except Stopped:
            return self.finish("stopped", Failure("interrupted", "the experiment was stopped"))
        except Halted as halted:
            return self.finish("stopped", Failure("budget", str(halted)))
        except Superseded:
            raise  # the engine is another one's now
        except StorageFault:
            self._teardown()
            raise
        except (TransientError, EnvironmentFault) as error:
            return self.finish("failed", Failure("infrastructure", str(error)))
        except Exception as error:  # noqa: BLE001 - the trial boundary: one trial's accident must not end the experiment
            return self.finish("failed", Failure("infrastructure", repr(error), traceback.format_exc()))
        if self._cut is not None:
            return self.finish("stopped", self._cut)
        if len(self.rungs) == len(self.job.rungs):
            return self.finish("completed")
        return None

    @property
    def _cut(self) -> Failure | None:
        return self.rungs[-1].cut if self.rungs else None

    def finish(self, outcome: Outcome, failure: Failure | None = None) -> TrialRecord:
        """End the engine, wait for it, and write how the trial ended. The first call decides.

        Raises:
            StorageFault: its end cannot be written.
            Superseded: another session has the trial; nothing is ended.
        """
        if self.record is not None:
            return self.record
        with suppress(StorageFault):  # first of all the engine has to go
            self._announce("teardown", "")
        try:
            self._teardown()
        except TransientError as error:
            left = f"teardown: {error}"
            failure = (
                replace(failure, reason=f"{failure.reason}; {left}") if failure else Failure("infrastructure", left)
            )
        self._clock.enter("idle")
        self.record = self._record(outcome, failure)
        self._folder.save_record(self.record)
        self._announce("ended", "", outcome)
        return self.record

    def _retrying(self, rung: Rung) -> None:
        """Deploy if need be and measure, afresh after an infrastructure fault."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._endpoint is None:
                    self._endpoint = self._deploy()
                self.rungs.append(self._measure(self._endpoint, rung))
                return
            except TransientError as fault:
                if attempt == ATTEMPTS:
                    raise
                self._redeployed.append(f"deployed again after: {fault}")
                self._announce("teardown", "the infrastructure failed; trying again")
                self._stop_engine()
                self._deadline = Deadline.after(self.job.timeout_s)  # what is lost is not the configuration's fault

    def _deploy(self) -> Endpoint:
        self._announce("deploy", "")
        self._benchmark.prepare()
        endpoint = self._backend.start(self.job.deployment, self._deadline, self._progress)
        self._settle_unattended(endpoint.leftover)
        self._folder.save_endpoint(self.job.trial, endpoint)
        self._take_in(endpoint)
        self._warm_up(endpoint)
        if self._sitting.is_due:
            self._announce("warmup", "the quality canary")
            self._sitting.ask(endpoint, self._deadline, self._check)
        self._sitting.compare()
        return endpoint

    def _progress(self, phase: str, detail: str) -> None:
        """Called by the backend when the deployment gets on."""
        self._announce(phase, detail)
        self._check_stop()

    def _take_in(self, endpoint: Endpoint) -> None:
        self._info, self._argv = endpoint.info, endpoint.argv or self._argv
        self._differences = differences(self.job.deployment.engine, self.job.parameters, endpoint.info)

    def _warm_up(self, endpoint: Endpoint) -> None:
        if not self.job.warmup_requests:
            return
        self._announce("warmup", "")
        last = self.job.rungs[-1]
        level = max(1, min(last.loads[0].level, self.job.warmup_requests // 2))
        load = Load(last.loads[0].scenario, level)
        rung = Rung(WARMUP_RUNG, (load,), self.job.warmup_requests, last.max_minutes)
        self._benchmarked("warmup", endpoint, rung, f"warmup-{time.monotonic_ns()}")

    def _measure(self, endpoint: Endpoint, rung: Rung) -> RungRecord:
        def run(one: Rung, name: str, watch: Check) -> Metrics:
            self._announce("benchmark", name)
            scrape.begin(one.loads[0])
            folder = self._unused("-".join(filter(None, (f"rung-{rung.index}", name))))
            return self._benchmarked("benchmark", endpoint, one, folder, watch)

        begun = time.monotonic()
        with EngineMetrics(endpoint, self.job.deployment.engine) as scrape:
            queue = partial(scrape.gauge, QUEUE)
            reset = partial(self._reset, endpoint)
            slack = 1.0 if rung == self.job.rungs[-1] else SHORT_SLACK
            bench = Bench(self.job.context, self._deadline, run, reset, self.job.cuts, queue, slack)
            found = measure(rung, bench)
        record = RungRecord(
            rung=rung.index,
            metrics=found.metrics,
            score=replace(score(found.metrics, self.job.context), at=in_words(found.knees)),
            wall_s=time.monotonic() - begun,
            engine=scrape.stats(),
            knees=found.knees,
            notes=found.notes,
            cut=found.cut,
        )
        self._folder.save_rung(self.job.trial, record)  # first: a full disk must not cost what was measured
        if (series := scrape.series()) is not None:
            self._folder.save_engine_series(self.job.trial, rung.index, series)
        return record

    def _reset(self, endpoint: Endpoint) -> str | None:
        """Empty the engine's caches, where it can be told to."""
        way = self.job.deployment.engine.cache_reset
        return reset(endpoint.url, way, self.job.api_key, self._deadline.sooner(RESET_S)) if way else None

    def _benchmarked(
        self, phase: str, endpoint: Endpoint, rung: Rung, name: str, watch: Check = lambda answered=None: None
    ) -> Metrics:
        """One run of the client; what was not traffic is booked as ``client``."""

        def check(answered: Answered | None = None) -> str | None:
            self._check()
            return watch(answered)

        begun = time.monotonic()
        with self._workdir(name) as folder:
            metrics = self._benchmark.run(endpoint, rung, folder, self._deadline, check)
        wall_s = time.monotonic() - begun
        self._clock.enter("idle")
        self._clock.move(phase, "client", wall_s - metrics.traffic_s)
        return metrics

    def _check(self) -> None:
        """Called about once a second during a benchmark."""
        self._folder.check_session()
        self._check_stop()
        self._backend.check()
        self._bring(every_s=KEEP_S)

    def _check_stop(self) -> None:
        if self._folder.stop_requested():
            raise Stopped
        if self.job.limited and (reason := self._folder.halts().get(self.job.trial.name)):
            raise Halted(reason)

    def _teardown(self) -> None:
        try:
            self._stop_engine()
        finally:
            try:
                self._benchmark.close()
            finally:
                self._bring(last=True)

    def _stop_engine(self) -> None:
        self._endpoint = None
        self._settle_unattended(self._backend.stop(Deadline.after(TEARDOWN_S)))

    def _settle_unattended(self, left: bool) -> None:
        """Now it is known whether what an earlier worker left held its GPUs while nobody used it."""
        if left:
            self._clock.add("idle", self._unattended_s)
        self._unattended_s = 0.0

    def _unused(self, name: str) -> str:
        """A folder of this name, or the next one when an attempt before this has left something there."""
        attempts = chain([name], (f"{name}-attempt-{n}" for n in count(2)))
        return next(each for each in attempts if not self._is_there(each))

    def _is_there(self, name: str) -> bool:
        here = (self.job.deployment.folder / name).exists()
        return here or self._folder.root.exists(f"trials/{self.job.trial.name}/{name}")

    @contextmanager
    def _workdir(self, name: str) -> Iterator[Path]:
        yield self.job.deployment.folder / name
        self._bring()

    def _bring(self, *, last: bool = False, every_s: float = 0.0) -> None:
        """Raw output to the storage, where that is elsewhere."""
        folder = self.job.deployment.folder
        self._folder.root.keep(folder, f"trials/{self.job.trial.name}", last=last, every_s=every_s)

    def _announce(self, phase: str, detail: str, outcome: Outcome | None = None) -> None:
        """Enter a phase and let the world know, once per change."""
        self._folder.check_session()
        self._clock.enter(phase)
        if (phase, detail, len(self.rungs)) == self._announced:
            return
        self._announced = (phase, detail, len(self.rungs))
        self._folder.save_state(
            TrialState(
                trial=self.job.trial,
                number=self.job.number,
                parameters=self.job.parameters,
                phase=phase,
                detail=detail,
                rung=len(self.rungs),
                total_rungs=len(self.job.rungs),
                started_at=self._started_at,
                updated_at=utc_now(),
                outcome=outcome,
                score=self.rungs[-1].score if self.rungs else None,
                phases=self._clock.rounded(),
                node=self.job.node,
                gpus=self.job.deployment.gpus,
                unattended_s=round(self._unattended_s, 3),
            )
        )

    def _record(self, outcome: Outcome, failure: Failure | None) -> TrialRecord:
        return TrialRecord(
            trial=self.job.trial,
            experiment=self._folder.name,
            number=self.job.number,
            parameters=self.job.parameters,
            outcome=outcome,
            started_at=self._started_at,
            rungs=tuple(self.rungs),
            total_rungs=len(self.job.rungs),
            score=self._final_score(),
            failure=failure,
            argv=self._argv,
            command=self.job.deployment.argv,
            gpus=self.job.deployment.gpus,
            phases=self._clock.rounded(),
            engine_info=self._info,
            differences=self._differences,
            notes=tuple(self._notes()),
            node=self.job.node,
        )

    def _notes(self) -> Iterator[str]:
        yield from self.job.notes
        yield from self._redeployed
        yield from dict.fromkeys(note for rung in self.rungs for note in rung.notes)
        if self.rungs and (note := self._sitting.note):
            yield note

    def _final_score(self) -> Score | None:
        return self.rungs[-1].score if len(self.rungs) == len(self.job.rungs) and self._cut is None else None


def run(trial: Trial) -> TrialRecord:
    """Every rung of a trial in a row; the engine is stopped also when this is interrupted."""
    try:
        while (record := trial.step()) is None:
            pass
        return record
    finally:
        trial.finish("stopped", Failure("interrupted", "interrupted"))


def _kept(measured: tuple[RungRecord, ...], rungs: tuple[Rung, ...]) -> list[RungRecord]:
    """The rungs from the first on that need not be measured again."""
    by_index = {record.rung: record for record in measured}
    done = [by_index.get(rung.index) for rung in rungs]
    return [record for record in done[: (*done, None).index(None)] if record]


def _with(phases: Mapping[str, float], phase: str, seconds: float) -> dict[str, float]:
    return {**phases, phase: phases.get(phase, 0.0) + seconds}


def utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def seconds_since(moment: str) -> float:
    """How long ago a time was that ``utc_now`` gave."""
    return max(0.0, (datetime.now(timezone.utc) - datetime.fromisoformat(moment)).total_seconds())
