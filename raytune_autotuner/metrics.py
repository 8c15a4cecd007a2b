"""The names of what is measured, and how they follow from the requests of one load."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.records import Direction, RequestSamples

LATENCIES = ("ttft", "tpot", "e2e")
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class MetricInfo:
    """What a metric's numbers mean: which way is better, and their unit."""

    direction: Direction
    unit: str


METRICS: dict[str, MetricInfo] = {
    **{
        f"{latency}_{statistic}_s": MetricInfo("min", "s")
        for latency in LATENCIES
        for statistic in ("mean", *(f"p{percentile}" for percentile in PERCENTILES), "max")
    },
    "output_tokens_per_s": MetricInfo("max", "tokens/s"),
    "input_tokens_per_s": MetricInfo("max", "tokens/s"),
    "total_tokens_per_s": MetricInfo("max", "tokens/s"),
    "requests_per_s": MetricInfo("max", "requests/s"),
    # These two describe the load rather than the engine: a limit on them is a lower one.
    "output_tokens_mean": MetricInfo("max", "tokens"),
    "input_tokens_mean": MetricInfo("max", "tokens"),
    "error_ratio": MetricInfo("min", "1"),
}


def summarise(samples: RequestSamples, concurrency: int, errors: float) -> dict[str, float]:
    """The metrics of one load, by the names of ``METRICS``; cheap enough for a bootstrap to call.

    ``errors`` is the share of failed requests. Throughput follows from the closed-loop law, concurrency × mean
    tokens / mean end-to-end latency: counting what was finished within a duration loses the requests in flight at
    its end (about 9 % in a short run). The law holds in the steady state only: see ``steady``.
    A metric that nothing was measured for is absent: ``tpot_*`` without long enough answers, and everything but
    ``error_ratio`` without a completed request.
    """
    values = {"error_ratio": errors}
    for name, column in (("ttft", samples.ttft_s), ("tpot", samples.tpot_s), ("e2e", samples.e2e_s)):
        values.update(_latency(name, _known(column)))
    if samples.e2e_s:
        values.update(_throughput(samples, concurrency))
    return values


def error_ratio(errors: int, completed: int) -> float:
    """The share of failed requests among all that ended."""
    return errors / (errors + completed) if errors + completed else 0.0


def steady(samples: RequestSamples, concurrency: int) -> RequestSamples:
    """The requests without the first wave, when at least another wave is left.

    All clients start in the same moment, into an empty server. Where requests queue, the first ones wait for
    fewer others than any later one (the law then reads up to 80 % too much); where they do not, they share one
    burst of prefills. Neither happens again later.
    """
    if len(samples.e2e_s) < 2 * concurrency:
        return samples
    columns = RequestSamples.__dataclass_fields__
    return RequestSamples(**{name: getattr(samples, name)[concurrency:] for name in columns})


def _known(column: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([value for value in column if value is not None], dtype=np.float64)


def _latency(name: str, seconds: NDArray[np.float64]) -> dict[str, float]:
    if not seconds.size:
        return {}
    percentiles = np.percentile(seconds, PERCENTILES)
    return {
        f"{name}_mean_s": float(seconds.mean()),
        **{f"{name}_p{p}_s": float(value) for p, value in zip(PERCENTILES, percentiles, strict=True)},
        f"{name}_max_s": float(seconds.max()),
    }


def _throughput(samples: RequestSamples, concurrency: int) -> dict[str, float]:
    e2e_mean_s = float(np.mean(samples.e2e_s))
    requests_per_s = concurrency / e2e_mean_s if e2e_mean_s > 0 else 0.0
    output, input_ = float(np.mean(samples.output_tokens)), float(np.mean(samples.input_tokens))
    return {
        "requests_per_s": requests_per_s,
        "output_tokens_per_s": requests_per_s * output,
        "input_tokens_per_s": requests_per_s * input_,
        "total_tokens_per_s": requests_per_s * (output + input_),
        "output_tokens_mean": output,
        "input_tokens_mean": input_,
    }
