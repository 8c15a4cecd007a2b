"""Pushed updates: browsers are told that something has changed, and fetch what they show anew.

One task looks at an experiment (or at all) as long as somebody listens, however many they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from anyio import to_thread

from raytune_autotuner.errors import StorageFault
from raytune_autotuner.web.library import Library, Unknown
from raytune_autotuner.web.reader import Unreadable

LOOK_S, REMOTE_LOOK_S = 0.7, 1.5
KEEP_ALIVE_S = 15.0
"""So often something is said, so that what lies between does not give the connection up."""
OLDEST_LISTENER_S = 3600.0
"""A browser connects again by itself."""
ALL = ""
"""In place of an experiment's name."""


@dataclass
class Topic:
    """What is looked at for those who listen."""

    version: str = ""
    listeners: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    looking: asyncio.Task[None] | None = None

    def tell(self, version: str) -> None:
        if version != self.version:
            self.version = version
            self.changed.set()
            self.changed = asyncio.Event()


class Live:
    """Lives in the event loop of the server."""

    def __init__(
        self,
        library: Library,
        version_of_all: Callable[[], str],
        is_launched: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """``is_launched`` says whether a process that was started here for an experiment lives: pages show that too."""
        self._library = library
        self._is_launched = is_launched
        self._version_of_all = version_of_all
        self._topics: dict[str, Topic] = {}
        self._closed = asyncio.Event()
        self.look_s = LOOK_S if library.storage.is_local else REMOTE_LOOK_S

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """End all streams, so that the server can."""
        self._closed.set()

    async def changes(self, name: str, since: str) -> AsyncIterator[str]:
        """The version of an experiment (``ALL``: of the list) each time that it is not the one known before.

        An empty text is said now and then, so that a listener who is gone is noticed.
        """
        topic = self._topics.setdefault(name, Topic())
        topic.listeners += 1
        if topic.looking is None:
            topic.looking = asyncio.create_task(self._keep_looking(name, topic))
        end = time.monotonic() + OLDEST_LISTENER_S
        try:
            while not self._closed.is_set() and time.monotonic() < end:
                changed = topic.changed
                if topic.version and topic.version != since:
                    since = topic.version
                    yield since
                elif not await self._either(changed):
                    yield ""
        finally:
            topic.listeners -= 1
            if not topic.listeners and topic.looking is not None:
                topic.looking.cancel()
                self._topics.pop(name, None)

    async def _either(self, changed: asyncio.Event) -> bool:
        """Wait for a change or the end; whether one came."""
        waits = [asyncio.create_task(event.wait()) for event in (changed, self._closed)]
        try:
            done, _ = await asyncio.wait(waits, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)
        finally:
            for wait in waits:
                wait.cancel()

    async def _keep_looking(self, name: str, topic: Topic) -> None:
        look: Callable[[], str] = self._version_of_all if name == ALL else lambda: self._version_of(name)
        while True:
            # pages say what is wrong; a file may also go while it is looked at, and the next look is soon
            with contextlib.suppress(StorageFault, Unreadable, Unknown, OSError):
                topic.tell(await to_thread.run_sync(look))
            await asyncio.sleep(self.look_s)

    def _version_of(self, name: str) -> str:
        version = str(self._library.look(name).version)
        return f"{version}+" if self._is_launched(name) else version


def message(event: str, data: str, identity: str = "") -> str:
    """One event of a stream (HTML standard, server-sent events)."""
    lines = "".join(f"data: {line}\n" for line in data.split("\n"))
    return (f"id: {identity}\n" if identity else "") + f"event: {event}\n{lines}\n"
