"""What the search is told by the experiment around it, and what it asks of that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import Failure, Parameters, TrialId, TrialRecord
from raytune_autotuner.search.knowledge import Knowledge
from raytune_autotuner.search.source import Lessons
from raytune_autotuner.verdict import Ask


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
        knowledge = Knowledge.of(self.ended)
        running = [proposal.parameters for proposal in self.open if proposal.trial.purpose == "search"]
        return Lessons(
            told=tuple(knowledge.losses()),
            open=(*running, *knowledge.untold()),
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

    def give_up(self, proposal: Proposal) -> None:
        """Record that a trial was begun as often as it may be, and has no end that stands."""

    def repeated(self, config: str) -> None:
        """Hear that the strategy proposed a configuration again, by its hash, and that it is not measured again."""

    def stop_requested(self) -> bool: ...

    def champion(self) -> Parameters | None:
        """The configuration that is to be confirmed, as things stand; ``None`` when there is none."""

    def confirming(self, baseline: str, winner: str) -> Sequence[Ask]:
        """The runs that the verdict on these two configurations needs next; none when it stands."""

    def ended(self, trial: TrialId) -> TrialRecord | None:
        """The record of a trial whose worker is gone, if it got as far as to write one that stands."""
