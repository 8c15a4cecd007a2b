"""The model-based source: its process, its causes of failure, and what it proposes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.objectives import scalar
from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Failure, Parameters, TrialId, TrialRecord, config_hash
from raytune_autotuner.search.knowledge import WORST
from raytune_autotuner.search.model.adaptive import Adaptive
from raytune_autotuner.search.model.beliefs import Beliefs, Trying, logarithm
from raytune_autotuner.search.model.causes import Causes
from raytune_autotuner.search.model.encoding import FAR_OFF, Encoding, neighbours
from raytune_autotuner.search.model.process import Kernel, Process, log_improvement
from raytune_autotuner.search.source import Expects, Lessons
from raytune_autotuner.search.spread import spread
from raytune_autotuner.task.spec import parse_task

PARAMETERS: dict[str, Any] = {
    "tp_size": {"type": "choice", "values": [1, 2, 4]},
    "chunked_prefill_size": {"type": "choice", "values": [1024, 2048, 4096, 8192]},
    "attention_backend": {"type": "choice", "values": ["fa3", "flashinfer", "triton"]},
    "enable_mixed_chunk": {"type": "bool"},
    "mem_frac": {"type": "float", "low": 0.7, "high": 0.9},
    "num_continuous_decode_steps": {"type": "int", "low": 1, "high": 4, "when": "not enable_mixed_chunk"},
}


def space(constraints: list[str] | None = None, **parameters: Any) -> Space:
    data = {
        "task_name": "t",
        "engine": "sglang",
        "model": {"name": "m"},
        "parameters": parameters or PARAMETERS,
        "constraints": constraints or [],
    }
    return Space.of(parse_task(data, "t"), load_engine("sglang"))


FAILED = {"outcome": "infeasible", "raw_loss": None, "rungs_done": 0, "cause": "kernel", "node": None}


def report(loss: float, rungs_done: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "outcome": None,
        "raw_loss": loss,
        "violation": 0.0,
        "rungs_done": rungs_done,
        "slo": 0.5,
        "node": None,
        **more,
    }


def test_the_slope_of_the_kernel_is_its_derivative() -> None:
    """Hyperparameters are found by it."""
    rng = np.random.default_rng(0)
    kernel = Kernel(np.array([True, False, True]))
    x = np.column_stack([rng.integers(0, 4, 20) / 3, rng.integers(0, 2, 20), rng.integers(-1, 5, 20) / 4.0])
    apart, theta, weight = kernel.apart(x, x), kernel.start, rng.normal(size=(20, 20))
    steps = np.eye(len(theta)) * 1e-6
    numeric = [((kernel(theta + e, apart) - kernel(theta - e, apart)) * weight).sum() / 2e-6 for e in steps]
    assert kernel.slope(theta, apart, weight) == pytest.approx(numeric, abs=1e-4)


def test_a_process_learns_effects_that_multiply() -> None:
    """From half of the combinations it says what the others give, and it is less sure there."""
    x = np.array([[a / 3, b, c] for a in range(4) for b in range(2) for c in range(3)], dtype=float)
    y = -0.5 * x[:, 0] + 0.3 * x[:, 1] + np.array([0.0, 0.2, -0.1])[x[:, 2].astype(int)]
    chosen = np.random.default_rng(0).permutation(len(x))[:14]
    process, rows = Process(Kernel(np.array([True, False, False])), 0.8, 0.4, expected=-2), expecting(x, 0.0)
    process.fit(rows[chosen], y[chosen], np.ones(14), learn=True)
    rest = np.setdiff1d(np.arange(len(x)), chosen)
    mean, deviation = process.predict(rows)
    assert np.abs(mean - y)[rest].max() < 0.05
    assert deviation[rest].mean() > deviation[chosen].mean()


def expecting(x: Any, loss: Any) -> Any:
    """Rows with what is expected of them behind: a loss, and nothing of the SLO."""
    return np.column_stack([x, np.broadcast_to(loss, len(x)), np.zeros(len(x))])


@pytest.mark.parametrize("right", [True, False])
def test_a_process_begins_with_what_is_expected_and_believes_what_is_measured(right: bool) -> None:
    """Three readings at one end: of the other end it says what is expected. With more of them, what they say."""
    x = np.linspace(0, 1, 21)[:, None]
    truth = x[:, 0] if right else -x[:, 0]
    process, rows = Process(Kernel(np.array([True])), 0.8, 0.4, expected=-2), expecting(x, x[:, 0])
    process.fit(rows[:3], truth[:3], np.ones(3), learn=True)
    before = process.predict(rows[-1:])[0][0] - truth[0]
    process.fit(rows[::4], truth[::4], np.ones(6), learn=True)
    after = process.predict(rows)[0]
    assert np.abs(after - truth).max() < 0.1
    if right:
        assert before > 0.5


def test_the_expected_improvement_is_right_near_and_far() -> None:
    """At the best it is the deviation's share of a normal; far behind it stays finite and falls on."""
    logs = log_improvement(0.0, np.array([0.0, 4.9, 5.1, 30.0]), np.ones(4))
    assert np.exp(logs[0]) == pytest.approx(0.39894, abs=1e-4)
    assert np.all(np.diff(logs) < 0)
    assert logs[1] - logs[2] < 2.5
    assert np.isfinite(logs).all()


def test_a_pair_that_always_fails_is_the_cause_and_neither_part_alone() -> None:
    """Values that were seen to work elsewhere are cleared."""
    failures = np.array([[0.0, 1.0, c] for c in (0.0, 0.5, 1.0)])
    successes = np.array([[0.0, 0.0, 0.5], [1.0, 1.0, 0.5], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [2.0, 1.0, 1.0]])
    causes = Causes(failures, successes, [False, False, True])
    bad, fine, new = np.exp(causes.log_works(np.array([[0.0, 1.0, 0.25], [1.0, 0.0, 0.5], [2.0, 0.0, 1.0]])))
    assert bad < 0.25
    assert fine > 0.9
    assert new > 0.9


def test_failures_that_the_first_cause_does_not_explain_have_another() -> None:
    """Two causes of one reason are both avoided."""
    failures = np.array([[1.0, c, d] for c in (0.0, 1.0) for d in (0.0, 0.3)] + [[0.0, c, 1.0] for c in (0.0, 1.0)] * 2)
    successes = np.array([[0.0, c, d] for c in (0.0, 1.0) for d in (0.0, 0.3, 0.6)])
    causes = Causes(failures, successes, [False, False, True])
    first, second, fine = np.exp(causes.log_works(np.array([[1.0, 1.0, 0.6], [0.0, 1.0, 1.0], [0.0, 1.0, 0.6]])))
    assert first < 0.4
    assert second < 0.5
    assert fine > 0.8


def test_what_was_not_seen_to_work_may_work() -> None:
    """After a few failures of a value, a new partner for it is not written off."""
    failures = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    successes = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    odds = np.exp(Causes(failures, successes, [False, False]).log_works(np.array([[1.0, 2.0], [1.0, 1.0]])))
    assert odds[0] > 2 * odds[1]
    assert odds[0] > 0.05


def test_without_any_difference_there_is_no_cause() -> None:
    """One failure alone says nothing."""
    assert Causes(np.array([[1.0]]), np.empty((0, 1)), [False]).log_works(np.array([[0.0]])).tolist() == [0.0]


def test_rows_hold_ranks_categories_and_what_is_left_out() -> None:
    """Numbers of three values and more have an order."""
    encoding = Encoding(space())
    row = encoding.row(
        {
            "tp_size": 2,
            "chunked_prefill_size": 8192,
            "attention_backend": "triton",
            "enable_mixed_chunk": True,
            "mem_frac": 0.8,
        }
    )
    assert row == pytest.approx([0.5, 1.0, 2.0, 1.0, 0.5, -1.0, 0.0, 0.0])
    assert encoding.ordered.tolist() == [True, True, False, False, True, True]


def test_rows_end_with_what_is_expected() -> None:
    """The loss relative to the best, the SLO's metric relative to its limit; what finds no room is as bad as can be."""
    losses = {1: 3.0, 2: 2.5, 4: 9.0}

    def expects(parameters: Parameters) -> tuple[float, float] | None:
        size = int(str(parameters["tp_size"]))
        return None if size == 4 else (losses[size], -0.5)

    encoding = Encoding(space(**SMALL), expects)
    ends = [encoding.row({**SLOW, "tp_size": n})[-2:] for n in (1, 2, 4)]
    assert ends == [[0.5, -0.5], [0.0, -0.5], [FAR_OFF, FAR_OFF]]


def test_a_configuration_outside_the_space_has_no_row() -> None:
    """Rather than a wrong one."""
    with pytest.raises(ValueError, match="tp_size=3"):
        Encoding(space()).row({"tp_size": 3})


def test_the_first_points_are_spread_and_keep_the_constraints() -> None:
    """Eight points show every value of a parameter."""
    found = spread(space(["tp_size < 4"]), 8, np.random.default_rng(0))
    assert len({config_hash(c) for c in found}) == 8
    assert {c["tp_size"] for c in found} == {1, 2}
    assert {c["attention_backend"] for c in found} == {"fa3", "flashinfer", "triton"}


def test_the_first_points_cost_as_much_at_each_price() -> None:
    """Four GPUs come a quarter as often as one, so that the start does not go into them."""
    found = spread(space(), 64, np.random.default_rng(0), cost=lambda c: float(str(c["tp_size"])))
    spent = [sum(c["tp_size"] == gpus for c in found) * gpus for gpus in (1, 2, 4)]
    assert len(found) == 64
    assert min(spent) > 0.7 * max(spent)


def test_neighbours_differ_by_one_or_two_parameters() -> None:
    """None breaks a constraint."""
    here = spread(space(), 1, np.random.default_rng(0))[0]
    found = list(neighbours(space(["tp_size < 4"]), here, 5, np.random.default_rng(0)))
    assert found
    for other in found:
        assert other["tp_size"] != 4
        names = set(here) | set(other)
        # The one that depends on another comes and goes with it.
        assert 1 <= sum(here.get(name) != other.get(name) for name in names) <= 3


@pytest.mark.parametrize("pair", [(-5000.0, -4000.0), (-0.5, -0.2), (-1e-9, -0.0), (0.02, 0.03), (5.0, 8.0)])
def test_logarithms_keep_the_order_of_losses(pair: tuple[float, float]) -> None:
    """Whatever is maximised or minimised, in whatever unit; nothing is the least of what is maximised."""
    better, worse = pair
    assert logarithm(better) < logarithm(worse)


SMALL = {
    name: PARAMETERS[name] for name in ("tp_size", "chunked_prefill_size", "attention_backend", "enable_mixed_chunk")
}


def speed(c: Parameters) -> float:
    size = {1024: 0.7, 2048: 1.0, 4096: 1.2, 8192: 1.1}[int(c["chunked_prefill_size"])]  # type: ignore[arg-type]
    kernel = {"fa3": 1.0, "flashinfer": 1.1, "triton": 0.8}[str(c["attention_backend"])]
    return -1000 * size * kernel * (1.15 if c["enable_mixed_chunk"] else 1.0) / int(c["tp_size"])  # type: ignore[arg-type]


def source(**options: Any) -> Adaptive:
    return Adaptive(space(**SMALL), 0, total_rungs=2, **options)


def test_it_finds_the_best_of_a_smooth_space_in_a_fraction_of_the_grid() -> None:
    """Twenty of seventy-two configurations are enough here, with whole benchmarks that it hears of."""
    chosen = source()
    tried = []
    for n in range(20):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        tried.append(parameters)
        chosen.hear(parameters, report(speed(parameters)))
        chosen.tell(f"k{n}", None)
    best = min(spread(space(**SMALL), 72, np.random.default_rng(1)), key=speed)
    assert min(map(speed, tried)) <= speed(best)
    assert len({config_hash(c) for c in tried}) == 20


def test_it_learns_from_what_it_is_told_when_it_hears_nothing() -> None:
    """As any source; a loss comes back from the bounded scale."""
    chosen = source()
    tried = []
    for n in range(20):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        tried.append(parameters)
        chosen.tell(f"k{n}", scalar(speed(parameters), 0.0))
    assert min(map(speed, tried)) <= -1200


def test_it_keeps_away_from_what_cannot_work() -> None:
    """More than half of the space fails; after the start, less than a third of the proposals do."""
    chosen = Adaptive(space(), 0, total_rungs=2)
    failing = 0
    for n in range(28):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        reasons = {"kernel": parameters["attention_backend"] == "triton", "memory": parameters["tp_size"] == 1}
        reason = next((name for name, fails in reasons.items() if fails), None)
        if reason:
            failing += n >= 8
            chosen.hear(
                parameters, {"outcome": "infeasible", "raw_loss": None, "rungs_done": 0, "cause": reason, "node": None}
            )
        else:
            chosen.hear(parameters, report(speed(parameters)))
        chosen.tell(f"k{n}", WORST if reason else None)
    assert failing <= 6


def test_a_space_that_is_exhausted_proposes_nothing_more() -> None:
    """Each configuration comes once."""
    chosen = Adaptive(space(enable_mixed_chunk={"type": "bool"}), 0, total_rungs=1, startup=2)
    found = [chosen.propose(f"k{n}") for n in range(3)]
    assert {str(c) for c in found if c} == {"{'enable_mixed_chunk': True}", "{'enable_mixed_chunk': False}"}
    assert found[2] is None


def test_proposals_made_while_others_run_are_not_alike() -> None:
    """What runs is taken for measured."""
    chosen = source()
    for n in range(12):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        chosen.hear(parameters, report(speed(parameters)))
    running = [chosen.propose(f"r{n}") for n in range(4)]
    assert len({str(c) for c in running}) == 4


def test_only_what_may_win_goes_on() -> None:
    """Once the baseline and some peers were heard of at the same rung."""
    chosen = source()
    chosen.hear({}, report(-900.0, 1))
    heard = []
    for n in range(8):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        heard.append(parameters)
        chosen.hear(parameters, report(speed(parameters), 1))
    going = [c for c in heard if chosen.goes_on(c)]
    assert min(heard, key=speed) in going
    assert len(going) <= 3
    assert all(speed(c) <= 0.92 * min(map(speed, heard)) for c in going)


@pytest.mark.parametrize(("gain", "goes_on"), [(0.0, False), (0.005, False), (0.02, True), (0.1, True)])
def test_who_would_gain_next_to_nothing_does_not_go_on(gain: float, goes_on: bool) -> None:
    """The last rung costs several times what the first one did; whoever leads at the first one is seen to the end."""
    chosen = source()
    for n, speed in enumerate([1000.0, 1020.0, 1040.0] * 3):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        if n == 8:
            chosen.hear(parameters, report(-speed * (1 + gain), 1))
        else:
            chosen.hear(parameters, report(-speed, 1))
            chosen.hear(parameters, report(-1.1 * speed, 2))
    assert chosen.goes_on(parameters) is goes_on


@pytest.mark.parametrize(("outlook", "goes_on"), [(0.1, False), (1e-4, True)])
def test_who_gains_little_goes_on_where_nothing_else_promises_more(outlook: float, goes_on: bool) -> None:
    """At the end of a search, when all that is left are small gains."""
    chosen = source()
    for n, speed in enumerate([1000.0, 1020.0, 1040.0] * 3):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        chosen.hear(parameters, report(-speed * (1.005 if n == 8 else 1), 1))
        if n < 8:
            chosen.hear(parameters, report(-1.1 * speed, 2))
    chosen._outlook = math.log(outlook)
    assert chosen.goes_on(parameters) is goes_on


def test_nothing_else_promises_more_where_nothing_is_left_to_try() -> None:
    """So a small gain is worth its last rung."""
    few = space(tp_size={"type": "choice", "values": [1, 2]})
    chosen = Adaptive(few, 0, total_rungs=2)
    while (parameters := chosen.propose("k")) is not None:
        chosen.hear(parameters, report(-1000.0))
    assert chosen._outlook == -math.inf


def test_the_baseline_teaches_as_far_as_its_parameters_are_known() -> None:
    """The runtime's flags say what it is; what they leave open is no value of the space."""
    known = space(**SMALL).part({"tp_size": (4,), "attention_backend": ("fa3",), "chunked_prefill_size": (3000,)})
    assert known == {"tp_size": 4, "attention_backend": "fa3"}
    encoding = Encoding(space(**SMALL))
    tried = [Trying(encoding.row({**SLOW, "tp_size": n})) for n in (1, 2)]
    for one, loss in zip(tried, (-100.0, -110.0), strict=True):
        one.losses, one.slo = {0: loss}, {0: 0.5}
    baseline = Trying(encoding.row(known), {0: -900.0}, {0: 0.5})
    rows = encoding.rows([{**SLOW, "tp_size": 4, "attention_backend": kernel} for kernel in ("fa3", "triton")])
    like, unlike = Beliefs(encoding.ordered.tolist()).prospects(rows, [baseline, *tried], None, learn=True)[0]
    assert like > unlike


@pytest.mark.parametrize("outcomes", [[None], ["failed"], ["failed", None]])
def test_a_baseline_that_failed_is_no_rival(outcomes: list[str | None]) -> None:
    """One that runs is, also when it runs again: what it showed at its first rung is what others are compared with."""
    chosen = source()
    for outcome in outcomes:
        chosen.hear({}, report(-9000.0, 1, outcome=outcome))
    for n in range(5):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        chosen.hear(parameters, report(-1000.0 - n, 1))
    assert chosen.goes_on(parameters) is (outcomes[-1] == "failed")


SLOW: Parameters = {"chunked_prefill_size": 1024, "attention_backend": "triton", "enable_mixed_chunk": False}


def test_a_broken_slo_does_not_go_on_beside_kept_ones() -> None:
    """However fast it is."""
    chosen = source()
    for n in range(8):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        fast = n == 7
        chosen.hear(parameters, report(-9000.0 if fast else -1000.0, 1, slo=1.5 if fast else 0.5))
    assert not chosen.goes_on(parameters)


def test_a_short_rung_of_who_broke_the_slo_later_is_no_yardstick() -> None:
    """It is much faster than all others, which is why it cannot keep up in the end."""
    chosen = source()
    for n in range(8):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        chosen.hear(parameters, report(-9000.0 if n == 0 else -1000.0 - n, 1))
        if n == 0:
            chosen.hear(parameters, report(-9000.0, 2, slo=1.5))
    assert chosen.goes_on(parameters)


@pytest.mark.parametrize("left", [1, 0])
def test_the_slo_is_to_be_kept_at_the_last_rung(left: int) -> None:
    """What a short one breaks says nothing against it once others have kept theirs at the last one all the same."""
    encoding = Encoding(space(**SMALL))
    everywhere = spread(space(**SMALL), 72, np.random.default_rng(1))
    tried = []
    for c in everywhere[:36]:
        breaking = c["attention_backend"] == "triton"
        one = Trying(encoding.row(c))
        one.losses, one.slo = {1: -1000.0, 0: -1000.0}, {1: 0.7, 0: 0.7, left: 1.3 if breaking else 0.7}
        tried.append(one)
    rest = everywhere[36:]
    keeps = Beliefs(encoding.ordered.tolist()).prospects(encoding.rows(rest), tried, None, learn=True)[1]
    breaking = np.array([c["attention_backend"] == "triton" for c in rest])
    assert np.exp(keeps[breaking]).max() < 0.2 if left == 0 else np.exp(keeps[breaking]).min() > 0.8
    assert np.exp(keeps[~breaking]).min() > 0.8


KERNELS = [f"k{n}" for n in range(8)]


def kernels_tried(trials: int, failing: str = "") -> list[str]:
    """Of so many trials; all are equally fast, but for a kernel that fails."""
    parameters = {**SMALL, "attention_backend": {"type": "choice", "values": KERNELS}}
    chosen = Adaptive(space(**parameters), 0, total_rungs=1, startup=2)
    tried = []
    for n in range(trials):
        proposed = chosen.propose(f"k{n}")
        assert proposed is not None
        tried.append(str(proposed["attention_backend"]))
        chosen.hear(proposed, FAILED if tried[-1] == failing else report(-1000.0, 1))
    return tried


def test_every_value_that_is_no_number_is_measured() -> None:
    """Nothing that is known of the others tells of one that nobody has tried."""
    assert sorted(kernels_tried(8)) == KERNELS


def test_a_value_that_keeps_failing_is_left_to_the_model() -> None:
    """Once it is likely to fail whatever else is set; otherwise nothing else would be tried."""
    tried = kernels_tried(24, failing="k3")
    assert sorted(set(tried)) == KERNELS
    assert tried.count("k3") <= 8


def test_a_value_that_works_with_one_other_alone_is_found() -> None:
    """Whatever else it failed with first."""
    chosen = Adaptive(space(**SMALL), 0, total_rungs=1, startup=2)
    for kernel in ("fa3", "triton"):
        for size in (1024, 2048, 4096):
            c = {"tp_size": 1, "chunked_prefill_size": size, "attention_backend": kernel}
            chosen.hear({**c, "enable_mixed_chunk": True}, FAILED)
            chosen.hear({**c, "enable_mixed_chunk": False}, report(-1000.0 - size / 1024))
    chosen.hear({**c, "attention_backend": "flashinfer", "enable_mixed_chunk": False}, report(-500.0))
    asked = [chosen.propose(f"k{n}") for n in range(3)]
    assert any(c and c["enable_mixed_chunk"] and c["attention_backend"] == "flashinfer" for c in asked)


def test_failures_do_not_use_up_the_points_that_come_first() -> None:
    """And what seems sure to fail as others did is left out of them."""
    laid_out = spread(space(**SMALL), 64, np.random.default_rng(0))
    chosen = source(startup=12)
    begun: list[Parameters] = []
    working = 0
    while working < 12:
        proposed = chosen.propose(f"k{len(begun)}")
        assert proposed is not None
        begun.append(proposed)
        working += proposed["attention_backend"] != "triton"
        chosen.hear(proposed, FAILED if proposed["attention_backend"] == "triton" else report(speed(proposed)))
    places = [laid_out.index(each) for each in begun]
    assert places == sorted(places)
    assert any(laid_out[n]["attention_backend"] == "triton" and n not in places for n in range(max(places)))


def found_after(expects: Expects) -> int:
    """How many were measured when the fastest of ``speed`` was proposed."""
    everywhere = spread(space(**SMALL), 72, np.random.default_rng(1))
    fastest = min(everywhere, key=speed)
    chosen = source(lessons=Lessons(expects=expects))
    for n in range(len(everywhere)):
        proposed = chosen.propose(f"k{n}")
        assert proposed is not None
        if speed(proposed) <= speed(fastest):
            return n
        chosen.hear(proposed, report(speed(proposed)))
    raise AssertionError("it was never proposed")


def test_a_search_that_expects_what_comes_needs_fewer_trials_and_a_misled_one_gets_there() -> None:
    """Even one that expects the opposite."""
    right = found_after(lambda c: (logarithm(speed(c)), 0.0) if c else None)
    unknown = found_after(lambda _: None)
    assert right < unknown
    assert found_after(lambda c: (-logarithm(speed(c)), 0.0) if c else None) < 36


def test_the_neighbours_of_the_best_are_tried_when_nothing_seems_left_to_gain() -> None:
    """Its speed comes from all of its values together, so the model expects nothing of those next to it."""
    everywhere = spread(space(**SMALL), 72, np.random.default_rng(1))
    worst = max(everywhere, key=speed)
    near = {config_hash(c) for c in neighbours(space(**SMALL), worst, 0, np.random.default_rng(0))}
    chosen = source()
    for n, other in enumerate(everywhere):
        if other == worst or (n % 3 and config_hash(other) not in near):
            chosen.hear(other, report(1.05 * min(map(speed, everywhere)) if other == worst else speed(other)))
    asked = [chosen.propose(f"k{n}") for n in range(len(near))]
    assert {config_hash(c) for c in asked if c} == near


GUESS = {"tp_size": 1, "chunked_prefill_size": 4096, "attention_backend": "fa3", "enable_mixed_chunk": True}
MANY = {"type": "choice", "values": ["fa3", "flashinfer", "triton", "torch_native", "aiter", "ascend"]}


def guessing(baseline_gpus: int = 4, free: tuple[str, ...] = ("attention_backend",), **lessons: Any) -> Adaptive:
    """A search that begins with one guess."""
    told: dict[str, Any] = {"first": (GUESS,), **lessons, "free": {config_hash(GUESS): free}}
    return source(cost=lambda c: float(c.get("tp_size", baseline_gpus)), lessons=Lessons(**told))  # type: ignore[arg-type]


def told_of_each(chosen: Adaptive, result: dict[str, Any], number: int) -> list[Parameters]:
    """The next proposals, of each of which the search hears the same."""
    found = []
    for n in range(number):
        parameters = chosen.propose(f"k{n}")
        assert parameters is not None
        found.append(parameters)
        chosen.hear(parameters, result)
    return found


def test_a_first_guess_that_fails_is_tried_with_what_it_says_nothing_of() -> None:
    """Another kernel, one after the other; what it is about stays."""
    assert told_of_each(guessing(), FAILED, 3) == [
        GUESS,
        {**GUESS, "attention_backend": "flashinfer"},
        {**GUESS, "attention_backend": "triton"},
    ]


def test_a_first_guess_is_not_changed_for_ever() -> None:
    """Three times at most, and all of them together no more often than the search can spare."""
    wide, guess = space(**{**SMALL, "attention_backend": MANY}), {**GUESS, "attention_backend": "aiter"}
    lessons = Lessons(first=(guess,), free={config_hash(guess): ("attention_backend",)})
    for changes in (12, 2):
        chosen = Adaptive(wide, 0, total_rungs=2, changes=changes, lessons=lessons)
        found = told_of_each(chosen, FAILED, 5)
        about = [{**each, "attention_backend": "aiter"} == guess for each in found]
        assert about == [n <= min(3, changes) for n in range(5)]


@pytest.mark.parametrize("free", [(), ("chunked_prefill_size",)])
def test_nothing_else_of_a_first_guess_is_changed(free: tuple[str, ...]) -> None:
    """A number near another one would fail as well."""
    chosen = guessing(free=free)
    _, after = told_of_each(chosen, FAILED, 2)
    assert after == guessing(free=free)._first[1]


@pytest.mark.parametrize(
    "result",
    [
        {**FAILED, "cause": "out_of_memory: # GiB short"},
        {**FAILED, "cause": "pruned: cannot start; the weights are larger than the GPU's memory"},
        report(-1.0, 1, slo=1.4),
    ],
)
def test_a_first_guess_that_needs_more_memory_or_speed_gets_more_gpus(result: dict[str, Any]) -> None:
    """Fewer than the runtime uses, whether or not these do."""
    found = told_of_each(guessing(baseline_gpus=4), result, 3)
    assert found[:2] == [GUESS, {**GUESS, "tp_size": 2}]
    assert found[2] != {**GUESS, "tp_size": 4}


def test_changes_of_before_count_when_a_search_goes_on() -> None:
    """However unlikely what failed looks by now."""
    failed = Failure("unsupported", "no such kernel")
    tried = [{**GUESS, "attention_backend": kernel} for kernel in ("fa3", "flashinfer", "triton", "torch_native")]
    ended = tuple(
        TrialRecord(TrialId("search", config_hash(c)), "e", n, c, "infeasible", "", failure=failed)
        for n, c in enumerate(tried)
    )
    lessons = Lessons(free={config_hash(GUESS): ("attention_backend",)}, ended=ended)
    wide = space(**{**SMALL, "attention_backend": MANY})
    for changes in (12, 3):
        chosen = Adaptive(wide, 0, total_rungs=2, changes=changes, lessons=lessons)
        assert chosen._guesses.changed(chosen._tried, chosen._likeliest) is None
    fewer = Lessons(free=lessons.free, ended=ended[:3])
    chosen = Adaptive(wide, 0, total_rungs=2, lessons=fewer)
    assert chosen._guesses.changed(chosen._tried, chosen._likeliest) is not None


def test_a_number_of_two_values_is_a_number() -> None:
    """GPUs above all."""
    two = {**SMALL, "tp_size": {"type": "choice", "values": [1, 2]}}
    lessons = Lessons(first=(GUESS,), free={config_hash(GUESS): ("tp_size", "attention_backend")})
    chosen = Adaptive(space(**two), 0, total_rungs=2, lessons=lessons)
    assert {each["tp_size"] for each in told_of_each(chosen, FAILED, 3)} == {1}


def test_what_a_guess_is_about_is_not_switched_off() -> None:
    """By another value of what it says nothing of."""
    steps = {"num_continuous_decode_steps": PARAMETERS["num_continuous_decode_steps"]}
    guess = {**GUESS, "enable_mixed_chunk": False, "num_continuous_decode_steps": 4}
    lessons = Lessons(first=(guess,), free={config_hash(guess): ("enable_mixed_chunk",)})
    chosen = Adaptive(space(**SMALL, **steps), 0, total_rungs=2, lessons=lessons)
    told_of_each(chosen, FAILED, 1)
    assert chosen._guesses.changed(chosen._tried, chosen._likeliest) is None


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("(out_of_memory: # GiB short): tp_size # < #", [{**GUESS, "tp_size": 2}]),
        ("(bad_flag: no such flag): it differs in nothing that counts", [{**GUESS, "attention_backend": "flashinfer"}]),
    ],
)
def test_a_first_guess_that_must_fail_as_another_did(why: str, expected: list[Parameters]) -> None:
    """Is changed as that one would be, once: what is refused again is beyond it."""
    chosen = guessing()
    pruned = {**FAILED, "cause": f"pruned: must fail as search-# did {why}"}
    first, *changed = told_of_each(chosen, pruned, 2)
    assert (first, changed) == (GUESS, expected)
    assert chosen._guesses.changed(chosen._tried, chosen._likeliest) is None


@pytest.mark.parametrize("cause", ["quality: other answers", "no_fit: no node has so many GPUs"])
def test_a_first_guess_is_not_changed_where_that_is_of_no_use(cause: str) -> None:
    """What it is about is what is wrong."""
    _, after = told_of_each(guessing(), {**FAILED, "cause": cause}, 2)
    assert after == guessing()._first[1]


def test_a_first_guess_is_not_changed_in_what_switches_a_free_parameter_off() -> None:
    """A parameter that goes away has not got another value."""
    kernel = {**PARAMETERS["attention_backend"], "when": "enable_mixed_chunk"}
    lessons = Lessons(first=(GUESS,), free={config_hash(GUESS): ("attention_backend",)})
    chosen = Adaptive(space(**{**SMALL, "attention_backend": kernel}), 0, total_rungs=2, lessons=lessons)
    found = told_of_each(chosen, FAILED, 3)
    assert [each["attention_backend"] for each in found] == ["fa3", "flashinfer", "triton"]
    assert all(each["enable_mixed_chunk"] for each in found)


def test_a_first_guess_gets_no_more_gpus_than_one_that_works() -> None:
    """Nor before it is known whether one does."""
    other = {**GUESS, "tp_size": 2, "attention_backend": "triton"}
    for heard, larger in ((report(-1.0, 1, slo=0.9), False), (report(-1.0, 1, slo=1.2), True)):
        free: dict[str, tuple[str, ...]] = {config_hash(guess): () for guess in (GUESS, other)}
        lessons = Lessons(first=(GUESS, other), free=free)
        chosen = source(cost=lambda c: float(c.get("tp_size", 4)), lessons=lessons)  # type: ignore[arg-type]
        assert [chosen.propose("a"), chosen.propose("b")] == [GUESS, other]
        chosen.hear(GUESS, {**FAILED, "cause": "out_of_memory: # GiB short"})
        waits = chosen.propose("c")
        assert waits != {**GUESS, "tp_size": 2}
        chosen.hear(other, heard)
        assert (chosen.propose("d") == {**GUESS, "tp_size": 2}) is larger


def test_a_first_guess_that_works_stays_as_it_is() -> None:
    """The model goes on from there."""
    chosen = guessing()
    first, after = told_of_each(chosen, report(-1.0, slo=0.9), 2)
    assert (first, after) == (GUESS, guessing()._first[1])


def test_a_search_that_goes_on_changes_the_guesses_of_before() -> None:
    """From where it was: what was tried already is not tried again."""
    other = {**GUESS, "attention_backend": "flashinfer"}
    failed = Failure("unsupported", "no such kernel")
    ended = tuple(
        TrialRecord(TrialId("search", config_hash(c)), "e", n, c, "infeasible", "", failure=failed)
        for n, c in enumerate((GUESS, other))
    )
    assert guessing(first=(), ended=ended).propose("k") == {**GUESS, "attention_backend": "triton"}
