"""Owned processes: nothing of a tree outlives its owner, however it dies."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raytune_autotuner import guard
from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.processes import OwnedProcess, start_time, sweep
from tests.waiting import until

TREE = "sleep 300 & echo $!; setsid sleep 300 & echo $!; echo $$; wait"
"""A main process with a child and one that has left the session; tells the three pids."""
CREATOR = """
import os, sys, time
from pathlib import Path
from raytune_autotuner.processes import OwnedProcess
process = OwnedProcess(["sh", "-c", sys.argv[1]], log=Path(sys.argv[2]), env=os.environ, owner=sys.argv[3],
                       scratch=Path(sys.argv[4]))
time.sleep(300)
"""

Start = Callable[..., OwnedProcess]


def alive(pid: int) -> bool:
    return start_time(pid) is not None


def pids(log: Path, count: int = 3) -> list[int]:
    """The pids that the tree has told, once they are all there."""
    until(lambda: log.exists() and len(log.read_text().split()) >= count)
    return [int(word) for word in log.read_text().split()]


@pytest.fixture
def owner() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def start(tmp_path: Path, owner: str) -> Iterator[Start]:
    started: list[OwnedProcess] = []

    def begin(*argv: str, **more: object) -> OwnedProcess:
        options = {"log": tmp_path / "log", "env": os.environ, "owner": owner} | more
        started.append(OwnedProcess(argv, **options))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for process in started:
        process.stop(0)


@pytest.fixture
def creator(tmp_path: Path, owner: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that owns a tree and can be killed."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", CREATOR, TREE, str(tmp_path / "log"), owner, str(scratch)]
    process = subprocess.Popen(command)
    yield process
    process.kill()
    process.wait()
    sweep(owner)


def test_stop_ends_the_whole_tree(start: Start, tmp_path: Path) -> None:
    """Children go, and those that have left the session."""
    process = start("sh", "-c", TREE)
    tree = pids(tmp_path / "log")
    assert process.pid in tree
    process.stop()
    assert not any(alive(pid) for pid in tree)
    assert process.poll() is not None  # by the signal, or by itself where its children went first


def test_stop_is_idempotent(start: Start) -> None:
    """A second stop returns, and the exit code stays."""
    process = start("sleep", "300")
    process.stop()
    process.stop()
    assert process.poll() == -signal.SIGTERM


def test_stop_kills_what_ignores_sigterm(start: Start, tmp_path: Path) -> None:
    """After the grace comes SIGKILL."""
    process = start("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
    until(lambda: "ready" in (tmp_path / "log").read_text())
    process.stop(0.1)
    assert process.poll() == -signal.SIGKILL


def test_grace_lets_a_process_end_in_order(start: Start, tmp_path: Path) -> None:
    """A process that handles SIGTERM ends with its own exit code."""
    process = start("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    until(lambda: "ready" in (tmp_path / "log").read_text())
    process.stop(20)
    assert process.poll() == 7


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -SEGV $$", -signal.SIGSEGV), ("true", 0)])
def test_exit_code_is_seen(start: Start, script: str, code: int) -> None:
    """The end of the main process is reported with its exit code, or the signal as a negative number."""
    process = start("sh", "-c", script)
    assert process.wait(30) == code


def test_end_of_main_process_ends_what_it_left(start: Start, tmp_path: Path) -> None:
    """An engine that crashes takes its orphaned workers with it, without anybody calling stop."""
    process = start("sh", "-c", "sleep 300 & echo $!; exit 1")
    assert process.wait(30) == 1
    (orphan,) = pids(tmp_path / "log", 1)
    until(lambda: not alive(orphan))


def test_log_is_appended_to(start: Start, tmp_path: Path) -> None:
    """Standard output and error both go to the log, after what is there already."""
    (tmp_path / "log").write_text("before\n")
    start("sh", "-c", "echo out; echo err >&2").wait(30)
    assert (tmp_path / "log").read_text() == "before\nout\nerr\n"


def test_working_directory_and_environment(start: Start, tmp_path: Path) -> None:
    """The process gets the given folder and exactly the given environment, with the mark of its owner."""
    folder = tmp_path / "folder"
    folder.mkdir()
    start("sh", "-c", "pwd; env", cwd=folder, env={"PATH": os.environ["PATH"], "COLOUR": "red"}).wait(30)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == str(folder)
    assert "COLOUR=red" in lines
    assert not any(line.startswith("HOME=") for line in lines)
    assert any(line.startswith("RAYTUNE_AUTOTUNER_OWNER=test-") for line in lines)


def test_signals_work_again(start: Start, tmp_path: Path) -> None:
    """A creator that blocks or ignores SIGINT, as Ray's actors do, does not pass that on."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        start("grep", "-E", "SigBlk|SigIgn", "/proc/self/status").wait(30)
    finally:
        signal.signal(signal.SIGUSR1, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    assert [int(line.split()[1], 16) for line in (tmp_path / "log").read_text().splitlines()] == [0, 0]


def test_missing_program_is_a_fault_of_the_environment(start: Start) -> None:
    """A program that does not exist is named."""
    with pytest.raises(EnvironmentFault, match="no-such-program"):
        start("/no-such-program")


def test_scratch_is_removed(start: Start, tmp_path: Path) -> None:
    """The scratch folder goes with the process."""
    scratch = tmp_path / "scratch"
    (scratch / "deep").mkdir(parents=True)
    start("sleep", "300", scratch=scratch).stop()
    assert not scratch.exists()


def test_killed_creator_takes_the_tree_along(creator: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """SIGKILL to the creator ends main process, child and the one in another session, and removes the scratch."""
    tree = pids(tmp_path / "log")
    creator.kill()
    creator.wait()
    until(lambda: not any(alive(pid) for pid in tree), 10)
    until(lambda: not (tmp_path / "scratch").exists(), 10)


def test_killed_creator_is_seen_past_a_fork(start: Start, tmp_path: Path, owner: str) -> None:
    """A forked child that holds the creator's pipe open does not keep the tree alive."""
    script = CREATOR.replace("time.sleep(300)", "(pid := os.fork()) and print(pid, flush=True); time.sleep(300)")
    command = [sys.executable, "-c", script, TREE, str(tmp_path / "log"), owner, str(tmp_path / "none")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        fork = psutil.Process(int(process.stdout.readline()))
        tree = pids(tmp_path / "log")
        process.kill()
        process.wait()
        try:
            until(lambda: not any(alive(pid) for pid in tree), 10)
            assert fork.is_running()
        finally:
            fork.kill()


def test_killed_guard_takes_the_main_process_along(start: Start, tmp_path: Path) -> None:
    """SIGKILL to the guard kills the main process; stop then ends what is left of the tree."""
    process = start("sh", "-c", TREE)
    tree = pids(tmp_path / "log")
    os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    until(lambda: not alive(process.pid))
    process.stop()
    assert not any(alive(pid) for pid in tree)


def test_sweep_removes_what_a_killed_guard_left(creator: subprocess.Popen[bytes], tmp_path: Path, owner: str) -> None:
    """With guard and creator both killed, sweep finds the rest by its mark; others' processes are left alone."""
    child, session, main = pids(tmp_path / "log")
    os.kill(psutil.Process(main).ppid(), signal.SIGKILL)
    until(lambda: not alive(main))
    assert sweep(owner) == []  # the creator lives
    creator.kill()
    creator.wait()
    assert sweep(f"{owner}-other") == []
    assert sorted(sweep(owner)) == sorted([child, session])
    assert not alive(child)
    assert not alive(session)


def test_sweep_leaves_a_guard_to_its_work(tmp_path: Path, owner: str) -> None:
    """It alone knows of a child without a mark that does not end by itself; its scratch folder goes, too."""
    tree = "env -i sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' & wait"
    scratch, log = tmp_path / "scratch", tmp_path / "log"
    scratch.mkdir()
    creator = subprocess.Popen([sys.executable, "-c", CREATOR, tree, str(log), owner, str(scratch)])
    try:
        (hidden,) = pids(log, 1)
    finally:
        creator.kill()
        creator.wait()
    try:
        sweep(owner)
        until(lambda: not alive(hidden), 60)
        until(lambda: not scratch.exists(), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(hidden, signal.SIGKILL)


def test_terminated_guard_ends_the_tree(tmp_path: Path, start: Start) -> None:
    """A guard that is asked by SIGTERM ends the tree as well."""
    process = start("sh", "-c", TREE)
    tree = pids(tmp_path / "log")
    os.kill(psutil.Process(process.pid).ppid(), signal.SIGTERM)
    until(lambda: not any(alive(pid) for pid in tree))
    assert process.wait(30) == -signal.SIGTERM


def told_by_guard(folder: Path, script: str, order_to_end: bytes | None, **changes: object) -> str:
    """What a guard reports; the control pipe is closed after the order, or kept open when it is ``None``."""
    control_read, control_write = os.pipe()
    status_read, status_write = os.pipe()
    order = {"argv": ["sh", "-c", script], "cwd": str(folder), "scratch": None, "creator": os.getpid()}
    order |= {"started": start_time(os.getpid())} | changes
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_supervise, args=(order, control_read, control_write, status_write))
    process.start()
    os.close(status_write)
    with os.fdopen(status_read) as status, os.fdopen(control_write, "wb", buffering=0) as control:
        told = ""
        if order_to_end is not None:
            told = status.readline()
            control.write(order_to_end)
            control.close()
        told += status.read()
    process.join(30)
    os.close(control_read)
    return told


# a shell whose child is ended before itself must not come to the end of its script
WAITING = "sleep 300 & while :; do wait; sleep 0.05; done"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, in a test runner with threads
@pytest.mark.parametrize(
    ("script", "order", "code"),
    [
        (WAITING, b"stop 5\n", -15),
        ("trap '' TERM; while :; do sleep 0.05; done", b"stop 0\n", -9),
        (WAITING, b"", -15),
        ("exit 5", None, 5),
    ],
)
def test_guard_reports_what_happens(tmp_path: Path, script: str, order: bytes | None, code: int) -> None:
    """The guard tells pid, exit code and that nothing is left, whichever way the end comes, and clears up."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    told = told_by_guard(tmp_path, script, order, scratch=str(scratch))
    assert told.startswith('{"pid": ')
    assert f'{{"exit": {code}}}' in told
    assert told.endswith('{"left": []}\n')
    assert not scratch.exists()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, in a test runner with threads
def test_guard_reports_what_cannot_start(tmp_path: Path) -> None:
    """A program that is missing is an error, not an exit code."""
    told = told_by_guard(tmp_path, "", None, argv=["/no-such-program"])
    assert told == '{"error": "No such file or directory: /no-such-program"}\n'


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, in a test runner with threads
@pytest.mark.parametrize("creator", [{"creator": 2**22 - 1}, {"started": "1"}])
def test_guard_of_a_dead_creator_starts_nothing(tmp_path: Path, creator: dict[str, object]) -> None:
    """A creator that died meanwhile, even when another process has its pid, gets no process."""
    assert told_by_guard(tmp_path, "touch started", None, **creator).startswith('{"error": ')
    assert not (tmp_path / "started").exists()


def test_kernel_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old kernel leaves the pipe as the only sign of the creator's death."""

    def pidfd_open(pid: int) -> int:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    assert guard.watched(os.getpid(), "1") is None


def test_machine_that_starts_no_guard(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no process can be started, another try may help."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(TransientError, match="no guard can be started"):
        start("true")


def test_guard_that_dies_before_it_starts_anything(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that says nothing is not waited for."""
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(TransientError, match="did not start"):
        start("true")


def _supervise(order: dict[str, object], control: int, other_end: int, status: int) -> None:
    os.close(other_end)
    guard.supervise(order, control, status)


def test_start_time_of_a_process_that_is_gone() -> None:
    """A pid that nobody has, and a zombie, have no start time."""
    process = subprocess.Popen(["true"])
    until(lambda: not alive(process.pid))
    process.wait()
    assert start_time(process.pid) is None
