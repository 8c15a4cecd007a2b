"""The trials of an experiment that have ended, read from its folder as they do."""

from __future__ import annotations

import time
from collections.abc import Callable

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.foresight.cases import Case

LOOK_S = 2.0
"""So often a storage elsewhere is looked at, where every file is a request."""


class Ended:
    """The cases of an experiment; each record that stands is read once. Used by one thread."""

    def __init__(self, folder: ExperimentFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._standing: dict[str, Case] = {}
        self._open: dict[str, Case] = {}
        self._looked = float("-inf")

    def cases(self) -> tuple[Case, ...]:
        """All that are known by now, the earlier proposed first."""
        if self._folder.root.is_local or self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            self._look()
        return tuple(sorted((*self._standing.values(), *self._open.values()), key=lambda case: case.number))

    def _look(self) -> None:
        self._open = {}
        for name in self._folder.trial_names():
            if name in self._standing or (record := self._folder.record(name)) is None:
                continue
            case = Case.of(record)
            stands = case.outcome != "failed" and not case.interrupted  # what does not is begun again
            (self._standing if stands else self._open)[name] = case
