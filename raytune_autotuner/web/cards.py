"""One line an experiment: what the list of experiments shows. Those that are over are not read trial by trial."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import TypeAdapter

from raytune_autotuner import overview
from raytune_autotuner.objectives import goal
from raytune_autotuner.records import Score
from raytune_autotuner.storage import READERS
from raytune_autotuner.summary import gain
from raytune_autotuner.task.spec import Task
from raytune_autotuner.verdict import Verdict
from raytune_autotuner.web.library import Library, Unknown
from raytune_autotuner.web.reader import Snapshot, Unreadable

REMOTE_CHECK_S = 30.0
"""How often it is asked of an object store whether an experiment that was over goes on."""
STATES = ("running", "stopping", "interrupted", "done", "unreadable")


@dataclass(frozen=True)
class Card:
    name: str
    version: str
    state: str
    task_name: str = ""
    model: str = ""
    engine: str = ""
    objective: str = ""
    workload: str = ""
    """The same for experiments whose scores can be compared."""
    ended: int = 0
    planned: int = 0
    best: Score | None = None
    gain: float | None = None
    """Over the baseline: the verdict's; without one, of the search's own values, which are partly luck."""
    verdict: Verdict | None = None
    spent: float = 0.0
    unit: str = ""
    started_at: datetime | None = None
    reason: str = ""
    """Why it cannot be read."""

    @property
    def progress(self) -> float:
        return min(1.0, self.ended / self.planned) if self.planned else 0.0


class Cards:
    """Keeps what it made of each experiment until that changes. May be used by several threads."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._closed: dict[str, tuple[object, float, Card]] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Card]:
        """The last begun first.

        Raises:
            StorageFault: the storage does not answer.
        """
        names = self._library.names()
        if self._library.storage.is_local:
            found = [self.one(name) for name in names]
        else:
            with ThreadPoolExecutor(READERS) as readers:
                found = list(readers.map(self.one, names))
        return sorted(found, key=lambda card: card.started_at.timestamp() if card.started_at else 0.0, reverse=True)

    @staticmethod
    def version_of(cards: Sequence[Card], more: str = "") -> str:
        text = " ".join((*(f"{card.name}={card.version}" for card in cards), more))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def one(self, name: str) -> Card:
        try:
            return self._one(name)
        except (*overview.UNREADABLE, Unreadable, Unknown) as error:
            return Card(name, version="unreadable", state="unreadable", reason=str(error))

    def _one(self, name: str) -> Card:
        kept = self._closed.get(name)
        now = time.monotonic()
        if kept is not None and not self._library.storage.is_local and now - kept[1] < REMOTE_CHECK_S:
            return kept[2]
        stamps = self._library.folder(name).root.stamps()
        mark = tuple(stamps.get(file) for file in ("task.json", "results.json", "stop"))
        if "lock.json" in stamps or "results.json" not in stamps:
            return of_snapshot(self._library.look(name))
        if kept is None or kept[0] != mark:
            kept = (mark, now, self._over(name, str(mark)))
        with self._lock:
            self._closed[name] = (mark, now, kept[2])
        return kept[2]

    def _over(self, name: str, version: str) -> Card:
        folder = self._library.folder(name)
        seen = overview.Overview.of(folder)
        task = overview.read_task(folder)
        said = overview.read_results(folder)
        baseline = (said.get("baseline") or {}).get("objective_score")
        best, told = seen.best, said.get("verdict")
        verdict = TypeAdapter(Verdict).validate_python(told) if told else None
        return Card(
            name=name,
            version=version,
            state=seen.state,
            **_of_task(task),
            ended=seen.ended,
            planned=seen.ended if seen.state == "done" else overview.planned(folder),
            best=best,
            gain=_gain(verdict, best, baseline),
            verdict=verdict,
            spent=seen.spent,
            unit=seen.unit,
            started_at=seen.started_at,
        )


def of_snapshot(seen: Snapshot) -> Card:
    results = seen.results
    baseline, verdict = results.baseline.score if results.baseline else None, results.verdict
    return Card(
        name=seen.name,
        version=str(seen.version),
        state=seen.state,
        **_of_task(seen.task),
        ended=len(seen.records),
        planned=len(seen.records) if seen.state == "done" else seen.planned,
        best=seen.best,
        gain=_gain(verdict, seen.best, baseline.value if baseline else None),
        verdict=verdict,
        spent=results.ledger.total,
        unit=results.ledger.unit,
        started_at=seen.started_at,
    )


def _of_task(task: Task) -> dict[str, str]:
    return {
        "task_name": task.task_name,
        "model": task.model.name,
        "engine": task.engine or "",
        "objective": goal(task.optimization),
        "workload": workload(task),
    }


def workload(task: Task) -> str:
    """Two experiments have the same when they asked the same of the same model."""
    asked = task.benchmark.model_dump_json(include={"task", "dataset", "prefix_len", "prefix_ratio", "num_concurrency"})
    text = f"{task.model.name} {asked} {task.benchmark.scenarios} {task.benchmark.levels}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _gain(verdict: Verdict | None, best: Score | None, baseline: float | None) -> float | None:
    if verdict is not None:
        return verdict.gain if verdict.compared else None
    if best is None or baseline is None or best.value == baseline:  # it is the baseline itself
        return None
    return gain(best, replace(best, value=baseline))
