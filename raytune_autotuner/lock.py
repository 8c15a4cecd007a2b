"""Who runs an experiment: one file with a heartbeat in its folder, so that nobody else runs it at the same time.

The age of a heartbeat is read from the storage's own clock at both ends, so the clocks of the machines do not matter.
A holder that is known to be dead (its process is gone from this machine, or its heartbeat has stopped for a minute)
is taken over; one whose heartbeat is young but which somebody says is dead is watched first.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from raytune_autotuner import __version__
from raytune_autotuner.errors import EnvironmentFault, StorageFault
from raytune_autotuner.processes import start_time
from raytune_autotuner.storage import Storage

LOCK = "lock.json"
BEAT_S = 5.0
STALE_S = 60.0
"""A heartbeat may miss some beats: a busy machine, a storage that is away for a while."""
WATCH_S = 4 * BEAT_S
"""How long a holder that is said to be dead is watched for a sign of life."""
SETTLE_S = 1.0
"""Of two who take a lock in the same moment, the one that wrote last has it: when both look again after this. A free
lock on a filesystem with hard links is made by one alone, and needs no second look."""


@dataclass(frozen=True)
class Holder:
    """A process that runs an experiment."""

    host: str
    machine: str
    """Of this boot and this container, so that a pid means something."""
    pid: int
    started: str | None
    """Of the process, in clock ticks; a pid alone may come again."""
    version: str
    token: str

    @classmethod
    def me(cls) -> Holder:
        return cls(platform.node(), _machine(), os.getpid(), start_time(os.getpid()), __version__, uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_known_dead(self) -> bool:
        """Whether it ran here and does no more; ``False`` when that cannot be told from here."""
        return self.machine == _machine() and start_time(self.pid) != self.started


@dataclass(frozen=True)
class Held:
    """A lock as it was found."""

    holder: Holder
    beat_at: datetime
    """The last sign of life, by the storage's clock."""
    age_s: float

    @property
    def is_alive(self) -> bool:
        return self.age_s < STALE_S and not self.holder.is_known_dead


class HeldByAnother(EnvironmentFault):
    """Somebody else runs the experiment."""


def read(folder: Storage) -> Held | None:
    """Who has the experiment, dead or alive; ``None`` when nobody has."""
    text, beat_at = folder.read(LOCK), folder.modified(LOCK)
    if text is None or beat_at is None:
        return None
    return Held(_holder(text), beat_at, max(0.0, (folder.now() - beat_at).total_seconds()))


@contextmanager
def hold(folder: Storage, *, force: bool = False, lost: Callable[[str], None]) -> Iterator[Held | None]:
    """Have the experiment while the body runs; what it was found with, when its last holder did not give it back.

    ``lost`` is called from another thread when somebody else has taken it over; nothing may be written then.

    Raises:
        HeldByAnother: its holder is alive.
        StorageFault: the storage cannot be written.
    """
    found = read(folder)
    if found is not None and found.is_alive and not (force and _is_silent(folder, found)):
        raise HeldByAnother(_refusal(folder, found, force))
    me = Holder.me()
    _take(folder, me, found)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, me, ended, lost), name="lock-heartbeat", daemon=True)
    beating.start()
    try:
        yield found
    finally:
        ended.set()
        beating.join()
        with suppress(StorageFault, HeldByAnother):
            _check(folder, me)
            folder.delete(LOCK)


def _take(folder: Storage, me: Holder, found: Held | None) -> None:
    """Have the lock that was free, or whose holder is dead; ``HeldByAnother`` when somebody else was faster."""
    is_exclusive = folder.is_local and _made(folder, me, found)
    if not is_exclusive:
        folder.write(LOCK, _text(me))
    if found is not None or not is_exclusive:
        threading.Event().wait(SETTLE_S)
    _check(folder, me)


def _made(folder: Storage, me: Holder, found: Held | None) -> bool:
    """Whether our lock was made as a new file, which only one can do; not on a filesystem without hard links."""
    with suppress(StorageFault):  # where nothing can be written at all, the next one tells
        if found is not None:
            _put_away(folder, me, found)
        if not folder.create(LOCK, _text(me)):
            _refuse_other(folder, me)
        return True
    return False


def _put_away(folder: Storage, me: Holder, found: Held) -> None:
    """Take a dead holder's lock out of the way; one that somebody has taken since is put back."""
    aside = f"{LOCK}.{me.token}.tmp"
    if not folder.move(LOCK, aside):
        return
    text = folder.read(aside)
    if text and _holder(text).token != found.holder.token:
        folder.create(LOCK, text)
    folder.delete(aside)


def _refuse_other(folder: Storage, me: Holder) -> None:
    """Our own it may be when a server of NFS was asked twice, because its first answer was lost."""
    text = folder.read(LOCK)
    if text is None or _holder(text).token != me.token:
        who = _holder(text) if text else "somebody else"
        raise HeldByAnother(f"{folder.location()} was taken by {who} in the same moment")


def _beat(folder: Storage, me: Holder, ended: threading.Event, lost: Callable[[str], None]) -> None:
    while not ended.wait(BEAT_S):
        try:
            _check(folder, me)
            folder.write(LOCK, _text(me))
        except HeldByAnother as error:
            return lost(str(error))
        except StorageFault:  # away for a while; what it cannot take, the experiment itself will notice
            continue
        except Exception as error:  # noqa: BLE001 - a heart that stopped unseen would let a second driver in beside us
            return lost(f"the heartbeat in {folder.location()} has failed, so that others may take it over: {error!r}")


def _check(folder: Storage, me: Holder) -> None:
    text = folder.read(LOCK)
    holder = _holder(text) if text else None
    if holder is not None and holder.token != me.token:
        raise HeldByAnother(f"{folder.location()} was taken over by {holder}")


def _is_silent(folder: Storage, found: Held) -> bool:
    """Whether a holder gives no sign of life while it is watched."""
    threading.Event().wait(WATCH_S)
    now = read(folder)
    return now is None or now.beat_at == found.beat_at


def _refusal(folder: Storage, found: Held, force: bool) -> str:
    sign = (
        f"{found.holder} runs the experiment in {folder.location()}: its last sign of life is {found.age_s:.0f} s old"
    )
    if force:
        return f"{sign}, and it is alive; end it first (raytune-autotuner stop)"
    return f"{sign}; end it (raytune-autotuner stop), or take it over with --force if that process is dead"


def _holder(text: str) -> Holder:
    return Holder(**json.loads(text))


def _text(holder: Holder) -> str:
    return json.dumps(asdict(replace(holder)))


def _machine() -> str:
    """Changes with every boot, and from one container to the next."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
