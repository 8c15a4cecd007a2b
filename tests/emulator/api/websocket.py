"""The server's side of WebSocket (RFC 6455) on a connection that has been taken over from HTTP."""

from __future__ import annotations

import base64
import hashlib
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, Protocol

from tests.emulator.api.errors import ApiError

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Connection(Protocol):
    """A connection that is no longer HTTP."""

    rfile: BinaryIO

    def send(self, data: bytes) -> None:
        """Raises ``OSError`` when the client is gone."""

    def hang_up(self) -> None:
        """End it in both directions."""


def choose(offered: str, known: Sequence[str]) -> str:
    """The first protocol that the client offers and the server knows.

    Raises:
        ApiError: 400, there is none.
    """
    for protocol in (part.strip() for part in offered.split(",")):  # nothing offered is the protocol ""
        if protocol in known:
            return protocol
    raise ApiError(400, f"unable to upgrade: client supports [{offered}], server accepts {list(known)}")


def shake_hands(connection: Connection, headers: Mapping[str, str], protocol: str) -> WebSocket:
    digest = hashlib.sha1((headers.get("Sec-WebSocket-Key", "") + MAGIC).encode()).digest()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}",
        *([f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []),
    ]
    connection.send(("\r\n".join(lines) + "\r\n\r\n").encode())
    return WebSocket(connection)


class WebSocket:
    """Messages in and out; sending is thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._closing = False

    def messages(self) -> Iterator[bytes]:
        """The messages until the client closes or is gone."""
        whole = b""
        while frame := self._frame():
            final, opcode, payload = frame
            if opcode == CLOSE:
                self.close()
                return
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode != PONG:
                whole += payload
                if final:
                    yield whole
                    whole = b""

    def _frame(self) -> tuple[bool, int, bytes] | None:
        try:
            first, second = self._exactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", self._exactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._exactly(8))
            mask = self._exactly(4) if second & 0x80 else b""
            payload = self._exactly(size)
        except (OSError, ValueError):  # gone, or its file is closed already
            return None
        return bool(first & 0x80), first & 0x0F, _unmasked(payload, mask) if mask else payload

    def _exactly(self, size: int) -> bytes:
        data = self._connection.rfile.read(size)
        if len(data) < size:
            raise OSError("the client is gone")
        return data

    def send(self, payload: bytes) -> None:
        self._send(BINARY, payload)

    def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack(">BB", 0x80 | opcode, size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 127, size)
        with self._lock:
            self._connection.send(head + payload)

    def close(self) -> None:
        """Say goodbye once; the client answers by closing the connection."""
        if not self._closing:
            self._closing = True
            try:
                self._send(CLOSE, struct.pack(">H", 1000))
            except OSError:
                return


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    """Masked data in the clear: one big integer operation instead of a loop over bytes."""
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
