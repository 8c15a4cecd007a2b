"""The genai-bench process: it loads everything once and forks one child for every command.

Run by ``genai_server.GenaiServer`` (``python -m raytune_autotuner.benchmarks.genai_fork``). Nothing else may import
genai_bench: that import patches the sockets and threads of its whole process.

The protocol, one JSON object a line over a unix socket: the server says ``{"ready": true}`` when it has loaded
everything, takes one ``Order`` and says ``{"rc": n}`` when the command has ended. Closing the connection kills it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import inspect
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REQUESTS = "requests.jsonl"
"""In the working directory: a line for each request of a load, as it ends."""


@dataclass(frozen=True)
class Order:
    """One genai-bench command: what the child runs, and what must not stand in its arguments."""

    argv: tuple[str, ...]
    folder: str
    """Working directory."""
    output: str
    """File for standard output and error."""
    api_key: str | None = field(default=None, repr=False)
    ignore_eos: bool | None = None
    """What requests carry; genai-bench would ask on the terminal, and then send its own choice."""


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """The path by way of an open folder: the address of a unix socket has room for 107 bytes only."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass
class Session:
    """One connection and the child that runs its command."""

    connection: int
    received: bytes = b""
    pid: int | None = None
    pidfd: int | None = None


class Server:
    """The accept loop. It uses none of the functions that genai-bench's import patches: a fork must leave the child
    no half-used event loop behind."""

    def __init__(self, path: Path) -> None:
        self.fork, self.waitpid, self.poller = os.fork, os.waitpid, select.poll()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = path.with_suffix(".new")
        with short_address(fresh) as address:
            self.listener.bind(address)
        self.listener.listen(128)
        fresh.rename(path)  # whoever finds it by its name is not refused, as between these two
        self.sessions: dict[int, Session] = {}
        """By connection, and by pidfd while a child runs."""

    def serve(self) -> Order:
        """Serve for good. Returns in a forked child only, with what it has to run."""
        self.poller.register(self.listener, select.POLLIN)
        while True:
            for descriptor, _ in self.poller.poll():
                session = self.sessions.get(descriptor)
                if descriptor == self.listener.fileno():
                    self.accept()
                elif session is None:
                    continue  # ended by an event before this one
                elif descriptor == session.pidfd:
                    self.reap(session)
                elif (order := self.read(session)) and self.launch(session, order):
                    return order

    def accept(self) -> None:
        # Not accept(): by now it would make one of gevent's sockets.
        connection, _ = self.listener._accept()  # type: ignore[attr-defined]
        os.set_blocking(connection, False)
        self.sessions[connection] = Session(connection)
        self.poller.register(connection, select.POLLIN)
        _send(connection, ready=True)

    def read(self, session: Session) -> Order | None:
        try:
            data = os.read(session.connection, 65536)
        except BlockingIOError:
            return None
        except ConnectionError:
            data = b""
        if not data:
            self.abandon(session)
        session.received += data
        if session.pid is not None or not session.received.endswith(b"\n"):
            return None
        return Order(**json.loads(session.received))

    def abandon(self, session: Session) -> None:
        """The client has gone or wants no more: kill its command, which then ends the session."""
        self.poller.unregister(session.connection)
        if session.pid is None:
            del self.sessions[session.connection]
            os.close(session.connection)
        else:
            _kill(session.pid)

    def launch(self, session: Session, order: Order) -> bool:
        """Fork; true in the child."""
        server = os.getpid()
        session.received = b""
        session.pid = self.fork()
        if session.pid == 0:
            self.leave(server)
            return True
        session.pidfd = os.pidfd_open(session.pid)
        self.sessions[session.pidfd] = session
        self.poller.register(session.pidfd, select.POLLIN)
        return False

    def leave(self, server: int) -> None:  # pragma: no cover - in a child that is killed, tested from outside
        """In the child: a session of its own, dead when the server is, without the server's descriptors."""
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != server:
            os._exit(1)
        self.listener.detach()
        for descriptor in self.sessions:
            os.close(descriptor)

    def reap(self, session: Session) -> None:
        assert session.pid is not None
        assert session.pidfd is not None
        _kill(session.pid)  # what the child may have left in its process group
        _, status = self.waitpid(session.pid, 0)
        _send(session.connection, rc=os.waitstatus_to_exitcode(status))
        for descriptor in (session.pidfd, session.connection):
            with contextlib.suppress(KeyError):
                self.poller.unregister(descriptor)
            del self.sessions[descriptor]
            os.close(descriptor)


def _send(connection: int, **message: Any) -> None:
    with contextlib.suppress(OSError):  # the client has gone
        os.write(connection, json.dumps(message).encode() + b"\n")


def _kill(pid: int) -> None:
    """The child's group, and the child itself in case it has not made its group yet."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def run(program: Any, order: Order) -> None:  # pragma: no cover - in a child that is killed, tested from outside
    """Run genai-bench's own command in this process, which is a child of the server."""
    importlib.import_module("gevent").reinit()
    os.chdir(order.folder)
    redirect(order.output)
    if order.api_key is not None:
        substitute_key(program.UnifiedAuthFactory, order.api_key)
    if order.ignore_eos is not None:
        pin_ignore_eos(importlib.import_module("genai_bench.user.openai_user").OpenAIUser, order.ignore_eos)
    count_unusable_answers(program, importlib.import_module("genai_bench.protocol").UserResponse)
    collecting = importlib.import_module("genai_bench.metrics.aggregated_metrics_collector")
    write_requests(collecting.AggregatedMetricsCollector, Path(order.folder) / REQUESTS)
    sys.argv = ["genai-bench"]
    program.cli.main(args=list(order.argv), prog_name="genai-bench")


def redirect(output: str) -> None:  # pragma: no cover - see above
    """Standard input from nothing, so that no question waits for an answer; output and errors into the file."""
    sys.stdout.flush()
    for descriptor, target, flags in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY | os.O_CREAT)):
        opened = os.open(target, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)


def substitute_key(factory: Any, api_key: str) -> None:
    """Hand the key to what builds the request headers only: genai-bench logs and stores every option it is given."""
    create = factory.create_model_auth

    def create_model_auth(provider: str, **options: Any) -> Any:
        return create(provider, **{**options, "api_key": api_key})

    factory.create_model_auth = staticmethod(create_model_auth)


def pin_ignore_eos(user: Any, value: bool) -> None:
    """Send the user's value wherever genai-bench sends one (its text sampler overwrites the user's)."""
    send = user.send_request

    def send_request(self: Any, stream: bool, endpoint: str, payload: dict[str, Any], *rest: Any) -> Any:
        pinned = {"ignore_eos": value} if "ignore_eos" in payload else {}
        return send(self, stream, endpoint, {**payload, **pinned}, *rest)

    user.send_request = send_request


def count_unusable_answers(program: Any, response: Any) -> None:
    """Record an answer that genai-bench cannot parse as a failed request.

    It only logs it, so that a server with nothing but empty answers would neither fail nor ever reach the number of
    requests that ends a run.
    """
    make = program.Environment

    def record(user_instance: Any, exception: BaseException, **_: Any) -> None:
        user = getattr(user_instance, "user", user_instance)
        user.collect_metrics(response(status_code=-1, error_message=f"unusable answer: {exception}"), "answer")

    def environment(**options: Any) -> Any:
        made = make(**options)
        made.events.user_error.add_listener(record)
        return made

    program.Environment = environment


FIELDS = {
    "ttft": "ttft",
    "tpot": "tpot",
    "e2e": "e2e_latency",
    "input": "num_input_tokens",
    "output": "num_output_tokens",
    "error": "error_code",
}
"""Of a request's line, by genai-bench's names; times are in seconds."""


def write_requests(collector: Any, path: Path) -> None:
    """Write a line for each request as it ends, with the time and what this process has used of the CPU by then.

    genai-bench tells nothing of a load before its end, and not when its requests ended.
    """
    add = collector.add_single_request_metrics
    stream = path.open("a", buffering=1)

    def add_single_request_metrics(self: Any, metrics: Any) -> None:
        add(self, metrics)
        row = {name: getattr(metrics, theirs) for name, theirs in FIELDS.items()}
        stream.write(json.dumps({"at": time.monotonic(), "cpu": time.process_time(), **row}) + "\n")

    collector.add_single_request_metrics = add_single_request_metrics


def preload(program: Any, tokenizer: str) -> None:
    """Load what is loaded on first use; the tokenizer for good, in the place where genai-bench loads it."""
    load = program.validate_tokenizer
    loaded = load(tokenizer)
    loaded.encode("loads what is loaded on first use")
    program.validate_tokenizer = lambda name: loaded if name == tokenizer else load(name)
    # locust asks for the stack when it ends a run, which takes 0.2 s the first time, with thousands of modules loaded.
    # Requests then in flight would be measured that much too long.
    inspect.stack()
    gc.freeze()


def main() -> None:  # pragma: no cover - a process of its own, tested from outside
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    options = parser.parse_args()
    server = Server(options.socket)
    program = importlib.import_module("genai_bench.cli.cli")
    preload(program, options.tokenizer)
    run(program, server.serve())


if __name__ == "__main__":
    main()
