"""Samples of what is unknown, where the prior is normal and only the likelihood can be computed.

Elliptical slice sampling: it has nothing to tune, and never stands still. See Murray, Adams, MacKay, "Elliptical slice
sampling", 2010.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Point = NDArray[np.float64]

LEAST = 1e-6
"""Of the ellipse; who finds nothing likely on more of it stays where it is."""


def chain(
    begin: Point, mean: Point, spread: Point, likelihood: Callable[[Point], float], rng: np.random.Generator
) -> Iterator[Point]:
    """One sample after another, for ever; ``likelihood`` is a logarithm, ``spread`` the prior's deviations."""
    here, known = begin, likelihood(begin)
    while True:
        other = rng.normal(size=len(mean)) * spread
        bar = known + math.log(rng.uniform())
        angle = rng.uniform(0, 2 * math.pi)
        low, high = angle - 2 * math.pi, angle
        while high - low >= LEAST:
            there = mean + (here - mean) * math.cos(angle) + other * math.sin(angle)
            if (found := likelihood(there)) > bar:
                here, known = there, found
                break
            low, high = (angle, high) if angle < 0 else (low, angle)
            angle = rng.uniform(low, high)
        yield here
