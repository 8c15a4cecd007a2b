"""TensorBoard files and MLflow runs: every trial once, and never at the experiment's cost."""

from __future__ import annotations

import logging
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner import tracking
from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.loopback import free_port
from raytune_autotuner.records import EngineStats, Failure, TrialId, TrialRecord
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Task, parse_task
from raytune_autotuner.telemetry import Telemetry
from raytune_autotuner.tracking import Desk, MlflowRuns, complete, open_desk, scalars
from tests.s3_server import S3Server, s3  # noqa: F401 - a fixture
from tests.test_storage import record, rung


def trial(number: int = 1, **changes: Any) -> TrialRecord:
    """Two rungs at 100 requests' tokens per second, with what the engine said in the second."""
    second = replace(rung(1), engine=EngineStats(3, {"kv_usage_max": 0.5}))
    made = replace(
        record(number),
        trial=TrialId("search", f"{number:012x}"),
        started_at="2026-01-01T00:00:00+00:00",
        rungs=(rung(0), second),
        score=second.score,
        phases={"load": 2.0, "benchmark": 3.0},
    )
    return replace(made, **changes)


def task(settings: object) -> Task:
    return parse_task({"task_name": "chat", "model": {"name": "m"}, "tracking": settings}, "task.yaml")


def experiment(storage: Storage, *records: TrialRecord) -> ExperimentFolder:
    folder = ExperimentFolder(storage, "exp")
    for each in records:
        folder.save_record(each)
    return folder


def finish(folder: ExperimentFolder, given: Task) -> None:
    """As a run ends."""
    complete(open_desk(folder, given), folder)


def events(data: bytes) -> list[Any]:
    """TensorBoard's event files: length, its checksum, a message, its checksum."""
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    return found


def written(data: bytes) -> dict[str, list[tuple[int, float]]]:
    """The scalars of an event file: steps and values by name."""
    series: dict[str, list[tuple[int, float]]] = {}
    for event in events(data):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name != "hparams":
                series.setdefault(value.tag, []).append((event.step, value.simple_value))
    return series


def test_a_rung_is_its_score_its_metrics_and_the_engines() -> None:
    """Over all loads, by their own names."""
    found = scalars(trial().rungs[1])
    assert found["score"] == pytest.approx(400.0)
    assert found["e2e_mean_s"] == pytest.approx(1.0)
    assert (found["slo_violation"], found["engine/kv_usage_max"]) == (0.0, 0.5)


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path) -> None:
    """No folder, no thread, no import."""
    folder = experiment(Storage(str(tmp_path)), trial())
    finish(folder, task({}))
    assert folder.root.list() == ["trials"]


def test_tensorboard_gets_parameters_scalars_by_rung_and_times(tmp_path: Path) -> None:
    """One event file per trial, in the experiment folder."""
    folder = experiment(Storage(str(tmp_path)), trial(1), trial(2, score=None, outcome="infeasible", rungs=()))
    finish(folder, task({"tensorboard": True}))
    assert folder.root.list("tensorboard") == [trial(1).trial.name, trial(2).trial.name]
    (file,) = (tmp_path / "exp" / "tensorboard" / trial(1).trial.name).iterdir()
    data = file.read_bytes()
    series = written(data)
    assert series["score"] == [(0, 400.0), (1, 400.0)]
    assert series["final/score"] == [(2, 400.0)]
    assert series["engine/kv_usage_max"] == [(1, 0.5)]
    assert series["seconds/load"] == [(0, 2.0)]
    for shown in (b"purpose", b"completed", *(name.encode() for name in trial(1).parameters)):
        assert shown in data


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    """An experiment that goes on adds what is missing."""
    folder = experiment(Storage(str(tmp_path)), trial(1))
    finish(folder, task({"tensorboard": True}))
    folder.save_record(trial(2))
    finish(folder, task({"tensorboard": True}))
    files = sorted(p.parent.name for p in (tmp_path / "exp" / "tensorboard").rglob("events*"))
    assert files == [trial(1).trial.name, trial(2).trial.name]


def test_an_interrupted_trial_is_not_at_its_end(tmp_path: Path) -> None:
    """It goes on when the experiment does."""
    folder = experiment(Storage(str(tmp_path)), trial(1, outcome="stopped", failure=Failure("interrupted", "")))
    finish(folder, task({"tensorboard": True}))
    assert folder.root.list("tensorboard") == []


def test_tensorboard_files_reach_an_object_store(s3: S3Server) -> None:  # noqa: F811
    """TensorBoard reads them there."""
    folder = experiment(Storage("s3://tuning/p"), trial(1))
    finish(folder, task({"tensorboard": True}))
    ((_, data),) = s3.files(f"p/exp/tensorboard/{trial(1).trial.name}").items()
    assert written(data)["score"][0] == (0, 400.0)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And costs nothing else."""
    folder = experiment(Storage(str(tmp_path)), trial(1))
    (tmp_path / "exp" / "tensorboard").write_text("a file")
    with caplog.at_level(logging.WARNING):
        finish(folder, task({"tensorboard": True}))
    assert f"{trial(1).trial.name} is left out: cannot list {tmp_path}/exp/tensorboard" in caplog.text


@dataclass
class Broken:
    """A tracker that does not work."""

    reason: str

    def known(self) -> set[str]:
        raise EnvironmentFault(self.reason)

    def add(self, record: TrialRecord) -> None:
        raise AssertionError("not opened")


@dataclass
class Notes:
    """A tracker in memory."""

    names: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def known(self) -> set[str]:
        return set(self.names)

    def add(self, record: TrialRecord) -> None:
        self.gate.wait(30)
        self.names.append(record.trial.name)


def opener(tracker: tracking.Tracker) -> Callable[[], tracking.Tracker]:
    return lambda: tracker


def test_one_tracker_that_fails_does_not_keep_the_others_from_theirs() -> None:
    """In the order in which the trials end."""
    notes = Notes()
    notes.gate.set()
    desk = Desk([partial(Broken, "away"), opener(notes)])
    for number in (1, 2, 1):
        desk.add(trial(number))
    desk.close()
    assert notes.names == [trial(1).trial.name, trial(2).trial.name]


def test_a_tracker_that_hangs_keeps_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Adding returns at once, closing after its time."""
    notes = Notes()
    desk = Desk([opener(notes)])
    desk.add(trial(1))
    with caplog.at_level(logging.WARNING):
        desk.close(0.05)
    notes.gate.set()
    assert "not everything was handed over" in caplog.text


def test_telemetry_hands_ended_trials_on(tmp_path: Path) -> None:
    """Those of before when it begins; it waits for no tracker when the experiment is over."""
    folder = experiment(Storage(str(tmp_path)), trial(1))
    notes = Notes()
    desk = Desk([opener(notes)])
    callback = Telemetry(folder, "chat", 9, len, desk, write=lambda _: None)
    callback.setup()
    callback.on_experiment_end(trials=[])
    assert notes.names == []
    notes.gate.set()
    complete(desk, folder)
    assert notes.names == [trial(1).trial.name]


@pytest.fixture
def mlflow(tmp_path: Path) -> str:
    """The address of an empty database of MLflow's own."""
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mlflow_gets_a_run_per_trial_and_none_twice(tmp_path: Path, mlflow: str) -> None:
    """With parameters, metrics by rung, how it ended and why."""
    failed = trial(2, outcome="infeasible", rungs=(), score=None, failure=Failure("crash", "died of signal 9"))
    folder = experiment(Storage(str(tmp_path)), trial(1), failed)
    given = task({"mlflow": {"uri": mlflow}})
    finish(folder, given)
    finish(folder, given)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=mlflow)
    group = client.get_experiment_by_name("chat")
    assert group is not None
    runs = sorted(client.search_runs([group.experiment_id]), key=lambda run: run.info.run_name)
    assert [run.info.run_name for run in runs] == [f"1 {trial(1).trial.name}", f"2 {trial(2).trial.name}"]
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED"]
    assert runs[0].data.params == {"a": "1", "b": "0.5", "c": "x", "d": "True", "e": "None"}
    assert [m.step for m in client.get_metric_history(runs[0].info.run_id, "score")] == [0, 1]
    assert runs[0].info.end_time - runs[0].info.start_time == 5000
    assert runs[1].data.tags["raytune_autotuner.reason"] == "died of signal 9"
    assert runs[1].data.tags["raytune_autotuner.outcome"] == "infeasible"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_mlflow_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ours, so that the experiment goes on."""
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(EnvironmentFault, match="MLflow does not take the results"):
        MlflowRuns("exp", "chat", f"http://127.0.0.1:{free_port()}")


def test_a_missing_mlflow_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to get it; who does not ask for it needs none."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    tracking.check(task({"tensorboard": True}).tracking)
    with pytest.raises(EnvironmentFault, match=r"raytune-autotuner\[mlflow\]"):
        tracking.check(task({"mlflow": {}}).tracking)


@pytest.mark.parametrize("uri", ["https://me:hush@host", "https://hush@host/x", "http://[hush"])
def test_a_password_in_the_address_is_refused_and_not_repeated(uri: str) -> None:
    """The task is written into the experiment folder."""
    with pytest.raises(SpecError, match="MLFLOW_TRACKING_PASSWORD") as told:
        task({"mlflow": {"uri": uri}})
    assert "hush" not in str(told.value)


def test_the_settings_of_a_task_are_read() -> None:
    """Both tools, and a name of one's own."""
    found = task({"tensorboard": True, "mlflow": {"experiment": "lab", "uri": "http://127.0.0.1:5000"}}).tracking
    assert found.tensorboard
    assert found.mlflow is not None
    assert (found.mlflow.experiment, found.mlflow.uri) == ("lab", "http://127.0.0.1:5000")
