"""The arithmetic of metrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.metrics import METRICS, PERCENTILES, _percentile, error_ratio, steady, summarise
from raytune_autotuner.records import RequestSamples, Rung

SECONDS = st.floats(1e-4, 1e4)
TOKENS = st.integers(0, 100_000).map(float)
REQUEST = st.tuples(SECONDS, st.none() | SECONDS, SECONDS, TOKENS, TOKENS)


def samples_of(requests: list[tuple[float, float | None, float, float, float]]) -> RequestSamples:
    return RequestSamples(*(tuple(column) for column in zip(*requests, strict=True)))


def test_throughput_follows_the_closed_loop_law() -> None:
    """Four clients whose requests take 2 s on average finish two a second, each with its mean tokens."""
    samples = samples_of([(0.1, 0.01, 1.0, 100, 10), (0.3, 0.03, 3.0, 300, 30)])
    values = summarise(samples, concurrency=4, errors=0)
    assert values["requests_per_s"] == pytest.approx(2.0)
    assert values["output_tokens_per_s"] == pytest.approx(40.0)
    assert values["input_tokens_per_s"] == pytest.approx(400.0)
    assert values["total_tokens_per_s"] == pytest.approx(440.0)
    assert values["output_tokens_mean"] == pytest.approx(20.0)
    assert values["input_tokens_mean"] == pytest.approx(200.0)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60))
def test_percentiles_are_those_of_numpy(seconds: list[float]) -> None:
    """Whatever it interpolates between."""
    found = [_percentile(sorted(seconds), percent) for percent in PERCENTILES]
    assert found == pytest.approx(np.percentile(seconds, PERCENTILES).tolist(), rel=1e-12)


def test_percentiles_are_interpolated_between_requests() -> None:
    """The percentiles of 0..100 ms are those numbers themselves."""
    requests = [(i / 1000, None, 1.0, 1.0, 1.0) for i in range(101)]
    values = summarise(samples_of(requests), 1, 0)
    found = {name: values[f"ttft_{name}_s"] for name in ("mean", "p50", "p90", "p95", "p99", "max")}
    assert found == pytest.approx({"mean": 0.05, "p50": 0.05, "p90": 0.09, "p95": 0.095, "p99": 0.099, "max": 0.1})


@pytest.mark.parametrize(
    ("errors", "completed", "ratio"), [(0, 2, 0.0), (2, 2, 0.5), (1, 3, 0.25), (3, 0, 1.0), (0, 0, 0.0)]
)
def test_error_ratio_counts_failed_against_all(errors: int, completed: int, ratio: float) -> None:
    """The error ratio is the share of failed requests among all that ended."""
    assert error_ratio(errors, completed) == pytest.approx(ratio)


def queue(service_s: float, clients: int, requests: int) -> RequestSamples:
    """One server, one request at a time, first come first served; every client asks again at once."""
    waits = [min(n + 1, clients) * service_s for n in range(requests)]
    return samples_of([(w, 0.01, w, 10.0, 100.0) for w in waits])


def batch(service_s: float, clients: int, requests: int) -> RequestSamples:
    """A server that works on all clients at the same time."""
    return samples_of([(0.1, 0.01, service_s, 10.0, 100.0)] * requests)


@pytest.mark.parametrize("clients", [1, 4, 8])
@pytest.mark.parametrize("waves", [2, 3, 10])
def test_the_first_wave_does_not_count(clients: int, waves: int) -> None:
    """Then a server that queues and one that batches are both read right: 1 request per second each."""
    queued = steady(queue(1.0, clients, waves * clients), clients)
    batched = steady(batch(float(clients), clients, waves * clients), clients)
    for samples in (queued, batched):
        assert len(samples.e2e_s) == (waves - 1) * clients
        assert summarise(samples, clients, 0.0)["requests_per_s"] == pytest.approx(1.0)


def test_with_less_than_two_waves_everything_counts() -> None:
    """Nothing is thrown away that cannot be spared."""
    samples = queue(1.0, 4, 7)
    assert steady(samples, 4) is samples


@pytest.mark.parametrize(("asked", "level", "sent"), [(8, 1, 8), (8, 4, 8), (8, 5, 10), (1, 64, 128)])
def test_a_load_sends_two_waves_at_least(asked: int, level: int, sent: int) -> None:
    """So that one is left to count."""
    assert Rung(0, (), asked, 1).requests(level) == sent


def test_nothing_measured_leaves_only_the_error_ratio() -> None:
    """Without a completed request there is no latency and no throughput to invent."""
    assert summarise(RequestSamples((), (), (), (), ()), 4, 0) == {"error_ratio": 0.0}


def test_answers_without_a_token_pace_have_no_tpot() -> None:
    """Tasks without output tokens have no metric per output token; a request without one is left out of it."""
    none = summarise(samples_of([(0.1, None, 0.1, 10, 0)]), 1, 0)
    assert not any(name.startswith("tpot") for name in none)
    assert none["output_tokens_per_s"] == 0
    some = summarise(samples_of([(0.1, None, 0.1, 10, 1), (0.1, 0.02, 0.1, 10, 5)]), 1, 0)
    assert some["tpot_mean_s"] == pytest.approx(0.02)


def test_requests_that_take_no_time_do_not_divide_by_zero() -> None:
    """A clock that did not move gives no throughput instead of an error."""
    assert summarise(samples_of([(0.0, None, 0.0, 1, 1)]), 1, 0)["requests_per_s"] == 0


@given(st.lists(REQUEST, min_size=1, max_size=50), st.integers(1, 512), st.integers(0, 100))
def test_every_value_has_a_name_and_is_in_order(requests: list[tuple], concurrency: int, errors: int) -> None:
    """All values are known metrics and finite; percentiles rise up to the largest sample."""
    values = summarise(samples_of(requests), concurrency, errors)
    assert set(values) <= set(METRICS)
    assert all(np.isfinite(value) and value >= 0 for value in values.values())
    for latency, column in (("ttft", 0), ("e2e", 2)):
        ladder = [values[f"{latency}_{name}_s"] for name in ("p50", "p90", "p95", "p99", "max")]
        assert ladder == sorted(ladder)
        assert ladder[-1] == max(request[column] for request in requests)
    assert values["total_tokens_per_s"] == pytest.approx(values["input_tokens_per_s"] + values["output_tokens_per_s"])


@given(st.lists(REQUEST, min_size=1, max_size=20), st.integers(1, 64))
def test_throughput_grows_with_concurrency_at_equal_latency(requests: list[tuple], concurrency: int) -> None:
    """The same latencies at twice the concurrency are twice the throughput."""
    once, twice = (summarise(samples_of(requests), factor * concurrency, 0) for factor in (1, 2))
    assert twice["output_tokens_per_s"] == pytest.approx(2 * once["output_tokens_per_s"])


def test_directions_say_what_is_better() -> None:
    """Latencies and errors are better when small, throughput when large."""
    assert {info.direction for name, info in METRICS.items() if name.endswith(("mean_s", "p99_s", "ratio"))} == {"min"}
    assert {info.direction for name, info in METRICS.items() if name.endswith("_per_s")} == {"max"}
    assert METRICS["ttft_p99_s"].unit == "s"
