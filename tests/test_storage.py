"""The experiment folder."""

from __future__ import annotations

import json
import os
import pickle
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raytune_autotuner import filesystems, scratch
from raytune_autotuner import storage as storage_module
from raytune_autotuner.errors import Damaged, EnvironmentFault, SpecError, StorageFault
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import RungRecord, TrialId, TrialRecord, TrialState, from_json, to_json
from raytune_autotuner.storage import Storage
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


def test_what_is_written_is_durable_with_all_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is its folder's: without that, the end of the machine takes back what was reported as finished."""
    settled: list[str] = []
    sync = os.fsync

    def fsync(opened: int) -> None:
        settled.append(str(Path(f"/proc/self/fd/{opened}").readlink()))
        sync(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    root = Storage(str(tmp_path / "new"))
    root.write("exp/file", "1")
    assert {str(tmp_path), f"{tmp_path}/new", f"{tmp_path}/new/exp"} <= set(settled)
    settled.clear()
    root.write("exp/file", "2")
    assert settled[1:] == [f"{tmp_path}/new/exp"]


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
    with pytest.raises(Damaged, match=r"/exp/trials/t/record\.json is damaged"):
        folder.records()


def test_a_storage_by_uri_behaves_like_one_by_path(tmp_path: Path) -> None:
    """The same code serves file:// and object stores."""
    by_uri, by_path = Storage(f"file://{tmp_path}"), Storage(str(tmp_path))
    by_uri.write("a/b.txt", "text")
    assert by_path.read("a/b.txt") == "text"
    assert pickle.loads(pickle.dumps(by_uri)).list("a") == ["b.txt"]
    assert by_path.location("a") == f"{tmp_path}/a"


def test_the_clock_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    """Also below a second; asking leaves nothing behind."""
    storage = Storage(str(tmp_path))
    before = storage.now()
    storage.write("f", "text")
    written = storage.modified("f")
    assert written is not None
    assert before <= written <= storage.now()
    assert storage.modified("none") is None
    storage.probe()
    assert storage.list() == ["f"]


def test_deleting_what_is_not_there_is_success(tmp_path: Path) -> None:
    """So that two may do it at once."""
    storage = Storage(str(tmp_path))
    storage.write("a/f", "text")
    storage.delete("a/f")
    storage.delete("a/f")
    assert not storage.exists("a/f")


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """No file of this process can become longer, as on a disk without space."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_nothing_is_damaged(tmp_path: Path) -> None:
    """What was there stays, and no half-written file does."""
    storage = Storage(str(tmp_path))
    storage.write("f", "before")
    with disk_full_after(4096):
        with pytest.raises(StorageFault, match=f"cannot write {tmp_path}/f: .*[Ff]ile too large"):
            storage.write("f", "x" * 100_000)
        with pytest.raises(StorageFault, match="cannot write"):
            storage.probe()
    assert storage.read("f") == "before"
    assert storage.list() == ["f"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hush@bucket/p",
        "s3://hush@bucket/p",
        "s3://bucket/p?access_key=AKIA&secret_key=hush",
        "s3://bucket/p?session_token=hush",
        "sftp://user:hush@host/p",
        "abfs://container@account.dfs.core.windows.net/p?sig=hush",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    """The URI stands in logs, results and process lists."""
    with pytest.raises(SpecError) as told:
        Storage(uri)
    assert "AWS_ACCESS_KEY_ID" in str(told.value)
    assert "hush" not in str(told.value)
    assert "AKIA" not in str(told.value)


def test_a_user_without_a_password_is_no_secret() -> None:
    """As in Azure's URIs, where it is the container."""
    assert Storage("abfs://container@account.dfs.core.windows.net/p").sub("x").uri.endswith("/p/x")


def test_a_filesystem_that_only_fsspec_knows_serves_too() -> None:
    """Here one in memory: written whole, renamed, listed, dated, deleted."""
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    folder = ExperimentFolder(storage, "exp")
    folder.save_record(record())
    folder.save_state(state())
    assert (folder.records(), folder.states(), folder.trial_names()) == ([record()], [state()], [TRIAL.name])
    storage.probe()
    assert storage.list() == ["exp"]
    work = storage.workdir("t")
    (work / "engine.log").write_text("log")
    storage.keep(work, "t", last=True)
    assert storage.read("t/engine.log") == "log"
    folder.root.delete("none")


@pytest.mark.parametrize(("path", "read"), [("x/state.json", '{"a": [1]}'), ("x/engine.log", '{"a": [1')])
def test_an_object_that_is_replaced_while_it_is_read_is_read_again(
    path: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is missing then; a log may end anywhere."""
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    answers = iter([b'{"a": [1', b'{"a": [1]', b'{"a": [1]}'])
    monkeypatch.setattr(Storage, "_ask", lambda self, what, path, read: next(answers))
    assert storage.read(path) == read


def test_a_store_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time, with the place; whatever its library waits for."""
    monkeypatch.setattr(storage_module, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(storage_module, "PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"s3://bucket/p?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http&region=us-east-1"
        with pytest.raises(StorageFault, match=r"cannot read s3://bucket/p/f\?endpoint.*: no answer within 0 s"):
            Storage(uri).read("f")


def test_an_error_that_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as the patience lasts; any other error comes out at once."""
    monkeypatch.setattr(filesystems, "RETRY_PAUSE_S", 0.01)
    calls: list[str] = []

    def fails(message: str, times: int) -> str:
        calls.append(message)
        if len(calls) <= times:
            raise OSError(message)
        return "here"

    assert filesystems.patient(lambda: fails("AWS Error SLOW_DOWN during PutObject", 2), 60, 60) == "here"
    calls.clear()
    with pytest.raises(OSError, match="SLOW_DOWN"):
        filesystems.patient(lambda: fails("AWS Error SLOW_DOWN during PutObject", 1), 60, 0)
    calls.clear()
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        filesystems.patient(lambda: fails("AWS Error ACCESS_DENIED during PutObject", 1), 60, 60)
    assert len(calls) == 1


CRASH = """
import os, signal
from raytune_autotuner import scratch
folder = scratch.make()
(folder / "engine.log").write_text("log")
print(folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_work_folder_of_a_dead_process_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that of a living one is not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = scratch.make()
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert Path(crashed.stdout.strip()).is_dir()
    other = scratch.make()
    assert sorted(p for p in tmp_path.iterdir() if p.is_dir()) == sorted([mine, other])
    for folder in (mine, other):
        scratch.remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_ours_is_not_removed(tmp_path: Path) -> None:
    """Giving it up twice does nothing either."""
    scratch.remove(tmp_path)
    assert tmp_path.is_dir()
