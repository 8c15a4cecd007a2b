"""The logs of one trial, as they grow in the experiment folder."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.storage import Storage

CLIENT_LOG = "genai_bench.log"
PART_BYTES = 1024 * 1024


@dataclass
class Tail:
    """What is new in a trial's logs since the last look."""

    folder: ExperimentFolder
    trial: str
    _shown: dict[str, int] = field(default_factory=dict)
    """Bytes of each."""
    _decoders: dict[str, codecs.IncrementalDecoder] = field(default_factory=dict)
    """A character may be written in two parts."""
    _written: dict[str, datetime | None] = field(default_factory=dict)
    _last: str = ""

    def is_over(self) -> bool:
        return self.folder.record(self.trial) is not None

    def news(self) -> Iterator[str]:
        """What was added, with a headline where it is another file's than what was told before."""
        root = self.folder.root.sub(f"trials/{self.trial}")
        for name in log_names(root):
            written = root.modified(name)
            if self._written.get(name) == written:
                continue  # asking for it would cost a request
            self._written[name] = written
            for new in self._added(root, name):
                yield new if self._last == name else f"==> {name} <==\n{new}"
                self._last = name

    def _added(self, root: Storage, name: str) -> Iterator[str]:
        """What is new in a file, in parts; what was told is not read again."""
        decoder = self._decoders.setdefault(name, codecs.getincrementaldecoder("utf-8")("replace"))
        while data := root.read_from(name, self._shown.get(name, 0), PART_BYTES):
            self._shown[name] = self._shown.get(name, 0) + len(data)
            if new := decoder.decode(data):
                yield new


def log_names(root: Storage) -> list[str]:
    """Of the engine, then of the benchmark client by rung and load."""
    own = root.list()
    rungs = [name for name in own if name.startswith(("warmup-", "rung-"))]
    loads = [f"{rung}/{load}" for rung in rungs for load in root.list(rung)]
    return [*(name for name in own if name.endswith(".log")), *(f"{load}/{CLIENT_LOG}" for load in loads)]
