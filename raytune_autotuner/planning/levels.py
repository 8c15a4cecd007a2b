"""The rungs of an objective that searches the highest level of concurrency which keeps the SLO."""

from __future__ import annotations

from dataclasses import replace

from raytune_autotuner.records import LevelSearch, Load, Rung
from raytune_autotuner.task.spec import Benchmark, Capacity, RungSpec, Task

SHORT_REQUESTS = 8
"""A short rung sends at least so many."""
DOUBLING_ONLY = 1.0
"""As a tolerance: the search ends with the first level that breaks the SLO."""


def capacity_search(task: Task) -> LevelSearch:
    """Where the task looks for the knee."""
    capacity = task.benchmark.capacity or Capacity()
    return LevelSearch(capacity.min or min(task.benchmark.levels), capacity.max, capacity.tolerance)


def searching_ladder(task: Task) -> tuple[Rung, ...]:
    """As written out, else the whole workload, after a short and coarse search where trials may be stopped."""
    benchmark, search = task.benchmark, capacity_search(task)
    if benchmark.rungs is not None:
        return tuple(_written(benchmark, search, n) for n in range(len(benchmark.rungs)))
    whole = replace(_rung(benchmark, search, RungSpec(), 0), repeats=benchmark.repeats)
    requests = min(SHORT_REQUESTS, benchmark.max_requests_per_iteration // 2)
    if task.optimization.scheduler == "none" or not requests:
        return (whole,)
    coarse = replace(search, tolerance=DOUBLING_ONLY)
    short = replace(whole, loads=whole.loads[:1], max_requests=requests, levels=coarse, repeats=1)
    return short, replace(whole, index=1)


def _written(benchmark: Benchmark, search: LevelSearch, index: int) -> Rung:
    rungs = benchmark.rungs or ()
    rung = _rung(benchmark, search, rungs[index], index)
    return replace(rung, repeats=benchmark.repeats) if index == len(rungs) - 1 else rung


def _rung(benchmark: Benchmark, search: LevelSearch, asked: RungSpec, index: int) -> Rung:
    return Rung(
        index,
        tuple(Load(text, search.low) for text in asked.traffic_scenarios or benchmark.scenarios),
        asked.max_requests or benchmark.max_requests_per_iteration,
        asked.max_minutes or benchmark.max_time_per_iteration,
        levels=replace(search, tolerance=asked.tolerance or search.tolerance),
    )
