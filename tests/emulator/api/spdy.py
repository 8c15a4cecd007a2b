"""As much of SPDY/3.1 as kubectl speaks for port-forwarding: multiplexed streams over one connection.

Without flow control, like the library on the other side.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

HEADER_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
HEADER_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack(">I", len(word)) + word.replace("_", " ").encode() for word in HEADER_WORDS.split())
    + HEADER_TAIL.encode()
)
"""The protocol's compression dictionary, by its specification."""
SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY = 1, 2, 3, 6, 7
FIN = 1
MAX_DATA = 1 << 16


@dataclass
class Stream:
    """One stream that the client has opened."""

    session: Session
    number: int
    headers: dict[str, str]
    received: list[Callable[[bytes], None]] = field(default_factory=list)
    """Takes the data of the client in order, and b"" at its end."""
    early: list[bytes] = field(default_factory=list)

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_DATA):
            self.session.send_data(self.number, data[start : start + MAX_DATA], 0)

    def finish(self) -> None:
        """No more from this side."""
        self.session.send_data(self.number, b"", FIN)

    def deliver(self, data: bytes) -> None:
        if self.received:
            self.received[0](data)
        else:
            self.early.append(data)

    def to(self, receiver: Callable[[bytes], None]) -> None:
        """Hand what comes to a receiver, beginning with what has come already."""
        for data in self.early:
            receiver(data)
        self.received.append(receiver)


class Session:
    """The server's side of a connection; ``read(n)`` gives exactly n bytes or raises ``EOFError``."""

    def __init__(self, read: Callable[[int], bytes], send: Callable[[bytes], None]) -> None:
        self._read = read
        self._send = send
        self._lock = threading.Lock()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self.streams: dict[int, Stream] = {}

    def run(self, opened: Callable[[Stream], None]) -> None:
        """Serve until the client is gone; ``opened`` is told of each new stream."""
        try:
            while True:
                head, size = struct.unpack(">II", self._read(8))
                flags, payload = size >> 24, self._read(size & 0xFFFFFF)
                if head >> 31:
                    self._control(head & 0xFFFF, flags, payload, opened)
                else:
                    self._data(head, flags, payload)
        except (EOFError, OSError):
            pass
        finally:
            for stream in list(self.streams.values()):  # the pumps take theirs out
                stream.deliver(b"")

    def _control(self, type_: int, flags: int, payload: bytes, opened: Callable[[Stream], None]) -> None:
        if type_ == SYN_STREAM:
            (number,) = struct.unpack(">I", payload[:4])
            stream = Stream(self, number, self._headers(payload[10:]))
            self.streams[number] = stream
            with self._lock:
                block = self._deflate.compress(struct.pack(">I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
                self._send_control(SYN_REPLY, struct.pack(">I", number) + block)
            if flags & FIN:
                stream.deliver(b"")
            opened(stream)
        elif type_ == PING:
            with self._lock:
                self._send_control(PING, payload)
        elif type_ == RST_STREAM:
            self._end(struct.unpack(">I", payload[:4])[0])
        elif type_ == GOAWAY:
            raise EOFError

    def _headers(self, block: bytes) -> dict[str, str]:
        plain = self._inflate.decompress(block)
        (count,) = struct.unpack(">I", plain[:4])
        words, place = [], 4
        for _ in range(2 * count):
            (size,) = struct.unpack(">I", plain[place : place + 4])
            words.append(plain[place + 4 : place + 4 + size].decode())
            place += 4 + size
        return {key.lower(): value for key, value in zip(words[::2], words[1::2], strict=True)}

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        stream = self.streams.get(number)
        if stream and payload:
            stream.deliver(payload)
        if flags & FIN:
            self._end(number)

    def _end(self, number: int) -> None:
        if stream := self.streams.get(number):
            stream.deliver(b"")

    def _send_control(self, type_: int, payload: bytes) -> None:
        self._send(struct.pack(">HHI", 0x8003, type_, len(payload)) + payload)

    def send_data(self, number: int, data: bytes, flags: int) -> None:
        with self._lock:
            self._send(struct.pack(">II", number, flags << 24 | len(data)) + data)
