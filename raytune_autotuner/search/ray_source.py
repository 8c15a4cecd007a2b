"""One of Ray Tune's own searchers as a source of configurations, and what such a one begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import Searcher

from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, config_hash
from raytune_autotuner.search.source import WORST, Lessons, within
from raytune_autotuner.search.spread import spread
from raytune_autotuner.task.spec import Optimization, Task

CONSTRAINED_DRAWS = 200
"""So many proposals in a row that break a constraint, and a searcher is given up."""


class RaySource:
    """One of Ray Tune's searchers, over the unit cube that ``Space`` lays under the parameters.

    It knows nothing of constraints, so a point that breaks one is answered with the worst value at once.
    """

    def __init__(
        self, make: Callable[[list[dict[str, Any]]], Searcher], task: Task, space: Space, lessons: Lessons
    ) -> None:
        """``make`` builds the searcher with points that it is to propose first: the only way to tell all of them."""
        self._space = space
        self._names: dict[str, str] = {}
        self._configs: dict[str, str] = {}
        """By key, until it was told."""
        known = _points(space, (*(parameters for parameters, _ in lessons.told), *lessons.open))
        first = beginning(space, lessons, startup_trials(task.optimization), task.optimization.seed)
        self._searcher = make([*known, *_points(space, first)])
        self._learn(len(known), {config_hash(parameters): loss for parameters, loss in lessons.told})

    def _learn(self, points: int, losses: Mapping[str, float]) -> None:
        for n in range(points):
            name = f"known-{n}"
            config = config_hash(self._space.configuration(self._searcher.suggest(name)))  # type: ignore[arg-type]
            self._configs[name] = config
            if config in losses:
                self.tell(name, losses[config])
            else:
                self._names[config] = name

    def propose(self, key: str) -> Parameters | None:
        for draw in range(CONSTRAINED_DRAWS):
            name = key if draw == 0 else f"{key}/{draw}"
            point: Any = self._searcher.suggest(name)
            if point is None or point == Searcher.FINISHED:
                return None
            parameters = self._space.configuration(point)
            if self._space.problem(parameters) is None:
                self._names[key], self._configs[key] = name, config_hash(parameters)
                return parameters
            self._answer(name, config_hash(parameters), WORST)
        return None

    def tell(self, key: str, loss: float | None) -> None:
        """For what was not proposed here there is no place: an earlier search had it in a wider space, say."""
        if key in self._names or key in self._configs:
            self._answer(self._names.pop(key, key), self._configs.pop(key, key), loss)

    def _answer(self, name: str, config: str, loss: float | None) -> None:
        if loss is None:
            self._searcher.on_trial_complete(name, error=True)
        else:
            self._searcher.on_trial_complete(name, result={**self._told(config, loss), "training_iteration": 1})

    def _told(self, config: str, loss: float) -> dict[str, float]:
        """What the searcher hears of a configuration that ended, by the names of its metrics."""
        return {"loss": loss}


def _points(space: Space, configurations: Iterable[Parameters]) -> list[dict[str, Any]]:
    return [dict(point) for parameters in configurations if (point := space.point(parameters)) is not None]


def domains(space: Space) -> dict[str, Any]:
    return {
        d.name: tune.choice(list(range(d.size))) if d.kind == "choice" else tune.uniform(0.0, 1.0)
        for d in space.dimensions
    }


def startup_trials(optimization: Optimization) -> int:
    """Points before a model is trusted: a third of the budget, 4 to 20."""
    return max(4, min(20, optimization.max_iterations // 3))


def beginning(space: Space, lessons: Lessons, number: int, seed: int) -> list[Parameters]:
    """What is to be tried first, then what is left of so many points that lie evenly over the space."""
    known = {config_hash(parameters) for parameters in (*(told for told, _ in lessons.told), *lessons.open)}
    fresh = [p for p in spread(space, number, np.random.default_rng(seed)) if config_hash(p) not in known]
    return [*within(space, lessons.first), *fresh[: max(0, number - len(known))]]


def seed_of(task: Task, known: Sequence[object]) -> int:
    """The task's; another one for a search that goes on, which would draw the same points again."""
    return (task.optimization.seed + len(known)) % 2**32
