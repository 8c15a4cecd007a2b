"""The strategy ``adaptive`` in an experiment: what reaches it, what it begins with, and that nothing breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.planning.space import Space
from raytune_autotuner.proposal import Ending, Proposal, cause, report, reports
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
    Judge,
    JudgedLadder,
    Lessons,
    Limits,
    Past,
    Proposer,
    Source,
    make_scheduler,
    make_source,
)
from raytune_autotuner.search.model import Adaptive, startup_points
from raytune_autotuner.search.model.beliefs import BEST, LATEST, Beliefs, Trying, most_telling
from raytune_autotuner.search.model.causes import CAUSES, THRESHOLDS, Causes
from raytune_autotuner.search.proposer import ATTEMPTS
from raytune_autotuner.task.spec import Optimization, Task, parse_task

TWO: dict[str, Any] = {
    "threads": {"type": "choice", "values": [1, 2, 4]},
    "batch_size": {"type": "int", "low": 16, "high": 512, "step": 16},
}
Outcome = tuple[float, float | None] | str
"""A loss with its SLO ratio, or why it cannot work."""


def task(parameters: Mapping[str, Any], constraints: list[str] | None = None, **optimization: Any) -> Task:
    data = {
        "task_name": "t",
        "backend": "local",
        "engine": "llamacpp",
        "model": {"name": "m", "path": "m.gguf"},
        "parameters": dict(parameters),
        "constraints": constraints or [],
        "optimization": {"max_iterations": 12, **optimization},
        "benchmark": {"traffic_scenarios": ["D(10,10)"]},
    }
    return parse_task(data, "task.yaml")


def score(loss: float, slo: float | None = None) -> Score:
    return Score("minimize_latency", loss, "s", "min", loss, max(0.0, (slo or 0.0) - 1), slo=slo)


def record(parameters: Parameters, losses: list[float], **more: Any) -> TrialRecord:
    rungs = tuple(RungRecord(n, Metrics(n, (), 1.0, 0.0), score(loss), 1.0) for n, loss in enumerate(losses))
    purpose = "search" if parameters else "baseline"
    told = {"outcome": "completed", **more}
    return TrialRecord(
        TrialId(purpose, config_hash(parameters)), "e", 0, parameters, started_at="", rungs=rungs, **told
    )  # type: ignore[arg-type]


def source(chosen: Task, lessons: Lessons = Lessons()) -> Source:  # noqa: B008 - a value
    return make_source(chosen, Space.of(chosen, load_engine("llamacpp")), lessons)


def play(chosen: Source, value: Callable[[Parameters], Outcome], trials: int) -> list[Parameters]:
    """Proposals one after the other; each is heard of and told."""
    assert isinstance(chosen, Judge)
    chosen.hear({}, report(score(10.0, 0.9), 1, 2.0, ending=Ending("completed")))
    found = []
    for n in range(trials):
        parameters = chosen.propose(f"k{n}")
        if parameters is None:
            break
        found.append(parameters)
        came = value(parameters)
        failure = Failure("crash", came) if isinstance(came, str) else None
        ending = Ending("infeasible" if failure else "completed", failure)
        last = None if isinstance(came, str) else score(*came)
        chosen.hear(parameters, report(last, 0 if failure else 1, 2.0, ending=ending))
        chosen.tell(f"k{n}", None)
    return found


ODD: dict[str, dict[str, Any]] = {
    "one value": {"threads": {"type": "choice", "values": [4]}},
    "one parameter": {"threads": {"type": "choice", "values": [1, 2, 4]}},
    "two": TWO,
    "logarithmic": {"batch_size": {"type": "int", "low": 32, "high": 4096, "log": True}},
    "continuous": {"x": {"type": "float", "low": 1e-3, "high": 1.0, "log": True, "flag": "--x"}},
    "texts": {"flash_attn": {"type": "choice", "values": ["on", "off", None]}},
    "conditional": {
        "flash_attn": {"type": "choice", "values": ["on", "off"]},
        "ubatch_size": {"type": "int", "low": 16, "high": 64, "step": 16, "when": 'flash_attn == "on"'},
    },
}
ODD_RESULTS: dict[str, Callable[[Parameters], Outcome]] = {
    "all equal": lambda _: (5.0, None),
    "all fail": lambda _: "Segmentation fault",
    "all break the SLO": lambda _: (5.0, 1.5),
    "zero": lambda _: (0.0, 0.5),
    "not a number": lambda _: (math.nan, None),
    "huge and tiny": lambda c: (10.0 ** (int(config_hash(c), 16) % 30 - 15), 1e6),
}


@pytest.mark.parametrize(
    ("parameters", "results"),
    [*((p, "all equal") for p in ODD), *(("two", r) for r in ODD_RESULTS if r != "all equal")],
)
def test_nothing_breaks_it(parameters: str, results: str) -> None:
    """Each configuration comes once, and a space that is exhausted ends the search."""
    chosen = task(ODD[parameters])
    found = play(source(chosen), ODD_RESULTS[results], 7)
    assert len({config_hash(c) for c in found}) == len(found)
    assert len(found) == {"one value": 1, "one parameter": 3, "texts": 3, "conditional": 5}.get(parameters, 7)


@pytest.mark.parametrize(("trials", "startup"), [(1, 2), (4, 2), (10, 3), (20, 5), (100, 5)])
def test_a_small_budget_is_not_spent_on_the_start(trials: int, startup: int) -> None:
    """A third of it lays the ground, and never more than five trials that work."""
    assert startup_points(trials) == startup


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"grid_search"}))
def test_what_is_to_be_tried_first_comes_first(strategy: str) -> None:
    """In its order, as far as it is in the space and keeps the constraints."""
    first: tuple[Parameters, ...] = tuple(
        {"threads": n, "batch_size": b} for n, b in ((4, 64), (3, 64), (4, 512), (1, 16))
    )
    chosen = source(task(TWO, ["threads * batch_size < 1024"], strategy=strategy), Lessons(first=first))
    assert [chosen.propose(f"k{n}") for n in range(2)] == [first[0], first[3]]
    assert chosen.propose("k2") not in first


def threads_alone(configuration: Parameters) -> Outcome:
    """Half the loss with twice the threads; steps of any size cost the same."""
    return 4.0 / int(configuration["threads"]), 0.5  # type: ignore[arg-type]


def trials_until_hopeless(chosen: Source, most: int, in_a_row: int = 1) -> int:
    """So many trials until it has expected nothing of so many of them."""
    assert isinstance(chosen, Judge)
    vain = 0
    for trials in range(1, most + 1):
        play(chosen, threads_alone, 1)
        vain = vain + 1 if chosen.hopeless() else 0
        if vain == in_a_row:
            return trials
    return most


def test_it_says_when_nothing_is_left_to_gain() -> None:
    """And never before all beside the best were tried; from then on it stays so."""
    beside = len(TWO["threads"]["values"]) - 1 + 512 // 16 - 1
    once, often = (
        trials_until_hopeless(source(task(TWO, max_iterations=60, scheduler="none")), 60, n) for n in (1, 12)
    )
    assert beside < once < 60
    assert often - once == 11


def test_what_it_hears_later_may_give_it_hope() -> None:
    """A trial that was under way turns out to be far better than all."""
    chosen = source(task(TWO, max_iterations=60, scheduler="none"))
    assert isinstance(chosen, Judge)
    running = chosen.propose("slow")
    trials_until_hopeless(chosen, 60)
    assert running is not None
    assert chosen.hopeless() is not None
    chosen.hear(running, report(score(0.01, 0.5), 1, 2.0, ending=Ending("completed")))
    assert chosen.hopeless() is None


def test_asking_for_hope_does_not_change_what_is_proposed() -> None:
    """When that is depends on when Tune asks. In a large space candidates are drawn."""
    large = {**TWO, "x": {"type": "float", "low": 0.0, "high": 1.0, "flag": "--x"}}
    chosen = source(task(large, max_iterations=60, scheduler="none"))
    assert isinstance(chosen, Adaptive)
    play(chosen, threads_alone, 8)
    chosen._hopeless, drawn = True, chosen._rng.bit_generator.state
    late: Parameters = {"threads": 1, "batch_size": 16, "x": 0.5}
    chosen.hear(late, report(score(4.0, 0.5), 1, 2.0, ending=Ending("completed")))
    heard = chosen._heard_by_then
    chosen.hopeless()
    assert chosen._heard_by_then > heard
    assert chosen._rng.bit_generator.state == drawn


def test_where_nothing_works_there_is_no_best_to_be_better_than() -> None:
    """So it is never said that nothing is left to gain."""
    chosen = source(task(TWO, max_iterations=60, scheduler="none"))
    assert isinstance(chosen, Judge)
    for _ in range(40):
        parameters = chosen.propose("k")
        assert parameters is not None
        chosen.hear(parameters, report(None, 0, 2.0, ending=Ending("infeasible", Failure("crash", "no"))))
        assert chosen.hopeless() is None


def climb(chosen: Judge, parameters: Parameters, short: Outcome, whole: Outcome) -> bool:
    """A trial of two rungs; whether it was let go on to the second."""
    chosen.hear(parameters, report(score(*short), 1, 2.0, ending=None))  # type: ignore[misc]
    goes_on = not parameters or chosen.goes_on(parameters)
    last = report(score(*(whole if goes_on else short)), 1 + goes_on, 2.0, ending=Ending("completed"))  # type: ignore[misc]
    chosen.hear(parameters, last)
    return goes_on


def test_what_a_short_rung_breaks_the_whole_one_may_keep() -> None:
    """With four threads, which are twice as fast; the baseline has shown how far the rungs are apart."""
    chosen = source(task(TWO, max_iterations=90))
    assert isinstance(chosen, Judge)
    climb(chosen, {}, (10.0, 0.9), (10.0, 0.5))
    ends = []
    while chosen.hopeless() is None and (parameters := chosen.propose("k")) is not None:
        wide, loss = parameters["threads"] == 4, 4.0 / int(parameters["threads"])  # type: ignore[arg-type]
        ends += [climb(chosen, parameters, (loss, 1.2 if wide else 0.9), (loss, 0.7 if wide else 0.5))] if wide else []
    assert any(ends)


def test_it_goes_on_with_all_that_was_measured() -> None:
    """Rungs, nodes and failures of before count as if they were heard of now, and nothing is proposed again."""
    speed = {1: 4.0, 2: 2.0, 4: 1.0}
    done = [{"threads": n, "batch_size": b} for n in (1, 2) for b in (16, 256, 512)]
    ended = [record({}, [9.0, 9.0]), *(record(c, [speed[int(c["threads"])]] * 2, node="a") for c in done)]
    broken = [{"threads": 4, "batch_size": b} for b in (256, 384, 512)]
    failure = Failure("out_of_memory", "needs 12 GiB")
    ended += [record(c, [], outcome="infeasible", failure=failure) for c in broken]
    running = {"threads": 4, "batch_size": 16}
    past = Past(tuple(ended), (Proposal(TrialId("search", config_hash(running)), 20, running, 0.0),))
    chosen = source(task(TWO, max_iterations=60), past.lessons())
    found = [chosen.propose(f"k{n}") for n in range(4)]
    chosen.tell(config_hash(running), None)
    assert all(c not in (*done, *broken, running) for c in found)
    assert sum(c is not None and c["threads"] == 4 and int(c["batch_size"]) >= 256 for c in found) == 0  # type: ignore[arg-type]


@dataclass
class Ear:
    """A judge that remembers what it heard, and stops all."""

    left: list[Parameters]
    heard: list[tuple[Parameters, dict[str, Any]]] = field(default_factory=list)

    def propose(self, key: str) -> Parameters | None:
        return self.left.pop(0) if self.left else None

    def tell(self, key: str, loss: float | None) -> None:
        pass

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        self.heard.append((parameters, dict(result)))

    def goes_on(self, parameters: Parameters) -> bool:
        return False

    def hopeless(self) -> str | None:
        return None


def gate(problem: Failure | None = None, ended: TrialRecord | None = None) -> Any:
    return SimpleNamespace(
        problem=lambda parameters: problem,
        enough=lambda: None,
        affords=lambda parameters: True,
        repeated=lambda config: None,
        refuse=lambda proposal, failure: None,
        give_up=lambda proposal: None,
        stop_requested=lambda: False,
        same_as=lambda parameters: parameters,
        champion=lambda: None,
        confirming=lambda baseline, winner: (),
        ended=lambda trial: ended,
    )


def test_a_judge_hears_every_report() -> None:
    """Of the baseline and the search, each rung, with node and SLO; also why a configuration is refused."""
    ear = Ear([{"a": 1}])
    proposer = Proposer(ear, fallback=None, limits=Limits(5), gate=gate())
    for name in ("t0", "t1"):
        proposer.suggest(name)
        proposer.on_trial_result(name, report(score(3.0, 0.4), 1, 2.0, node="n1"))
        proposer.on_trial_complete(name, report(score(2.0, 0.5), 2, 2.0, ending=Ending("completed"), node="n1"))
    assert [(c, r["rungs_done"], r["slo"], r["node"]) for c, r in ear.heard] == [
        (c, *rest) for c in ({}, {"a": 1}) for rest in ((1, 0.4, "n1"), (2, 0.5, "n1"))
    ]


def test_a_judge_hears_why_a_configuration_is_refused() -> None:
    """Without a trial."""
    ear = Ear([{"a": 1}])
    proposer = Proposer(ear, fallback=None, limits=Limits(5), gate=gate(Failure("no_fit", "needs 16 GPUs")))
    proposer.suggest("t0")
    proposer.on_trial_complete("t0", report(score(3.0), 2, 2.0, ending=Ending("completed")))
    proposer.suggest("t1")
    assert ear.heard[-1][0] == {"a": 1}
    assert ear.heard[-1][1]["cause"] == "no_fit: needs # GPUs"


def test_a_judge_hears_what_a_dead_worker_had_written() -> None:
    """Its record stands, so it is not begun again."""
    ear = Ear([])
    proposer = Proposer(ear, fallback=None, limits=Limits(5), gate=gate(ended=record({}, [4.0, 3.0])))
    proposer.suggest("t0")
    proposer.on_trial_complete("t0", None, error=True)
    assert [r["raw_loss"] for _, r in ear.heard] == [4.0, 3.0, 3.0]


def test_a_judge_hears_of_a_baseline_whose_worker_dies_each_time() -> None:
    """After its first rung: nothing more is to be expected of it."""
    ear = Ear([])
    proposer = Proposer(ear, fallback=None, limits=Limits(5), gate=gate())
    for attempt in range(ATTEMPTS):
        assert Proposal.from_config(proposer.suggest(f"t{attempt}")).parameters == {}
        proposer.on_trial_result(f"t{attempt}", report(score(3.0), 1, 2.0))
        assert [r["outcome"] for _, r in ear.heard] == [None] * (attempt + 1)
        proposer.on_trial_complete(f"t{attempt}", None, error=True)
    assert ear.heard[-1][0] == {}
    assert ear.heard[-1][1]["outcome"] == "failed"


@pytest.mark.parametrize(("purpose", "action"), [("search", "STOP"), ("baseline", "CONTINUE"), ("confirm", "CONTINUE")])
def test_the_judge_decides_over_trials_of_the_search(purpose: Any, action: str) -> None:
    """It has heard the report before it is asked; all others go to the end."""
    ear = Ear([])
    ladder = make_scheduler(Optimization(), 2, [record({}, [1.0, 1.0])], ear)
    assert isinstance(ladder, JudgedLadder)
    proposal = Proposal(TrialId(purpose, config_hash({"a": 1})), 1, {"a": 1}, 0.0)
    trial: Any = SimpleNamespace(trial_id="t", config=proposal.to_config())
    ladder.on_trial_add(None, trial)  # type: ignore[arg-type]
    assert ladder.on_trial_result(None, trial, report(score(1.0), 1, 2.0)) == action  # type: ignore[arg-type]
    assert [c for c, _ in ear.heard] == ([{"a": 1}] if purpose == "search" else [])


def test_without_rungs_or_a_judge_nobody_judges() -> None:
    """One rung leaves nothing to decide, and other sources have ASHA."""
    assert not isinstance(make_scheduler(Optimization(), 1, (), Ear([])), JudgedLadder)
    assert not isinstance(make_scheduler(Optimization(), 2, (), source(task(TWO, strategy="random"))), JudgedLadder)


def test_the_same_cause_has_the_same_words() -> None:
    """Numbers, addresses and what follows the first line are left out."""
    one = cause(Failure("out_of_memory", "tried to allocate 1.50 GiB at 0x7ffe12\nmore"))
    assert one == cause(Failure("out_of_memory", "tried to allocate 22,5 GiB at 0x00aa"))
    assert one != cause(Failure("crash", "tried to allocate 1.50 GiB at 0x7ffe12"))
    assert cause(Failure("crash", "")) == "crash: "


def test_a_record_tells_what_its_trial_told() -> None:
    """Each rung, then the end with its cause."""
    failure = Failure("crash", "gone")
    told = list(reports(record({"a": 1}, [3.0, 2.0], outcome="infeasible", failure=failure, node="n")))
    assert [(r["rungs_done"], r["raw_loss"], r["done"], r["node"]) for r in told] == [
        (1, 3.0, False, "n"),
        (2, 2.0, False, "n"),
        (2, 2.0, True, "n"),
    ]
    assert told[-1]["cause"] == "crash: gone"


def test_without_an_slo_nobody_is_doubted_to_keep_it() -> None:
    """Nor where it is kept and nobody says by how much."""
    chosen = task(TWO, max_iterations=9)
    model = Adaptive(Space.of(chosen, load_engine("llamacpp")), 0, total_rungs=1)
    play(model, lambda c: (float(str(c["threads"])), None), 4)
    rows = model._encoding.rows(model._pool()[0])
    keeps = model._beliefs.prospects(rows, list(model._tried.values()), None, learn=True)[1]
    assert keeps.tolist() == [0.0] * len(rows)


def test_a_rung_that_was_cut_short_teaches_of_the_slo_alone() -> None:
    """Its last loads are missing, so it looks better than it is; what is asked next does not look for more of it."""
    whole = [Trying([n / 4, 0, 0], {0: 10.0 + n}, {0: 0.3}) for n in range(3)]
    cut, rows = Trying([1.0, 0, 0], {}, {0: 2.0}), np.array([[0.0, 0, 0], [0.9, 0, 0], [1.0, 0, 0]])
    gain, keeps = Beliefs([True]).prospects(rows, [*whole, cut], None, learn=True)
    assert np.isfinite([gain, keeps]).all()
    assert keeps[2] < keeps[0]
    assert (cut.works, cut.pending, cut.may_be_best) == (True, False, False)
    assert cut in most_telling([*whole, cut])
    assert sorted([*whole, cut], key=lambda each: each.rank)[-1] is cut


def test_a_model_hears_which_rung_was_cut() -> None:
    """While the trial runs, and from its record."""
    cut = RungRecord(1, Metrics(1, (), 1.0, 0.0), score(0.1, 2.0), 1.0, cut=Failure("slo_lost", "too late"))
    lost = record({"threads": 2, "batch_size": 64}, [9.0], outcome="stopped")
    lost = replace(lost, rungs=(*lost.rungs, cut))
    assert [result["cut"] for result in reports(lost)] == [False, True, True]
    chosen = source(task(TWO, max_iterations=9), Lessons(ended=(lost,)))
    assert isinstance(chosen, Adaptive)
    assert [(each.losses, each.slo.keys()) for each in chosen._tried.values()] == [({1: 9.0}, {1, 0})]


def test_the_model_is_bounded_however_many_trials_there_were() -> None:
    """The best, the latest, and what runs are kept."""
    tried = [Trying([float(n)], {0: float(n % 700)}, {0: 0.5}) for n in range(1000)]
    tried += [Trying([float(n)], failure="crash") for n in range(500)] + [Trying([-1.0])]
    kept = most_telling(tried)
    assert len([each for each in kept if each.works]) <= BEST + LATEST
    assert len([each for each in kept if each.failure]) == BEST + LATEST
    assert kept[-1].pending
    assert {0.0, 1.0, 999.0} <= {each.row[0] for each in kept}


def test_a_long_range_has_few_thresholds() -> None:
    """Failures of hundreds of different values cost no more than those of a dozen."""
    rows = np.random.default_rng(0).random((400, 2))
    causes = Causes(rows[rows[:, 0] > 0.7], rows[rows[:, 0] <= 0.7], [True, True])
    assert len(causes._conditions) <= 4 * THRESHOLDS
    assert len(causes._likely) <= CAUSES
    high, low = causes.log_works(np.array([[0.95, 0.5], [0.2, 0.5]]))
    assert high < low


def test_a_wide_configuration_has_to_promise_more() -> None:
    """As long as nothing tells them apart, the one that takes fewer GPUs is tried."""
    chosen = task(TWO, max_iterations=6)
    space = Space.of(chosen, load_engine("llamacpp"))
    model = Adaptive(space, 0, total_rungs=1, startup=2, cost=lambda c: float(c["threads"] or 1))
    assert play(model, lambda _: (10.0, 0.9), 3)[2]["threads"] == 1
