"""One thread that does all work of the world, in order."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable

from tests.emulator.api.errors import ApiError

RETRY_S = 0.05
LOG = logging.getLogger(__name__)
Work = Callable[[], None]


class Loop:
    """Runs what it is given one after the other; the same key is never queued twice for the same time.

    Work that meets a conflict with another writer is done again; any other error is kept in ``problems``.
    """

    def __init__(self) -> None:
        self.problems: list[BaseException] = []
        self._due: list[tuple[float, int, Hashable, Work]] = []
        self._queued: dict[Hashable, float] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="emulated-world", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the work at hand; what is queued is dropped."""
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(30)

    def soon(self, key: Hashable, work: Work) -> None:
        """Do this as soon as what is before it is done."""
        self.after(0.0, key, work)

    def after(self, seconds: float, key: Hashable, work: Work) -> None:
        """Do this after so many (real) seconds, unless the same key is due earlier."""
        due = time.monotonic() + seconds
        with self._changed:
            if self._over or self._queued.get(key, due + 1) <= due:
                return
            self._queued[key] = due
            heapq.heappush(self._due, (due, next(self._numbers), key, work))
            self._changed.notify()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            key, work = found
            try:
                work()
            except ApiError as error:
                if error.code == 409:
                    self.after(RETRY_S, key, work)
                elif error.code != 404:
                    self._report(key, error)
            except Exception as error:  # noqa: BLE001 (the world must go on; tests look at the problems)
                self._report(key, error)

    def _report(self, key: Hashable, error: BaseException) -> None:
        LOG.exception("emulated world: %s", key, exc_info=error)
        self.problems.append(error)

    def _next(self) -> tuple[Hashable, Work] | None:
        with self._changed:
            while not self._over:
                if self._due:
                    wait = self._due[0][0] - time.monotonic()
                    if wait <= 0:
                        due, _, key, work = heapq.heappop(self._due)
                        if self._queued.get(key) != due:
                            continue  # done earlier
                        del self._queued[key]
                        return key, work
                    self._changed.wait(wait)
                else:
                    self._changed.wait()
            return None
