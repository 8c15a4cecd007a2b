"""Requests to a Kubernetes API server: connection, one retry policy, our own errors.

The only module that imports the official client. It reads the configuration, renews credentials and makes the
connections; the requests are plain JSON over those, since most objects here are custom resources, which the client
has no models for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlencode

import kubernetes.client
import kubernetes.config
import kubernetes.stream
import urllib3
import yaml
from kubernetes.config import ConfigException

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import AutotunerError, EnvironmentFault, TransientError
from raytune_autotuner.kube.watch import PAUSES_S, Gone, Manifest

CONNECT_S = 5.0
READ_S = 35.0
"""A slow admission webhook may hold a request for 30 s."""
UNAUTHORIZED_S = 5.0
"""How long a call is tried again with renewed credentials; a token may have been rotated just now."""
RETRIED = frozenset({429, 500, 502, 503, 504})
CONNECTIONS = 64
JSON = "application/json"
USER_AGENT = "raytune-autotuner"
Load = Callable[[], kubernetes.client.Configuration]

T = TypeVar("T")


class Rejected(AutotunerError):
    """The server refuses this request (400, 403, 404, 422 …); the same request will not do better later."""

    def __init__(self, message: str, status: int = 0, reason: str = "") -> None:
        self.status = status
        self.reason = reason
        super().__init__(message)


class Conflict(TransientError):
    """The object exists already, or somebody has changed it since it was read (409)."""


class Unreachable(TransientError):
    """The server is away, overloaded or broken."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Unauthorized(EnvironmentFault):
    """The server does not take the credentials (401)."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    """Empty values are left out."""
    body: Any = None
    content_type: str = JSON
    read_s: float = READ_S

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Connection:
    """A server and a user's credentials; for several threads at once.

    Raises:
        EnvironmentFault: the configuration cannot be used.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._client = _client(load)

    def close(self) -> None:
        """Let go of idle connections; later requests make new ones."""
        self._client.rest_client.pool_manager.clear()

    def retried(self, attempt: Callable[[], T], patience_s: float) -> T:
        """The retry policy: what may pass is tried again until the patience ends."""
        deadline, unauthorized = Deadline.after(patience_s), Deadline.after(UNAUTHORIZED_S)
        pauses = iter(PAUSES_S)
        while True:
            pause_s = next(pauses, PAUSES_S[-1])
            try:
                return attempt()
            except Unreachable as error:
                pause_s = max(pause_s, error.retry_after_s)
                if pause_s > deadline.remaining():
                    raise
            except Unauthorized:
                if pause_s > unauthorized.remaining():
                    raise
                self._renew()
            time.sleep(pause_s)

    def json(self, request: Request) -> Manifest:
        """One attempt; the answer as an object."""
        data = self.read(request)
        try:
            return cast(Manifest, json.loads(data))
        except ValueError as error:
            raise Unreachable(f"{request}: the answer is not JSON: {data[:100]!r}") from error

    def read(self, request: Request) -> bytes:
        """One attempt; the whole answer."""
        response = self._open(request)
        try:
            return response.data
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"{request}: {error}") from error
        finally:
            response.release_conn()

    def lines(self, request: Request) -> Lines:
        """One attempt; an answer that goes on."""
        return Lines(self._open(request))

    def port(self, namespace: str, pod: str, port: int) -> Tunnel:
        """A connection to a port of a pod, through the server.

        Raises:
            Unreachable: it cannot be had.
        """
        client = kubernetes.client.ApiClient(self._client.configuration)  # it is patched while it is used
        api = kubernetes.client.CoreV1Api(client)
        try:
            forward = kubernetes.stream.portforward(
                api.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port)
            )
        except kubernetes.client.ApiException as error:
            raise Unreachable(f"no connection to port {port} of pod {namespace}/{pod}: {error.reason}") from error
        return Tunnel(cast(socket.socket, forward.socket(port)), lambda: forward.error(port))

    def _open(self, request: Request) -> urllib3.BaseHTTPResponse:
        """One attempt: an answer whose status is good, its body still to be read."""
        config, rest = self._client.configuration, self._client.rest_client
        query = urlencode({key: value for key, value in request.query.items() if value})
        headers = {"Accept": f"{JSON}, */*", "User-Agent": USER_AGENT, "Content-Type": request.content_type}
        try:
            headers |= {auth["key"]: auth["value"] for auth in config.auth_settings().values() if auth["value"]}
            response = rest.pool_manager.request(
                request.method,
                f"{config.host}{request.path}" + (f"?{query}" if query else ""),
                body=None if request.body is None else json.dumps(request.body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=request.read_s),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            if response.status >= 300:
                raise _failure(response, request)
        except ConfigException as error:
            raise Unauthorized(f"the credentials for {config.host} cannot be read: {error}") from error
        except urllib3.exceptions.SSLError as error:
            raise EnvironmentFault(f"no secure connection to {config.host}: {error}") from error
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"{request} at {config.host}: {error}") from error
        except OSError as error:  # the token's file, which is read again every minute, or no more open files
            raise Unreachable(f"{request} at {config.host}: {error}") from error
        return response

    def _renew(self) -> None:
        """Read the configuration and the credentials again."""
        with self._lock:
            self._client = _client(self._load)


@dataclass(frozen=True)
class Tunnel:
    """A connection through the server; ``error`` tells what the other end said when it could not be had."""

    socket: socket.socket
    error: Callable[[], str | None]


class Lines:
    """The JSON lines of an open watch; see ``kube_watch.Stream``."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response

    def __iter__(self) -> Iterator[Manifest]:
        unread = b""
        try:
            for chunk in self._response.stream(None):
                *lines, unread = (unread + chunk).split(b"\n")
                yield from map(_event, filter(None, lines))
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unreachable(f"a watch broke off: {error}") from error

    def interrupt(self) -> None:
        """Let a reader in another thread see the end."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # it has ended by itself
            self._response.shutdown()

    def close(self) -> None:
        """Give the connection up; for the reader's thread."""
        self._response.close()


def _event(line: bytes) -> Manifest:
    event: Manifest = json.loads(line)
    if event["type"] == "ERROR":
        status = event["object"]
        kind = Gone if status.get("code") == 410 else Unreachable
        raise kind(f"a watch ended: {status.get('message')}")
    return event


def _failure(response: urllib3.BaseHTTPResponse, request: Request) -> AutotunerError:
    """The error that an answer means; reads and releases it."""
    try:
        text = response.data.decode("utf-8", "replace")
    finally:
        response.release_conn()
    try:
        said = json.loads(text)
        message, reason = str(said["message"]), str(said.get("reason") or "")
    except (ValueError, KeyError, TypeError):
        message, reason = text.strip()[:500] or str(response.reason), ""
    message = f"{message} ({response.status} from {request})"
    if response.status == 401:
        return Unauthorized(message)
    if response.status == 409:
        return Conflict(message)
    if response.status == 410:
        return Gone(message)
    if response.status in RETRIED:
        return Unreachable(message, _seconds(response.headers.get("Retry-After")))
    return Rejected(message, response.status, reason)


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdigit() else 0.0


def _client(load: Load) -> kubernetes.client.ApiClient:
    try:
        configuration = load()
        configuration.connection_pool_maxsize = CONNECTIONS
        return kubernetes.client.ApiClient(configuration)
    except (ConfigException, OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFault(f"the Kubernetes configuration cannot be used: {error}") from error


def load_file(path: Path, context: str | None) -> kubernetes.client.Configuration:
    """What a kubeconfig file says."""
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(str(path), context, configuration, persist_config=False)  # type: ignore[no-untyped-call]
    return configuration


def load_in_pod() -> kubernetes.client.Configuration:
    """What a pod is given."""
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    return configuration


def in_pod() -> bool:
    """Whether this process runs in a pod that may talk to its server."""
    token = Path(kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME)
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and token.is_file()
