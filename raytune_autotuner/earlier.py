"""Earlier experiments in a storage, as far as a new one can learn from them. Reading them never fails a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from pydantic import TypeAdapter

from raytune_autotuner.errors import SpecError, StorageFault
from raytune_autotuner.folder import COURSE, ExperimentFolder
from raytune_autotuner.ledger import WAITING
from raytune_autotuner.records import Outcome, Parameters, Purpose, Score
from raytune_autotuner.storage import READERS, Storage
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.spec import Task, parse_task

LATEST = 20
"""So many are read, the last that ended first."""
NAMES = 500
"""So many are asked when they ended; names that end in a time are sorted by it."""


@dataclass(frozen=True)
class RungTime:
    rung: int
    wall_s: float


@dataclass(frozen=True)
class EarlierTrial:
    """A trial as ``results.json`` tells of it."""

    trial: str
    purpose: Purpose
    outcome: Outcome
    parameters: dict[str, str | int | float | bool | None]
    gpus: int
    phases: dict[str, float]
    rungs: tuple[RungTime, ...]
    started_at: str
    score: Score | None = None
    reused_from: dict[str, Any] | None = None

    @property
    def own_s(self) -> float:
        return sum(s for phase, s in self.phases.items() if phase not in WAITING and s > 0)

    @property
    def rungs_s(self) -> float:
        return sum(rung.wall_s for rung in self.rungs)


@dataclass(frozen=True)
class Earlier:
    """An experiment that has come to its end."""

    folder: ExperimentFolder
    task: Task
    trials: tuple[EarlierTrial, ...]
    ended_at: datetime
    engine: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    """See ``identity``; empty of one that was run before there was such a thing."""
    runtime_args: tuple[str, ...] | None = None
    """The flags of its runtime; ``None`` where they were not written."""

    @property
    def name(self) -> str:
        return self.folder.name

    def best(self, number: int) -> list[Parameters]:
        """Its best configurations that keep its SLO, the best first; the baseline is none of them."""
        scored = [t for t in self.trials if t.purpose == "search" and t.outcome == "completed" and t.score]
        kept = [t for t in scored if t.score and t.score.violation == 0]
        return [t.parameters for t in sorted(kept, key=lambda t: t.score.loss if t.score else 0.0)[:number]]


@dataclass(frozen=True)
class Found:
    experiments: tuple[Earlier, ...] = ()
    """The last that ended first."""
    notes: tuple[str, ...] = ()
    """What was not read, and why."""


def recent(storage: Storage, but: str = "", limit: int = LATEST) -> Found:
    """The experiments with a search in a storage that ended last, but for the one of that name."""
    try:
        names = [name for name in sorted(storage.list(), key=_time_in, reverse=True) if name != but]
        ended = _ended(storage, names[:NAMES])
    except StorageFault as fault:
        return Found(notes=(f"earlier experiments cannot be read: {fault}",))
    found: list[Earlier] = []
    notes: list[str] = []
    for name, ended_at in ended[:limit]:
        try:
            found.append(_read(ExperimentFolder(storage, name), ended_at))
        except (StorageFault, SpecError, ValueError, KeyError, TypeError) as error:
            first = str(error).partition("\n")[0]
            notes.append(f"the earlier experiment {name} is left out, as it cannot be read: {first[:200]}")
    unasked = len(names[NAMES:])
    if unread := len(ended[limit:]) + unasked:
        said = f"up to {unread}" if unasked else unread
        notes.append(f"only the {limit} experiments that ended last are read; others that are left unread: {said}")
    return Found(tuple(found), tuple(notes))


def _ended(storage: Storage, names: Sequence[str]) -> list[tuple[str, datetime]]:
    """Without those that only measured an answer again: a search has nothing to learn from them."""

    def ended_at(name: str) -> datetime | None:
        at = storage.modified(f"{name}/results.json")
        return at if at and not storage.exists(f"{name}/{COURSE}") else None

    with ThreadPoolExecutor(READERS) as readers:
        times = zip(names, readers.map(ended_at, names), strict=True)
    return sorted(((name, at) for name, at in times if at), key=lambda each: each[1], reverse=True)


def _time_in(name: str) -> str:
    """The time at the end of a name (``chat-20260131-120000``); of one without it nothing, which comes last."""
    return name[-15:] if name[-6:].isdigit() and name[-15:-7].isdigit() else ""


def _read(folder: ExperimentFolder, ended_at: datetime) -> Earlier:
    texts = {file: folder.root.read(file) for file in ("task.json", "results.json", "inputs.json", "identity.json")}
    if not texts["task.json"] or not texts["results.json"]:
        raise ValueError("it has no task or no results")
    document = taskfile.parse(texts["task.json"], folder.root.location("task.json"), strict_json=True)
    inputs = dict(json.loads(texts["inputs.json"] or "{}"))
    return Earlier(
        folder=folder,
        task=parse_task(document.data, document.source),
        trials=_TRIALS.validate_python(json.loads(texts["results.json"])["all_results"]),
        ended_at=ended_at if ended_at.tzinfo else ended_at.replace(tzinfo=timezone.utc),
        engine=str(inputs.get("engine") or ""),
        identity=dict(json.loads(texts["identity.json"] or "{}")),
        runtime_args=None if (args := inputs.get("runtime_args")) is None else tuple(map(str, args)),
    )


_TRIALS: TypeAdapter[tuple[EarlierTrial, ...]] = TypeAdapter(tuple[EarlierTrial, ...])


def age(moment: datetime) -> str:
    """How long ago, in the largest unit that it fills: ``3 d``, ``5 h``, ``20 min``."""
    seconds = (datetime.now(timezone.utc) - moment).total_seconds()
    units: Sequence[tuple[float, str]] = ((86400, "d"), (3600, "h"), (60, "min"))
    return next((f"{seconds / size:.0f} {unit}" for size, unit in units if seconds >= size), "1 min")
