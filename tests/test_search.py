"""What is proposed next, and what the sources learn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.objectives import scalar
from raytune_autotuner.planning.space import Space
from raytune_autotuner.proposal import BUDGET, LOSS, META, Ending, Proposal, report
from raytune_autotuner.records import (
    Failure,
    Metrics,
    Parameters,
    RungRecord,
    Score,
    TrialId,
    TrialRecord,
    config_hash,
)
from raytune_autotuner.search import (
    STRATEGIES,
    WORST,
    Ladder,
    Lessons,
    Limits,
    ListSource,
    Past,
    Proposer,
    make_scheduler,
    make_source,
)
from raytune_autotuner.search.knowledge import Knowledge
from raytune_autotuner.search.proposer import ATTEMPTS
from raytune_autotuner.search.ray_source import beginning
from raytune_autotuner.search.source import NOTHING
from raytune_autotuner.task.spec import Asha, Optimization, Task, parse_task
from raytune_autotuner.verdict import Ask
from raytune_autotuner.verdict.sequential import schedule

FINAL = 2


@dataclass
class Spy:
    """A source that hands out a list and remembers what it is told."""

    configurations: list[Parameters]
    told: dict[str, float | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def propose(self, key: str) -> Parameters | None:
        self.asked.append(key)
        return self.configurations.pop(0) if self.configurations else None

    def tell(self, key: str, loss: float | None) -> None:
        self.told[key] = loss


@dataclass
class Fence:
    """A gate that remembers what it refused."""

    problem: Callable[[Parameters], Failure | None] = lambda parameters: None
    stop: bool = False
    over: str | None = None
    refused: list[tuple[Proposal, Failure]] = field(default_factory=list)
    repeats: list[str] = field(default_factory=list)
    given_up: list[TrialId] = field(default_factory=list)
    too_dear: list[Parameters] = field(default_factory=list)
    records: dict[str, TrialRecord] = field(default_factory=dict)
    asks: list[Sequence[Ask]] = field(default_factory=list)
    """What the verdict wants to be measured, each time that it is asked."""
    finished: list[tuple[float, float, Parameters]] = field(default_factory=list)
    """Violation, loss and configuration of the trials that went to the end."""

    def champion(self) -> Parameters | None:
        return min(self.finished, key=lambda each: each[:2])[2] if self.finished else None

    equal: Callable[[Parameters], Parameters] = lambda parameters: parameters

    def same_as(self, parameters: Parameters) -> Parameters:
        return self.equal(parameters)

    def refuse(self, proposal: Proposal, failure: Failure) -> None:
        self.refused.append((proposal, failure))

    def affords(self, parameters: Parameters) -> bool:
        return parameters not in self.too_dear

    def unpaid(self) -> None:
        self.over = "nothing is left to pay with"

    def give_up(self, proposal: Proposal) -> None:
        self.given_up.append(proposal.trial)

    def repeated(self, config: str) -> None:
        self.repeats.append(config)

    def enough(self) -> str | None:
        return self.over

    def settled(self, reason: str) -> None:
        self.over = reason

    def stop_requested(self) -> bool:
        return self.stop

    def confirming(self, baseline: str, winner: str) -> Sequence[Ask]:
        return self.asks.pop(0) if self.asks else ()

    def ended(self, trial: TrialId) -> TrialRecord | None:
        return self.records.get(trial.name)


@dataclass
class Driver:
    """Plays Ray Tune: asks, and reports made-up results."""

    proposer: Proposer
    gate: Fence
    asked: int = 0
    running: dict[str, Proposal] = field(default_factory=dict)

    @property
    def refused(self) -> list[tuple[Proposal, Failure]]:
        return self.gate.refused

    def ask(self) -> tuple[str, Proposal]:
        self.asked += 1
        name = f"t{self.asked}"
        config = self.proposer.suggest(name)
        assert isinstance(config, dict), config
        self.running[name] = Proposal.from_config(config)
        return name, self.running[name]

    def end(self, name: str, losses: list[float], outcome: str | None = "completed", violation: float = 0.0) -> None:
        for n, loss in enumerate(losses, 1):
            ending = Ending(outcome) if outcome and n == len(losses) else None  # type: ignore[arg-type]
            result = report(score_of(loss, violation), n, 2.0, ending=ending)
            if n < len(losses):
                self.proposer.on_trial_result(name, result)
        if outcome == "completed" and not self.running[name].trial.again:
            self.gate.finished.append((violation, losses[-1], self.running[name].parameters))
        if not losses:
            result = report(None, 0, 2.0, ending=Ending(outcome) if outcome else None)  # type: ignore[arg-type]
        self.proposer.on_trial_complete(name, result)

    def finished(self) -> bool:
        return self.proposer.suggest("last") == Searcher.FINISHED


def score_of(loss: float, violation: float = 0.0) -> Score:
    return Score("minimize_latency", loss, "s", "min", loss, violation)


def driver(
    source: Any,
    *,
    stop: bool = False,
    fallback: Any = None,
    max_trials: int = 10,
    confirm_repeats: int = 0,
    control_every: int | None = None,
    patience: int | None = None,
    problem: Callable[[Parameters], Failure | None] = lambda parameters: None,
    past: Past = Past(),  # noqa: B008 - a value
) -> Driver:
    gate = Fence(problem, stop)
    gate.asks.append(schedule(confirm_repeats, ()))
    limits = Limits(max_trials, control_every, patience)
    proposer = Proposer(source, fallback=fallback, limits=limits, gate=gate, past=past, clock=lambda: 100.0)
    return Driver(proposer, gate)


class OnePlace:
    """A queue with room for one trial at a time."""

    def __init__(self) -> None:
        self.waiting: list[Proposal] = []
        self.busy = False

    def wants_more(self) -> bool:
        return not self.busy

    def add(self, proposal: Proposal) -> None:
        self.waiting.append(proposal)

    def start(self) -> Proposal | None:
        if self.busy or not self.waiting:
            return None
        self.busy = True
        return self.waiting.pop(0)

    def has_other_place(self, proposal: Proposal) -> bool:
        return False

    def release(self, proposal: Proposal, *, elsewhere: bool = False) -> None:
        self.busy = False

    def __len__(self) -> int:
        return len(self.waiting)


def test_nothing_is_proposed_before_it_can_start() -> None:
    """A model that is asked later knows more."""
    spy, queue = Spy([{"a": 1}, {"a": 2}]), OnePlace()
    gate = Fence()
    d = Driver(Proposer(spy, fallback=None, limits=Limits(9), gate=gate, queue=queue), gate)
    name, _ = d.ask()
    assert d.proposer.suggest("early") is None
    assert spy.asked == []
    d.end(name, [1.0, 1.0])
    d.ask()
    assert len(spy.asked) == 1


def test_a_search_whose_gpus_others_hold_waits_for_them() -> None:
    """At its start and between two trials, with one proposal in the line that says for what; it is not over."""
    spy, queue, gate = Spy([{"a": 1}]), OnePlace(), Fence()
    d = Driver(Proposer(spy, fallback=None, limits=Limits(9), gate=gate, queue=queue), gate)
    queue.busy = True
    assert [d.proposer.suggest("early"), d.proposer.suggest("early")] == [None, None]
    assert [proposal.trial.purpose for proposal in queue.waiting] == ["baseline"]
    queue.busy = False
    d.end(d.ask()[0], [1.0, 1.0])
    queue.busy = True
    assert [d.proposer.suggest("late"), d.proposer.suggest("late")] == [None, None]
    assert [proposal.parameters for proposal in queue.waiting] == [{"a": 1}]
    queue.busy = False
    d.end(d.ask()[0], [1.0, 1.0])
    queue.busy = True
    assert d.finished()


def test_the_baseline_comes_first_and_the_search_after_it() -> None:
    """With numbers in order of proposal."""
    d = driver(Spy([{"a": 1}, {"a": 2}]))
    seen = [d.ask()[1] for _ in range(3)]
    assert [(p.number, p.trial.purpose, p.parameters) for p in seen] == [
        (0, "baseline", {}),
        (1, "search", {"a": 1}),
        (2, "search", {"a": 2}),
    ]


def test_a_proposal_survives_the_way_through_tune() -> None:
    """To a configuration and back."""
    d = driver(Spy([{"a": 1, "b": "x", "c": None}]))
    d.ask()
    config = d.proposer.suggest("x")
    assert isinstance(config, dict)
    again = Proposal.from_config(config)
    assert again.to_config() == config
    assert config[META]["proposed_at"] == 100.0


def test_the_number_of_trials_is_bounded() -> None:
    """``max_iterations`` counts what the search proposes."""
    d = driver(Spy([{"a": n} for n in range(10)]), max_trials=3)
    for _ in range(4):
        d.end(d.ask()[0], [1.0, 1.0])
    assert d.finished()


def test_nothing_is_measured_twice_and_the_source_gets_the_known_value() -> None:
    """A repeated proposal is answered from memory."""
    spy = Spy([{"a": 1}, {"a": 1}, {"a": 2}])
    d = driver(spy)
    d.end(d.ask()[0], [1.0, 1.0])
    d.end(d.ask()[0], [3.0, 2.0])
    assert d.ask()[1].parameters == {"a": 2}
    assert [spy.told.get(k) for k in spy.asked[:2]] == [scalar(2.0, 0.0)] * 2
    assert d.gate.repeats == [config_hash({"a": 1})]


def test_a_repeat_of_a_running_trial_is_told_when_that_ends() -> None:
    """It does not wait, and it does not run."""
    spy = Spy([{"a": 1}, {"a": 1}, {"a": 2}])
    d = driver(spy)
    d.ask()
    name, _ = d.ask()
    assert d.ask()[1].parameters == {"a": 2}
    assert spy.told == {}
    d.end(name, [3.0, 2.0])
    assert [spy.told[k] for k in spy.asked[:2]] == [scalar(2.0, 0.0)] * 2


def test_a_source_that_only_repeats_itself_is_helped_out() -> None:
    """Fresh random configurations take over; when there are none either, the search ends."""
    d = driver(Spy([{"a": 1}] * 100), fallback=Spy([{"a": 1}, {"a": 7}]))
    d.ask()
    assert d.ask()[1].parameters == {"a": 1}
    assert d.ask()[1].parameters == {"a": 7}
    assert d.proposer.suggest("x") is None


def test_infeasible_is_the_worst_finite_value() -> None:
    """Raised errors and NaN draw TPE back to the failing region; a finite bad value does not."""
    spy = Spy([{"a": 1}])
    d = driver(spy)
    d.end(d.ask()[0], [1.0, 1.0])
    d.end(d.ask()[0], [], "infeasible")
    assert list(spy.told.values()) == [WORST]
    assert math.isfinite(WORST)
    assert scalar(1e9, 1e6) <= WORST


def test_a_fault_of_the_infrastructure_teaches_nothing() -> None:
    """The configuration was not at fault."""
    spy = Spy([{"a": 1}])
    d = driver(spy)
    d.end(d.ask()[0], [1.0, 1.0])
    d.end(d.ask()[0], [], "failed")
    assert list(spy.told.values()) == [None]


def test_a_stopped_trial_is_told_as_the_last_rung_would_have_shown_it() -> None:
    """Its short rung read 3 s; trials that went on doubled from first to last, so 6 s is told."""
    spy = Spy([{"a": 1}, {"a": 2}])
    d = driver(spy)
    d.end(d.ask()[0], [1.0, 2.0])
    d.end(d.ask()[0], [2.0, 4.0])
    d.end(d.ask()[0], [3.0], None)
    assert list(spy.told.values()) == [scalar(4.0, 0.0), scalar(6.0, 0.0)]


def test_the_baseline_is_measured_again_in_the_midst_of_the_search() -> None:
    """After every second trial that came to its end; its value is its own affair, and no source hears of it."""
    spy = Spy([{"a": n} for n in range(7)])
    d = driver(spy, control_every=2)
    asked = []
    for outcome in ("completed", "completed", None, "completed", "completed", "infeasible", *["completed"] * 4):
        name, proposal = d.ask()
        asked.append((proposal.trial.purpose, proposal.trial.repeat))
        d.end(name, [1.0], outcome)
    assert d.finished()
    assert asked == [("baseline", 0), S, S, S, ("control", 1), S, S, S, ("control", 2), S]
    assert len(spy.told) == 7


S = ("search", 0)


def test_a_search_that_goes_on_counts_the_controls_of_before() -> None:
    """Those that are still open included."""
    past = [Proposal(TrialId("baseline", config_hash({})), 0, {}, 0.0)]
    past += [Proposal(TrialId("search", config_hash({"a": n})), n, {"a": n}, 0.0) for n in range(1, 5)]
    ended = tuple(record_of(proposal, [1.0]) for proposal in past)
    opened = Proposal(TrialId("control", config_hash({}), 1), 5, {}, 0.0)
    d = driver(Spy([{"a": 9}, {"a": 10}]), control_every=2, past=Past(ended, (opened,)))
    purposes = []
    for _ in range(4):
        name, proposal = d.ask()
        purposes.append((proposal.trial.purpose, proposal.trial.repeat))
        d.end(name, [1.0])
    assert purposes == [("control", 1), ("control", 2), S, S]


def test_without_a_baseline_that_works_it_is_not_measured_again() -> None:
    """It would fail again."""
    d = driver(Spy([{"a": 1}, {"a": 2}]), control_every=1)
    d.end(d.ask()[0], [], "infeasible")
    for _ in range(2):
        name, proposal = d.ask()
        assert proposal.trial.purpose == "search"
        d.end(name, [1.0])
    assert d.finished()


def test_a_trial_whose_place_is_gone_before_it_began_is_begun_again() -> None:
    """As often as it takes: it was no attempt, and nothing was learnt."""
    spy = Spy([{"a": 1}])
    d = driver(spy)
    d.end(d.ask()[0], [1.0])
    name, first = d.ask()
    for _ in range(5):
        d.proposer.on_trial_complete(name)
        name, again = d.ask()
        assert again.trial == first.trial
    assert spy.told == {}
    d.end(name, [0.5])
    assert list(spy.told.values()) == [scalar(0.5, 0.0)]


def test_a_trial_that_waits_is_void_once_the_experiment_is_to_end() -> None:
    """It is not begun, and what is not known of it teaches nothing."""
    spy = Spy([{"a": 1}])
    d = driver(spy)
    d.end(d.ask()[0], [1.0])
    name, _ = d.ask()
    assert not d.proposer.is_void(name)
    assert not d.proposer.is_void("nobody")
    d.gate.stop = True
    assert d.proposer.is_void(name)
    d.proposer.on_trial_complete(name)
    assert list(spy.told.values()) == [None]
    assert d.finished()


@dataclass
class Controller:
    """As much of Tune's as a scheduler is shown."""

    trials: set[Trial]
    """Those that have not ended; what is asked of the others would cost more the longer an experiment takes."""
    stopped: list[str] = field(default_factory=list)

    def get_live_trials(self) -> set[Trial]:
        return self.trials

    def stop_trial(self, trial: Any) -> None:
        trial.status = Trial.TERMINATED
        self.stopped.append(trial.trial_id)


@pytest.mark.parametrize("scheduler", ["none", Asha()])
def test_trials_that_wait_in_vain_are_taken_back(scheduler: Any) -> None:
    """Those that run are left alone: they end by themselves when their node goes."""
    controller = Controller({tunes("lost"), tunes("fine", Trial.RUNNING), tunes("running", Trial.RUNNING)})
    made = make_scheduler(Optimization(scheduler=scheduler), 3, void=lambda name: name in ("lost", "running"))
    assert [made.choose_trial_to_run(controller) for _ in range(2)] == [None, None]  # type: ignore[arg-type]
    assert controller.stopped == ["lost"]


@pytest.mark.parametrize("scheduler", ["none", Asha()])
def test_trials_begin_in_the_order_in_which_they_were_proposed(scheduler: Any) -> None:
    """Of those that wait, whatever order Tune keeps them in."""
    waiting = [tunes(str(number), number=number) for number in range(20)]
    controller = Controller({tunes("running", Trial.RUNNING, number=-1), *waiting})
    made = make_scheduler(Optimization(scheduler=scheduler), 3)
    chosen = []
    while (trial := made.choose_trial_to_run(controller)) is not None:  # type: ignore[arg-type]
        trial.status = Trial.RUNNING
        chosen.append(trial)
    assert chosen == waiting


def tunes(name: str, status: str = Trial.PENDING, number: int = 0) -> Trial:
    """As Tune knows a trial of ours."""
    config = Proposal(TrialId("search", config_hash({})), number, {}, 0.0).to_config()
    trial = Trial("nobody", trial_id=name, config=config, stub=True)
    trial.status = status
    return trial


def test_the_search_ends_when_it_is_enough() -> None:
    """The budget is spent, say: no more configurations are asked for, and what is known is confirmed."""
    spy = Spy([{"a": 1}, {"a": 2}])
    d = driver(spy)
    d.end(d.ask()[0], [1.0])
    d.end(d.ask()[0], [0.5])
    d.gate.over = "the budget is spent"
    assert d.finished()
    assert len(spy.asked) == 1


@dataclass
class Sage(Spy):
    """Says that nothing is worth a trial any more, when it is told to."""

    why: str | None = None

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        pass

    def goes_on(self, parameters: Parameters) -> bool:
        return True

    def hopeless(self) -> str | None:
        return self.why


def test_a_search_with_nothing_left_to_gain_ends() -> None:
    """Nothing is drawn at random instead, the experiment hears why, and what is known is confirmed."""
    sage = Sage([{"a": 1}, {"a": 2}, {"a": 1}, {"a": 3}, {"a": 4}])
    d = driver(sage, fallback=Spy([{"a": 5}]), confirm_repeats=1, patience=2)
    d.end(d.ask()[0], [1.0])
    d.end(d.ask()[0], [0.5])
    sage.why = "nothing is left"
    assert [d.ask()[1].parameters for _ in range(2)] == [{"a": 2}, {"a": 3}]
    for name in list(d.running)[2:]:
        d.end(name, [1.0])
    assert [d.ask()[1].trial.purpose for _ in range(2)] == ["confirm", "confirm"]
    assert d.gate.over == "nothing is left; so it was for the last 2 trials"
    assert sage.configurations == [{"a": 4}]


def test_what_runs_may_show_that_there_is_more_to_gain() -> None:
    """So the search waits for it, and goes on when it does."""
    sage = Sage([{"a": 1}, {"a": 2}], why="nothing is left")
    d = driver(sage, patience=1)
    d.end(d.ask()[0], [1.0])
    running, _ = d.ask()
    assert d.proposer.suggest("later") is None
    assert d.gate.over is None
    d.end(running, [0.5])
    sage.why = None
    assert d.ask()[1].parameters == {"a": 2}


@pytest.mark.parametrize("patience", [None, 2])
def test_without_patience_or_in_the_midst_of_it_the_search_goes_on(patience: int | None) -> None:
    """One that promises something begins the count anew."""
    sage = Sage([{"a": n} for n in range(4)], why="nothing is left")
    d = driver(sage, patience=patience)
    d.end(d.ask()[0], [1.0])
    for n in range(4):
        sage.why = None if n == 1 else "nothing is left"
        name, proposal = d.ask()
        assert proposal.parameters == {"a": n}
        d.end(name, [0.5])
    assert d.finished()
    assert d.gate.over == (None if patience is None else "nothing is left; so it was for the last 2 trials")


def test_what_is_too_dear_is_passed_over() -> None:
    """It is no result: the source learns nothing, and a cheaper one takes its place."""
    spy = Spy([{"a": 8}, {"a": 1}])
    d = driver(spy)
    d.gate.too_dear.append({"a": 8})
    d.end(d.ask()[0], [1.0, 1.0])
    assert d.ask()[1].parameters == {"a": 1}
    assert spy.told[spy.asked[0]] is None
    assert d.refused == []
    assert d.gate.over is None


def test_what_is_too_dear_waits_for_what_runs() -> None:
    """That may take less than is feared; nothing takes its place, and it is the source's first choice all the same."""
    spy = Spy([{"a": 8}, {"a": 1}])
    d = driver(spy)
    d.gate.too_dear.append({"a": 8})
    baseline, _ = d.ask()
    assert [d.proposer.suggest(f"early-{n}") for n in range(3)] == [None] * 3
    assert len(spy.asked) == 1
    d.gate.too_dear.clear()
    assert d.ask()[1].parameters == {"a": 8}
    d.end(baseline, [1.0, 1.0])
    assert d.ask()[1].parameters == {"a": 1}
    assert d.gate.over is None


def test_a_search_of_which_nothing_can_be_paid_says_so() -> None:
    """Once nothing runs that might leave something."""
    spy = Spy([{"a": 8}, {"a": 4}])
    d = driver(spy)
    d.gate.too_dear += [{"a": 8}, {"a": 4}]
    baseline, _ = d.ask()
    assert d.proposer.suggest("early") is None
    assert d.gate.over is None
    d.end(baseline, [1.0, 1.0])
    assert d.proposer.suggest("late") == Searcher.FINISHED
    assert d.gate.over == "nothing is left to pay with"
    assert set(spy.told.values()) == {None}


def test_what_was_stopped_early_is_told_once_others_show_what_it_is_worth() -> None:
    """Not as it is: a short rung measures another quantity."""
    spy = Spy([{"a": 1}, {"a": 2}])
    d = driver(spy)
    baseline, first, second = (d.ask()[0] for _ in range(3))
    d.end(first, [4.0], outcome="stopped")
    assert spy.told == {}
    d.end(second, [6.0, 3.0])
    assert spy.told == {spy.asked[1]: scalar(3.0, 0.0), spy.asked[0]: scalar(2.0, 0.0)}
    d.end(baseline, [1.0, 1.0])
    assert len(spy.told) == 2


def test_what_cannot_fit_is_refused_before_it_is_queued() -> None:
    """It costs a number and a record, no GPU."""
    spy = Spy([{"gpus": 16}, {"gpus": 1}])
    d = driver(spy, problem=lambda p: Failure("no_fit", "too wide") if p.get("gpus") == 16 else None)
    d.ask()
    assert d.ask()[1].parameters == {"gpus": 1}
    assert [(p.parameters, p.number, failure.reason) for p, failure in d.refused] == [({"gpus": 16}, 1, "too wide")]
    assert spy.told[spy.asked[0]] == WORST


def test_what_fails_by_now_is_refused_when_its_turn_comes() -> None:
    """While it waited, others have shown that it must; who has been on a GPU already goes on."""
    spy, queue, gate = Spy([{"a": 1}, {"a": 2}]), OnePlace(), Fence()
    d = Driver(Proposer(spy, fallback=None, limits=Limits(9), gate=gate, queue=queue), gate)
    d.end(d.ask()[0], [1.0, 1.0])
    queue.busy = True
    assert d.proposer.suggest("early") is None
    (waits,) = queue.waiting
    failure = Failure("out_of_memory", "as others")
    gate.problem = lambda parameters: failure if parameters == {"a": 1} else None
    queue.busy = False
    assert d.ask()[1].parameters == {"a": 2}
    assert d.refused == [(waits, failure)]
    assert spy.told == {spy.asked[0]: WORST}
    assert driver(Spy([]), problem=gate.problem, past=Past(open=(waits,))).ask()[1].parameters == {"a": 1}


def test_winner_and_baseline_are_measured_again_in_turn() -> None:
    """A B B A, after the last search trial has ended, and only the whole workload."""
    d = driver(Spy([{"a": 1}, {"a": 2}]), confirm_repeats=2)
    names = [d.ask()[0] for _ in range(3)]
    d.end(names[0], [5.0, 5.0])
    d.end(names[1], [4.0, 4.0])
    assert d.proposer.suggest("too early") is None
    d.end(names[2], [3.0, 3.0])
    seen = []
    for _ in range(4):
        name, proposal = d.ask()
        seen.append((proposal.trial.purpose, proposal.parameters, proposal.trial.repeat))
        d.end(name, [9.0])
    assert seen == [
        ("confirm", {}, 1),
        ("confirm", {"a": 2}, 1),
        ("confirm", {"a": 2}, 2),
        ("confirm", {}, 2),
    ]
    assert d.finished()


def test_a_winner_that_breaks_the_slo_is_not_chosen_over_one_that_keeps_it() -> None:
    """However fast it is."""
    d = driver(Spy([{"a": 1}, {"a": 2}]), confirm_repeats=1)
    d.end(d.ask()[0], [5.0, 5.0])
    d.end(d.ask()[0], [1.0, 1.0], violation=0.5)
    d.end(d.ask()[0], [4.0, 4.0])
    assert [d.ask()[1].parameters for _ in range(2)] == [{}, {"a": 2}]


@pytest.mark.parametrize("outcome", ["infeasible", "failed"])
def test_without_a_baseline_there_is_nothing_to_confirm(outcome: str) -> None:
    """A gain needs something to be compared with."""
    d = driver(Spy([{"a": 1}]), confirm_repeats=2)
    d.end(d.ask()[0], [], outcome)
    d.end(d.ask()[0], [4.0, 4.0])
    assert d.finished()


def test_when_the_baseline_is_the_best_nothing_is_confirmed() -> None:
    """GPU time is not spent on comparing a configuration with itself."""
    d = driver(Spy([{"a": 1}]), confirm_repeats=2)
    d.end(d.ask()[0], [1.0, 1.0])
    d.end(d.ask()[0], [4.0, 4.0])
    assert d.finished()


def test_a_stop_request_ends_the_proposals() -> None:
    """No new trial after it."""
    assert driver(Spy([{"a": 1}]), stop=True).finished()


def record_of(
    proposal: Proposal, losses: list[float], outcome: Any = "completed", violation: float = 0.0
) -> TrialRecord:
    """What such a trial leaves behind."""
    scores = [score_of(loss, violation) for loss in losses]
    rungs = tuple(RungRecord(n, Metrics(n, (), 1.0, 0.0), score, 1.0) for n, score in enumerate(scores))
    return TrialRecord(proposal.trial, "exp", proposal.number, proposal.parameters, outcome, "", rungs, FINAL)


def ask_many(d: Driver, number: int) -> list[Proposal]:
    return [d.ask()[1] for _ in range(number)]


def test_an_experiment_goes_on_where_it_was() -> None:
    """What ended is not run again, what was cut short comes first under its own name, and numbers go on."""
    grid = [{"a": n} for n in range(5)]
    earlier = ask_many(driver(ListSource(grid)), 4)
    past = Past((record_of(earlier[0], [9.0, 9.0]), record_of(earlier[1], [8.0, 8.0])), tuple(earlier[2:]))
    d = driver(ListSource(grid), past=past)
    seen = ask_many(d, 4)
    assert [p.trial for p in seen[:2]] == [p.trial for p in earlier[2:]]
    assert [(p.number, p.parameters) for p in seen] == [
        (2, {"a": 1}), (3, {"a": 2}), (4, {"a": 3}), (5, {"a": 4})
    ]  # fmt: skip


def test_a_long_past_does_not_exhaust_the_source() -> None:
    """A stream that begins anew first repeats what it proposed before."""
    grid = [{"a": n} for n in range(60)]
    earlier = ask_many(driver(ListSource(grid), max_trials=100), 51)
    d = driver(ListSource(grid), past=Past(tuple(record_of(p, [1.0]) for p in earlier)), max_trials=100)
    assert d.ask()[1].parameters == {"a": 50}


def test_the_number_of_trials_counts_those_before() -> None:
    """An interruption gives no extra trials."""
    grid = [{"a": n} for n in range(9)]
    earlier = ask_many(driver(ListSource(grid)), 3)
    d = driver(
        ListSource(grid),
        past=Past((record_of(earlier[0], [9.0]), record_of(earlier[1], [9.0])), earlier[2:]),
        max_trials=3,
    )
    for _ in range(2):
        d.end(d.ask()[0], [1.0, 1.0])
    assert d.finished()


def test_confirming_runs_go_on_until_the_verdict_stands() -> None:
    """What it wants next is asked when the runs before have ended; their repeats go on counting, after a resume too."""
    past = [Proposal(TrialId(p, config_hash(c), r), n, c, 0.0) for n, (p, c, r) in enumerate(  # type: ignore[arg-type]
        [("baseline", {}, 0), ("search", {"a": 1}, 0), ("confirm", {}, 1), ("confirm", {"a": 1}, 1)]
    )]  # fmt: skip
    losses = [9.0, 5.0, 9.0, 5.0]
    ended = tuple(record_of(p, [loss, loss]) for p, loss in zip(past, losses, strict=True))
    d = driver(ListSource([]), past=Past(ended))
    d.gate.finished.append((0.0, 5.0, {"a": 1}))
    d.gate.asks = [[Ask("winner", "n1")], [Ask("baseline", "n2"), Ask("winner")], []]
    name, first = d.ask()
    assert d.proposer.suggest("early") is None
    d.end(name, [5.0])
    second = ask_many(d, 2)
    assert [(p.parameters, p.trial.repeat) for p in (first, *second)] == [({"a": 1}, 2), ({}, 2), ({"a": 1}, 3)]
    for n in range(2):
        d.end(f"t{d.asked - n}", [5.0])
    assert d.finished()


def test_runs_of_a_winner_that_did_not_hold_up_are_dropped() -> None:
    """The next best one takes its place at once."""
    d = driver(ListSource([{"a": 1}, {"a": 2}]), confirm_repeats=2, max_trials=2)
    for loss in (9.0, 5.0, 6.0):
        d.end(d.ask()[0], [loss, loss])
    d.gate.asks.append(schedule(1, ()))
    seen = []
    for _ in range(2):
        name, proposal = d.ask()
        seen.append(proposal.parameters)
        d.end(name, [9.0])
    d.gate.finished.remove((0.0, 5.0, {"a": 1}))
    while not isinstance(config := d.proposer.suggest("next"), str):
        assert config is not None
        seen.append(Proposal.from_config(config).parameters)
        d.running["next"] = Proposal.from_config(config)
        d.end("next", [6.0])
    assert seen == [{}, {"a": 1}, {}, {"a": 2}]


def test_a_trial_whose_worker_dies_is_begun_again() -> None:
    """Under its own name, a few times; then it counts as failed, and nothing is learnt of it."""
    spy = Spy([{"a": 1}])
    d = driver(spy, max_trials=1)
    d.end(d.ask()[0], [9.0, 9.0])
    trials = []
    for _ in range(ATTEMPTS):
        name, proposal = d.ask()
        trials.append(proposal.trial)
        d.proposer.on_trial_complete(name, None, error=True)
    assert trials == [trials[0]] * ATTEMPTS
    assert d.gate.given_up == trials[:1]
    assert d.finished()
    assert list(spy.told.values()) == [None]


@pytest.mark.parametrize(("elsewhere", "begun"), [(True, ATTEMPTS), (False, 1)])
def test_a_trial_that_fails_is_begun_again_where_there_is_another_place(elsewhere: bool, begun: int) -> None:
    """Its last failure stands: nobody asks to have it opened again when it is not going to run."""
    queue, gate, opened = OnePlace(), Fence(), []
    queue.has_other_place = lambda proposal: elsewhere  # type: ignore[method-assign]
    gate.ended = lambda trial: opened.append(trial)  # type: ignore[assignment,func-returns-value]
    spy = Spy([{"a": 1}])
    d = Driver(Proposer(spy, fallback=None, limits=Limits(1), gate=gate, queue=queue), gate)
    d.end(d.ask()[0], [9.0, 9.0])
    for _ in range(begun):
        d.end(d.ask()[0], [], "failed")
    assert d.finished()
    assert len(opened) == begun - 1
    assert list(spy.told.values()) == [None]


def test_a_trial_that_was_resumed_tells_of_its_later_rungs_alone() -> None:
    """They are compared with the same rungs of others."""
    knowledge = Knowledge()
    whole = knowledge.add({"a": 1})
    whole.hear(report(score_of(10.0), 1, 2.0))
    whole.hear(report(score_of(5.0), 2, 2.0, ending=Ending("completed")))
    resumed = knowledge.add({"a": 2})
    resumed.hear(report(score_of(4.0), 2, 2.0, ending=Ending("stopped")))
    assert knowledge.told(resumed) == scalar(4.0, 0.0)


def test_a_worker_that_dies_after_a_record_that_breaks_the_slo_has_told_so() -> None:
    """Its violation is known as its losses are."""
    spy = Spy([{"a": 1}])
    d = driver(spy, max_trials=1)
    d.end(d.ask()[0], [9.0, 9.0])
    name, proposal = d.ask()
    d.gate.records[proposal.trial.name] = record_of(proposal, [4.0, 3.0], violation=0.5)
    d.proposer.on_trial_complete(name, None, error=True)
    assert d.finished()
    assert list(spy.told.values()) == [scalar(3.0, 0.5)]


def test_a_worker_that_dies_after_its_record_has_done_its_work() -> None:
    """What it wrote is told to the source, and is not measured again."""
    spy = Spy([{"a": 1}])
    d = driver(spy, max_trials=1)
    d.end(d.ask()[0], [9.0, 9.0])
    name, proposal = d.ask()
    d.gate.records[proposal.trial.name] = record_of(proposal, [4.0, 3.0])
    d.proposer.on_trial_complete(name, None, error=True)
    assert d.finished()
    assert list(spy.told.values()) == [scalar(3.0, 0.0)]


@pytest.mark.parametrize("strategy", ["adaptive", "bayesian", "optuna"])
def test_a_model_begins_with_the_complete_history(strategy: str) -> None:
    """It does not propose again what it was told, and it goes to where the good values were."""
    task = parse_task(
        {
            "task_name": "t",
            "backend": "local",
            "engine": "llamacpp",
            "model": {"name": "m"},
            "parameters": {"x": {"type": "float", "low": 0, "high": 1, "flag": "--x"}},
            "optimization": {"strategy": strategy},
        },
        "task",
    )
    space = Space.of(task, load_engine("llamacpp"))
    told = tuple(({"x": round(n / 40, 6)}, abs(n / 40 - 0.8)) for n in range(40))
    source = make_source(task, space, Lessons(told, ({"x": 0.123},)))
    source.tell(config_hash({"x": 0.123}), 0.9)
    proposed = [source.propose(f"p{n}") for n in range(10)]
    assert len({p["x"] for p in proposed if p}) == 10
    assert sum(abs(float(p["x"]) - 0.8) < 0.2 for p in proposed if p) >= 6  # type: ignore[arg-type]


def test_tune_sees_nan_for_a_trial_without_a_score() -> None:
    """NaN stays out of ASHA's quantiles; the source learns of it in another way."""
    result = report(None, 0, 2.0, ending=Ending("infeasible"))
    assert math.isnan(result[LOSS])
    assert result["done"]


@pytest.mark.parametrize(("rungs", "factor"), [(2, 2.0), (3, 2.0), (4, 3.0), (5, 1.5)])
def test_asha_has_a_milestone_at_every_rung_but_the_last(rungs: int, factor: float) -> None:
    """A trial in the worse half is stopped at each of them."""
    for at in range(1, rungs):
        ladder = Ladder(factor, rungs)
        for trial, loss in (("good", 0.1), ("better", 0.05), ("bad", 0.9)):
            fake = FakeTrial(trial)
            ladder.on_trial_add(None, fake)
            for done in range(1, at + 1):
                quality = loss if done == at else 0.1
                action = ladder.on_trial_result(None, fake, {LOSS: quality, BUDGET: factor ** (done - 1)})
        assert action == "STOP", at


def test_asha_never_stops_the_baseline() -> None:
    """It has to be measured to the end, whatever came before it."""
    ladder = Ladder(2.0, 3)
    for n, loss in enumerate((0.1, 0.05)):
        ladder.on_trial_add(None, FakeTrial(str(n)))
        ladder.on_trial_result(None, FakeTrial(str(n)), {LOSS: loss, BUDGET: 1.0})
    baseline = FakeTrial("b", "baseline")
    ladder.on_trial_add(None, baseline)
    assert ladder.on_trial_result(None, baseline, {LOSS: 0.9, BUDGET: 1.0}) == "CONTINUE"


@dataclass(frozen=True)
class FakeTrial:
    trial_id: str
    purpose: str = "search"

    @property
    def config(self) -> Mapping[str, Any]:
        return {META: {"purpose": self.purpose}}


def test_without_a_scheduler_nothing_is_stopped() -> None:
    """Neither when the ladder has one rung only."""
    none = Optimization(scheduler="none")
    assert not isinstance(make_scheduler(none, 2), Ladder)
    assert not isinstance(make_scheduler(Optimization(), 1), Ladder)
    assert isinstance(make_scheduler(Optimization(), 2), Ladder)


def test_the_ladder_compares_with_the_trials_of_before() -> None:
    """A resumed experiment stops what it would have stopped."""
    asha = Optimization.model_validate({"scheduler": {"type": "asha"}})
    ended = [record_of(Proposal(TrialId("search", f"{n:012}"), n, {"a": n}, 0.0), [1.0 + n]) for n in range(4)]
    ladder = make_scheduler(asha, 2, ended)
    proposal = Proposal(TrialId("search", "abc"), 9, {"a": 9}, 0.0)
    trial = SimpleNamespace(trial_id="t", config=proposal.to_config())
    ladder.on_trial_add(None, trial)
    assert ladder.on_trial_result(None, trial, report(score_of(5.0), 1, 2.0)) == "STOP"


def local_task(strategy: str, seed: int = 3) -> Task:
    return parse_task(
        {
            "task_name": "t",
            "backend": "local",
            "engine": "llamacpp",
            "model": {"name": "m", "path": "m.gguf"},
            "parameters": {
                "threads": {"type": "choice", "values": [1, 2, 4]},
                "parallel": {"type": "int", "low": 1, "high": 8},
                "ubatch_size": {"type": "int", "low": 16, "high": 512, "step": 16},
            },
            "constraints": ["threads * parallel <= 16"],
            "optimization": {"strategy": strategy, "max_iterations": 12, "seed": seed},
            "benchmark": {"traffic_scenarios": ["D(10,10)"]},
        },
        "task.yaml",
    )


def proposals(strategy: str, seed: int = 3) -> list[Parameters]:
    """Twelve configurations with made-up results: fewer threads are better."""
    task = local_task(strategy, seed)
    d = driver(make_source(task, Space.of(task, load_engine("llamacpp"))), max_trials=12)
    d.end(d.ask()[0], [50.0, 50.0])
    seen = []
    for _ in range(12):
        name, proposal = d.ask()
        seen.append(proposal.parameters)
        d.end(name, [float(proposal.parameters["threads"] or 0)] * 2)
    return seen


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_same_seed_proposes_the_same(strategy: str) -> None:
    """And every proposal keeps the constraints and is new."""
    first = proposals(strategy)
    assert first == proposals(strategy)
    assert all(int(p["threads"] or 0) * int(p["parallel"] or 0) <= 16 for p in first)
    assert len({str(sorted(p.items())) for p in first}) == 12


@pytest.mark.parametrize("strategy", ["adaptive", "random", "bayesian", "optuna"])
def test_another_seed_proposes_something_else(strategy: str) -> None:
    """The seed is not decoration."""
    assert proposals(strategy, 3) != proposals(strategy, 4)


@pytest.mark.parametrize("strategy", ["random", "bayesian", "optuna"])
def test_a_search_begins_spread_out(strategy: str) -> None:
    """Eight points before a model is trusted show each of four values of each parameter twice, as no dice would."""
    task = local_task(strategy)
    spread_out = {name: {"type": "choice", "values": [1, 2, 4, 8]} for name in ("threads", "parallel")}
    task = parse_task(
        task.model_dump(mode="json")
        | {"parameters": spread_out, "constraints": [], "optimization": {"strategy": strategy, "max_iterations": 24}},
        "task.yaml",
    )
    source = make_source(task, Space.of(task, load_engine("llamacpp")))
    begun = [source.propose(f"p{n}") or {} for n in range(8)]
    for name in spread_out:
        assert Counter(point[name] for point in begun) == {1: 2, 2: 2, 4: 2, 8: 2}
    assert len({config_hash(point) for point in begun}) == 8


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_what_a_source_never_proposed_is_not_told_to_it(strategy: str) -> None:
    """A baseline that was cut short, and a trial that is not in the space any more, go on when a search is resumed."""
    task = local_task(strategy)
    space = Space.of(task, load_engine("llamacpp"))
    elsewhere: Parameters = {"threads": 1, "parallel": 99, "ubatch_size": 16}
    begun = [({}, TrialId("baseline", config_hash({}))), (elsewhere, TrialId("search", config_hash(elsewhere)))]
    past = Past(open=tuple(Proposal(trial, n, p, 0.0) for n, (p, trial) in enumerate(begun)))
    d = driver(make_source(task, space, past.lessons()), max_trials=3, past=past)
    for _ in range(2):
        d.end(d.ask()[0], [50.0, 50.0])
    assert d.ask()[1].trial.purpose == "search"


def test_an_early_stopped_trial_is_told_after_a_resume_when_another_came_to_its_end() -> None:
    """It was too early for that when the search was interrupted."""
    ended = record_of(Proposal(TrialId("search", config_hash({"a": 1})), 1, {"a": 1}, 0.0), [4.0], "stopped")
    past = Past(ended=(ended,), open=(Proposal(TrialId("baseline", config_hash({})), 0, {}, 0.0),))
    assert past.lessons().open == ({"a": 1},)
    spy = Spy([])
    d = driver(spy, past=past)
    d.end(d.ask()[0], [2.0, 1.0])
    assert spy.told == {config_hash({"a": 1}): scalar(2.0, 0.0)}


def test_what_waited_when_it_was_interrupted_is_known_when_the_search_goes_on() -> None:
    """What comes to the same is not measured beside it."""
    asked: list[Parameters] = []

    def same(parameters: Parameters) -> Parameters:
        asked.append(parameters)
        return parameters

    past = Past(open=(Proposal(TrialId("search", config_hash({"a": 1})), 1, {"a": 1}, 0.0),))
    Proposer(Spy([]), fallback=None, limits=Limits(1), gate=Fence(equal=same), past=past)
    assert asked == [{"a": 1}]


def test_confirming_runs_that_lose_their_workers_come_to_an_end() -> None:
    """Each run that is given up is a record, so that the verdict hears of it."""
    d = driver(Spy([{"a": 1}]), max_trials=1)
    for score in (9.0, 5.0):
        d.end(d.ask()[0], [score, score])
    d.gate.asks = [[Ask("winner")]]
    for _ in range(ATTEMPTS):
        d.proposer.on_trial_complete(d.ask()[0], None, error=True)
    assert [trial.purpose for trial in d.gate.given_up] == ["confirm"]


def test_a_search_that_goes_on_does_not_begin_again() -> None:
    """Those that were measured before count among the points that a model begins with."""
    task = local_task("optuna")  # four of them
    space = Space.of(task, load_engine("llamacpp"))
    known = beginning(space, NOTHING, 4, 3)[:3]
    assert [*known, *beginning(space, Lessons(open=tuple(known)), 4, 3)] == beginning(space, NOTHING, 4, 3)
    source: Any = make_source(task, space, Lessons(told=tuple((point, 0.5) for point in known)))
    enqueued = [t for t in source._searcher._ot_study.trials if t.state.name == "WAITING"]
    assert len(enqueued) == 1


def test_a_space_without_parameters_measures_the_baseline_alone() -> None:
    """Nothing to search is not an error."""
    task = local_task("bayesian").model_copy(update={"parameters": {}, "constraints": ()})
    d = driver(make_source(task, Space.of(task, load_engine("llamacpp"))))
    d.end(d.ask()[0], [1.0, 1.0])
    assert d.finished()


def test_what_comes_to_the_same_is_measured_once() -> None:
    """Equal for the engine though not in words: the source learns what is known, at once or when that is known."""
    spy = Spy([{"x": 1}, {"x": 10}, {"x": 2}, {"x": 20}])
    d = driver(spy)
    d.gate.equal = lambda parameters: {"x": parameters["x"] // 10} if parameters["x"] >= 10 else parameters  # type: ignore[operator]
    d.end(d.ask()[0], [1.0])
    name, first = d.ask()
    assert first.parameters == {"x": 1}
    d.end(name, [3.0])
    name, second = d.ask()
    assert second.parameters == {"x": 2}
    assert d.gate.repeats == [config_hash({"x": 1})]
    assert spy.told[spy.asked[1]] == spy.told[spy.asked[0]]
    assert d.proposer.suggest("later") is None
    d.end(name, [5.0])
    assert spy.told[spy.asked[3]] == spy.told[spy.asked[2]]
