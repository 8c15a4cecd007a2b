"""Configurations as rows of numbers, and the configurations near one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.planning.space import Dimension, Point, Space, coordinate, is_ordered
from raytune_autotuner.records import Parameters
from raytune_autotuner.search.model.process import EXPECTED, Array
from raytune_autotuner.search.source import Expects

LEFT_OUT = -1.0
MOVES = 9
"""Places that are looked at in a range without steps."""
LOOKED_AT = 1000
"""So many configurations say what is best by what is expected."""
FAR_OFF = 1.2
"""Whoever is expected to be further behind the best than this, as a logarithm, is bad; how bad is not known."""


class Encoding:
    """A rank in [0, 1] where the values of a parameter are numbers, else which of the values it is.

    The last two columns hold what is expected before anything was measured, as logarithms up to ``FAR_OFF``: of the
    loss relative to the best of the space, and of the worst metric relative to its limit; 0 where nothing is known.
    """

    def __init__(self, space: Space, expects: Expects | None = None) -> None:
        self.space, self._expects = space, expects
        self._columns = list(zip(space.dimensions, space.parameters.values(), strict=True))
        self.ordered: NDArray[np.bool_] = np.array([d.size not in (1, 2) and is_ordered(p) for d, p in self._columns])

    def row(self, parameters: Parameters) -> list[float]:
        """What is not given has a place of its own."""
        return [*(self._at(n, parameters) for n in range(len(self._columns))), *self.expected(parameters)]

    def rows(self, configurations: Iterable[Parameters]) -> Array:
        return np.array([self.row(c) for c in configurations]).reshape(-1, len(self._columns) + EXPECTED)

    def expected(self, parameters: Parameters) -> tuple[float, float]:
        """See the last columns; what finds no room is as bad as can be."""
        if self._expects is None or self._least is None:
            return 0.0, 0.0
        loss, strain = self._expects(parameters) or (math.inf, math.inf)
        return min(FAR_OFF, loss - self._least), max(-FAR_OFF, min(FAR_OFF, strain))

    @cached_property
    def _least(self) -> float | None:
        """Of the space, as far as it was looked at; ``None`` when nothing is expected of any."""
        assert self._expects is not None
        return min((loss for loss, _ in foreseen(self.space, self._expects)), default=None)

    def _at(self, n: int, parameters: Parameters) -> float:
        dimension, parameter = self._columns[n]
        if dimension.name not in parameters:
            return LEFT_OUT
        at = coordinate(parameter, parameters[dimension.name])
        if at is None:
            raise ValueError(f"{dimension.name}={parameters[dimension.name]!r} is not in the space")
        return at / (dimension.size - 1) if dimension.kind == "choice" and self.ordered[n] else float(at)


def foreseen(space: Space, expects: Expects) -> list[tuple[float, float]]:
    """What is expected of configurations all over the space, as far as something is."""
    rng = np.random.default_rng(0)
    stepped = space.size() is not None
    looked_at = space.grid(LOOKED_AT)[0] if stepped else [space.sample(rng) for _ in range(LOOKED_AT)]
    return [expected for each in looked_at if (expected := expects(each)) is not None]


def neighbours(space: Space, parameters: Parameters, pairs: int, rng: np.random.Generator) -> Iterator[Parameters]:
    """Every configuration with one parameter changed, and some with two, that keep the constraints."""
    point = space.point(parameters)
    if point is None:
        return
    moves = [(d.name, at) for d in space.dimensions for at in _places(d) if at != point[d.name]]
    if not moves:
        return
    drawn = rng.integers(len(moves), size=(pairs, 2))
    for chosen in (*([n] for n in range(len(moves))), *drawn.tolist()):
        changed: Point = {**point, **{moves[n][0]: moves[n][1] for n in chosen}}
        configuration = space.configuration(changed)
        if configuration != parameters and space.problem(configuration) is None:
            yield configuration


def _places(dimension: Dimension) -> Iterator[float | int]:
    size = dimension.size or MOVES
    return iter(range(size)) if dimension.kind == "choice" else ((n + 0.5) / size for n in range(size))
