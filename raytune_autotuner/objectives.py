"""From metrics to one number. An objective is one pure function and one row of ``OBJECTIVES``.

A workload has several loads (scenario × level). A latency is averaged over all of them; a throughput is
the best level of each scenario, averaged over the scenarios, because a server is not slower for having
been measured at a low level too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from raytune_autotuner.goodput import ATTAINMENT, bearable, load_limits, with_goodput
from raytune_autotuner.metrics import METRICS
from raytune_autotuner.records import Direction, LoadMetrics, Metrics, Score
from raytune_autotuner.task.spec import Optimization

BALANCED = "balanced"
"""The score of many objectives: one per cent of any counts alike, or as the task weighs them."""
WORST = 1e6
"""Stands for an unbounded violation, so that scores stay finite and can be written as JSON."""
LEAST = 1e-12
"""What is less counts as this where a ratio or a logarithm is taken."""


@dataclass(frozen=True)
class Context:
    """What an objective may need besides the metrics."""

    gpus: int
    optimization: Optimization


@dataclass(frozen=True)
class Objective:
    """``value`` raises ``KeyError`` when the rung did not measure what it needs."""

    direction: Direction
    unit: str
    value: Callable[[Metrics, Context], float]
    needs_output_tokens: bool = True
    help: str = ""
    searches_level: bool = False
    """Whether it is about the highest level of concurrency that keeps the SLO, which is searched in every rung."""


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def over_loads(metrics: Metrics, name: str) -> float:
    """A metric over all loads of a rung, by the rule at the top of this module."""
    if not METRICS[name].at_best:
        return _mean(load.values[name] for load in metrics.loads)
    scenarios = {load.load.scenario for load in metrics.loads}
    return _mean(max(m.values[name] for m in metrics.loads if m.load.scenario == s) for s in sorted(scenarios))


def _mean_of(name: str) -> Callable[[Metrics, Context], float]:
    return lambda metrics, _: over_loads(metrics, name)


def _throughput_per_gpu(metrics: Metrics, context: Context) -> float:
    return over_loads(metrics, "output_tokens_per_s") / max(1, context.gpus)


def _goodput_per_gpu(name: str) -> Callable[[Metrics, Context], float]:
    def value(metrics: Metrics, context: Context) -> float:
        return over_loads(with_goodput(metrics, context.optimization.slo), name) / max(1, context.gpus)

    return value


def _cost(metrics: Metrics, context: Context) -> float:
    price_per_s = (context.optimization.price_per_gpu_hour or 0.0) * max(1, context.gpus) / 3600
    return price_per_s / max(over_loads(metrics, "output_tokens_per_s"), LEAST) * 1e6


def _weighted(metrics: Metrics, context: Context) -> float:
    """A weighted geometric mean: one per cent of any metric counts alike, whatever its unit."""
    weights = context.optimization.weights or {}
    logs = (
        weight * (1 if METRICS[name].direction == "max" else -1) * math.log(max(over_loads(metrics, name), LEAST))
        for name, weight in weights.items()
    )
    return math.exp(sum(logs) / sum(weights.values()))


OBJECTIVES: dict[str, Objective] = {
    "minimize_latency": Objective("min", "s", _mean_of("e2e_mean_s"), False, "mean end-to-end latency"),
    "maximize_throughput": Objective("max", "tokens/s", _mean_of("output_tokens_per_s"), help="output tokens/s"),
    "maximize_input_throughput": Objective(
        "max", "tokens/s", _mean_of("input_tokens_per_s"), False, "input tokens/s, for embeddings and rerank"
    ),
    "maximize_requests": Objective("max", "requests/s", _mean_of("requests_per_s"), False, "requests/s"),
    "minimize_ttft": Objective("min", "s", _mean_of("ttft_mean_s"), help="mean time to first token"),
    "minimize_tpot": Objective("min", "s", _mean_of("tpot_mean_s"), help="mean time per output token"),
    "maximize_throughput_per_gpu": Objective(
        "max", "tokens/s/GPU", _throughput_per_gpu, help="output tokens/s per GPU"
    ),
    "minimize_cost": Objective("min", "per 1M tokens", _cost, help="money per million output tokens"),
    "maximize_goodput": Objective(
        "max",
        "requests/s/GPU",
        _goodput_per_gpu("goodput_requests_per_s"),
        False,
        "requests/s per GPU that keep the SLO, at the highest level of concurrency that does",
        searches_level=True,
    ),
    "maximize_goodput_tokens": Objective(
        "max",
        "tokens/s/GPU",
        _goodput_per_gpu("goodput_tokens_per_s"),
        help="output tokens/s per GPU of requests that keep the SLO, at the highest level that does",
        searches_level=True,
    ),
    "weighted": Objective("max", "", _weighted, False, "weighted geometric mean of the metrics in `weights`"),
}


def facts_of(name: str) -> tuple[Direction, str]:
    """Which way is better, and the unit, of an objective or a metric."""
    known = OBJECTIVES.get(name) or METRICS[name]
    return known.direction, known.unit


def title(optimization: Optimization) -> str:
    """What is optimised, by the names that the task has for it."""
    return ", ".join(optimization.objectives) or optimization.objective


ABBREVIATED = {"gpu": "GPU", "ttft": "TTFT", "tpot": "TPOT", "e2e": "end-to-end"}


def spoken(name: str) -> str:
    """An objective or a metric in words: ``maximize throughput per GPU``, ``TTFT p99``."""
    words = name.replace("_per_s", "/s").removesuffix("_s").split("_")
    return " ".join(ABBREVIATED.get(word, word) for word in words)


def goal(optimization: Optimization) -> str:
    """All objectives of a task in words."""
    return " and ".join(map(spoken, optimization.objectives or (optimization.objective,)))


def measured(name: str) -> str:
    """What an objective or a metric is a measure of: ``throughput per GPU``."""
    return re.sub("^(maximize|minimize) ", "", spoken(name))


def subject(optimization: Optimization) -> str:
    """What the score is a measure of, in words: of many objectives it is one number made from all."""
    if not optimization.objectives:
        return measured(optimization.objective)
    return f"weighted score of {' and '.join(map(measured, optimization.objectives))}"


def value_of(name: str, metrics: Metrics, context: Context) -> float:
    """What a rung measured of an objective or a metric.

    Raises:
        KeyError: the rung did not measure what it needs.
    """
    return OBJECTIVES[name].value(metrics, context) if name in OBJECTIVES else over_loads(metrics, name)


def _balanced(metrics: Metrics, context: Context) -> tuple[float, dict[str, float]]:
    """Of many objectives: the weighted geometric mean of their goodness, and the value of each."""
    names = context.optimization.objectives
    weights = context.optimization.weights or dict.fromkeys(names, 1.0)
    values = {name: value_of(name, metrics, context) for name in names}
    logs = (
        weights.get(name, 0.0) * (1 if facts_of(name)[0] == "max" else -1) * math.log(max(value, LEAST))
        for name, value in values.items()
    )
    return math.exp(sum(logs) / sum(weights.values())), values


def violation(metrics: Metrics, slo: Mapping[str, float]) -> tuple[float, str]:
    """The largest relative excess over a limit and that limit in words; (0, "") when all are kept.

    A latency must be kept at every load; a throughput must be reached at the best one. Limits on a single request
    must be kept by the share of requests that ``goodput`` says.
    """
    worst, words = 0.0, ""
    metrics = with_goodput(metrics, slo)
    for name, limit in load_limits(slo).items():
        value = _extreme(metrics.loads, name)
        excess = _strain(name, value, limit) - 1
        if excess > worst:
            shown = "not measured" if value is None else f"{value:.4g}"
            sign = "<=" if METRICS[name].direction == "min" else ">="
            worst, words = min(excess, WORST), f"{name} {shown}, limit {sign} {limit:g}"
    return worst, words


def strain(metrics: Metrics, slo: Mapping[str, float]) -> float | None:
    """How near the worst metric is to its limit: 1 at it, more beyond it; ``None`` without limits."""
    loads, limits = with_goodput(metrics, slo).loads, load_limits(slo)
    found = (_strain(name, _extreme(loads, name), limit) for name, limit in limits.items())
    return min(max(found), 1 + WORST) if limits else None


def _strain(name: str, value: float | None, limit: float) -> float:
    if value is None:
        return 1 + WORST
    if METRICS[name].direction == "min":
        return value / limit
    return limit / value if value > 0 else 1 + WORST


def _extreme(loads: tuple[LoadMetrics, ...], name: str) -> float | None:
    """The value over the loads that a limit is compared with: the best of a throughput, the worst of all else."""
    values = [load.values[name] for load in loads if name in load.values]
    info = METRICS[name]
    complete = len(values) == len(loads) or info.at_best
    return (max if info.at_best or info.direction == "min" else min)(values) if values and complete else None


def upper_limits(slo: Mapping[str, float]) -> dict[str, float]:
    """The limits that a higher level of concurrency can only break: all but those on a throughput."""
    return {name: limit for name, limit in slo.items() if name not in METRICS or not METRICS[name].at_best}


def loosened(slo: Mapping[str, float], by: float) -> dict[str, float]:
    """Limits that are so many times as far away."""
    lower = {name for name in slo if name in METRICS and METRICS[name].direction == "max"}
    return {name: limit / by if name in lower else limit * by for name, limit in slo.items()}


def reachable(metrics: Metrics, slo: Mapping[str, float]) -> dict[str, float]:
    """The tightest limits that these metrics would have kept: those that are kept as they are, the others widened."""
    found: dict[str, float] = {}
    metrics = with_goodput(metrics, slo)
    for name, limit in slo.items():
        value = _extreme(metrics.loads, name) if name in METRICS else None
        if value is not None and name != ATTAINMENT:
            found[name] = max(limit, value) if METRICS[name].direction == "min" else min(limit, value)
    for load in metrics.loads:
        for name, limit in bearable(load, slo).items():
            found[name] = max(limit, found.get(name, 0.0))
    return found


def score(metrics: Metrics, context: Context) -> Score:
    """The score of one rung.

    Raises:
        KeyError: the rung did not measure what the objective needs.
    """
    metrics = with_goodput(metrics, context.optimization.slo)  # a metric like any other
    excess, worst = violation(metrics, context.optimization.slo)
    nearness = strain(metrics, context.optimization.slo)
    if context.optimization.objectives:
        balance, values = _balanced(metrics, context)
        return Score(BALANCED, balance, "", "max", -balance, excess, worst, slo=nearness, values=values)
    name = context.optimization.objective
    objective = OBJECTIVES[name]
    value = objective.value(metrics, context)
    loss = value if objective.direction == "min" else -value
    return Score(name, value, objective.unit, objective.direction, loss, excess, worst, slo=nearness)


def rank(score: Score) -> tuple[float, float]:
    """Sorts scores from best to worst: whoever keeps the SLO first, then by how far it is broken."""
    return (score.violation, score.loss)


def scalar(loss: float, excess: float) -> float:
    """``rank`` as one bounded number for schedulers and searchers: [0, 1] keeps the SLO, (1, 2] breaks it.

    Strictly increasing in either argument, finite for every finite loss; only its order has a meaning.
    """
    if excess > 0:
        return 1 + excess / (1 + excess)
    return 0.5 * (1 + loss / (1 + abs(loss)))
