"""The experiment folder."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import RungRecord, TrialId, TrialRecord, TrialState, from_json, to_json
from raytune_autotuner.storage import ExperimentFolder, Storage
from raytune_autotuner.task.spec import Optimization
from tests.fakes.trials import sample_metrics

TRIAL = TrialId("search", "abc123", 2)


def rung(index: int) -> RungRecord:
    metrics = sample_metrics(index, 1.0)
    return RungRecord(index, metrics, score(metrics, Context(1, Optimization())), wall_s=1.5)


def record(number: int = 1) -> TrialRecord:
    parameters = {"a": 1, "b": 0.5, "c": "x", "d": True, "e": None}
    return TrialRecord(TRIAL, "exp", number, parameters, "completed", "2026-01-01", (rung(0), rung(1)))


def state(number: int = 1) -> TrialState:
    return TrialState(TRIAL, number, {"a": 1}, "load", "", 0, 2, "2026-01-01", "2026-01-01")


def test_records_survive_json_with_their_types() -> None:
    """1 stays an int, True a bool, None is None, nested records come back equal."""
    again = from_json(TrialRecord, to_json(record()))
    assert again == record()
    assert [type(v) for v in again.parameters.values()] == [int, float, str, bool, type(None)]


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    """States, rungs and records by trial, through a second object."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    folder.save_state(state())
    folder.save_rung(TRIAL, rung(1))
    folder.save_rung(TRIAL, rung(0))
    folder.save_record(record())
    other = ExperimentFolder(Storage(str(tmp_path)), "exp")
    assert other.trial_names() == ["search-abc123-2"]
    assert other.states() == [state()]
    assert [r.rung for r in other.rungs("search-abc123-2")] == [0, 1]
    assert other.records() == [record()]


def test_an_empty_folder_reads_as_nothing(tmp_path: Path) -> None:
    """Missing files are no error."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "none")
    assert (folder.records(), folder.states(), folder.trial_names(), folder.rungs("x")) == ([], [], [], ())
    assert folder.record("x") is None


def test_the_stop_request_is_seen_by_others(tmp_path: Path) -> None:
    """Through the storage, so that it crosses machines."""
    ExperimentFolder(Storage(str(tmp_path)), "exp").request_stop()
    assert ExperimentFolder(Storage(str(tmp_path)), "exp").stop_requested()
    assert not ExperimentFolder(Storage(str(tmp_path)), "other").stop_requested()


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """While a writer replaces a file over and over, every read is whole."""
    storage = Storage(str(tmp_path))
    texts = [json.dumps({"n": n, "pad": "x" * 200_000}) for n in range(2)]
    storage.write("f.json", texts[0])
    over = threading.Event()

    def write() -> None:
        for n in range(200):
            storage.write("f.json", texts[n % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not over.is_set() or reads == 0:
        assert storage.read("f.json") in texts
        reads += 1
    writer.join()
    assert storage.list() == ["f.json"]


def test_a_storage_that_refuses_is_an_environment_fault(tmp_path: Path) -> None:
    """With the place in the message: a file stands where a folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        Storage(str(tmp_path / "file")).write("x/y", "text")


def test_an_unknown_scheme_is_an_environment_fault() -> None:
    """A mistyped URI is told as such."""
    with pytest.raises(EnvironmentFault, match="nosuch"):
        Storage("nosuch://bucket/x").read("y")


def test_a_damaged_record_is_an_error_and_not_an_empty_result(tmp_path: Path) -> None:
    """What is on disk and cannot be read must not pass for missing."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    folder.root.write("trials/t/record.json", "{")
    with pytest.raises(ValidationError):
        folder.records()


def test_a_storage_by_uri_behaves_like_one_by_path(tmp_path: Path) -> None:
    """The same code serves file:// and object stores."""
    by_uri, by_path = Storage(f"file://{tmp_path}"), Storage(str(tmp_path))
    by_uri.write("a/b.txt", "text")
    assert by_path.read("a/b.txt") == "text"
    assert pickle.loads(pickle.dumps(by_uri)).list("a") == ["b.txt"]
    assert by_path.location("a") == f"{tmp_path}/a"
