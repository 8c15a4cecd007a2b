"""The experiment folder on a real S3 server."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from raytune_autotuner import scratch
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.folder import STOP_SEEN_AFTER_S, ExperimentFolder
from raytune_autotuner.loopback import free_port
from raytune_autotuner.records import TrialId
from raytune_autotuner.storage import Storage
from tests.s3_server import CREDENTIALS, S3Server, s3_server
from tests.test_storage import TRIAL, record, rung, state


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def at(server: S3Server, path: str) -> Storage:
    return Storage(server.uri(path))


def test_what_is_saved_is_found_again(server: S3Server) -> None:
    """States, rungs and records, through a second object; nothing but these files is there."""
    folder = ExperimentFolder(at(server, "found"), "exp")
    folder.save_state(state())
    folder.save_rung(TRIAL, rung(1))
    folder.save_rung(TRIAL, rung(0))
    folder.save_record(record())
    other = pickle.loads(pickle.dumps(folder))
    assert (other.states(), other.records()) == ([state()], [record()])
    assert [r.rung for r in other.rungs(TRIAL.name)] == [0, 1]
    assert other.trial_names() == [TRIAL.name]
    names = {"state.json", "record.json", "rungs/0.json", "rungs/1.json"}
    assert set(server.files("found")) == {f"exp/trials/{TRIAL.name}/{name}" for name in names}


def test_an_empty_folder_reads_as_nothing(server: S3Server) -> None:
    """Missing objects are no error."""
    folder = ExperimentFolder(at(server, "nothing"), "none")
    assert (folder.records(), folder.states(), folder.trial_names(), folder.rungs("x")) == ([], [], [], ())
    assert folder.root.read("x") is None
    assert folder.root.modified("x") is None
    assert not folder.root.exists("x")
    folder.root.delete("x")


def test_files_and_folders_exist_until_deleted(server: S3Server) -> None:
    """A folder is there as long as a file is in it."""
    store = at(server, "exist")
    store.write("a/b/c.txt", "text")
    assert store.exists("a/b/c.txt")
    assert store.exists("a/b")
    assert not store.exists("a/b/c")
    assert (store.list(), store.list("a"), store.list("a/b")) == (["a"], ["b"], ["c.txt"])
    store.delete("a/b/c.txt")
    assert store.read("a/b/c.txt") is None
    assert store.list("a/b") == []


def test_the_options_of_a_uri_stay_at_its_end(server: S3Server) -> None:
    """Also of a folder within, and of the place that people are told; the place can be opened again."""
    store = at(server, "options").sub("exp")
    assert store.uri == server.uri("options/exp")
    assert store.location("trials/t") == server.uri("options/exp/trials/t")
    store.write("f", "text")
    assert Storage(store.location()).read("f") == "text"


def test_the_server_is_taken_from_the_environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the AWS command line does: the variable for S3 goes before the general one."""
    at(server, "environment").write("f", "text")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    assert Storage("s3://tuning/environment").read("f") == "text"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.port}/")
    assert Storage("s3://tuning/environment").read("f") == "text"


def test_a_bucket_is_made_only_when_asked_for(server: S3Server) -> None:
    """A mistyped name must not become a bucket."""
    uri = server.uri("p").replace("tuning", "other")
    with pytest.raises(StorageFault, match="bucket"):
        Storage(uri).probe()
    Storage(f"{uri}&allow_bucket_creation=true").probe()
    assert Storage(uri).list() == []


def test_a_wrong_option_is_named(server: S3Server) -> None:
    """With those that are valid."""
    with pytest.raises(StorageFault, match=r"unknown option 'endpoint'; valid are .*endpoint_override"):
        Storage("s3://tuning/p?endpoint=127.0.0.1:1").probe()


def test_the_stores_clock_is_that_of_its_files(server: S3Server) -> None:
    """What is written before is not later, and neither leaves anything behind."""
    store = at(server, "clock")
    store.write("f", "text")
    written = store.modified("f")
    now = store.now()
    assert written is not None
    assert written <= now
    assert now - datetime.now(timezone.utc) < timedelta(minutes=1)
    store.probe()
    assert store.list() == ["f"]


def test_the_store_is_asked_for_a_stop_once_a_second(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many questions are one request; the answer is asked for anew after a second, and by who made the request."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    folder = ExperimentFolder(at(server, "stop"), "exp")
    other = ExperimentFolder(at(server, "stop"), "exp")
    assert not folder.stop_requested()
    assert not other.stop_requested()
    other.request_stop()
    assert other.stop_requested()
    assert not folder.stop_requested()
    now[0] += STOP_SEEN_AFTER_S
    assert folder.stop_requested()
    folder.root.delete("stop")
    now[0] += STOP_SEEN_AFTER_S
    assert not other.stop_requested()


def test_what_was_seen_does_not_travel_to_another_machine(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its monotonic clock may stand anywhere: the copy asks for itself."""
    now = [1e9]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    folder = ExperimentFolder(at(server, "travel"), "exp")
    assert not folder.stop_requested()
    copy = pickle.loads(pickle.dumps(folder))
    now[0] = 5.0
    ExperimentFolder(at(server, "travel"), "exp").request_stop()
    assert copy.stop_requested()


def test_a_work_folder_reaches_the_store_and_leaves_no_litter(server: S3Server) -> None:
    """What is new or has grown is brought each time, nothing twice; afterwards the disk is as before."""
    store = at(server, "work")
    folder = store.workdir("t")
    (folder / "rung-0").mkdir()
    (folder / "rung-0" / "out.json").write_text("{}")
    (folder / "engine.log").write_text("one\n")
    store.keep(folder, "t")
    assert server.files("work") == {"t/rung-0/out.json": b"{}", "t/engine.log": b"one\n"}
    store.delete("t/rung-0/out.json")
    (folder / "engine.log").write_text("one\ntwo\n")
    store.keep(folder, "t", last=True)
    assert server.files("work") == {"t/engine.log": b"one\ntwo\n"}
    assert not folder.exists()
    assert not list(folder.parent.glob(f"{folder.name}*"))


def test_a_work_folder_is_brought_now_and_then(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks each second does not pay each second; the last time it is always brought."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    store = at(server, "often")
    folder = store.workdir("t")
    for text, later_s, expected in (("a", 0, "a"), ("ab", 14, "a"), ("abc", 1, "abc")):
        (folder / "engine.log").write_text(text)
        now[0] += later_s
        store.keep(folder, "t", every_s=15)
        assert store.read("t/engine.log") == expected
    (folder / "engine.log").write_text("abcd")
    store.keep(folder, "t", last=True)
    assert store.read("t/engine.log") == "abcd"


def test_a_log_that_has_hardly_grown_is_not_brought_again(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be brought whole: what is brought in all is a small multiple of its size. Other files are brought."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    store = at(server, "growing")
    folder = store.workdir("t")
    for size, later_s, expected in (
        (1000, 0, 1000),
        (1099, 15, 1000),
        (1100, 1, 1100),
        (1101, 59, 1100),
        (1102, 1, 1102),
    ):
        (folder / "engine.log").write_text("x" * size)
        (folder / "out.json").write_text("x" * size)
        now[0] += later_s
        store.keep(folder, "t")
        assert (store.size("t/engine.log"), store.size("t/out.json")) == (expected, size)
    (folder / "engine.log").write_text("x" * 1103)
    store.keep(folder, "t", last=True)
    assert store.size("t/engine.log") == 1103


def test_bringing_a_growing_log_costs_a_small_multiple_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at every 15 s for eight hours."""
    now, whole = [0.0], 64 * 1024 * 1024
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    folder = scratch.make()
    log, total = folder / "engine.log", 0
    for step in range(1, 1921):
        now[0] += 15
        with log.open("ab") as file:
            file.truncate(whole * step // 1920)
        for file, mark in scratch.changed(folder, everything=False).items():
            total += mark[0]
            scratch.brought(folder, file, mark)
    scratch.remove(folder)
    assert whole < total < 20 * whole


def test_what_the_store_refused_is_brought_the_next_time(server: S3Server) -> None:
    """And is not lost with its folder."""
    store = Storage(server.uri("p").replace("tuning", "later"))
    folder = store.workdir("t")
    (folder / "engine.log").write_text("log")
    (folder / "link").symlink_to(folder / "engine.log")
    with pytest.raises(StorageFault, match="bucket"):
        store.keep(folder, "t", last=True)
    Storage(f"{server.uri('p').replace('tuning', 'later')}&allow_bucket_creation=true").probe()
    store.keep(folder, "t", last=True)
    assert store.list("t") == ["engine.log"]
    assert not folder.exists()


def test_many_trials_are_read_in_order(server: S3Server) -> None:
    """Several at the same time, since each request is mostly waiting."""
    folder = ExperimentFolder(at(server, "many"), "exp")
    for number in range(20):
        folder.save_record(replace(record(number), trial=TrialId("search", f"{99 - number}")))
    assert [r.number for r in folder.records()] == list(range(20))


def test_a_store_that_is_not_there_is_an_error_with_its_name() -> None:
    """A probe says so without waiting for it to come back."""
    with pytest.raises(StorageFault, match=r"cannot write s3://tuning/p.*onnect"):
        Storage(f"s3://tuning/p?endpoint_override=127.0.0.1:{free_port()}&scheme=http").probe()
