"""What to try next: the baseline, then what the strategy proposes, then winner and baseline again.

``Proposer`` is the one searcher that Ray Tune sees. It wraps a source (a grid, a random stream, or one of
Ray's own searchers) and does around it what they lack: the baseline first, no configuration twice,
constraints and impossible configurations kept away from GPUs, failures and early-stopped trials told to
the source in a form that does not mislead it, trials that an accident cut short begun again, and the
confirming runs at the end.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ray.tune.search import Searcher

from raytune_autotuner.proposal import LOSS, Ending, Proposal, report, reports
from raytune_autotuner.records import Failure, Outcome, Parameters, Purpose, TrialId, TrialRecord, config_hash
from raytune_autotuner.search.knowledge import Knowledge
from raytune_autotuner.search.source import WORST, Judge, Lessons, Source
from raytune_autotuner.verdict import Ask

REPEATS_IN_A_ROW = 20
"""So many known configurations in a row from a source, and fresh random ones are tried instead."""
FRESH_DRAWS = 500
ATTEMPTS = 3
"""How often a trial is begun whose worker dies or whose node is lost."""


@dataclass(frozen=True)
class Limits:
    max_trials: int
    """Of the search; the baseline's runs and the confirming ones come on top."""
    control_every: int | None = None
    """The baseline is measured again after so many trials of the search that came to their end: those are ranked."""
    patience: int | None = None
    """After so many trials in a row of which its source expected nothing the search may end; ``None``: never."""


@dataclass(frozen=True)
class Past:
    """What an experiment that goes on has already: trials that ended, and those that are to be begun again."""

    ended: tuple[TrialRecord, ...] = ()
    open: tuple[Proposal, ...] = ()

    def lessons(self) -> Lessons:
        return Lessons(
            told=tuple(Knowledge.of(self.ended).losses()),
            open=tuple(p.parameters for p in self.open if p.trial.purpose == "search"),
            ended=tuple(record for record in self.ended if not record.trial.again),
        )


@dataclass(frozen=True)
class Wanted:
    """One more run that confirms, of a configuration, on a node where there is a choice."""

    parameters: Parameters
    node: str | None = None


Nodes = Callable[[Parameters, Parameters], Sequence[str]]
"""Those on which two configurations compare; none where there is no choice, or no such node."""


class Queue(Protocol):
    """Proposals that wait for a place to run."""

    def wants_more(self) -> bool:
        """Whether another proposal could start now, or should be known to plan ahead."""

    def add(self, proposal: Proposal) -> None: ...

    def start(self) -> Proposal | None:
        """The next one that may run, with its reservation; ``None`` when none may now."""

    def is_lost(self, proposal: Proposal) -> bool:
        """Whether the place that one was given is not there any more."""

    def has_other_place(self, proposal: Proposal) -> bool:
        """Whether one that runs could ever run elsewhere."""

    def release(self, proposal: Proposal, *, elsewhere: bool = False) -> None:
        """Give back the place of one that has ended; ``elsewhere`` when that place is not to be trusted with it."""

    def __len__(self) -> int: ...


class FirstCome:
    """Starts everything at once; Ray makes it wait."""

    def __init__(self) -> None:
        self._waiting: deque[Proposal] = deque()

    def wants_more(self) -> bool:
        return not self._waiting

    def add(self, proposal: Proposal) -> None:
        self._waiting.append(proposal)

    def start(self) -> Proposal | None:
        return self._waiting.popleft() if self._waiting else None

    def is_lost(self, proposal: Proposal) -> bool:
        return False

    def has_other_place(self, proposal: Proposal) -> bool:
        return False

    def release(self, proposal: Proposal, *, elsewhere: bool = False) -> None:
        pass

    def __len__(self) -> int:
        return len(self._waiting)


class Gate(Protocol):
    """What an experiment says to its search."""

    def problem(self, parameters: Parameters) -> Failure | None:
        """Why a configuration is not to be run; ``None`` when it may."""

    def same_as(self, parameters: Parameters) -> Parameters:
        """The configuration, of those that were proposed, that comes to the same as this one; itself if none does."""

    def enough(self) -> str | None:
        """Why the search ends here, before its trials are used up; ``None`` while it goes on."""

    def settled(self, reason: str) -> None:
        """Hear that nothing is worth a trial any more, and why: from now on it is ``enough``."""

    def affords(self, parameters: Parameters) -> bool:
        """Whether the budget pays for a trial of this configuration."""

    def unpaid(self) -> None:
        """Hear that the budget pays for nothing that is left to try."""

    def refuse(self, proposal: Proposal, failure: Failure) -> None:
        """Record a trial that is not going to run."""

    def repeated(self, config: str) -> None:
        """Hear that the strategy proposed a configuration again, by its hash, and that it is not measured again."""

    def stop_requested(self) -> bool: ...

    def champion(self) -> Parameters | None:
        """The configuration that is to be confirmed, as things stand; ``None`` when there is none."""

    def confirming(self, baseline: str, winner: str) -> Sequence[Ask]:
        """The runs that the verdict on these two configurations needs next; none when it stands."""

    def ended(self, trial: TrialId) -> TrialRecord | None:
        """The record of a trial whose worker is gone, if it got as far as to write one that stands."""


@dataclass(frozen=True)
class _Drawn:
    """A configuration from a source, which is told under this key what comes of it."""

    source: Source
    key: str
    parameters: Parameters


class Proposer(Searcher):
    """See the top of this module. Used by Tune's driver loop alone, from one thread."""

    def __init__(
        self,
        source: Source,
        *,
        fallback: Source | None,
        limits: Limits,
        gate: Gate,
        past: Past = Past(),
        queue: Queue | None = None,
        course: Callable[[], Sequence[Wanted]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``course`` takes the place of the search: it says which runs come next, until there are none."""
        super().__init__(metric=LOSS, mode="min")
        self._course = course
        self._source = source
        self._fallback = fallback
        self._limits = limits
        self._gate = gate
        self._queue = FirstCome() if queue is None else queue
        self._clock = clock
        self._knowledge = Knowledge.of(past.ended)
        self._again = deque(past.open)
        self._running: dict[str, Proposal] = {}
        self._begun: Counter[str] = Counter()
        self._waiting: dict[str, list[str]] = {}
        self._untold: list[str] = []
        """What has ended, by its hash, and was not told yet."""
        self._held: _Drawn | None = None
        """What the budget does not pay for as long as what runs may take all that is left."""
        self._unpaid = False
        self._exhausted = False
        self._in_vain = 0
        """Trials of the search in a row of which its source expected nothing."""
        self._confirming: deque[Wanted] = deque()
        self.duplicates = 0
        self._remember(past)

    def _remember(self, past: Past) -> None:
        """Go on where the experiment was; a configuration that runs again is told to its source under its hash."""
        trials = [(r.number, r.trial) for r in past.ended] + [(p.number, p.trial) for p in past.open]
        self._numbered = self._first_number = max((number for number, _ in trials), default=-1) + 1
        taken_over = {r.trial for r in past.ended if r.reused_from}  # no trial of this search
        own = (trial for _, trial in trials if trial not in taken_over)
        self._searched = len({trial.config for trial in own if trial.purpose == "search"})
        self._completed = sum(_is_measured(r.trial, r.outcome) and not r.reused_from for r in past.ended)
        self._controls = len({trial for _, trial in trials if trial.purpose == "control"})
        self._repeats = {trial.config: 0 for _, trial in trials}
        for _, trial in trials:
            self._repeats[trial.config] = max(self._repeats[trial.config], trial.repeat)
        self._behind = len(trials)
        for proposal in past.open:
            if not proposal.trial.again and self._knowledge.get(proposal.trial.config) is None:
                self._knowledge.add(proposal.parameters)
                self._waiting[proposal.trial.config] = [proposal.trial.config]

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
        known = self._knowledge[proposal.trial.config]
        known.outcome = "infeasible"
        self._inform(proposal.parameters, report(None, 0, 1.0, ending=Ending("infeasible", failure)))
        for key in self._waiting.pop(proposal.trial.config, []):
            self._source.tell(key, WORST)
        self._gate.refuse(proposal, failure)

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
        if not self._exhausted and self._searched < self._limits.max_trials and self._gate.enough() is None:
            if (why := self._settled()) is not None:
                if not self._is_busy():  # what runs may change that
                    self._gate.settled(why)
                return self._confirmation()
            parameters = self._search()
            if parameters is not None:
                if isinstance(self._source, Judge):
                    self._in_vain = self._in_vain + 1 if self._source.hopeless() else 0
                return self._proposal("search", parameters)
            if self._held is not None:
                return None
            self._exhausted = True
            if self._unpaid:
                self._gate.unpaid()
        return self._confirmation()

    def _settled(self) -> str | None:
        """Why no trial is worth while any more: the source expected nothing of the last ones, and still does not."""
        patience = self._limits.patience
        if patience is None or self._in_vain < patience or not isinstance(self._source, Judge):
            return None
        why = self._source.hopeless()
        self._in_vain = self._in_vain if why else 0
        return f"{why}; so it was for the last {self._in_vain} trials" if why else None

    def _proposal(self, purpose: Purpose, parameters: Parameters, repeat: int = 0) -> Proposal:
        proposal = Proposal(
            TrialId(purpose, config_hash(parameters), repeat), self._numbered, parameters, self._clock()
        )
        self._numbered += 1
        return proposal

    def _search(self) -> Parameters | None:
        """``None`` when one is held, and when there are no more."""
        held, self._held = self._held, None
        if held is not None and self._is_paid(held) and self._is_admitted(held):
            return held.parameters
        for source, draws in ((self._source, REPEATS_IN_A_ROW), (self._fallback, FRESH_DRAWS)):
            left = draws + self._behind  # a stream that begins anew repeats what it proposed before
            while source is not None and left > 0 and self._held is None and self._searched < self._limits.max_trials:
                key = f"p{self._searched}-{self.duplicates}-{left}-{draws}"
                parameters = source.propose(key)
                if parameters is None:
                    break
                drawn = _Drawn(source, key, parameters)
                if self._is_new(drawn) and self._is_paid(drawn) and self._is_admitted(drawn):
                    return parameters
                left -= 1
        return None

    def _is_new(self, drawn: _Drawn) -> bool:
        """Whether nothing is known of a proposal; else its source is told what is."""
        name, source = config_hash(drawn.parameters), drawn.source
        known = self._knowledge.get(name) or self._knowledge.get(config_hash(self._gate.same_as(drawn.parameters)))
        if known is None:
            return True
        name = config_hash(known.parameters)
        self.duplicates += 1
        if source is self._source and self.duplicates > self._behind:  # a stream that begins anew repeats itself
            self._gate.repeated(name)
        if known.outcome is None and source is self._source:
            self._waiting.setdefault(name, []).append(drawn.key)
        else:
            source.tell(drawn.key, self._knowledge.told(known))
        return False

    def _is_paid(self, drawn: _Drawn) -> bool:
        """Whether the budget pays for it; while others run it is held, since they may take less than is feared."""
        if self._gate.affords(drawn.parameters):
            return True
        if self._is_busy():
            self._held = drawn
        else:
            self._unpaid = True
            drawn.source.tell(drawn.key, None)
        return False

    def _is_admitted(self, drawn: _Drawn) -> bool:
        """Whether it may run; if not, its source is told so."""
        self._knowledge.add(drawn.parameters)
        self._searched += 1
        if drawn.source is self._source:
            self._waiting[config_hash(drawn.parameters)] = [drawn.key]
        failure = self._gate.problem(drawn.parameters)
        if failure is not None:
            self._refuse(self._proposal("search", drawn.parameters), failure)
        return failure is None

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
        may = self._begun[proposal.trial.name] < ATTEMPTS and not self._gate.stop_requested()
        failed = (result or {}).get("outcome") == "failed" and may and self._queue.has_other_place(proposal)
        again = (error or failed or never_began) and self._is_open(proposal) and may
        self._queue.release(proposal, elsewhere=again and not never_began)
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
                self._inform(proposal.parameters, result)
        return False

    def _tell(self, proposal: Proposal, otherwise: Any) -> None:
        known = self._knowledge[proposal.trial.config]
        if known.outcome is None:
            known.outcome = otherwise if known.losses else "failed"
            if not proposal.parameters:  # the baseline has no key under which a source could be told
                self._inform({}, report(None, len(known.losses), 1.0, ending=Ending(known.outcome)))
        self._completed += _is_measured(proposal.trial, known.outcome)
        self._untold = [config for config in (*self._untold, proposal.trial.config) if not self._is_told(config)]

    def _is_told(self, config: str) -> bool:
        """Tell the source how a configuration ended; not yet, where that takes trials that come to their end."""
        known = self._knowledge[config]
        if self._knowledge.is_too_early(known):
            return False
        for key in self._waiting.pop(config, []):
            self._source.tell(key, self._knowledge.told(known))
        return True

    def _hear(self, trial_id: str, result: Mapping[str, Any]) -> None:
        proposal = self._running.get(trial_id)
        if proposal is not None and not proposal.trial.again and "rungs_done" in result:
            self._knowledge[proposal.trial.config].hear(result)
            self._inform(proposal.parameters, result)

    def _inform(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        if isinstance(self._source, Judge):
            self._source.hear(parameters, result)

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
        every, baseline = self._limits.control_every, self._knowledge[config_hash({})]
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
