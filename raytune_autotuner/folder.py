"""The experiment folder: the only truth about an experiment.

::

    <storage>/<experiment>/
        task.json plan.json environment.json    what was asked, what was planned, what it runs on
        id                                      tells it from all others in a cluster; made once
        course.json                             what it measures instead of a search; absent where it searches
        stop                                    asks every process of the experiment to end in order
        halt.json                               asks single trials to end in order, and says why
        budget.json                             how long it has run, and what the budget has ended
        repeated.json                           configurations that were proposed again after they were measured
        trials/<trial>/state.json               where the trial stands; rewritten at each change
        trials/<trial>/rungs/<k>.json           what rung k measured, written as soon as it is known
        trials/<trial>/engine/<k>.json          the engine's own metrics over the time of rung k
        trials/<trial>/record.json              the trial's end; absent while it runs
        trials/<trial>/engine.log, rung-<k>/…   raw output; on a store it appears as it grows, whole at the end
        tensorboard/<trial>/…                   the same figures for TensorBoard
        results.json trials.csv                 made from the above, at any time
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from raytune_autotuner.errors import Damaged, Superseded
from raytune_autotuner.records import (
    Answers,
    BudgetState,
    Endpoint,
    EngineSeries,
    RungRecord,
    SearchEnd,
    TrialId,
    TrialRecord,
    TrialState,
    from_json,
    to_json,
)
from raytune_autotuner.storage import READERS, Storage

T = TypeVar("T")

COURSE = "course.json"
"""In the folder of an experiment without a search."""
STOP_SEEN_AFTER_S = 1.0
SETTLED_NS = 2_000_000_000
"""A younger folder may be written once more within the same tick of its clock."""


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
ID = "id"


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

    def own_id(self) -> str:
        """Tells this experiment from any other, whose folder may have the same path on another machine.

        Made when it is first asked for; only the one who holds the experiment may ask.
        """
        found = self.root.read(ID)
        if not found:
            found = uuid.uuid4().hex
            self.root.write(ID, found)
        return found

    @cached_property
    def _unheard(self) -> threading.Event:
        return threading.Event()

    @property
    def stop_is_unheard(self) -> bool:
        """Whether a stop was requested here and could not be written: no other process knows of it."""
        return self._unheard.is_set()

    def request_stop(self) -> None:
        """
        Raises:
            StorageFault: it cannot be written; only this process knows of it, and keeps to it.
        """
        self._unheard.set()
        self.root.write("stop", "")
        self._unheard.clear()
        self._stop.set(True)

    def course(self) -> Mapping[str, Any]:
        """What an experiment without a search is for, and of which other one; empty with a search."""
        return self.document(COURSE)

    def stop_requested(self) -> bool:
        """Whether the experiment is to end. A remote store is asked once a second at most: every trial and the search
        want to know often, and each question costs money there."""
        if self.stop_is_unheard:
            return True
        if self.root.is_local or not self._stop.is_fresh:
            self._stop.set(self.root.read("stop") is not None)
        return bool(self._stop.value)

    def save_state(self, state: TrialState) -> None:
        self._save(state.trial, "state.json", state)

    def save_rung(self, trial: TrialId, rung: RungRecord) -> None:
        self._save(trial, f"rungs/{rung.rung}.json", rung)

    def save_engine_series(self, trial: TrialId, rung: int, series: EngineSeries) -> None:
        self._save(trial, f"engine/{rung}.json", series)

    def engine_series(self, trial: str) -> dict[int, EngineSeries]:
        """By rung; those of a trial that runs are there as soon as their rung is measured."""
        names = [n for n in self.root.list(f"trials/{trial}/engine") if n.endswith(".json")]
        found = {int(n.removesuffix(".json")): self._load(EngineSeries, f"trials/{trial}/engine/{n}") for n in names}
        return {rung: series for rung, series in sorted(found.items()) if series}

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
        return self.document("waiting.json")

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
        return self.document("halt.json")

    def save_budget(self, state: BudgetState) -> None:
        self.root.write("budget.json", to_json(state))

    def budget(self) -> BudgetState | None:
        return self._load(BudgetState, "budget.json")

    def save_repeated(self, configs: Collection[str]) -> None:
        """Hashes of the configurations that were proposed again after they were measured."""
        self.root.write("repeated.json", json.dumps(sorted(configs)))

    def repeated(self) -> frozenset[str]:
        return self._load(frozenset[str], "repeated.json") or frozenset()

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
        found = self.each(self.record, self.trial_names())
        return sorted((r for r in found if r), key=lambda r: r.number)

    def states(self) -> list[TrialState]:
        """Every trial that was ever begun, in the order of proposal."""
        found = self.each(self.state, self.trial_names())
        return sorted((s for s in found if s), key=lambda s: s.number)

    def each(self, load: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Load each, several at a time where every file is a request."""
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

    def document(self, path: str) -> dict[str, Any]:
        """What a JSON file holds; empty when there is none.

        Raises:
            Damaged: it does not hold that.
        """
        text = self.root.read(path)
        try:
            return TypeAdapter(dict[str, Any]).validate_json(text) if text else {}
        except ValidationError as error:
            raise Damaged.at(self.root.location(path), error) from error

    def _save(self, trial: TrialId, path: str, value: object) -> None:
        self.check_session()
        self.root.write(f"trials/{trial.name}/{path}", to_json(value))

    def _load(self, kind: type[T], path: str) -> T | None:
        text = self.root.read(path)
        try:
            return None if text is None else from_json(kind, text)
        except ValidationError as error:
            raise Damaged.at(self.root.location(path), error) from error


class Kept(Generic[T]):
    """What was read of each trial of an experiment, read again where it may have changed. Used by one thread at a time.

    An object store has no times for folders: there, what ``is_over`` of what was read is not read again.
    """

    def __init__(self, folder: ExperimentFolder, load: Callable[[str], T], is_over: Callable[[T], bool]) -> None:
        self.trials: dict[str, T] = {}
        self._folder, self._load, self._is_over = folder, load, is_over
        self._read: dict[str, int | None] = {}

    def look(self) -> bool:
        """Read what is new or may have changed; whether anything has. What cannot be read is read at the next look."""
        stamps, now_ns = self._folder.root.stamps("trials"), time.time_ns()
        due = [name for name, stamp in stamps.items() if self._is_due(name, stamp)]
        found = dict(zip(due, self._folder.each(self._load, due), strict=True))
        before = self.trials
        self.trials = {name: found[name] if name in found else before[name] for name in stamps}
        young = {name for name in due if (stamp := stamps[name]) is not None and now_ns - stamp <= SETTLED_NS}
        self._read = {name: None if name in young else stamp for name, stamp in stamps.items()}
        return before != self.trials

    def _is_due(self, name: str, stamp: int | None) -> bool:
        if name not in self._read:
            return True
        return not self._is_over(self.trials[name]) if stamp is None else self._read[name] != stamp

    def forget(self) -> None:
        """Everything is to be read again."""
        self._read.clear()
