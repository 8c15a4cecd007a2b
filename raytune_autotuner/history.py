"""What an experiment has behind it, read from its folder: the truth from which it goes on after any accident.

A trial is over when it was measured to the end, stopped because others were better, or cannot work. One that was cut
short, or that failed because of the infrastructure, is open: it is begun again under its own name, with the rungs that
were measured and the time that was spent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import WAITING
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import TrialId, TrialRecord, TrialState
from raytune_autotuner.search import Past
from raytune_autotuner.trial import seconds_since, utc_now

QUEUED = "queue"


def is_over(record: TrialRecord) -> bool:
    """Whether a trial is not to be run again."""
    cut_short = record.failure is not None and record.failure.kind == "interrupted"
    return record.outcome != "failed" and not cut_short


def take_up(folder: ExperimentFolder, died_at: datetime | None) -> Past:
    """An experiment's past, with its open trials ready to be begun again.

    ``died_at`` is the last sign of life of whoever ran it; what its trials did until then is charged to them. Without
    one it had ended by itself, and nothing is charged beyond what it wrote.
    """
    records = {record.trial.name: record for record in folder.records()}
    ended = tuple(record for record in records.values() if is_over(record))
    return Past(ended, tuple(_reopened(folder, records, died_at)))


def searched(folder: ExperimentFolder) -> int:
    """How many configurations the search has proposed so far; what was taken over is none of them."""
    taken_over = {record.trial.name for record in folder.records() if record.reused_from}
    return sum(name.startswith("search-") and name not in taken_over for name in folder.trial_names())


def _reopened(
    folder: ExperimentFolder, records: dict[str, TrialRecord], died_at: datetime | None
) -> Iterator[Proposal]:
    for state in folder.states():
        record = records.get(state.trial.name)
        if record is None or not is_over(record):
            reopen(folder, state, record, died_at)
            yield Proposal(
                state.trial, state.number, state.parameters, datetime.now(timezone.utc).timestamp(), state.node
            )


def over(folder: ExperimentFolder, trial: TrialId) -> TrialRecord | None:
    """The record of a trial whose worker is gone; if there is none that stands, the trial is open again."""
    record, state = folder.record(trial.name), folder.state(trial.name)
    if record is not None and is_over(record):
        return record
    if state is not None:
        reopen(folder, state, record, datetime.now(timezone.utc))
    return None


def reopen(folder: ExperimentFolder, state: TrialState, record: TrialRecord | None, died_at: datetime | None) -> None:
    """Write that a trial is to go on, and what it has cost until its worker died. Can be repeated.

    What it cost while it waited for a node nobody knows: it may have got one just when its worker died. Whoever goes
    on with it will find out. In this order: the record goes when what it says is in the state.
    """
    phases, until, unattended_s = dict(record.phases if record else state.phases), state.updated_at, state.unattended_s
    if record is None and state.phase != QUEUED and died_at is not None:
        until = max(state.updated_at, died_at.isoformat(timespec="milliseconds"))
        lost_s = (datetime.fromisoformat(until) - datetime.fromisoformat(state.updated_at)).total_seconds()
        if state.phase in WAITING:
            unattended_s += lost_s
        else:
            phases[state.phase] = phases.get(state.phase, 0.0) + lost_s
    folder.save_state(
        replace(
            state,
            phase=QUEUED,
            detail="to be begun again",
            updated_at=until,
            outcome=None,
            score=None,
            phases=phases,
            unattended_s=unattended_s,
        )
    )
    if record is not None:
        folder.delete_record(state.trial)


def settle(folder: ExperimentFolder, trial: str) -> None:
    """Charge an open trial for what was left of it, which has just been removed, as nobody came to go on with it."""
    state = folder.state(trial)
    if state is None or state.outcome is not None:
        return
    held_s = state.unattended_s + seconds_since(state.updated_at)
    phases = {**state.phases, "idle": round(state.phases.get("idle", 0.0) + held_s, 3)}
    folder.save_state(replace(state, phases=phases, unattended_s=0.0, updated_at=utc_now()))
