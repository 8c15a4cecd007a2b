"""Searches that are being tried out: sources after the protocol of ``raytune_autotuner.search.Source``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.tune.schedulers import TrialScheduler
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr
from scipy.stats import qmc

from raytune_autotuner.planning.space import Space, coordinate, is_ordered
from raytune_autotuner.proposal import META, Proposal
from raytune_autotuner.records import Parameters, config_hash
from raytune_autotuner.search import Ladder

Array = NDArray[np.float64]


class Encoding:
    """Configurations as rows of numbers: a rank in [0, 1] where values have an order, else a category."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.ordered = np.array([is_ordered(p) and (d.size != 2) for p, d in zip(space.parameters.values(), space.dimensions, strict=True)])

    def row(self, parameters: Parameters) -> list[float]:
        """-1 where a parameter is left out."""
        return [self._at(n, parameters) for n in range(len(self.space.dimensions))]

    def rows(self, configurations: Sequence[Parameters]) -> Array:
        return np.array([self.row(c) for c in configurations]).reshape(-1, len(self.ordered))

    def _at(self, n: int, parameters: Parameters) -> float:
        d = self.space.dimensions[n]
        if d.name not in parameters:
            return -1.0
        at = coordinate(self.space.parameters[d.name], parameters[d.name])
        assert at is not None
        if d.kind == "choice":
            return at / max(1, d.size - 1) if self.ordered[n] else float(at)
        return float(at)


@dataclass
class Kernel:
    """Main effects and interactions of pairs of parameters (ANOVA of order two), each as relevant as the data say."""

    ordered: NDArray[np.bool_]
    variances: Mapping[int, float] = field(default_factory=dict)
    """Logarithms to begin with, of some dimensions."""
    pairs: float = -2.0

    @property
    def size(self) -> int:
        return 2 * len(self.ordered) + 3

    def start(self) -> Array:
        """log variance and log length by dimension, log weight of pairs, of everything, log noise."""
        d = len(self.ordered)
        variances = [self.variances.get(n, -1.0) for n in range(d)]
        return np.concatenate([variances, np.full(d, math.log(0.7)), [self.pairs, -4.0, math.log(0.02)]])

    def spread(self) -> Array:
        d = len(self.ordered)
        return np.concatenate([np.full(d, 1.5), np.full(d, 0.5), [1.5, 1.0, 1.0]])

    def parts(self, a: Array, b: Array) -> Array:
        """Distances by dimension: squared difference of ranks, or 1 for another category."""
        apart = a[:, None, :] - b[None, :, :]
        other = (apart != 0).astype(float)
        missing = (a[:, None, :] < 0) != (b[None, :, :] < 0)
        return np.where(self.ordered & ~missing, apart**2, other)

    def __call__(self, theta: Array, apart: Array) -> Array:
        each, one, pairs, rest = self._pieces(theta, apart)
        first = each.sum(axis=2)
        second = (first**2 - (each**2).sum(axis=2)) / 2
        return np.asarray(first + pairs * second + rest * np.prod(one, axis=2) + 0.5)

    def _pieces(self, theta: Array, apart: Array) -> tuple[Array, Array, float, float]:
        d = len(self.ordered)
        variance, length = np.exp(theta[:d]), np.exp(theta[d : 2 * d])
        pairs, rest = np.exp(theta[2 * d : 2 * d + 2])
        one = np.exp(-apart * np.where(self.ordered, 1 / (2 * length**2), 2.0))
        return variance * one, one, float(pairs), float(rest)

    def slope(self, theta: Array, apart: Array, weight: Array) -> Array:
        """Of sum(weight * kernel), by theta; the last one, the noise, is the caller's."""
        d = len(self.ordered)
        each, one, pairs, rest = self._pieces(theta, apart)
        first = each.sum(axis=2)
        by_variance = each * (1 + pairs * (first[..., None] - each))
        whole = rest * np.prod(one, axis=2)
        length = np.exp(theta[d : 2 * d])
        by_length = (by_variance + whole[..., None]) * apart * np.where(self.ordered, 1 / length**2, 0.0)
        second = (first**2 - (each**2).sum(axis=2)) / 2
        sums = [np.einsum("ij,ijk->k", weight, by_variance), np.einsum("ij,ijk->k", weight, by_length)]
        return np.concatenate([*sums, [pairs * (weight * second).sum(), (weight * whole).sum(), 0.0]])


class Process:
    """A Gaussian process over encoded configurations."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.fitted = False
        self.theta = kernel.start()

    def fit(self, x: Array, y: Array, noise: Array, learn: bool) -> None:
        """``noise`` multiplies the noise variance, by row."""
        self.mean, self.scale = float(y.mean()), float(y.std()) or 1.0
        self.x, z = x, (y - self.mean) / self.scale
        apart = self.kernel.parts(x, x)
        if learn:
            self.fitted = True
            self._learn(apart, z, noise)
        self._solve(apart, z, noise)

    def _learn(self, apart: Array, z: Array, noise: Array) -> None:
        start, spread, eye = self.kernel.start(), self.kernel.spread(), np.eye(len(z))

        def cost(theta: Array) -> tuple[float, Array]:
            try:
                root = cholesky(self._k(theta, apart, noise), lower=True)
            except np.linalg.LinAlgError:
                return 1e9, np.zeros_like(theta)
            alpha = cho_solve((root, True), z)
            weight = (cho_solve((root, True), eye) - np.outer(alpha, alpha)) / 2
            slope = self.kernel.slope(theta, apart, weight)
            slope[-1] = (np.diag(weight) * noise).sum() * math.exp(theta[-1])
            off = (theta - start) / spread
            value = float(z @ alpha / 2 + np.log(np.diag(root)).sum() + (off**2).sum() / 2)
            return value, slope + off / spread

        bounds = [(s - 4, s + 4) for s in start]
        found = minimize(cost, self.theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 25})
        self.theta = found.x

    def _k(self, theta: Array, apart: Array, noise: Array) -> Array:
        return self.kernel(theta, apart) + np.diag(np.exp(theta[-1]) * noise + 1e-6)

    def _solve(self, apart: Array, z: Array, noise: Array) -> None:
        self.root = cholesky(self._k(self.theta, apart, noise), lower=True)
        self.alpha = cho_solve((self.root, True), z)

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation."""
        across = self.kernel(self.theta, self.kernel.parts(x, self.x))
        mean = across @ self.alpha
        d = len(self.kernel.ordered)
        variance = np.exp(self.theta[:d])
        first = variance.sum()
        own = first + np.exp(self.theta[2 * d]) * (first**2 - (variance**2).sum()) / 2 + np.exp(self.theta[2 * d + 1]) + 0.5
        solved = cho_solve((self.root, True), across.T)
        var = np.maximum(own - np.einsum("ij,ji->i", across, solved), 1e-9)
        return self.mean + self.scale * mean, self.scale * np.sqrt(var)


@dataclass
class Known:
    """What was heard of a configuration."""

    parameters: Parameters
    row: list[float]
    losses: dict[int, float] = field(default_factory=dict)
    """By rungs that are left; 0 is the last one."""
    slo: dict[int, float] = field(default_factory=dict)
    node: float = 0.0
    works: bool | None = None
    failure: str = ""


class ModelSource:
    """Starts spread out, then proposes what a Gaussian process expects to improve most for its GPU-hours.

    The rung and the node are parameters of the process as well, so that short rungs and slow nodes teach it what they can.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        total_rungs: int,
        startup: int = 8,
        cost: Callable[[Parameters], float] = lambda _: 1.0,
        cost_power: float = 1.0,
        relearn: int = 3,
        xi: float = 0.0,
        pool: int = 800,
        pairs: float = 0.5,
        caution: float = 1.0,
    ) -> None:
        self._space, self._encoding = space, Encoding(space)
        self._rng = np.random.default_rng(seed)
        self._startup, self._relearn, self._cost_power, self._total, self._xi = startup, relearn, cost_power, total_rungs, xi
        self._cost, self._pool_size, self._caution = cost, pool, caution
        self._known: dict[str, Known] = {}
        self._nodes: dict[str, float] = {}
        extended = np.append(self._encoding.ordered, [False, False])
        self._objective = Process(Kernel(extended, {len(extended) - 2: 0.0, len(extended) - 1: -3.0}))
        self._slo = Process(Kernel(extended, {len(extended) - 2: -1.0, len(extended) - 1: -4.0}))
        self._works: dict[str, Process] = {}
        self._pairs = pairs
        self._learnt = -99
        self._first = self._spread(startup)

    def _spread(self, number: int) -> list[Parameters]:
        """A scrambled Sobol sequence without what breaks constraints."""
        dims = self._space.dimensions
        points = qmc.Sobol(len(dims), seed=self._rng).random(64 if number <= 32 else 256)
        found: dict[str, Parameters] = {}
        for u in points:
            point = {d.name: int(v * d.size) if d.kind == "choice" else float(v) for d, v in zip(dims, u, strict=True)}
            c = self._space.configuration(point)
            if self._space.problem(c) is None:
                found.setdefault(config_hash(c), c)
        return list(reversed(list(found.values())[:number]))

    def propose(self, key: str) -> Parameters | None:
        chosen = self._first.pop() if self._first else self._best()
        if chosen is not None:
            self._known.setdefault(config_hash(chosen), Known(chosen, self._encoding.row(chosen)))
        return chosen

    def tell(self, key: str, loss: float | None) -> None:
        pass

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        """Each report of a trial, also of one that goes on."""
        known = self._known.get(config_hash(parameters))
        if known is None:
            return
        if result["outcome"] == "infeasible":
            known.works, known.failure = False, str(result["failure"])
        elif result["rungs_done"]:
            known.works = True
            left = self._total - result["rungs_done"]
            known.losses[left] = result["raw_loss"]
            known.slo[left] = result["slo"]
            known.node = self._nodes.setdefault(result["node"], float(len(self._nodes)))

    def _pool(self) -> tuple[list[Parameters], Array]:
        drawn = [self._space.sample(self._rng) for _ in range(self._pool_size)]
        good = sorted((k for k in self._known.values() if k.losses), key=self._rank)[:6]
        drawn += [n for k in good for n in self._near(k.parameters)]
        found = {config_hash(c): c for c in drawn}
        kept = [c for name, c in found.items() if name not in self._known]
        return kept, self._encoding.rows(kept)

    def _rank(self, known: Known) -> tuple[float, float]:
        left = min(known.losses)
        return (max(0.0, known.slo[left] - 1), known.losses[left])

    def _near(self, parameters: Parameters) -> Iterator[Parameters]:
        """One parameter changed, and some with two."""
        point = dict(self._space.point(parameters) or {})
        changes = []
        for d in self._space.dimensions:
            for n in range(d.size or 9):
                at = n if d.kind == "choice" else (n + 0.5) / (d.size or 9)
                if at != point[d.name]:
                    changes.append((d.name, at))
        pairs = [self._rng.integers(len(changes), size=2) for _ in range(40)]
        for chosen in [(n,) for n in range(len(changes))] + [tuple(p) for p in pairs]:
            c = self._space.configuration({**point, **{changes[n][0]: changes[n][1] for n in chosen}})
            if self._space.problem(c) is None:
                yield c

    def _best(self) -> Parameters | None:
        pool, rows = self._pool()
        if not pool:
            return None
        heard = sum(len(k.losses) + (k.works is False) for k in self._known.values())
        learn = heard >= self._learnt + self._relearn
        if learn:
            self._learnt = heard
        value = self._log_improvement(rows, learn) + self._log_works(rows, learn)
        value -= self._cost_power * np.log([self._cost(c) for c in pool])
        value += self._rng.gumbel(size=len(value)) * 1e-3
        return pool[int(np.argmax(value))]

    def _extended(self, rows: Array) -> Array:
        return np.hstack([rows, np.zeros((len(rows), 2))])

    def _log_improvement(self, rows: Array, learn: bool) -> Array:
        if sum(len(k.losses) for k in self._known.values()) < 3:
            return np.zeros(len(rows))
        data, x, y, noise = self._data()
        self._objective.fit(x, y, noise, learn)
        okay = self._log_okay(data, x, rows, learn)
        own = self._extended(np.array([k.row for k, _ in data]))
        fitted, _ = self._objective.predict(own)
        fine = np.array([k.slo[min(k.slo)] <= 1 for k, _ in data])
        best = fitted[fine].min() if fine.any() else fitted.max()
        pending = [k for k in self._known.values() if not k.losses and k.works is None]
        if pending:
            more = self._extended(np.array([k.row for k in pending]))
            believed, _ = self._objective.predict(more)
            self._objective.fit(np.vstack([x, more]), np.append(y, believed), np.append(noise, np.ones(len(more))), False)
        mean, sd = self._objective.predict(self._extended(rows))
        return log_ei((best - self._xi - mean) / sd) + np.log(sd) + okay

    def _log_okay(self, data: Sequence[tuple[Known, int]], x: Array, rows: Array, learn: bool) -> Array:
        """That it keeps the SLO."""
        margin = np.array([math.log(max(k.slo[left], 1e-3)) for k, left in data])
        if margin.max() < -0.5:
            return np.zeros(len(rows))
        self._slo.fit(x, np.clip(margin, -1.0, 1.0), np.ones(len(margin)), learn)
        mean, sd = self._slo.predict(self._extended(rows))
        return np.asarray(log_ndtr((0.01 - mean) / sd))

    def _log_works(self, rows: Array, learn: bool) -> Array:
        """That it starts, and goes on: for each class of failure, what of those that did not fail otherwise failed so."""
        total = np.zeros(len(rows))
        for failure in sorted({k.failure for k in self._known.values() if k.works is False}):
            known = [k for k in self._known.values() if k.works or k.failure == failure]
            works = np.array([1.0 if k.works else -1.0 for k in known])
            if len(works) < 2 or np.all(works == works[0]):
                continue
            model = self._works.setdefault(failure, Process(Kernel(self._encoding.ordered, pairs=self._pairs)))
            model.fit(np.array([k.row for k in known]), works, np.full(len(works), 0.1), learn or not model.fitted)
            mean, sd = model.predict(rows)
            total += log_ndtr(mean / np.sqrt(sd**2 + 0.02))
        return self._caution * total

    def promising(self, parameters: Parameters) -> bool:
        """Whether the next rung may well show it to be the best."""
        known = self._known.get(config_hash(parameters))
        finals = [k for k in self._known.values() if 0 in k.losses]
        if known is None or not known.losses:
            return True
        left = min(known.losses)
        peers = [self._rank_at(k, left) for k in self._known.values() if left in k.losses]
        mine, best = self._rank_at(known, left), min(peers)
        if mine[0] > best[0] + 0.03 or mine[1] - best[1] > 0.08 * abs(best[1]):
            return False
        if not finals or len(peers) < 4:
            return mine == best
        self._refit()
        x = np.array([[*k.row, 0.0, k.node] for k in [known, *finals]])
        mean, sd = self._objective.predict(x)
        fine = [m for m, k in zip(mean[1:], finals, strict=True) if k.slo[0] <= 1.0]
        if not fine:
            return True
        return bool(ndtr((min(fine) - 0.005 - mean[0]) / sd[0]) > 0.25)

    def winner(self) -> Parameters | None:
        """The best that went to the end, without its luck."""
        finals = [k for k in self._known.values() if 0 in k.losses and k.slo[0] <= 1]
        if len(finals) < 3:
            return min(finals, key=lambda k: k.losses[0]).parameters if finals else None
        self._refit()
        mean, _ = self._objective.predict(self._extended(np.array([k.row for k in finals])))
        return finals[int(np.argmin(mean))].parameters

    def _rank_at(self, known: Known, left: int) -> tuple[float, float]:
        return (max(0.0, known.slo[left] - 1), known.losses[left])

    def _refit(self) -> None:
        data, x, y, noise = self._data()
        self._objective.fit(x, y, noise, not self._objective.fitted)

    def _data(self) -> tuple[list[tuple[Known, int]], Array, Array, Array]:
        data = [(k, left) for k in self._known.values() for left in k.losses]
        x = np.array([[*k.row, left, k.node] for k, left in data])
        losses = np.array([k.losses[left] for k, left in data])
        noise = np.array([1.0 if left == 0 else 2.0 for _, left in data])
        y = np.log(np.abs(losses)) * np.sign(losses)
        for left in set(x[:, -2]):
            there = x[:, -2] == left
            y[there] = np.minimum(y[there], y[there].min() + 0.8)
        return data, x, y, noise


class Chosen(Ladder):
    """The source's model says who goes on."""

    def __init__(self, reduction_factor: float, total_rungs: int, source: ModelSource) -> None:
        super().__init__(reduction_factor, total_rungs)
        self._source = source

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        super().on_trial_result(tune_controller, trial, result)
        parameters = Proposal.from_config(trial.config).parameters
        self._source.hear(parameters, result)
        if trial.config[META]["purpose"] != "search" or result["done"] or self._source.promising(parameters):
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)


def log_ei(u: Array) -> Array:
    """log of u Φ(u) + φ(u), also far in the tail."""
    direct = u * ndtr(u) + np.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    tail = -u * u / 2 - math.log(math.sqrt(2 * math.pi)) - 2 * np.log(np.maximum(1.0, -u))
    return np.where(u > -5, np.log(np.maximum(direct, 1e-300)), tail)


class Margin(Ladder):
    """ASHA, and who is plainly behind the best at the same rung does not go on either."""

    def __init__(self, reduction_factor: float, total_rungs: int, margin: float) -> None:
        super().__init__(reduction_factor, total_rungs)
        self._margin = margin
        self._bests: dict[int, tuple[float, float]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        if result["raw_loss"] is None or result["done"]:
            return action
        rung, rank = result["rungs_done"], (result["violation"], result["raw_loss"])
        best = self._bests[rung] = min(rank, self._bests.get(rung, rank))
        behind = rank[0] > best[0] + self._margin or (best[0] == 0 and rank[1] - best[1] > self._margin * abs(best[1]))
        if trial.config[META]["purpose"] == "search" and behind:
            return str(TrialScheduler.STOP)
        return action
