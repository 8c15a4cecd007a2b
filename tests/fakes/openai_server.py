"""An OpenAI-compatible server without a model: it streams words at a given pace.

Runs in a thread of a test (``FakeServer``) or as an engine that is ready at once
(``python -m tests.fakes.openai_server --port N``; options it does not know are ignored, as an engine's own).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, cast


@dataclass(frozen=True)
class Behaviour:
    """How the server answers; the pace is kept to an absolute schedule, so that it does not drift."""

    model: str = "fake"
    api_key: str = ""
    """Requests without it are refused with 401; the message shows what was sent, as careless servers do."""
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    error_share: float = 0.0
    """This share of the completions fails, spread evenly (0.5: every second one)."""
    error_code: int = 500
    hang_after: int = -1
    """Completions after this many never end; -1 = none."""
    empty: bool = False
    """Answers carry usage but no content."""
    dialect: str = ""
    """Answers that are asked for as a whole repeat the prompt; with a dialect all say the same."""
    tokens: int = 0
    """Tokens of every answer; 0 = as many as are asked for."""


class FakeServer(ThreadingHTTPServer):
    """Listens on a free loopback port from its construction on; a context manager that always ends it."""

    daemon_threads = True
    request_queue_size = 1024
    block_on_close = False

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0, host: str = "127.0.0.1") -> None:
        super().__init__((host, port), _Handler)
        self.behaviour = behaviour or Behaviour()
        self.ended = threading.Event()
        self.bodies: list[dict[str, Any]] = []
        """Every completion's request body, in order of arrival."""
        self.failed = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def admit(self, body: dict[str, Any]) -> tuple[int, bool]:
        """Count a completion: its number from 1, and whether it is one of those that fail."""
        with self._lock:
            self.bodies.append(body)
            number = len(self.bodies)
            fails = int(number * self.behaviour.error_share) > int((number - 1) * self.behaviour.error_share)
            self.failed += fails
            return number, fails

    def stop(self) -> None:
        """Stop listening and let go of every request that hangs. Idempotent."""
        self.ended.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are expected."""

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeServer]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stop()
            thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # chunked transfer encoding and connections that stay open
    wbufsize = 0
    disable_nagle_algorithm = True
    routes: ClassVar[dict[str, str]] = {
        "/v1/chat/completions": "chat",
        "/v1/embeddings": "embeddings",
        "/v1/rerank": "rerank",
    }

    @property
    def fake(self) -> FakeServer:
        return cast(FakeServer, self.server)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.path == "/metrics":
            count, failed = len(self.fake.bodies), self.fake.failed
            self.answer_text(200, f"fake:requests_total {count}\nfake:failures_total {failed}\n", "text/plain")
        elif not self.authorised():
            return
        elif self.path in ("/v1/models", "/props"):
            self.answer(200, {"object": "list", "data": [{"id": self.fake.behaviour.model, "object": "model"}]})
        else:
            self.refuse(404, f"no such path: {self.path}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        route = self.routes.get(self.path)
        if route is None:
            return self.refuse(404, f"no such path: {self.path}")
        if not self.authorised():
            return None
        number, fails = self.fake.admit(body)
        if 0 <= self.fake.behaviour.hang_after < number:
            self.fake.ended.wait()
            return None
        if fails:
            return self.refuse(self.fake.behaviour.error_code, "the fake fails as told")
        getattr(self, route)(body)
        return None

    def authorised(self) -> bool:
        expected, sent = self.fake.behaviour.api_key, self.headers.get("Authorization", "")
        if expected and sent != f"Bearer {expected}":
            self.refuse(401, f"not the key: {sent}")
            return False
        return True

    def chat(self, body: dict[str, Any]) -> None:
        behaviour, start = self.fake.behaviour, time.monotonic()
        count = behaviour.tokens or int(body.get("max_tokens") or 16)
        if body.get("stream") is False:
            prompt = str(body["messages"][-1]["content"])
            words = f"{behaviour.dialect} nothing to say" if behaviour.dialect else f"you asked: {prompt}"
            return self.answer(200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": words}}]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index in range(count):
            self.sleep_until(start + behaviour.ttft_s + index * behaviour.tpot_s)
            delta = {} if behaviour.empty else {"content": "word "}
            self.chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        self.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        prompt = len(str(body.get("messages", [{}])[-1].get("content", "")).encode())
        usage = {"prompt_tokens": prompt, "completion_tokens": 0 if behaviour.empty else count}
        self.chunk({"choices": [], "usage": {**usage, "total_tokens": sum(usage.values())}})
        self.raw_chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def embeddings(self, body: dict[str, Any]) -> None:
        time.sleep(self.fake.behaviour.ttft_s)
        tokens = sum(len(text.split()) for text in body["input"])
        data = [{"index": index, "embedding": [0.0]} for index in range(len(body["input"]))]
        self.answer(200, {"data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})

    def rerank(self, body: dict[str, Any]) -> None:
        time.sleep(self.fake.behaviour.ttft_s)
        tokens = sum(len(text.split()) for text in [body["query"], *body["documents"]])
        results = [{"index": index, "relevance_score": 0.5} for index in range(len(body["documents"]))]
        self.answer(200, {"results": results, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})

    def sleep_until(self, at: float) -> None:
        time.sleep(max(0.0, at - time.monotonic()))

    def chunk(self, event: dict[str, Any]) -> None:
        self.raw_chunk(f"data: {json.dumps({**event, 'model': self.fake.behaviour.model})}\n\n".encode())

    def raw_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def refuse(self, code: int, message: str) -> None:
        self.answer(code, {"error": {"message": message, "code": code}})

    def answer(self, code: int, body: dict[str, Any]) -> None:
        self.answer_text(code, json.dumps(body), "application/json")

    def answer_text(self, code: int, text: str, kind: str) -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    for field in fields(Behaviour):
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    options = vars(parser.parse_known_args()[0])
    options["api_key"] = options["api_key"] or os.environ.get("FAKE_API_KEY", "")
    server = FakeServer(port=options.pop("port"), host=options.pop("host"), behaviour=Behaviour(**options))
    signal.signal(signal.SIGTERM, lambda *_: server.ended.set())
    with server.running():
        server.ended.wait()


if __name__ == "__main__":
    main()
