"""Several objectives at once: Optuna's samplers that know the Pareto front, through Ray Tune's own wrapper.

Each objective is told by itself, on the bounded scale of ``objectives.scalar``, so that a configuration that breaks the
SLO is worse in all of them than any that keeps it. The samplers go by the order of the values (NSGA-II, TPE) or turn
them to a normal distribution (GP), so the scale does no harm.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.objectives import facts_of, scalar
from raytune_autotuner.planning.space import Space
from raytune_autotuner.proposal import reports
from raytune_autotuner.records import Parameters, config_hash
from raytune_autotuner.search.ray_source import RaySource, domains, seed_of, startup_trials
from raytune_autotuner.search.source import WORST, Lessons
from raytune_autotuner.task.spec import Task


class ManySource(RaySource):
    """A searcher that is told the value of every objective; it hears them in the trials' reports.

    No trial is stopped early: what one objective loses, another may win.
    """

    def __init__(self, task: Task, space: Space, lessons: Lessons) -> None:
        self._objectives = task.optimization.objectives
        self._losses: dict[str, dict[str, float]] = {}
        for record in lessons.ended:
            for result in reports(record):
                self.hear(record.parameters, result)
        super().__init__(lambda points: _searcher(task, space, points), task, space, lessons)

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        """See ``source.Judge``."""
        values = result.get("values") or {}
        if result["outcome"] == "completed" and set(self._objectives) <= set(values):
            losses = {name: _loss(name, values[name], result["violation"]) for name in self._objectives}
            self._losses[config_hash(parameters)] = losses

    def goes_on(self, parameters: Parameters) -> bool:
        """See ``source.Judge``."""
        return True

    def hopeless(self) -> None:
        """Never: a front has no best one that others could be measured by."""

    def tell(self, key: str, loss: float | None) -> None:
        """Of a trial that was cut short nothing is learnt: what its short rungs showed must not pass for the whole."""
        is_measured = self._configs.get(key, key) in self._losses
        super().tell(key, loss if is_measured or loss == WORST else None)

    def _told(self, config: str, loss: float) -> dict[str, float]:
        known = self._losses.get(config)
        return known if known and loss < WORST else dict.fromkeys(self._objectives, loss)


def _loss(name: str, value: float, violation: float) -> float:
    return scalar(value if facts_of(name)[0] == "min" else -value, violation)


def _searcher(task: Task, space: Space, points: list[dict[str, Any]]) -> Searcher:
    from ray.tune.search.optuna import OptunaSearch

    names = list(task.optimization.objectives)
    return OptunaSearch(
        space=OptunaSearch.convert_search_space(domains(space)),
        metric=names,
        mode=["min"] * len(names),
        points_to_evaluate=points or None,
        sampler=sampler(task, points),
    )


def sampler(task: Task, known: Sequence[object]) -> Any:
    """Of Optuna, by the task's choice.

    Raises:
        EnvironmentFault: the Gaussian process needs a package that is not here.
    """
    import optuna

    seed, startup = seed_of(task, known), startup_trials(task.optimization)
    if task.optimization.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, startup))
    if task.optimization.sampler == "gp":
        if importlib.util.find_spec("torch") is None:
            raise EnvironmentFault("optimization.sampler gp needs PyTorch: pip install torch, or write tpe")
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
