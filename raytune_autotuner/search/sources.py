"""Where configurations come from: the model, a grid, a random stream, or one of Ray Tune's own searchers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.planning.plan import ladder
from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters
from raytune_autotuner.search import many
from raytune_autotuner.search.model import Adaptive, startup_points
from raytune_autotuner.search.ray_source import RaySource, beginning, domains, seed_of, startup_trials
from raytune_autotuner.search.source import NOTHING, Lessons, Source
from raytune_autotuner.task.spec import Task


class ListSource:
    """A fixed list, such as a grid."""

    def __init__(self, configurations: Sequence[Parameters]) -> None:
        self._left = list(reversed(configurations))

    def propose(self, key: str) -> Parameters | None:
        return self._left.pop() if self._left else None

    def tell(self, key: str, loss: float | None) -> None:
        pass


class RandomSource:
    """Independent draws from the space, after what is to come first."""

    def __init__(self, space: Space, seed: int, first: Sequence[Parameters] = ()) -> None:
        self._space = space
        self._rng = np.random.default_rng(seed)
        self._first = list(reversed(first))

    def propose(self, key: str) -> Parameters | None:
        return self._first.pop() if self._first else self._space.sample(self._rng)

    def tell(self, key: str, loss: float | None) -> None:
        pass


Cost = Callable[[Parameters], float]
"""What a trial of a configuration takes, relative to others."""


def _adaptive(task: Task, space: Space, lessons: Lessons, cost: Cost) -> Source:
    return Adaptive(
        space,
        task.optimization.seed,
        total_rungs=len(ladder(task)),
        startup=startup_points(task.optimization.max_iterations),
        changes=task.optimization.max_iterations // 4,
        cost=cost,
        lessons=lessons,
    )


def _grid(task: Task, space: Space, lessons: Lessons, cost: Cost) -> Source:
    return ListSource(space.grid(task.optimization.max_iterations)[0])


def _random(task: Task, space: Space, lessons: Lessons, cost: Cost) -> Source:
    seed = task.optimization.seed
    return RandomSource(space, seed, beginning(space, lessons, task.optimization.max_iterations, seed))


def _bayesian(task: Task, space: Space, lessons: Lessons, cost: Cost) -> Source:
    from ray.tune.search.hyperopt import HyperOptSearch

    def make(points: list[dict[str, Any]]) -> Searcher:
        return HyperOptSearch(
            space=HyperOptSearch.convert_search_space(domains(space)),
            metric="loss",
            mode="min",
            points_to_evaluate=points or None,
            n_initial_points=startup_trials(task.optimization),
            random_state_seed=seed_of(task, points),
        )

    return RaySource(make, task, space, lessons)


def _optuna(task: Task, space: Space, lessons: Lessons, cost: Cost) -> Source:
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise EnvironmentFault(
            "strategy optuna needs the optuna package: pip install 'raytune-autotuner[optuna]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if task.optimization.objectives:
        return many.ManySource(task, space, lessons)

    def make(points: list[dict[str, Any]]) -> Searcher:
        return OptunaSearch(
            space=OptunaSearch.convert_search_space(domains(space)),
            metric="loss",
            mode="min",
            points_to_evaluate=points or None,
            sampler=many.sampler(task, points),
        )

    return RaySource(make, task, space, lessons)


STRATEGIES: Mapping[str, Callable[[Task, Space, Lessons, Cost], Source]] = {
    "adaptive": _adaptive,
    "grid_search": _grid,
    "random": _random,
    "bayesian": _bayesian,
    "optuna": _optuna,
}


def make_source(task: Task, space: Space, lessons: Lessons = NOTHING, cost: Cost = lambda _: 1.0) -> Source:
    """The task's strategy. A space without any parameter proposes nothing: only the baseline is measured."""
    return STRATEGIES[task.optimization.strategy](task, space, lessons, cost) if space.dimensions else ListSource(())
