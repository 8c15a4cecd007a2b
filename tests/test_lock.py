"""Who runs an experiment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raytune_autotuner import lock
from raytune_autotuner.lock import LOCK, Held, HeldByAnother, Holder
from raytune_autotuner.storage import Storage
from tests.waiting import until


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "exp"))


def nobody(reason: str) -> None:
    raise AssertionError(reason)


def leave(folder: Storage, holder: Holder) -> None:
    """A lock as a process that is gone leaves it."""
    folder.write(LOCK, json.dumps(asdict(holder)))


def age(folder: Storage, seconds: float) -> None:
    path = Path(folder.location(LOCK))
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


def elsewhere() -> Holder:
    """A process on another machine, of which nothing can be known but its heartbeat."""
    return replace(Holder.me(), host="far", machine="another", pid=7)


def test_a_lock_is_held_and_given_back(folder: Storage) -> None:
    """Nobody had it before, and nobody has it afterwards."""
    with lock.hold(folder, lost=nobody) as found:
        assert found is None
        held = lock.read(folder)
        assert held is not None
        assert (held.holder.pid, held.is_alive) == (os.getpid(), True)
    assert lock.read(folder) is None


def test_a_living_holder_is_named(folder: Storage) -> None:
    """With its last sign of life and what can be done."""
    refused = pytest.raises(HeldByAnother, match=f"process {os.getpid()} on .*--force")
    with lock.hold(folder, lost=nobody), refused, lock.hold(folder, lost=nobody):
        pass
    assert lock.read(folder) is None


def test_a_dead_process_of_this_machine_is_taken_over_at_once(folder: Storage) -> None:
    """Its heartbeat may be young: it is known to be gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(folder, replace(Holder.me(), pid=gone.pid, started="1"))
    with lock.hold(folder, lost=nobody) as found:
        assert isinstance(found, Held)
        assert found.holder.pid == gone.pid


def test_a_pid_that_came_again_is_not_the_holder(folder: Storage) -> None:
    """A process is its pid and the time when it started."""
    leave(folder, replace(Holder.me(), started="1"))
    with lock.hold(folder, lost=nobody) as found:
        assert found is not None


def test_a_heartbeat_that_has_stopped_is_taken_over(folder: Storage) -> None:
    """Wherever its process was."""
    leave(folder, elsewhere())
    age(folder, lock.STALE_S + 1)
    with lock.hold(folder, lost=nobody) as found:
        assert found is not None
        assert found.age_s > lock.STALE_S


def test_a_young_heartbeat_from_elsewhere_is_respected(folder: Storage) -> None:
    """It may well be alive."""
    leave(folder, elsewhere())
    with pytest.raises(HeldByAnother, match="process 7 on far"), lock.hold(folder, lost=nobody):
        pass


def test_force_takes_a_silent_holder(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was watched for a while."""
    monkeypatch.setattr(lock, "WATCH_S", 0.1)
    leave(folder, elsewhere())
    with lock.hold(folder, force=True, lost=nobody) as found:
        assert found is not None


def test_force_does_not_take_a_living_holder(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once would ruin each other's measurements."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    monkeypatch.setattr(lock, "WATCH_S", 0.5)
    with lock.hold(folder, lost=nobody):
        refused = pytest.raises(HeldByAnother, match="and it is alive")
        with refused, lock.hold(folder, force=True, lost=nobody):
            pass


def test_a_holder_learns_that_it_was_taken_over(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not give back what is another's."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    reasons: list[str] = []
    told = threading.Event()

    def lost(reason: str) -> None:
        reasons.append(reason)
        told.set()

    with lock.hold(folder, lost=lost):
        leave(folder, elsewhere())
        until(told.is_set)
    assert "was taken over by process 7 on far" in reasons[0]
    held = lock.read(folder)
    assert held is not None
    assert held.holder.host == "far"


def test_the_heartbeat_goes_on(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by the storage's clock."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with lock.hold(folder, lost=nobody):
        first = folder.modified(LOCK)
        until(lambda: folder.modified(LOCK) != first)


@pytest.mark.parametrize("left", [False, True])
def test_of_many_who_take_it_in_the_same_moment_one_has_it(
    folder: Storage, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    """All have seen the same free or dead lock before any of them takes it."""
    many = 8
    if left:
        leave(folder, replace(Holder.me(), started="1"))
    seen = threading.Barrier(many)
    read, first = lock.read, threading.local()

    def read_together(storage: Storage) -> Held | None:
        found = read(storage)
        if not hasattr(first, "done"):
            first.done = True
            seen.wait()
        return found

    monkeypatch.setattr(lock, "read", read_together)
    holders, refused = [], []
    all_tried = threading.Barrier(many)

    def take() -> None:
        try:
            with lock.hold(folder, lost=nobody) as found:
                holders.append(found)
                all_tried.wait()
        except HeldByAnother as error:
            refused.append(str(error))
            all_tried.wait()

    threads = [threading.Thread(target=take) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(holders), len(refused)) == (1, many - 1)
    assert (holders[0] is not None) is left
    assert "in the same moment" in refused[0]
    assert folder.list() == []


def test_a_lock_that_was_taken_over_since_is_put_back(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes late with an old look at a dead holder does not push out the new one."""
    leave(folder, replace(Holder.me(), started="1"))
    dead = lock.read(folder)
    with lock.hold(folder, lost=nobody):
        monkeypatch.setattr(lock, "read", lambda storage: dead)
        refused = pytest.raises(HeldByAnother, match=f"process {os.getpid()} .* in the same moment")
        with refused, lock.hold(folder, lost=nobody):
            pass
        assert folder.list() == [LOCK]


def test_without_hard_links_the_last_to_write_has_it(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while in which another one would have written."""

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setattr(lock, "SETTLE_S", 0.01)
    with lock.hold(folder, lost=nobody):
        held = lock.read(folder)
        assert held is not None
        assert held.holder.pid == os.getpid()


def test_a_heart_that_stops_for_an_unknown_reason_is_told(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the lock would grow stale while its holder runs on."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    reasons: list[str] = []
    with lock.hold(folder, lost=reasons.append), monkeypatch.context() as patched:
        patched.setattr(lock, "_text", broken)
        until(lambda: reasons)
    assert "RuntimeError('no thread')" in reasons[0]


def broken(holder: Holder) -> str:
    raise RuntimeError("no thread")
