"""Port-forwarding to a pod: the WebSocket protocol of the Python client, and SPDY (tunnelled or not) of kubectl."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.emulator.api.errors import ApiError
from tests.emulator.api.requests import Request, Upgrade
from tests.emulator.api.spdy import Session, Stream
from tests.emulator.api.websocket import Connection, WebSocket, choose, shake_hands

CHANNELS = "v4.channel.k8s.io"
TUNNEL = "SPDY/3.1+portforward.k8s.io"
SPDY = "portforward.k8s.io"
CONNECT_TIMEOUT_S = 10.0
Target = Callable[[int], tuple[str, int]]
"""From a port of the pod to an address that can be connected to."""


def upgrade(request: Request, target: Target) -> Upgrade:
    """Take over the connection for forwarding.

    Raises:
        ApiError: 400, the client asks for no protocol that is known here.
    """
    wanted = request.headers.get("Upgrade", "").lower()
    if wanted.startswith("spdy"):
        choose(request.headers.get("X-Stream-Protocol-Version", SPDY), [SPDY])
        return Upgrade(lambda connection: _serve_spdy(connection, target))
    if wanted != "websocket":
        raise ApiError(400, "unable to upgrade: missing upgrade headers in request")
    protocol = choose(request.headers.get("Sec-WebSocket-Protocol", ""), [CHANNELS, TUNNEL, ""])
    if protocol == TUNNEL:
        return Upgrade(lambda connection: _serve_tunnel(connection, request.headers, target))
    ports = [int(port) for value in request.values("ports") for port in value.split(",")]
    if not ports:
        raise ApiError(400, 'query parameter "ports" is required')
    headers = request.headers
    return Upgrade(lambda connection: _serve_channels(shake_hands(connection, headers, protocol), ports, target))


def refusal(port: int, error: OSError) -> str:
    """What a kubelet says when nothing listens on the port."""
    why = "connection refused" if isinstance(error, ConnectionRefusedError) else str(error)
    return f"error forwarding port {port} to pod: failed to connect to localhost:{port} inside namespace: {why}"


class Leg:
    """The connection to the pod for one forwarded port."""

    def __init__(self, target: Target, port: int) -> None:
        self.socket = socket.create_connection(target(port), CONNECT_TIMEOUT_S)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, data: bytes) -> None:
        """Data of the client; b"" is its end."""
        with contextlib.suppress(OSError):
            if data:
                self.socket.sendall(data)
            else:
                self.socket.shutdown(socket.SHUT_WR)

    def pump(self, send: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        """Hand on what the pod sends until its end."""
        with contextlib.suppress(OSError):
            while data := self.socket.recv(1 << 16):
                send(data)
        with contextlib.suppress(OSError):
            ended()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def _thread(work: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, name="emulated port-forward")
    thread.start()
    return thread


def _serve_channels(ws: WebSocket, ports: list[int], target: Target) -> None:
    """One data and one error channel per port, each opened by a message with the port's number."""
    legs: dict[int, Leg] = {}
    pumps = []
    for index, port in enumerate(ports):
        for channel in (2 * index, 2 * index + 1):
            ws.send(bytes([channel]) + struct.pack("<H", port))
    for index, port in enumerate(ports):
        try:
            legs[2 * index] = Leg(target, port)
        except OSError as error:
            ws.send(bytes([2 * index + 1]) + refusal(port, error).encode())
    for channel, leg in legs.items():
        pumps.append(_thread(leg.pump, _sender(ws, channel), lambda: None))
    closer = _thread(_close_after, pumps, ws)
    for message in ws.messages():
        if len(message) > 1 and message[0] in legs:
            legs[message[0]].write(message[1:])
    for leg in legs.values():
        leg.close()
    closer.join()


def _sender(ws: WebSocket, channel: int) -> Callable[[bytes], None]:
    return lambda data: ws.send(bytes([channel]) + data)


def _close_after(pumps: list[threading.Thread], ws: WebSocket) -> None:
    for pump in pumps:
        pump.join()
    ws.close()


def _serve_spdy(connection: Connection, target: Target) -> None:
    lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: SPDY/3.1"]
    lines.append(f"X-Stream-Protocol-Version: {SPDY}")
    connection.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    def read(size: int) -> bytes:
        data = connection.rfile.read(size)
        if len(data) < size:
            raise EOFError
        return data

    _Forwarder(target).run(Session(read, connection.send))


def _serve_tunnel(connection: Connection, headers: Mapping[str, str], target: Target) -> None:
    ws = shake_hands(connection, headers, TUNNEL)
    buffered = _Buffered(ws.messages())
    _Forwarder(target).run(Session(buffered.read, ws.send))
    ws.close()


class _Buffered:
    """Messages as a stream of bytes."""

    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages = messages
        self._data = bytearray()

    def read(self, size: int) -> bytes:
        while len(self._data) < size:
            message = next(self._messages, None)
            if message is None:
                raise EOFError
            self._data += message
        data = bytes(self._data[:size])
        del self._data[:size]
        return data


class _Forwarder:
    """Pairs of an error and a data stream, one pair per connection through the forward."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._errors: dict[str, Stream] = {}
        self._legs: list[Leg] = []
        self._pumps: list[threading.Thread] = []

    def run(self, session: Session) -> None:
        session.run(self._opened)
        for leg in self._legs:
            leg.close()
        for pump in self._pumps:
            pump.join()

    def _opened(self, stream: Stream) -> None:
        request = stream.headers.get("requestid", "")
        if stream.headers.get("streamtype") == "error":
            self._errors[request] = stream
            return
        error_stream, port = self._errors.pop(request), int(stream.headers["port"])
        try:
            leg = Leg(self._target, port)
        except OSError as error:
            error_stream.send(refusal(port, error).encode())
            self._finish(stream, error_stream)
            return
        self._legs.append(leg)
        stream.to(leg.write)
        self._pumps.append(_thread(leg.pump, stream.send, lambda: self._finish(stream, error_stream)))

    def _finish(self, stream: Stream, error_stream: Stream) -> None:
        error_stream.finish()
        stream.finish()
        for done in (stream, error_stream):
            stream.session.streams.pop(done.number, None)
