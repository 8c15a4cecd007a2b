"""What an experiment will do, and how long that takes, before anything starts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raytune_autotuner.budget import Limits
from raytune_autotuner.capacity import most_probes
from raytune_autotuner.engines.command import gpu_count, misspelt
from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.objectives import OBJECTIVES, title
from raytune_autotuner.planning import impossible
from raytune_autotuner.planning.experience import Experience
from raytune_autotuner.planning.levels import SHORT_REQUESTS, capacity_search, first_level, searching_ladder
from raytune_autotuner.planning.space import MAX_CANDIDATES, Space
from raytune_autotuner.records import Load, Parameters, Rung
from raytune_autotuner.task import scenarios
from raytune_autotuner.task.spec import FEWEST_BASELINES, Benchmark, Task

SHORT_WAVES = 2
"""The short rung lets every client send this many requests, and at least ``SHORT_REQUESTS`` in all."""
DEPLOY_S = {"local": (5.0, 120.0), "ome": (60.0, 600.0)}
"""From nothing to a ready engine and back, at best and at worst."""
BEST_PREFILL_TOKENS_PER_S, BEST_TPOT_S = 20_000.0, 0.005
"""A fast engine; nothing is known of this one before it has been measured."""
TYPICAL_TOKENS = (500.0, 100.0)
"""Input and output of a request whose size the data decides."""
CLIENT_S = 1.0
"""What the benchmark client adds to a load."""
SAMPLES = 200
"""Configurations by which a range over the space is estimated."""

Span = tuple[float, float]
"""At best and at worst."""


@dataclass(frozen=True)
class Seconds:
    """For which trials hold their GPUs."""

    whole: Span
    """The baseline, which always goes to the end."""
    search: Span
    """On the average over the search, where trials are stopped early."""
    confirm: Span


@dataclass(frozen=True)
class Plan:
    task_name: str
    objective: str
    strategy: str
    points: int
    """Configurations that the search tries, at most."""
    grid_points: int | None
    """Configurations that there are; ``None`` when they are not countable."""
    trials: int
    """Points, the baseline and the confirming runs, at most."""
    rungs: tuple[Rung, ...]
    gpus: tuple[int, int]
    """Per trial, over the configurations."""
    trial_s: Span
    total_s: Span
    gpu_hours: Span
    cost: Span | None
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
    seconds: Seconds
    confirm: tuple[int, int] = (0, 0)
    """Confirming runs, at least and at most."""
    limits: Limits | None = None
    at_once: int = 1

    @property
    def allowed(self) -> tuple[int, int] | None:
        """How many points of the search the budget pays for, at worst and at best; ``None`` without a budget."""
        return None if self.limits is None else (_payable(self, 1), _payable(self, 0))


def ladder(task: Task) -> tuple[Rung, ...]:
    """The rungs of a trial: as written out, else the whole workload, after a short run where trials may be stopped."""
    benchmark = task.benchmark
    if OBJECTIVES[task.optimization.objective].searches_level:
        return searching_ladder(task)
    if benchmark.rungs is not None:
        return tuple(_written(benchmark, n) for n in range(len(benchmark.rungs)))
    whole = _loads(benchmark.scenarios, benchmark.levels)
    short = _short(benchmark, len(whole)) if task.optimization.scheduler != "none" else None
    minutes, requests = benchmark.max_time_per_iteration, benchmark.max_requests_per_iteration
    last = Rung(1 if short else 0, whole, requests, minutes, benchmark.repeats)
    return (short, last) if short else (last,)


def _written(benchmark: Benchmark, index: int) -> Rung:
    rungs = benchmark.rungs or ()
    rung = rungs[index]
    loads = _loads(rung.traffic_scenarios or benchmark.scenarios, rung.num_concurrency or benchmark.levels)
    requests = rung.max_requests or benchmark.max_requests_per_iteration
    minutes = rung.max_minutes or benchmark.max_time_per_iteration
    return Rung(index, loads, requests, minutes, benchmark.repeats if index == len(rungs) - 1 else 1)


def _loads(texts: Sequence[str], levels: Sequence[int]) -> tuple[Load, ...]:
    return tuple(Load(text, level) for text in texts for level in levels)


def _short(benchmark: Benchmark, loads: int) -> Rung | None:
    """One load at the highest level, which shows an engine's limits; nothing when it would not be shorter."""
    level = max(benchmark.levels)
    clients = 1 if benchmark.batched else level
    whole = benchmark.max_requests_per_iteration
    requests = min(max(SHORT_WAVES * clients, SHORT_REQUESTS), whole if loads > 1 else whole // 2)
    load = Load(benchmark.scenarios[0], level)
    return Rung(0, (load,), requests, benchmark.max_time_per_iteration) if requests else None


def make_plan(
    task: Task,
    engine: Engine,
    experience: Experience | None = None,
    gpus_of: Callable[[Parameters], int] | None = None,
) -> Plan:
    """The plan of a checked task; its times are measured ones where there is any experience.

    ``gpus_of`` counts the GPUs of a trial where the runtime has been read (``Setup.gpus``). Until then they are
    counted by the flags that it had in an earlier experiment, or without any.

    Raises:
        SpecError: the engine's formula gives no number of GPUs for a configuration.
    """
    space = Space.of(task, engine)
    examples, grid_points = examples_of(task, space)
    points = (
        task.optimization.max_iterations if grid_points is None else min(task.optimization.max_iterations, grid_points)
    )
    rungs = ladder(task)
    ended = (math.floor(points * _stays(task, len(rungs))[-1]), points)
    again = _again(task, ended)
    gpus = _gpus(gpus_of or _by_task(task, engine, experience), examples)
    seconds = _durations(task, rungs, experience)
    work_s = _work_s(seconds, points, again)
    at_once = task.optimization.max_concurrent_trials or 1
    gpu_hours = (work_s[0] * gpus[0] / 3600, work_s[1] * gpus[1] / 3600)
    price = task.optimization.price_per_gpu_hour
    return Plan(
        task_name=task.task_name,
        objective=title(task.optimization),
        strategy=task.optimization.strategy,
        points=points,
        grid_points=grid_points,
        trials=1 + points + again[1],
        rungs=rungs,
        gpus=gpus,
        trial_s=seconds.whole,
        total_s=(work_s[0] / at_once, work_s[1] / at_once),
        gpu_hours=gpu_hours,
        cost=(gpu_hours[0] * price, gpu_hours[1] * price) if price else None,
        notes=(
            *_notes(task, points, grid_points),
            *_flag_notes(task, engine),
            *(() if gpus_of else _runtime_notes(task, engine, experience)),
            *_search_notes(task),
            *impossible.notes(task, engine, examples),
        ),
        assumptions=(*_assumptions(task, experience), *_drift_unknown(task, ended)),
        seconds=seconds,
        confirm=task.optimization.confirm.runs if points else (0, 0),
        limits=Limits.of(task.optimization),
        at_once=at_once,
    )


def _again(task: Task, ended: tuple[int, int]) -> tuple[int, int]:
    """How often baseline and winner are measured again, at least and at most: for drift, and to confirm.

    ``ended`` are the trials that come to their end, likewise.
    """
    if not ended[1]:
        return (0, 0)
    (least, most), runs = _controls(task, ended), task.optimization.confirm.runs
    return (least + runs[0], most + runs[1])


def _controls(task: Task, ended: tuple[int, int]) -> tuple[int, int]:
    every = task.optimization.baseline_every
    return (ended[0] // every, ended[1] // every) if every else (0, 0)


def _drift_unknown(task: Task, ended: tuple[int, int]) -> Iterator[str]:
    least, most = (1 + controls for controls in _controls(task, ended))
    if ended[1] and least < FEWEST_BASELINES:
        count = str(most) if least == most else f"{least} to {most}"
        yield (
            "trials are ranked as if nothing drifts during the search: to take it out takes "
            f"{FEWEST_BASELINES} runs of the baseline, and optimization.baseline_every makes {count}"
        )


def _stays(task: Task, rungs: int) -> list[float]:
    """The share of the trials that comes to each rung, when ASHA stops what it may."""
    asha = task.optimization.scheduler
    return [1.0 if asha == "none" else asha.reduction_factor**-n for n in range(rungs)]


def examples_of(task: Task, space: Space) -> tuple[Sequence[Parameters], int | None]:
    """Configurations that stand for the search, and how many there are."""
    if not space.dimensions:
        return (), 0
    if task.optimization.strategy == "grid_search":
        return space.grid(task.optimization.max_iterations)
    size = space.size()
    if size is not None and size <= MAX_CANDIDATES:
        return space.grid(MAX_CANDIDATES)
    rng = np.random.default_rng(task.optimization.seed)
    return [space.sample(rng) for _ in range(SAMPLES)], None


def _gpus(gpus_of: Callable[[Parameters], int], examples: Sequence[Parameters]) -> tuple[int, int]:
    # drawn: with every n-th one of a grid some parameters might never change
    some = random.Random(0).sample(examples, min(SAMPLES, len(examples)))
    counts = [gpus_of(parameters) for parameters in ({}, *some)]
    return min(counts), max(counts)


def _by_task(task: Task, engine: Engine, experience: Experience | None) -> Callable[[Parameters], int]:
    """How the task's trials count their GPUs, as far as that is known before its runtime is read."""
    ome, own = task.ome, task.resources.gpus
    args = (experience and experience.runtime_args) or task.runtime.args
    beside = gpu_count(engine, ome.decoder.parameters, ()) * ome.decoder.replicas if ome.decoder else 0

    def gpus(parameters: Parameters) -> int:
        each = gpu_count(engine, parameters, (*args, *task.extra_args)) if own is None else own
        return each * ome.replicas + beside

    return gpus


def _durations(task: Task, rungs: Sequence[Rung], experience: Experience | None) -> Seconds:
    timeout_s = float(task.optimization.timeout_per_iteration)
    deploy = experience.beside_rungs_s if experience else DEPLOY_S[task.backend]
    known = experience.rungs_s if experience and len(experience.rungs_s) == len(rungs) else ()
    spans = known or [_rung_s(task.benchmark, rung) for rung in rungs]

    def trial(side: int, chosen: Sequence[Span]) -> float:
        return min(timeout_s, deploy[side] + sum(span[side] for span in chosen))

    stays = zip(spans, _stays(task, len(rungs)), strict=True)
    stopped_early = deploy[0] + sum(span[0] * share for span, share in stays)
    search = (stopped_early, trial(1, spans))
    if experience and experience.search_s is not None:
        search = (experience.search_s, experience.search_s)
    return Seconds(
        whole=(trial(0, spans), trial(1, spans)),
        search=(min(timeout_s, search[0]), min(timeout_s, search[1])),
        confirm=(trial(0, spans[-1:]), trial(1, spans[-1:])),
    )


def _work_s(seconds: Seconds, points: int, again: tuple[int, int]) -> Span:
    """All trials, one after the other; ``again`` are those of a single rung."""

    def work(side: int) -> float:
        return seconds.whole[side] + points * seconds.search[side] + again[side] * seconds.confirm[side]

    return work(0), work(1)


def _payable(plan: Plan, side: int) -> int:
    """Points of the search that the budget pays for besides the baseline and the least number of confirming runs."""
    seconds, limits, points = plan.seconds, plan.limits, plan.points
    assert limits is not None
    kept_s = seconds.whole[side] + plan.confirm[0] * seconds.confirm[side]
    if limits.gpu_s is not None:
        left_s = limits.gpu_s / max(1, plan.gpus[side]) - kept_s
        points = min(points, math.floor(left_s / seconds.search[side]))
    if limits.wall_s is not None:
        points = min(points, plan.at_once * math.floor((limits.wall_s - kept_s) / seconds.search[side]))
    return max(0, points)


def unpayable(plan: Plan) -> Iterator[tuple[str, str]]:
    """Why a budget is of no use, with its field: it does not even pay for one trial of the search."""
    limits, seconds = plan.limits, plan.seconds
    if limits is None or not plan.points:
        return
    least_s = seconds.whole[0] + seconds.search[0] + plan.confirm[0] * seconds.confirm[0]
    cure = "give more, lower optimization.confirm.repeats, or send fewer requests"
    what = f"the baseline, one trial and {plan.confirm[0]} confirming runs take at least"
    gpu_s = least_s * max(1, plan.gpus[0])
    if limits.gpu_s is not None and gpu_s > limits.gpu_s:
        yield limits.place, f"found {limits.said(limits.gpu_s)}, and {what} {limits.said(gpu_s)}: {cure}"
    if limits.wall_s is not None and least_s > limits.wall_s:
        yield "wall_time", f"found {duration(limits.wall_s)}, and {what} {duration(least_s)}: {cure}"


def _rung_s(benchmark: Benchmark, rung: Rung) -> Span:
    bound_s = 60.0 * rung.max_minutes
    best = sum(min(bound_s, _load_s(benchmark, load, rung.max_requests)) for load in rung.loads)
    most = sum(most_probes(rung.levels, load.level) if rung.levels else 1 for load in rung.loads)
    return rung.repeats * (best + CLIENT_S * len(rung.loads)), rung.repeats * most * (bound_s + CLIENT_S)


def _load_s(benchmark: Benchmark, load: Load, requests: int) -> float:
    """A load on a fast engine."""
    scenario = scenarios.parse(load.scenario)
    clients, documents = (1, load.level) if benchmark.batched else (load.level, 1)
    input_tokens = documents * (TYPICAL_TOKENS[0] if scenario.input_tokens is None else scenario.input_tokens)
    output_tokens = scenario.output_tokens or (0.0 if benchmark.batched else TYPICAL_TOKENS[1])
    return math.ceil(requests / clients) * (input_tokens / BEST_PREFILL_TOKENS_PER_S + output_tokens * BEST_TPOT_S)


def _notes(task: Task, points: int, grid_points: int | None) -> Iterator[str]:
    """What the task leaves open and how it was read."""
    if task.ome.benchmark == "benchmark_job":
        from raytune_autotuner.benchmarks import ome_job  # the client of Kubernetes is slow to import

        yield from ome_job.notes(task.benchmark)
    benchmark, iterations = task.benchmark, task.optimization.max_iterations
    if not benchmark.traffic_scenarios:
        yield f"no traffic scenario is given: {', '.join(benchmark.scenarios)} is used"
    if grid_points == 0:
        yield "no parameter is searched: only the baseline is measured"
    elif task.optimization.strategy == "grid_search" and grid_points is not None and grid_points > iterations:
        yield f"a grid of {grid_points} is sampled evenly: {points} points"
    elif grid_points is not None and grid_points < iterations:
        yield f"there are {grid_points} configurations, fewer than max_iterations ({iterations}): each is tried once"


def _flag_notes(task: Task, engine: Engine) -> Iterator[str]:
    """What looks like a slip among the flags that are handed on as they are."""
    places = {"runtime.args": task.runtime.args, "extra_args": task.extra_args}
    places |= {f"parameters.{name}.flag": (p.flag,) for name, p in task.parameters.items() if p.flag}
    for place, args in places.items():
        for flag, meant in misspelt(engine, args).items():
            yield f"{place}: {flag}: did you mean {meant}? {engine.name}'s file knows no such flag; it stays as it is"


def _runtime_notes(task: Task, engine: Engine, experience: Experience | None) -> Iterator[str]:
    """What is assumed of a runtime that was not read yet."""
    if task.engine is None:
        yield f"the engine is read from the runtime at the start; names were checked against {engine.name}"
    if task.backend == "ome" and task.resources.gpus is None:
        if experience is None or experience.runtime_args is None:
            yield "GPUs were counted without the flags of the runtime, which is read at the start"
        else:
            yield f"GPUs were counted with the flags that the runtime had in {experience.experiment}"
    if task.ome.decoder is not None:
        yield "GPUs of the decoder were counted without its flags in the runtime, which is read at the start"


def _search_notes(task: Task) -> Iterator[str]:
    """Of an objective that searches the level of concurrency."""
    if not OBJECTIVES[task.optimization.objective].searches_level:
        return
    search, first, levels = capacity_search(task), first_level(task), task.benchmark.levels
    yield (
        f"the level is searched from {search.low} to {search.high}, beginning with {first}, to within "
        f"{search.tolerance:.0%}: at most {most_probes(search, first)} loads per scenario"
    )
    if len(levels) > 1 and first == min(levels):
        yield f"of benchmark.num_concurrency only the lowest, {min(levels)}, is used: the search begins there"


def _assumptions(task: Task, experience: Experience | None) -> Iterator[str]:
    if experience is not None:
        yield from experience.said()
    if experience is None or not experience.rungs_s:
        yield from _guesses(task)
    if task.optimization.max_concurrent_trials is None:
        yield "one trial runs at a time; more run at once where GPUs are free"
    else:
        yield f"{task.optimization.max_concurrent_trials} trials run at a time"
    patience = task.optimization.stop_after_hopeless_trials
    if (
        task.optimization.strategy == "adaptive"
        and patience is not None
        and task.optimization.max_iterations > patience
    ):
        yield "at worst all points are tried; the search ends before when nothing is left to gain"


def _guesses(task: Task) -> Iterator[str]:
    deploy = DEPLOY_S[task.backend]
    yield (
        f"at best an engine prefills {BEST_PREFILL_TOKENS_PER_S:,.0f} tokens/s, takes {BEST_TPOT_S * 1000:.0f} ms per "
        f"output token and is up in {duration(deploy[0])}; its real rates are not known yet"
    )
    yield (
        f"at worst every load takes its {task.benchmark.max_time_per_iteration} minutes, a deployment "
        f"{duration(deploy[1])}, and a trial its timeout of {duration(task.optimization.timeout_per_iteration)}"
    )


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def render(plan: Plan) -> RenderableType:
    """The plan for a terminal."""
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(plan):
        facts.add_row(Text(name, style="bold"), Text(text))
    lines = [Text(f"note: {note}", style="yellow") for note in plan.notes]
    lines += [Text(f"assumed: {text}", style="dim") for text in plan.assumptions]
    return Group(facts, Text(""), _rung_table(plan.rungs), Text(""), *lines)


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "task", plan.task_name
    yield "search", f"{plan.strategy}, {plan.objective}"
    unit = "grid points" if plan.strategy == "grid_search" else "configurations"
    yield "points", f"{plan.points} of {plan.grid_points} {unit}" if plan.grid_points else f"{plan.points}"
    again = plan.trials - plan.points - 1
    search = f", {plan.points} of the search, at most {again} of baseline and winner again" if plan.points else ""
    yield "trials", f"at most {plan.trials}: the baseline{search}"
    yield "GPUs per trial", _range(*map(str, plan.gpus))
    yield "time per trial", _range(*map(duration, plan.trial_s))
    yield "time in all", _range(*map(duration, plan.total_s))
    if plan.gpus[1]:
        yield "GPU-hours", _range(*(f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}" for hours in plan.gpu_hours))
    if plan.cost is not None:
        yield "cost", _range(*(f"{cost:,.2f}" for cost in plan.cost))
    if plan.limits is not None and plan.allowed is not None:
        yield "budget", f"{_limits(plan)}: allows {_counted(plan.allowed)} of {plan.points} points, and confirming runs"


def _limits(plan: Plan) -> str:
    limits = plan.limits
    assert limits is not None
    unit = "GPU-hours" if plan.gpus[1] else "machine-hours"
    amount = [limits.said(limits.gpu_s, unit)] if limits.gpu_s is not None else []
    return ", ".join([*amount, *([duration(limits.wall_s)] if limits.wall_s is not None else [])])


def _counted(allowed: tuple[int, int]) -> str:
    low, high = allowed
    return f"about {low}" if low == high else f"{low} to {high}"


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _rung_table(rungs: Sequence[Rung]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("rung", "scenarios", "levels", "requests", "minutes", "repeats"):
        table.add_column(column)
    for rung in rungs:
        texts = dict.fromkeys(load.scenario for load in rung.loads)
        levels = dict.fromkeys(str(load.level) for load in rung.loads)
        if rung.levels is not None:
            most = max(most_probes(rung.levels, load.level) for load in rung.loads)
            levels = {f"{rung.levels.low} to {rung.levels.high}, at most {most}": None}
        numbers = (str(n) for n in (rung.max_requests, rung.max_minutes, rung.repeats))
        table.add_row(str(rung.index + 1), Text(" ".join(texts)), " ".join(levels), *numbers)
    return table
