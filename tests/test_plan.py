"""The plan says what will be done and how long that takes, before anything starts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.checks import load_checked
from raytune_autotuner.planning.plan import Plan, duration, ladder, make_plan, render
from raytune_autotuner.records import LevelSearch, Load, Rung, from_json, to_json
from raytune_autotuner.task.spec import Task

SIMPLE = Path(__file__).parent.parent / "configs" / "simple_task.json"
ASHA = "optimization.scheduler={type: asha}"
NONE = "optimization.scheduler=none"


def task(*overrides: str) -> Task:
    return load_checked(SIMPLE, overrides)[0]


def plan(*overrides: str) -> Plan:
    return make_plan(*load_checked(SIMPLE, overrides))


def shown(plan: Plan) -> str:
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(render(plan))
    return capture.get()


@pytest.mark.parametrize(
    ("every", "scheduler", "said"),
    [("5", NONE, ""), ("5", ASHA, "makes 2 to 4"), ("10", ASHA, "makes 1 to 2"), ("null", ASHA, "makes 1")],
)
def test_a_search_in_which_drift_may_not_be_told_is_named_before(every: str, scheduler: str, said: str) -> None:
    """Fewer trials come to their end where they are stopped early, and so the baseline is measured less often."""
    p = plan("optimization.max_iterations=16", f"optimization.baseline_every={every}", scheduler)
    found = [each for each in p.assumptions if "drifts during the search" in each]
    assert [each[-len(said) :] for each in found] == ([said] if said else [])


@pytest.mark.parametrize(("strategy", "said"), [("adaptive", True), ("random", False)])
def test_that_a_search_may_end_before_is_said(strategy: str, said: bool) -> None:
    """Of the one that knows when."""
    some, chosen = "optimization.max_iterations=13", f"optimization.strategy={strategy}"
    assert any("nothing is left to gain" in each for each in plan(some, chosen).assumptions) is said
    for never in ("optimization.stop_after_hopeless_trials=null", "optimization.max_iterations=12"):
        assert not any("left to gain" in each for each in plan(some, chosen, never).assumptions)


def test_gpus_are_counted_with_the_arguments_of_every_trial() -> None:
    """They may say how many, too."""
    assert plan("extra_args=[--dp-size, '2']").gpus == (2, 4)


def test_simple_task() -> None:
    """The plan of the simple task shows 4 of 16 grid points."""
    p = plan()
    assert (p.points, p.grid_points, p.trials, p.gpus) == (4, 16, 17, (1, 2))
    assert "a grid of 16 is sampled evenly: 4 points" in p.notes
    text = shown(p)
    assert "4 of 16 grid points" in text
    assert "at most 17: the baseline, 4 of the search, at most 12 of baseline and winner again" in text
    assert "1 to 2" in text
    assert "cost" not in text


def test_without_a_scheduler_there_is_one_rung() -> None:
    """Nothing is stopped early, so a short run would only cost."""
    assert ladder(task(NONE)) == (Rung(0, (Load("D(100,100)", 1), Load("D(100,100)", 4)), 50, 10),)


def test_early_stopping_gets_a_short_rung() -> None:
    """First the highest level for two requests per client, then everything, as often as asked."""
    rungs = ladder(
        task(
            ASHA,
            "benchmark.traffic_scenarios=['D(9,9)', 'N(9,1)/(9,1)']",
            "benchmark.num_concurrency=[8, 16]",
            "benchmark.repeats=3",
        )
    )
    loads = [Load(text, level) for text in ("D(9,9)", "N(9,1)/(9,1)") for level in (8, 16)]
    assert rungs == (Rung(0, (loads[1],), 32, 10), Rung(1, tuple(loads), 50, 10, 3))


@pytest.mark.parametrize(
    ("overrides", "requests"),
    [
        (["benchmark.num_concurrency=[4]", "benchmark.max_requests_per_iteration=100"], [8, 100]),
        (["benchmark.num_concurrency=[16]", "benchmark.max_requests_per_iteration=40"], [20, 40]),
        (["benchmark.num_concurrency=[1, 2]", "benchmark.max_requests_per_iteration=6"], [6, 6]),
        (["benchmark.num_concurrency=[1]", "benchmark.max_requests_per_iteration=1"], [1]),
    ],
)
def test_the_short_rung_is_shorter(overrides: list[str], requests: list[int]) -> None:
    """The short rung always sends less than the whole workload, or is left out."""
    assert [rung.max_requests for rung in ladder(task(ASHA, *overrides))] == requests


def test_written_rungs() -> None:
    """What a rung leaves out is the benchmark's; only the last is repeated."""
    rungs = ladder(
        task(
            "benchmark.rungs=[{num_concurrency: [4], max_requests: 5, max_minutes: 2}, {}]",
            "benchmark.repeats=2",
        )
    )
    whole = (Load("D(100,100)", 1), Load("D(100,100)", 4))
    assert rungs == (Rung(0, whole[1:], 5, 2), Rung(1, whole, 50, 10, 2))


def test_batch_sizes_are_levels() -> None:
    """Embeddings go through batch sizes, one request at a time."""
    p = plan("benchmark.task=text-to-embeddings", "benchmark.traffic_scenarios=[]", "benchmark.num_concurrency=[1]",
             "optimization.objective=minimize_latency", ASHA)  # fmt: skip
    assert [[load.level for load in rung.loads] for rung in p.rungs] == [[32], [1, 8, 32]]
    assert p.rungs[0].max_requests == 8
    assert "no traffic scenario is given: E(512) is used" in p.notes


def test_estimates_are_bounded() -> None:
    """A trial takes no longer than its timeout, early stopping never costs more, and more at once is faster."""
    p = plan()
    assert 0 < p.trial_s[0] < p.trial_s[1] == 600
    assert p.total_s[1] == 17 * 600
    assert (
        plan(ASHA, "benchmark.max_requests_per_iteration=2000").total_s[0]
        < (plan(NONE, "benchmark.max_requests_per_iteration=2000").total_s[0])
    )
    assert plan("optimization.max_concurrent_trials=3").total_s[1] == pytest.approx(p.total_s[1] / 3)


def test_the_budget_against_the_plan() -> None:
    """As many points as it pays for besides the baseline and the least of confirming runs, at worst and at best."""
    assert plan().allowed is None
    rich = plan("optimization.budget={gpu_hours: 1000}", "optimization.max_iterations=16")
    assert rich.allowed == (16, 16)
    assert "1,000 GPU-hours: allows about 16 of 16 points" in shown(rich)
    p = plan("optimization.budget={wall_time: 1h}", "optimization.max_iterations=16")
    assert p.allowed is not None
    low, high = p.allowed
    assert low == (3600 - 5 * 600) // 600
    assert low < high <= 16
    assert f"60 min: allows {low} to {high} of 16 points" in shown(p)


@pytest.mark.parametrize(
    ("budget", "price", "place", "found"),
    [
        ("{gpu_hours: 0.01}", "", "optimization.budget.gpu_hours", "found 0.01 GPU-hours"),
        ("{wall_time: 60}", "", "optimization.budget.wall_time", "found 60 s"),
        ("{cost: 0.01}", "optimization.price_per_gpu_hour=1", "optimization.budget.cost", "found 0.01 in money"),
    ],
)
def test_a_budget_that_cannot_pay_for_an_answer_is_refused(budget: str, price: str, place: str, found: str) -> None:
    """Not even at best: baseline, one trial, and the winner confirmed."""
    with pytest.raises(SpecError) as error:
        plan(f"optimization.budget={budget}", *([price] if price else []))
    (problem,) = error.value.problems
    assert problem.place.startswith(place)
    assert found in problem.message
    assert "the baseline, one trial and 4 confirming runs take at least" in problem.message


def test_cost() -> None:
    """With a price the plan says what the GPUs cost, whatever runs at the same time."""
    p = plan("optimization.price_per_gpu_hour=2", "resources.gpus=4", "optimization.max_concurrent_trials=3")
    assert p.gpus == (4, 4)
    assert p.gpu_hours[1] == pytest.approx(17 * 600 * 4 / 3600)
    assert p.cost == pytest.approx((2 * p.gpu_hours[0], 2 * p.gpu_hours[1]))
    assert "22.67" in shown(p)


def test_strategies_and_sizes() -> None:
    """A finite space bounds the trials of any strategy; a continuous one has no number of points."""
    everything = plan("optimization.strategy=random", "optimization.max_iterations=50")
    assert (everything.points, everything.grid_points) == (16, 16)
    assert any("fewer than max_iterations (50)" in note for note in everything.notes)
    assert "16 of 16 configurations" in shown(everything)
    continuous = plan("optimization.strategy=bayesian", "parameters.mem_frac={type: float, low: 0.7, high: 0.9}")
    assert (continuous.points, continuous.grid_points) == (4, None)
    constrained = plan("optimization.max_iterations=16", "constraints=['tp_size == 2']")
    assert (constrained.points, constrained.grid_points, constrained.gpus) == (8, 8, (1, 2))


def test_only_the_baseline() -> None:
    """Without parameters there is nothing to search and nothing to confirm."""
    p = plan("parameters={}")
    assert (p.points, p.trials) == (0, 1)
    assert "no parameter is searched: only the baseline is measured" in p.notes
    assert "1: the baseline" in shown(p)


def test_a_local_task() -> None:
    """On a CPU there are no GPU-hours; the size of a dataset's requests is guessed."""
    p = plan("backend=local", "engine=llamacpp", "base_runtime=null", "model.path=m.gguf", "resources.gpus=0",
             "parameters={threads: {type: choice, values: [1, 2]}}", "benchmark.dataset={path: org/data}",
             "benchmark.traffic_scenarios=[dataset]")  # fmt: skip
    assert p.gpus == (0, 0)
    assert "GPU-hours" not in shown(p)
    assert not any("runtime" in note for note in p.notes)


def test_is_a_record() -> None:
    """The plan is stored beside the results and read back as it was."""
    p = plan(ASHA)
    assert from_json(Plan, to_json(p)) == p


@pytest.mark.parametrize(
    ("seconds", "text"), [(45.2, "45 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (36000, "10 h 0 min")]
)
def test_duration(seconds: float, text: str) -> None:
    """Durations read as people say them."""
    assert duration(seconds) == text


GOODPUT = ("optimization.objective=maximize_goodput", "optimization.slo={ttft_s: 1.0, tpot_p95_s: 0.05}")


def test_goodput_searches_the_level_in_every_rung() -> None:
    """The short rung doubles only; both begin at the lowest level of the task, and the plan says how many loads."""
    overrides = (*GOODPUT, ASHA, "benchmark.capacity={max: 64, tolerance: 0.2}", "benchmark.repeats=2")
    load = Load("D(100,100)", 1)
    assert ladder(task(*overrides)) == (
        Rung(0, (load,), 8, 10, levels=LevelSearch(1, 64, 1.0)),
        Rung(1, (load,), 50, 10, 2, levels=LevelSearch(1, 64, 0.2)),
    )
    p = plan(*overrides)
    text = shown(p)
    assert "1 to 64, at most 7" in text
    assert any("at most 10 loads per scenario" in note for note in p.notes)
    assert any("only the lowest, 1, is used" in note for note in p.notes)
    assert p.trial_s[0] < p.trial_s[1]


@pytest.mark.parametrize(
    ("capacity", "search", "first", "most"),
    [("null", LevelSearch(1, 512, 0.1), 32, 9), ("{min: 16, max: 64}", LevelSearch(16, 64, 0.1), 16, 7)],
)
def test_the_search_may_go_down_unless_the_task_says_where_it_ends(
    capacity: str, search: LevelSearch, first: int, most: int
) -> None:
    """The loads are those of the first level; the plan counts those below it, too."""
    p = plan(*GOODPUT, NONE, "benchmark.num_concurrency=[32]", f"benchmark.capacity={capacity}")
    assert [(rung.levels, [load.level for load in rung.loads]) for rung in p.rungs] == [(search, [first])]
    said = f"from {search.low} to {search.high}, beginning with {first}, to within 10%: at most {most} loads"
    assert any(said in note for note in p.notes)
    assert f"{search.low} to {search.high}, at most {most}" in shown(p)
    whole = plan(*GOODPUT, NONE, "optimization.timeout_per_iteration=1000000", f"benchmark.capacity={capacity}",
                 "benchmark.num_concurrency=[32]")  # fmt: skip
    assert whole.trial_s[1] == 600 + most * (10 * 60 + 1)


def test_rungs_of_a_searched_level_can_be_written() -> None:
    """With a tolerance of their own; without a scheduler there is one rung, and none is short of no requests."""
    written = ladder(task(*GOODPUT, "benchmark.rungs=[{max_requests: 5, tolerance: 0.5}, {max_minutes: 3}]"))
    assert [(rung.max_requests, rung.max_minutes, rung.levels) for rung in written] == [
        (5, 10, LevelSearch(1, 512, 0.5)),
        (50, 3, LevelSearch(1, 512, 0.1)),
    ]
    assert len(ladder(task(*GOODPUT, "optimization.scheduler=none", "benchmark.capacity={min: 4}"))) == 1
    assert len(ladder(task(*GOODPUT, ASHA, "benchmark.max_requests_per_iteration=1"))) == 1
