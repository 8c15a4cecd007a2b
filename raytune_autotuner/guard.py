"""The small process that stands between us and an engine, and outlives us just long enough to end it.

Run as a script by ``processes.OwnedProcess``, never imported; standard library only, so that it starts fast
(``python -I -S``). It is nobody's direct child (double fork, session of its own): Ray and job runners kill the
children of a worker they end, and that would end the one who cleans up.

Three things end the whole tree: the order ``stop SECONDS`` on the control pipe, the creator's death by any signal
(the pipe's end, and its pidfd, since a forked child of the creator may hold the pipe open), and the main
process's own end. Being a subreaper, the guard inherits every orphan of the tree, also those that left the
session, so nothing escapes. Should the guard itself be killed, the main process dies with it (PDEATHSIG).

What it reports on the status pipe, one JSON object a line: ``{"pid": …}`` or ``{"error": …}``, ``{"exit": …}`` as
soon as the main process has ended (negative: the signal), ``{"left": [pids]}`` once the tree is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
ORPHAN_GRACE_S = 1.0
"""Between SIGTERM and SIGKILL when nobody asks for more: the creator is gone, or the main process is."""
KILL_WAIT_S = 30.0
"""How long a process may take to die of SIGKILL (a driver call in the kernel) before it is reported as left."""
RESCAN_S = 0.1

prctl = ctypes.CDLL(None, use_errno=True).prctl


class Tree:
    """The main process with all that descends from it."""

    def __init__(self, pid: int, status: int, wakeup: int) -> None:
        self.pid = pid
        self.status = status
        self.wakeup = wakeup
        self.ended = False

    def report(self, **fact: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the creator is gone
            os.write(self.status, json.dumps(fact).encode() + b"\n")

    def reap(self) -> None:
        """Collect every child that has ended, and report the main process's exit code."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, code = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.ended = True
                    self.report(exit=os.waitstatus_to_exitcode(code))

    def end(self, grace_s: float) -> list[int]:
        """SIGTERM to all, SIGKILL to those left after the grace; the pids that survive even that."""
        send(signal.SIGTERM, list(descendants()))
        kill_at = time.monotonic() + grace_s
        give_up_at = kill_at + KILL_WAIT_S
        while alive := list(descendants()):
            now = time.monotonic()
            if now >= give_up_at:
                break
            if now >= kill_at:
                send(signal.SIGKILL, alive)
            select.select([self.wakeup], [], [], RESCAN_S)
            drain(self.wakeup)
            self.reap()
        self.reap()
        return alive


def descendants() -> Iterator[int]:
    """Everything below this process, read from /proc (zombies included until somebody reaps them)."""
    parents = dict(parent_of_all())
    below = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= grown
    yield from below - {os.getpid()}


def parent_of_all() -> Iterator[tuple[int, int]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                stat = Path(entry.path, "stat").read_bytes()
                # the second field is the name in brackets and may hold anything, brackets too
                yield int(entry.name), int(stat[stat.rindex(b")") + 2 :].split()[1])


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def drain(wakeup: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(wakeup, 4096)
    return b""


def daemonise() -> None:  # pragma: no cover - runs where nothing measures
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)


def watch_signals() -> int:
    """A descriptor that becomes readable when a child ends or someone asks the guard to end."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray blocks SIGINT in its actors, and masks are inherited
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reading


def become_main(guard: int) -> None:  # pragma: no cover - runs where nothing measures
    """Between fork and exec: own group, default signals, and dead as soon as the guard is."""
    os.setpgid(0, 0)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):  # signals that the C library keeps for itself
            signal.signal(number, signal.SIG_DFL)
    # PDEATHSIG fires when the *thread* that forked exits: the guard has only its main thread.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != guard:  # it died before the line above
        os._exit(1)


def start(order: dict[str, Any]) -> int:
    """Start the main process.

    Raises:
        OSError: it cannot be started.
    """
    prepare = functools.partial(become_main, os.getpid())
    process = subprocess.Popen(order["argv"], cwd=order["cwd"], stdin=subprocess.DEVNULL, preexec_fn=prepare)
    process.returncode = 0  # reaped by the tree, not by subprocess
    return process.pid


def watched(creator: int, started: str) -> int | None:
    """A descriptor that becomes readable when the creator dies; ``None`` where the kernel has none (before 5.3).

    Raises:
        ProcessLookupError: it is dead already.
    """
    try:
        descriptor = os.pidfd_open(creator)
    except ProcessLookupError:
        raise
    except OSError:
        return None
    stat = Path(f"/proc/{creator}/stat").read_bytes()
    if stat[stat.rindex(b")") + 2 :].split()[19].decode() != started:
        raise ProcessLookupError(errno.ESRCH, "another process has the creator's pid", str(creator))
    return descriptor


def wait_for_reason(tree: Tree, control: int, creator: int | None) -> float:
    """Wait until the tree must end; the grace it gets, in seconds."""
    sources = [control, tree.wakeup] + ([creator] if creator is not None else [])
    while True:
        ready, _, _ = select.select(sources, [], [])
        signals = drain(tree.wakeup)
        tree.reap()
        if tree.ended or creator in ready:
            return ORPHAN_GRACE_S
        if control in ready:
            words = os.read(control, 4096).split()
            return float(words[1]) if words else ORPHAN_GRACE_S
        if set(signals) & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
            return ORPHAN_GRACE_S


def supervise(order: dict[str, Any], control: int, status: int) -> None:
    wakeup = watch_signals()
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    tree = Tree(0, status, wakeup)
    try:
        creator = watched(order["creator"], order["started"])
        tree.pid = start(order)
    except OSError as error:
        tree.report(error=f"{error.strerror}: {error.filename or order['argv'][0]}")
        return
    tree.report(pid=tree.pid)
    grace_s = wait_for_reason(tree, control, creator)
    left = tree.end(grace_s)
    if order["scratch"]:
        shutil.rmtree(order["scratch"], ignore_errors=True)
    tree.report(left=left)


def main() -> None:  # pragma: no cover - runs where nothing measures
    control, status = int(sys.argv[1]), int(sys.argv[2])
    daemonise()
    with open(control, "rb", buffering=0, closefd=False) as pipe:
        order = json.loads(pipe.readline())
    supervise(order, control, status)
    os._exit(0)


if __name__ == "__main__":  # pragma: no cover
    main()
