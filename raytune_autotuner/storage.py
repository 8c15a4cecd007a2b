"""Files on any filesystem that pyarrow or fsspec speaks.

A reader sees a file whole or not at all. On a filesystem, a file is written under a temporary name, brought to the
disk and then renamed, which POSIX and NFS make atomic (``rename(2)``; an NFS client may serve a reader the file
before it for as long as it caches attributes, 60 s by default, and a stop request may take as long to be seen). On an
object store, an object appears whole when it is complete, and reads and lists see what was written before them (S3,
Google and Azure promise both). A crash may leave a ``*.tmp``, which nothing reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import pyarrow.fs as pafs

from raytune_autotuner import scratch
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.filesystems import STORE_ERRORS, Opened, makes_whole_files, open_uri, patient, refuse_secrets

T = TypeVar("T")

ANSWER_TIMEOUT_S = 60.0
"""For one request to a remote store, all retries of its library included."""
PATIENCE_S = 60.0
"""For so long an outage of a remote store is waited out."""
UPLOAD_BYTES_PER_S = 1e6
"""A slower store than this is taken for dead."""
PROBE_BYTES = 64 * 1024
"""Enough that a full disk or quota shows."""
COPY_BYTES = 4 * 1024 * 1024
REPLACED = 5
"""So often in a row an object may be replaced while it is read."""
READERS = 16
"""Requests at the same time to a remote store, where many files are read: each takes some 20 ms of waiting."""


@dataclass(frozen=True)
class Storage:
    """A folder on a filesystem, by path or URI (``results``, ``/nfs/tuning``, ``s3://bucket/tuning?region=…``).

    Raises:
        SpecError: the URI carries credentials.
    """

    uri: str

    def __post_init__(self) -> None:
        if "://" in self.uri:
            refuse_secrets(self.uri)

    @cached_property
    def opened(self) -> Opened:
        """The filesystem and the path on it, for libraries that take these (Ray Tune)."""
        try:
            if "://" not in self.uri:
                return pafs.LocalFileSystem(), str(Path(self.uri).expanduser().resolve())
            return open_uri(self.uri)
        except (*STORE_ERRORS, ValueError, ImportError) as error:
            raise StorageFault(f"storage {self.uri!r} cannot be opened: {error}") from error

    @property
    def is_local(self) -> bool:
        return isinstance(self.opened[0], pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.uri,))  # the opened filesystem stays where it was opened

    def sub(self, path: str) -> Storage:
        return Storage(_joined(self.uri, path))

    def location(self, path: str = "") -> str:
        """Where a file is, for people and for ``Storage``: an absolute path, or a URI with its options."""
        return _joined(self.opened[1] if self.is_local else self.uri, path)

    def write(self, path: str, text: str) -> None:
        """Write a whole file, so that no reader ever sees a part of it.

        Raises:
            StorageFault: the storage refuses (full, read-only, gone) or does not answer.
        """
        write = self._write_local if self.is_local else self._write_remote
        self._ask("write", path, lambda: write(path, text.encode()))

    def create(self, path: str, text: str) -> bool:
        """Write a whole file where there is none; of several who try, one does. On a local filesystem only.

        By ``link(2)``, which is exclusive on NFS as well.

        Raises:
            StorageFault: it refuses, or has no hard links.
        """
        return self._ask("write", path, lambda: self._write_local(path, text.encode(), new=True))

    def move(self, path: str, to: str) -> bool:
        """Rename a file; of several who try, one does. On a local filesystem only."""
        root = Path(self.opened[1])
        try:
            self._ask("move", path, lambda: (root / path).rename(root / to))
        except FileNotFoundError:
            return False
        return True

    def read(self, path: str) -> str | None:
        """The file's text, or ``None`` when there is no such file.

        Arrow asks a remote store how long an object is, then for so many bytes: of one that is replaced by a longer
        one in between, the end is missing. Our JSON files, the only ones that are replaced, are then read again.
        """
        filesystem, root = self.opened

        def read() -> bytes:
            with filesystem.open_input_stream(f"{root}/{path}") as stream:
                return bytes(stream.read())

        try:
            data = self._ask("read", path, read)
            for _ in range(0 if self.is_local or not path.endswith(".json") else REPLACED):
                if _is_whole(data):
                    break
                data = self._ask("read", path, read)
            return data.decode()
        except FileNotFoundError:
            return None

    def read_from(self, path: str, start: int, limit: int) -> bytes:
        """At most ``limit`` bytes of a file from a place on (a negative ``start`` counts from its end).

        Nothing when there is no such file, or when it is not that long.
        """
        filesystem, root = self.opened

        def read() -> bytes:
            with filesystem.open_input_file(f"{root}/{path}") as stream:
                size = stream.size()
                begin = max(0, size + start) if start < 0 else min(start, size)
                stream.seek(begin)
                return bytes(stream.read(min(limit, size - begin)))

        try:
            return self._ask("read", path, read)
        except FileNotFoundError:
            return b""

    def size(self, path: str) -> int | None:
        """Of a file, in bytes; ``None`` when there is no such file."""
        info = self._info(path)
        return int(info.size) if info.type == pafs.FileType.File else None

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder of that name."""
        return bool(self._info(path).type != pafs.FileType.NotFound)

    def modified(self, path: str) -> datetime | None:
        """When a file was last written, by the storage's own clock; ``None`` when there is no such file.

        Object stores count in whole seconds.
        """
        info = self._info(path)
        return None if info.type == pafs.FileType.NotFound else info.mtime

    def now(self) -> datetime:
        """The time by the clock that ``modified`` goes by; costs a write.

        Raises:
            StorageFault: nothing can be written, or the storage keeps no times.
        """
        name = f".clock-{uuid.uuid4().hex}"
        self.write(name, "")
        try:
            written = self.modified(name)
        finally:
            self.delete(name)
        if written is None:
            raise StorageFault(f"{self.location()} does not tell when its files were written")
        return written

    def probe(self) -> None:
        """Find out whether files can be written; says at once when they cannot.

        Raises:
            StorageFault: with the reason (disk full, read-only, no such bucket, no credentials, no answer).
        """
        name = f".probe-{uuid.uuid4().hex}"
        write = self._write_local if self.is_local else self._write_remote
        self._ask("write", name, lambda: write(name, b"0" * PROBE_BYTES), patience_s=0)
        self.delete(name)

    def list(self, path: str = "") -> list[str]:
        """The names in a folder, sorted; empty when there is no such folder."""
        filesystem, root = self.opened
        selector = pafs.FileSelector(f"{root}/{path}".rstrip("/"), allow_not_found=True)
        return sorted(info.base_name for info in self._ask("list", path, lambda: filesystem.get_file_info(selector)))

    def stamps(self, path: str = "") -> dict[str, int | None]:
        """The names in a folder, with when each was last written, in nanoseconds; costs one request.

        A folder of a local filesystem is written when a file in it appears, goes or is replaced; an object store has
        no time for folders.
        """
        filesystem, root = self.opened
        selector = pafs.FileSelector(f"{root}/{path}".rstrip("/"), allow_not_found=True)
        found = self._ask("list", path, lambda: filesystem.get_file_info(selector))
        return {info.base_name: info.mtime_ns for info in found}

    def delete(self, path: str) -> None:
        """Remove a file; nothing to do when there is none."""
        filesystem, root = self.opened
        with contextlib.suppress(FileNotFoundError):
            self._ask("delete", path, lambda: filesystem.delete_file(f"{root}/{path}"))

    def workdir(self, path: str) -> Path:
        """A local folder to produce files in: the real one where it is local, else a temporary one.

        ``keep`` removes a temporary one; of a process that dies first, the next call on that machine does.
        """
        if not self.is_local:
            return scratch.make()
        folder = Path(self.opened[1]) / path
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def keep(self, workdir: Path, path: str, *, last: bool = False, every_s: float = 0.0) -> None:
        """Bring what is new or has grown in a work folder to the storage, if that was not done lately.

        A log is brought whole, so not before it has grown by a part of its size, or after a while; and at the
        ``last`` time, which gives the folder up. Nothing to do where they are the same; what cannot be brought stays.

        Raises:
            StorageFault: the storage refuses.
        """
        if self.is_local or not scratch.due(workdir, every_s):
            return
        for file, mark in scratch.changed(workdir, everything=last).items():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                self._upload(file, f"{path}/{file.relative_to(workdir).as_posix()}")
                scratch.brought(workdir, file, mark)
        if last:
            scratch.remove(workdir)

    def _upload(self, file: Path, path: str) -> None:
        filesystem, root = self.opened
        target = f"{root}/{path}"

        def copy() -> None:  # not by pyarrow's `copy_files`, which does not tell when the last step fails
            if not makes_whole_files(filesystem):
                filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            with file.open("rb") as source, filesystem.open_output_stream(target) as stream:
                shutil.copyfileobj(source, stream, COPY_BYTES)

        self._ask("write", path, copy, timeout_s=ANSWER_TIMEOUT_S + file.stat().st_size / UPLOAD_BYTES_PER_S)

    def _write_local(self, path: str, data: bytes, *, new: bool = False) -> bool:
        """Durable when it returns: a record that was reported as finished survives the end of the machine.

        ``False`` when it should be ``new``, and there is one.
        """
        target = Path(self.opened[1]) / path
        made = list(takewhile(lambda folder: not folder.exists(), target.parents))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if new and not _linked(temporary, target):
                return False
            if not new:
                temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        for folder in (target.parent, *(each.parent for each in made)):
            _settle(folder)
        return True

    def _write_remote(self, path: str, data: bytes) -> bool:
        filesystem, root = self.opened
        target = f"{root}/{path}"
        whole = makes_whole_files(filesystem)
        temporary = target if whole else f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        if not whole:
            filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
        with filesystem.open_output_stream(temporary) as stream:
            stream.write(data)
        if not whole:
            filesystem.move(temporary, target)
        return True

    def _info(self, path: str) -> pafs.FileInfo:
        filesystem, root = self.opened
        return self._ask("read", path, lambda: filesystem.get_file_info(f"{root}/{path}"))

    def _ask(
        self,
        verb: str,
        path: str,
        call: Callable[[], T],
        timeout_s: float | None = None,
        patience_s: float | None = None,
    ) -> T:
        """A missing file comes out as ``FileNotFoundError``, everything else that goes wrong as ours."""
        try:
            return (
                call()
                if self.is_local
                else patient(call, timeout_s or ANSWER_TIMEOUT_S, PATIENCE_S if patience_s is None else patience_s)
            )
        except FileNotFoundError:
            raise
        except STORE_ERRORS as error:
            raise StorageFault(f"cannot {verb} {self.location(path)}: {error}") from error


def _settle(folder: Path) -> None:
    """What a folder lists is durable only when the folder itself is written."""
    with contextlib.suppress(OSError):  # some filesystems over a network do not know how, and need not
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _linked(temporary: Path, target: Path) -> bool:
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _is_whole(data: bytes) -> bool:
    """Whether it is JSON to its end."""
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _joined(base: str, path: str) -> str:
    """A path below a path or URI; a URI's options stay at its end."""
    front, mark, options = base.partition("?") if "://" in base else (base, "", "")
    return f"{front.rstrip('/')}/{path}".rstrip("/") + mark + options
