"""Which parameters the score depends on, and how, from the trials of an experiment. Pure.

A random forest (scikit-learn) learns the logarithm of the score from the parameters; the importance of a parameter is
what the forest loses when that parameter's values are shuffled between the trials (permutation importance), as a share
of the variance of the scores: with its interactions, so shares may add up to more than one. A marginal is the mean
prediction over all trials with one parameter set to one value (partial dependence). Both are worked out on bootstrap
samples of the trials, importance on the trials that a sample leaves out, and their spread is the interval.

Trials that were stopped early count with what the last rung would have shown, by the median ratio of the trials that
went on; those that cannot work have no score and are only counted by value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from raytune_autotuner.records import Parameters, ParameterValue, TrialRecord
from raytune_autotuner.verdict import log_goodness

LEAST_TRIALS = 10
"""Fewer say nothing of any parameter, and no less than twice as many as there are parameters."""
SAMPLES, TREES, SHUFFLES = 20, 20, 5
CONFIDENCE = 0.9
"""Of the intervals."""
SHOWN_VALUES = 9
"""Values of a number that has more are shown at so many quantiles."""

Array = NDArray[np.float64]
Model = Any
"""A fitted regressor of scikit-learn, which has no types."""


@dataclass(frozen=True)
class Importance:
    """A share of the variance of the log scores, with its interval."""

    parameter: str
    importance: float
    low: float
    high: float


@dataclass(frozen=True)
class Marginal:
    """What the score is with one parameter at one value, the others as they were in the trials."""

    parameter: str
    value: ParameterValue
    """``None`` leaves the parameter out."""
    mean: float
    """In the unit of the score."""
    low: float
    high: float
    trials: int
    """That had this value (the nearest one, where values are shown at quantiles)."""
    infeasible: int
    """Of these, such as cannot work."""


@dataclass(frozen=True)
class Importances:
    """Parameters by importance, marginals in the same order and by value; both empty where ``reason`` says why."""

    trials: int
    """Those with a score."""
    unit: str = ""
    explained: float = 0.0
    """Share of the variance that the forest predicts of trials it has not seen; near 0, nothing below means much."""
    parameters: tuple[Importance, ...] = ()
    marginals: tuple[Marginal, ...] = ()
    reason: str = ""


def read(document: Mapping[str, Any]) -> Importances | None:
    """What a results file says of importance; ``None`` when it was written before there was any."""
    said = document.get("importance")
    return None if said is None else TypeAdapter(Importances).validate_python(said)


@dataclass(frozen=True)
class Column:
    """One parameter as the forest sees it: a number, or the index of a value without an order; NaN is left out."""

    name: str
    values: tuple[ParameterValue, ...]
    """Those that were tried; ``None`` only where leaving it out was one of them."""
    ordered: bool

    def code(self, value: ParameterValue) -> float:
        if value is None:
            return math.nan
        return _number(value) if self.ordered else float(list(map(json.dumps, self.values)).index(json.dumps(value)))

    def features(self, codes: Array) -> Array:
        """Codes as the forest takes them: numbers as they are, one column for each value without an order."""
        if self.ordered:
            return codes[:, None]
        return np.asarray(codes[:, None] == np.arange(len(self.values))[None, :], dtype=np.float64)

    @property
    def shown(self) -> tuple[ParameterValue, ...]:
        if not self.ordered or len(self.values) <= SHOWN_VALUES:
            return self.values
        numbers = [value for value in self.values if value is not None]
        picked = np.linspace(0, len(numbers) - 1, SHOWN_VALUES).round().astype(int)
        return (*(numbers[i] for i in picked), *((None,) if None in self.values else ()))

    def is_shown_by(self, value: ParameterValue, shown: ParameterValue) -> bool:
        """Whether a value is this one of those shown, or nearer to it than to the others."""
        if value is None or shown is None or not self.ordered:
            return json.dumps(value) == json.dumps(shown)
        numbers = [v for v in self.shown if v is not None]
        return min(numbers, key=lambda v: abs(_number(v) - _number(value))) == shown


def importance(records: Iterable[TrialRecord], seed: int = 0) -> Importances:
    """Importance and marginals of every parameter that took two values or more among the search's trials."""
    searched = [r for r in records if r.trial.purpose == "search"]
    scored = _scored(searched)
    columns = _columns([r.parameters for r, _ in scored])
    if reason := _too_little(scored, columns):
        return Importances(len(scored), reason=reason)
    x = np.array([[column.code(r.parameters.get(column.name)) for column in columns] for r, _ in scored])
    y = np.array([goodness for _, goodness in scored])
    if float(np.var(y)) == 0:
        return Importances(len(scored), reason="all trials have the same score")
    forests = list(_forests(x, y, columns, seed))
    shares = np.array([forest.shares(x, y) for forest in forests])
    order = [int(j) for j in np.argsort(-shares.mean(axis=0), kind="stable")]
    score = scored[0][0].rungs[-1].score
    marginals = (m for j in order for m in _marginals(j, forests, x, searched))
    return Importances(
        trials=len(scored),
        unit=score.unit,
        explained=_explained(forests, x, y),
        parameters=tuple(_importance(columns[j].name, shares[:, j]) for j in order),
        marginals=tuple(m if score.direction == "max" else _turned(m) for m in marginals),
    )


def _scored(records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, float]]:
    """Trials with their log goodness at the last rung, by projection where they were stopped before it."""
    whole = [[log_goodness(rung.score) for rung in r.rungs] for r in records if r.outcome == "completed" and r.rungs]
    scored = []
    for record in records:
        seen = [log_goodness(rung.score) for rung in record.rungs if rung.cut is None]
        if record.outcome == "completed" and seen:
            scored.append((record, seen[-1]))
        elif record.outcome == "stopped" and seen:
            steps = [rungs[-1] - rungs[len(seen) - 1] for rungs in whole if len(rungs) > len(seen)]
            scored.append((record, seen[-1] + (median(steps) if steps else 0.0)))
    return scored


def _columns(configurations: Sequence[Parameters]) -> list[Column]:
    """The parameters that differ between these configurations."""
    names = dict.fromkeys(name for parameters in configurations for name in parameters)
    found = (_column(name, configurations) for name in names)
    return [column for column, differs in found if differs]


def _column(name: str, configurations: Sequence[Parameters]) -> tuple[Column, bool]:
    """The column of a parameter, and whether its value differs at all."""
    tried = {json.dumps(p[name]): p[name] for p in configurations if name in p}
    values = [value for value in tried.values() if value is not None]
    ordered = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    values = sorted({_number(v): v for v in values}.values(), key=_number) if ordered else sorted(values, key=str)
    column = Column(name, (*values, *((None,) if "null" in tried else ())), ordered)
    left_out = any(name not in p or p[name] is None for p in configurations)
    return column, len(values) + left_out > 1


def _number(value: ParameterValue) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _too_little(scored: Sequence[object], columns: Sequence[Column]) -> str:
    least = max(LEAST_TRIALS, 2 * len(columns))
    if not columns:
        return "no parameter took two values"
    if len(scored) < least:
        return f"too few trials: {len(scored)} have a score, and {least} are needed for {len(columns)} parameters"
    return ""


@dataclass(frozen=True)
class Forest:
    """Fitted to a bootstrap sample; ``unseen`` are the trials that the sample left out."""

    model: Model
    columns: Sequence[Column]
    unseen: NDArray[np.int64]
    rng: np.random.Generator

    def predict(self, x: Array) -> Array:
        predicted: Array = self.model.predict(_features(self.columns, x))
        return predicted

    def shares(self, x: Array, y: Array) -> list[float]:
        """By column: how much worse the unseen trials are predicted when its values are shuffled.

        Half of the squared error that this adds is the column's part of the variance.
        """
        x, goal = x[self.unseen], y[self.unseen]
        shuffled = [_with(x, j, self.rng.permutation(x[:, j])) for j in range(x.shape[1]) for _ in range(SHUFFLES)]
        predicted = self.predict(np.concatenate([x, *shuffled])).reshape(1 + len(shuffled), len(x))
        errors = np.mean((predicted - goal) ** 2, axis=1)
        lost = errors[1:].reshape(-1, SHUFFLES).mean(axis=1) - errors[0]
        return [float(each) for each in lost / (2 * np.var(y))]


def _features(columns: Sequence[Column], x: Array) -> Array:
    return np.asarray(np.hstack([column.features(x[:, j]) for j, column in enumerate(columns)]))


def _forests(x: Array, y: Array, columns: Sequence[Column], seed: int) -> Iterator[Forest]:
    from sklearn.ensemble import RandomForestRegressor  # takes a second to import

    for n in range(SAMPLES):
        rng = np.random.default_rng([seed, n])
        sample = rng.integers(0, len(y), len(y))
        unseen = np.setdiff1d(np.arange(len(y)), sample)
        if len(unseen) > 1:
            model = RandomForestRegressor(TREES, random_state=int(rng.integers(2**31)))
            yield Forest(model.fit(_features(columns, x[sample]), y[sample]), columns, unseen, rng)


def _explained(forests: Sequence[Forest], x: Array, y: Array) -> float:
    """R² of the mean prediction by the forests that have not seen a trial."""
    total, times = np.zeros(len(y)), np.zeros(len(y))
    for forest in forests:
        total[forest.unseen] += forest.predict(x[forest.unseen])
        times[forest.unseen] += 1
    known = times > 0
    rest = total[known] / times[known] - y[known]
    return max(0.0, 1 - float(np.mean(rest**2)) / float(np.var(y)))


def _importance(name: str, shares: Array) -> Importance:
    return Importance(name, *(max(0.0, each) for each in _interval(shares)))


def _marginals(j: int, forests: Sequence[Forest], x: Array, searched: Sequence[TrialRecord]) -> Iterator[Marginal]:
    """By value, over the trials in which the parameter was to be set at all."""
    column = forests[0].columns[j]
    tried = [r for r in searched if column.name in r.parameters]
    rows = x if None in column.values else x[~np.isnan(x[:, j])]
    changed = np.concatenate([_with(rows, j, column.code(value)) for value in column.shown])
    means = [forest.predict(changed).reshape(len(column.shown), len(rows)).mean(axis=1) for forest in forests]
    for value, by_forest in zip(column.shown, np.array(means).T, strict=True):
        these = [r for r in tried if column.is_shown_by(r.parameters[column.name], value)]
        mean, low, high = (math.exp(each) for each in _interval(by_forest))
        infeasible = sum(r.outcome == "infeasible" for r in these)
        yield Marginal(column.name, value, mean, low, high, len(these), infeasible)


def _with(x: Array, column: int, codes: Array | float) -> Array:
    changed: Array = x.copy()
    changed[:, column] = codes
    return changed


def _turned(marginal: Marginal) -> Marginal:
    """Of a score that is better when it is smaller: its goodness is the inverse."""
    return replace(marginal, mean=1 / marginal.mean, low=1 / marginal.high, high=1 / marginal.low)


def _interval(values: Array) -> tuple[float, float, float]:
    """Mean and both ends."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(values.mean()), float(low), float(high)
