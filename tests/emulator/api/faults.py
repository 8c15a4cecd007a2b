"""Faults of the API itself, switched on and off while it runs."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

from tests.emulator.api.errors import ApiError
from tests.emulator.api.requests import Request

WORDS = {
    401: "Unauthorized",
    429: "Too many requests, please try again later.",
    500: "Internal error occurred: etcdserver: request timed out",
    503: "apiserver is shutting down",
    504: "Timeout: request did not complete within requested timeout - context deadline exceeded",
}


@dataclass
class Fault:
    """What happens to the requests that it is for.

    With a ``status`` they are refused with it; with ``delay_s`` they are answered late; both together, refused late.
    """

    status: int | None = None
    share: float = 1.0
    """Of the requests, chosen at random."""
    count: int | None = None
    """Requests to hit before the fault is over; None: until it is cleared."""
    delay_s: float = 0.0
    verbs: frozenset[str] | None = None
    resources: frozenset[str] | None = None
    """As the store names them; None: all."""
    retry_after_s: int = 1
    hits: int = 0


@dataclass
class Faults:
    """The faults that are on, and the switch that drops watches."""

    active: list[Fault] = field(default_factory=list)
    dropped: int = 0
    """Counts the drops: a watch that has begun before the latest one ends without a word."""
    watch_life_s: float | None = None
    """Every watch is dropped when it is that old."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(self.seed)

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self.active.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        with self._lock:
            if fault in self.active:
                self.active.remove(fault)

    def clear(self) -> None:
        with self._lock:
            self.active.clear()
        self.watch_life_s = None

    def drop_watches(self) -> None:
        """Cut the connections of all open watches."""
        self.dropped += 1

    def strike(self, request: Request) -> None:
        """Delay or refuse a request; raises ``ApiError``."""
        for fault in list(self.active):
            if not self._hits(fault, request):
                continue
            if fault.delay_s:
                time.sleep(fault.delay_s)
            if fault.status:
                details = {"retryAfterSeconds": fault.retry_after_s} if fault.status == 429 else {}
                raise ApiError(fault.status, WORDS.get(fault.status, "injected fault"), details=details)

    def _hits(self, fault: Fault, request: Request) -> bool:
        if fault.verbs is not None and request.attempt.verb not in fault.verbs:
            return False
        if fault.resources is not None and request.resource not in fault.resources:
            return False
        with self._lock:
            if fault.count is not None and fault.hits >= fault.count:
                return False
            if self._random.random() >= fault.share:
                return False
            fault.hits += 1
            return True
