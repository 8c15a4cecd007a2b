"""The schedulers of an engine against the wall clock, and the answers that stream out of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.emulator.engine.metrics import observe
from tests.emulator.engine.model import Engine
from tests.emulator.engine.prefix import PrefixCache
from tests.emulator.engine.scheduling import Request, Scheduler

SLICE_S = 0.002
"""Wall time that decode steps are taken together for; what arrives meanwhile waits for the end of it."""
FLUSH_S = 0.02
"""Wall time between two writes to the same stream, but for the first and the last token."""


class QueueFull(Exception):
    """The engine takes no more requests."""


@dataclass(eq=False)
class Stream:
    """The tokens of one answer as they come."""

    request: Request
    rank: Scheduler
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    given: int = 0

    @property
    def finished(self) -> bool:
        return self.request.finished_s is not None


class Serving:
    """Runs an engine; ``scale`` virtual seconds pass in a second.

    Where the machine cannot keep up, tokens come late but in the right number: an answer says nothing it should not.
    """

    def __init__(self, engine: Engine, scale: float) -> None:
        self.engine = engine
        self.scale = scale
        self.counts: Counter[str] = Counter()
        self._start_s = time.monotonic()
        self._virtual_s = engine.ranks[0].clock.now_s
        self._work = [asyncio.Event() for _ in engine.ranks]
        self._streams: list[dict[Request, Stream]] = [{} for _ in engine.ranks]
        self._next = 0
        self._caches = [PrefixCache(rank.plan.capacity_tokens) for rank in engine.ranks]

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            EngineFailure: the engine fails under load.
        """
        await asyncio.gather(*(self._run(number) for number in range(len(self.engine.ranks))))

    @property
    def busy(self) -> bool:
        return any(not rank.idle for rank in self.engine.ranks)

    def clear_caches(self) -> None:
        for cache in self._caches:
            cache.clear()

    async def answer(self, text: str, prompt: int, output: int) -> AsyncIterator[int]:
        """The tokens of an answer, as counts of those that came since the last one; leaving it cancels the request.

        Raises:
            QueueFull: the engine takes no more.
        """
        number = self._next = (self._next + 1) % len(self.engine.ranks)
        rank, streams = self.engine.ranks[number], self._streams[number]
        cached = self._caches[number].put(text) if self.engine.plan.settings.prefix_cache else 0
        request = Request(prompt, output, cached=min(cached, prompt - 1), arrived_s=self._now())
        if not rank.submit(request):
            raise QueueFull
        stream = streams[request] = Stream(request, rank)
        self._work[number].set()
        self.counts.update(prompt=prompt, cached=request.cached)
        try:
            async for count in _counts(stream, self.engine.plan.settings.stream_interval):
                self.counts["generated"] += count
                yield count
        finally:
            del streams[request]
            self._close(stream)

    def _close(self, stream: Stream) -> None:
        request = stream.request
        if not stream.finished:
            stream.rank.cancel(request)
            return
        assert request.first_s is not None
        assert request.finished_s is not None
        self.counts["finished"] += 1
        observe(self.counts, "ttft", request.first_s - request.arrived_s)
        observe(self.counts, "e2e", request.finished_s - request.arrived_s)

    def _now(self) -> float:
        return self._virtual_s + (time.monotonic() - self._start_s) * self.scale

    async def _run(self, number: int) -> None:
        rank, work, streams = self.engine.ranks[number], self._work[number], self._streams[number]
        flushed = time.monotonic()
        while True:
            if rank.idle:
                work.clear()
                await work.wait()
                rank.clock.now_s = max(rank.clock.now_s, self._now())
            step = rank.step(SLICE_S * self.scale)
            await asyncio.sleep(max(0.0, (rank.clock.now_s - self._now()) / self.scale))
            now = time.monotonic()
            if now - flushed >= FLUSH_S:
                flushed = now
                for stream in streams.values():
                    stream.changed.set()
            for request in (*step.first, *step.finished):
                if request in streams:
                    streams[request].changed.set()
            await asyncio.sleep(0)  # streams are to see this step, and not the next one


async def _counts(stream: Stream, interval: int) -> AsyncIterator[int]:
    while True:
        await stream.changed.wait()
        stream.changed.clear()
        finished = stream.finished
        there = stream.request.output if finished else stream.rank.progress(stream.request)
        if not finished and stream.given:
            there = there // interval * interval
        if there > stream.given:
            new, stream.given = there - stream.given, there
            yield new
        if finished:
            return
