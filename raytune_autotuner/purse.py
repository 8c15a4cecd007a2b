"""Keeps an experiment within its budget: reads from the folder what was spent, and ends what runs over it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from raytune_autotuner import sessions
from raytune_autotuner.budget import FIRST, Expectation, Limits, Open, Reserve, Standing, expect
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import WAITING, held_s, own_s
from raytune_autotuner.objectives import rank
from raytune_autotuner.planning.plan import make_plan
from raytune_autotuner.queueing import PlacedQueue
from raytune_autotuner.records import (
    BudgetState,
    Parameters,
    TrialRecord,
    TrialState,
    config_hash,
    eligible,
    refuted_configs,
)
from raytune_autotuner.search import Wanted
from raytune_autotuner.setup import Setup
from raytune_autotuner.verdict import Ask

LOOK_S, REMOTE_LOOK_S = 1.0, 10.0
"""So often it is looked what was spent; on an object store every file is a request."""
TELL_S = 10.0


class Purse:
    """What an experiment may still spend. Without a budget everything may be, and nothing is looked at.

    Asked by Tune's driver loop; ``watched`` looks from a thread of its own.
    """

    def __init__(self, setup: Setup, queue: PlacedQueue) -> None:
        self._setup = setup
        self._queue = queue
        self._limits = Limits.of(setup.task.optimization)
        self._books = Books(setup)
        self._said = _said_before(setup.folder, self._limits)
        self._closed = self._said.search if self._said.search and self._books.has_confirmed() else None
        """Why the search has ended for good: confirming has begun."""
        plan = make_plan(setup.task, setup.engine, gpus_of=setup.gpus) if self._limits else None
        self._at_worst_s = plan.trial_s[1] if plan else 0.0
        self._least_gpus, most = plan.gpus if plan else (0, 0)
        self._has_gpus = most > 0
        self._lacked: str | None = None
        """Why the last one of those could not be paid for that could not."""
        self._lock = threading.Lock()

    def enough(self) -> str | None:
        """Why no trial of the search can be paid for any more, however small."""
        if self._limits is None or self._closed:
            return self._closed
        reason = self._standing(self._limits).lacking(self._least_gpus)
        if (reason is None) != (self._said.search is None):
            self._tell(search=reason)
        return reason

    def affords(self, parameters: Parameters) -> bool:
        """Whether a trial of this very configuration can be paid for."""
        if self._limits is None:
            return True
        lacking = self._standing(self._limits).lacking(self._setup.gpus(parameters))
        self._lacked = lacking or self._lacked
        return lacking is None

    def unpaid(self) -> None:
        """Write down that the budget is why the search has ended: it pays for nothing that is left to try."""
        self._tell(search=self._lacked)

    def payable(self, asks: Sequence[Ask], winner: str) -> Sequence[Ask]:
        """Of the confirming runs that the verdict wants those that can be paid for, in pairs."""
        if self._limits is None or not asks:
            return asks
        self._closed = self._closed or self._said.search
        sides = {"winner": self._books.gpus_of(winner), "baseline": self._setup.gpus({})}
        return asks[: self._payable(self._limits, [sides[ask.side] for ask in asks])]

    def paid(self, runs: Sequence[Wanted]) -> Sequence[Wanted]:
        """Of the runs that a course wants those that can be paid for, in pairs.

        Its first pair is begun in any case, as the baseline of a search is: only then it is known what a run takes.
        """
        if self._limits is None:
            return runs
        least = 0 if self._books.has_confirmed() else 2
        return runs[: self._payable(self._limits, [self._setup.gpus(run.parameters) for run in runs], least)]

    def _payable(self, limits: Limits, gpus: Sequence[int], least: int = 0) -> int:
        """How many runs on so many GPUs can be paid for; when not all can, it is written down until all can."""
        number, said = max(least, self._standing(limits, anew=True).payable(gpus)), None
        if number < len(gpus):
            number -= number % 2
            said = f"the budget paid for {number} of the {len(gpus)} runs that were to come next"
        if said != self._said.confirming:
            self._tell(confirming=said)
        return number

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End what runs over the budget while the body runs, and write how it stands."""
        if self._limits is None:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(self._limits, over), name="budget", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(StorageFault):
                self._tell()

    def _watch(self, limits: Limits, over: threading.Event) -> None:
        local, told = self._setup.folder.root.is_local, float("-inf")
        while not over.wait(LOOK_S if local else REMOTE_LOOK_S):
            with suppress(StorageFault):  # away for a while; what it cannot take, the search itself will notice
                self.end_what_is_over(limits)
                if time.monotonic() - told > TELL_S:
                    told = time.monotonic()
                    self._tell()

    def end_what_is_over(self, limits: Limits) -> None:
        """Ask running trials to end for which nothing is left."""
        standing = self._standing(limits)
        reasons = {state.trial.name: standing.used_up(state.trial.purpose) for state in self._books.running()}
        halts = {name: reason for name, reason in reasons.items() if reason}
        if halts.keys() - self._setup.folder.halts().keys():
            self._setup.folder.halt(halts)

    def _standing(self, limits: Limits, *, anew: bool = False) -> Standing:
        with self._lock:
            self._books.look(anew=anew)
            waiting = {
                p.trial.name: Open(p.trial.purpose, self._setup.gpus(p.parameters)) for p in self._queue.unfinished()
            }
            return Standing(
                limits=limits,
                ended_s=self._books.ended_s(),
                open=tuple({**waiting, **self._books.open()}.values()),
                elapsed_s=self._books.elapsed_s(),
                expected=self._books.expected(self._at_worst_s),
                reserve=self._reserve(),
                unit="GPU-hours" if self._has_gpus else "machine-hours",
            )

    def _reserve(self) -> Reserve:
        """The least number of confirming runs that the task asks for, less those that were made."""
        least, _ = self._setup.task.optimization.confirm.runs
        left = max(0, least - self._books.confirmed())
        baseline, winner = self._setup.gpus({}), self._books.best_gpus(self._setup.gpus({}))
        return Reserve(left, (left - left // 2) * max(1, winner) + left // 2 * max(1, baseline))

    def _tell(self, **said: Any) -> None:
        self._said = replace(self._said, elapsed_s=round(self._books.elapsed_s(), 1), **said)
        self._setup.folder.save_budget(self._said)


def _said_before(folder: ExperimentFolder, limits: Limits | None) -> BudgetState:
    """Why the search had ended when the experiment was left, which holds until the budget is another one."""
    if limits is None:
        return BudgetState(0.0)
    now, before = BudgetState(0.0, gpu_s=limits.gpu_s, wall_s=limits.wall_s), folder.budget()
    same = before is not None and (before.gpu_s, before.wall_s) == (now.gpu_s, now.wall_s)
    return replace(now, search=before.search) if before is not None and same else now


@dataclass(frozen=True)
class Paid:
    """What is needed of a trial's record; the record itself holds every request."""

    record: TrialRecord
    cost_s: float

    @classmethod
    def of(cls, record: TrialRecord) -> Paid:
        return cls(replace(record, rungs=(), engine_info={}, argv=()), held_s(record))


class Books:
    """What the trials of an experiment have cost so far. Those that are over for good are read once."""

    def __init__(self, setup: Setup) -> None:
        self._folder = setup.folder
        self._gpus = setup.gpus
        self._since = time.monotonic()
        self._before_s = sessions.elapsed_s(setup.folder)
        self._paid: dict[str, Paid] = {}
        self._states: dict[str, TrialState] = {}
        self._looked = float("-inf")
        self._often_s = LOOK_S / 2 if setup.folder.root.is_local else REMOTE_LOOK_S / 2

    def look(self, *, anew: bool = False) -> None:
        """``anew`` however lately it was done: what has just ended took less than it was expected to."""
        if not anew and time.monotonic() - self._looked < self._often_s:
            return
        self._looked = time.monotonic()
        over = {n: p for n, p in self._paid.items() if p.record.outcome in ("completed", "infeasible")}
        states = {}
        for name in self._folder.trial_names():
            if name in over:
                continue
            if (record := self._folder.record(name)) is not None:
                over[name] = Paid.of(record)
            elif (state := self._folder.state(name)) is not None:
                states[name] = state
        self._paid, self._states = over, states

    def elapsed_s(self) -> float:
        return self._before_s + time.monotonic() - self._since

    def ended_s(self) -> float:
        return sum(paid.cost_s for paid in self._paid.values())

    def running(self) -> list[TrialState]:
        return [state for state in self._states.values() if state.phase not in ("queue", "teardown", "ended")]

    def open(self) -> dict[str, Open]:
        now = datetime.now(timezone.utc)
        return {
            name: Open(s.trial.purpose, s.gpus or self._gpus(s.parameters), own_s(s) + _since_s(s, now))
            for name, s in self._states.items()
        }

    def expected(self, at_worst_s: float) -> Expectation:
        return expect([paid.record for paid in self._paid.values()], at_worst_s)

    def has_confirmed(self) -> bool:
        """Whether a confirming run has begun, of whatever winner."""
        return any(name.startswith("confirm-") for name in self._folder.trial_names())

    def confirmed(self) -> int:
        """How many confirming runs of baseline and best trial have been made, or are; see ``confirmation``."""
        made: list[TrialRecord | TrialState] = [paid.record for paid in self._paid.values()]
        made += self._states.values()
        runs = [(each.number, each.trial.config) for each in made if each.trial.purpose == "confirm"]
        best = self._best()
        pair = {config_hash({}), best.trial.config if best else ""}
        since = max((number for number, config in runs if config not in pair), default=-1)
        return sum(number > since for number, _ in runs)

    def best_gpus(self, otherwise: int) -> int:
        """The GPUs of the best trial so far."""
        best = self._best()
        return best.gpus if best else otherwise

    def _best(self) -> TrialRecord | None:
        found = [p.record for p in self._paid.values()]
        scored = [r for r in found if r.outcome == "completed" and r.score and r.trial.purpose not in FIRST]
        scored = eligible(scored, refuted_configs(found))
        return min(scored, key=lambda r: rank(r.score), default=None)  # type: ignore[arg-type]

    def gpus_of(self, config: str) -> int:
        """Of the trial that measured the configuration."""
        found = (p.record.gpus for p in self._paid.values() if p.record.trial.config == config)
        return next(found, 1)


def _since_s(state: TrialState, now: datetime) -> float:
    """What a running trial has held since it last wrote."""
    if state.phase in WAITING:
        return 0.0
    return max(0.0, (now - datetime.fromisoformat(state.updated_at)).total_seconds())
