"""The rungs of an objective that searches the highest level of concurrency which keeps the SLO."""

from __future__ import annotations

from dataclasses import replace

from raytune_autotuner.records import LevelSearch, Load, Rung
from raytune_autotuner.task.spec import Capacity, RungSpec, Task

SHORT_REQUESTS = 8
"""A short rung sends at least so many."""
DOUBLING_ONLY = 1.0
"""As a tolerance: the search ends with the first level that breaks the SLO, or that keeps it on the way down."""


def capacity_search(task: Task) -> LevelSearch:
    """Where the task looks for the knee: down to a single request in flight, unless it says where to end."""
    capacity = task.benchmark.capacity or Capacity()
    return LevelSearch(capacity.min or 1, capacity.max, capacity.tolerance)


def first_level(task: Task) -> int:
    """Where the search for the knee begins."""
    capacity = task.benchmark.capacity or Capacity()
    return capacity.min or min(task.benchmark.levels)


def searching_ladder(task: Task) -> tuple[Rung, ...]:
    """As written out, else the whole workload, after a short and coarse search where trials may be stopped."""
    benchmark = task.benchmark
    if benchmark.rungs is not None:
        return tuple(_written(task, n) for n in range(len(benchmark.rungs)))
    whole = replace(_rung(task, RungSpec(), 0), repeats=benchmark.repeats)
    requests = min(SHORT_REQUESTS, benchmark.max_requests_per_iteration // 2)
    if task.optimization.scheduler == "none" or not requests:
        return (whole,)
    coarse = replace(capacity_search(task), tolerance=DOUBLING_ONLY)
    short = replace(whole, loads=whole.loads[:1], max_requests=requests, levels=coarse, repeats=1)
    return short, replace(whole, index=1)


def _written(task: Task, index: int) -> Rung:
    rungs = task.benchmark.rungs or ()
    rung = _rung(task, rungs[index], index)
    return replace(rung, repeats=task.benchmark.repeats) if index == len(rungs) - 1 else rung


def _rung(task: Task, asked: RungSpec, index: int) -> Rung:
    benchmark, search, first = task.benchmark, capacity_search(task), first_level(task)
    return Rung(
        index,
        tuple(Load(text, first) for text in asked.traffic_scenarios or benchmark.scenarios),
        asked.max_requests or benchmark.max_requests_per_iteration,
        asked.max_minutes or benchmark.max_time_per_iteration,
        levels=replace(search, tolerance=asked.tolerance or search.tolerance),
    )
