"""The budget: what is begun, what is ended, and what is kept for the answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner.budget import Expectation, Limits, Open, Reserve, Standing, expect, hours
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.gate import ExperimentGate
from raytune_autotuner.minimal import Ablation, Plan
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.purse import Books, Purse
from raytune_autotuner.records import (
    BudgetState,
    Failure,
    Parameters,
    Purpose,
    TrialId,
    TrialRecord,
    TrialState,
    config_hash,
)
from raytune_autotuner.results import load_results
from raytune_autotuner.results_file import document
from raytune_autotuner.setup import Setup
from raytune_autotuner.storage import Storage
from raytune_autotuner.summary import ending
from raytune_autotuner.task.spec import Optimization, Task, parse_task
from raytune_autotuner.verdict import Ask
from tests import waiting
from tests.fakes.trials import FakeSetup
from tests.test_results import full, record, task

HOUR = 3600.0


def standing(**changes: Any) -> Standing:
    """Ten GPU-hours of which four are spent; trials of an hour, two confirming runs of half an hour kept."""
    usual = Standing(
        limits=Limits(10 * HOUR, None),
        ended_s=4 * HOUR,
        open=(),
        elapsed_s=0.0,
        expected=Expectation(HOUR, HOUR / 2),
        reserve=Reserve(2, 4),
    )
    return replace(usual, **changes)


@pytest.mark.parametrize(
    ("optimization", "gpu_s", "wall_s", "said"),
    [
        ({"budget": {"gpu_hours": 2}}, 2 * HOUR, None, "1 GPU-hours"),
        ({"budget": {"wall_time": "90min"}}, None, 5400.0, "1 GPU-hours"),
        ({"budget": {"wall_time": 60}}, None, 60.0, "1 GPU-hours"),
        ({"budget": {"cost": 6}, "price_per_gpu_hour": 2}, 3 * HOUR, None, "2.00 in money"),
        ({"budget": {"cost": 6, "gpu_hours": 1}, "price_per_gpu_hour": 2}, HOUR, None, "1 GPU-hours"),
    ],
)
def test_limits_in_gpu_seconds_and_seconds(
    optimization: dict[str, Any], gpu_s: float | None, wall_s: float | None, said: str
) -> None:
    """Money is GPU-hours at their price, and the tighter of the two holds."""
    limits = Limits.of(task(**optimization).optimization)
    assert limits is not None
    assert (limits.gpu_s, limits.wall_s, limits.said(HOUR)) == (gpu_s, wall_s, said)


def test_without_a_budget_there_are_no_limits() -> None:
    """Nothing is looked at then."""
    assert Limits.of(Optimization()) is None


def test_trials_are_expected_to_take_as_long_as_the_longest_and_confirming_runs_as_the_median() -> None:
    """Of those that were measured here to the end; before any was, as long as the plan has it at worst."""
    baseline = record(0, {}, 1.0, purpose="baseline")
    short = replace(record(1, {"a": 1}, 1.0), phases={"queue": 99.0, "benchmark": 5.0, "teardown": 3.0})
    stopped = replace(record(2, {"a": 2}, 1.0, outcome="stopped", rungs=1), phases={"benchmark": 500.0})
    confirming = [
        replace(record(n, {}, 1.0, purpose="confirm", rungs=1, repeat=n), phases={"load": s})
        for n, s in ((3, 4), (4, 6))
    ]
    assert expect([], 1800.0) == Expectation(1800.0, 1800.0)
    assert expect([baseline, short, stopped], 1800.0) == Expectation(23.0, 15.5, 2.0)
    assert expect([baseline, short, *confirming], 1800.0).confirm_s == 5.0


@pytest.mark.parametrize(
    ("changes", "gpus", "fits"),
    [
        ({}, 4, True),  # 4 spent + 4 of the trial + 2 kept
        ({}, 5, False),
        ({"open": (Open("search", 2, 60.0),)}, 2, True),  # a running one is expected to take an hour, too
        ({"open": (Open("search", 2, 60.0),)}, 3, False),
        ({"open": (Open("search", 1, 3 * HOUR),)}, 1, True),  # or what it has taken, when that is more
        ({"open": (Open("search", 1, 3 * HOUR),)}, 2, False),
        ({"open": (Open("confirm", 4),)}, 2, True),  # half an hour
        ({"open": (Open("confirm", 4),)}, 3, False),
        ({"reserve": Reserve()}, 6, True),
        ({"limits": Limits(None, 3 * HOUR), "elapsed_s": HOUR}, 100, True),  # an hour each is kept and taken
        ({"limits": Limits(None, 3 * HOUR), "elapsed_s": HOUR + 1}, 1, False),
        ({"ended_s": 7.5 * HOUR}, 0, False),  # without a GPU it is the machine that is held
    ],
)
def test_no_trial_is_begun_that_would_bring_the_sum_over_the_budget(
    changes: dict[str, Any], gpus: int, fits: bool
) -> None:
    """Spent, running, kept for the confirming runs, and the trial itself."""
    reason = standing(**changes).lacking(gpus)
    assert (reason is None) is fits
    if reason:
        assert "budget of" in reason
        assert "kept for confirming" in reason


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 4),
        ({"ended_s": 9 * HOUR}, 2),
        ({"ended_s": 9.6 * HOUR}, 0),
        ({"limits": Limits(None, 3 * HOUR), "elapsed_s": 1.4 * HOUR}, 3),
        ({"limits": Limits(10 * HOUR, 100 * HOUR), "open": (Open("confirm", 1, 5.4 * HOUR),)}, 1),
    ],
)
def test_confirming_runs_are_made_as_far_as_they_can_be_paid_for(changes: dict[str, Any], number: int) -> None:
    """One after the other, half an hour on one GPU each."""
    assert standing(**changes).payable([1] * 4) == number


def test_what_runs_over_the_budget_has_to_end() -> None:
    """A trial of the search when what is kept would be touched, the others when all is spent; teardown is counted."""
    nearly = standing(ended_s=7.9 * HOUR, open=(Open("search", 1, 0.2 * HOUR),))
    assert "but for what confirming" in (nearly.used_up("search") or "")
    assert nearly.used_up("confirm") is nearly.used_up("baseline") is None
    assert standing(ended_s=7.9 * HOUR).used_up("search") is None
    ending = Expectation(HOUR, HOUR / 2, teardown_s=0.2 * HOUR)
    assert standing(ended_s=7.9 * HOUR, expected=ending, open=(Open("search", 1),)).used_up("search")
    assert standing(ended_s=10.1 * HOUR).used_up("confirm") == "the budget of 10 GPU-hours is used up"
    late = standing(limits=Limits(None, 2 * HOUR), elapsed_s=1.5 * HOUR)
    assert late.used_up("search") is not None
    assert late.used_up("confirm") is None
    assert "hours is used up" in (replace(late, elapsed_s=2.1 * HOUR).used_up("confirm") or "")


def test_hours_are_told_with_two_figures() -> None:
    """Not more than anybody wants to know."""
    assert [hours(s) for s in (360.0, 5400.0, 40 * HOUR, 4000 * HOUR)] == ["0.1", "1.5", "40", "4,000"]


@dataclass
class Line:
    """A queue that says what is in it."""

    proposals: list[Proposal] = field(default_factory=list)

    def unfinished(self) -> tuple[Proposal, ...]:
        return tuple(self.proposals)

    def kinds(self) -> dict[str, str]:
        return {}

    def nodes_for(self, *configurations: Parameters) -> tuple[str, ...]:
        return ()


def purse_of(tmp_path: Path, line: Line, *records: TrialRecord, **optimization: Any) -> tuple[Purse, Setup]:
    """Of a task on this machine whose trials took 23 s; its budget is in machine-seconds."""
    made: Task = task(**optimization)
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    for each in records:
        folder.save_record(each)
    setup = FakeSetup(made, load_engine("llamacpp"), folder, tokenizer="", facts={"served_name": "m"})
    return Purse(setup, line), setup  # type: ignore[arg-type]


def budget_s(seconds: float) -> dict[str, Any]:
    return {"budget": {"gpu_hours": (seconds + 0.1) / 3600}, "confirm": {"repeats": 1}}


DONE = (record(0, {}, 1.0, purpose="baseline"), record(1, {"a": 1}, 0.9))


def running(number: int, purpose: Purpose = "search", phase: str = "benchmark", since_s: float = 0.0) -> TrialState:
    at = (datetime.now(timezone.utc) - timedelta(seconds=since_s)).isoformat(timespec="milliseconds")
    trial = TrialId(purpose, config_hash({"a": number}))
    return TrialState(trial, number, {"a": number}, phase, "", 0, 2, at, at)


def test_the_search_goes_on_while_another_trial_and_the_confirming_runs_can_be_paid(tmp_path: Path) -> None:
    """46 s are spent, a trial takes 23 s, and two confirming runs are kept."""
    rich, _ = purse_of(tmp_path / "rich", Line(), *DONE, **budget_s(46 + 23 + 46))
    poor, setup = purse_of(tmp_path / "poor", Line(), *DONE, **budget_s(46 + 23 + 45))
    assert rich.enough() is None
    assert rich.affords({"a": 2})
    reason = poor.enough()
    assert reason is not None
    assert not poor.affords({"a": 2})
    assert setup.folder.budget() is not None
    assert setup.folder.budget().search == reason  # type: ignore[union-attr]


def test_the_smallest_trial_is_as_wide_as_the_runtimes_own_flags_make_it(tmp_path: Path) -> None:
    """While the baseline may take two thirds of the budget, the rest would pay for one GPU, but not for eight."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    made = parse_task(
        {
            "task_name": "t",
            "engine": "sglang",
            "model": {"name": "m"},
            "parameters": {"chunked_prefill_size": {"type": "choice", "values": [2048, 4096]}},
            "optimization": {
                "budget": {"gpu_hours": 12},
                "confirm": {"repeats": 0},
                "timeout_per_iteration": 3600,
            },
            "benchmark": {"max_time_per_iteration": 60},
        },
        "task.yaml",
    )
    folder.save_state(replace(running(0, "baseline"), gpus=8))
    purses = [
        Purse(Setup(made, load_engine("sglang"), folder, tokenizer="", runtime_args=args), Line())  # type: ignore[arg-type]
        for args in ((), ("--tp-size", "8"))
    ]
    assert [purse.affords({"chunked_prefill_size": 2048}) for purse in purses] == [True, False]
    assert [purse.enough() is None for purse in purses] == [True, False]


def test_that_nothing_left_to_try_can_be_paid_is_written_down(tmp_path: Path) -> None:
    """With the figures of the last one that was too dear, though others have been paid for since."""
    purse, setup = purse_of(tmp_path, Line(), *DONE, **budget_s(46 + 23 + 46))
    setup.folder.save_state(running(7))
    assert not purse.affords({"a": 2})
    setup.folder.save_record(replace(record(7, {"a": 7}, 1.0), phases={"load": 0.0}))
    purse._books._looked = float("-inf")
    assert purse.affords({"a": 2})
    purse.unpaid()
    state = setup.folder.budget()
    assert state is not None
    assert "are kept for confirming the winner" in (state.search or "")


def test_without_a_budget_nothing_is_refused(tmp_path: Path) -> None:
    """And nothing is written."""
    purse, setup = purse_of(tmp_path, Line(), *DONE)
    asks = (Ask("winner", None), Ask("baseline", None))
    assert purse.enough() is None
    assert purse.affords({"a": 2})
    assert purse.payable(asks, "x") is asks
    with purse.watched():
        pass
    assert setup.folder.budget() is None


def test_what_waits_and_what_runs_is_counted(tmp_path: Path) -> None:
    """With what it is expected to take, or with what it took already, and once."""
    waiting = Proposal(TrialId("search", config_hash({"a": 7})), 7, {"a": 7}, 0.0)
    line = Line([waiting])
    purse, setup = purse_of(tmp_path, line, *DONE, **budget_s(46 + 2 * 23 + 46))
    assert purse.enough() is None
    setup.folder.save_state(running(7, since_s=10.0))
    again, _ = purse_of(tmp_path, line, **budget_s(46 + 2 * 23 + 46))
    assert again.enough() is None
    setup.folder.save_state(running(7, since_s=30.0))
    late, _ = purse_of(tmp_path, line, **budget_s(46 + 2 * 23 + 46))
    assert late.enough() is not None
    setup.folder.save_state(running(7, phase="queue", since_s=30.0))
    queued, _ = purse_of(tmp_path, line, **budget_s(46 + 2 * 23 + 46))
    assert queued.enough() is None


def test_confirming_runs_are_cut_to_pairs_that_can_be_paid(tmp_path: Path) -> None:
    """The budget says so, and from then on the search does not begin again."""
    purse, setup = purse_of(tmp_path, Line(), *DONE, **budget_s(46 + 3 * 23 + 1))
    asks = tuple(Ask(side, None) for side in ("baseline", "winner", "winner", "baseline"))
    reason = purse.enough()
    assert reason is None
    assert purse.payable(asks, config_hash({"a": 1})) == asks[:2]
    state = setup.folder.budget()
    assert state is not None
    assert state.confirming == "the budget paid for 2 of the 4 runs that were to come next"


def test_runs_that_turn_out_cheaper_are_paid_for_after_all(tmp_path: Path) -> None:
    """Then the budget is no reason any more."""
    purse, setup = purse_of(tmp_path, Line(), *DONE, **budget_s(46 + 3 * 23 + 1))
    asks = tuple(Ask(side, None) for side in ("baseline", "winner", "winner", "baseline"))
    assert purse.payable(asks, config_hash({"a": 1})) == asks[:2]
    for each in (confirming(2, {}), confirming(3, {"a": 1})):
        setup.folder.save_record(replace(each, phases={"load": 0.1}))
    assert purse.payable(asks[2:], config_hash({"a": 1})) == asks[2:]
    state = setup.folder.budget()
    assert state is not None
    assert state.confirming is None


def measured(setup: Setup, gate: ExperimentGate, paid_s: float) -> int:
    """How many runs of a course are begun, at ten seconds each; one is halted when more than ``paid_s`` are spent."""
    assert gate.course is not None
    first = number = len(setup.folder.records())
    while wanted := gate.course():
        for each in wanted:
            made = confirming(number, dict(each.parameters))
            if 10.0 * (number + 1) > paid_s:
                halted = Failure("budget", "the budget is used up")
                made = replace(made, outcome="stopped", rungs=(), score=None, failure=halted)
            setup.folder.save_record(replace(made, phases={"load": 10.0}))
            number += 1
        assert number < 50
    return number - first


def test_a_course_ends_with_the_budget(tmp_path: Path) -> None:
    """What it does not pay for is not begun, and has no answer; with a larger one the same question goes on."""
    course = Plan({"a": 1, "b": 2}, ("a", "b"), task(confirm={"repeats": 2}).optimization)

    def ablated(seconds: float) -> tuple[int, Ablation, str | None]:
        budget = {"gpu_hours": (seconds + 0.1) / 3600}
        _, setup = purse_of(tmp_path, Line(), budget=budget, confirm={"repeats": 2})
        begun = measured(setup, ExperimentGate(setup, Line(), course), seconds)  # type: ignore[arg-type]
        state = setup.folder.budget()
        return begun, course.stand(setup.folder.records()), state and state.confirming

    begun, stand, said = ablated(10.0)
    assert begun == 2  # a pair, as nobody knew what it would take; the second one is halted
    assert not stand.is_over
    assert [(step.answer, step.runs) for step in stand.steps] == [("open", 1)]
    assert said == "the budget paid for 0 of the 3 runs that were to come next"
    begun, stand, said = ablated(55.0)
    assert (begun, stand.steps[0].runs, stand.is_over) == (3, 4, False)
    assert ablated(1e5)[1].is_over


def test_once_confirming_has_begun_the_search_is_over(tmp_path: Path) -> None:
    """What a confirming run did not need does not bring another winner."""
    purse, setup = purse_of(tmp_path, Line(), *DONE, **budget_s(46 + 23 + 45))
    reason = purse.enough()
    purse.payable((Ask("winner", None), Ask("baseline", None)), config_hash({"a": 1}))
    cheap = replace(record(2, {}, 1.0, purpose="confirm", rungs=1, repeat=1), phases={"load": 0.1})
    setup.folder.save_record(cheap)
    assert purse.enough() == reason


def confirming(number: int, parameters: dict[str, Any]) -> TrialRecord:
    return record(number, parameters, 1.0, purpose="confirm", rungs=1, repeat=number)


def test_a_search_that_is_over_stays_over_when_the_experiment_goes_on(tmp_path: Path) -> None:
    """Until it is given a larger budget."""
    purse, setup = purse_of(tmp_path, Line(), *DONE, **budget_s(46 + 23 + 45))
    reason = purse.enough()
    purse.payable((Ask("winner", None), Ask("baseline", None)), config_hash({"a": 1}))
    for each in (confirming(2, {}), confirming(3, {"a": 1})):
        setup.folder.save_record(replace(each, phases={"load": 0.1}))
    resumed, _ = purse_of(tmp_path, Line(), **budget_s(46 + 23 + 45))
    assert reason is not None
    assert resumed.enough() == reason
    larger, _ = purse_of(tmp_path, Line(), **budget_s(46 + 23 + 46))
    assert larger.enough() is None


def test_the_money_for_confirming_is_kept_again_when_another_configuration_leads(tmp_path: Path) -> None:
    """Runs of the one that led before do not confirm it."""
    made = (*DONE, confirming(2, {}), confirming(3, {"a": 1}))
    same, _ = purse_of(tmp_path / "same", Line(), *made, **budget_s(46 + 26 + 23))
    other, _ = purse_of(tmp_path / "other", Line(), *made, record(4, {"a": 2}, 0.5), **budget_s(69 + 26 + 23 + 25))
    assert same.enough() is None
    assert other.enough() is not None


def test_who_did_not_hold_up_is_none_of_the_pair_to_be_confirmed(tmp_path: Path) -> None:
    """The runs that are still to be paid are those of the next best one, on as many GPUs as that takes."""
    next_best = replace(record(2, {"a": 2}, 0.95), gpus=2)
    broke = record(4, {"a": 1}, 1.0, purpose="confirm", rungs=1, repeat=4, outcome="infeasible")
    made = (*DONE, next_best, confirming(3, {}))
    before, after = (Books(purse_of(tmp_path / str(len(m)), Line(), *m)[1]) for m in (made, (*made, broke)))
    before.look()
    after.look()
    assert (before.confirmed(), after.confirmed()) == (1, 0)
    assert (before.best_gpus(0), after.best_gpus(0)) == (DONE[1].gpus, 2)


def test_running_trials_are_ended_when_the_budget_is_used_up(tmp_path: Path) -> None:
    """Those of the search when what is kept is touched; the watch finds it and ends with the run."""
    purse, setup = purse_of(tmp_path, Line(), *DONE, **budget_s(46 + 23 + 46))
    setup.folder.save_state(running(7, since_s=30.0))
    setup.folder.save_state(running(8, purpose="confirm", since_s=1.0))
    with purse.watched():
        waiting.until(lambda: bool(setup.folder.halts()))
    (name,) = setup.folder.halts()
    assert name == running(7).trial.name
    assert "but for what confirming the winner costs" in setup.folder.halts()[name]
    state = setup.folder.budget()
    assert state is not None
    assert state.elapsed_s > 0


def test_a_trial_that_is_asked_to_end_keeps_its_rungs_and_says_why(tmp_path: Path) -> None:
    """It is torn down in order; only the one that was asked."""
    made = parse_task(
        {
            "task_name": "t",
            "backend": "local",
            "engine": "llamacpp",
            "model": {"name": "m", "path": "m.gguf"},
            "parameters": {"speed": {"type": "choice", "values": [0.1], "flag": "--speed"}},
            "optimization": {
                "objective": "minimize_latency",
                "scheduler": {"type": "asha"},
                "budget": {"gpu_hours": 9},
            },
        },
        "task.yaml",
    )
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    setup = FakeSetup(made, load_engine("llamacpp"), folder, tokenizer="", facts={"served_name": "m"})
    trial = setup.trial(TrialId("search", config_hash({"speed": 0.1})), 1, {"speed": 0.1})
    folder.halt({"search-another": "no"})
    assert trial.step() is None
    folder.halt({trial.job.trial.name: "the budget is used up"})
    ended = trial.step()
    assert ended is not None
    assert ended.outcome == "stopped"
    assert ended.failure is not None
    assert (ended.failure.kind, ended.failure.reason) == ("budget", "the budget is used up")
    assert len(ended.rungs) == 1
    assert ending(ended) == "out of budget"
    assert set(folder.halts()) == {"search-another", trial.job.trial.name}


def test_results_say_how_much_of_the_budget_was_spent(tmp_path: Path) -> None:
    """In numbers and in words; the verdict says when the budget ended it."""
    folder = full(tmp_path)
    folder.save_budget(BudgetState(1800.0, "no more", "the budget paid for 2 of the 4 runs that were to come next"))
    results = load_results(folder, task(budget={"gpu_hours": 1, "wall_time": "1h"}))
    assert results.budget is not None
    assert results.budget.elapsed_s == 1800.0
    assert results.budget.said.endswith("0.5 of 1 hours (50%)")
    assert "machine-hours" in results.budget.said
    assert results.verdict is not None
    assert results.verdict.reason.endswith("; the budget paid for 2 of the 4 runs that were to come next")
    assert document(results, {})["budget"]["search"] == "no more"
    assert load_results(folder, task()).budget is None
