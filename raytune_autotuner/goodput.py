"""Goodput: the requests, and output tokens, per second of those requests that keep their objectives.

As DistServe defines it (Zhong et al., OSDI 2024): a request counts when its own latencies keep the limits on a single
request, here ``ttft_s``, ``tpot_s`` and ``e2e_s`` of ``optimization.slo``; the attainment is the share of requests that
count; the capacity of a server is the goodput, per GPU, at the highest load that keeps the attainment
(``slo_attainment``, 0.9 where it is not given). A failed request never counts. A request whose answer is too short to
have a time per output token cannot break ``tpot_s``. Limits on a statistic (``ttft_p99_s``) are limits on the load as a
whole: they say which loads are borne at all, and do not single out requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.records import LoadMetrics, Metrics, RequestSamples

PER_REQUEST = ("ttft_s", "tpot_s", "e2e_s")
"""Limits on every single request, by the name of what is measured of it."""
ATTAINMENT = "slo_attainment"
DEFAULT_ATTAINMENT = 0.9
Slo = Mapping[str, float]


def request_limits(slo: Slo) -> dict[str, float]:
    """Those that a request keeps or breaks by itself."""
    return {name: limit for name, limit in slo.items() if name in PER_REQUEST}


def load_limits(slo: Slo) -> dict[str, float]:
    """Those on a load as a whole, with the share of its requests that have to keep theirs."""
    limits = {name: limit for name, limit in slo.items() if name not in PER_REQUEST}
    return {ATTAINMENT: DEFAULT_ATTAINMENT, **limits} if request_limits(slo) else limits


def with_goodput(metrics: Metrics, slo: Slo) -> Metrics:
    """The metrics with goodput and attainment among the values of each load."""
    limits = request_limits(slo)
    return replace(metrics, loads=tuple(_with_goodput(load, limits) for load in metrics.loads))


def _with_goodput(load: LoadMetrics, limits: Slo) -> LoadMetrics:
    if not load.samples.e2e_s:
        return replace(load, values={**load.values, ATTAINMENT: 0.0})
    good = strain(load.samples, limits) <= 1
    tokens = np.array(load.samples.output_tokens)
    rate = load.values["requests_per_s"]
    values = {
        "goodput_requests_per_s": rate * float(good.mean()),
        "goodput_tokens_per_s": rate * float((tokens * good).mean()),
        ATTAINMENT: float(good.mean()) * (1 - load.values["error_ratio"]),
    }
    return replace(load, values={**load.values, **values})


def strain(samples: RequestSamples, limits: Slo) -> NDArray[np.float64]:
    """How near each request came to the limits on a single request: the largest of its latencies over their limits."""
    worst = np.zeros(len(samples.e2e_s))
    for name, limit in limits.items():
        seconds = [0.0 if value is None else value for value in getattr(samples, name)]
        worst = np.maximum(worst, np.array(seconds) / limit)
    return worst


def bearable(load: LoadMetrics, slo: Slo) -> dict[str, float]:
    """The limits on a single request, widened by one factor until the load attains them."""
    limits = request_limits(slo)
    if not limits or not load.samples.e2e_s:
        return {}
    answered = 1 - load.values["error_ratio"]
    share = min(1.0, load_limits(slo)[ATTAINMENT] / answered) if answered > 0 else 1.0
    factor = float(np.quantile(strain(load.samples, limits), share, method="inverted_cdf"))
    return {name: limit * max(1.0, factor) for name, limit in limits.items()}
