"""Which parameters matter, as told from records."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from raytune_autotuner.importance import SHOWN_VALUES, Importances, importance
from raytune_autotuner.records import Failure, Parameters, ParameterValue, RungRecord, TrialRecord
from tests.test_results import record

OOM = Failure("out_of_memory", "no memory")


def latency_s(parameters: Parameters) -> float:
    """Only ``tp`` and ``attention`` matter."""
    tp = parameters["tp"]
    assert isinstance(tp, int)
    return float(1 / tp**0.5 * (2.0 if parameters["attention"] == "slow" else 1.0))


def trials(count: int, seed: int = 0) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    records = []
    for number in range(1, count + 1):
        overlap = bool(rng.random() < 0.5)
        parameters: dict[str, ParameterValue] = {
            "chunk": int(rng.integers(512, 8192)),
            "attention": ("fast", "slow", None)[int(rng.integers(3))],
            "overlap": overlap,
            "tp": int(2 ** rng.integers(4)),
            "fixed": 7,
        }
        if overlap:
            parameters["depth"] = int(rng.integers(1, 4))
        records.append(record(number, parameters, latency_s(parameters)))
    return records


@lru_cache(maxsize=1)
def found() -> Importances:
    failed = [record(n, {"tp": 8, "attention": "fast"}, 1.0, outcome="infeasible", rungs=0, failure=OOM) for n in (91,)]
    return importance([record(0, {}, 9.0, purpose="baseline"), *trials(60), *failed])


def test_what_matters_comes_first_and_stands_out_from_the_noise() -> None:
    """The two parameters that the latency is made of, with intervals above those of all others."""
    names = [each.parameter for each in found().parameters]
    assert set(names[:2]) == {"tp", "attention"}
    others = found().parameters[2:]
    assert min(each.low for each in found().parameters[:2]) > max(each.importance for each in others)
    assert found().explained > 0.8
    assert found().trials == 60


def test_a_parameter_that_never_changed_has_no_importance() -> None:
    """Nothing can be said of it."""
    assert {each.parameter for each in found().parameters} == {"chunk", "attention", "overlap", "tp", "depth"}


def test_intervals_hold_their_estimate() -> None:
    """Both of shares, which are no less than nothing, and of marginals."""
    for each in found().parameters:
        assert 0 <= each.low <= each.high
    for marginal in found().marginals:
        assert marginal.low <= marginal.mean <= marginal.high


def test_marginals_are_in_the_unit_of_the_score_and_follow_the_truth() -> None:
    """More GPUs, less latency; the values in order."""
    means = {m.value: m.mean for m in found().marginals if m.parameter == "tp"}
    assert list(means) == [1, 2, 4, 8]
    assert means[1] > means[2] > means[4] > means[8]
    assert found().unit == "s"
    slow = {m.value: m.mean for m in found().marginals if m.parameter == "attention"}
    assert set(slow) == {"fast", "slow", None}
    assert slow["slow"] > 1.5 * slow["fast"]


def test_failures_are_counted_by_value() -> None:
    """They have no score, and are no reason to keep silent about where they lie."""
    at = {m.value: m for m in found().marginals if m.parameter == "tp"}
    assert (at[8].infeasible, at[1].infeasible) == (1, 0)
    assert sum(m.trials for m in at.values()) == 61


def test_a_number_with_many_values_is_shown_at_some() -> None:
    """The least and the greatest among them, and every trial counts for one."""
    chunks = [m for m in found().marginals if m.parameter == "chunk"]
    values = [int(r.parameters["chunk"]) for r in trials(60)]  # type: ignore[arg-type]
    assert len(chunks) == SHOWN_VALUES
    assert (chunks[0].value, chunks[-1].value) == (min(values), max(values))
    assert sum(m.trials for m in chunks) == 60


def test_a_conditional_parameter_is_judged_where_it_applies() -> None:
    """Trials in which it was left out do not count for any of its values."""
    depths = [m for m in found().marginals if m.parameter == "depth"]
    assert [m.value for m in depths] == [1, 2, 3]
    assert sum(m.trials for m in depths) == sum("depth" in r.parameters for r in trials(60))


def test_too_few_trials_say_nothing() -> None:
    """And it is said why."""
    assert "too few trials: 9 have a score" in importance(trials(9)).reason
    assert importance([]).reason == "no parameter took two values"
    same = [record(n, {"a": n}, 1.0) for n in range(1, 13)]
    constant = [record(n, {"a": 1}, 1.0) for n in range(1, 13)]
    assert importance(constant).reason
    flat = importance([r for r in same if r.number == 1] * 12)
    assert (flat.parameters, flat.marginals) == ((), ())


def test_a_trial_stopped_early_counts_with_what_the_last_rung_would_have_shown() -> None:
    """Every rung of these tests measures the same, so that stopping changes nothing."""
    stopped = [
        record(r.number, r.parameters, latency_s(r.parameters), outcome="stopped", rungs=1) if r.number % 2 else r
        for r in trials(40)
    ]
    assert importance(stopped).trials == 40
    assert {each.parameter for each in importance(stopped).parameters[:2]} == {"tp", "attention"}


def test_a_trial_that_was_cut_short_is_not_among_the_good_ones() -> None:
    """It was ended before the loads that would have shown how slow it is."""
    whole = trials(60)
    rung = RungRecord(0, whole[0].rungs[0].metrics, whole[0].rungs[0].score, 1.0, cut=Failure("slo_lost", "too late"))
    cut = [
        replace(record(n, {"tp": 1, "attention": "slow"}, 0.001, outcome="stopped"), rungs=(rung,))
        for n in range(100, 140)
    ]
    assert importance([*whole, *cut]).trials == 60
