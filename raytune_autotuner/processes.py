"""Processes that never outlive their owner, whatever kills it.

Every process is started through a guard (see ``guard``) that ends its whole tree when the creator dies or says
so. For the one case a guard cannot cover, its own death by SIGKILL, each process carries a mark in its
environment, so that ``sweep`` finds what is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import psutil

from raytune_autotuner import guard
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError

OWNER_VARIABLE = "RAYTUNE_AUTOTUNER_OWNER"
PROCESS_VARIABLE = "RAYTUNE_AUTOTUNER_PROCESS"
START_TIMEOUT_S = 60.0
STOP_MARGIN_S = 15.0
"""What the guard may need beyond its own limits, on a machine that is overloaded."""
KILLED = -9


class OwnedProcess:
    """A process with everything that descends from it; starts at construction.

    It ends when ``stop`` is called, when its main process exits by itself (what that left behind is ended too),
    when this object is garbage-collected, and when the process that made it dies by any signal. Its standard
    output and error are appended to ``log``; ``scratch`` is a folder that is removed at the end.

    ``env`` is the environment in full. SIGINT, which Ray blocks in its actors, works again in the new process.

    Raises:
        EnvironmentFault: the program cannot be started (not found, not executable).
        TransientError: the machine did not start it in time.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        owner: str,
        cwd: Path | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self._token = uuid.uuid4().hex
        self._facts: dict[str, Any] = {}
        self._unread = b""
        order = {
            "argv": list(argv),
            "cwd": str(cwd or Path.cwd()),
            "scratch": str(scratch) if scratch else None,
            "creator": os.getpid(),
            "started": start_time(os.getpid()),
        }
        self._control, self._status = _launch(order, log, _marked(env, owner, self._token))
        try:
            self.pid = self._await_start()
        except BaseException:
            self._close()
            raise

    def poll(self) -> int | None:
        """The exit code of the main process (negative: the signal), or ``None`` while it runs."""
        return self.wait(0)

    def wait(self, timeout_s: float) -> int | None:
        """As ``poll``, but waits for the end of the main process; returns at once when it comes."""
        self._listen(timeout_s)
        if "exit" in self._facts:
            return int(self._facts["exit"])
        return KILLED if self._status.closed else None  # the guard was killed, and the main process dies with it

    def stop(self, grace_s: float = 5.0) -> None:
        """SIGTERM to the whole tree, SIGKILL after the grace; returns when all are gone. Idempotent.

        Raises:
            TransientError: a process does not even die of SIGKILL.
        """
        if "left" not in self._facts:
            self._order_end(grace_s)
        if "left" not in self._facts:  # the guard was killed
            self._facts["left"] = _kill(_marked_with(PROCESS_VARIABLE, lambda mark: mark == self._token))
        self._close()
        if alive := _alive(self._facts["left"]):
            raise TransientError(f"{self.argv[0]}: still running after SIGKILL: {alive}")

    def _order_end(self, grace_s: float) -> None:
        with contextlib.suppress(BrokenPipeError):  # the guard has ended already
            self._control.write(f"stop {grace_s}\n".encode())
        deadline = Deadline.after(grace_s + guard.KILL_WAIT_S + STOP_MARGIN_S)
        while "left" not in self._facts and not self._status.closed and not deadline.expired:
            self._listen(deadline.remaining())

    def _await_start(self) -> int:
        deadline = Deadline.after(START_TIMEOUT_S)
        while not self._facts and not self._status.closed and not deadline.expired:
            self._listen(deadline.remaining())
        if "pid" in self._facts:
            return int(self._facts["pid"])
        if "error" in self._facts:
            raise EnvironmentFault(f"cannot start {self.argv[0]}: {self._facts['error']}")
        raise TransientError(f"{self.argv[0]}: its guard did not start within {START_TIMEOUT_S:.0f} s")

    def _listen(self, timeout_s: float) -> None:
        """Take in what the guard reports; the end of the pipe closes our end of it."""
        if self._status.closed or not select.select([self._status], [], [], timeout_s)[0]:
            return
        data = self._status.read(65536)
        if not data:
            self._status.close()
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._facts.update(json.loads(line))

    def _close(self) -> None:
        self._control.close()
        self._status.close()


def _launch(order: Mapping[str, Any], log: Path, env: Mapping[str, str]) -> tuple[FileIO, FileIO]:
    """Start a guard for the order; our ends of its control and status pipes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    control_read, control_write = os.pipe()
    status_read, status_write = os.pipe()
    control, status = FileIO(control_write, "w"), FileIO(status_read)
    try:
        with log.open("ab") as output:
            starter = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(control_read), str(status_write)],
                env=dict(env),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(control_read, status_write),
            )
        os.close(control_read)  # before the order is sent: a guard that is dead must show as a broken pipe
        control_read = -1
        with contextlib.suppress(BrokenPipeError):
            control.write(json.dumps(order).encode() + b"\n")
        starter.wait(START_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        control.close()
        status.close()
        raise TransientError(f"no guard can be started for {order['argv'][0]}: {error}") from error
    finally:
        os.close(status_write)
        if control_read >= 0:
            os.close(control_read)
    return control, status


def _marked(env: Mapping[str, str], owner: str, token: str) -> dict[str, str]:
    return {**env, **_mark(owner), PROCESS_VARIABLE: token}


def _mark(owner: str) -> dict[str, str]:
    return {
        OWNER_VARIABLE: f"{owner}:{os.getpid()}:{start_time(os.getpid())}",
        "SPT_NOENV": "1",  # setproctitle (Ray, vLLM, SGLang) would overwrite what /proc shows of the mark
    }


@contextlib.contextmanager
def owning_descendants(owner: str, scratch: Path) -> Iterator[None]:
    """What a library starts meanwhile as daemons of its own (Ray does) ends with this process, whatever kills it.

    Such processes get no guard each; they inherit the mark, and one watcher kills all that carry it when this
    process is dead. The folder ``scratch`` is removed at the end, also then.
    """
    before = dict(os.environ)
    os.environ.update(_mark(owner))
    command = [sys.executable, "-m", __name__, owner]
    watcher = OwnedProcess(command, log=scratch / "watcher.log", env=os.environ, owner=owner, scratch=scratch)
    try:
        yield
    finally:
        watcher.stop(0)
        for name in _mark(owner):
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def watch(owner: str) -> None:
    """Wait for the guard's SIGTERM; then kill what the dead creator left."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.sigwait({signal.SIGTERM})
    sweep(owner)


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; with the pid it names a process for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *rest = stat[stat.rindex(")") + 2 :].split()
    return None if state in "ZX" else rest[18]


def sweep(owner_prefix: str | None = None) -> list[int]:
    """Kill what dead creators left running; the pids.

    Only processes of this user in this pid namespace are looked at, and only those whose owner starts with the
    prefix. Needed only after a guard was killed: else nothing is ever left. One that lives is not disturbed: it alone
    knows those of its tree that have cleared their environment.
    """

    def orphaned(mark: str) -> bool:
        owner, creator, started = [*mark.rsplit(":", 2), "", ""][:3]
        return creator.isdigit() and owner.startswith(owner_prefix or "") and start_time(int(creator)) != started

    return _kill(each for each in _marked_with(OWNER_VARIABLE, orphaned) if not _is_guard(each))


def _is_guard(process: psutil.Process) -> bool:
    try:
        return guard.__file__ in process.cmdline()
    except psutil.Error:
        return False


def _marked_with(variable: str, matches: Callable[[str], bool]) -> Iterator[psutil.Process]:
    namespace = _pid_namespace("self")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid() or _pid_namespace(str(process.pid)) != namespace:
                continue
            if process.pid in (os.getpid(), os.getppid()):  # the watcher and its guard are marked as well
                continue
            if matches(process.environ().get(variable, "")):
                yield process


def _pid_namespace(pid: str) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _kill(processes: Iterable[psutil.Process]) -> list[int]:
    found = list(processes)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=STOP_MARGIN_S)
    return [process.pid for process in found]


def _alive(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if start_time(pid) is not None]


if __name__ == "__main__":
    watch(sys.argv[1])
