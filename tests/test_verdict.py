"""WIN, TIE and UNSTABLE."""

from __future__ import annotations

import numpy as np
import pytest

from raytune_autotuner.objectives import Context
from raytune_autotuner.task.spec import Optimization
from raytune_autotuner.verdict import Measurement, compare
from tests.fakes.trials import sample_metrics

THROUGHPUT = Context(1, Optimization(objective="maximize_throughput"))


def runs(e2e_s: list[float], noise: float = 0.02, seed: int = 0, context: Context = THROUGHPUT) -> list[Measurement]:
    return [Measurement(sample_metrics(1, e, noise=noise, seed=seed + i), context) for i, e in enumerate(e2e_s)]


def test_a_clear_gain_is_a_win_and_the_interval_holds_the_truth() -> None:
    """Half the latency is twice the throughput."""
    verdict = compare(runs([2.0, 2.02, 1.98]), runs([1.0, 1.01, 0.99], seed=9), 0.95, seed=1)
    assert verdict.kind == "WIN"
    assert verdict.low < 1.0 < verdict.high
    assert verdict.gain == pytest.approx(1.0, abs=0.1)
    assert verdict.unit == "tokens/s"


def test_the_same_configuration_is_a_tie() -> None:
    """A difference within the noise is not called a win."""
    verdict = compare(runs([2.0, 2.02, 1.98]), runs([1.99, 2.01, 2.0], seed=9), 0.95, seed=1)
    assert verdict.kind == "TIE"
    assert verdict.low < 0 < verdict.high


def test_a_winner_that_turns_out_slower_is_unstable() -> None:
    """A search result that does not come back is not recommended."""
    verdict = compare(runs([1.0, 1.01, 0.99]), runs([2.0, 2.02, 1.98], seed=9), 0.95, seed=1)
    assert verdict.kind == "UNSTABLE"
    assert "baseline was better" in verdict.reason


def test_runs_that_lie_far_apart_are_unstable() -> None:
    """Three runs between 1 and 3 seconds say nothing about a 10 % gain."""
    verdict = compare(runs([1.0, 2.0, 3.0]), runs([0.9, 1.8, 2.7], seed=9), 0.95, seed=1)
    assert verdict.kind == "UNSTABLE"
    assert "differ too much" in verdict.reason


def test_a_winner_that_breaks_the_slo_when_measured_again_is_unstable() -> None:
    """The limit counts in the confirming runs too."""
    context = Context(1, Optimization(objective="maximize_throughput", slo={"e2e_p99_s": 1.05}))
    verdict = compare(runs([2.0, 2.0], context=context), runs([1.0, 1.2], context=context), 0.95, seed=1)
    assert verdict.kind == "UNSTABLE"
    assert "e2e_p99_s" in verdict.reason


def test_keeping_an_slo_that_the_baseline_breaks_is_a_win_by_itself() -> None:
    """Even when the objective is a little worse."""
    context = Context(1, Optimization(objective="maximize_throughput", slo={"ttft_p99_s": 0.15}))
    faster, slower = runs([1.0, 1.0], context=context), runs([2.0, 2.0], context=context)
    assert compare(slower, faster, 0.95, seed=1).kind == "WIN"


def test_one_run_each_relies_on_the_requests() -> None:
    """Without repeats the bootstrap over requests gives the interval."""
    verdict = compare(runs([2.0], noise=0.05), runs([1.0], noise=0.05, seed=5), 0.95, seed=1)
    assert verdict.kind == "WIN"
    assert verdict.high > verdict.gain > verdict.low


def test_nothing_to_compare_is_an_error() -> None:
    """A verdict needs both sides."""
    with pytest.raises(ValueError, match="at least one"):
        compare([], runs([1.0]), 0.95, seed=0)


def test_identical_configurations_seldom_win_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """An A/A test: 60 comparisons of equal configurations with 3 % noise between runs, 95 % confidence."""
    monkeypatch.setattr("raytune_autotuner.verdict.BOOTSTRAPS", 30)
    rng = np.random.default_rng(7)
    wins = 0
    for i in range(60):
        base, same = (list(2.0 * np.exp(0.03 * rng.standard_normal(3))) for _ in range(2))
        wins += compare(runs(base, seed=10 * i), runs(same, seed=10 * i + 5), 0.95, seed=i).kind == "WIN"
    assert wins <= 4
