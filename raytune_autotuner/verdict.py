"""Whether the winner is really better than the baseline, and by how much. Pure.

Both were measured several times, in turn. The gain is the ratio of their goodness (the objective's value,
or its inverse where smaller is better), so 0.2 means 20 % better. Its interval is Student's t on the
logarithms of the runs, with the larger of two estimates of the noise of one run: how far the runs of one
configuration lie apart, and what a moving-block bootstrap over the requests of each run says. Blocks are one
wave of concurrent requests long, because requests that were served together are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from raytune_autotuner import metrics as metric_names
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import LoadMetrics, Metrics, RequestSamples, Score

VerdictKind = Literal["WIN", "TIE", "UNSTABLE"]
BOOTSTRAPS = 200
NOISY = 0.15
"""An interval wider than ± this, around no difference, says that the machine is too noisy to tell."""


@dataclass(frozen=True)
class Verdict:
    """``gain``, ``low`` and ``high`` are relative: 0.2 is 20 % better than the baseline."""

    kind: VerdictKind
    gain: float
    low: float
    high: float
    confidence: float
    baseline: float
    winner: float
    unit: str
    baseline_runs: int
    winner_runs: int
    reason: str


@dataclass(frozen=True)
class Measurement:
    """One run of the whole workload, with what its objective needs."""

    metrics: Metrics
    context: Context

    @property
    def score(self) -> Score:
        return score(self.metrics, self.context)


def compare(baseline: Sequence[Measurement], winner: Sequence[Measurement], confidence: float, seed: int) -> Verdict:
    """The verdict on two configurations that were measured in turn.

    Raises:
        ValueError: one of them was not measured at all.
    """
    if not baseline or not winner:
        raise ValueError("both sides need at least one measurement")
    rng = np.random.default_rng(seed)
    side_b, side_w = ([log_goodness(m.score) for m in side] for side in (baseline, winner))
    delta = float(np.mean(side_w) - np.mean(side_b))
    variance, freedom = _noise(baseline, winner, rng)
    error = math.sqrt(variance * (1 / len(baseline) + 1 / len(winner)))
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    kind, reason = _judge(baseline, winner, delta, half)
    return Verdict(
        kind=kind,
        gain=math.expm1(delta),
        low=math.expm1(delta - half),
        high=math.expm1(min(delta + half, 50.0)),
        confidence=confidence,
        baseline=float(np.mean([m.score.value for m in baseline])),
        winner=float(np.mean([m.score.value for m in winner])),
        unit=winner[0].score.unit,
        baseline_runs=len(baseline),
        winner_runs=len(winner),
        reason=reason,
    )


def _judge(
    baseline: Sequence[Measurement], winner: Sequence[Measurement], delta: float, half: float
) -> tuple[VerdictKind, str]:
    broken = [m.score for m in winner if m.score.violation > 0]
    if broken:
        return "UNSTABLE", f"the winner broke the SLO when it was measured again: {broken[0].worst}"
    if all(m.score.violation > 0 for m in baseline):
        return "WIN", f"it keeps the SLO that the baseline breaks: {baseline[0].score.worst}"
    if delta - half > 0:
        return "WIN", "the interval lies above no gain"
    if delta + half < 0:
        return "UNSTABLE", "the baseline was better when both were measured again; keep the baseline"
    if half > NOISY:
        return "UNSTABLE", "the runs of one configuration differ too much to tell the two apart; add repeats"
    return "TIE", "the difference lies within the noise; keep the baseline"


def _noise(
    baseline: Sequence[Measurement], winner: Sequence[Measurement], rng: np.random.Generator
) -> tuple[float, int]:
    """Variance of one run's log goodness, and its degrees of freedom."""
    within = float(np.mean([_bootstrap_variance(m, rng) for m in (*baseline, *winner)]))
    freedom = len(baseline) + len(winner) - 2
    if freedom < 2:  # no repeats to learn from: the requests are all there is
        return within, max(1, min(_requests(m) for m in (*baseline, *winner)) - 1)
    squares = sum(float(np.var([log_goodness(m.score) for m in side])) * len(side) for side in (baseline, winner))
    return max(within, squares / freedom), freedom


def log_goodness(score: Score) -> float:
    """The logarithm of the value, turned so that larger is better; differences are relative gains."""
    value = math.log(max(score.value, 1e-12))
    return value if score.direction == "max" else -value


def _requests(measurement: Measurement) -> int:
    return sum(load.completed for load in measurement.metrics.loads)


def _bootstrap_variance(measurement: Measurement, rng: np.random.Generator) -> float:
    values = [log_goodness(score(_resampled(measurement.metrics, rng), measurement.context)) for _ in range(BOOTSTRAPS)]
    return float(np.var(values))


def _resampled(metrics: Metrics, rng: np.random.Generator) -> Metrics:
    return replace(metrics, loads=tuple(_resampled_load(load, rng) for load in metrics.loads))


def _resampled_load(load: LoadMetrics, rng: np.random.Generator) -> LoadMetrics:
    chosen = _blocks(len(load.samples.e2e_s), load.concurrency, rng)
    samples = RequestSamples(
        **{name: tuple(getattr(load.samples, name)[i] for i in chosen) for name in RequestSamples.__dataclass_fields__}
    )
    values = metric_names.summarise(samples, load.concurrency, load.values["error_ratio"])
    return replace(load, samples=samples, values=values)


def _blocks(count: int, length: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of a moving-block resample of ``count`` items, wrapping around."""
    length = max(1, min(length, count // 2))
    starts = rng.integers(0, count, size=-(-count // length))
    return ((starts[:, None] + np.arange(length)[None, :]) % count).ravel()[:count]
