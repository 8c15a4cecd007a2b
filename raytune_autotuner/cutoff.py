"""Whether a load that runs can still come to a good end. Pure.

``lost``: so many requests are over a limit already that it is broken whatever the remaining ones do. That is certain,
and the end of the load would only confirm it. ``saturated``: the engine falls behind. Time to first token rises from
quarter to quarter of the load while requests queue, and a limit on a latency is broken by what was measured, most of
all by the last quarter. (As many requests as the level says are in flight, so the queue is bounded by it: it need not
grow for ever, but it must not shrink.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from raytune_autotuner.benchmarks import Answered
from raytune_autotuner.benchmarks.genai_live import so_far
from raytune_autotuner.goodput import ATTAINMENT, load_limits, request_limits, strain
from raytune_autotuner.objectives import violation
from raytune_autotuner.records import Failure, Load, Metrics

LEAST_REQUESTS = 16
"""Fewer tell no trend."""
QUARTERS = 4
RISE = 1.5
"""So many times the first quarter's is the last one's, when something rises."""
SHORT_SLACK = 1.3
"""A short rung breaks limits that the whole one keeps: it is ended for those alone that it breaks by far."""
POLL_S = 2.0
"""genai-bench looks once a second whether it has enough requests; those that end meanwhile count as well."""


@dataclass(frozen=True)
class Course:
    """A load that runs, and what it has to keep."""

    load: Load
    concurrency: int
    requests: int
    """How many it is to send."""
    slo: Mapping[str, float]
    answered: Answered
    queue: Sequence[float] = ()
    """The engine's queue since the load began, looked at regularly; empty when it is not known."""


def hopeless(course: Course) -> Failure | None:
    """Why the load is not worth its end; ``None`` when it may be."""
    if len(course.answered.samples.e2e_s) <= course.concurrency:
        return None  # the first wave is not counted
    if reason := lost(course):
        return Failure("slo_lost", reason)
    if reason := saturated(course):
        return Failure("saturated", reason)
    return None


def lost(course: Course) -> str:
    """The limit that nothing can mend any more, in words; empty when there is none."""
    found = (_lost(course, name, limit) for name, limit in load_limits(course.slo).items())
    return next(filter(None, found), "")


def _lost(course: Course, name: str, limit: float) -> str:
    counted = _counted_at_most(course)
    said = re.fullmatch(r"(ttft|tpot|e2e)_(mean|max|p\d+)_s", name)
    if said:
        column = getattr(course.answered.samples, f"{said[1]}_s")[course.concurrency :]
        values = np.array([value for value in column if value is not None])
        return _latency_lost(f"{name} (limit {limit:g} s)", said[2], values, limit, counted)
    if name == ATTAINMENT:
        strained = strain(course.answered.samples, request_limits(course.slo))[course.concurrency :]
        misses = int((strained > 1).sum())
        if misses > (1 - limit) * counted:
            return f"{name} (limit {limit:g}): {misses} of at most {counted} requests broke their own limits"
    return ""


def _latency_lost(name: str, statistic: str, seconds: np.ndarray, limit: float, counted: int) -> str:
    over = int((seconds > limit).sum())
    if statistic == "mean":
        total_s = float(seconds.sum())
        lost_ = total_s > limit * counted
        return f"{name}: {len(seconds)} of at most {counted} requests took {total_s:.4g} s together" if lost_ else ""
    share = 1.0 if statistic == "max" else int(statistic[1:]) / 100
    enough = counted - math.floor(share * (counted - 1))
    return f"{name}: {over} of at most {counted} requests took longer, {enough} are enough" if over >= enough else ""


def _counted_at_most(course: Course) -> int:
    """How many requests the load will be judged by, at most: without the first wave."""
    span_s = course.answered.span_s
    rate = len(course.answered.samples.e2e_s) / span_s if span_s > 0 else 0.0
    left = max(0, course.requests - course.concurrency) + math.ceil(POLL_S * rate)
    return max(left, len(course.answered.samples.e2e_s) - course.concurrency)


def saturated(course: Course) -> str:
    """What shows that the engine falls behind, in words; empty when nothing does."""
    ttft_s, e2e_s = _by_start(course)
    if len(ttft_s) < max(LEAST_REQUESTS, 2 * course.concurrency) or len(course.queue) < QUARTERS:
        return ""
    queue, ttft = _quarters(course.queue), _quarters(ttft_s)
    rising = all(a < b for a, b in pairwise(ttft)) and ttft[-1] >= RISE * ttft[0]
    queued = queue[-1] > 0 and all(a <= b for a, b in pairwise(queue))
    over = _over(course.slo, {"ttft": ttft[-1], "e2e": _quarters(e2e_s)[-1]})
    if not (rising and queued and over):
        return ""
    found = so_far(course.load, course.concurrency, course.answered)
    excess, worst = violation(Metrics(0, (found,), 0.0, 0.0), course.slo)
    if not excess:
        return ""
    return (
        f"time to first token rises ({ttft[0]:.3g} s in the first quarter, {ttft[-1]:.3g} s in the last) with "
        f"{queue[-1]:g} requests in the queue, and {worst}"
    )


def _by_start(course: Course) -> tuple[list[float], list[float]]:
    """Time to first token and whole time of the requests after the first wave, in the order they were sent."""
    answered = course.answered
    rows = zip(answered.ended_s, answered.samples.e2e_s, answered.samples.ttft_s, strict=True)
    sent = sorted((ended - e2e, ttft, e2e) for ended, e2e, ttft in rows)[course.concurrency :]
    return [ttft for _, ttft, _ in sent], [e2e for _, _, e2e in sent]


def _quarters(values: Sequence[float]) -> list[float]:
    return [median(part.tolist()) for part in np.array_split(np.array(values), QUARTERS)]


def _over(slo: Mapping[str, float], typical_s: Mapping[str, float]) -> bool:
    """Whether the typical request of late is over a limit on its latency."""
    return any(typical_s.get(name.partition("_")[0], 0.0) > limit for name, limit in slo.items() if name.endswith("_s"))
