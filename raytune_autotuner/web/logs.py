"""The log of a trial as it grows, in pieces of bounded size."""

from __future__ import annotations

import asyncio
import codecs
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from anyio import to_thread

from raytune_autotuner import redaction
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.storage import Storage
from raytune_autotuner.trial_logs import log_names
from raytune_autotuner.web.live import Live, message

FIRST_BYTES = 64 * 1024
PIECE_BYTES = 256 * 1024
LONGEST_LINE = 16 * 1024
KEEP_ALIVE_S = 15.0


def names(trial: Storage) -> list[str]:
    """The logs of a trial, the engine's first."""
    return log_names(trial)


@dataclass
class Growing:
    """One log file; what is new since the last look, in whole lines: half a secret would not be known as one."""

    trial: Storage
    name: str
    _at: int | None = None
    _rest: str = ""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def news(self, last: bool = False) -> str:
        size = self.trial.size(self.name)
        if size is None:
            return ""
        if self._at is None or size < self._at:  # the first look, or the file was begun anew
            self._at = max(0, size - FIRST_BYTES)
        data = self.trial.read_from(self.name, self._at, PIECE_BYTES) if size > self._at else b""
        self._at += len(data)
        whole, mark, self._rest = (self._rest + self._decoder.decode(data)).rpartition("\n")
        if (last and not data) or len(self._rest) > LONGEST_LINE:
            whole, mark, self._rest = whole + mark + self._rest, "", ""
        return redaction.text(whole + mark)


async def follow(trial: Storage, name: str, live: Live) -> AsyncIterator[str]:
    """A stream of events: ``log`` with a JSON text each, ``over`` when the trial has ended and all is told.

    Without a name, the first log is waited for.
    """
    log = Growing(trial, name) if name else None
    spoken = time.monotonic()
    while not live.is_closed:
        try:
            over = await to_thread.run_sync(trial.exists, "record.json")
            log = log or await to_thread.run_sync(_first, trial)
            text = await to_thread.run_sync(log.news, over) if log else ""
        except StorageFault:
            over, text = False, ""
        if text:
            spoken = time.monotonic()
            yield message("log", json.dumps(text))
        elif over:
            yield message("over", "")
            return
        elif time.monotonic() - spoken > KEEP_ALIVE_S:
            spoken = time.monotonic()
            yield ": still there\n\n"
        else:
            await asyncio.sleep(live.look_s)


def _first(trial: Storage) -> Growing | None:
    return next((Growing(trial, name) for name in names(trial)), None)
