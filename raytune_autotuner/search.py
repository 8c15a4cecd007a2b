"""What to try next: the baseline, then what the strategy proposes, then winner and baseline again.

``Proposer`` is the one searcher that Ray Tune sees. It wraps a source (a grid, a random stream, or one of
Ray's own searchers) and does around it what they lack: the baseline first, no configuration twice,
constraints and impossible configurations kept away from GPUs, failures and early-stopped trials told to
the source in a form that does not mislead it, and the confirming runs at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from ray import cloudpickle, tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.objectives import scalar
from raytune_autotuner.planning.space import Space
from raytune_autotuner.proposal import BUDGET, LOSS, META, Proposal
from raytune_autotuner.records import Outcome, Parameters, Purpose, TrialId, config_hash
from raytune_autotuner.task.spec import Optimization, Task

WORST = 2.0
"""What a source is told of a configuration that cannot work: the upper end of ``objectives.scalar``."""
REPEATS_IN_A_ROW = 20
"""So many known configurations in a row from a source, and fresh random ones are tried instead."""
FRESH_DRAWS = 500
CONSTRAINED_DRAWS = 200
"""So many proposals in a row that break a constraint, and a searcher is given up."""


class Source(Protocol):
    """A stream of configurations that may learn from results (smaller is better, in [0, 2])."""

    def propose(self, key: str) -> Parameters | None:
        """The next configuration under a name of the caller's, or ``None`` when there are no more."""

    def tell(self, key: str, loss: float | None) -> None:
        """How ``key`` ended; ``None`` means that nothing was learnt."""


class ListSource:
    """A fixed list, such as a grid."""

    def __init__(self, configurations: Sequence[Parameters]) -> None:
        self._left = list(reversed(configurations))

    def propose(self, key: str) -> Parameters | None:
        return self._left.pop() if self._left else None

    def tell(self, key: str, loss: float | None) -> None:
        pass


class RandomSource:
    """Independent draws from the space."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._rng = np.random.default_rng(seed)

    def propose(self, key: str) -> Parameters | None:
        return self._space.sample(self._rng)

    def tell(self, key: str, loss: float | None) -> None:
        pass


class RaySource:
    """One of Ray Tune's searchers, over the unit cube that ``Space`` lays under the parameters.

    It knows nothing of constraints, so a point that breaks one is answered with the worst value at once.
    """

    def __init__(self, searcher: Searcher, space: Space) -> None:
        self._searcher = searcher
        self._space = space
        self._names: dict[str, str] = {}

    def propose(self, key: str) -> Parameters | None:
        for draw in range(CONSTRAINED_DRAWS):
            name = key if draw == 0 else f"{key}/{draw}"
            point: Any = self._searcher.suggest(name)
            if point is None or point == Searcher.FINISHED:
                return None
            parameters = self._space.configuration(point)
            if self._space.problem(parameters) is None:
                self._names[key] = name
                return parameters
            self.tell(name, WORST)
        return None

    def tell(self, key: str, loss: float | None) -> None:
        name = self._names.pop(key, key)
        if loss is None:
            self._searcher.on_trial_complete(name, error=True)
        else:
            self._searcher.on_trial_complete(name, result={"loss": loss, "training_iteration": 1})


def _domains(space: Space) -> dict[str, Any]:
    return {
        d.name: tune.choice(list(range(d.size))) if d.kind == "choice" else tune.uniform(0.0, 1.0)
        for d in space.dimensions
    }


def _startup_trials(optimization: Optimization) -> int:
    """Random points before a model is trusted: a third of the budget, 4 to 20."""
    return max(4, min(20, optimization.max_iterations // 3))


def _grid(task: Task, space: Space) -> Source:
    return ListSource(space.grid(task.optimization.max_iterations)[0])


def _random(task: Task, space: Space) -> Source:
    return RandomSource(space, task.optimization.seed)


def _bayesian(task: Task, space: Space) -> Source:
    from ray.tune.search.hyperopt import HyperOptSearch

    searcher = HyperOptSearch(
        space=HyperOptSearch.convert_search_space(_domains(space)),
        metric="loss",
        mode="min",
        n_initial_points=_startup_trials(task.optimization),
        random_state_seed=task.optimization.seed,
    )
    return RaySource(searcher, space)


def _optuna(task: Task, space: Space) -> Source:
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise EnvironmentFault(
            "strategy optuna needs the optuna package: pip install 'raytune-autotuner[optuna]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=task.optimization.seed, n_startup_trials=_startup_trials(task.optimization)
    )
    domains = OptunaSearch.convert_search_space(_domains(space))
    return RaySource(OptunaSearch(space=domains, metric="loss", mode="min", sampler=sampler), space)


STRATEGIES: Mapping[str, Callable[[Task, Space], Source]] = {
    "grid_search": _grid,
    "random": _random,
    "bayesian": _bayesian,
    "optuna": _optuna,
}


def make_source(task: Task, space: Space) -> Source:
    """The task's strategy. A space without any parameter proposes nothing: only the baseline is measured."""
    return STRATEGIES[task.optimization.strategy](task, space) if space.dimensions else ListSource(())


@dataclass
class _Result:
    """The last that was heard of a configuration."""

    parameters: Parameters
    losses: list[float] = field(default_factory=list)
    violation: float = 0.0
    outcome: Outcome | None = None

    @property
    def rank(self) -> tuple[float, float]:
        return (self.violation, self.losses[-1])


class Proposer(Searcher):
    """See the top of this module. Used by Tune's driver loop alone, from one thread."""

    def __init__(
        self,
        source: Source,
        *,
        fallback: Source | None,
        max_trials: int,
        total_rungs: int,
        confirm_repeats: int,
        problem: Callable[[Parameters], str | None],
        refuse: Callable[[Proposal, str], None],
        stop_requested: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(metric=LOSS, mode="min")
        self._source = source
        self._fallback = fallback
        self._max_trials = max_trials
        self._total_rungs = total_rungs
        self._confirm_repeats = confirm_repeats
        self._problem = problem
        self._refuse = refuse
        self._stop_requested = stop_requested
        self._clock = clock
        self._numbered = 0
        self._searched = 0
        self._running: dict[str, Proposal] = {}
        self._results: dict[str, _Result] = {}
        self._waiting: dict[str, list[str]] = {}
        self._exhausted = False
        self._confirming: list[tuple[Parameters, int]] | None = None
        self.duplicates = 0

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """Tune's question; ``None`` means ask again when a running trial has ended."""
        if self._stop_requested():
            return Searcher.FINISHED
        proposal = self._next()
        if proposal is None:
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = proposal
        return proposal.to_config()

    def _next(self) -> Proposal | None:
        if self._numbered == 0:
            self._results[config_hash({})] = _Result({})
            return self._proposal("baseline", {})
        if not self._exhausted and self._searched < self._max_trials:
            parameters = self._search()
            if parameters is not None:
                return self._proposal("search", parameters)
            self._exhausted = True
        return self._confirmation()

    def _proposal(self, purpose: Purpose, parameters: Parameters, repeat: int = 0) -> Proposal:
        proposal = Proposal(
            TrialId(purpose, config_hash(parameters), repeat), self._numbered, parameters, self._clock()
        )
        self._numbered += 1
        return proposal

    def _search(self) -> Parameters | None:
        for source, draws in ((self._source, REPEATS_IN_A_ROW), (self._fallback, FRESH_DRAWS)):
            left = draws
            while source is not None and left > 0 and self._searched < self._max_trials:
                key = f"p{self._searched}-{self.duplicates}-{left}-{draws}"
                parameters = source.propose(key)
                if parameters is None:
                    break
                if self._is_new(source, key, parameters):
                    return parameters
                left -= 1
        return None

    def _is_new(self, source: Source, key: str, parameters: Parameters) -> bool:
        """Whether a proposal is worth a trial; if not, its source is told what is known of it."""
        name = config_hash(parameters)
        if (known := self._results.get(name)) is not None:
            self.duplicates += 1
            if known.outcome is None and source is self._source:
                self._waiting.setdefault(name, []).append(key)
            else:
                source.tell(key, self._told(known))
            return False
        self._results[name] = result = _Result(parameters)
        self._searched += 1
        reason = self._problem(parameters)
        if reason is None:
            if source is self._source:
                self._waiting[name] = [key]
            return True
        result.outcome = "infeasible"
        source.tell(key, WORST)
        self._refuse(self._proposal("search", parameters), reason)
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._hear(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._hear(trial_id, result or {})
        proposal = self._running.pop(trial_id, None)
        if proposal is None or proposal.trial.purpose == "confirm":
            return
        known = self._results[proposal.trial.config]
        known.outcome = known.outcome or ("failed" if error or not known.losses else "stopped")
        for key in self._waiting.pop(proposal.trial.config, []):
            self._source.tell(key, self._told(known))

    def _hear(self, trial_id: str, result: Mapping[str, Any]) -> None:
        proposal = self._running.get(trial_id)
        if proposal is None or proposal.trial.purpose == "confirm" or "rungs_done" not in result:
            return
        known = self._results[proposal.trial.config]
        known.outcome = result["outcome"]
        if result["raw_loss"] is not None and result["rungs_done"] > len(known.losses):
            known.losses.append(result["raw_loss"])
            known.violation = result["violation"]

    def _told(self, known: _Result) -> float | None:
        """What a source is to learn of a configuration, on the scale of whole benchmarks."""
        if known.outcome == "completed":
            return scalar(known.losses[-1], known.violation)
        if known.outcome == "stopped" and known.losses:
            return scalar(self._projected(known.losses), known.violation)
        return WORST if known.outcome == "infeasible" else None

    def _projected(self, losses: list[float]) -> float:
        """An early-stopped trial's loss as the last rung would show it, from the trials that went on.

        A rung with less traffic measures another quantity, so its value must not stand beside final ones; the
        median ratio between the two rungs, over the trials that have both, carries it over.
        """
        at = len(losses) - 1
        finals = (r.losses for r in self._results.values() if r.outcome == "completed" and len(r.losses) > at)
        ratios = [f[-1] / f[at] for f in finals if f[at]]
        return losses[at] * median(ratios) if ratios else losses[at]

    def _confirmation(self) -> Proposal | None:
        """Winner and baseline in turn (A B B A …), once every search trial has ended."""
        if self._confirming is None:
            if self._running:
                return None
            self._confirming = self._confirmations()
        if not self._confirming:
            return None
        parameters, repeat = self._confirming.pop(0)
        return self._proposal("confirm", parameters, repeat)

    def _confirmations(self) -> list[tuple[Parameters, int]]:
        baseline = self._results[config_hash({})]
        winner = best((r for r in self._results.values() if r.outcome == "completed"), key=lambda r: r.rank)
        if winner is None or winner is baseline or baseline.outcome != "completed":
            return []
        pair = [baseline.parameters, winner.parameters]
        return [
            (parameters, repeat)
            for repeat in range(1, self._confirm_repeats + 1)
            for parameters in (pair if repeat % 2 else reversed(pair))
        ]

    def save(self, checkpoint_path: str) -> None:
        state = {k: v for k, v in self.__dict__.items() if k not in _LIVE}
        Path(checkpoint_path).write_bytes(cloudpickle.dumps(state))  # type: ignore[no-untyped-call]

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(cloudpickle.loads(Path(checkpoint_path).read_bytes()))


_LIVE = frozenset({"_problem", "_refuse", "_stop_requested", "_clock"})
"""Attributes that belong to the process and are not saved."""


def best(results: Any, key: Callable[[Any], Any]) -> Any:
    """The smallest by ``key``, or ``None`` of nothing."""
    return min(results, key=key, default=None)


class Ladder(ASHAScheduler):
    """ASHA over the rungs of one deployment; baseline and confirming runs always go to the end.

    The time attribute is ``reduction_factor ** rung``, so that ASHA's milestones are exactly our rungs.
    """

    def __init__(self, reduction_factor: float, total_rungs: int) -> None:
        super().__init__(
            time_attr=BUDGET,
            metric=LOSS,
            mode="min",
            grace_period=1,
            max_t=reduction_factor ** (total_rungs - 1),  # type: ignore[arg-type]  # any number will do
            reduction_factor=reduction_factor,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        return action if trial.config[META]["purpose"] == "search" else str(TrialScheduler.CONTINUE)


def make_scheduler(optimization: Optimization, total_rungs: int) -> TrialScheduler:
    if optimization.scheduler == "none" or total_rungs < 2:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return Ladder(optimization.scheduler.reduction_factor, total_rungs)
