"""One experiment as its folder tells it, read again only where it has changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from threading import Lock
from typing import Literal

from raytune_autotuner import lock, overview, sessions
from raytune_autotuner.errors import Damaged, SpecError, StorageFault
from raytune_autotuner.folder import ExperimentFolder, Kept
from raytune_autotuner.records import Score, TrialRecord, TrialState
from raytune_autotuner.results import Results, results_of
from raytune_autotuner.summary import Summary, summarise
from raytune_autotuner.task.spec import Task

State = Literal["running", "stopping", "interrupted", "done"]
Part = Literal["quick", "slow"]
"""Of the plots."""

HOLDER_S = 5.0
"""How often it is asked whether the process that runs an experiment is alive: each time costs a write."""
WATCHED = ("task.json", "results.json", "waiting.json", "stop", "best.json", "lock.json")


class Unreadable(Exception):
    """The folder of an experiment holds what this version cannot read."""


@dataclass(frozen=True)
class Trial:
    """One trial: where it stands, and its record once it has ended."""

    state: TrialState | None
    record: TrialRecord | None

    @property
    def number(self) -> int:
        known = self.record or self.state
        return known.number if known else 0


@dataclass(frozen=True)
class Snapshot:
    """An experiment at one moment."""

    folder: ExperimentFolder
    version: int
    """Another number each time that something has changed."""
    task: Task
    state: State
    held: lock.Held | None
    trials: Mapping[str, Trial]
    waiting: Mapping[str, str]
    stop_requested: bool
    started_at: datetime | None
    ended_at: datetime | None
    planned: int
    """Trials, at most."""
    job: str | None
    """The Ray job that ran it last."""
    drawn: dict[tuple[Part, str], str] = field(default_factory=dict, repr=False, compare=False)
    """Its plots, by theme, as far as somebody has asked for them …"""
    drawing: Mapping[Part, Lock] = field(
        default_factory=lambda: {"quick": Lock(), "slow": Lock()}, repr=False, compare=False
    )
    """… and who draws them just now."""

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def records(self) -> list[TrialRecord]:
        found = (trial.record for trial in self.trials.values())
        return sorted((record for record in found if record), key=lambda record: record.number)

    @cached_property
    def results(self) -> Results:
        return results_of(self.folder, self.task, self.records)

    @cached_property
    def running(self) -> int:
        return sum(trial.record is None for trial in self.trials.values()) if self.is_running else 0

    @cached_property
    def summary(self) -> Summary:
        return summarise(self.records, self.planned, self.running, len(self.waiting))

    @property
    def is_running(self) -> bool:
        return self.state in ("running", "stopping")

    @property
    def best(self) -> Score | None:
        winner = self.results.winner
        return winner.score if winner else None

    @property
    def age_s(self) -> float | None:
        return None if self.started_at is None else (datetime.now(timezone.utc) - self.started_at).total_seconds()


@dataclass
class Reader:
    """Keeps what it has read; ``look`` is cheap where nothing has changed. Used by one thread at a time."""

    folder: ExperimentFolder
    _files: dict[str, int | None] = field(default_factory=dict)
    _held: lock.Held | None = None
    _held_until: float = float("-inf")
    _snapshot: Snapshot | None = None

    def __post_init__(self) -> None:
        self._kept = Kept(self.folder, self._trial, lambda trial: trial.record is not None)

    def look(self) -> Snapshot:
        """The experiment as it is now.

        Raises:
            Unreadable: the folder holds what this version cannot read.
            StorageFault: the storage does not answer.
        """
        try:
            return self._look()
        except (SpecError, Damaged, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"{self.folder.name} cannot be read: {error}") from error

    def _look(self) -> Snapshot:
        stamps = self.folder.root.stamps()
        files = {name: stamps[name] for name in WATCHED if name in stamps}
        if files.get("task.json") != self._files.get("task.json"):  # begun anew: trials may have been reopened
            self._kept.forget()
        changed = self._kept.look()
        beat, self._files = self._files.get("lock.json"), files
        alive = self._is_alive("lock.json" in files, files.get("lock.json") != beat)
        before = self._snapshot
        quiet = {name: stamp for name, stamp in files.items() if name != "lock.json"}
        same = before is not None and not changed and quiet == self._quiet and alive == before.is_running
        self._quiet = quiet
        if before is None or not same:
            self._snapshot = self._make(alive)
            return self._snapshot
        return before

    _quiet: dict[str, int | None] = field(default_factory=dict)

    def _trial(self, name: str) -> Trial:
        record = self.folder.record(name)
        return Trial(self.folder.state(name), record)

    def _is_alive(self, locked: bool, beaten: bool) -> bool:
        if not locked:
            self._held = None
            return False
        if time.monotonic() >= self._held_until or (beaten and self._held is None):
            self._held = lock.read(self.folder.root)
            self._held_until = time.monotonic() + HOLDER_S
        return self._held is not None and self._held.is_alive

    def _make(self, alive: bool) -> Snapshot:
        task = overview.read_task(self.folder)
        ran = sessions.load(self.folder)
        stop = "stop" in self._files
        closed = bool(ran) and ran[-1].ended_at is not None and "results.json" in self._files
        return Snapshot(
            folder=self.folder,
            version=time.time_ns(),
            task=task,
            state=("stopping" if stop else "running") if alive else self._ending(closed, stop),
            held=self._held,
            trials=dict(self._kept.trials),
            waiting=self._waiting() if alive else {},
            stop_requested=stop,
            started_at=datetime.fromisoformat(ran[0].started_at) if ran else None,
            ended_at=datetime.fromisoformat(ran[-1].ended_at) if closed and ran[-1].ended_at else None,
            planned=self._planned(task),
            job=ran[-1].job if ran else None,
        )

    def _ending(self, closed: bool, stop: bool) -> State:
        records = [trial.record for trial in self._kept.trials.values()]
        cut = any(r is None or (r.failure and r.failure.kind == "interrupted") for r in records)
        return "done" if closed and records and not cut and not stop else "interrupted"

    def _waiting(self) -> dict[str, str]:
        try:
            return self.folder.waiting()
        except StorageFault:
            return {}

    def _planned(self, task: Task) -> int:
        if self._snapshot is not None and self._snapshot.task == task:
            return self._snapshot.planned
        return overview.planned(self.folder)
