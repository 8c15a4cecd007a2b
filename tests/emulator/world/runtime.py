"""The container runtime: one process that starts, signals and ends the containers of all nodes.

It reads orders as JSON lines from its standard input and answers with facts on its standard output. Engines are
forked from it, so that a pod starts in milliseconds. When its input ends, because the test process has ended in any
way at all, it kills every container, removes the folders in its arguments and ends as well; when it is killed itself,
the kernel kills its containers.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from tests.emulator.engine import __main__ as engine
from tests.emulator.engine import router

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
BUILT_IN = {"sglang": engine.main, "vllm": engine.main, "router": router.main}
"""Programs that are forked instead of executed, by the first word of a command."""
Order = Mapping[str, Any]


def main() -> None:
    """Work until the input ends."""
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    running: dict[int, str] = {}
    unread = b""
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(running)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                _obey(json.loads(line), running)
    for pid in running:
        _signal(pid, signal.SIGKILL)
    for pid in running:
        os.waitpid(pid, 0)
    for folder in sys.argv[1:]:
        shutil.rmtree(folder, ignore_errors=True)


def _obey(order: Order, running: dict[int, str]) -> None:
    if order["do"] == "signal":
        for pid, name in list(running.items()):
            if name == order["id"]:
                _signal(pid, order["signal"])
        return
    pid = os.fork()
    if pid == 0:
        _be(order)
    running[pid] = order["id"]
    _tell({"id": order["id"], "pid": pid})


def _be(order: Order) -> None:
    """In the child: become the container's process; never returns."""
    code = 1
    try:
        parent = os.getppid()
        os.setsid()
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _redirect(order["log"])
        os.chdir(order["cwd"])
        code = _run(order["argv"], order["env"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (nothing of the runtime may go on in the child)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 256)


def _run(argv: list[str], environment: dict[str, str]) -> int:
    if argv[0] in BUILT_IN:
        os.environ.clear()
        os.environ.update(environment)
        BUILT_IN[argv[0]](argv, environment)
        return 0
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        sys.stderr.write(f"exec: {argv[0]}: {error.strerror}\n")
        return 127


def _reap(running: dict[int, str]) -> None:
    """Report the containers that have ended, and end what their main process left behind."""
    for pid in list(running):
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            continue
        _signal(pid, signal.SIGKILL)  # the group; its number is not given away while the leader is not reaped
        os.waitpid(pid, 0)
        killed = ended.si_code != os.CLD_EXITED
        code = 128 + ended.si_status if killed else ended.si_status
        _tell({"id": running.pop(pid), "exit": code})


def _signal(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        # Not yet a leader of its group.
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
    except PermissionError:
        return


def _tell(fact: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(fact).encode() + b"\n")


if __name__ == "__main__":
    main()
