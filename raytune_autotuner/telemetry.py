"""What monitoring sees of an experiment: metrics of Ray, from the driver, and a line in the job's log.

Ray shows each metric at the metrics port of the driver's node as ``ray_<name>``. They are kept here because those of a
trial's own actor would vanish with it. ``configs/grafana/raytune-autotuner.json`` draws them.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

from ray import tune
from ray.util import metrics as ray_metrics

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import charged
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import Parameters, TrialId, TrialRecord
from raytune_autotuner.sessions import JOB_VARIABLE
from raytune_autotuner.summary import ENDINGS, Summary, line, summarise

Hook = TypeVar("Hook", bound=Callable[..., None])
logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""So often at most the trials are looked at; Tune asks every 0.1 s."""
LINE_S = 5.0
"""So often at most a progress line is written."""
SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)
TAGS = ("experiment", "task")


@dataclass(frozen=True)
class Metric:
    """``kind`` is a gauge, which stands for now; a counter, which only grows; or a histogram of seconds."""

    kind: str
    description: str
    tags: tuple[str, ...] = ()

    def make(self, name: str) -> Any:
        tags = (*TAGS, *self.tags)
        if self.kind == "histogram":
            return ray_metrics.Histogram(name, self.description, boundaries=list(SECONDS), tag_keys=tags)
        return {"gauge": ray_metrics.Gauge, "counter": ray_metrics.Counter}[self.kind](name, self.description, tags)


METRICS: Mapping[str, Metric] = {
    "autotuner_trials_planned": Metric("gauge", "Trials at most, those that confirm the answer included"),
    "autotuner_trials_ended": Metric("gauge", "Trials that have ended", ("outcome",)),
    "autotuner_trials_running": Metric("gauge", "Trials that hold a reservation"),
    "autotuner_trials_waiting": Metric("gauge", "Trials that wait for a reservation"),
    "autotuner_gpus_wanted": Metric("gauge", "GPUs that the waiting trials want in all"),
    "autotuner_best_score": Metric("gauge", "Best score so far that keeps the SLO", ("objective", "unit")),
    "autotuner_baseline_score": Metric("gauge", "Score of what runs today", ("objective", "unit")),
    "autotuner_rungs": Metric("counter", "Rungs that were measured", ("rung",)),
    "autotuner_gpu_seconds": Metric("counter", "GPU-seconds held (machine-seconds without GPUs)", ("phase",)),
    "autotuner_queue_seconds": Metric("histogram", "Wait of a trial for its reservation"),
    "autotuner_trial_seconds": Metric("histogram", "A trial from its reservation to its end"),
}


def harmless(hook: Hook) -> Hook:
    """A hook of a callback whose faults are logged: Tune ends the whole run when one raises."""

    @wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            logger.warning("%s failed; the experiment goes on without it", hook.__qualname__, exc_info=True)

    return cast(Hook, guarded)


class Sink(Protocol):
    """Takes the records of trials that have ended, at once (see ``tracking.Desk``)."""

    def add(self, record: TrialRecord) -> None: ...


class Telemetry(tune.Callback):
    """Keeps the metrics of one experiment, and writes its progress to standard output in a submitted job."""

    def __init__(
        self,
        folder: ExperimentFolder,
        task: str,
        planned: int,
        gpus: Callable[[Parameters], int],
        sink: Sink | None = None,
        write: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._tags = {"experiment": folder.name, "task": task}
        self._planned = planned
        self._gpus = gpus
        self._sink = sink
        self._write = write or (_to_log if JOB_VARIABLE in os.environ else None)
        self._clock = clock
        self._metrics: dict[str, Any] = {}
        self._records: dict[TrialId, TrialRecord] = {}
        self._unwritten: set[TrialId] = set()
        """Trials that Tune has ended and whose record their worker has not written yet."""
        self._rungs: dict[str, int] = {}
        self._looked = self._written = float("-inf")
        self._summary = Summary(planned)
        self._line = ""

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_metrics": {},
            "_sink": None,
        }  # Tune pickles its callbacks; these belong to the process

    @harmless
    def setup(self, *args: Any, **info: Any) -> None:
        self._make()
        for record in self._folder.records():  # of an experiment that goes on
            self._keep(record)
        self._summary = summarise(self._records.values(), self._planned)
        self._tell(self._summary)

    @harmless
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        done, before = int(result.get("rungs_done") or 0), self._rungs.get(trial.trial_id, 0)
        self._rungs[trial.trial_id] = max(done, before)
        for rung in range(before, done):
            self._metrics["autotuner_rungs"].inc(1, {**self._tags, "rung": str(rung)})

    @harmless
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._unwritten.add(Proposal.from_config(trial.config).trial)

    @harmless
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._unwritten.add(Proposal.from_config(trial.config).trial)

    @harmless
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            self._look(trials)

    @harmless
    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._written = float("-inf")
        self._look([])

    def _make(self) -> None:
        if not self._metrics:
            self._metrics = {name: metric.make(name) for name, metric in METRICS.items()}

    def _look(self, trials: list[Any]) -> None:
        written = [self._record(trial) for trial in sorted(self._unwritten, key=lambda each: each.name)]
        for record in filter(None, written):
            self._ended(record)
        if any(written):
            self._summary = summarise(self._records.values(), self._planned)
        waiting = [Proposal.from_config(t.config).parameters for t in trials if t.status == "PENDING"]
        running = sum(t.status == "RUNNING" for t in trials)
        wanted = sum(self._gpus(parameters) for parameters in waiting)
        self._tell(replace(self._summary, running=running, waiting=len(waiting), waiting_gpus=wanted))

    def _keep(self, record: TrialRecord) -> None:
        if self._sink:
            self._sink.add(record)
        self._records[record.trial] = replace(record, rungs=())  # every request of it: too much for a thousand trials

    def _record(self, trial: TrialId) -> TrialRecord | None:
        try:
            return self._folder.record(trial.name)
        except EnvironmentFault:  # the storage does not answer; it is asked again
            return None

    def _ended(self, record: TrialRecord) -> None:
        self._unwritten.discard(record.trial)
        self._keep(record)
        for phase, seconds in charged(record).items():
            self._metrics["autotuner_gpu_seconds"].inc(seconds, {**self._tags, "phase": phase})
        self._metrics["autotuner_queue_seconds"].observe(record.phases.get("queue", 0.0), self._tags)
        self._metrics["autotuner_trial_seconds"].observe(record.since_start_s, self._tags)

    def _tell(self, summary: Summary) -> None:
        for name, values in gauges(summary).items():
            for tags, value in values:
                self._metrics[name].set(value, {**self._tags, **tags})
        text = line(summary)
        if self._write and text != self._line and self._clock() - self._written >= LINE_S:
            self._write(text)
            self._line, self._written = text, self._clock()


def gauges(summary: Summary) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What each gauge shows, by its tags; one without a value is not shown."""
    scores = {"autotuner_best_score": summary.best, "autotuner_baseline_score": summary.baseline}
    return {
        "autotuner_trials_planned": [({}, summary.planned)],
        "autotuner_trials_ended": [({"outcome": each}, summary.outcomes.get(each, 0)) for each in ENDINGS],
        "autotuner_trials_running": [({}, summary.running)],
        "autotuner_trials_waiting": [({}, summary.waiting)],
        "autotuner_gpus_wanted": [({}, summary.waiting_gpus)],
        **{name: [({"objective": s.objective, "unit": s.unit}, s.value)] if s else [] for name, s in scores.items()},
    }


def _to_log(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
