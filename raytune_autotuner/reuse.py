"""Measurements of earlier experiments, taken over where everything that decides them is equal (see ``identity``).

They become records of the new experiment that cost nothing and say where they are from. Baseline and confirming runs
are always measured afresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count

from raytune_autotuner.earlier import Earlier, Found, age
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.identity import identity, unlike
from raytune_autotuner.ledger import held_s, own_s
from raytune_autotuner.measuring import in_words
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Reused, TrialId, TrialRecord, config_hash
from raytune_autotuner.setup import Setup
from raytune_autotuner.task.spec import Task


@dataclass(frozen=True)
class Matches:
    """Which earlier experiments measured the same thing, and why the others did not."""

    equal: tuple[Earlier, ...]
    notes: tuple[str, ...]


def matches(setup: Setup, found: Found) -> Matches:
    mine = identity(setup)
    unequal = {each.name: "; ".join(unlike(mine, each.identity)) for each in found.experiments}
    equal = tuple(each for each in found.experiments if not unequal[each.name])
    notes = [f"taking over what {each.name} measured, {age(each.ended_at)} ago" for each in equal]
    notes += [f"nothing is taken over from {name}: {why}" for name, why in unequal.items() if why]
    return Matches(equal, (*(notes or ["there is no earlier experiment to take anything over from"]), *found.notes))


def take_over(setup: Setup, found: Found) -> int:
    """Copy what fits into the experiment's folder; how many there were. Can be repeated: nothing is copied twice."""
    folder = setup.folder
    there = set(folder.trial_names())
    known = [record.number for record in folder.records()] + [state.number for state in folder.states()]
    numbers = count(max(known, default=0) + 1)
    taken = 0
    for earlier in matches(setup, found).equal:
        for record in _fitting(setup, earlier):
            if record.trial.name not in there:
                there.add(record.trial.name)
                folder.save_record(replace(record, number=next(numbers)))
                taken += 1
    return taken


def _fitting(setup: Setup, earlier: Earlier) -> Iterator[TrialRecord]:
    space = Space.of(setup.task, setup.engine)
    records: list[TrialRecord] = []
    with suppress(StorageFault, ValueError):  # a folder that is damaged is no reason not to run
        records = earlier.folder.records()
    for record in records:
        if record.trial.purpose != "search" or not _is_finished(record) or setup.gpus(record.parameters) != record.gpus:
            continue
        if not _still_fails(record, earlier.task, setup.task):
            continue
        if space.point(record.parameters) is not None and space.problem(record.parameters) is None:
            with suppress(KeyError):  # it did not measure what this objective needs
                yield _copied(setup, earlier, record)


def _is_finished(record: TrialRecord) -> bool:
    """Whether it was measured to the end, or found by trying that it cannot work."""
    ran = own_s(record) > 0 or record.reused_from is not None
    return record.outcome == "completed" or (record.outcome == "infeasible" and ran)


def _still_fails(record: TrialRecord, there: Task, here: Task) -> bool:
    """Whether what it failed by is asked of it here, too; also of one that did not fail."""
    kind = record.failure.kind if record.failure else None
    if kind == "quality":
        return there.optimization.canary == here.optimization.canary
    return kind not in ("not_ready", "timeout") or _load_s(there) >= _load_s(here)


def _load_s(task: Task) -> float:
    """How long an engine may load; how long all of a trial may take is part of the identity."""
    return task.ome.load_timeout_s if task.backend == "ome" else 0.0


def _copied(setup: Setup, earlier: Earlier, record: TrialRecord) -> TrialRecord:
    """As a record of this experiment, by its own objective and limits."""
    context = Context(record.gpus, setup.task.optimization)
    rungs = tuple(
        replace(rung, score=replace(score(rung.metrics, context), at=in_words(rung.knees))) for rung in record.rungs
    )
    return replace(
        record,
        trial=TrialId("search", config_hash(record.parameters)),
        experiment=setup.folder.name,
        rungs=rungs,
        score=rungs[-1].score if record.outcome == "completed" else None,
        phases={},
        reused_from=record.reused_from
        or Reused(earlier.name, record.trial.name, record.started_at, round(held_s(record), 3)),
    )
