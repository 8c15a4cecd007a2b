"""Which configurations no other one beats in every respect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raytune_autotuner import pareto
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import Outcome, Purpose, RungRecord, TrialId, TrialRecord, config_hash
from raytune_autotuner.task.spec import Optimization
from tests.fakes.trials import sample_metrics

MANY = Optimization(objectives=("output_tokens_per_s", "ttft_p99_s"))


def measured(
    number: int,
    tokens_per_s: float,
    ttft_s: float,
    *,
    purpose: Purpose = "search",
    outcome: Outcome = "completed",
    config: int | None = None,
    optimization: Optimization = MANY,
) -> TrialRecord:
    metrics = sample_metrics(1, 1.0)
    values = {**metrics.loads[0].values, "output_tokens_per_s": tokens_per_s, "ttft_p99_s": ttft_s}
    metrics = replace(metrics, loads=(replace(metrics.loads[0], values=values),))
    parameters = {"a": number if config is None else config}
    value = score(metrics, Context(0, optimization))
    rungs = (RungRecord(1, metrics, value, 1.0),)
    trial = TrialId(purpose, config_hash(parameters), number if purpose == "confirm" else 0)
    return TrialRecord(trial, "exp", number, parameters, outcome, "2026-01-01T00:00:00+00:00", rungs, 1, value)


def test_the_front_is_what_nothing_beats_best_throughput_first() -> None:
    """Faster and worse, slower and better; what is worse in both is not on it."""
    found = pareto.front([measured(1, 50, 0.1), measured(2, 100, 0.5), measured(3, 40, 0.3)], MANY)
    assert [axis.name for axis in found.axes] == ["output_tokens_per_s", "ttft_p99_s"]
    assert [(p.parameters["a"], p.values) for p in found.front] == [
        (2, pytest.approx((100, 0.5))),
        (1, pytest.approx((50, 0.1))),
    ]
    assert [p.parameters["a"] for p in found.points] == [2, 1, 3]


def test_equals_are_both_on_the_front() -> None:
    """Neither beats the other."""
    assert len(pareto.front([measured(1, 50, 0.1), measured(2, 50, 0.1)], MANY).front) == 2


def test_who_breaks_the_slo_is_neither_on_the_front_nor_in_the_way() -> None:
    """The best of all, but too slow to be of use."""
    slo = MANY.model_copy(update={"slo": {"ttft_p99_s": 0.4}})
    records = [measured(1, 50, 0.1, optimization=slo), measured(2, 100, 0.5, optimization=slo)]
    found = pareto.front(records, slo)
    assert [p.parameters["a"] for p in found.front] == [1]
    assert [p.feasible for p in found.points] == [False, True]
    scores = [r.score for r in records]
    assert [s.slo is not None and round(s.slo, 2) for s in scores if s] == [0.25, 1.25]


def test_only_whole_measurements_count() -> None:
    """What was stopped or failed has no place."""
    stopped = measured(1, 99, 0.01, outcome="stopped")
    assert pareto.front([stopped, measured(2, 10, 1.0)], MANY).points[0].parameters == {"a": 2}
    assert pareto.front([], MANY).points == ()


def test_runs_of_one_configuration_are_one_point() -> None:
    """With their geometric mean, and the noise that they show."""
    repeats = [measured(1, 40, 0.1), measured(2, 160, 0.1, purpose="confirm", config=1)]
    found = pareto.front(repeats, MANY)
    assert [(p.values[0], p.runs) for p in found.points] == [(pytest.approx(80), 2)]
    assert found.noise[0] == pytest.approx(0.98, abs=0.01)
    assert found.noise[1] == pytest.approx(0)
    assert pareto.front(repeats[:1], MANY).noise == (None, None)


def test_what_is_beaten_by_no_more_than_the_noise_is_near_the_front() -> None:
    """A repeat shows 1 % of noise; 1 % less is a tie, 30 % less is not."""
    noisy = [measured(1, 100, 0.1), measured(2, 102, 0.101, purpose="confirm", config=1)]
    found = pareto.front([*noisy, measured(3, 99, 0.102), measured(4, 70, 0.2)], MANY)
    assert {p.parameters["a"]: (p.on_front, p.near_front) for p in found.points} == {
        1: (True, False),
        3: (False, True),
        4: (False, False),
    }


def test_what_the_noise_does_not_tell_apart_ties() -> None:
    """In its first value; of a mean of two runs and one more, 1 % of noise tells 3 % apart, and 1 % not."""
    noisy = [measured(1, 100, 0.1), measured(2, 102, 0.101, purpose="confirm", config=1)]
    others = [measured(3, 102, 0.9), measured(4, 97, 0.1), measured(5, 99.5, 0.1)]
    found = pareto.front([*noisy, *others], MANY)
    first = next(point.trial for point in found.points if point.parameters["a"] == 1)
    assert [point.parameters["a"] for point in found.ties(first)] == [3, 5]
    assert found.ties("no such trial") == ()
    assert pareto.front([noisy[0], *others], MANY).ties(first) == ()  # what noise there is, nobody knows


def test_who_failed_when_measured_again_is_neither_on_the_front_nor_in_a_tie() -> None:
    """However well it measured before."""
    noisy = [measured(1, 100, 0.1), measured(2, 102, 0.101, purpose="confirm", config=1)]
    failed = replace(measured(4, 0, 0, purpose="confirm", config=3, outcome="infeasible"), rungs=(), score=None)
    found = pareto.front([*noisy, measured(3, 102, 0.09), failed], MANY)
    assert [point.parameters["a"] for point in found.front] == [1]
    assert found.ties(next(point.trial for point in found.points if point.parameters["a"] == 1)) == ()


def test_what_breaks_the_slo_or_is_nothing_says_nothing_of_noise() -> None:
    """A goodput of 0 in one run and of 1 in the next is no relative noise that others could have."""
    slo = MANY.model_copy(update={"slo": {"ttft_p99_s": 0.4}})
    nothing = [measured(n, 0.0 if n == 4 else 50.0, 0.1, purpose="confirm", config=2) for n in (4, 5)]
    broken = [measured(n, n * 10.0, 0.9, purpose="confirm", config=6, optimization=slo) for n in (6, 7)]
    steady = [measured(n, 100.0 + n, 0.1, purpose="confirm", config=1) for n in (1, 2)]
    found = pareto.front([*steady, *nothing, *broken], slo)
    assert found.noise[0] == pytest.approx(0.007, abs=0.001)


def test_one_objective_is_shown_against_what_it_costs() -> None:
    """A throughput against a tail latency (the one that the SLO names), a latency against the throughput."""

    def names(optimization: Optimization) -> list[str]:
        return [axis.name for axis in pareto.axes(optimization)]

    assert names(Optimization()) == ["maximize_throughput", "ttft_p99_s"]
    limited = Optimization(slo={"error_ratio": 0.1, "tpot_p95_s": 1.0})
    assert names(limited) == ["maximize_throughput", "tpot_p95_s"]
    assert names(Optimization(objective="minimize_ttft")) == ["minimize_ttft", "output_tokens_per_s"]


def test_what_was_not_measured_on_an_axis_is_left_out() -> None:
    """There is nothing to compare it by."""
    whole = measured(1, 50, 0.1)
    load = whole.rungs[0].metrics.loads[0]
    values = {name: value for name, value in load.values.items() if name != "ttft_p99_s"}
    rung = replace(whole.rungs[0], metrics=replace(whole.rungs[0].metrics, loads=(replace(load, values=values),)))
    assert pareto.front([replace(whole, rungs=(rung,))], MANY).points == ()


def test_the_score_of_many_objectives_weighs_them_by_their_ratios() -> None:
    """Twice the throughput at twice the latency is the same; with weights it is not."""

    def value(tokens_per_s: float, ttft_s: float, optimization: Optimization = MANY) -> float:
        found = measured(1, tokens_per_s, ttft_s, optimization=optimization).score
        assert found is not None
        assert dict(found.values) == {"output_tokens_per_s": tokens_per_s, "ttft_p99_s": ttft_s}
        return found.value

    assert value(100, 0.1) == pytest.approx(value(200, 0.2))
    weighted = MANY.model_copy(update={"weights": {"output_tokens_per_s": 2.0, "ttft_p99_s": 1.0}})
    assert value(200, 0.2, weighted) > value(100, 0.1, weighted)
