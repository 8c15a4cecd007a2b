"""When a load is not worth its end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.benchmarks import Answered
from raytune_autotuner.cutoff import Course, hopeless
from raytune_autotuner.metrics import summarise
from raytune_autotuner.objectives import violation
from raytune_autotuner.records import Load, LoadMetrics, Metrics, RequestSamples

LEVEL = 4


def samples(ttft_s: Sequence[float]) -> RequestSamples:
    n = len(ttft_s)
    return RequestSamples(tuple(ttft_s), (0.01,) * n, tuple(t + 1.0 for t in ttft_s), (10.0,) * n, (100.0,) * n)


def course(firsts_s: Sequence[float], /, *, requests: int = 100, queue: Sequence[float] = (), **slo: float) -> Course:
    """Requests that end one after the other, five a second; a slow pace, so that few more can slip in at the end."""
    ended_s = tuple(0.2 * n + t for n, t in enumerate(firsts_s, 1))
    return Course(Load("D(1,1)", LEVEL), LEVEL, requests, slo, Answered(samples(firsts_s), ended_s), queue)


def kind(of: Course) -> str | None:
    failure = hopeless(of)
    return failure.kind if failure else None


@pytest.mark.parametrize(
    ("slow", "limit", "expected"),
    [
        (1, {"ttft_max_s": 1.0}, "slo_lost"),
        (1, {"ttft_p99_s": 1.0}, None),
        (4, {"ttft_p99_s": 1.0}, "slo_lost"),
        (8, {"ttft_p90_s": 1.0}, None),
        (14, {"ttft_p90_s": 1.0}, "slo_lost"),
        (5, {"ttft_mean_s": 1.0}, None),
        (25, {"ttft_mean_s": 1.0}, "slo_lost"),
        (8, {"ttft_s": 1.0}, None),
        (14, {"ttft_s": 1.0}, "slo_lost"),
        (14, {"ttft_s": 1.0, "slo_attainment": 0.5}, None),
        (14, {"output_tokens_per_s": 1e9}, None),
        (14, {"tpot_p99_s": 1.0}, None),
    ],
)
def test_lost_when_the_rest_cannot_mend_it(slow: int, limit: dict[str, float], expected: str | None) -> None:
    """Of a hundred requests; those over a limit came early, and nothing is assumed of those to come."""
    assert kind(course([0.1] * LEVEL + [5.0] * slow, **limit)) == expected


def test_the_first_wave_is_not_counted() -> None:
    """It meets an empty server, and its latencies are left out of the metrics as well."""
    assert kind(course([50.0] * LEVEL, ttft_max_s=1.0)) is None
    assert kind(course([50.0] * LEVEL + [0.1] * 5, ttft_max_s=1.0)) is None


def test_the_reason_names_the_limit_and_the_numbers() -> None:
    """What stands in the record."""
    failure = hopeless(course([0.1] * LEVEL + [5.0] * 5, ttft_p99_s=1.0))
    assert failure is not None
    assert "ttft_p99_s (limit 1 s): 5 of at most" in failure.reason
    assert "took longer" in failure.reason
    mean = hopeless(course([0.1] * LEVEL + [50.0] * 5, e2e_mean_s=1.0))
    assert mean is not None
    assert "together" in mean.reason


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=60),
    st.lists(st.floats(0.001, 10), max_size=60),
    st.sampled_from(["ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "ttft_max_s", "ttft_mean_s", "ttft_s", "e2e_p95_s"]),
    st.floats(0.05, 8),
)
def test_what_is_lost_stays_lost(early: list[float], late: list[float], name: str, limit: float) -> None:
    """Whatever the remaining requests are like, the whole load breaks a limit that was called lost in its midst."""
    requests = LEVEL + len(early) + len(late)
    now = course([0.1] * LEVEL + early, requests=requests, **{name: limit})
    failure = hopeless(now)
    if failure is None or failure.kind != "slo_lost":
        return
    rest = samples([*early, *late])
    values = summarise(rest, LEVEL, 0.0)
    whole = LoadMetrics(now.load, LEVEL, requests, 0, 1.0, values, rest)
    assert violation(Metrics(0, (whole,), 1.0, 0.0), {name: limit})[0] > 0


RISING = [0.1] * LEVEL + [0.2 * n for n in range(1, 25)]
QUEUE = [0, 1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ("ttft_s", "queue", "slo", "expected"),
    [
        (RISING, QUEUE, {"ttft_p50_s": 2.0}, "saturated"),
        (RISING, QUEUE, {"e2e_p50_s": 3.0}, "saturated"),
        (RISING, QUEUE, {"ttft_p50_s": 20.0}, None),
        (RISING, QUEUE, {}, None),
        (RISING, [0.0] * 8, {"ttft_p50_s": 2.0}, None),
        (RISING, QUEUE[::-1], {"ttft_p50_s": 2.0}, None),
        (RISING, [], {"ttft_p50_s": 2.0}, None),
        (RISING[::-1], QUEUE, {"ttft_p50_s": 2.0}, None),
        ([3.0] * 28, QUEUE, {"ttft_p50_s": 2.0}, None),
        (RISING[:12], QUEUE, {"ttft_p50_s": 0.5}, None),
        (RISING, QUEUE, {"ttft_p50_s": 4.0}, None),
    ],
)
def test_saturated_when_it_falls_behind_and_breaks_a_limit(
    ttft_s: list[float], queue: list[float], slo: dict[str, float], expected: str | None
) -> None:
    """TTFT must rise, the queue must not shrink, and a limit be broken; each of them alone is not enough."""
    assert kind(course(ttft_s, requests=1000, queue=queue, **slo)) == expected


def test_the_saturation_is_told_in_numbers() -> None:
    """From which time to first token to which, with how many in the queue."""
    failure = hopeless(course(RISING, requests=1000, queue=QUEUE, ttft_p50_s=2.0))
    assert failure is not None
    assert "0.7 s in the first quarter, 4.3 s in the last" in failure.reason
    assert "3.5 requests in the queue" in failure.reason
