"""A scripted Kubernetes API: each path answers from a list, watches send what a test puts in."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """Break the connection instead."""


DROPPED = Answer(drop=True)


def refusal(status: int, message: str, reason: str = "", **headers: str) -> Answer:
    body = {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": status}
    return Answer(status, body, headers)


class Watch:
    """An open watch as the server sees it."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._lines: queue.SimpleQueue[str | bytes | None] = queue.SimpleQueue()

    def send(self, change: str, thing: Any) -> None:
        self._lines.put(json.dumps({"type": change, "object": thing}) + "\n")

    def raw(self, data: bytes) -> None:
        self._lines.put(data)

    def end(self) -> None:
        self._lines.put(None)

    def drop(self) -> None:
        self._lines.put("")

    def __iter__(self) -> Iterator[str | bytes]:
        while (line := self._lines.get()) is not None:
            yield line


class ApiStub:
    """Answers of a path are used up in turn, the last one stays. ``watches`` are those that were opened."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], list[Answer | Callable[[Asked], Answer]]] = {}
        self.asked: list[Asked] = []
        self.watches: queue.SimpleQueue[Watch] = queue.SimpleQueue()
        self.open: list[Watch] = []
        self.url = ""

    def on(self, method: str, path: str, *answers: Answer | Callable[[Asked], Answer]) -> None:
        self.answers[method, path] = list(answers)

    def next_watch(self) -> Watch:
        return self.watches.get(timeout=20)

    def requests(self, method: str = "GET", path: str = "") -> list[Asked]:
        return [a for a in list(self.asked) if a.method == method and a.path == path]

    def kubeconfig(self, path: Path, token: str = "secret") -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path


@contextmanager
def serve() -> Iterator[ApiStub]:
    stub = ApiStub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _serve(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            asked = Asked(self.command, url.path, dict(parse_qsl(url.query)), body, dict(self.headers))
            stub.asked.append(asked)
            answers = stub.answers.get((self.command, url.path))
            if asked.query.get("watch") and (self.command, url.path + "?watch") not in stub.answers:
                return self._watch(asked)
            answers = stub.answers.get((self.command, url.path + "?watch")) if asked.query.get("watch") else answers
            if not answers:
                return self._answer(refusal(404, f"{url.path} not found", "NotFound"))
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self._answer(answer if isinstance(answer, Answer) else answer(asked))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

        def _answer(self, answer: Answer) -> None:
            if answer.drop:
                self.close_connection = True
                return
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(data))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def _watch(self, asked: Asked) -> None:
            watch = Watch(asked)
            self.close_connection = True
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            stub.open.append(watch)
            stub.watches.put(watch)
            for line in watch:
                if not line:
                    return
                data = line if isinstance(line, bytes) else line.encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stub
    finally:
        for watch in stub.open:
            watch.end()
        server.shutdown()
        thread.join()
        server.server_close()
