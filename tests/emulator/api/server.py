"""The API over HTTP and HTTPS, on one port of the loopback."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.emulator.api import rbac, tls
from tests.emulator.api.controllers import Controllers, established
from tests.emulator.api.crds import load_crds
from tests.emulator.api.errors import ApiError
from tests.emulator.api.faults import Faults
from tests.emulator.api.kinds import CRD
from tests.emulator.api.objects import copied
from tests.emulator.api.pods import PodHooks
from tests.emulator.api.requests import Request, Response, Stream, Upgrade, refuse
from tests.emulator.api.rest import Rest
from tests.emulator.api.store import Store

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
TLS_HELLO = 0x16


class ApiServer:
    """A Kubernetes API of its own, empty but for what every cluster has and the CRDs in a folder.

    Plain HTTP at ``url``; at ``tls_url``, the same port, HTTPS for clients that send tokens over nothing else.
    """

    def __init__(self, crds: Path | None = None, gc_lag_s: float = 0.0) -> None:
        self.store = Store()
        self.faults = Faults()
        self.hooks = PodHooks()
        self.rest = Rest(self.store, self.faults, self.hooks)
        self.controllers = Controllers(self.store, gc_lag_s)
        for name in NAMESPACES:
            self.store.create("namespaces", {"metadata": {"name": name}})
        rbac.bootstrap(self.store)
        for crd in load_crds(crds) if crds else ():
            self.add_crd(crd)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.rest = self.rest
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="emulated API server"
        )

    def add_crd(self, crd: dict[str, Any]) -> None:
        """Serve a custom resource from now on, without the wait that a CRD sent over HTTP has."""
        served = established(copied(crd))
        self.store.create(CRD, served)
        self.store.patch(CRD, served["metadata"]["name"], {"status": served["status"]}, subresource="status")

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def admin_token(self) -> str:
        return self.rest.authenticator.admin_token

    def token(self, account: str, namespace: str) -> str:
        """A token of a service account; what it may is up to the bindings in the store."""
        return self.rest.authenticator.issue(rbac.service_account(namespace, account))

    def kubeconfig(
        self, path: Path, token: str | None = None, namespace: str = "default", *, plain: bool = False
    ) -> Path:
        """Write a kubeconfig for a token (the administrator's by default), over HTTPS unless ``plain``."""
        authority = {"certificate-authority-data": base64.b64encode(tls.certificate()[0]).decode()}
        cluster = {"server": self.url} if plain else {"server": self.tls_url} | authority
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "emulated",
            "clusters": [{"name": "emulated", "cluster": cluster}],
            "users": [{"name": "emulated", "user": {"token": token or self.admin_token}}],
            "contexts": [
                {"name": "emulated", "context": {"cluster": "emulated", "user": "emulated", "namespace": namespace}}
            ],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def start(self) -> ApiServer:
        self.controllers.start()
        self._thread.start()
        return self

    def stop(self) -> None:
        """End all requests, watches and forwards; no thread is left."""
        self.store.close()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()
        self.controllers.stop()

    def __enter__(self) -> ApiServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    """Keeps its connections, to end them; joins their threads when it closes."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 256
    rest: Rest

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._ending = False

    def note(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
            if self._ending:
                _shut(connection)

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def hang_up(self) -> None:
        with self._lock:
            self._ending = True
            for connection in self._open:
                _shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is no error; anything else is told."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS or not: no goodbye that could block


class _Handler(BaseHTTPRequestHandler):
    """One connection: requests one after the other, until an answer takes it over."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        plain = self.request
        self.server.note(plain)
        try:
            self.request = _secured(plain)
        finally:
            self.server.forget(plain)
        self.server.note(self.request)
        super().setup()

    def finish(self) -> None:
        self.server.forget(self.request)
        with contextlib.suppress(OSError, ValueError):
            super().finish()
        if isinstance(self.request, ssl.SSLSocket):  # the plain socket below it is the server's to close
            self.request.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def _handle(self) -> None:
        body = self._body()
        try:
            request = Request(self.command, self.path, self.headers, body)  # type: ignore[arg-type]
            answer = self.server.rest.answer(request)
        except ApiError as error:
            answer = refuse(error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            traceback.print_exc()  # a request of a shape that nobody thought of, or a fault in here
            answer = refuse(ApiError(500, f"Internal error occurred: {error!r}"))
        if isinstance(answer, Response):
            self._send(answer)
        elif isinstance(answer, Stream):
            self._stream(answer)
        else:
            self._hand_over(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, answer: Response) -> None:
        self._head(answer.code, answer.content_type, answer.headers | {"Content-Length": str(len(answer.body))})
        self.send(self._header_text() + (b"" if self.command == "HEAD" else answer.body))

    def _head(self, code: int, content_type: str, headers: dict[str, str]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        for key, value in headers.items():
            self.send_header(key, value)

    def _header_text(self) -> bytes:
        """The headers so far, to go out in one piece with what follows."""
        text = b"".join(self._headers_buffer) + b"\r\n"
        self._headers_buffer: list[bytes] = []
        return text

    def _stream(self, answer: Stream) -> None:
        """Send chunks as they come; ends when the client has left or the answer breaks off."""
        self._head(200, answer.content_type, {"Transfer-Encoding": "chunked"})
        self.send(self._header_text())
        keep, self.close_connection = self.close_connection, True
        try:
            for chunk in answer.chunks:
                if chunk:
                    self.send(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                elif self._has_left():
                    return
            self.send(b"0\r\n\r\n")
            self.close_connection = keep
        except OSError:
            return
        finally:
            answer.chunks.close()  # type: ignore[attr-defined]

    def _has_left(self) -> bool:
        """The client of a stream has nothing more to say: anything that comes is its goodbye."""
        return bool(select.select([self.connection], [], [], 0)[0])

    def _hand_over(self, answer: Upgrade) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            answer.serve(self)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def hang_up(self) -> None:
        _shut(self.connection)


def _secured(connection: socket.socket) -> socket.socket:
    """TLS when the client begins with it."""
    first = connection.recv(1, socket.MSG_PEEK)
    if not first or first[0] != TLS_HELLO:
        return connection
    with contextlib.suppress(ssl.SSLError):
        return tls.context().wrap_socket(connection, server_side=True)
    raise ConnectionAbortedError("no TLS after all")
