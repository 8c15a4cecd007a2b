"""What travels between the search and a trial through Ray Tune: a configuration there, a report back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raytune_autotuner.objectives import scalar
from raytune_autotuner.records import (
    Failure,
    Outcome,
    Parameters,
    ParameterValue,
    Score,
    TrialId,
    TrialRecord,
    config_hash,
)
from raytune_autotuner.task.spec import Optimization

META = "_trial"
BUDGET, LOSS = "rung_budget", "loss"
NUMBERS = re.compile(r"0x[0-9a-fA-F]+|[0-9][0-9.,]*")
CAUSE_LENGTH = 100


@dataclass(frozen=True)
class Proposal:
    """One trial to run; travels through Tune as its configuration."""

    trial: TrialId
    number: int
    parameters: Parameters
    proposed_at: float
    """Wall-clock seconds, so that the wait for resources can be charged on another machine."""
    node: str | None = None
    """Where an earlier worker of the trial was, and what it left may be; or where it is to be measured."""
    place: Mapping[str, Any] = field(default_factory=dict)
    """The reservation (see ``reservation.Reservation``), as plain data."""

    def to_config(self) -> dict[str, Any]:
        meta = {
            "purpose": self.trial.purpose,
            "repeat": self.trial.repeat,
            "number": self.number,
            "proposed_at": self.proposed_at,
            "place": dict(self.place),
        }
        return {**self.parameters, META: meta}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Proposal:
        parameters = {k: v for k, v in config.items() if k != META}
        meta = config[META]
        trial = TrialId(meta["purpose"], config_hash(parameters), meta["repeat"])
        return cls(trial, meta["number"], parameters, meta["proposed_at"], place=meta["place"])


LABEL_LENGTH = 120
OWN_FLAGS = "the runtime's own flags"


def label(experiment: str, proposal: Proposal) -> str:
    """A trial in short, for Ray's dashboard and the prefix of its log lines."""
    given = " ".join(f"{name}={_short(value)}" for name, value in proposal.parameters.items())
    text = f"{experiment} #{proposal.number} {proposal.trial.name} {given or OWN_FLAGS}"
    return text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…"


def _short(value: ParameterValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Ending:
    """How a trial ended, and why."""

    outcome: Outcome
    failure: Failure | None = None


def report(
    score: Score | None,
    rungs_done: int,
    reduction_factor: float,
    *,
    ending: Ending | None = None,
    node: str | None = None,
    cut: bool = False,
) -> dict[str, Any]:
    """What a trial tells Tune after a step. NaN keeps a trial without a score out of ASHA's quantiles.

    A rung that was ``cut`` short lacks its last loads: its score says that the SLO is lost, not how good it is.
    """
    return {
        LOSS: scalar(score.loss, score.violation) if score else float("nan"),
        BUDGET: reduction_factor ** max(0, rungs_done - 1),
        "raw_loss": score.loss if score else None,
        "violation": score.violation if score else None,
        "value": score.value if score else None,
        "values": dict(score.values) if score else None,
        "slo": score.slo if score else None,
        "cut": cut,
        "rungs_done": rungs_done,
        "node": node,
        "outcome": ending.outcome if ending else None,
        "cause": cause(ending.failure) if ending and ending.failure else None,
        "done": ending is not None,
    }


def reports(record: TrialRecord, reduction_factor: float = 2.0) -> Iterator[dict[str, Any]]:
    """What a trial that has ended had told, rung by rung, and at its end."""
    done = 0
    for done, rung in enumerate(record.rungs, 1):
        yield report(rung.score, done, reduction_factor, node=record.node, cut=rung.cut is not None)
    last = record.rungs[-1] if record.rungs else None
    score, cut = (last.score, last.cut is not None) if last else (None, False)
    ending = Ending(record.outcome, record.failure)
    yield report(score, done, reduction_factor, ending=ending, node=record.node, cut=cut)


def cause(failure: Failure) -> str:
    """Why a configuration cannot work, in words that are the same for the same cause: without numbers and addresses."""
    first = failure.reason.strip().splitlines()[0] if failure.reason.strip() else ""
    return f"{failure.kind}: {NUMBERS.sub('#', first)[:CAUSE_LENGTH]}"


def reduction_factor(optimization: Optimization) -> float:
    return 2.0 if optimization.scheduler == "none" else optimization.scheduler.reduction_factor
