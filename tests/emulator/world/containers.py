"""The test process's side of the container runtime, and of the proxy behind Services."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
END_TIMEOUT_S = 20.0
Ended = Callable[[int], None]


class Helper:
    """A process of ours that takes JSON lines and ends, with all that it holds, when its input does."""

    def __init__(self, module: str, hear: Callable[[Mapping[str, Any]], None], *words: str) -> None:
        self._hear = hear
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what is typed into a terminal is not for it
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
        self._thread = threading.Thread(target=self._listen, name=module, daemon=True)
        self._thread.start()

    def tell(self, order: Mapping[str, Any]) -> None:
        """Raises BrokenPipeError when the process has ended."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """End it and wait; idempotent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            if not self._process.stdin.closed:
                self._process.stdin.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._hear(json.loads(line))


class Containers:
    """Starts and signals processes; ``ended`` is called in a thread of its own with the exit code.

    The folder goes with the last of them, also when this process is killed.
    """

    def __init__(self, folder: Path) -> None:
        self._ended: dict[str, Ended] = {}
        self._pids: dict[str, int] = {}
        self._helper = Helper("tests.emulator.world.runtime", self._hear, str(folder))

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path, ended: Ended) -> None:
        self._ended[name] = ended
        order = {"do": "start", "id": name, "argv": list(argv), "env": dict(env), "log": str(log), "cwd": str(cwd)}
        self._helper.tell(order)

    def signal(self, name: str, number: int) -> None:
        """To the main process of a container and all in its group; one that has ended is none the worse."""
        self._helper.tell({"do": "signal", "id": name, "signal": number})

    def pids(self) -> dict[str, int]:
        """The main processes of the running containers."""
        return dict(self._pids)

    def stop(self) -> None:
        self._helper.stop()

    def _hear(self, fact: Mapping[str, Any]) -> None:
        name = fact["id"]
        if "pid" in fact:
            self._pids[name] = fact["pid"]
            return
        self._pids.pop(name, None)
        self._ended.pop(name)(fact["exit"])
