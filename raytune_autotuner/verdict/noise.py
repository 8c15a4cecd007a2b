"""How far one run's value could have been off, from the requests of that run alone.

A moving-block bootstrap: blocks are one wave of concurrent requests long, because requests that were served
together are not independent. It knows nothing of what differs between runs, so it is the least noise there is.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable
from dataclasses import replace
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from raytune_autotuner import metrics as metric_names
from raytune_autotuner.objectives import score
from raytune_autotuner.records import LoadMetrics, Metrics, RequestSamples
from raytune_autotuner.verdict.runs import Measurement, Run, Side, log_goodness

BOOTSTRAPS = 200


def measured(
    side: Side,
    measurement: Measurement,
    seed: int,
    node: str | None = None,
    started_at: float = 0.0,
    bootstraps: int = BOOTSTRAPS,
) -> Run:
    """A measurement as a run, with the noise that its requests show."""
    return Run(side, measurement.score, within_variance(measurement, seed, bootstraps), node, started_at)


def within_variance(measurement: Measurement, seed: int, bootstraps: int = BOOTSTRAPS) -> float:
    """Variance of the log goodness under resampling of the run's own requests."""
    metrics, context = measurement.metrics, measurement.context
    known = _KNOWN.of(metrics)
    asked = (seed, bootstraps, context.gpus, context.optimization.model_dump_json())
    if asked not in known:
        rng = np.random.default_rng(seed)
        drawn = (_resampled(metrics, rng) for _ in range(bootstraps))
        values = [log_goodness(score(each, context)) for each in drawn if _has_all(each, metrics)]
        known[asked] = float(np.var(values)) if values else 0.0
    return known[asked]


def _has_all(resampled: Metrics, metrics: Metrics) -> bool:
    """Where few requests have a value (a time per token, say, of answers with more than one), it may get lost."""
    pairs = zip(resampled.loads, metrics.loads, strict=True)
    return all(mine.values.keys() >= whole.values.keys() for mine, whole in pairs)


class _Known:
    """What was worked out of a run's metrics, as long as those live: a page asks for the same runs again and again.

    By identity, since equal ones would have to be compared request by request.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Metrics], dict[Hashable, float]]] = {}

    def of(self, metrics: Metrics) -> dict[Hashable, float]:
        key = id(metrics)
        if key not in self._known:
            self._known[key] = (weakref.ref(metrics, lambda _: self._known.pop(key, None)), {})
        return self._known[key][1]


_KNOWN = _Known()


def _resampled(metrics: Metrics, rng: np.random.Generator) -> Metrics:
    return replace(metrics, loads=tuple(_resampled_load(load, rng) for load in metrics.loads))


def _resampled_load(load: LoadMetrics, rng: np.random.Generator) -> LoadMetrics:
    if len(load.samples.e2e_s) < 2:
        return load
    take = itemgetter(*_blocks(len(load.samples.e2e_s), load.concurrency, rng).tolist())
    columns = RequestSamples.__dataclass_fields__
    samples = RequestSamples(**{name: take(getattr(load.samples, name)) for name in columns})
    values = metric_names.summarise(samples, load.concurrency, load.values["error_ratio"])
    return replace(load, samples=samples, values=values)


def _blocks(count: int, length: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of a moving-block resample of ``count`` items, wrapping around."""
    length = max(1, min(max(length, math.isqrt(count)), count // 2))
    starts = rng.integers(0, count, size=-(-count // length))
    return ((starts[:, None] + np.arange(length)[None, :]) % count).ravel()[:count]
