"""Scores, limits and their order."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.objectives import OBJECTIVES, WORST, Context, loosened, rank, scalar, score, violation
from raytune_autotuner.records import Metrics
from raytune_autotuner.task.spec import Optimization
from tests.fakes.trials import sample_metrics


def two_levels(slow: float = 4.0, fast: float = 2.0) -> Metrics:
    """Level 1 at ``fast`` and level 4 at ``slow`` seconds per request, 100 tokens each."""
    first, second = sample_metrics(0, fast, level=1), sample_metrics(0, slow, level=4)
    return Metrics(0, (*first.loads, *second.loads), 0.0, 0.0)


def scored(objective: str, gpus: int = 1, **settings: object) -> float:
    optimization = Optimization.model_validate({"objective": objective, **settings})
    return score(two_levels(), Context(gpus, optimization)).value


@pytest.mark.parametrize(
    ("objective", "settings", "expected"),
    [
        ("minimize_latency", {}, 3.0),
        ("maximize_throughput", {}, 100.0),
        ("maximize_input_throughput", {}, 100.0),
        ("maximize_requests", {}, 1.0),
        ("minimize_ttft", {}, 0.3),
        ("minimize_tpot", {}, 0.9 * 3.0 / 99),
        ("maximize_throughput_per_gpu", {"gpus": 4}, 25.0),
        ("minimize_cost", {"gpus": 2, "price_per_gpu_hour": 3.6}, 20.0),
        ("weighted", {"weights": {"output_tokens_per_s": 1.0}}, 100.0),
        ("weighted", {"weights": {"output_tokens_per_s": 1.0, "e2e_mean_s": 1.0}}, math.sqrt(100.0 / 3.0)),
    ],
)
def test_each_objective_by_hand(objective: str, settings: dict[str, object], expected: float) -> None:
    """Throughput is the best level's (4 requests of 100 tokens in 4 s), a latency the mean of the levels."""
    gpus = int(str(settings.pop("gpus", 1))) if "gpus" in settings else 1
    assert scored(objective, gpus, **settings) == pytest.approx(expected)


def test_every_objective_is_tested_above_and_has_help() -> None:
    """A new objective cannot be added without a unit, a help text and a known direction."""
    for name, objective in OBJECTIVES.items():
        assert objective.help, name
        assert objective.direction in ("min", "max")


def test_loss_is_smaller_for_the_better_whatever_the_direction() -> None:
    """Twice as fast is a smaller loss for a latency and for a throughput alike."""
    for name in ("minimize_latency", "maximize_throughput"):
        context = Context(1, Optimization(objective=name))
        assert score(two_levels(2, 1), context).loss < score(two_levels(4, 2), context).loss


def test_a_latency_limit_binds_at_every_level_and_a_throughput_limit_at_the_best() -> None:
    """Level 4 breaks the latency limit; level 4 alone reaches the throughput limit."""
    assert violation(two_levels(), {"e2e_p99_s": 3.0})[0] == pytest.approx(1 / 3)
    assert violation(two_levels(), {"output_tokens_per_s": 99.0}) == (0.0, "")
    assert violation(two_levels(), {"output_tokens_per_s": 200.0})[0] == pytest.approx(1.0)


def test_the_worst_limit_is_named_with_value_and_bound() -> None:
    """Of several broken limits the one broken most is told in words."""
    excess, words = violation(two_levels(), {"e2e_p99_s": 3.0, "ttft_p99_s": 0.1})
    assert excess == pytest.approx(3.0)
    assert "ttft_p99_s" in words
    assert "0.1" in words


def test_a_limit_on_what_was_not_measured_is_broken() -> None:
    """A missing metric never passes for a kept limit."""
    metrics = two_levels()
    stripped = Metrics(
        0,
        tuple(
            type(load)(**{**load.__dict__, "values": {k: v for k, v in load.values.items() if k != "ttft_p99_s"}})
            for load in metrics.loads
        ),
        0.0,
        0.0,
    )
    assert violation(stripped, {"ttft_p99_s": 1.0}) == (WORST, "ttft_p99_s not measured, limit <= 1")


def test_a_trial_that_breaks_the_slo_never_ranks_above_one_that_keeps_it() -> None:
    """However fast the offender is."""
    slo = {"e2e_p99_s": 3.0}
    offender = score(two_levels(4, 0.001), Context(1, Optimization(objective="minimize_ttft", slo=slo)))
    keeper = score(two_levels(2.9, 2.9), Context(1, Optimization(objective="minimize_ttft", slo=slo)))
    assert offender.loss < keeper.loss
    assert rank(keeper) < rank(offender)


def test_loosened_limits_are_wider_on_their_own_side() -> None:
    """A latency may be longer, a throughput lower."""
    slo = {"ttft_s": 1.0, "e2e_p99_s": 2.0, "output_tokens_per_s": 100.0, "error_ratio": 0.02}
    assert loosened(slo, 2.0) == {"ttft_s": 2.0, "e2e_p99_s": 4.0, "output_tokens_per_s": 50.0, "error_ratio": 0.04}


finite = st.floats(-1e9, 1e9)
excess = st.one_of(st.just(0.0), st.floats(1e-3, WORST))


@given(finite, excess, finite, excess)
def test_the_scalar_keeps_the_order_of_the_rank(loss_a: float, v_a: float, loss_b: float, v_b: float) -> None:
    """What schedulers and searchers see sorts trials as ``rank`` does, within [0, 2]."""
    a, b = scalar(loss_a, v_a), scalar(loss_b, v_b)
    assert 0 <= a <= 2
    if (min(v_a, 1), loss_a if v_a == 0 else 0) < (min(v_b, 1), loss_b if v_b == 0 else 0) and (v_a == 0):
        assert a <= b
    if v_a > v_b:
        assert a >= b
