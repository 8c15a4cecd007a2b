"""A watch as an HTTP answer: JSON lines, bookmarks, a timeout, and the ways in which it breaks off."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator

from tests.emulator.api.errors import ApiError
from tests.emulator.api.faults import Faults
from tests.emulator.api.kinds import Kind, Object
from tests.emulator.api.requests import Request
from tests.emulator.api.watch import Event, Watch

BOOKMARK_S = 60.0
IDLE_S = 0.25
"""How soon a watch notices that its client has left or that it is dropped."""


class Streaming:
    """One watch as chunks of JSON lines."""

    def __init__(
        self,
        kind: Kind,
        watch: Watch,
        request: Request,
        faults: Faults,
        bookmark_s: float,
        count: Callable[[int], None],
    ) -> None:
        self._kind = kind
        self._watch = watch
        self._faults = faults
        self._count = count
        self._bookmarks = request.flag("allowWatchBookmarks")
        self._bookmark_s = bookmark_s
        self._initial = request.flag("sendInitialEvents") and self._bookmarks
        self._began = time.monotonic()
        self._timeout_s = request.number("timeoutSeconds") or random.uniform(1800, 3600)

    def chunks(self) -> Iterator[bytes]:
        dropped = self._faults.dropped
        self._count(1)
        try:
            yield b""  # the headers go out at once
            while dropped == self._faults.dropped and not self._dies():
                yield self._next()
                if self._is_over() or self._watch.ended:
                    yield self._bookmark({})
                    return
            raise ConnectionAbortedError("the watch is dropped")
        except ApiError as error:
            yield _line("ERROR", json.dumps(error.status()))
        finally:
            self._count(-1)
            self._watch.close()

    def _dies(self) -> bool:
        life_s = self._faults.watch_life_s
        return life_s is not None and time.monotonic() - self._began > life_s

    def _is_over(self) -> bool:
        return time.monotonic() - self._began >= self._timeout_s

    def _next(self) -> bytes:
        """What has come: events, the end of the initial ones, a bookmark, or nothing for a while."""
        left_s = self._timeout_s - (time.monotonic() - self._began)
        if self._initial and not self._watch.pending():
            self._initial = False
            return self._bookmark({"annotations": {"k8s.io/initial-events-end": "true"}})
        event = self._watch.next(max(min(IDLE_S, left_s), 0.0))
        if event is None:
            return self._due_bookmark()
        lines = [self._text(event)]
        while self._watch.pending() and (more := self._watch.next(0.0)):
            lines.append(self._text(more))
        return b"".join(lines)

    def _text(self, event: Event) -> bytes:
        return _line(event.type, event.record.text)

    def _due_bookmark(self) -> bytes:
        if not hasattr(self, "_next_bookmark"):
            self._next_bookmark = self._began + self._bookmark_s
        if time.monotonic() < self._next_bookmark:
            return b""
        self._next_bookmark = time.monotonic() + self._bookmark_s
        return self._bookmark({})

    def _bookmark(self, more: Object) -> bytes:
        if not self._bookmarks:
            return b""
        metadata = {"resourceVersion": str(self._watch.version), "creationTimestamp": None} | more
        value = {"kind": self._kind.kind, "apiVersion": self._kind.api_version, "metadata": metadata}
        return _line("BOOKMARK", json.dumps(value))


def _line(type_: str, text: str) -> bytes:
    return f'{{"type":"{type_}","object":{text}}}\n'.encode()
