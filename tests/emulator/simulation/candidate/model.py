"""The strategy ``model``: begins spread out, then tries what promises most for its GPU-hours.

A Gaussian process says what each configuration is likely to be worth and whether it is likely to work at all; what is
proposed has the largest expected improvement per GPU, with those that run taken for measured. It also says which trials
are worth their next rung.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, config_hash
from raytune_autotuner.search.knowledge import WORST
from tests.emulator.simulation.candidate.beliefs import WHOLE, Beliefs, Trying
from tests.emulator.simulation.candidate.encoding import Encoding, neighbours, spread
from tests.emulator.simulation.candidate.process import Array

DRAWS, PARENTS, PAIRS = 800, 6, 40
"""Candidates: random ones, and the neighbours of the best with one parameter changed, or two (so many for each)."""
RELEARN = 3
"""Hyperparameters are looked for again after so many new readings."""
KEPT = 0.7
"""Taken for an SLO that was kept when it is not known by how much."""
SLO_BEHIND, LOSS_BEHIND = 0.03, 0.08
"""Whoever is behind the best at the same rung by more than this does not go on."""
PEERS = 4
"""So many at the same rung, before the model is asked who goes on."""


class ModelSource:
    """A ``Source`` that also hears every report, and judges who goes on.

    ``cost`` is what a trial takes, say its GPUs. Not told of reports, it learns from ``tell`` alone, which knows less.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        total_rungs: int,
        startup: int = 8,
        cost: Callable[[Parameters], float] = lambda _: 1.0,
    ) -> None:
        self._space, self._encoding, self._total, self._cost = space, Encoding(space), total_rungs, cost
        self._rng = np.random.default_rng(seed)
        self._beliefs = Beliefs(self._encoding.ordered.tolist())
        self._first = list(reversed(spread(space, startup, self._rng)))
        self._tried: dict[str, Trying] = {}
        self._parameters: dict[str, Parameters] = {}
        self._keys: dict[str, str] = {}
        self._nodes: dict[str, int] = {}
        self._baseline = Trying([])
        self._learnt = -RELEARN

    def propose(self, key: str) -> Parameters | None:
        chosen = self._first.pop() if self._first else self._best()
        if chosen is not None:
            name = self._keys[key] = config_hash(chosen)
            self._parameters[name] = chosen
            self._tried.setdefault(name, Trying(self._encoding.row(chosen)))
        return chosen

    def tell(self, key: str, loss: float | None) -> None:
        trying = self._tried[self._keys.pop(key)]
        unheard, trying.closed = trying.pending, True
        if unheard and loss is not None:
            if loss == WORST:
                trying.failure = "unknown"
            else:
                trying.losses[WHOLE], trying.slo[WHOLE] = _from_scalar(loss)

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        """Take in a trial's report (see ``proposal.report``), also of one that goes on."""
        trying = self._baseline if not parameters else self._tried.get(config_hash(parameters))
        if trying is None:
            return
        if result["outcome"] == "infeasible":
            trying.failure = str(result.get("reason") or "unknown")
        elif result["raw_loss"] is not None:
            left = self._total - int(result["rungs_done"])
            trying.losses[left] = result["raw_loss"]
            trying.slo[left] = _slo(result)
            trying.node = self._nodes.setdefault(str(result.get("node")), len(self._nodes))

    def goes_on(self, parameters: Parameters) -> bool:
        """Whether a trial is worth its next rung: it is among the best so far, and may well be better than all."""
        one = self._tried.get(config_hash(parameters))
        if one is None or not one.losses:
            return True
        left = min(one.losses)
        peers = [each.at(left) for each in (*self._tried.values(), self._baseline) if left in each.losses]
        (excess, loss), best = one.at(left), min(peers)
        if excess > best[0] + SLO_BEHIND or loss - best[1] > LOSS_BEHIND * abs(best[1]):
            return False
        if len(peers) < PEERS:
            return one.at(left) == best and left in self._baseline.losses
        return self._beliefs.may_win(one, self._finals(), self._heard(), self._bar())

    def winner(self) -> Parameters | None:
        """The best of those that went to the end, once luck is taken out as far as the others tell."""
        finals = {name: each for name, each in self._tried.items() if WHOLE in each.losses and each.slo[WHOLE] <= 1}
        if not finals:
            return None
        mean, _ = self._beliefs.whole(np.array([each.row for each in finals.values()]), self._heard())
        return self._parameters[list(finals)[int(np.argmin(mean))]]

    def _heard(self) -> list[Trying]:
        return [each for each in self._tried.values() if each.losses]

    def _finals(self) -> list[Trying]:
        return [each for each in self._tried.values() if WHOLE in each.losses]

    def _bar(self) -> float | None:
        kept = self._baseline.slo.get(WHOLE, 2.0) <= 1
        return self._baseline.losses[WHOLE] if kept else None

    def _best(self) -> Parameters | None:
        pool, rows = self._pool()
        if not pool:
            return None
        readings = sum(len(each.losses) + (each.failure is not None) for each in self._tried.values())
        learn = readings >= self._learnt + RELEARN
        self._learnt = readings if learn else self._learnt
        worth = self._beliefs.log_worth(rows, list(self._tried.values()), self._bar(), learn=learn)
        worth -= np.log([self._cost(parameters) for parameters in pool])
        return pool[int(np.argmax(worth + 1e-3 * self._rng.gumbel(size=len(pool))))]

    def _pool(self) -> tuple[list[Parameters], Array]:
        """Candidates that were not tried yet."""
        found = [self._space.sample(self._rng) for _ in range(DRAWS)]
        for name, _ in sorted(((n, t.rank) for n, t in self._tried.items() if t.losses), key=lambda each: each[1])[
            :PARENTS
        ]:
            found += neighbours(self._space, self._parameters[name], PAIRS, self._rng)
        named = {config_hash(parameters): parameters for parameters in found}
        pool = [parameters for name, parameters in named.items() if name not in self._tried]
        return pool, self._encoding.rows(pool)


def _slo(result: Mapping[str, Any]) -> float:
    """The worst metric relative to its limit, guessed where only its excess is told."""
    if (ratio := result.get("slo")) is not None:
        return float(ratio)
    return 1 + float(result["violation"]) if result["violation"] else KEPT


def _from_scalar(told: float) -> tuple[float, float]:
    """Loss and SLO ratio: what ``objectives.scalar`` was given. A broken SLO says nothing of the loss."""
    if told > 1:
        return 0.0, 1 + (told - 1) / max(1e-9, 2 - told)
    share = 2 * told - 1
    return share / max(1e-12, 1 - abs(share)), KEPT
