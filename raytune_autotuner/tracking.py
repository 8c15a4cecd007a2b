"""Copies of an experiment's trials for TensorBoard and MLflow.

A trial is copied when it has ended, as a whole, and never twice, so an experiment that goes on adds what is missing. A
tracker that does not work costs a warning and nothing else: the experiment folder is the truth.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Protocol

from raytune_autotuner.errors import AutotunerError, EnvironmentFault
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.objectives import over_loads
from raytune_autotuner.records import RungRecord, TrialRecord
from raytune_autotuner.summary import ending
from raytune_autotuner.task.spec import Task
from raytune_autotuner.task.tracking import Tracking

logger = logging.getLogger(__name__)

CLOSE_S = 60.0
"""So long the end of a run waits for trackers."""
MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""MLflow's own would keep a dead server waiting for a quarter of an hour for each request."""
MOST_RUNS = 50_000
"""MLflow answers with no more at once."""
STATUS = {"completed": "FINISHED", "stopped": "KILLED", "infeasible": "FAILED", "failed": "FAILED"}
"""MLflow's words for outcomes."""


class Tracker(Protocol):
    """One tool. Called from one thread; raises ``AutotunerError`` when the tool does not work."""

    def known(self) -> set[str]:
        """The names of the experiment's trials that it has."""

    def add(self, record: TrialRecord) -> None:
        """Take in a trial that has ended."""


def scalars(rung: RungRecord) -> dict[str, float]:
    """What a rung measured, as single numbers by name."""
    loads = rung.metrics.loads
    common = set.intersection(*(set(load.values) for load in loads)) if loads else set()
    return {
        "score": rung.score.value,
        "slo_violation": rung.score.violation,
        **{name: over_loads(rung.metrics, name) for name in sorted(common)},
        **({f"engine/{name}": value for name, value in rung.engine.values.items()} if rung.engine else {}),
    }


class TensorBoard:
    """A folder of event files per trial, with its parameters for the table of hyperparameters."""

    def __init__(self, folder: ExperimentFolder) -> None:
        self._root = folder.root

    def known(self) -> set[str]:
        return set(self._root.list("tensorboard"))

    def add(self, record: TrialRecord) -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        path = f"tensorboard/{record.trial.name}"
        workdir = self._root.workdir(path)
        try:
            with SummaryWriter(logdir=str(workdir)) as writer:
                _write_events(writer, record)
        except OSError as error:
            raise EnvironmentFault(f"cannot write {self._root.location(path)}: {error}") from error
        self._root.keep(workdir, path, last=True)


def _write_events(writer: Any, record: TrialRecord) -> None:
    from tensorboardX.summary import hparams  # type: ignore[import-untyped]

    final = {"final/score": record.score.value} if record.score else {}
    parameters = {name: "" if value is None else value for name, value in record.parameters.items()}
    given = {**parameters, "purpose": record.trial.purpose, "outcome": ending(record)}
    for summary in hparams(given, final):  # not by `add_hparams`, which makes a run of its own of them
        writer.file_writer.add_summary(summary)
    for name, value in final.items():
        writer.add_scalar(name, value, len(record.rungs))
    for rung in record.rungs:
        for name, value in scalars(rung).items():
            writer.add_scalar(name, value, rung.rung)
    for phase, seconds in record.phases.items():
        writer.add_scalar(f"seconds/{phase}", seconds, 0)


class MlflowRuns:
    """A run per trial on a tracking server, or in a database.

    Raises:
        EnvironmentFault: MLflow is not installed, or the server does not answer.
    """

    def __init__(self, experiment: str, group: str, uri: str | None) -> None:
        os.environ.update({name: os.environ.get(name, value) for name, value in MLFLOW_LIMITS.items()})
        mlflow = _mlflow()
        self._name = experiment
        self._fault = (mlflow.exceptions.MlflowException, OSError)
        self._client = mlflow.tracking.MlflowClient(tracking_uri=uri)
        self._experiment = self._asked(lambda: self._experiment_id(group))

    def known(self) -> set[str]:
        query = f"tags.`raytune_autotuner.experiment` = '{self._name}'"
        runs = self._asked(lambda: self._client.search_runs([self._experiment], query, max_results=MOST_RUNS))
        return {run.data.tags.get("raytune_autotuner.trial", "") for run in runs}

    def add(self, record: TrialRecord) -> None:
        self._asked(lambda: self._add(record))

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _add(self, record: TrialRecord) -> None:
        """The tag that makes it known comes last: a run that was cut short is made again."""
        from mlflow.entities import Metric, Param

        began = _milliseconds(record.started_at)
        ended = began + int(1000 * record.since_start_s)
        name = f"{record.number} {record.trial.name}"
        run = self._client.create_run(self._experiment, began, self._tags(record), name).info.run_id
        parameters = [Param(key, str(value)) for key, value in record.parameters.items()]
        values = [
            Metric(_metric_name(key), value, ended, rung.rung)
            for rung in record.rungs
            for key, value in scalars(rung).items()
        ]
        self._client.log_batch(run, metrics=values, params=parameters)
        self._client.set_tag(run, "raytune_autotuner.trial", record.trial.name)
        self._client.set_terminated(run, STATUS[record.outcome], ended)

    def _tags(self, record: TrialRecord) -> dict[str, str]:
        reason = {"raytune_autotuner.reason": record.failure.reason[:500]} if record.failure else {}
        return {
            "raytune_autotuner.experiment": self._name,
            "raytune_autotuner.purpose": record.trial.purpose,
            "raytune_autotuner.outcome": ending(record),
            **reason,
        }

    def _asked(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._fault as error:
            raise EnvironmentFault(f"MLflow does not take the results: {error}") from error


def _mlflow() -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise EnvironmentFault(
            "tracking.mlflow needs MLflow's package: pip install 'raytune-autotuner[mlflow]'"
        ) from error
    return mlflow


def _milliseconds(iso: str) -> int:
    return int(1000 * datetime.fromisoformat(iso).timestamp())


def _metric_name(name: str) -> str:
    """MLflow's names have letters, digits and a few signs only."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def openers(folder: ExperimentFolder, task: Task) -> Iterator[Callable[[], Tracker]]:
    """How to open each tracker that the task asks for."""
    mlflow = task.tracking.mlflow
    if task.tracking.tensorboard:
        yield lambda: TensorBoard(folder)
    if mlflow is not None:
        yield lambda: MlflowRuns(folder.name, mlflow.experiment or task.task_name, mlflow.uri)


def check(tracking: Tracking) -> None:
    """Raise when what the task asks for is not installed here.

    Raises:
        EnvironmentFault: with how to install it.
    """
    if tracking.mlflow is not None:
        _mlflow()


class Desk:
    """Takes trials that have ended and hands them to the trackers from a thread of its own, so that nobody waits."""

    def __init__(self, openers: Iterable[Callable[[], Tracker]]) -> None:
        self._slots = [_Slot(opener) for opener in openers]
        self._queue: queue.SimpleQueue[TrialRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="tracking")
        if self._slots:
            self._thread.start()

    @property
    def serves(self) -> bool:
        return bool(self._slots)

    def add(self, record: TrialRecord) -> None:
        """Take in a trial; one that was interrupted is not at its end."""
        if self._slots and ending(record) != "interrupted":
            self._queue.put(record)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait until everything is handed over, for a time."""
        if self._slots:
            self._queue.put(None)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning("tracking: not everything was handed over within %.0f s", timeout_s)

    def _serve(self) -> None:
        while (record := self._queue.get()) is not None:
            for slot in self._slots:
                try:
                    slot.add(record)
                except AutotunerError as error:
                    logger.warning("tracking: %s is left out: %s", record.trial.name, error)


class _Slot:
    """A tracker that is opened when the first trial comes, and again when that failed."""

    def __init__(self, opener: Callable[[], Tracker]) -> None:
        self._opener = opener
        self._tracker: Tracker | None = None
        self._known: set[str] = set()

    def add(self, record: TrialRecord) -> None:
        if self._tracker is None:
            tracker = self._opener()
            self._known = tracker.known()
            self._tracker = tracker
        if record.trial.name not in self._known:
            self._tracker.add(record)
            self._known.add(record.trial.name)


def open_desk(folder: ExperimentFolder, task: Task) -> Desk:
    return Desk(openers(folder, task))


def complete(desk: Desk, folder: ExperimentFolder) -> None:
    """Hand over whatever a tracker lacks, and close; for the end of a run, when every record is written."""
    for record in folder.records() if desk.serves else ():
        desk.add(record)
    desk.close()
