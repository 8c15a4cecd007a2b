"""Which flags of a winner can go without a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from raytune_autotuner import minimal
from raytune_autotuner.metrics import summarise
from raytune_autotuner.minimal import Ablation, Plan, order
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import Failure, Metrics, Parameters, RungRecord, TrialId, TrialRecord, config_hash
from raytune_autotuner.search import Wanted
from raytune_autotuner.task.spec import Confirm, Optimization
from raytune_autotuner.verdict import Measurement, Run, Side
from tests.fakes.trials import sample_metrics

OPTIMIZATION = Optimization(objective="minimize_latency", confirm=Confirm(repeats=2, max_repeats=6))
WINNER: Parameters = {"big": 1, "small": 1, "idle": 1, "none": 1}
LOSS = {"big": 0.3, "small": 0.08, "idle": 0.0, "none": 0.0}


def plainly(side: Side, measurement: Measurement, seed: int, node: str | None, started_at: float) -> Run:
    """A run without the noise within it, which takes long to work out."""
    return Run(side, measurement.score, 0.0, node, started_at)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimal, "measured", plainly)


def anywhere(one: Parameters, other: Parameters) -> tuple[str, ...]:
    """There is no choice of nodes."""
    return ()


def latency_s(parameters: Parameters) -> float:
    """Longer by what each flag that is left out is worth."""
    return 1.0 + sum(loss for name, loss in LOSS.items() if name not in parameters)


def run(number: int, wanted: Wanted, seconds: float, outcome: str = "completed") -> TrialRecord:
    metrics = sample_metrics(0, seconds, noise=0.001, seed=number)
    value = score(metrics, Context(0, OPTIMIZATION))
    return TrialRecord(
        TrialId("confirm", config_hash(wanted.parameters), number),
        "exp",
        number,
        wanted.parameters,
        outcome,  # type: ignore[arg-type]
        f"2026-01-01T{number // 60:02}:{number % 60:02}:00+00:00",
        (RungRecord(0, metrics, value, 1.0),) if outcome == "completed" else (),
        1,
        failure=Failure("bad_flag", "it needs that") if outcome == "infeasible" else None,
    )


def ablated(
    plan: Plan, seconds: Callable[[Parameters], float] = latency_s, noise: float = 0.005, seed: int = 0
) -> tuple[Ablation, list[TrialRecord]]:
    """Runs what is wanted until nothing is; a configuration of infinite latency cannot work."""
    rng = np.random.default_rng(seed)
    records: list[TrialRecord] = []
    while wanted := plan.wanted(records, anywhere):
        for each in wanted:
            value = seconds(each.parameters)
            outcome = "completed" if np.isfinite(value) else "infeasible"
            value = value * float(np.exp(noise * rng.standard_normal())) if outcome == "completed" else 0.0
            records.append(run(len(records), each, value, outcome))
        assert len(records) <= plan.runs
    return plan.stand(records), records


def test_what_the_budget_ended_is_no_run_of_a_comparison() -> None:
    """However many there were, the flag is not kept for lack of measurements."""
    halted = [replace(run(n, Wanted(WINNER), 1.0, "stopped"), failure=Failure("budget", "used up")) for n in range(50)]
    assert plan().stand(halted) == plan().stand([])
    lost = [replace(each, outcome="failed", failure=Failure("infrastructure", "")) for each in halted]
    assert plan().stand(lost).steps[0].answer == "kept"


def plan(*tried: str, allowed: Callable[[Parameters], str | None] = lambda parameters: None) -> Plan:
    return Plan(WINNER, tried or ("none", "idle", "small", "big"), OPTIMIZATION, allowed=allowed)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_worth_nothing_goes_and_what_is_worth_something_stays(seed: int) -> None:
    """Two flags without effect are dropped; 8 % and 30 % are not given away."""
    stand, _ = ablated(plan(), seed=seed)
    assert stand.parameters == {"big": 1, "small": 1}
    assert {step.parameter: step.answer for step in stand.steps} == {
        "none": "dropped",
        "idle": "dropped",
        "small": "kept",
        "big": "kept",
        "none, idle": "dropped",
    }
    assert stand.is_over
    small = next(step for step in stand.steps if step.parameter == "small")
    assert small.high is not None
    assert small.high < -0.02
    assert "without it" in small.reason


@pytest.mark.parametrize(("mostly", "without", "answer"), [(1.0, 3.0, "kept"), (1.12, 1.12, "dropped")])
def test_an_slo_that_is_broken_anyway_is_not_to_be_broken_by_more(mostly: float, without: float, answer: str) -> None:
    """One run in four that is a little over the limit is no leave to break it always; the latency is the same."""
    optimization = OPTIMIZATION.model_copy(update={"slo": {"ttft_p99_s": 0.11}})
    larger: Parameters = {"flag": 1, "other": 1}
    smaller: Parameters = {"other": 1}

    def measured(number: int, parameters: Parameters, factor: float) -> TrialRecord:
        load = sample_metrics(0, 1.0, noise=0.001, seed=number).loads[0]
        samples = replace(load.samples, ttft_s=tuple(factor * s for s in load.samples.ttft_s))
        values = summarise(samples, load.concurrency, 0.0)
        metrics = Metrics(0, (replace(load, samples=samples, values=values),), 0.0, 0.0)
        rung = RungRecord(0, metrics, score(metrics, Context(0, optimization)), 1.0)
        return replace(run(number, Wanted(parameters), 1.0), rungs=(rung,))

    factors = [1.12, without, without, mostly] + [without, mostly, mostly, without] * 4
    sides = [larger, smaller, smaller, larger] + [smaller, larger, larger, smaller] * 4
    records = [measured(n, *each) for n, each in enumerate(zip(sides, factors, strict=True))]
    step = Plan(larger, ("flag",), optimization).stand(records).steps[0]
    assert step.answer == answer
    assert ("SLO is broken by more" in step.reason) == (answer == "kept")


def test_a_loss_that_is_plain_costs_few_runs() -> None:
    """30 % shows at the first looks; no run is made to know it better."""
    _, records = ablated(plan("big"))
    assert len(records) <= 8


def test_each_comparison_is_interleaved() -> None:
    """With, without, without, with."""
    first = plan().wanted([], anywhere)
    assert ["none" in each.parameters for each in first] == [True, False, False, True]


def test_each_comparison_is_made_where_both_of_its_configurations_can_run() -> None:
    """The wide one needs the large node, and so does whatever is compared with it."""

    def large_enough(one: Parameters, other: Parameters) -> tuple[str, ...]:
        return ("n3",) if "none" in one or "none" in other else ("n1", "n2")

    assert {each.node for each in plan().wanted([], large_enough)} == {"n3"}
    dropped = [run(n, each, 1.0) for n, each in enumerate(plan().wanted([], anywhere))]
    while (wanted := plan().wanted(dropped, anywhere)) and all("idle" in each.parameters for each in wanted):
        dropped += [run(len(dropped) + n, each, 1.0) for n, each in enumerate(wanted)]
    assert {each.node for each in plan().wanted(dropped, large_enough)} == {"n1", "n2"}


def test_it_goes_on_where_it_was() -> None:
    """Everything follows from the records: half a batch is filled up, whatever was lost."""
    _, records = ablated(plan())
    for cut in (1, 3, len(records) // 2, len(records) - 1):
        rest = plan().wanted(records[:cut], anywhere)
        assert rest
        assert all(isinstance(each, Wanted) for each in rest)
    assert plan().wanted(records, anywhere) == ()


def test_a_flag_that_the_engine_needs_is_kept() -> None:
    """Without it nothing works; one run is enough to know."""
    stand, _ = ablated(plan("idle"), seconds=lambda p: 1.0 if "idle" in p else float("inf"))
    assert stand.parameters == WINNER
    assert stand.steps[0].answer == "kept"
    assert "bad_flag: it needs that" in stand.steps[0].reason


def test_a_flag_whose_absence_breaks_a_constraint_is_not_even_tried() -> None:
    """No run is spent on it."""
    stand, records = ablated(plan("idle", allowed=lambda parameters: "a constraint"))
    assert records == []
    assert stand.steps[0].reason == "cannot be left out: a constraint"


def test_a_flag_that_changes_nothing_of_the_launch_goes_without_a_run() -> None:
    """No comparison has it, the last one neither: of two that were dropped one was measured."""
    known = replace(plan(), idle=frozenset({"none"}))
    stand, records = ablated(known)
    assert stand.parameters == {"big": 1, "small": 1}
    assert [step.answer for step in stand.steps] == ["dropped", "dropped", "kept", "kept"]
    assert (stand.steps[0].reason, stand.steps[0].runs) == ("the launch is the same without it", 0)
    assert not [r for r in records if "none" in r.parameters]
    assert known.runs == plan("idle", "small", "big").runs


def test_a_flag_that_another_one_needs_is_tried_after_it() -> None:
    """It can go when the other one has gone; with it, it has to stay."""

    def needed(parameters: Parameters) -> str | None:
        return "idle depends on none" if "idle" in parameters and "none" not in parameters else None

    tried = order(WINNER, {"big": 0.9, "small": 0.8, "idle": 0.2, "none": 0.1}, {"idle": ("none", "other")})
    assert tried == ("idle", "none", "small", "big")
    stand, _ = ablated(plan(*tried, allowed=needed))
    assert stand.parameters == {"big": 1, "small": 1}


def test_when_it_cannot_be_shown_the_flag_stays() -> None:
    """At 10 % of noise nobody can tell 2 %; the runs are bounded."""
    stand, records = ablated(plan("idle"), noise=0.1, seed=1)
    assert stand.parameters == WINNER
    assert len(records) <= 20
    assert "do not show that it can go" in stand.steps[0].reason or stand.steps[0].high is not None


def test_what_adds_up_is_given_back() -> None:
    """Each flag alone loses less than the margin, all of them together more."""
    names = tuple(f"f{n}" for n in range(4))
    winner = dict.fromkeys(names, 1)
    wanted = Plan(winner, names, OPTIMIZATION)
    stand, _ = ablated(wanted, seconds=lambda p: 1.0 + 0.011 * sum(n not in p for n in names), noise=0.001)
    assert len(stand.parameters) >= 2
    assert any("together" in step.reason for step in stand.steps)


def test_the_least_important_flag_is_tried_first() -> None:
    """And one of which nothing is known before all, but for those that cost no run."""
    shares = {"big": 0.9, "small": 0.1, "idle": 0.2}
    assert order(WINNER, shares) == ("none", "small", "idle", "big")
    assert order(WINNER, shares, idle={"idle"}) == ("idle", "none", "small", "big")


def test_runs_lost_to_the_infrastructure_are_made_again_only_so_often() -> None:
    """Then it is kept for want of an answer."""
    records: list[TrialRecord] = []
    while wanted := plan("idle").wanted(records, anywhere):
        records += [run(len(records) + n, each, 1.0, "failed") for n, each in enumerate(wanted)]
        assert len(records) < 50
    assert plan("idle").stand(records).steps[0].reason == "it could not be measured without it"
