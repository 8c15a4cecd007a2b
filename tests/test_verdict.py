"""WIN, TIE and UNSTABLE; when to measure again; drift of the baseline."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from raytune_autotuner.metrics import summarise
from raytune_autotuner.objectives import Context
from raytune_autotuner.records import Score
from raytune_autotuner.task.spec import Optimization
from raytune_autotuner.verdict import (
    Again,
    Ask,
    Drift,
    Measurement,
    Run,
    Settings,
    Side,
    Verdict,
    compare,
    decide,
    drift,
    effect,
    measured,
    noise,
    within_variance,
)
from raytune_autotuner.verdict.judge import BOUNDLESS
from tests.fakes.trials import sample_metrics

THROUGHPUT = Context(1, Optimization(objective="maximize_throughput"))
TURN: tuple[Side, ...] = ("baseline", "winner", "winner", "baseline")
LATENCY = Context(1, Optimization(objective="minimize_latency"))


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
    """Three runs between 1 and 3 seconds in any order say nothing about a 10 % gain."""
    verdict = compare(runs([1.0, 3.0, 2.0]), runs([2.7, 0.9, 1.8], seed=9), 0.95, seed=1)
    assert verdict.kind == "UNSTABLE"
    assert "the runs of one configuration differ" in verdict.reason


def test_runs_that_all_become_slower_together_are_unstable_for_that_reason() -> None:
    """It is time that varied, not the configurations."""
    verdict = compare(runs([1.0, 2.0, 3.0]), runs([0.9, 1.8, 2.7], seed=9), 0.95, seed=1)
    assert verdict.kind == "UNSTABLE"
    assert "over time" in verdict.reason


def test_a_winner_that_breaks_the_slo_when_measured_again_is_unstable() -> None:
    """The limit counts in the confirming runs too."""
    context = Context(1, Optimization(objective="maximize_throughput", slo={"e2e_p99_s": 1.05}))
    verdict = compare(runs([2.0, 2.0], context=context), runs([1.0, 1.2], context=context), 0.95, seed=1)
    assert verdict.kind == "UNSTABLE"
    assert "in 1 of 2 runs" in verdict.reason
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


def test_one_run_each_is_no_evidence_of_a_gain_of_a_fifth() -> None:
    """Requests that agree do not tell how far runs lie apart, so 10 % is assumed."""
    verdict = compare(runs([1.2], noise=0.01), runs([1.0], noise=0.01, seed=5), 0.95, seed=1)
    assert verdict.kind != "WIN"
    assert verdict.noise == pytest.approx(0.1)


def test_nothing_to_compare_is_an_error() -> None:
    """A verdict needs both sides."""
    with pytest.raises(ValueError, match="at least one"):
        compare([], runs([1.0]), 0.95, seed=0)


def run(side: Side, value: float, node: str | None = None, at: float = 0.0, excess: float = 0.0) -> Run:
    worst = "ttft_p99_s 2, limit <= 1" if excess else ""
    return Run(side, Score("maximize_throughput", value, "tokens/s", "max", -value, excess, worst), 0.0, node, at)


def in_turn(baseline: Sequence[float], winner: Sequence[float], nodes: Sequence[str] = ()) -> list[Run]:
    """The runs that ``decide`` asks for, with these values."""
    values = {"baseline": iter(baseline), "winner": iter(winner)}
    done: list[Run] = []
    while len(done) < len(baseline) + len(winner):
        answer = decide(done, Settings(nodes=tuple(nodes), repeats=len(baseline), max_repeats=20))
        assert isinstance(answer, Again)
        ask = answer.runs[0]
        done.append(run(ask.side, next(values[ask.side]), ask.node, len(done)))
    return done


def asked(answer: Verdict | Again) -> str:
    """The sides in order: B is the baseline, W the winner."""
    assert isinstance(answer, Again)
    return "".join(ask.side[0].upper() for ask in answer.runs)


def verdict(answer: Verdict | Again) -> Verdict:
    assert isinstance(answer, Verdict)
    return answer


def test_first_the_fewest_repeats_are_asked_for_in_turn() -> None:
    """B W W B, then turned round, so that a steady drift and its bend cancel."""
    assert asked(decide([], Settings())) == "BWWB"
    assert asked(decide([], Settings(repeats=4))) == "BWWBWBBW"


def test_each_side_runs_on_both_nodes_within_each_four() -> None:
    """A slow node slows both alike; two neighbours are on different nodes, so they may run at once."""
    answer = decide([], Settings(repeats=4, nodes=("a", "b", "c")))
    assert isinstance(answer, Again)
    for four in (answer.runs[:4], answer.runs[4:]):
        assert Counter(four) == Counter(Ask(s, n) for s in ("baseline", "winner") for n in ("a", "b"))
        assert four[0].node != four[1].node
        assert four[2].node != four[3].node


def test_what_was_run_is_not_asked_for_again() -> None:
    """Also when it ran elsewhere than asked."""
    settings = Settings(nodes=("a", "b"))
    answer = decide([run("baseline", 1.0, "a"), run("winner", 1.0, "c")], settings)
    assert isinstance(answer, Again)
    assert answer.runs == (Ask("winner", "a"), Ask("baseline", "b"))


def test_a_large_gain_is_told_after_the_fewest_runs() -> None:
    """Three times as fast does not need a dozen runs."""
    found = verdict(decide(in_turn([1.0, 1.01], [3.0, 3.02]), Settings()))
    assert found.kind == "WIN"
    assert found.low < 2.0 < found.high
    assert (found.baseline_runs, found.winner_runs) == (2, 2)


def test_a_small_gain_is_measured_until_it_is_outside_the_noise() -> None:
    """5 % need a second look, and it is not taken before all its runs are there."""
    settings = Settings()
    first = in_turn([1.0, 1.01], [1.05, 1.06])
    assert asked(decide(first, settings)) == "WBBW"
    more = [run("winner", 1.052, at=10), run("baseline", 1.003, at=11), run("baseline", 1.006, at=12)]
    assert asked(decide([*first, *more], settings)) == "W"
    assert verdict(decide([*first, *more, run("winner", 1.058, at=13)], settings)).kind == "WIN"


def test_a_difference_that_more_runs_could_not_show_is_a_tie_before_the_last_look() -> None:
    """Runs that would not change the answer are not made."""
    found = verdict(decide(in_turn([1.0, 1.01, 0.99, 1.0], [1.01, 1.0, 0.99, 1.0]), Settings()))
    assert found.kind == "TIE"
    assert found.low < 0 < found.high


def test_the_last_look_always_gives_a_verdict() -> None:
    """However noisy it is; then it says so."""
    wild = [1.0, 1.3, 0.8, 1.1, 0.7, 1.2]
    found = verdict(decide(in_turn(wild, wild[::-1]), Settings()))
    assert found.kind == "UNSTABLE"
    assert "the runs of one configuration differ" in found.reason


def test_a_winner_that_proves_worse_needs_no_further_runs() -> None:
    """The loss is as plain as a gain would be."""
    found = verdict(decide(in_turn([2.0, 2.01], [1.0, 1.01]), Settings()))
    assert found.kind == "UNSTABLE"
    assert "baseline was better" in found.reason


def test_a_broken_slo_ends_the_confirmation_at_once() -> None:
    """Nothing mends it."""
    runs = [run("baseline", 1.0), run("winner", 2.0, at=1, excess=0.5)]
    found = verdict(decide(runs, Settings()))
    assert found.kind == "UNSTABLE"
    assert "broke the SLO in 1 of 1 runs" in found.reason


@pytest.mark.parametrize(
    ("baseline", "winner", "anyway"), [(0.1, 0.0, True), (0.3, 0.1, True), (0.0, 0.1, False), (0.1, 0.1, False)]
)
def test_without_a_gain_whoever_keeps_the_slo_better_is_to_be_run(baseline: float, winner: float, anyway: bool) -> None:
    """The baseline is nothing to fall back on when it breaks the SLO and the winner does not, or by less."""
    ends = [run("baseline", 100.0, at=0, excess=baseline), run("baseline", 101.0, at=3)]
    middle = [run("winner", 101.0, at=1, excess=winner), run("winner", 100.0, at=2)]
    found = verdict(decide([*ends, *middle], Settings(), final=True))
    assert found.kind == "UNSTABLE"
    assert found.winner_anyway == anyway
    assert ("its gain unproven" in found.reason) == anyway


def test_a_winner_that_fails_when_measured_again_is_unstable() -> None:
    """Once is enough."""
    runs = [run("baseline", 1.0), run("winner", 2.0, at=1)]
    found = verdict(decide(runs, Settings(), failures=["out_of_memory"]))
    assert found.kind == "UNSTABLE"
    assert "failed in 1 of 2 runs" in found.reason
    assert "out_of_memory" in found.reason


def test_a_spent_budget_ends_it_with_what_there_is() -> None:
    """The interval is then as wide as few runs make it."""
    found = verdict(decide([run("baseline", 1.0), run("winner", 1.1, at=1)], Settings(), final=True))
    assert found.kind == "UNSTABLE"
    assert found.low < 0 < found.high


def test_a_spent_budget_without_runs_of_both_sides_is_an_error() -> None:
    """There is nothing to judge."""
    with pytest.raises(ValueError, match="at least one"):
        decide([run("baseline", 1.0)], Settings(), final=True)


def test_all_looks_together_spend_the_error_that_the_confidence_leaves() -> None:
    """Looking often must not make chance a gain."""
    for settings in (Settings(), Settings(repeats=3, max_repeats=8), Settings(repeats=5, max_repeats=2)):
        assert sum(settings.alpha(look) for look in settings.looks) == pytest.approx(0.05)
    assert Settings(repeats=5, max_repeats=2).looks == (5,)


def test_a_look_out_of_turn_spends_no_more_than_its_share() -> None:
    """The budget may end between two looks."""
    assert Settings().alpha(3) == pytest.approx(0.05 / 6)


def test_a_slow_node_and_a_steady_drift_do_not_shift_the_gain() -> None:
    """The gain is 10 % although one node is 20 % slower and everything slows down by 2 % a run."""
    done: list[Run] = []
    answer = decide(done, Settings(repeats=4, nodes=("a", "b")))
    assert isinstance(answer, Again)
    for i, ask in enumerate(answer.runs):
        value = (1.1 if ask.side == "winner" else 1.0) * (0.8 if ask.node == "b" else 1.0) * 0.98**i
        done.append(run(ask.side, value, ask.node, i))
    found = effect(done)
    assert found is not None
    assert found.delta == pytest.approx(math.log(1.1))
    assert found.error == pytest.approx(0.0, abs=1e-6)


def test_nodes_that_were_not_swapped_are_no_evidence() -> None:
    """The winner may owe its gain to its node."""
    done = [run("baseline", 1.0, "a", i) if i % 4 in (0, 3) else run("winner", 1.2, "b", i) for i in range(8)]
    found = verdict(decide(done, Settings(repeats=4, max_repeats=4)))
    assert found.kind == "UNSTABLE"
    assert "nodes of its own" in found.reason
    assert math.isfinite(found.high)
    assert effect(done) is None


def test_runs_without_a_choice_of_nodes_are_not_repeated_in_vain() -> None:
    """More runs on the same nodes could not tell either."""
    done = [run("baseline", 1.0, "a", i) if i % 4 in (0, 3) else run("winner", 1.2, "b", i) for i in range(4)]
    assert verdict(decide(done, Settings())).kind == "UNSTABLE"
    assert isinstance(decide(done, Settings(nodes=("a", "b"))), Again)


def test_runs_that_went_astray_are_made_again_on_the_one_node_for_both() -> None:
    """Each side ran on nodes of its own, although there is one that both could have had."""
    done = [run("baseline", 1.0, "ac"[i // 3], i) if i in (0, 3) else run("winner", 2.0, "b", i) for i in range(4)]
    answer = decide(done, Settings(nodes=("b",)))
    assert isinstance(answer, Again)
    assert set(answer.runs) == {Ask("baseline", "b"), Ask("winner", "b")}
    done += [run(ask.side, 2.0 if ask.side == "winner" else 1.0, ask.node, 4 + i) for i, ask in enumerate(answer.runs)]
    assert verdict(decide(done, Settings(nodes=("b",)))).kind == "WIN"


def test_nodes_that_differ_are_named_when_they_hide_the_answer() -> None:
    """Four runs leave nothing to clear the node with."""
    done = [run("baseline", 1.0, "a", 0), run("winner", 0.6, "b", 1), run("winner", 1.01, "a", 2)]
    done.append(run("baseline", 0.61, "b", 3))
    found = verdict(decide(done, Settings(repeats=2, max_repeats=2, nodes=("a", "b"))))
    assert found.kind == "UNSTABLE"
    assert "the nodes differ (a +0%, b -40%)" in found.reason


def test_a_baseline_that_breaks_the_slo_by_chance_is_no_win() -> None:
    """It breaks it in one run of two; so might the winner."""
    done = [run("baseline", 1.0, at=0), run("winner", 1.0, at=1), run("winner", 1.0, at=2)]
    found = verdict(decide([*done, run("baseline", 1.0, at=3, excess=0.5)], Settings(max_repeats=2)))
    assert found.kind == "UNSTABLE"
    assert "the baseline broke the SLO in 1 of 2 runs" in found.reason


def test_keeping_the_slo_needs_no_gain_but_certainty() -> None:
    """The baseline is faster but always far over its limit; as long as that may be chance, more runs are made."""
    done = [run("baseline", 1.1, at=0, excess=0.5), run("winner", 1.0, at=1), run("winner", 1.0, at=2)]
    clear = verdict(decide([*done, run("baseline", 1.1, at=3, excess=0.5)], Settings()))
    assert clear.kind == "WIN"
    assert "keeps the SLO" in clear.reason
    assert asked(decide([*done, run("baseline", 1.1, at=3, excess=0.05)], Settings())) == "WBBW"


@pytest.mark.parametrize(
    ("gain", "low", "high", "gained", "interval"),
    [
        (0.2, 0.1, 0.3, "+20.0% over it", "+10.0% to +30.0%"),
        (-0.2, -0.3, -0.1, "-20.0% over it", "-30.0% to -10.0%"),
        (0.2, -1.0, BOUNDLESS, "+20.0% over it", "-100.0% without an upper bound"),
        (1994.0, 0.5, BOUNDLESS, "from 0.02 to 39.9 requests/s", "+50.0% without an upper bound"),
        (BOUNDLESS, 1e5, BOUNDLESS, "from 0.02 to 39.9 requests/s", "above 1000 times"),
    ],
)
def test_a_gain_is_told_in_percent_as_long_as_that_says_something(
    gain: float, low: float, high: float, gained: str, interval: str
) -> None:
    """Beyond that, both values are; and of an interval only the bounds that it has."""
    found = Verdict("WIN", gain, low, high, 0.95, 0.02, 39.9, "requests/s", 2, 2, "why")
    assert (found.gained(" over it"), found.interval()) == (gained, interval)


def test_a_baseline_of_nothing_leaves_numbers_that_can_be_read() -> None:
    """A gain has a bound of its own, as its interval has."""
    found = verdict(decide([run(s, 0.0 if s == "baseline" else 80.0, at=i) for i, s in enumerate(TURN)], Settings()))
    assert found.gain == found.high == pytest.approx(BOUNDLESS)
    assert found.low <= found.gain


def test_the_order_is_that_of_time() -> None:
    """Not that in which records are read."""
    done = in_turn([1.0, 1.1], [2.0, 2.1])
    assert effect(done) == effect(done[::-1])


def test_requests_that_vary_widen_the_interval() -> None:
    """Runs that agree by chance do not hide what their requests say."""
    agreeing = in_turn([1.0] * 4, [1.1] * 4)
    assert verdict(decide(agreeing, Settings())).kind == "WIN"
    noisy = [replace(each, within_variance=0.04) for each in agreeing]
    assert asked(decide(noisy, Settings())) == "BWWB"


def test_a_measured_run_knows_the_noise_of_its_requests() -> None:
    """4 % noise over 20 requests, which are resampled in waves of 4, is about 1 % of their mean."""
    measurement = runs([1.0], noise=0.04)[0]
    done = measured("winner", measurement, seed=1, node="a", started_at=3.0)
    assert math.sqrt(done.within_variance) == pytest.approx(0.04 / math.sqrt(20), rel=0.5)
    assert (done.side, done.node, done.started_at) == ("winner", "a", 3.0)


def test_the_same_requests_are_resampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as they are kept; for another objective or seed it is another question."""
    measurement = runs([1.0])[0]
    first = within_variance(measurement, seed=1)
    other = within_variance(replace(measurement, context=LATENCY), seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(noise, "_resampled", lambda metrics, rng: pytest.fail("resampled again"))
        assert within_variance(measurement, seed=1) == first
        assert within_variance(replace(measurement, context=LATENCY), seed=1) == other
    before = len(noise._KNOWN._known)
    del measurement
    gc.collect()
    assert len(noise._KNOWN._known) < before


def test_a_value_that_few_requests_have_may_be_lost_in_a_resample() -> None:
    """Two of twenty answers have more than one token, hence a time per token: such a draw is left out."""
    metrics = sample_metrics(1, 1.0, noise=0.05)
    samples = metrics.loads[0].samples
    few = replace(samples, tpot_s=tuple(t if n in (3, 4) else None for n, t in enumerate(samples.tpot_s)))
    values = summarise(few, metrics.loads[0].concurrency, 0.0)
    sparse = replace(metrics, loads=(replace(metrics.loads[0], samples=few, values=values),))
    context = Context(0, Optimization(objective="minimize_tpot"))
    assert within_variance(Measurement(sparse, context), seed=1) > 0


def test_a_single_request_says_nothing_of_noise() -> None:
    """There is nothing to resample."""
    assert within_variance(Measurement(sample_metrics(1, 1.0, requests=1), THROUGHPUT), seed=1) < 1e-20


def baseline_runs(values: Sequence[float], nodes: Sequence[str] = ("a",)) -> list[Run]:
    return [run("baseline", value, nodes[i % len(nodes)], 100.0 * i) for i, value in enumerate(values)]


def corrected(found: Drift, runs: Sequence[Run]) -> list[float]:
    return [math.exp(each.log_goodness + found.correction(each.started_at, each.node)) for each in runs]


NOISE = (1.0, 0.995, 1.004, 0.998, 1.003, 1.0, 0.996, 1.002)


def test_noise_is_no_drift() -> None:
    """And nothing is corrected."""
    found = drift(baseline_runs(NOISE))
    assert not found.significant
    assert found.correction(250.0, "a") == 0.0
    assert found.words == "no drift beyond noise, in 8 runs of the baseline"


def test_a_few_runs_of_the_baseline_tell_nothing() -> None:
    """Three values always have some trend."""
    found = drift(baseline_runs([1.0, 0.9, 0.8]))
    assert not found.significant
    assert "too few" in found.words


def test_a_steady_drift_is_found_and_taken_out() -> None:
    """2 % from run to run, and half of it half way; beyond the last run nothing is guessed."""
    runs = baseline_runs([noise * 0.98**i for i, noise in enumerate(NOISE)])
    found = drift(runs)
    assert found.significant
    assert "over time" in found.words
    assert corrected(found, runs) == pytest.approx([1.0] * 8, abs=0.01)
    assert found.correction(350.0, "a") == pytest.approx(-3.5 * math.log(0.98), abs=0.01)
    assert found.correction(9999.0, "a") == found.correction(700.0, "a")


def test_a_level_that_drops_is_found() -> None:
    """Something else began to use the machine; a straight line would not do."""
    found = drift(baseline_runs([noise * (0.8 if i >= 5 else 1.0) for i, noise in enumerate(NOISE)]))
    assert found.correction(0.0) == 0.0
    assert found.correction(700.0) == pytest.approx(-math.log(0.8), abs=0.03)


def test_a_slow_node_is_found_and_taken_out() -> None:
    """Trials on it are worth more than they show; a node without a baseline is left as it is."""
    runs = baseline_runs([noise * (0.9 if i % 2 else 1.0) for i, noise in enumerate(NOISE)], ("a", "b"))
    found = drift(runs)
    assert "nodes differ" in found.words
    assert not found.times
    assert found.correction(0.0, "b") == pytest.approx(-math.log(0.9), abs=0.01)
    assert found.correction(0.0, "a") == found.correction(0.0, "c") == 0.0


def test_node_and_drift_are_told_apart() -> None:
    """Both at once."""
    values = [noise * (0.9 if i % 2 else 1.0) * 0.98**i for i, noise in enumerate(NOISE)]
    runs = baseline_runs(values, ("a", "b"))
    assert corrected(drift(runs), runs) == pytest.approx([1.0] * 8, abs=0.015)


def test_what_the_requests_explain_is_no_drift() -> None:
    """A trend that is smaller than the noise of one run is left alone."""
    runs = baseline_runs([noise * 0.98**i for i, noise in enumerate(NOISE)])
    assert not drift([replace(each, within_variance=0.04) for each in runs]).significant


def test_runs_that_came_out_of_turn_still_compare() -> None:
    """One run each leaves nothing to learn the noise from, whatever else is there to learn; six leave something."""
    two = [run("baseline", 1.0, at=0), run("winner", 1.2, at=1)]
    on_nodes = [run("baseline", 1.0, "a", 0), run("winner", 1.2, "a", 1), run("winner", 1.2, "b", 2)]
    for few in (effect(two), effect(on_nodes)):
        assert few is not None
        assert math.isinf(few.freedom)
        assert math.sqrt(few.variance) == pytest.approx(0.1)
    longer = effect([run("baseline" if i % 2 else "winner", 1.0 + i / 100, at=i) for i in range(6)])
    assert longer is not None
    assert longer.freedom == 3
