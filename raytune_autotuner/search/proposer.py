"""What to try next: the baseline, then what the strategy proposes, then winner and baseline again.

``Proposer`` is the one searcher that Ray Tune sees. It does around a source of configurations (see ``stream``) what
that lacks: the baseline first and in between, failures and early-stopped trials told in a form that does not mislead,
trials that an accident cut short begun again, and the confirming runs at the end.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from raytune_autotuner.proposal import LOSS, Ending, Proposal, report, reports
from raytune_autotuner.records import Failure, Outcome, Parameters, Purpose, TrialId, config_hash
from raytune_autotuner.search.knowledge import Knowledge
from raytune_autotuner.search.ports import FirstCome, Gate, Limits, Past, Queue, Wanted
from raytune_autotuner.search.source import Source
from raytune_autotuner.search.stream import Stream

ATTEMPTS = 3
"""How often a trial is begun whose worker dies or whose node is lost."""


class Proposer(Searcher):
    """See the top of this module. Used by Tune's driver loop alone, from one thread."""

    def __init__(
        self,
        source: Source,
        *,
        fallback: Source | None,
        limits: Limits,
        gate: Gate,
        past: Past | None = None,
        queue: Queue | None = None,
        course: Callable[[], Sequence[Wanted]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``course`` takes the place of the search: it says which runs come next, until there are none."""
        super().__init__(metric=LOSS, mode="min")
        past = past or Past()
        self._course = course
        self._control_every = limits.control_every
        self._gate = gate
        self._queue = FirstCome() if queue is None else queue
        self._clock = clock
        self._knowledge = knowledge = Knowledge.of(past.ended)
        self._stream = Stream(
            source, fallback, limits=limits, gate=gate, knowledge=knowledge, past=past, refuse=self._refuse_new
        )
        self._again = deque(past.open)
        self._running: dict[str, Proposal] = {}
        self._begun: Counter[str] = Counter()
        self._exhausted = False
        self._confirming: deque[Wanted] = deque()
        self._remember(past)

    def _remember(self, past: Past) -> None:
        """Go on where the experiment was; a configuration that runs again is told to its source under its hash."""
        trials = [(r.number, r.trial) for r in past.ended] + [(p.number, p.trial) for p in past.open]
        self._numbered = self._first_number = max((number for number, _ in trials), default=-1) + 1
        self._completed = sum(_is_measured(r.trial, r.outcome) and not r.reused_from for r in past.ended)
        self._controls = len({trial for _, trial in trials if trial.purpose == "control"})
        self._repeats = {trial.config: 0 for _, trial in trials}
        for _, trial in trials:
            self._repeats[trial.config] = max(self._repeats[trial.config], trial.repeat)
        self._untold = [config_hash(parameters) for parameters in self._knowledge.untold()]
        for config in self._untold:
            self._stream.awaits(config)
        for proposal in past.open:
            if not proposal.trial.again and self._knowledge.get(proposal.trial.config) is None:
                self._knowledge.add(proposal.parameters)
                if proposal.trial.purpose == "search":
                    self._gate.same_as(proposal.parameters)  # which then counts among those that were proposed
                    self._stream.awaits(proposal.trial.config)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """Tune's question; ``None`` means ask again later."""
        if self._gate.stop_requested():
            return Searcher.FINISHED
        started = self._start()
        while started is None and self._may_wait() and (proposal := self._next()) is not None:
            self._queue.add(proposal)
            started = self._start()
        if started is None:
            return None if self._is_busy() else Searcher.FINISHED
        self._running[trial_id] = started
        self._begun[started.trial.name] += 1
        return started.to_config()

    def _start(self) -> Proposal | None:
        """The next one that may run; what has turned out impossible while it waited is refused."""
        while (proposal := self._queue.start()) is not None:
            is_new = proposal.number >= self._first_number and not self._begun[proposal.trial.name]
            asks = proposal.trial.purpose == "search" and is_new  # who has cost something goes on
            failure = self._gate.problem(proposal.parameters) if asks else None
            if failure is None:
                break
            self._queue.release(proposal)
            self._refuse(proposal, failure)
        return proposal

    def _refuse(self, proposal: Proposal, failure: Failure) -> None:
        self._stream.refused(proposal.parameters, failure)
        self._gate.refuse(proposal, failure)

    def _refuse_new(self, parameters: Parameters, failure: Failure) -> None:
        self._refuse(self._proposal("search", parameters), failure)

    def _is_busy(self) -> bool:
        return bool(self._running or len(self._queue))

    def _may_wait(self) -> bool:
        """Whether another proposal is made: no earlier than it can be used, since what is proposed later knows more.

        When nothing runs and nothing waits, one is made all the same: it waits for the GPUs that others hold, with its
        reason told, and when there is none to make the search is over.
        """
        return self._queue.wants_more() or not self._is_busy()

    def _next(self) -> Proposal | None:
        if self._again:
            return self._again.popleft()
        if self._course is not None:
            return self._confirmation()
        if self._knowledge.get(config_hash({})) is None:
            self._knowledge.add({})
            return self._proposal("baseline", {})
        if self._wants_control():
            self._controls += 1
            return self._measured_again("control", {})
        if not self._exhausted and not self._stream.is_used_up and self._gate.enough() is None:
            if (why := self._stream.settled()) is not None:
                if not self._is_busy():  # what runs may change that
                    self._gate.settled(why)
                return self._confirmation()
            parameters = self._stream.next(is_busy=self._is_busy())
            if parameters is not None:
                return self._proposal("search", parameters)
            if self._stream.is_held:
                return None
            self._exhausted = True
            if self._stream.unpaid:
                self._gate.unpaid()
        return self._confirmation()

    def _proposal(self, purpose: Purpose, parameters: Parameters, repeat: int = 0) -> Proposal:
        proposal = Proposal(
            TrialId(purpose, config_hash(parameters), repeat), self._numbered, parameters, self._clock()
        )
        self._numbered += 1
        return proposal

    def is_void(self, trial_id: str) -> bool:
        """Whether a trial that waits for its worker is not to begin: all are to end, or its place is gone."""
        proposal = self._running.get(trial_id)
        return proposal is not None and (self._gate.stop_requested() or self._queue.is_lost(proposal))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._hear(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._hear(trial_id, result or {})
        proposal = self._running.pop(trial_id, None)
        if proposal is None:
            return
        never_began = not result and not error
        self._begun[proposal.trial.name] -= never_began
        goes_on = not self._gate.stop_requested()
        may = self._begun[proposal.trial.name] < ATTEMPTS and goes_on
        failed = (result or {}).get("outcome") == "failed" and may and self._queue.has_other_place(proposal)
        is_open = (error or failed or never_began) and self._is_open(proposal)
        again = is_open and may
        self._queue.release(proposal, elsewhere=again and not never_began)
        if is_open and goes_on and not may:
            self._gate.give_up(proposal)
        if again:
            self._again.append(proposal)
        elif not proposal.trial.again:
            self._tell(proposal, "failed" if error else "stopped")

    def _is_open(self, proposal: Proposal) -> bool:
        """Whether a trial has no end that stands: a worker that died takes nothing along that it had written."""
        record = self._gate.ended(proposal.trial)
        if record is None:
            if not proposal.trial.again:
                self._knowledge[proposal.trial.config].outcome = None
            return True
        if not proposal.trial.again:
            known = self._knowledge[proposal.trial.config]
            known.recall(record)
            for result in reports(record):
                self._stream.hear(proposal.parameters, result)
        return False

    def _tell(self, proposal: Proposal, otherwise: Any) -> None:
        known = self._knowledge[proposal.trial.config]
        if known.outcome is None:
            known.outcome = otherwise if known.losses else "failed"
            if not proposal.parameters:  # the baseline has no key under which a source could be told
                self._stream.hear({}, report(None, len(known.losses), 1.0, ending=Ending(known.outcome)))
        self._completed += _is_measured(proposal.trial, known.outcome)
        self._untold = [config for config in (*self._untold, proposal.trial.config) if not self._stream.ended(config)]

    def _hear(self, trial_id: str, result: Mapping[str, Any]) -> None:
        proposal = self._running.get(trial_id)
        if proposal is not None and not proposal.trial.again and "rungs_done" in result:
            self._knowledge[proposal.trial.config].hear(result)
            self._stream.hear(proposal.parameters, result)

    def _confirmation(self) -> Proposal | None:
        """Winner and baseline in turn (A B B A …), once every search trial has ended, until the verdict stands."""
        if self._course is None and any(wanted.parameters for wanted in self._confirming):
            self._drop_the_refuted()
        if not self._confirming:
            if self._is_busy():
                return None
            self._confirming.extend(self._asked())
        if not self._confirming:
            return None
        wanted = self._confirming.popleft()
        return replace(self._measured_again("confirm", wanted.parameters), node=wanted.node)

    def _drop_the_refuted(self) -> None:
        """Runs that were asked for are of no use any more when the winner did not hold up in the first of them."""
        champion = self._gate.champion()
        if any(wanted.parameters not in ({}, champion) for wanted in self._confirming):
            self._confirming.clear()

    def _measured_again(self, purpose: Purpose, parameters: Parameters) -> Proposal:
        config = config_hash(parameters)
        self._repeats[config] = self._repeats.get(config, 0) + 1
        return self._proposal(purpose, parameters, self._repeats[config])

    def _wants_control(self) -> bool:
        every, baseline = self._control_every, self._knowledge[config_hash({})]
        return every is not None and baseline.outcome == "completed" and self._completed // every > self._controls

    def _asked(self) -> Sequence[Wanted]:
        if self._course is not None:
            return self._course()
        baseline, champion = self._knowledge[config_hash({})], self._gate.champion()
        if not champion or baseline.outcome != "completed":
            return ()
        asks = self._gate.confirming(config_hash({}), config_hash(champion))
        return [Wanted(champion if ask.side == "winner" else {}, ask.node) for ask in asks]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune copies its settings to disk, which no one reads, and the gate cannot be copied."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the experiment folder is the truth, and ``Past`` is read from it."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""


def _is_measured(trial: TrialId, outcome: Outcome | None) -> bool:
    """Whether a trial of the search was measured to its end."""
    return trial.purpose == "search" and outcome == "completed"
