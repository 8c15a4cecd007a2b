"""The experiment folder: the only truth about an experiment, on any filesystem that pyarrow speaks.

::

    <storage>/<experiment>/
        task.json plan.json environment.json    what was asked, what was planned, what it runs on
        stop                                    asks every process of the experiment to end in order
        trials/<trial>/state.json               where the trial stands; rewritten at each change
        trials/<trial>/rungs/<k>.json           what rung k measured, written as soon as it is known
        trials/<trial>/record.json              the trial's end; absent while it runs
        trials/<trial>/engine.log, rung-<k>/…   raw output
        results.json trials.csv                 made from the above, at any time

Every file is written under a temporary name and then renamed, so a reader sees it whole or not at all.
"""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pyarrow
import pyarrow.fs as pafs

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.records import RungRecord, TrialId, TrialRecord, TrialState, from_json, to_json

T = TypeVar("T")


@dataclass(frozen=True)
class Storage:
    """A folder on a filesystem, by path or URI (``results``, ``/nfs/tuning``, ``s3://bucket/tuning``)."""

    uri: str

    @cached_property
    def _filesystem(self) -> tuple[pafs.FileSystem, str]:
        try:
            if "://" not in self.uri:
                return pafs.LocalFileSystem(), str(Path(self.uri).expanduser().resolve())
            filesystem, root = pafs.FileSystem.from_uri(self.uri)
            return filesystem, root.rstrip("/")
        except (pyarrow.ArrowException, OSError) as error:
            raise EnvironmentFault(f"storage {self.uri!r} cannot be opened: {error}") from error

    @property
    def is_local(self) -> bool:
        return isinstance(self._filesystem[0], pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.uri,))  # the opened filesystem stays where it was opened

    def sub(self, path: str) -> Storage:
        return Storage(f"{self.uri.rstrip('/')}/{path}")

    def location(self, path: str = "") -> str:
        """Where a file is, for people: an absolute path, or a URI."""
        base = self._filesystem[1] if self.is_local else self.uri.rstrip("/")
        return f"{base}/{path}".rstrip("/")

    def write(self, path: str, text: str) -> None:
        """Write a whole file, so that no reader ever sees a part of it.

        Raises:
            EnvironmentFault: the storage refuses (full, read-only, gone).
        """
        filesystem, root = self._filesystem
        target = f"{root}/{path}"
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else target
        try:
            filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            with filesystem.open_output_stream(temporary) as stream:
                stream.write(text.encode())
            if temporary != target:  # an object store makes a whole object visible at once by itself
                filesystem.move(temporary, target)
        except (pyarrow.ArrowException, OSError) as error:
            raise EnvironmentFault(f"cannot write {self.location(path)}: {error}") from error

    def read(self, path: str) -> str | None:
        """The file's text, or ``None`` when there is no such file."""
        filesystem, root = self._filesystem
        try:
            with filesystem.open_input_stream(f"{root}/{path}") as stream:
                return bytes(stream.read()).decode()
        except FileNotFoundError:
            return None
        except (pyarrow.ArrowException, OSError) as error:
            raise EnvironmentFault(f"cannot read {self.location(path)}: {error}") from error

    def exists(self, path: str) -> bool:
        filesystem, root = self._filesystem
        return bool(filesystem.get_file_info(f"{root}/{path}").type != pafs.FileType.NotFound)

    def list(self, path: str = "") -> list[str]:
        """The names in a folder, sorted; empty when there is no such folder."""
        filesystem, root = self._filesystem
        selector = pafs.FileSelector(f"{root}/{path}".rstrip("/"), allow_not_found=True)
        return sorted(info.base_name for info in filesystem.get_file_info(selector))

    def workdir(self, path: str) -> Path:
        """A local folder to produce files in: the real one where it is local, else a temporary one."""
        if self.is_local:
            folder = Path(self._filesystem[1]) / path
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        return Path(tempfile.mkdtemp(prefix="raytune-autotuner-"))

    def keep(self, workdir: Path, path: str) -> None:
        """Bring what is in a work folder to the storage; nothing to do where they are the same."""
        if self.is_local:
            return
        filesystem, root = self._filesystem
        try:
            pafs.copy_files(str(workdir), f"{root}/{path}", destination_filesystem=filesystem)
        except (pyarrow.ArrowException, OSError) as error:
            raise EnvironmentFault(f"cannot write {self.location(path)}: {error}") from error


@dataclass(frozen=True)
class ExperimentFolder:
    """The layout at the top of this module, by name instead of by path."""

    storage: Storage
    name: str

    @cached_property
    def root(self) -> Storage:
        return self.storage.sub(self.name)

    def request_stop(self) -> None:
        self.root.write("stop", "")

    def stop_requested(self) -> bool:
        return self.root.exists("stop")

    def save_state(self, state: TrialState) -> None:
        self._save(state.trial, "state.json", state)

    def save_rung(self, trial: TrialId, rung: RungRecord) -> None:
        self._save(trial, f"rungs/{rung.rung}.json", rung)

    def save_record(self, record: TrialRecord) -> None:
        self._save(record.trial, "record.json", record)

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
        found = (self.record(name) for name in self.trial_names())
        return sorted((r for r in found if r), key=lambda r: r.number)

    def states(self) -> list[TrialState]:
        """Every trial that was ever begun, in the order of proposal."""
        found = (self.state(name) for name in self.trial_names())
        return sorted((s for s in found if s), key=lambda s: s.number)

    def _save(self, trial: TrialId, path: str, value: object) -> None:
        self.root.write(f"trials/{trial.name}/{path}", to_json(value))

    def _load(self, kind: type[T], path: str) -> T | None:
        text = self.root.read(path)
        return None if text is None else from_json(kind, text)
