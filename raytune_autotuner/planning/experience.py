"""How long trials took in an earlier experiment, and with which runtime, for the plan of the next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytune_autotuner.earlier import Earlier, EarlierTrial, Found, age
from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.objectives import OBJECTIVES
from raytune_autotuner.task.spec import Task

LOW, HIGH = 10, 90
"""Percentiles that stand for the best and the worst."""
Span = tuple[float, float]


@dataclass(frozen=True)
class Experience:
    """Measured times, in seconds."""

    experiment: str
    age: str
    trials: int
    """So many whole ones."""
    beside_rungs_s: Span
    """Deployment, warm-up, teardown: all of a whole trial that is no rung."""
    rungs_s: tuple[Span, ...] = ()
    """By rung; empty where the workload was another one."""
    search_s: float | None = None
    """Of a trial of the search on the average, those that ended early included; ``None`` as for the rungs."""
    where: str = ""
    """The hardware and the engine's version, as far as they are known."""
    runtime_args: tuple[str, ...] | None = None
    """The flags of the task's runtime as they were then; ``None`` where they are not known."""

    def said(self) -> Iterator[str]:
        yield f"times are from {self.trials} earlier trials of {self.experiment}, {self.age} old{self.where}"
        if not self.rungs_s:
            yield "its workload was another one, so that only the time beside the rungs is taken from it"


def experience(found: Found, task: Task, engine: Engine, here: Mapping[str, Any] | None = None) -> Experience | None:
    """What the latest experiments tell of how long a task will take: of its workload, else of its model.

    ``here`` is the identity of the new experiment (see ``identity``), where it is known already: nothing is taken from
    other hardware, and what the same version of the engine did comes first.
    """
    alike = [
        e for e in found.experiments if _is_alike(e, task, engine) and _whole(e) and not _differs(e, here, "hardware")
    ]
    if not alike:
        return None
    earlier = min(alike, key=lambda e: (not _has_workload(e, task), _differs(e, here, "engine version")))
    return _measured(earlier, task, is_same=_has_workload(earlier, task))


def _is_alike(earlier: Earlier, task: Task, engine: Engine) -> bool:
    other = earlier.task
    same_engine = (earlier.engine or other.engine) == engine.name
    return same_engine and other.backend == task.backend and other.model.name == task.model.name


def _differs(earlier: Earlier, here: Mapping[str, Any] | None, topic: str) -> bool:
    """Whether both are known, and not equal."""
    mine, other = (here or {}).get(topic), earlier.identity.get(topic)
    return mine is not None and other is not None and mine != other


def _has_runtime(earlier: Earlier, task: Task) -> bool:
    """Whether the runtime is one of OME that both name; the flags of a local one stand in the task."""
    other = earlier.task
    same_name = task.base_runtime is not None and other.base_runtime == task.base_runtime
    return same_name and other.ome.runtime_kind == task.ome.runtime_kind


def _has_workload(earlier: Earlier, task: Task) -> bool:
    mine, other = task.optimization, earlier.task.optimization
    return (
        earlier.task.benchmark == task.benchmark
        and (mine.scheduler == "none") == (other.scheduler == "none")
        and OBJECTIVES[mine.objective].searches_level == OBJECTIVES[other.objective].searches_level
    )


def _whole(earlier: Earlier) -> list[EarlierTrial]:
    """The trials that went through every rung."""
    return [
        t
        for t in earlier.trials
        if t.outcome == "completed" and t.purpose != "confirm" and t.rungs and t.reused_from is None
    ]


def _measured(earlier: Earlier, task: Task, *, is_same: bool) -> Experience:
    whole = _whole(earlier)
    rungs: dict[int, list[float]] = {}
    for trial in earlier.trials:
        for rung in trial.rungs if trial.reused_from is None else ():
            rungs.setdefault(rung.rung, []).append(rung.wall_s)
    searched = [t.own_s for t in earlier.trials if t.purpose == "search" and t.reused_from is None and t.own_s]
    return Experience(
        experiment=earlier.name,
        age=age(earlier.ended_at),
        trials=len(whole),
        beside_rungs_s=_span([max(0.0, t.own_s - t.rungs_s) for t in whole]),
        rungs_s=tuple(_span(rungs[n]) for n in sorted(rungs)) if is_same else (),
        search_s=float(np.mean(searched)) if is_same and searched else None,
        where=_where(earlier.identity),
        runtime_args=earlier.runtime_args if _has_runtime(earlier, task) else None,
    )


def _where(identity: Mapping[str, Any]) -> str:
    hardware, version = identity.get("hardware"), identity.get("engine version")
    said = f", on {', '.join(map(str, hardware))}" if hardware else ""
    return said + (f", with {version}" if version else "")


def _span(values: Sequence[float]) -> Span:
    low, high = np.percentile(np.asarray(values, dtype=float), (LOW, HIGH))
    return float(low), float(high)
