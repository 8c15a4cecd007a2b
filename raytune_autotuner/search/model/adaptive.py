"""The strategy ``adaptive``: begins spread out, then tries what promises most for its GPU-hours.

A Gaussian process says what each configuration is likely to be worth, and the causes of the failures so far how likely
it is to work at all; what is proposed has the largest expected improvement per GPU, with those that run taken for
measured. It also says which trials are worth their next rung.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.planning.space import Space, is_ordered
from raytune_autotuner.proposal import reports
from raytune_autotuner.records import Parameters, config_hash
from raytune_autotuner.search.model.beliefs import CAUTION, FAR, WHOLE, XI, Beliefs, Trying, logarithm, most_telling
from raytune_autotuner.search.model.encoding import Encoding, neighbours
from raytune_autotuner.search.model.guesses import Guess, Guesses
from raytune_autotuner.search.model.process import Array
from raytune_autotuner.search.source import NOTHING, WORST, Lessons, within
from raytune_autotuner.search.spread import spread
from raytune_autotuner.task.parameters import Boolean

DRAWS, PARENTS, PAIRS = 800, 6, 40
"""Candidates: random ones, and the neighbours of the best with one parameter changed, or two (so many for each)."""
SMALL_SPACE = 1000
"""Of a space with so few points, all are candidates."""
SPREAD = 64
"""Points that are laid out evenly at the beginning; the model takes over when it has heard of a few."""
RELEARN = 3
"""Hyperparameters are looked for again after so many new readings."""
KEPT = 0.5
"""Taken for an SLO that was kept, or is not there at all, when it is not known by how much: safely."""
SLO_BEHIND, LOSS_BEHIND = 0.3, 0.08
"""Whoever is behind the best at the same rung by more than this does not go on. (A short rung breaks limits that the
whole one keeps: the first is wide, since the odds of that are for the model to say.)"""
SHARE = 0.3
"""Going on is worth it when it promises this share of what the best one that nobody tried does, per GPU …"""
WORTHWHILE, LEADING = 0.015, 0.002
"""… or the first of these, as a logarithm; the second is the least that is worth it, and enough for the best so far."""
NOTHING_MORE = math.log(0.002)
"""When nobody is worth more (gain × odds), the model sees nothing left to gain."""
NO_HOPE = (
    f"the model expects less than {math.exp(NOTHING_MORE):.1%} of any configuration, and what differs from the best in "
    "one parameter was tried where it is likely to work"
)
LIKELY, UNLIKELY = math.log(0.2), math.log(0.1)
"""Odds above which a neighbour of the best, or the first one with a value, is tried whatever the model says."""
FIRST = 1e6
"""Added to the worth of such a one."""
FAILING = 3
"""So many times as many points come first when they fail."""
PEERS = 4
"""So many at the same rung, before the model is asked who goes on."""


def startup_points(trials: int) -> int:
    """Spread-out points before the model is asked: a third of the budget, 2 to 5."""
    return max(2, min(5, trials // 3))


class Adaptive:
    """A ``Judge`` (see there). Not told of reports, it learns from ``tell`` alone, which knows less.

    ``cost`` is what a trial of a configuration takes, say its GPUs; ``changes`` are those of first guesses, in all.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        total_rungs: int,
        startup: int = 5,
        changes: int = 12,
        cost: Callable[[Parameters], float] = lambda _: 1.0,
        lessons: Lessons = NOTHING,
    ) -> None:
        self._space, self._encoding = space, Encoding(space, lessons.expects)
        self._total, self._cost = total_rungs, cost
        self._rng = np.random.default_rng(seed + len(lessons.ended))
        self._beliefs = Beliefs(self._encoding.ordered.tolist())
        self._tried: dict[str, Trying] = {}
        self._parameters: dict[str, Parameters] = {}
        self._keys: dict[str, str] = {}
        self._nodes: dict[str, int] = {}
        self._baseline = Trying(self._encoding.row(space.part(lessons.usual)))
        self._learnt = -RELEARN
        self._outlook = 0.0
        """What the best one that nobody tried promised when one was looked for, per GPU, as a logarithm."""
        self._hopeless, self._heard_by_then = False, 0
        """Whether nothing was left when one was looked for, and how much had been heard by then."""
        self._startup = startup
        self._remember(lessons)
        first = within(space, lessons.first)
        self._first, self._begin_with = [*first, *spread(space, SPREAD, self._rng, self._toll)], len(first)
        self._guesses = Guesses(space, self._price, self._guessed(lessons.free, first), changes)
        self._grid = _whole(space)

    def _guessed(self, free: Mapping[str, Iterable[str]], first: Iterable[Parameters]) -> Iterator[Guess]:
        """Those that are to be tried first, and those that were when the search was taken up again."""
        known = {**self._parameters, **{config_hash(each): each for each in first}}
        parameters = self._space.parameters.items()
        unordered = frozenset(name for name, p in parameters if isinstance(p, Boolean) or not is_ordered(p))
        yield from (Guess([known[name]], unordered.intersection(some)) for name, some in free.items() if name in known)

    def _remember(self, lessons: Lessons) -> None:
        for record in lessons.ended:
            for result in reports(record):
                self.hear(record.parameters, result)
            if (trying := self._known(record.parameters)) is not None:
                trying.closed = True
        for parameters, loss in lessons.told:
            if (trying := self._known(parameters)) is not None:
                _learn(trying, loss)
        for parameters in lessons.open:
            self._known(parameters)

    def _known(self, parameters: Parameters) -> Trying | None:
        """What was heard of a configuration; ``None`` when it is not in the space."""
        name = config_hash(parameters)
        if name not in self._tried and self._space.point(parameters) is not None:
            self._parameters[name] = parameters
            self._tried[name] = Trying(self._encoding.row(parameters))
        return self._tried.get(name)

    def propose(self, key: str) -> Parameters | None:
        chosen = self._guesses.changed(self._tried, self._likeliest) or self._from_the_list() or self._best()
        if chosen is not None:
            self._keys[key] = config_hash(chosen)
            self._known(chosen)
        return chosen

    def _likeliest(self, some: list[Parameters]) -> Parameters:
        """To work; the first of them where nothing is known."""
        return some[int(np.argmax(self._beliefs.log_works(self._encoding.rows(some), list(self._tried.values()))))]

    def _from_the_list(self) -> Parameters | None:
        """What is to be tried first, then points spread over the space, as long as little is known."""
        while self._first and (self._begin_with > 0 or self._is_new()):
            chosen = self._first.pop(0)
            self._begin_with -= 1
            if config_hash(chosen) not in self._tried and (self._begin_with >= 0 or self._may_work(chosen)):
                return chosen
        return None

    def _is_new(self) -> bool:
        """Failures teach nothing of speed, so what follows a few of them is spread over the space, too."""
        tried = self._tried.values()
        working = sum(each.failure is None for each in tried)
        return all(each.pending for each in tried) or (working < self._startup and len(tried) < FAILING * self._startup)

    def _may_work(self, parameters: Parameters) -> bool:
        odds = self._beliefs.log_works(self._encoding.rows([parameters]), list(self._tried.values()))
        return bool(odds[0] > LIKELY)

    def tell(self, key: str, loss: float | None) -> None:
        trying = self._tried.get(self._keys.pop(key, key))
        if trying is not None:
            _learn(trying, loss)

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        trying = self._known(parameters) if parameters else self._baseline
        if trying is None:
            return
        if trying is self._baseline:  # of whose end nobody tells
            trying.closed = bool(result["outcome"])
        if result["outcome"] == "infeasible":
            trying.failure = str(result["cause"] or "unknown")
        elif result["raw_loss"] is not None and math.isfinite(result["raw_loss"]):
            left = max(WHOLE, self._total - int(result["rungs_done"]))
            if not result.get("cut"):
                trying.losses[left] = result["raw_loss"]
            trying.slo[left] = _slo(result)
            trying.node = self._nodes.setdefault(str(result["node"]), len(self._nodes))

    def goes_on(self, parameters: Parameters) -> bool:
        """It is among the best so far, and may well turn out to be better than all."""
        one = self._tried.get(config_hash(parameters))
        if one is None or not one.losses:
            return True
        left = min(one.losses)
        peers = [each for each in (*self._tried.values(), self._baseline) if left in each.losses]
        rivals = [each for each in peers if each is not one and each.may_be_best]
        (excess, loss), best = one.at(left), min(each.at(left) for each in (one, *rivals))
        if loss - best[1] > LOSS_BEHIND * abs(best[1]):
            return False
        if excess > best[0] + SLO_BEHIND:
            return False
        if len(peers) < PEERS:
            return one.at(left) == best and left in self._baseline.losses
        heard = [each for each in self._telling() if each.slo]
        finals = [each for each in heard if WHOLE in each.losses]
        leads = all(logarithm(loss) < logarithm(each.losses[left]) - XI for each in rivals)
        elsewhere = SHARE * self._price(parameters) * math.exp(self._outlook)
        gain = LEADING if leads else min(WORTHWHILE, max(LEADING, elsewhere))
        return self._beliefs.may_win(one, finals, heard, self._bar(), gain=gain)

    def _telling(self) -> list[Trying]:
        return [self._baseline, *most_telling(list(self._tried.values()))]

    def _price(self, parameters: Parameters) -> float:
        return max(1.0, self._cost(parameters))

    def _toll(self, parameters: Parameters) -> float:
        """What is paid to see a configuration, more for one that is expected to be bad."""
        return self._cost(parameters) * math.exp(min(FAR, self._encoding.expected(parameters)[0]))

    def _bar(self) -> float | None:
        kept = self._baseline.slo.get(WHOLE, 2.0) <= 1
        return self._baseline.losses[WHOLE] if kept else None

    def _best(self) -> Parameters | None:
        pool, worth, price = self._look(learn=self._readings() >= self._learnt + RELEARN)
        if not pool:
            return None
        return pool[int(np.argmax(worth - price + 1e-3 * self._rng.gumbel(size=len(pool))))]

    def _look(self, *, learn: bool) -> tuple[list[Parameters], Array, Array]:
        """What was not tried yet, what each of these is worth, and what it takes; both as logarithms."""
        self._heard_by_then = self._heard()
        pool, rows = self._pool()
        self._hopeless, self._outlook = False, -math.inf
        if not pool:
            return pool, np.empty(0), np.empty(0)
        self._learnt = self._readings() if learn else self._learnt
        gain, keeps = self._beliefs.prospects(rows, self._telling(), self._bar(), learn=learn)
        works = self._beliefs.log_works(rows, most_telling(list(self._tried.values())))
        price = np.log([self._price(parameters) for parameters in pool])
        worth = gain + keeps + CAUTION * works
        self._outlook = float((worth - price).max())
        if worth.max() < NOTHING_MORE:
            worth[self._is_near_the_best(pool) & (keeps + works > LIKELY)] += FIRST
        worth[self._has_news(rows) & (works > UNLIKELY)] += FIRST
        self._hopeless = bool(worth.max() < NOTHING_MORE) and self._has_a_best()
        return pool, worth, price

    def hopeless(self) -> str | None:
        if self._hopeless and self._heard() > self._heard_by_then:
            drawn = self._rng.bit_generator.state
            self._look(learn=False)
            self._rng.bit_generator.state = drawn  # when it is asked must not change what is proposed
        return NO_HOPE if self._hopeless else None

    def _has_a_best(self) -> bool:
        return self._bar() is not None or any(t.works and WHOLE in t.losses for t in self._tried.values())

    def _readings(self) -> int:
        return sum(len(each.slo) + (each.failure is not None) for each in self._tried.values())

    def _heard(self) -> int:
        """More when anything is known that was not, also that nothing will be."""
        return self._readings() + sum(each.closed for each in self._tried.values())

    def _is_near_the_best(self, pool: list[Parameters]) -> NDArray[np.bool_]:
        """Which differ from the best so far in one parameter: asked when the model sees nothing left to gain.

        Then the model is what should be doubted, and in the end the best is one that none of these has beaten.
        """
        ranked = sorted((t.rank, name) for name, t in self._tried.items() if t.works and WHOLE in t.losses)
        best = self._parameters[ranked[0][1]] if ranked else {}
        near = {config_hash(each) for each in neighbours(self._space, best, 0, self._rng)}
        return np.array([config_hash(each) in near for each in pool], dtype=bool)

    def _has_news(self, rows: Array) -> NDArray[np.bool_]:
        """Which have a value that nobody has measured yet and that no other value tells of, as it is no number."""
        found = np.zeros(len(rows), dtype=bool)
        for column in np.flatnonzero(~self._encoding.ordered):
            for value in np.unique(rows[:, column]):
                tried = [each for each in self._tried.values() if each.row[column] == value]
                if not any(each.slo or each.pending for each in tried):
                    found |= rows[:, column] == value
        return found

    def _pool(self) -> tuple[list[Parameters], Array]:
        """Candidates that were not tried yet."""
        named = self._grid or self._drawn()
        pool = [parameters for name, parameters in named.items() if name not in self._tried]
        return pool, self._encoding.rows(pool)

    def _drawn(self) -> dict[str, Parameters]:
        found = [self._space.sample(self._rng) for _ in range(DRAWS)]
        ranked = sorted((not t.may_be_best, t.rank, name) for name, t in self._tried.items() if t.losses)
        for _, _, name in ranked[:PARENTS]:
            found += neighbours(self._space, self._parameters[name], PAIRS, self._rng)
        return {config_hash(parameters): parameters for parameters in found}


def _whole(space: Space) -> dict[str, Parameters]:
    """A space with few points; of a larger one, nothing."""
    size = space.size()
    found = space.grid(SMALL_SPACE)[0] if size is not None and size <= SMALL_SPACE else ()
    return {config_hash(parameters): parameters for parameters in found}


def _learn(trying: Trying, loss: float | None) -> None:
    """From the one number that every source is told, where no report was heard."""
    unheard, trying.closed = trying.pending, True
    if not unheard or loss is None:
        return
    if loss == WORST:
        trying.failure = "unknown"
    else:
        trying.losses[WHOLE], trying.slo[WHOLE] = _from_scalar(loss)


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
