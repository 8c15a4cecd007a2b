"""The names of what is measured, and how they follow from the requests of one load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.records import Direction, LoadMetrics, RequestSamples

LATENCIES = ("ttft", "tpot", "e2e")
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class MetricInfo:
    """What a metric's numbers mean: which way is better, and their unit."""

    direction: Direction
    unit: str
    at_best: bool = False
    """Of several levels the best one counts, since a server is not slower for having been measured at a low one."""


METRICS: dict[str, MetricInfo] = {
    **{
        f"{latency}_{statistic}_s": MetricInfo("min", "s")
        for latency in LATENCIES
        for statistic in ("mean", *(f"p{percentile}" for percentile in PERCENTILES), "max")
    },
    "output_tokens_per_s": MetricInfo("max", "tokens/s", at_best=True),
    "input_tokens_per_s": MetricInfo("max", "tokens/s", at_best=True),
    "total_tokens_per_s": MetricInfo("max", "tokens/s", at_best=True),
    "requests_per_s": MetricInfo("max", "requests/s", at_best=True),
    # These two describe the load rather than the engine: a limit on them is a lower one.
    "output_tokens_mean": MetricInfo("max", "tokens", at_best=True),
    "input_tokens_mean": MetricInfo("max", "tokens", at_best=True),
    "error_ratio": MetricInfo("min", "1"),
    # These three count the requests that keep the SLO (see ``goodput``).
    "goodput_requests_per_s": MetricInfo("max", "requests/s", at_best=True),
    "goodput_tokens_per_s": MetricInfo("max", "tokens/s", at_best=True),
    "slo_attainment": MetricInfo("max", "1"),
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
    ranked = np.sort(seconds).tolist()
    return {
        f"{name}_mean_s": float(seconds.mean()),
        **{f"{name}_p{p}_s": _percentile(ranked, p) for p in PERCENTILES},
        f"{name}_max_s": ranked[-1],
    }


def _percentile(ranked: Sequence[float], percent: float) -> float:
    """What ``numpy.percentile`` gives, which takes a quarter of a millisecond to look at its arguments."""
    at = percent / 100 * (len(ranked) - 1)
    below = int(at)
    low, high = ranked[below], ranked[min(below + 1, len(ranked) - 1)]
    share = at - below
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


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


def merge(repeats: Sequence[LoadMetrics]) -> LoadMetrics:
    """The same load measured several times as one: all requests together, genai-bench's own figures averaged."""
    first, errors = repeats[0], sum(each.errors for each in repeats)
    completed = sum(each.completed for each in repeats)
    if len(repeats) == 1:
        return first
    columns = RequestSamples.__dataclass_fields__
    samples = RequestSamples(
        *(tuple(chain.from_iterable(getattr(each.samples, column) for each in repeats)) for column in columns)
    )
    names = set.intersection(*(set(each.reported) for each in repeats))
    return LoadMetrics(
        load=first.load,
        concurrency=first.concurrency,
        completed=completed,
        errors=errors,
        duration_s=sum(each.duration_s for each in repeats),
        values=summarise(samples, first.concurrency, error_ratio(errors, completed)),
        samples=samples,
        error_codes=dict(sum((Counter(each.error_codes) for each in repeats), Counter[str]())),
        reported={name: sum(each.reported[name] for each in repeats) / len(repeats) for name in sorted(names)},
        client_cpu=max((each.client_cpu for each in repeats if each.client_cpu is not None), default=None),
        cut=next((each.cut for each in repeats if each.cut), ""),
    )
