"""Following a job of a Ray cluster: its log as it is written, until it is over."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aiohttp
from ray.job_submission import JobDetails

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.jobs import JobServer

LOST_S = 120.0
"""How long a job server may be silent before following it is given up; the job itself goes on."""
STOP_S = 60.0
"""How long a job server is asked again to stop a job."""
ASK_S = 5.0
RETRY_S = 1.0


def follow(
    server: JobServer, submission_id: str, write: Callable[[str], None], say: Callable[[str], None] | None = None
) -> JobDetails:
    """Hand on a job's log as it is written, until the job is over; how it ended.

    The first Ctrl-C stops the job and goes on, the second raises ``KeyboardInterrupt``. ``say`` is told what comes of
    the first; without it, the first one leaves.

    Raises:
        TransientError: the job server has been silent for too long.
    """
    return asyncio.run(_Following(server, submission_id, write).follow(say))


@dataclass
class _Following:
    server: JobServer
    job: str
    write: Callable[[str], None]
    shown: int = 0
    """Characters of the log that were handed on; a new connection tells everything again."""

    async def follow(self, say: Callable[[str], None] | None) -> JobDetails:
        interrupted = asyncio.Event()
        with _on_interrupt(interrupted if say else None):
            closed = asyncio.Event()
            listening = asyncio.create_task(self._listen(closed))
            stopping = asyncio.create_task(self._stop(interrupted, say or self.write))
            try:
                job = await self._end(listening, closed)
            except (asyncio.CancelledError, TransientError):
                if say and interrupted.is_set() and not stopping.done():
                    say(f"the job may not have been told to stop; {self._by_hand}")
                raise
            finally:
                listening.cancel()
                stopping.cancel()
            with contextlib.suppress(EnvironmentFault):  # how it ended is known, whether or not the rest can be had
                self._show(await asyncio.to_thread(self.server.log, self.job), 0)
            return job

    async def _stop(self, interrupted: asyncio.Event, say: Callable[[str], None]) -> None:
        """When somebody wants it; a head may be away for a moment."""
        await interrupted.wait()
        say("stopping in order; Ctrl-C again leaves")
        deadline = Deadline.after(STOP_S)
        while True:
            try:
                await asyncio.to_thread(self.server.stop, self.job)
            except EnvironmentFault as error:
                if deadline.expired:
                    return say(f"the job could not be told to stop, and goes on: {error}; {self._by_hand}")
            else:
                return say("the job was told to stop, and ends by itself")
            await asyncio.sleep(RETRY_S)

    @property
    def _by_hand(self) -> str:
        return f"run: ray job stop --address {self.server.address} {self.job}"

    async def _end(self, listening: asyncio.Task[None], closed: asyncio.Event) -> JobDetails:
        """Wait for the job's end. It is asked for, too: the connection of the log may hang without a word."""
        lost = Deadline.after(LOST_S)
        while True:
            try:
                job = await asyncio.to_thread(self.server.info, self.job)
            except EnvironmentFault as error:
                if lost.expired:
                    raise TransientError(f"{error}; the job may still run") from error
            else:
                lost = Deadline.after(LOST_S)
                if job.status.is_terminal():
                    return job
            if listening.done():
                listening.result()  # it ends by an error of ours only, which must not pass unseen
            closed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(closed.wait(), ASK_S)

    async def _listen(self, closed: asyncio.Event) -> None:
        while True:
            told = 0
            with contextlib.suppress(RuntimeError, aiohttp.ClientError, OSError):
                async for text in self.server.client.tail_job_logs(self.job):
                    self._show(text, told)
                    told += len(text)
            closed.set()
            await asyncio.sleep(RETRY_S)

    def _show(self, text: str, begin: int) -> None:
        """Hand on what is new in a part of the log that begins there."""
        if new := text[max(0, self.shown - begin) :]:
            self.write(new)
            self.shown += len(new)


@contextlib.contextmanager
def _on_interrupt(first: asyncio.Event | None) -> Iterator[None]:
    """Set that at the first Ctrl-C, and leave at the next one."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    left = False

    def handle() -> None:
        nonlocal left
        if first is not None and not first.is_set():
            return first.set()  # no more than that: what takes its time or fails here would hold up the loop
        left = True
        task.cancel()

    loop.add_signal_handler(signal.SIGINT, handle)
    try:
        yield
    except asyncio.CancelledError:
        if not left:
            raise
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
