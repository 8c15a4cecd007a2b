"""The logs of one trial, as they grow in the experiment folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.storage import Storage

CLIENT_LOG = "genai_bench.log"


@dataclass
class Tail:
    """What is new in a trial's logs since the last look."""

    folder: ExperimentFolder
    trial: str
    _shown: dict[str, int] = field(default_factory=dict)
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
                continue  # reading it again would cost a transfer
            text = root.read(name)
            if text is None:
                continue
            new, self._shown[name] = text[self._shown.get(name, 0) :], len(text)
            self._written[name] = written
            if new:
                yield new if self._last == name else f"==> {name} <==\n{new}"
                self._last = name


def log_names(root: Storage) -> list[str]:
    """Of the engine, then of the benchmark client by rung and load."""
    own = root.list()
    rungs = [name for name in own if name.startswith(("warmup-", "rung-"))]
    loads = [f"{rung}/{load}" for rung in rungs for load in root.list(rung)]
    return [*(name for name in own if name.endswith(".log")), *(f"{load}/{CLIENT_LOG}" for load in loads)]
