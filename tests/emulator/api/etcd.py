"""Versioned objects in memory with their history: what etcd is to the real server.

Objects handed in are owned by the storage from then on and never changed again; whoever reads one and wants to
change it works on a copy.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tests.emulator.api import errors
from tests.emulator.api.objects import Object, owner_uids

HISTORY = 20_000
"""Changes kept per resource; older ones are compacted away."""


class Key(NamedTuple):
    resource: str
    namespace: str
    name: str


class Record:
    """One version of one object, with its JSON text made once for all who ask."""

    __slots__ = ("_bare", "_text", "key", "value", "version")

    def __init__(self, key: Key, value: Object, version: int) -> None:
        self.key = key
        self.value = value
        self.version = version
        self._text: str | None = None
        self._bare: str | None = None

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = json.dumps(self.value, separators=(",", ":"))
        return self._text

    @property
    def bare(self) -> str:
        """The text without kind and apiVersion: what lists of built-in kinds hold."""
        if self._bare is None:
            value = {key: part for key, part in self.value.items() if key not in ("apiVersion", "kind")}
            self._bare = json.dumps(value, separators=(",", ":"))
        return self._bare


@dataclass(frozen=True)
class Change:
    """ADDED, MODIFIED or DELETED at ``record.version``."""

    type: str
    record: Record
    previous: Record | None


class Etcd:
    """All objects, one version counter, and the history that watches read."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.version = 1
        self.closed = False
        self.listeners: list[Callable[[Change], None]] = []
        """Called with each change in order, under the lock: they only take note."""
        self._changed: dict[str, threading.Condition] = {}
        self._records: dict[str, dict[tuple[str, str], Record]] = defaultdict(dict)
        self._by_uid: dict[str, Record] = {}
        self._dependents: dict[str, set[Key]] = defaultdict(set)
        self._history: dict[str, deque[Change]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._compacted: dict[str, int] = defaultdict(int)

    def read(self, key: Key) -> Record | None:
        return self._records[key.resource].get((key.namespace, key.name))

    def by_uid(self, uid: str) -> Record | None:
        return self._by_uid.get(uid)

    def dependents(self, uid: str) -> list[Record]:
        """The objects that name this uid among their owners."""
        with self.lock:
            return [record for key in self._dependents.get(uid, ()) if (record := self.read(key))]

    def scan(self, resource: str, namespace: str | None) -> tuple[list[Record], int]:
        """The objects of a resource in the order of their names, and the version at which they were so."""
        with self.lock:
            found = sorted(self._records[resource].items())
            return [record for (at, _), record in found if namespace is None or at == namespace], self.version

    def resources(self) -> list[str]:
        with self.lock:
            return [resource for resource, records in self._records.items() if records]

    def write(self, key: Key, value: Object, expected: int | None) -> Record:
        """Store a new version; ``expected`` is the version that it replaces, None for a new object.

        Raises:
            ApiError: 409, the object is there already or is at another version; 404, it is gone.
        """
        with self.lock:
            previous = self.read(key)
            if expected is None and previous:
                raise errors.already_exists(key.resource, key.name)
            if expected is not None and not previous:
                raise errors.not_found(key.resource, key.name)
            if previous and previous.version != expected:
                raise errors.conflict(key.resource, key.name)
            return self._commit("MODIFIED" if previous else "ADDED", key, value, previous)

    def remove(self, key: Key, value: Object, expected: int) -> Record:
        """Take the object out; ``value`` is its last state.

        Raises:
            ApiError: 404 or 409, as with ``write``.
        """
        with self.lock:
            previous = self.read(key)
            if not previous:
                raise errors.not_found(key.resource, key.name)
            if previous.version != expected:
                raise errors.conflict(key.resource, key.name)
            return self._commit("DELETED", key, value, previous)

    def _commit(self, type_: str, key: Key, value: Object, previous: Record | None) -> Record:
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        record = Record(key, value, self.version)
        self._index(record, previous, gone=type_ == "DELETED")
        history = self._history[key.resource]
        if len(history) == HISTORY:
            self._compacted[key.resource] = history[0].record.version
        change = Change(type_, record, previous)
        history.append(change)
        for listener in self.listeners:
            listener(change)
        self._condition(key.resource).notify_all()
        return record

    def _index(self, record: Record, previous: Record | None, *, gone: bool) -> None:
        place = (record.key.namespace, record.key.name)
        if previous:
            self._by_uid.pop(previous.value["metadata"]["uid"], None)
            for uid in owner_uids(previous.value):
                self._dependents[uid].discard(record.key)
        if gone:
            self._records[record.key.resource].pop(place, None)
            return
        self._records[record.key.resource][place] = record
        self._by_uid[record.value["metadata"]["uid"]] = record
        for uid in owner_uids(record.value):
            self._dependents[uid].add(record.key)

    def _condition(self, resource: str) -> threading.Condition:
        with self.lock:
            return self._changed.setdefault(resource, threading.Condition(self.lock))

    def compact(self) -> None:
        """Forget all history: a watch from before now is told 410."""
        with self.lock:
            for resource in {*self._history, *self._records}:
                self._history[resource].clear()
                self._compacted[resource] = self.version

    def changes(
        self, resource: str, after: int, wait_s: float = 0.0, ended: Callable[[], bool] = lambda: False
    ) -> list[Change]:
        """The changes after a version, in order; waits for one up to ``wait_s`` unless it has ``ended``.

        May return early with nothing.

        Raises:
            ApiError: 410, the history does not reach back so far.
        """
        condition = self._condition(resource)
        with condition:
            found = self._after(resource, after)
            if not found and wait_s > 0 and not self.closed and not ended():
                condition.wait(wait_s)
                found = self._after(resource, after)
            return found

    def _after(self, resource: str, after: int) -> list[Change]:
        if after < self._compacted[resource]:
            raise errors.expired(after, self._compacted[resource])
        history = self._history[resource]
        if not history or history[-1].record.version <= after:
            return []
        return _tail(history, after)

    def wake(self, resources: Iterable[str] | None = None) -> None:
        """Let those who wait look again: a watch was closed or the server ends."""
        with self.lock:
            for resource in list(resources or self._changed):
                self._condition(resource).notify_all()

    def close(self) -> None:
        self.closed = True
        self.wake()


def _tail(history: deque[Change], after: int) -> list[Change]:
    found: list[Change] = []
    for change in reversed(history):
        if change.record.version <= after:
            break
        found.append(change)
    return found[::-1]
