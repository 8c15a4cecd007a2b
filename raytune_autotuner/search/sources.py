"""Where configurations come from: the model, a grid, a random stream, or one of Ray Tune's own searchers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import Searcher

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.planning.plan import ladder
from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, config_hash
from raytune_autotuner.search.model import Adaptive, startup_points
from raytune_autotuner.search.source import NOTHING, WORST, Lessons, Source, within
from raytune_autotuner.search.spread import spread
from raytune_autotuner.task.spec import Optimization, Task

CONSTRAINED_DRAWS = 200
"""So many proposals in a row that break a constraint, and a searcher is given up."""


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
        left = startup_trials(task.optimization) - len(known)
        self._searcher = make([*known, *_points(space, beginning(space, lessons, left, seed_of(task, known)))])
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
            self.tell(name, WORST)
        return None

    def tell(self, key: str, loss: float | None) -> None:
        name, config = self._names.pop(key, key), self._configs.pop(key, key)
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
    """What is to be tried first, then so many points that lie evenly over the space."""
    return [*within(space, lessons.first), *spread(space, max(0, number), np.random.default_rng(seed))]


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
    from raytune_autotuner.search import many

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


def seed_of(task: Task, known: Sequence[object]) -> int:
    """The task's; another one for a search that goes on, which would draw the same points again."""
    return (task.optimization.seed + len(known)) % 2**32


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
