"""All experiments of a storage, kept in memory as far as they are looked at."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from raytune_autotuner.errors import StorageFault
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import EXPERIMENT_NAME
from raytune_autotuner.storage import Storage
from raytune_autotuner.web.reader import Reader, Snapshot, Unreadable

TRIAL_NAME = re.compile(r"(?:baseline|search|control|confirm|single)-[0-9a-f]{12}(?:-[0-9]{1,6})?")
KEPT = 200
"""Experiments whose trials stay in memory."""


class Unknown(Exception):
    """There is no such experiment or trial."""


class Library:
    """May be used by several threads; looks at one experiment are made one after the other."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._readers: OrderedDict[str, tuple[Reader, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()
        self._known: dict[str, bool] = {}

    def names(self) -> list[str]:
        """The experiments there are; what else lies in the storage is passed over."""
        found = [name for name in self.storage.list() if EXPERIMENT_NAME.fullmatch(name)]
        self._known = {name: self._known.get(name) or self.storage.exists(f"{name}/task.json") for name in found}
        return [name for name, known in self._known.items() if known]

    def checked(self, name: str) -> str:
        """
        Raises:
            Unknown: no experiment can have that name.
        """
        if not EXPERIMENT_NAME.fullmatch(name):
            raise Unknown(f"there is no experiment {name!r}")
        return name

    def folder(self, name: str) -> ExperimentFolder:
        """
        Raises:
            Unknown: no experiment can have that name, or none has it.
        """
        self.checked(name)
        if not self._known.get(name) and not self.storage.exists(f"{name}/task.json"):
            raise Unknown(f"there is no experiment {name}")
        return ExperimentFolder(self.storage, name)

    def trial_folder(self, name: str, trial: str) -> Storage:
        """
        Raises:
            Unknown: there is no such experiment, or no such trial in it.
        """
        folder = self.folder(name)
        if not TRIAL_NAME.fullmatch(trial) or not folder.root.exists(f"trials/{trial}"):
            raise Unknown(f"experiment {name} has no trial {trial!r}")
        return folder.root.sub(f"trials/{trial}")

    def look(self, name: str) -> Snapshot:
        """An experiment as it is now.

        Raises:
            Unknown: there is none such.
            Unreadable: this version cannot read it.
            StorageFault: the storage does not answer.
        """
        folder = self.folder(name)
        with self._reader(folder) as reader:
            try:
                return reader.look()
            except (Unreadable, StorageFault):
                self._forget(name)
                raise

    @contextmanager
    def _reader(self, folder: ExperimentFolder) -> Iterator[Reader]:
        with self._lock:
            reader, mine = self._readers.setdefault(folder.name, (Reader(folder), threading.Lock()))
            self._readers.move_to_end(folder.name)
            while len(self._readers) > KEPT:
                self._readers.popitem(last=False)
        with mine:
            yield reader

    def _forget(self, name: str) -> None:
        with self._lock:
            self._readers.pop(name, None)
