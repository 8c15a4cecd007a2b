"""Watches: the changes of one resource, seen through a selector, from a version on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from tests.emulator.api.etcd import Change, Etcd, Record
from tests.emulator.api.objects import Object, copied
from tests.emulator.api.selectors import Condition


@dataclass(frozen=True)
class Event:
    """ADDED, MODIFIED or DELETED with the object (for DELETED: its last state)."""

    type: str
    record: Record

    @property
    def object(self) -> Object:
        """A copy of the object, free to be changed."""
        return copied(self.record.value)  # type: ignore[no-any-return]


class Watch:
    """Events one after the other; iterating ends when the watch is closed or the server stops.

    ``after`` None: starts with an ADDED event for each object that is there.
    """

    def __init__(
        self, etcd: Etcd, resource: str, namespace: str | None, selected: Condition, after: int | None
    ) -> None:
        self._etcd = etcd
        self._resource = resource
        self._namespace = namespace
        self._selected = selected
        self._closed = threading.Event()
        self._ready: deque[Event] = deque()
        self.version = self._start() if after is None else after
        """The version up to which everything has been handed out or is ready."""

    def _start(self) -> int:
        records, version = self._etcd.scan(self._resource, self._namespace)
        self._ready.extend(Event("ADDED", record) for record in records if self._selected(record.value))
        return version

    def pending(self) -> bool:
        return bool(self._ready)

    def next(self, timeout_s: float) -> Event | None:
        """The next event; None when none came in time or the watch has ended.

        Raises:
            ApiError: 410, the history does not reach back to where this watch is.
        """
        deadline = time.monotonic() + timeout_s
        while not self._ready and not self.ended:
            left = deadline - time.monotonic()
            changes = self._etcd.changes(self._resource, self.version, left, lambda: self.ended)
            self._ready.extend(event for change in changes if (event := self._seen(change)))
            if changes:
                self.version = changes[-1].record.version
            elif left <= 0:
                return None
        return self._ready.popleft() if self._ready and not self.ended else None

    def _seen(self, change: Change) -> Event | None:
        """What a change looks like from here: leaving the selection is a deletion, entering it an addition."""
        if self._namespace is not None and change.record.key.namespace != self._namespace:
            return None
        before = change.previous is not None and self._selected(change.previous.value)
        now = change.type != "DELETED" and self._selected(change.record.value)
        if before and now:
            return Event("MODIFIED", change.record)
        if before or now:
            return Event("ADDED" if now else "DELETED", change.record)
        return None

    @property
    def ended(self) -> bool:
        return self._closed.is_set() or self._etcd.closed

    def __iter__(self) -> Iterator[Event]:
        while not self.ended:
            event = self.next(3600.0)
            if event:
                yield event

    def close(self) -> None:
        self._closed.set()
        self._etcd.wake([self._resource])

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
