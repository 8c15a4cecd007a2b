"""What one would do without this program, on Ray Tune alone: whole benchmarks, no ladder, failures as errors."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raytune_autotuner.planning.space import Space, count, grid_value
from raytune_autotuner.proposal import LOSS, Proposal
from raytune_autotuner.records import Parameters, Rung, TrialId, config_hash
from raytune_autotuner.search import RandomSource
from tests.emulator.simulation.controller import Controller, History, Search
from tests.emulator.simulation.luck import Luck
from tests.emulator.simulation.study import World
from tests.emulator.simulation.table import Table

Arm = Callable[[Table, int], History]
"""One repetition of a way to search."""


def play(
    table: Table, seed: int, search: Search, scheduler: TrialScheduler, rungs: tuple[Rung, ...], raising: bool
) -> History:
    luck = Luck(table.world, seed)
    return Controller(table, search, scheduler, rungs=rungs, luck=luck, raising=raising).run()


def too_large(world: World, parameters: Parameters) -> str | None:
    """Why no node can hold a configuration."""
    wanted = world.gpus(parameters)
    return f"needs {wanted} GPUs on one node" if wanted > max(world.study.nodes.values()) else None


def _all_to_the_end() -> TrialScheduler:
    return FIFOScheduler()  # type: ignore[no-untyped-call]


class Plain:
    """A searcher of Ray's over the parameters as they are; whatever breaks a constraint is an error at once."""

    def __init__(self, world: World, searcher: Searcher, trials: int) -> None:
        self._world, self._searcher, self._left = world, searcher, trials
        self._numbered = 0
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        while self._left > 0:
            self._left -= 1
            self._numbered += 1
            name = self._names[trial_id] = f"{self._numbered:05d}"
            raw: Any = self._searcher.suggest(name)
            if raw is None or raw == Searcher.FINISHED:
                return raw
            parameters = _active(self._world.space, raw)
            if self._world.space.problem(parameters) is None and too_large(self._world, parameters) is None:
                trial = TrialId("search", config_hash(parameters), self._numbered)
                return Proposal(trial, self._numbered, parameters, 0.0).to_config()
            self._searcher.on_trial_complete(name, error=True)
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._searcher.on_trial_result(self._names[trial_id], {**result, "training_iteration": 1})

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self._names.pop(trial_id)
        self._searcher.on_trial_complete(name, {**result, "training_iteration": 1} if result else None, error)


def _active(space: Space, raw: Mapping[str, Any]) -> Parameters:
    return space.configuration(dict(_indices(space, raw)))


def _indices(space: Space, raw: Mapping[str, Any]) -> Any:
    for dimension in space.dimensions:
        parameter = space.parameters[dimension.name]
        values = [grid_value(parameter, n) for n in range(dimension.size)]
        if dimension.kind == "choice":
            yield (
                dimension.name,
                next(
                    n for n, v in enumerate(values) if v == raw[dimension.name] and type(v) is type(raw[dimension.name])
                ),
            )
        else:
            nearest = min(range(dimension.size), key=lambda n: abs(values[n] - raw[dimension.name]))
            yield dimension.name, (nearest + 0.5) / dimension.size


def raw_space(space: Space) -> dict[str, Any]:
    """The space as one writes it for Ray Tune."""
    domains: dict[str, Any] = {}
    for name, parameter in space.parameters.items():
        values = [grid_value(parameter, n) for n in range(count(parameter) or 0)]
        if parameter.type in ("choice", "bool"):
            domains[name] = tune.choice(values)
        else:
            domains[name] = tune.uniform(values[0], values[-1])  # type: ignore[arg-type]
    return domains


def grid(table: Table, seed: int) -> History:
    """Every configuration once, one parameter after the other; which one changes fastest is chance."""
    space, source = table.world.space, random.Random(seed)
    names = source.sample(list(space.parameters), len(space.parameters))
    choices = {name: source.sample(range(d.size), d.size) for name in names for d in space.dimensions if d.name == name}
    found: dict[str, Parameters] = {}
    for row in product(*(choices[name] for name in names)):
        by_name = dict(zip(names, row, strict=True))
        point = {
            d.name: by_name[d.name] if d.kind == "choice" else (by_name[d.name] + 0.5) / d.size
            for d in space.dimensions
        }
        parameters = space.configuration(point)
        if space.problem(parameters) is None:
            found.setdefault(config_hash(parameters), parameters)
    return play(table, seed, Listed(list(found.values())), _all_to_the_end(), table.world.rungs[-1:], True)


class Listed:
    """Configurations in a given order."""

    def __init__(self, configurations: list[Parameters]) -> None:
        self._left = list(reversed(configurations))

    def suggest(self, trial_id: str) -> Any:
        if not self._left:
            return Searcher.FINISHED
        parameters = self._left.pop()
        return Proposal(TrialId("search", config_hash(parameters)), 0, parameters, 0.0).to_config()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass


def independent(table: Table, seed: int) -> History:
    """Independent draws, as many as the grid has points."""
    source = RandomSource(table.world.space, seed)
    draws = [source.propose("") for _ in range(len(table.rows))]
    return play(
        table, seed, Listed([d for d in draws if d is not None]), _all_to_the_end(), table.world.rungs[-1:], True
    )


def hyperopt(table: Table, seed: int) -> History:
    from ray.tune.search.hyperopt import HyperOptSearch

    space = HyperOptSearch.convert_search_space(raw_space(table.world.space))
    searcher = HyperOptSearch(space=space, metric=LOSS, mode="min", random_state_seed=seed)
    return _plain(table, seed, searcher)


def optuna(table: Table, seed: int) -> History:
    import optuna as library
    from ray.tune.search.optuna import OptunaSearch

    library.logging.set_verbosity(library.logging.WARNING)
    space = OptunaSearch.convert_search_space(raw_space(table.world.space))
    return _plain(table, seed, OptunaSearch(space=space, metric=LOSS, mode="min", seed=seed))


def _plain(table: Table, seed: int, searcher: Searcher) -> History:
    search = Plain(table.world, searcher, table.world.study.plain_trials)
    return play(table, seed, search, _all_to_the_end(), table.world.rungs[-1:], True)


PLAIN: Mapping[str, Arm] = {"grid": grid, "random": independent, "hyperopt": hyperopt, "optuna": optuna}
