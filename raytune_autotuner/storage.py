"""The experiment folder: the only truth about an experiment, on any filesystem that pyarrow or fsspec speaks.

::

    <storage>/<experiment>/
        task.json plan.json environment.json    what was asked, what was planned, what it runs on
        stop                                    asks every process of the experiment to end in order
        halt.json                               asks single trials to end in order, and says why
        budget.json                             how long it has run, and what the budget has ended
        repeated.json                           configurations that were proposed again after they were measured
        trials/<trial>/state.json               where the trial stands; rewritten at each change
        trials/<trial>/rungs/<k>.json           what rung k measured, written as soon as it is known
        trials/<trial>/record.json              the trial's end; absent while it runs
        trials/<trial>/engine.log, rung-<k>/…   raw output, brought here after each rung and at the end
        tensorboard/<trial>/…                   the same figures for TensorBoard
        results.json trials.csv                 made from the above, at any time

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
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow.fs as pafs

from raytune_autotuner import scratch
from raytune_autotuner.errors import StorageFault, Superseded
from raytune_autotuner.filesystems import STORE_ERRORS, Opened, makes_whole_files, open_uri, patient, refuse_secrets
from raytune_autotuner.records import (
    Answers,
    BudgetState,
    Endpoint,
    RungRecord,
    SearchEnd,
    TrialId,
    TrialRecord,
    TrialState,
    from_json,
    to_json,
)

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
STOP_SEEN_AFTER_S = 1.0
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

        ``last`` gives the folder up. Nothing to do where they are the same; what cannot be brought stays.

        Raises:
            StorageFault: the storage refuses.
        """
        if self.is_local or not scratch.due(workdir, every_s):
            return
        for file, mark in scratch.changed(workdir).items():
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

    def _write_local(self, path: str, data: bytes) -> None:
        """Durable when it returns: a record that was reported as finished survives the end of the machine."""
        target = Path(self.opened[1]) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _write_remote(self, path: str, data: bytes) -> None:
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


class _Recent(Generic[T]):
    """The last answer to a question that many ask often, good for a second."""

    def __init__(self) -> None:
        self.value: T | None = None
        self._until = float("-inf")

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() < self._until

    def set(self, value: T) -> None:
        self.value = value
        self._until = time.monotonic() + STOP_SEEN_AFTER_S


SESSIONS = "sessions"


def session_file(number: int) -> str:
    return f"{SESSIONS}/{number:04}.json"


@dataclass(frozen=True)
class ExperimentFolder:
    """The layout at the top of this module, by name instead of by path."""

    storage: Storage
    name: str
    session: int = 0
    """Of whoever writes; when the next one has begun, what this one's workers write does not count any more."""

    def __reduce__(self) -> tuple[type[ExperimentFolder], tuple[Storage, str, int]]:
        return (
            ExperimentFolder,
            (self.storage, self.name, self.session),
        )  # another machine's clock says nothing about what we saw

    @cached_property
    def root(self) -> Storage:
        return self.storage.sub(self.name)

    @cached_property
    def _stop(self) -> _Recent[bool]:
        return _Recent()

    @cached_property
    def _halts(self) -> _Recent[dict[str, str]]:
        return _Recent()

    @cached_property
    def _later(self) -> _Recent[bool]:
        return _Recent()

    def request_stop(self) -> None:
        self.root.write("stop", "")
        self._stop.set(True)

    def stop_requested(self) -> bool:
        """Whether the experiment is to end. A remote store is asked once a second at most: every trial and the search
        want to know often, and each question costs money there."""
        if self.root.is_local or not self._stop.is_fresh:
            self._stop.set(self.root.read("stop") is not None)
        return bool(self._stop.value)

    def save_state(self, state: TrialState) -> None:
        self._save(state.trial, "state.json", state)

    def save_rung(self, trial: TrialId, rung: RungRecord) -> None:
        self._save(trial, f"rungs/{rung.rung}.json", rung)

    def save_record(self, record: TrialRecord) -> None:
        self._save(record.trial, "record.json", record)

    def save_endpoint(self, trial: TrialId, endpoint: Endpoint) -> None:
        self._save(trial, "endpoint.json", endpoint)

    def save_answers(self, trial: TrialId, answers: Answers) -> None:
        self._save(trial, "canary.json", answers)

    def answers(self, trial: str) -> Answers | None:
        """What a trial answered to the quality canary."""
        return self._load(Answers, f"trials/{trial}/canary.json")

    def endpoint(self, trial: str) -> Endpoint | None:
        """Of the trial's last deployment."""
        return self._load(Endpoint, f"trials/{trial}/endpoint.json")

    def save_waiting(self, waiting: Mapping[str, str]) -> None:
        """Which trials wait, and for what."""
        self.root.write("waiting.json", json.dumps(waiting, indent=1))

    def waiting(self) -> dict[str, str]:
        text = self.root.read("waiting.json")
        return json.loads(text) if text else {}

    def halt(self, reasons: Mapping[str, str]) -> None:
        """Ask these running trials to end in order, and say why."""
        self.root.write("halt.json", json.dumps({**self._halted(), **reasons}, indent=1))

    def halts(self) -> Mapping[str, str]:
        """Trials that are to end, with the reason. A remote store is asked once a second at most, as in
        ``stop_requested``."""
        if self.root.is_local or not self._halts.is_fresh:
            self._halts.set(self._halted())
        return self._halts.value or {}

    def _halted(self) -> dict[str, str]:
        text = self.root.read("halt.json")
        return json.loads(text) if text else {}

    def save_budget(self, state: BudgetState) -> None:
        self.root.write("budget.json", to_json(state))

    def budget(self) -> BudgetState | None:
        return self._load(BudgetState, "budget.json")

    def save_repeated(self, configs: Collection[str]) -> None:
        """Hashes of the configurations that were proposed again after they were measured."""
        self.root.write("repeated.json", json.dumps(sorted(configs)))

    def repeated(self) -> frozenset[str]:
        text = self.root.read("repeated.json")
        return frozenset(json.loads(text)) if text else frozenset()

    def save_search_end(self, end: SearchEnd | None) -> None:
        """Why the search ends early; ``None`` while it goes on, or goes on again."""
        if end is not None:
            self.root.write("search_end.json", to_json(end))
        elif self.root.exists("search_end.json"):
            self.root.delete("search_end.json")

    def search_end(self) -> SearchEnd | None:
        return self._load(SearchEnd, "search_end.json")

    def delete_record(self, trial: TrialId) -> None:
        self.root.delete(f"trials/{trial.name}/record.json")

    def trial_names(self) -> list[str]:
        return self.root.list("trials")

    def state(self, trial: str) -> TrialState | None:
        return self._load(TrialState, f"trials/{trial}/state.json")

    def record(self, trial: str) -> TrialRecord | None:
        return self._load(TrialRecord, f"trials/{trial}/record.json")

    def rungs(self, trial: str) -> tuple[RungRecord, ...]:
        names = [n for n in self.root.list(f"trials/{trial}/rungs") if n.endswith(".json")]
        found = (self._load(RungRecord, f"trials/{trial}/rungs/{name}") for name in names)
        return tuple(sorted((r for r in found if r), key=lambda r: r.rung))

    def records(self) -> list[TrialRecord]:
        """Every trial that has ended, in the order of proposal."""
        found = self._each(self.record, self.trial_names())
        return sorted((r for r in found if r), key=lambda r: r.number)

    def states(self) -> list[TrialState]:
        """Every trial that was ever begun, in the order of proposal."""
        found = self._each(self.state, self.trial_names())
        return sorted((s for s in found if s), key=lambda s: s.number)

    def _each(self, load: Callable[[str], T | None], names: Sequence[str]) -> list[T | None]:
        if self.root.is_local or len(names) < 2:
            return [load(name) for name in names]
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(load, names))

    def check_session(self) -> None:
        """A driver that is taken for dead may have workers elsewhere that live a while longer.

        Raises:
            Superseded: a later session has begun.
        """
        if not self.session:
            return
        if self.root.is_local or not self._later.is_fresh:
            self._later.set(self.root.exists(session_file(self.session + 1)))
        if self._later.value:
            raise Superseded(f"session {self.session + 1} of {self.name} has begun")

    def _save(self, trial: TrialId, path: str, value: object) -> None:
        self.check_session()
        self.root.write(f"trials/{trial.name}/{path}", to_json(value))

    def _load(self, kind: type[T], path: str) -> T | None:
        text = self.root.read(path)
        return None if text is None else from_json(kind, text)
