"""Tune's controller in virtual time: the calls that it makes to searcher and scheduler, in its order."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import Outcome, Parameters, Rung, TrialId
from tests.emulator.simulation.luck import Luck
from tests.emulator.simulation.table import Table
from tests.emulator.simulation.trials import SimulatedTrial, Step

MAX_TRIALS = 100_000


class Search(Protocol):
    """The part of ``ray.tune.search.Searcher`` that the controller calls."""

    def suggest(self, trial_id: str) -> Any: ...

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None: ...

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None: ...


@dataclass(frozen=True)
class Ended:
    """A trial's end, and what had been spent on all trials until then."""

    trial: TrialId
    parameters: Parameters
    outcome: Outcome
    rungs: int
    rank: tuple[float, float] | None
    """As measured, of the last rung; ``None`` when it did not come so far."""
    at_s: float
    spent_gpu_s: float
    own_gpu_s: float
    incumbent: Parameters | None
    """What measured best until then, of all that went to the end."""


@dataclass
class History:
    """One experiment."""

    ended: list[Ended] = field(default_factory=list)
    phases: Counter[str] = field(default_factory=Counter)
    """GPU-seconds."""

    @property
    def gpu_s(self) -> float:
        return sum(self.phases.values())

    @property
    def lost_gpu_s(self) -> float:
        """Spent on configurations that cannot work."""
        return sum(each.own_gpu_s for each in self.ended if each.outcome == "infeasible")


@dataclass
class Cluster:
    """GPUs that are free, by node; a trial's are all on one."""

    free: dict[str, int]

    def take(self, gpus: int) -> str | None:
        """The fullest node with so many."""
        fitting = [(free, node) for node, free in self.free.items() if free >= gpus]
        if not fitting:
            return None
        node = min(fitting)[1]
        self.free[node] -= gpus
        return node

    def give(self, node: str, gpus: int) -> None:
        self.free[node] += gpus


class Controller:
    """One experiment, from the first proposal to the last end."""

    def __init__(
        self,
        table: Table,
        search: Search,
        scheduler: TrialScheduler,
        *,
        rungs: Sequence[Rung],
        luck: Luck,
        raising: bool = False,
    ) -> None:
        """``rungs`` are those that trials run; ``raising`` reports a failing configuration as an error."""
        self.now_s = 0.0
        self.history = History()
        self._table, self._search, self._scheduler = table, search, scheduler
        self._rungs, self._luck, self._raising = rungs, luck, raising
        self._cluster = Cluster(dict(table.world.study.nodes))
        self._live: dict[str, SimulatedTrial] = {}
        self._pending: list[SimulatedTrial] = []
        self._events: list[tuple[float, int, SimulatedTrial, Step | None]] = []
        self._began = 0
        self._numbered = 0
        self._best: tuple[tuple[float, float], Parameters] | None = None

    def run(self) -> History:
        while True:
            self._fill()
            self._start()
            if not self._events:
                return self.history
            self.now_s, _, trial, step = heapq.heappop(self._events)
            if step is None:
                self._free(trial)
            else:
                self._hear(trial, step)

    def _fill(self) -> None:
        while len(self._live) < self._table.world.study.at_once and self._began < MAX_TRIALS:
            name = f"{self._began:05d}"
            config = self._search.suggest(name)
            if config is None or config == Searcher.FINISHED:
                return
            self._began += 1
            parameters = Proposal.from_config(config).parameters
            rungs = self._rungs[-1:] if Proposal.from_config(config).trial.again else self._rungs
            trial = SimulatedTrial(name, config, self._table.world, self._table[parameters], rungs)
            self._live[name] = trial
            self._pending.append(trial)
            self._scheduler.on_trial_add(self, trial)  # type: ignore[arg-type]  # it sees a trial's id and config

    def _start(self) -> None:
        """Whatever fits runs; a small trial overtakes a large one, as with Ray's placement groups."""
        for trial in list(self._pending):
            node = self._cluster.take(trial.row.gpus)
            if node is not None:
                self._pending.remove(trial)
                trial.place(node, self.now_s, self._luck)
                self._continue(trial)

    def _continue(self, trial: SimulatedTrial) -> None:
        step = trial.step(self.now_s, self._luck)
        for phase, seconds in step.seconds.items():
            trial.spent[phase] = trial.spent.get(phase, 0.0) + seconds * trial.row.gpus
        self._at(step.duration_s, trial, step)

    def _at(self, after_s: float, trial: SimulatedTrial, step: Step | None) -> None:
        self._numbered += 1
        heapq.heappush(self._events, (self.now_s + after_s, self._numbered, trial, step))

    def _hear(self, trial: SimulatedTrial, step: Step) -> None:
        result = {**step.result, "trial_id": trial.trial_id}
        if self._raising and trial.outcome == "infeasible":
            self._scheduler.on_trial_error(self, trial)  # type: ignore[arg-type]
            self._search.on_trial_complete(trial.trial_id, error=True)
            self._end(trial, 0.0)
            return
        decision = TrialScheduler.STOP
        if not result["done"]:
            decision = self._scheduler.on_trial_result(self, trial, result)  # type: ignore[arg-type]
        if decision != TrialScheduler.STOP:
            self._search.on_trial_result(trial.trial_id, result)
            self._continue(trial)
            return
        teardown_s = 0.0 if trial.outcome else self._table.world.study.costs.teardown_s
        trial.outcome = trial.outcome or "stopped"
        trial.spent["teardown"] = trial.spent.get("teardown", 0.0) + teardown_s * trial.row.gpus
        result["done"] = True
        self._scheduler.on_trial_complete(self, trial, result)  # type: ignore[arg-type]
        self._search.on_trial_complete(trial.trial_id, result=result)
        self._end(trial, teardown_s)

    def _end(self, trial: SimulatedTrial, teardown_s: float) -> None:
        del self._live[trial.trial_id]
        self.history.phases.update(trial.spent)
        proposal = trial.proposal
        rank = (trial.scores[-1].violation, trial.scores[-1].loss) if trial.outcome == "completed" else None
        if rank is not None and not proposal.trial.again:
            self._best = min(self._best or (rank, proposal.parameters), (rank, proposal.parameters), key=lambda b: b[0])
        self.history.ended.append(
            Ended(
                proposal.trial,
                proposal.parameters,
                trial.outcome or "failed",
                len(trial.scores),
                rank,
                self.now_s,
                self.history.gpu_s + self._under_way(),
                sum(trial.spent.values()),
                self._best[1] if self._best else None,
            )
        )
        self._at(teardown_s, trial, None)

    def _under_way(self) -> float:
        """GPU-seconds of the trials that run, until now."""
        running = (trial for trial in self._live.values() if trial not in self._pending)
        return sum((self.now_s - trial.started_s) * trial.row.gpus for trial in running)

    def _free(self, trial: SimulatedTrial) -> None:
        self._cluster.give(trial.node, trial.row.gpus)
