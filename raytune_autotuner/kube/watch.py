"""Watches that are shared: one per kind and namespace in a process, whoever is interested in it.

A watch keeps the objects as they are now, so that a new subscriber gets them at once. It is resumed from the last
resource version when the connection ends or breaks, and from a new list when that version is too old (410 Gone).
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import AutotunerError, TransientError
from raytune_autotuner.kube.kinds import Kind

Manifest = dict[str, Any]
"""A Kubernetes object as JSON has it."""
Change = Literal["ADDED", "MODIFIED", "DELETED"]
Matches = Callable[[Manifest], bool]

WATCH_S = 30
"""The server ends a watch after this long and a new one follows, so that a connection which has died without a word
leaves nobody blind for longer."""
OUTAGE_S = 60.0
"""How long the server may be away until the subscribers are told."""
STEADY_S = 1.0
"""A watch that lives this long is a good one, also when it has nothing to tell."""
USELESS = 3
"""After so many watches in a row that end at once the objects are listed instead."""
PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Event:
    """A change of an object; the first events of a subscription tell the objects that are there already."""

    type: Change
    object: Manifest
    kind: Kind


class Gone(TransientError):
    """The resource version is too old to go on from (410)."""


class Stream(Protocol):
    """An open watch."""

    def __iter__(self) -> Iterator[Manifest]:
        """The events as the server sends them, until it ends the watch."""

    def interrupt(self) -> None:
        """Let the thread that waits for its next event see the end; from another thread. Idempotent."""

    def close(self) -> None:
        """Give it up; from the thread that reads it. Idempotent."""


class Source(Protocol):
    """Where a watch gets its objects from. Both make one attempt and raise as ``kube.Cluster`` does."""

    @property
    def identity(self) -> str:
        """Tells servers and users apart."""

    def snapshot(self, kind: Kind, namespace: str | None) -> tuple[list[Manifest], str]:
        """All objects and the resource version that they are of."""

    def stream(self, kind: Kind, namespace: str | None, version: str, seconds: int) -> Stream:
        """A watch from a resource version on, for this long at most."""


class Subscription:
    """The changes of the objects that were asked for. Close it, or use it as a context manager."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event | AutotunerError] = queue.SimpleQueue()
        self._closers: list[Callable[[], None]] = []
        self._error: AutotunerError | None = None

    def wait(self, deadline: Deadline) -> Event | None:
        """The next change, or ``None`` when the deadline is over.

        Raises:
            AutotunerError: the watch cannot go on; from then on every call raises it.
        """
        if self._error is not None:
            raise self._error
        try:
            told = self._queue.get(timeout=deadline.remaining())
        except queue.Empty:
            return None
        if isinstance(told, AutotunerError):
            self._error = told
            raise told
        return told

    def close(self) -> None:
        """Stop listening; the last one to do so ends the watch. Idempotent."""
        while self._closers:
            self._closers.pop()()

    def tell(self, news: Event | AutotunerError) -> None:
        self._queue.put(news)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def subscribe(source: Source, namespace: str | None, interests: Mapping[Kind, Matches]) -> Subscription:
    """Listen to the objects of several kinds at once."""
    subscription = Subscription()
    for kind, matches in interests.items():
        subscription._closers.append(_join(source, kind, namespace, subscription, matches))
    return subscription


_WATCHES: dict[tuple[int, str, Kind, str | None], _SharedWatch] = {}
_LOCK = threading.RLock()
"""Guards the table and what every watch in it knows; nothing slow is done under it."""


def _join(
    source: Source, kind: Kind, namespace: str | None, subscription: Subscription, matches: Matches
) -> Callable[[], None]:
    """Join the watch of this kind, or start it; what to call to leave it."""
    key = (os.getpid(), source.identity, kind, namespace)  # threads do not survive a fork
    with _LOCK:
        watch = _WATCHES.get(key)
        if watch is None:
            watch = _WATCHES[key] = _SharedWatch(source, kind, namespace, ended=lambda: _forget(key))
            watch.thread.start()
        watch.add(subscription, matches)
    return lambda: watch.remove(subscription)


def _forget(key: tuple[int, str, Kind, str | None]) -> None:
    _WATCHES.pop(key, None)


class _SharedWatch:
    def __init__(self, source: Source, kind: Kind, namespace: str | None, ended: Callable[[], None]) -> None:
        self._source, self._kind, self._namespace, self._ended = source, kind, namespace, ended
        self._objects: dict[str, Manifest] = {}
        self._subscribers: dict[Subscription, Matches] = {}
        self._stream: Stream | None = None
        self._version: str | None = None
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"watch-{kind.plural}-{namespace}", daemon=True)

    def add(self, subscription: Subscription, matches: Matches) -> None:
        with _LOCK:
            self._subscribers[subscription] = matches
            for thing in self._objects.values():
                if matches(thing):
                    subscription.tell(Event("ADDED", thing, self._kind))

    def remove(self, subscription: Subscription) -> None:
        with _LOCK:
            self._subscribers.pop(subscription, None)
            if self._subscribers or self._stopping.is_set():
                return
            self._stop()
        if self._stream is not None:
            self._stream.interrupt()

    def _stop(self) -> None:
        """Nobody can join from now on."""
        self._stopping.set()
        self._ended()

    def _run(self) -> None:
        pauses, useless = iter(PAUSES_S), 0
        outage: Deadline | None = None
        while not self._stopping.is_set():
            try:
                useful = self._follow()
                outage, useless = None, 0 if useful else useless + 1
                if useful:
                    pauses = iter(PAUSES_S)
                elif useless >= USELESS:
                    self._version = None
            except Gone:
                self._version = None
            except TransientError as error:
                outage = outage or Deadline.after(OUTAGE_S)
                if outage.expired:
                    return self._fail(error)
            except AutotunerError as error:
                return self._fail(error)
            except Exception as error:  # noqa: BLE001 - those who listen would wait in vain
                return self._fail(TransientError(f"the watch of {self._kind.plural} has failed: {error!r}"))
            self._stopping.wait(next(pauses, PAUSES_S[-1]))

    def _follow(self) -> bool:
        """Follow one watch to its end; whether it was of use. Raises when none can be had."""
        if self._version is None:
            self._take_in(*self._source.snapshot(self._kind, self._namespace))
        assert self._version is not None
        steady, useful = Deadline.after(STEADY_S), False
        self._stream = self._source.stream(self._kind, self._namespace, self._version, WATCH_S)
        try:
            if not self._stopping.is_set():  # else nobody may have seen the stream to interrupt it
                for event in self._stream:
                    useful = True
                    self._note(event)
        except Gone:
            raise
        except TransientError:
            pass  # the connection broke; the next one goes on from there
        finally:
            self._stream.close()
        return useful or steady.expired

    def _take_in(self, things: list[Manifest], version: str) -> None:
        """Replace all that is known by a list, and tell what is new, changed and gone."""
        with _LOCK:
            found = {_key(thing): thing for thing in things}
            for key in self._objects.keys() - found.keys():
                self._put(key, None, "DELETED", self._objects[key])
            for key, thing in found.items():
                old = self._objects.get(key)
                if old is None or _version(old) != _version(thing):
                    self._put(key, thing, "ADDED" if old is None else "MODIFIED", thing)
            self._version = version

    def _note(self, event: Manifest) -> None:
        change, thing = event["type"], event["object"]
        with _LOCK:
            if change in ("ADDED", "MODIFIED", "DELETED"):
                self._put(_key(thing), None if change == "DELETED" else thing, cast(Change, change), thing)
            self._version = _version(thing)

    def _put(self, key: str, new: Manifest | None, change: Change, thing: Manifest) -> None:
        old = self._objects.pop(key, None)
        if new is not None:
            self._objects[key] = new
        for subscription, matches in self._subscribers.items():
            if matches(thing):
                subscription.tell(Event(change, thing, self._kind))
            elif old is not None and matches(old):  # a label was taken away
                subscription.tell(Event("DELETED", thing, self._kind))

    def _fail(self, error: AutotunerError) -> None:
        with _LOCK:
            self._stop()
            for subscription in self._subscribers:
                subscription.tell(error)


def _key(thing: Manifest) -> str:
    """Tells objects apart, also one from another of the same name that came after it."""
    return str(thing["metadata"]["uid"])


def _version(thing: Manifest) -> str:
    return str(thing["metadata"]["resourceVersion"])


def has_labels(labels: Mapping[str, str]) -> Matches:
    """Whether an object carries these labels."""

    def matches(thing: Manifest) -> bool:
        return labels.items() <= (thing["metadata"].get("labels") or {}).items()

    return matches


def active() -> int:
    """How many watches this process holds."""
    with _LOCK:
        return len(_WATCHES)
