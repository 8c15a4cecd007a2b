"""The shape of the search: which configurations there are, and how a searcher's points map to them.

A searcher sees one dimension per parameter: an index into its options, or a number in the unit interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.errors import SpecError
from raytune_autotuner.records import Parameters, ParameterValue
from raytune_autotuner.task import expressions
from raytune_autotuner.task.expressions import Expression, ExpressionError
from raytune_autotuner.task.parameters import Boolean, Choice, FloatRange, IntRange, Parameter
from raytune_autotuner.task.spec import Task

MAX_CANDIDATES = 20_000
"""Grid points that are looked at; a larger grid is sampled first."""
MAX_SPREAD = 500
"""Grid points that are chosen to lie far apart; more are filled up at even distances."""
MAX_DRAWS = 1000
DIGITS = 6
"""Decimal digits that a continuous range is divided into."""

Point = Mapping[str, float | int]


@dataclass(frozen=True)
class Dimension:
    """What a searcher sees of one parameter."""

    name: str
    kind: Literal["choice", "unit"]
    size: int
    """Number of values; 0 when they are continuous."""


@dataclass(frozen=True)
class Rule:
    """An expression whose names may be aliases of the parameters it speaks of."""

    expression: Expression
    names: Mapping[str, str]
    """The parameter by the name that the expression uses."""

    @classmethod
    def of(cls, text: str, engine: Engine) -> Rule:
        expression = expressions.parse(text)
        return cls(expression, {name: engine.canonical(name) or name for name in sorted(expression.names)})

    def holds(self, values: Parameters) -> bool:
        """Raises ``ExpressionError`` where the expression has no value."""
        return bool(self.expression.evaluate({name: values[of] for name, of in self.names.items() if of in values}))

    def values(self, values: Parameters) -> list[ParameterValue]:
        """Of the parameters it speaks of; ``None`` for those that are left out."""
        return [values.get(of) for of in self.names.values()]


@dataclass(frozen=True)
class Space:
    """Parameters by the engine's own names, with what must hold between them."""

    parameters: Mapping[str, Parameter]
    whens: Mapping[str, Rule]
    """In an order in which each depends only on those before it."""
    constraints: tuple[Rule, ...]

    @classmethod
    def of(cls, task: Task, engine: Engine) -> Space:
        """The task's space; its own parameters win over those of its presets.

        Raises:
            SpecError: parameters are conditional on each other in a circle.
        """
        presets = [engine.presets[name].parameters for name in task.presets]
        named = (item for source in (*presets, task.parameters) for item in source.items())
        parameters = {engine.canonical(name) or name: parameter for name, parameter in named}
        whens = {name: Rule.of(p.when, engine) for name, p in parameters.items() if p.when}
        constraints = tuple(Rule.of(text, engine) for text in task.constraints)
        return cls(parameters, {name: whens[name] for name in _order(whens)}, constraints)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        return tuple(
            Dimension(name, "unit" if isinstance(p, IntRange | FloatRange) else "choice", count(p) or 0)
            for name, p in self.parameters.items()
        )

    def configuration(self, point: Point) -> Parameters:
        """The configuration at a point of every dimension; parameters whose ``when`` does not hold are left out."""
        return self._active({name: value_at(p, point[name]) for name, p in self.parameters.items()})

    def point(self, parameters: Parameters) -> Point | None:
        """A point with this configuration; ``None`` when it is not in the space."""
        point: dict[str, float | int] = {}
        for dimension in self.dimensions:
            found: float | int | None = 0 if dimension.kind == "choice" else 0.5
            if dimension.name in parameters:
                found = coordinate(self.parameters[dimension.name], parameters[dimension.name])
            if found is None:
                return None
            point[dimension.name] = found
        return point if set(self.configuration(point)) == set(parameters) else None

    def part(self, values: Mapping[str, Iterable[ParameterValue]]) -> Parameters:
        """Of each parameter's values the first that the space has, without what depends on those that it has not."""
        given = {}
        for name, parameter in self.parameters.items():
            for value in values.get(name, ()):
                if coordinate(parameter, value) is not None:
                    given[name] = value
                    break
        return self._active(given)

    def problem(self, parameters: Parameters) -> str | None:
        """The constraint that a configuration breaks, in words; one that speaks of what is left out does not count."""
        for rule in self.constraints:
            values = rule.values(parameters)
            if None in values:
                continue
            try:
                if rule.holds(parameters):
                    continue
            except ExpressionError as error:
                return str(error)
            with_ = ", ".join(f"{name}={value}" for name, value in zip(rule.names, values, strict=True))
            return f"the constraint `{rule.expression.text}` does not hold" + (f" with {with_}" if with_ else "")
        return None

    def size(self) -> int | None:
        """How many grid points there are before conditions and constraints; ``None`` when continuous."""
        sizes = [dimension.size for dimension in self.dimensions]
        return math.prod(sizes) if all(sizes) else None

    def grid(self, limit: int) -> tuple[tuple[Parameters, ...], int]:
        """The feasible configurations of the grid, each once, and their number.

        When there are more than ``limit``, that many which show every value equally often and lie far apart.
        Of a grid too large to be looked at whole, the number is an estimate.
        """
        indices, share = self._candidates()
        found = {_key(c): (row, c) for row in indices for c in [self._at(row)] if self.problem(c) is None}
        total = round(len(found) * share)
        configurations = [c for _, c in found.values()]
        if len(configurations) > limit:
            rows = [
                [i if name in c else -1 for name, i in zip(self.parameters, row, strict=True)]
                for row, c in found.values()
            ]
            configurations = [configurations[n] for n in self._spread(np.array(rows), limit)]
        return tuple(configurations), total

    def sample(self, rng: np.random.Generator) -> Parameters:
        """A random configuration that keeps the constraints.

        Raises:
            SpecError: none was found.
        """
        for _ in range(MAX_DRAWS):
            configuration = self.configuration(
                {
                    d.name: int(rng.integers(d.size)) if d.kind == "choice" else float(rng.random())
                    for d in self.dimensions
                }
            )
            if self.problem(configuration) is None:
                return configuration
        feasible = self.grid(MAX_CANDIDATES)[0] if self.size() else ()
        if feasible:
            return feasible[int(rng.integers(len(feasible)))]
        texts = ", ".join(f"`{rule.expression.text}`" for rule in self.constraints)
        raise SpecError.single("constraints", f"no configuration was found that keeps {texts}")

    def _active(self, values: dict[str, ParameterValue]) -> Parameters:
        for name, rule in self.whens.items():
            if not self._applies(rule, values):
                values.pop(name, None)
        return values

    def _applies(self, rule: Rule, values: Parameters) -> bool:
        try:
            return all(name in values for name in rule.names.values()) and rule.holds(values)
        except ExpressionError:  # has an order with null in it; other cases are refused by ``checks``
            return False

    def _at(self, row: Sequence[int]) -> Parameters:
        pairs = zip(self.parameters.items(), row, strict=True)
        return self._active({name: grid_value(p, index) for (name, p), index in pairs})

    def _candidates(self) -> tuple[list[tuple[int, ...]], float]:
        """Grid points as indices, and how many of the whole grid one of them stands for."""
        size = self.size()
        if size is None:
            continuous = [d.name for d in self.dimensions if not d.size]
            raise SpecError.single(f"parameters.{continuous[0]}", "a grid needs a step for this range")
        sizes = [d.size for d in self.dimensions]
        if size <= MAX_CANDIDATES:
            return list(product(*map(range, sizes))), 1.0
        rng = np.random.default_rng(0)
        strata = rng.permuted(np.tile(np.arange(MAX_CANDIDATES), (len(sizes), 1)), axis=1)
        rows = dict.fromkeys(
            tuple(int(s) * n // MAX_CANDIDATES for s, n in zip(c, sizes, strict=True)) for c in strata.T
        )
        return list(rows), size / len(rows)

    def _spread(self, indices: NDArray[np.int64], number: int) -> list[int]:
        """Rows that use every value equally often and, among those, lie far from the rows chosen before.

        ``indices`` are of the values, by parameter; -1 where it is left out.
        """
        sizes = np.array([d.size for d in self.dimensions])
        bins = np.minimum(sizes, number)
        levels = np.where(indices < 0, bins, indices * bins // sizes)
        scaled = np.where(indices < 0, -1.0, indices / np.maximum(1, sizes - 1))
        ordered = np.array([is_ordered(p) for p in self.parameters.values()])
        used = np.zeros((len(sizes), int(bins.max()) + 1))
        distance = np.full(len(indices), np.inf)
        free = np.ones(len(indices), dtype=bool)
        chosen: list[int] = []
        while len(chosen) < min(number, MAX_SPREAD):
            wear = (used[np.arange(len(sizes)), levels] * bins).sum(axis=1)
            best = np.flatnonzero(free & (wear == wear[free].min()))
            pick = int(best[np.argmax(distance[best])])
            chosen.append(pick)
            free[pick] = False
            used[np.arange(len(sizes)), levels[pick]] += 1
            apart = np.abs(scaled - scaled[pick])
            distance = np.minimum(distance, np.where(ordered, apart, apart > 0).sum(axis=1))
        rest = np.flatnonzero(free)
        fill = np.linspace(0, len(rest) - 1, number - len(chosen)).round().astype(int)
        return chosen + [int(n) for n in rest[fill]]


def _order(whens: Mapping[str, Rule]) -> Iterator[str]:
    graph = {name: set(rule.names.values()) for name, rule in whens.items()}
    try:
        yield from (name for name in TopologicalSorter(graph).static_order() if name in whens)
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise SpecError.single(f"parameters.{error.args[1][0]}.when", f"depends on itself: {circle}") from error


def _key(configuration: Parameters) -> str:
    return json.dumps(sorted(configuration.items()))


def count(parameter: Parameter) -> int | None:
    """How many values a parameter has; ``None`` when it is continuous."""
    if isinstance(parameter, Choice):
        return len(parameter.values)
    if isinstance(parameter, Boolean):
        return 2
    return None if parameter.step is None else round((parameter.high - parameter.low) / parameter.step) + 1


def is_ordered(parameter: Parameter) -> bool:
    """Whether its values are numbers, so that some lie closer together than others."""
    values = parameter.values if isinstance(parameter, Choice) else ()
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def grid_value(parameter: Parameter, index: int) -> ParameterValue:
    """The value of this index, from 0; the values of a range go from low to high."""
    if isinstance(parameter, Choice):
        return parameter.values[index]
    if isinstance(parameter, Boolean):
        return bool(index)
    if isinstance(parameter, IntRange):
        return parameter.low + index * parameter.step
    if index == 0:
        return parameter.low
    value = float(f"{parameter.low + index * (parameter.step or 0.0):.12g}")  # without the noise of adding
    return min(max(value, parameter.low), parameter.high)


def value_at(parameter: Parameter, at: float) -> ParameterValue:
    """The value at an index of a choice, or at a number in the unit interval; both ends are values."""
    if isinstance(parameter, Choice | Boolean):
        return grid_value(parameter, int(at))
    at = min(max(at, 0.0), 1.0)
    steps = count(parameter)
    if steps is None:
        return _continuous(parameter, at)
    if not parameter.log:
        return grid_value(parameter, min(int(at * steps), steps - 1))
    low, high = _log_ends(parameter)
    index = round((math.exp(low + at * (high - low)) - parameter.low) / (parameter.step or 1))
    return grid_value(parameter, min(max(index, 0), steps - 1))


def _continuous(parameter: IntRange | FloatRange, at: float) -> float:
    low, high = float(parameter.low), float(parameter.high)
    if at in (0.0, 1.0):
        return high if at else low
    if parameter.log:
        value = float(f"{math.exp(math.log(low) + at * (math.log(high) - math.log(low))):.{DIGITS}g}")
    else:
        value = round(low + at * (high - low), DIGITS - math.floor(math.log10(high - low)))
    return min(max(value, low), high)


def _log_ends(parameter: IntRange | FloatRange) -> tuple[float, float]:
    """Half a step further out, where there is room, so that the ends are drawn as often as their neighbours."""
    if parameter.step is None:
        return math.log(parameter.low), math.log(parameter.high)
    return math.log(parameter.low - min(parameter.step, parameter.low) / 2), math.log(
        parameter.high + parameter.step / 2
    )


def coordinate(parameter: Parameter, value: ParameterValue) -> float | int | None:
    """Where ``value_at`` gives this value; ``None`` when the parameter cannot have it."""
    if isinstance(parameter, Choice | Boolean):
        options = parameter.values if isinstance(parameter, Choice) else (False, True)
        return next((n for n, option in enumerate(options) if option == value and type(option) is type(value)), None)
    if not isinstance(value, int | float) or isinstance(value, bool) or not parameter.low <= value <= parameter.high:
        return None
    steps = count(parameter)
    index = 0 if steps is None else round((value - parameter.low) / (parameter.step or 1))
    if steps is not None and not math.isclose(value, parameter.low + index * (parameter.step or 1), rel_tol=1e-9):
        return None
    if parameter.log:
        low, high = _log_ends(parameter)
        return (math.log(value) - low) / (high - low)
    return (value - parameter.low) / (parameter.high - parameter.low) if steps is None else (index + 0.5) / steps
