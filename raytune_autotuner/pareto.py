"""The Pareto front: configurations that no other one beats in every respect. Pure.

With several objectives these are the axes; with one, it is shown against what it is paid for with: a throughput
against the tail of the time to first token, a latency against the throughput. (Not against a mean latency: at one
level of concurrency that is the throughput's inverse, and the front would be one point.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from statistics import fmean
from typing import TypeVar

from raytune_autotuner.metrics import METRICS
from raytune_autotuner.objectives import LEAST, Context, facts_of, value_of
from raytune_autotuner.records import Direction, Parameters, TrialRecord, refuted_configs
from raytune_autotuner.task.spec import Optimization

T = TypeVar("T")

NOISE = 2.0
"""Standard deviations by which a value must be worse before another configuration counts as better."""


@dataclass(frozen=True)
class Axis:
    """One objective, or a metric."""

    name: str
    direction: Direction
    unit: str

    @classmethod
    def of(cls, name: str) -> Axis:
        return cls(name, *facts_of(name))


@dataclass(frozen=True)
class Point:
    """One configuration with its value on each axis, in their order: the geometric mean over its whole runs."""

    trial: str
    number: int
    parameters: Parameters
    values: tuple[float, ...]
    runs: int
    gpus: int
    feasible: bool
    """Whether it keeps the SLO."""
    on_front: bool = False
    near_front: bool = False
    """Beaten, but by no more than the noise."""


@dataclass(frozen=True)
class Front:
    """``points`` are all that were measured to the end, by their value on the first axis, best first."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...] = ()
    noise: tuple[float | None, ...] = ()
    """Relative standard deviation of a run on each axis, of configurations that keep the SLO and were measured several
    times; else ``None``."""

    @property
    def front(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.on_front)

    def ties(self, trial: str) -> tuple[Point, ...]:
        """Those that keep the SLO and whose first value the noise does not tell from that of a trial, best first."""
        of = next((point for point in self.points if point.trial == trial), None)
        if of is None or self.noise[0] is None:
            return ()
        value, noise = of.values[0], NOISE * self.noise[0]
        others = (point for point in self.points if point is not of and point.feasible)
        return tuple(
            point
            for point in others
            if abs(_log(point.values[0]) - _log(value)) <= noise * math.sqrt(1 / point.runs + 1 / of.runs)
        )


def axes(optimization: Optimization) -> tuple[Axis, ...]:
    """What configurations are compared by."""
    if optimization.objectives:
        return tuple(Axis.of(name) for name in optimization.objectives)
    first = Axis.of(optimization.objective)
    latencies = [name for name in optimization.slo if name in METRICS and METRICS[name].unit == "s"]
    against = "output_tokens_per_s" if first.direction == "min" else (latencies or ["ttft_p99_s"])[0]
    return first, Axis.of(against)


def front(records: Iterable[TrialRecord], optimization: Optimization) -> Front:
    """The front of what an experiment has measured to the end so far; only who works and keeps the SLO can be on it."""
    records, found = list(records), axes(optimization)
    runs = _by_configuration(records, optimization, found)
    kept = [of for of in runs if all(record.score and record.score.violation == 0 for record, _ in of)]
    noise = tuple(_noise([[values[a] for _, values in of] for of in kept]) for a in range(len(found)))
    out = refuted_configs(records)
    points = [_point(of, feasible=of[0][0].trial.config not in out) for of in runs]
    rivals = skyline((_goodness(found, point) for point in points if point.feasible), tuple)
    placed = [_placed(point, _goodness(found, point), rivals, noise) for point in points]
    placed.sort(key=lambda point: -_goodness(found, point)[0])
    return Front(found, tuple(placed), noise)


Runs = list[tuple[TrialRecord, tuple[float, ...]]]
"""Of one configuration, with the value on each axis."""


def _by_configuration(records: Iterable[TrialRecord], optimization: Optimization, found: Sequence[Axis]) -> list[Runs]:
    by_configuration: dict[str, Runs] = {}
    for record in records:
        if record.outcome == "completed" and record.score and (values := _values(record, optimization, found)):
            by_configuration.setdefault(record.trial.config, []).append((record, values))
    return list(by_configuration.values())


def _values(record: TrialRecord, optimization: Optimization, found: Sequence[Axis]) -> tuple[float, ...] | None:
    """On each axis, at the last rung; ``None`` when one of them was not measured."""
    metrics, context = record.rungs[-1].metrics, Context(record.gpus, optimization)
    try:
        return tuple(value_of(axis.name, metrics, context) for axis in found)
    except KeyError:
        return None


def _point(runs: Runs, *, feasible: bool) -> Point:
    first = runs[0][0]
    values = tuple(math.exp(fmean(map(_log, column))) for column in zip(*(v for _, v in runs), strict=True))
    feasible = feasible and not any(record.score and record.score.violation > 0 for record, _ in runs)
    return Point(first.trial.name, first.number, first.parameters, values, len(runs), first.gpus, feasible)


def _noise(by_configuration: Iterable[Sequence[float]]) -> float | None:
    """Pooled over the configurations that were measured several times; of what was nothing there is none."""
    squares, freedom = 0.0, 0
    for values in filter(all, by_configuration):
        logs = [_log(value) for value in values]
        squares += sum((each - fmean(logs)) ** 2 for each in logs)
        freedom += len(logs) - 1
    return math.sqrt(squares / freedom) if freedom else None


def _goodness(found: Sequence[Axis], point: Point) -> tuple[float, ...]:
    """Logarithms, turned so that larger is better."""
    pairs = zip(found, point.values, strict=True)
    return tuple(_log(value) if axis.direction == "max" else -_log(value) for axis, value in pairs)


def _placed(
    point: Point, own: Sequence[float], rivals: Sequence[Sequence[float]], noise: Sequence[float | None]
) -> Point:
    if not point.feasible:
        return point
    margin = [NOISE * math.sqrt(2) * (each or 0.0) for each in noise]
    beaten = any(_beats(rival, own) for rival in rivals)
    mended = [mine + slack for mine, slack in zip(own, margin, strict=True)]
    return replace(point, on_front=not beaten, near_front=beaten and not any(_beats(r, mended) for r in rivals))


def skyline(candidates: Iterable[T], goodness: Callable[[T], tuple[float, ...]]) -> list[T]:
    """Those that no other one beats, the best on the first axis first; on every axis of ``goodness`` more is better.

    Whoever beats anybody is beaten by nobody or by one of these.
    """
    found: list[tuple[tuple[float, ...], T]] = []
    for own, candidate in sorted(((goodness(c), c) for c in candidates), key=itemgetter(0), reverse=True):
        if not any(_beats(other, own) for other, _ in found):  # nobody is beaten by one that comes later
            found.append((own, candidate))
    return [candidate for _, candidate in found]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Nowhere worse, and better somewhere."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _log(value: float) -> float:
    return math.log(max(value, LEAST))
