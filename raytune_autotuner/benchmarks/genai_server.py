"""A preloaded genai-bench that is shared by all trials on a machine.

Importing genai-bench and loading a tokenizer take some 13 CPU-seconds, writing its plots as many again. So one process
does the first once, and forks a child for every command (``genai_fork``); the second never lies on our path, since
a command measures one load and is killed once the result is there. ``GenaiServer`` owns that process, ``Command``
is one command in it; any process on the machine may connect.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raytune_autotuner.benchmarks import genai_fork
from raytune_autotuner.benchmarks.genai_fork import Order, short_address
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.processes import OwnedProcess

SOCKET_NAME = "genai.sock"
BIND_TIMEOUT_S = 20.0
"""From the start of the process until it listens; loading comes after and is not bounded here."""
KILL_TIMEOUT_S = 10.0
EXIT_TIMEOUT_S = 5.0
"""From the end of the process's socket until its exit is known."""

# fmt: off
KEPT_VARIABLES = frozenset((
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE",
    "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE",
))
# fmt: on
HUB_VARIABLES = frozenset(("HF_TOKEN", "HTTPS_PROXY", "https_proxy"))
"""Passed on only when the tokenizer has to come from a hub."""


def environment(tokenizer: str, source: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: an allow-list, because genai-bench writes what it finds there into its files."""
    local = Path(tokenizer).exists()
    kept = KEPT_VARIABLES if local else KEPT_VARIABLES | HUB_VARIABLES
    chosen = {name: value for name, value in source.items() if name in kept or name.startswith("LC_")}
    package = str(Path(__file__).resolve().parents[2])
    chosen["PYTHONPATH"] = os.pathsep.join(filter(None, (package, source.get("PYTHONPATH"))))
    chosen |= {"ENABLE_UI": "false", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return chosen | ({"HF_HUB_OFFLINE": "1"} if local else {})


class GenaiServer:
    """Owns the server process: it ends, with its children, at ``close`` or when the process that started it dies.

    Its log stands beside its folder, which is removed at its end, so that the reason for that end can be told.
    """

    def __init__(self, tokenizer: str, scratch: Path, owner: str = "genai-bench") -> None:
        self.scratch = scratch
        self.socket = scratch / SOCKET_NAME
        scratch.mkdir(parents=True, mode=0o700)
        command = [sys.executable, "-m", genai_fork.__name__, "--socket", str(self.socket), "--tokenizer", tokenizer]
        self._process = OwnedProcess(
            command,
            log=_log(self.socket),
            env=environment(tokenizer, os.environ),
            owner=owner,
            cwd=scratch,
            scratch=scratch,
        )

    @classmethod
    def start(cls, tokenizer: str, scratch: Path, owner: str = "genai-bench") -> GenaiServer:
        """Start a server in the new folder ``scratch``; returns before it has loaded anything."""
        return cls(tokenizer, scratch.resolve(), owner)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait until genai-bench and the tokenizer are loaded.

        Raises:
            EnvironmentFault: they cannot be loaded here (no such tokenizer, genai-bench not installed).
            TransientError: the deadline passed.
        """
        try:
            connect(self.socket, deadline).close()
        except TransientError as error:
            ended = deadline.sooner(EXIT_TIMEOUT_S)
            while self._process.poll() is None:
                if ended.expired:
                    raise
                time.sleep(0.02)
            raise EnvironmentFault(f"genai-bench cannot be loaded:\n{log_tail(_log(self.socket))}") from error

    def close(self) -> None:
        """End the server, every command it runs, and its folder. Idempotent."""
        self._process.stop(grace_s=1.0)
        _log(self.socket).unlink(missing_ok=True)


def _log(socket_path: Path) -> Path:
    return socket_path.parent.with_name(f"{socket_path.parent.name}.log")


def log_tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log; says so when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(no log: {error})"


class Command:
    """A genai-bench command running in a forked child; a context manager that kills it on the way out.

    Raises:
        TransientError: no server there, or it ended.
    """

    def __init__(self, path: Path, order: Order, deadline: Deadline) -> None:
        self._connection = connect(path, deadline)
        self._code: int | None = None
        self._connection.sendall(json.dumps(asdict(order)).encode() + b"\n")

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self, timeout_s: float = 0.0) -> int | None:
        """The exit code, waiting for it at most ``timeout_s``; ``None`` while the command runs."""
        if self._code is None and select.select([self._connection], [], [], timeout_s)[0]:
            self._code = int(_receive(self._connection)["rc"])
        return self._code

    def close(self) -> None:
        """Kill the command unless it has ended; returns when it is gone. Idempotent."""
        with contextlib.suppress(OSError, TransientError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(KILL_TIMEOUT_S)
            if self._code is None:
                self._code = int(_receive(self._connection)["rc"])
        self._connection.close()


def answers(path: Path) -> bool:
    """Whether a server listens there, or is about to: it may still be loading."""
    try:
        _dial(path, Deadline.after(BIND_TIMEOUT_S)).close()
    except TransientError:
        return False
    return True


def connect(path: Path, deadline: Deadline) -> socket.socket:
    """A connection to a server that has loaded everything.

    Raises:
        TransientError: there is none, it ended while loading, or the deadline passed.
    """
    connection = _dial(path, deadline.sooner(BIND_TIMEOUT_S))
    try:
        connection.settimeout(max(0.001, deadline.remaining()))
        _receive(connection)
        connection.settimeout(None)
    except TransientError as error:
        connection.close()
        raise TransientError(f"{error}\n{log_tail(_log(path))}") from error
    return connection


def _dial(path: Path, deadline: Deadline) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_address(path) as address:
                connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            starting = isinstance(error, FileNotFoundError) and path.parent.is_dir()
            if not starting or deadline.expired:
                raise TransientError(f"no genai-bench server at {path}: {error}") from error
        time.sleep(0.02)


def _receive(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        try:
            part = connection.recv(1)
        except OSError as error:
            raise TransientError(f"the genai-bench server does not answer: {error}") from error
        if not part:
            raise TransientError("the genai-bench server ended")
        data += part
    return dict(json.loads(data))
