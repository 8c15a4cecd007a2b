"""Where a search begins when nothing is known: configurations that lie evenly over the space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import qmc

from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, config_hash

SOBOL_POINTS = 256


def spread(
    space: Space, number: int, rng: np.random.Generator, cost: Callable[[Parameters], float] = lambda _: 1.0
) -> list[Parameters]:
    """Up to so many configurations that keep the constraints, evenly over the space (a scrambled Sobol sequence).

    Whoever costs twice as much comes half as often, so that each price is paid alike in all.
    """
    found: dict[str, tuple[Parameters, float]] = {}
    for *row, lot in qmc.Sobol(len(space.dimensions) + 1, rng=rng).random(SOBOL_POINTS):
        at: dict[str, float | int] = {
            d.name: int(u * d.size) if d.kind == "choice" else float(u)
            for d, u in zip(space.dimensions, row, strict=True)
        }
        configuration = space.configuration(at)
        if space.problem(configuration) is None:
            found.setdefault(config_hash(configuration), (configuration, lot * cost(configuration)))
    least = min((cost(configuration) for configuration, _ in found.values()), default=0.0)
    return [configuration for configuration, price in found.values() if price <= least][:number]
