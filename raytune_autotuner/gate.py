"""What an experiment says to its search: what cannot run, when it is enough, which runs the verdict still needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from raytune_autotuner.confirmation import Confirmation
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.foresight import Case, Ended, Equals, Feasibility, Pruner, search_end
from raytune_autotuner.history import over
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.purse import Purse
from raytune_autotuner.queueing import PlacedQueue
from raytune_autotuner.ranking import rank
from raytune_autotuner.records import Failure, Parameters, SearchEnd, TrialId, TrialRecord
from raytune_autotuner.search import Nodes, Wanted
from raytune_autotuner.setup import Setup
from raytune_autotuner.task.spec import Task
from raytune_autotuner.trial import utc_now
from raytune_autotuner.verdict import Ask


class Course(Protocol):
    """What is measured in place of a search: confirming runs alone, of whatever configurations."""

    def wanted(self, records: Sequence[TrialRecord], nodes: Nodes) -> Iterable[Wanted]:
        """The runs that come next, when all that were wanted before have ended; none when it is over."""


class ExperimentGate:
    """What the experiment says to its search (see ``search.Gate``)."""

    def __init__(self, setup: Setup, queue: PlacedQueue, course: Course | None = None) -> None:
        """``course`` is what is measured in place of a search."""
        self.course = partial(self._course, course) if course is not None else None
        self._setup = setup
        self._queue = queue
        self.purse = Purse(setup, queue)
        self._confirmation = Confirmation(setup.task)
        self._feasibility = Feasibility(setup.launch, setup.known, setup.task.resources.gpus)
        self._ended = Ended(setup.folder)
        self._cases: tuple[Case, ...] = ()
        self._pruned = Pruner(setup.launch, ())
        nodes = setup.site.gpu_nodes()
        self._kinds = queue.kinds() if nodes is None else {node.name: node.product for node in nodes}
        self._equals = Equals(setup.launch)
        self._equals.add({})  # the baseline
        self._earlier = {case.trial for case in self._ended.cases()}
        self._end = _standing(setup)
        setup.folder.save_search_end(self._end)
        self._fault: StorageFault | None = None
        self._repeated = set(setup.folder.repeated())

    def _course(self, course: Course) -> Sequence[Wanted]:
        return self.purse.paid(tuple(course.wanted(self._setup.folder.records(), self._comparable)))

    def problem(self, parameters: Parameters) -> Failure | None:
        reason = self._queue.never(parameters)
        if reason is not None:
            return Failure("no_fit", reason)
        self._hear()
        return self._feasibility.problem(parameters) or self._pruned.problem(parameters)

    def same_as(self, parameters: Parameters) -> Parameters:
        self._hear()
        found = self._equals.same_as(parameters)
        self._equals.add(found)
        return found

    def _hear(self) -> None:
        """Of what has ended by now."""
        cases = self._ended.cases()
        if cases != self._cases:
            self._cases, self._pruned = cases, Pruner(self._setup.launch, cases, self._kinds)
            self._equals.learn(cases)

    def enough(self) -> str | None:
        """Why the search has ended, which stays like that; else what the budget says."""
        if self._end is None:
            self._ends(self._identical_failures())
        return self.purse.enough() if self._end is None else self._end.reason

    def settled(self, reason: str) -> None:
        task = self._setup.task
        most = task.optimization.max_iterations
        self._ends(SearchEnd("settled", reason, max_trials=most, searched=_searched(task)))

    def _ends(self, end: SearchEnd | None) -> None:
        self._end = end
        if end is not None:
            with suppress(StorageFault):  # the search ends all the same
                self._setup.folder.save_search_end(end)

    def _identical_failures(self) -> SearchEnd | None:
        """What failed before the experiment was taken up again has been mended, as far as anyone knows."""
        self._hear()
        cases = [case for case in self._cases if case.trial not in self._earlier]
        return search_end(cases, self._setup.task.optimization.stop_after_identical_failures)

    def affords(self, parameters: Parameters) -> bool:
        return self.purse.affords(parameters)

    def unpaid(self) -> None:
        self.purse.unpaid()

    def refuse(self, proposal: Proposal, failure: Failure) -> None:
        self._setup.folder.save_record(
            TrialRecord(
                trial=proposal.trial,
                experiment=self._setup.folder.name,
                number=proposal.number,
                parameters=proposal.parameters,
                outcome="infeasible",
                started_at=utc_now(),
                total_rungs=len(self._setup.rungs),
                failure=failure,
            )
        )

    def give_up(self, proposal: Proposal) -> None:
        """It counts among the runs that were lost; whoever takes the experiment up again begins it again."""
        folder = self._setup.folder
        state = folder.state(proposal.trial.name)
        record = TrialRecord(
            trial=proposal.trial,
            experiment=folder.name,
            number=proposal.number,
            parameters=proposal.parameters,
            outcome="failed",
            started_at=state.started_at if state else utc_now(),
            rungs=folder.rungs(proposal.trial.name),
            total_rungs=len(self._setup.rungs),
            failure=Failure("infrastructure", "its worker died each time that it was begun"),
            gpus=self._setup.gpus(proposal.parameters),
            phases=state.phases if state else {},
        )
        try:
            folder.save_record(record)
            if state is not None:
                folder.save_state(replace(state, phase="ended", outcome="failed", updated_at=utc_now()))
        except StorageFault as fault:
            self._fault = fault

    def repeated(self, config: str) -> None:
        if config not in self._repeated:
            self._repeated.add(config)
            with suppress(StorageFault):  # a saving that nobody hears of
                self._setup.folder.save_repeated(self._repeated)

    def champion(self) -> Parameters | None:
        winner = rank(self._setup.folder.records(), self._setup.task).winner
        return winner.parameters if winner else None

    def confirming(self, baseline: str, winner: str) -> Sequence[Ask]:
        records = self._setup.folder.records()
        found = next(record for record in records if record.trial.config == winner)
        nodes = self._comparable({}, found.parameters, self._kinds.get(found.node or ""))
        return self.purse.payable(self._confirmation.wanted(records, baseline, winner, nodes), winner)

    def _comparable(self, one: Parameters, other: Parameters, kind: str | None = None) -> Sequence[str]:
        """The nodes on which two configurations compare: with GPUs of one kind, ``kind`` if both can run there."""
        by_kind: dict[str | None, list[str]] = {}
        for node in self._queue.nodes_for(one, other):
            by_kind.setdefault(self._kinds.get(node, ""), []).append(node)
        return by_kind.get(kind) or max(by_kind.values(), key=len, default=[])

    def stop_requested(self) -> bool:
        return self._fault is not None or self._setup.folder.stop_requested()

    def ended(self, trial: TrialId) -> TrialRecord | None:
        """When the folder cannot be written, no other trial could leave anything either: then all end."""
        try:
            self._setup.folder.root.probe()
            return over(self._setup.folder, trial)
        except StorageFault as fault:
            self._fault = fault
            return None

    def check(self) -> None:
        """Raise the fault that ended the search."""
        if self._fault is not None:
            raise self._fault


def _standing(setup: Setup) -> SearchEnd | None:
    """Of an experiment that is taken up again: nothing was left to try, and nothing else or more is wanted than then.

    Failures may have been mended meanwhile.
    """
    end, optimization = setup.folder.search_end(), setup.task.optimization
    if end is None or end.cause != "settled" or end.searched != _searched(setup.task):
        return None
    more = optimization.max_iterations > end.max_trials or optimization.stop_after_hopeless_trials is None
    return None if more else end


def _searched(task: Task) -> str:
    asked = task.model_dump_json(include={"parameters": True, "presets": True, "constraints": True})
    return hashlib.sha256(f"{asked}{task.optimization.strategy}".encode()).hexdigest()[:12]
