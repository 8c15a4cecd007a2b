"""Goodput: which requests count, and what limits a load would keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.goodput import bearable, load_limits, request_limits, strain, with_goodput
from raytune_autotuner.metrics import METRICS, summarise
from raytune_autotuner.objectives import Context, reachable, score, violation
from raytune_autotuner.records import Load, LoadMetrics, Metrics, RequestSamples
from raytune_autotuner.task.spec import Optimization


def load(*e2e_s: float, level: int = 2, errors: float = 0.0, tokens: tuple[float, ...] = ()) -> LoadMetrics:
    """Requests of these durations; the first token comes after a tenth, the others evenly."""
    samples = RequestSamples(
        ttft_s=tuple(0.1 * e for e in e2e_s),
        tpot_s=tuple(0.01 * e for e in e2e_s),
        e2e_s=e2e_s,
        input_tokens=(10.0,) * len(e2e_s),
        output_tokens=tokens or (90.0,) * len(e2e_s),
    )
    values = summarise(samples, level, errors)
    return LoadMetrics(Load("D(10,90)", level), level, len(e2e_s), 0, 1.0, values, samples)


def metrics(*loads: LoadMetrics) -> Metrics:
    return Metrics(0, loads, 1.0, 0.0)


def valued(of: LoadMetrics, slo: dict[str, float]) -> LoadMetrics:
    (found,) = with_goodput(metrics(of), slo).loads
    return found


def test_a_request_counts_when_it_keeps_every_limit_on_a_request() -> None:
    """Of four requests two are quick enough in all respects; goodput is their share of the rate."""
    found = valued(load(1.0, 1.0, 3.0, 5.0), {"ttft_s": 0.4, "e2e_s": 2.0})
    assert found.values["slo_attainment"] == 0.5
    assert found.values["goodput_requests_per_s"] == pytest.approx(0.5 * found.values["requests_per_s"])


def test_tokens_are_those_of_the_requests_that_count() -> None:
    """A long answer that comes too late adds nothing."""
    found = valued(load(1.0, 3.0, tokens=(10.0, 1000.0)), {"e2e_s": 2.0})
    assert found.values["goodput_tokens_per_s"] == pytest.approx(found.values["requests_per_s"] * 10 / 2)


def test_without_limits_on_a_request_every_answered_one_counts() -> None:
    """Limits on a statistic are limits on the load, and single no request out."""
    found = valued(load(1.0, 9.0), {"e2e_p99_s": 2.0})
    assert found.values["goodput_requests_per_s"] == pytest.approx(found.values["requests_per_s"])
    assert load_limits({"e2e_p99_s": 2.0}) == {"e2e_p99_s": 2.0}


def test_failed_requests_keep_nothing() -> None:
    """They lower the attainment, but not the rate of those that were answered."""
    found = valued(load(1.0, 1.0, errors=0.2), {"e2e_s": 2.0})
    assert found.values["slo_attainment"] == pytest.approx(0.8)


def test_an_answer_without_a_time_per_token_cannot_break_it() -> None:
    """A single token has none."""
    one = load(1.0)
    one = replace(one, samples=replace(one.samples, tpot_s=(None,)))
    assert valued(one, {"tpot_s": 1e-9}).values["slo_attainment"] == 1.0


def test_a_load_without_an_answer_attains_nothing() -> None:
    """It has no goodput, and breaks the share that has to keep the limits."""
    none = load()
    assert valued(none, {"e2e_s": 1.0}).values == {"error_ratio": 0.0, "slo_attainment": 0.0}
    assert bearable(none, {"e2e_s": 1.0}) == {}
    assert violation(metrics(none), {"e2e_s": 1.0})[0] > 0


def test_nine_tenths_have_to_keep_the_limits_unless_the_slo_says_otherwise() -> None:
    """Eight of ten break the SLO, and keep it when 0.8 is enough."""
    ten = metrics(load(*[1.0] * 8, 3.0, 3.0))
    slo = {"e2e_s": 2.0}
    assert violation(ten, slo) == (pytest.approx(0.125), "slo_attainment 0.8, limit >= 0.9")
    assert violation(ten, {**slo, "slo_attainment": 0.8}) == (0.0, "")
    assert request_limits({**slo, "slo_attainment": 0.8}) == slo


def test_the_attainment_must_be_kept_at_every_level() -> None:
    """It is no throughput, of which the best level counts."""
    both = metrics(load(*[1.0] * 10), load(*[3.0] * 10, level=4))
    assert violation(both, {"e2e_s": 2.0})[0] > 0
    assert METRICS["goodput_requests_per_s"].at_best
    assert not METRICS["slo_attainment"].at_best


def test_goodput_can_be_scored_per_gpu_and_weighted() -> None:
    """Two requests in flight of 1 s each, on two GPUs; the same figure has a name among the metrics."""
    slo = {"e2e_s": 2.0}
    found = metrics(load(1.0, 1.0))
    assert score(found, Context(2, Optimization(objective="maximize_goodput", slo=slo))).value == pytest.approx(1.0)
    tokens = score(found, Context(2, Optimization(objective="maximize_goodput_tokens", slo=slo)))
    assert (tokens.value, tokens.unit) == (pytest.approx(90.0), "tokens/s/GPU")
    weighted = Optimization(objective="weighted", weights={"goodput_requests_per_s": 1.0}, slo=slo)
    assert score(found, Context(2, weighted)).value == pytest.approx(2.0)
    several = Optimization(objectives=("goodput_requests_per_s", "e2e_p99_s"), slo=slo)
    assert score(found, Context(2, several)).values["goodput_requests_per_s"] == pytest.approx(2.0)


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=60),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
    st.sampled_from([0.5, 0.9, 0.99, 1.0]),
)
def test_the_reachable_limits_are_kept_and_hardly_any_tighter_ones(
    seconds: list[float], e2e_s: float, ttft_s: float, share: float
) -> None:
    """Whatever was measured: it keeps what is called reachable, which is the SLO itself when that is kept."""
    found = metrics(load(*seconds))
    slo = {"e2e_s": e2e_s, "ttft_s": ttft_s, "slo_attainment": share, "e2e_p90_s": e2e_s}
    near = reachable(found, slo)
    relaxed = {name: limit * (1 + 1e-9) for name, limit in near.items()}
    assert violation(found, {**relaxed, "slo_attainment": share})[0] == 0
    if violation(found, slo)[0] == 0:
        assert near == {name: pytest.approx(limit) for name, limit in slo.items() if name != "slo_attainment"}
    else:
        assert any(near[name] > slo[name] for name in near)


def test_the_strain_is_that_of_the_tightest_limit() -> None:
    """A request at half of one limit and at twice another one strains by two."""
    samples = load(2.0).samples
    assert strain(samples, {"e2e_s": 4.0, "ttft_s": 0.1}).tolist() == [2.0]
    assert strain(samples, {}).tolist() == [0.0]
