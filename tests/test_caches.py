"""Telling an engine to forget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.caches import reset
from raytune_autotuner.engines.engine import CacheReset, load_engine

WAY = CacheReset(path="/flush_cache", hint="set a switch")


class Server(ThreadingHTTPServer):
    """Answers POST with these codes in turn, the last one for ever."""

    def __init__(self, *codes: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes = list(codes)
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        code = self.server.codes[min(len(self.server.asked), len(self.server.codes) - 1)]
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving(*codes: int) -> Iterator[Server]:
    with Server(*codes) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def test_a_cache_is_emptied_with_the_key() -> None:
    """One request, which carries the key that all requests carry."""
    with serving(200) as server:
        assert reset(f"{server.url}/", WAY, "k", Deadline.after(30)) is None
        assert server.asked == [("/flush_cache", "Bearer k")]


def test_a_busy_engine_is_asked_again() -> None:
    """SGLang refuses while a request is in flight."""
    with serving(400, 503, 200) as server:
        assert reset(server.url, WAY, None, Deadline.after(30)) is None
        assert [key for _, key in server.asked] == [None] * 3


def test_an_engine_that_stays_busy_is_told_as_such() -> None:
    """When the deadline is over, with its last answer."""
    with serving(400) as server:
        assert reset(server.url, WAY, None, Deadline.after(0.6)) == "POST /flush_cache: HTTP 400"
        assert len(server.asked) > 1


@pytest.mark.parametrize("code", [401, 404, 405, 501])
def test_an_engine_that_cannot_is_asked_once(code: int) -> None:
    """What it lacks now it lacks a second later; the engine file's hint says what to do."""
    with serving(code) as server:
        assert reset(server.url, WAY, None, Deadline.after(30)) == f"POST /flush_cache: HTTP {code} (set a switch)"
        assert len(server.asked) == 1


def test_nobody_there_is_a_reason_too() -> None:
    """It never raises: the load that follows will tell what has become of the engine."""
    with serving(200) as server:
        url = server.url
    assert reset(url, WAY, None, Deadline.after(0.1)) == "POST /flush_cache: ConnectionError"


def test_engines_that_can_say_so() -> None:
    """As data in their files."""
    ways = {name: load_engine(name).cache_reset for name in ("sglang", "vllm", "llamacpp")}
    assert {name: way.path if way else None for name, way in ways.items()} == {
        "sglang": "/flush_cache",
        "vllm": "/reset_prefix_cache",
        "llamacpp": None,
    }
