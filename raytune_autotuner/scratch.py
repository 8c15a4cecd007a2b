"""Temporary work folders that do not outlive their process, whatever kills it.

Each folder has a lock file beside it that its process holds; the kernel lets go of it when the process dies, and
whoever makes a folder next on that machine removes what nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "raytune-autotuner-work-"
_LOCK = ".lock"


Mark = tuple[int, int]
"""Size and time of change of a file."""
GROWN = 0.1
"""A log is brought again when so much has been added to it: in all, some ten times its size are brought …"""
QUIET_BYTES_PER_S = 1024 * 1024 / 60
"""… or when bringing all of it again comes to no more than this."""
QUIET_S = 60.0
"""But not more often for that."""


@dataclass
class _Held:
    lock: int
    brought: dict[Path, tuple[Mark, float]] = field(default_factory=dict)
    """What each file was like when it was brought elsewhere, and when that was."""
    at: float = float("-inf")


_held: dict[Path, _Held] = {}


def make() -> Path:
    """A new, empty folder that belongs to this process."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(_lock_of(folder), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    _held[folder] = _Held(lock)
    return folder


def changed(folder: Path, *, everything: bool = True) -> dict[Path, Mark]:
    """The files in it that are new or have changed since they were ``brought``.

    Unless ``everything`` is wanted, those logs are left out that have hardly grown.
    """
    brought = _held[folder].brought if folder in _held else {}
    found: dict[Path, Mark] = {}
    for file in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            facts = file.lstat()
            mark = (facts.st_size, facts.st_mtime_ns)
            before, at = brought.get(file, (None, 0.0))
            if not stat.S_ISREG(facts.st_mode) or before == mark:
                continue
            if everything or before is None or file.suffix != ".log" or _has_grown(before[0], mark[0], at):
                found[file] = mark
    return found


def _has_grown(before: int, size: int, at: float) -> bool:
    """Whether a log is worth bringing whole once more."""
    if size < before or size - before >= GROWN * before:
        return True
    return time.monotonic() - at >= max(QUIET_S, size / QUIET_BYTES_PER_S)


def brought(folder: Path, file: Path, mark: Mark) -> None:
    """Remember that a file is where it should be, as it was at ``mark``."""
    if folder in _held:
        _held[folder].brought[file] = (mark, time.monotonic())


def due(folder: Path, every_s: float) -> bool:
    """Whether so much time has gone since this last said yes."""
    now = time.monotonic()
    held = _held.get(folder)
    if held is None or now - held.at < every_s:
        return held is None
    held.at = now
    return True


def remove(folder: Path) -> None:
    """Remove a folder that ``make`` made; nothing to do for any other."""
    held = _held.pop(folder, None)
    if held is not None:
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        os.close(held.lock)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _sweep() -> None:
    """Remove the folders of processes that have died; those of other users are left to them."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*{_LOCK}"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.with_name(path.name.removesuffix(_LOCK)), ignore_errors=True)
                path.unlink()
            finally:
                os.close(lock)
