"""The bench of the search: studies, tables, virtual time and what is made of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.tune.schedulers import FIFOScheduler

from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import Parameters, TrialId, config_hash
from tests.emulator.simulation import bench, judge
from tests.emulator.simulation.arms import ARMS, ours
from tests.emulator.simulation.controller import Cluster, Controller, Ended, History
from tests.emulator.simulation.experience import Experience, Experienced
from tests.emulator.simulation.luck import Luck
from tests.emulator.simulation.measuring import Row
from tests.emulator.simulation.plain import Listed, grid, raw_space
from tests.emulator.simulation.study import World, load_study, study_names
from tests.emulator.simulation.table import Table, exhaustive

SMALL: dict[str, Any] = {
    "description": "a small one",
    "profile": "llama-3.2-1b-a10",
    "task": {
        "task_name": "small",
        "engine": "sglang",
        "model": {"name": "m"},
        "parameters": {
            "tp_size": {"type": "choice", "values": [1, 2]},
            "mem_frac": {"type": "float", "low": 0.5, "high": 0.9, "step": 0.4},
            "attention_backend": {"type": "choice", "values": ["flashinfer", "triton", "fa3"]},
        },
        "optimization": {"objective": "maximize_throughput_per_gpu", "slo": {"ttft_p99_s": 5.0}, "max_iterations": 6},
        "benchmark": {
            "traffic_scenarios": ["D(100,50)"],
            "num_concurrency": [2, 8],
            "max_requests_per_iteration": 32,
        },
    },
    "nodes": {"a": 2, "b": 2},
    "plain_trials": 6,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("study")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return exhaustive(World.of(load_study(folder / "small.yaml")), folder / "cache")


def config(parameters: Parameters, number: int = 0, repeat: int = 0) -> dict[str, Any]:
    return Proposal(TrialId("search", config_hash(parameters), repeat), number, parameters, 0.0).to_config()


def history(table: Table, configurations: list[Parameters], **options: Any) -> History:
    luck, rungs = Luck(table.world, 0), table.world.rungs[-1:]
    return Controller(table, Listed(configurations), FIFOScheduler(), rungs=rungs, luck=luck, **options).run()


@pytest.mark.parametrize("name", study_names())
def test_a_study_is_a_valid_task_whose_baseline_works_within_its_slo(name: str) -> None:
    """Every study file can be run, and its trials fit onto a node."""
    world = World.of(load_study(name))
    row = Table(world)[{}]
    assert row.feasible
    assert row.gpus <= max(world.study.nodes.values())
    assert row.rungs[-1].slo <= 1
    assert len(world.rungs) == 2


def test_there_are_studies_enough() -> None:
    """The bench needs six profiles at least."""
    assert len({load_study(name).profile for name in study_names()}) >= 6


def test_what_is_turned_off_is_off() -> None:
    """An engine that turns something on by itself is told so; where a flag only turns it on, it is left out."""
    vllm, sglang = World.of(load_study("latency-1b-a10")), World.of(load_study("chat-8b-h100"))
    assert vllm.values({"async_scheduling": False}) == {**vllm.today, "async_scheduling": False}
    assert sglang.values({"enable_mixed_chunk": False}).get("enable_mixed_chunk") is None


def test_a_table_has_the_whole_grid_and_is_read_from_its_cache(small: Table, tmp_path: Path) -> None:
    """It is computed once; a second time gives the same from the file."""
    assert len(small.rows) == 1 + 12
    first = exhaustive(small.world, tmp_path)
    again = exhaustive(small.world, tmp_path)
    assert first.rows == again.rows == small.rows
    assert len(list(tmp_path.iterdir())) == 1


def test_a_row_has_the_failure_with_its_reason_and_what_it_took(small: Table) -> None:
    """What cannot work on this GPU is so in the table."""
    row = small[{"tp_size": 1, "mem_frac": 0.5, "attention_backend": "fa3"}]
    assert row.failure == "unsupported"
    assert "FlashAttention" in row.reason
    assert row.start_s > 0
    assert row.rungs == ()


def test_the_best_is_near_itself_and_a_failure_is_not(small: Table) -> None:
    """Distance from the best is relative to it."""
    best = min(small.world.space.grid(100)[0], key=small.loss)
    assert small.loss(best) == small.best
    assert small.is_near_best(best, 0.0)
    assert not small.is_near_best({"tp_size": 1, "mem_frac": 0.5, "attention_backend": "fa3"})


def test_a_cluster_gives_the_fullest_node_that_fits() -> None:
    """Room for a large trial is kept where there is a choice; what is taken comes back."""
    cluster = Cluster({"a": 4, "b": 2})
    assert cluster.take(2) == "b"
    assert cluster.take(4) == "a"
    assert cluster.take(1) is None
    cluster.give("b", 2)
    assert cluster.take(1) == "b"


def test_gpu_seconds_are_those_of_the_phases(small: Table) -> None:
    """The ledger of a trial is deploy, load, traffic and teardown times its GPUs."""
    parameters = {"tp_size": 2, "mem_frac": 0.5, "attention_backend": "flashinfer"}
    found = history(small, [parameters])
    row, costs = small[parameters], small.world.study.costs
    slowness = Luck(small.world, 0).slowness(parameters, 0, "a", 0.0)
    expected = costs.deploy_s + costs.teardown_s + 2 * costs.client_s
    expected += slowness * (row.start_s + row.rungs[-1].duration_s)
    assert found.gpu_s == pytest.approx(2 * expected)
    assert found.ended[0].own_gpu_s == pytest.approx(found.gpu_s)


def test_trials_run_side_by_side_within_the_gpus(small: Table) -> None:
    """Four trials of two GPUs take two turns on four GPUs."""
    space = small.world.space.grid(100)[0]
    wide = [c for c in space if c["tp_size"] == 2 and c["attention_backend"] != "fa3"]
    found = history(small, wide)
    ends = sorted(each.at_s for each in found.ended)
    assert len(ends) == 4
    assert ends[2] > ends[0] + small.world.study.costs.deploy_s


def test_what_cannot_work_counts_as_lost(small: Table) -> None:
    """Also when it is raised, as plain searches have it."""
    parameters = {"tp_size": 1, "mem_frac": 0.5, "attention_backend": "fa3"}
    for raising in (False, True):
        found = history(small, [parameters], raising=raising)
        assert found.ended[0].outcome == "infeasible"
        assert judge.lost_share(found) == 1.0


def test_this_program_runs_its_baseline_and_stops_trials_early(small: Table) -> None:
    """The very searcher and scheduler of real runs are driven."""
    found = ours(small, 0, max_iterations=6)
    assert {each.trial.purpose for each in found.ended} == {"baseline", "search"}
    assert len(found.ended) == 7
    assert {"stopped", "completed"} <= {each.outcome for each in found.ended}


def test_the_same_seed_gives_the_same_history(small: Table) -> None:
    """A bench that is run again says the same."""
    assert ours(small, 3, max_iterations=8).ended == ours(small, 3, max_iterations=8).ended


def test_a_grid_tries_everything_once_in_an_order_of_its_seed(small: Table) -> None:
    """As Tune's grid search does, one parameter after the other."""
    first, second = grid(small, 0), grid(small, 1)
    assert len({each.trial.config for each in first.ended}) == 12
    assert [e.trial.config for e in first.ended] != [e.trial.config for e in second.ended]


@pytest.mark.parametrize("arm", ["hyperopt", "optuna", "random"])
def test_plain_searches_run_on_the_space_as_it_is(small: Table, arm: str) -> None:
    """Ray's own searchers, with whole benchmarks."""
    found = ARMS[arm](small, 0)
    assert found.ended
    assert all(each.rank is None or each.rungs == 1 for each in found.ended)


def test_a_raw_space_has_the_values_themselves(small: Table) -> None:
    """What one writes for Ray Tune without this program."""
    space = raw_space(small.world.space)
    assert space["tp_size"].categories == [1, 2]
    assert (space["mem_frac"].lower, space["mem_frac"].upper) == (0.5, 0.9)


def ended(table: Table, parameters: Parameters, gpu_s: float) -> Ended:
    return Ended(
        TrialId("search", config_hash(parameters)), parameters, "completed", 1, (0.0, 0.0), 0.0, gpu_s, 0.0, parameters
    )


def test_hours_count_to_the_moment_from_which_the_best_stays_near(small: Table) -> None:
    """A good one that noise pushes out again was not found yet."""
    ordered = sorted(small.world.space.grid(100)[0], key=small.loss)
    good, bad = ordered[0], ordered[-1]
    steps = [(bad, 3600.0), (good, 7200.0), (bad, 10800.0), (good, 14400.0)]
    found = History(ended=[ended(small, parameters, gpu_s) for parameters, gpu_s in steps])
    assert judge.gpu_hours_to_best(found, small) == 4.0
    assert judge.regret(found, small) == 0.0
    found.ended.append(ended(small, bad, 18000.0))
    assert math.isinf(judge.gpu_hours_to_best(found, small))


def test_the_table_of_results_shows_ratios_and_who_missed(small: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians with their quartiles; a search that never got there counts with all that it spent."""
    monkeypatch.setattr(bench, "table", lambda name: small)
    quick, slow = bench.Result(1.0, 9.0, 0.01, 0.0, 5), bench.Result(None, 20.0, 0.2, 0.1, 9)
    results = {("small", "default"): [quick] * 4, ("small", "grid"): [slow] * 4, ("small", "optuna"): [quick] * 4}
    shown = list(bench.lines(results))
    assert "1.0 [1.0-1.0]" in shown[1]
    assert "100.0%" in shown[1]
    assert ">20.0 [20.0-20.0] 4 missed" in shown[2]


def test_a_ratio_to_what_was_never_reached_is_not_given(small: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search spent in vain is no measure of what it would have needed."""
    monkeypatch.setattr(bench, "table", lambda name: small)
    quick, slow, vain = (bench.Result(hours, 9.0, 0.01, 0.0, 5) for hours in (1.0, 4.0, None))
    results = {("small", "default"): [quick] * 4, ("small", "grid"): [vain] * 4}
    results |= {("small", "optuna"): [slow] * 4, ("small", "hyperopt"): [slow, vain, vain, vain]}
    ours = list(bench.lines(results))[1]
    assert ours.count("%") == 3
    assert "25.0%" in ours


def test_repetitions_are_kept(small: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench that was cut short goes on where it was."""
    monkeypatch.setattr(bench, "table", lambda name: small)
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    first = bench.run("small", ["random", "default"], (0, 1), 1)
    assert len(list((tmp_path / "arms").iterdir())) == 4
    monkeypatch.setattr(bench, "ARMS", {})
    assert bench.run("small", ["random", "default"], (0, 1), 1) == first


def test_the_model_judges_who_goes_on(small: Table) -> None:
    """Baseline and the best go to the end; of the others some are stopped, and nothing that fails is tried for long."""
    found = ours(small, 0, max_iterations=12)
    outcomes = {each.trial.purpose: each.outcome for each in found.ended}
    assert outcomes["baseline"] == "completed"
    assert "stopped" in {each.outcome for each in found.ended}
    assert judge.regret(found, small) <= 0.03


def test_a_simulated_experiment_learns_what_must_fail(small: Table) -> None:
    """As a real one does: from the engine's words, by the engine file's rules; duplicates are those of the baseline."""
    starved = {"tp_size": 1, "mem_frac": 0.5, "attention_backend": "flashinfer"}
    message = "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."
    rows = {**small.rows, config_hash(starved): Row(1, 10.0, failure="out_of_memory", reason=message)}
    experience = Experience(Table(small.world, rows))
    listed = Listed([starved, {**starved, "mem_frac": 0.9}])
    search = Experienced(listed, experience)
    search.suggest("a")
    assert experience.problem({**starved, "mem_frac": 0.4}) is None
    search.on_trial_result("a", {})
    search.on_trial_complete("a", {"outcome": "infeasible", "rungs_done": 0})
    refused = experience.problem({**starved, "mem_frac": 0.4})
    assert refused is not None
    assert refused.kind == "pruned"
    search.suggest("b")
    search.on_trial_complete("b", {"outcome": "completed", "rungs_done": 2})
    assert experience.problem({**starved, "mem_frac": 0.9}) is None
    assert experience.same_as({"tp_size": 1}) == {}
    assert experience.same_as(starved) == starved
