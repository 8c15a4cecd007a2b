"""Who is best, once drift is taken out."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from rich.console import Console

from raytune_autotuner import display
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.ranking import rank
from raytune_autotuner.records import (
    Failure,
    Outcome,
    Parameters,
    Purpose,
    RungRecord,
    TrialId,
    TrialRecord,
    config_hash,
)
from raytune_autotuner.results import load_results
from raytune_autotuner.results_file import document
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Task, parse_task
from tests.fakes.trials import sample_metrics

START = datetime(2030, 1, 1, tzinfo=timezone.utc)
TASK: Task = parse_task(
    {
        "task_name": "t",
        "backend": "local",
        "engine": "llamacpp",
        "model": {"name": "m", "path": "m.gguf"},
        "parameters": {"threads": {"type": "choice", "values": [1, 2, 4]}},
        "optimization": {"objective": "minimize_latency", "slo": {"ttft_mean_s": 1.0}},
    },
    "task.yaml",
)


def record(
    minute: float,
    e2e_s: float,
    parameters: Parameters | None = None,
    purpose: Purpose = "search",
    *,
    node: str | None = None,
    outcome: Outcome = "completed",
) -> TrialRecord:
    """A trial of a minute; the baseline without parameters."""
    parameters = parameters or {}
    metrics = sample_metrics(0, e2e_s, noise=0.01, seed=int(minute))
    scored = score(metrics, Context(1, TASK.optimization))
    return TrialRecord(
        trial=TrialId(purpose, config_hash(parameters), int(minute) if purpose in ("control", "confirm") else 0),
        experiment="e",
        number=int(minute),
        parameters=parameters,
        outcome=outcome,
        started_at=(START + timedelta(minutes=minute)).isoformat(),
        rungs=(RungRecord(0, metrics, scored, 60.0),),
        total_rungs=1,
        score=scored if outcome == "completed" else None,
        gpus=1,
        phases={"benchmark": 60.0},
        node=node,
    )


def baselines(values: dict[float, float]) -> list[TrialRecord]:
    return [record(at, e2e_s, purpose="control" if at else "baseline") for at, e2e_s in values.items()]


def test_the_fastest_is_first_when_nothing_drifts() -> None:
    """As measured; runs of the same again are no trials of their own."""
    ranking = rank(
        [*baselines({0: 2.0, 10: 2.0}), record(1, 1.5, {"threads": 1}), record(2, 1.0, {"threads": 2})], TASK
    )
    assert [r.parameters for r in ranking.order] == [{"threads": 2}, {"threads": 1}, {}]
    assert ranking.winner is ranking.order[0]
    assert not ranking.drift.significant


@pytest.mark.parametrize("outcome", ["completed", "infeasible"])
def test_one_that_did_not_hold_up_is_not_the_winner_while_there_is_another(outcome: Outcome) -> None:
    """It broke the SLO (a mean of 1 s to the first token), or failed; without another it stays, to be told of."""
    best, second = record(1, 1.0, {"threads": 1}), record(2, 1.5, {"threads": 2})
    again = record(3, 30.0, {"threads": 1}, "confirm", outcome=outcome)
    again = replace(again, failure=Failure("crash", "it broke")) if outcome == "infeasible" else again
    found = rank([*baselines({0: 2.0}), best, second, again], TASK)
    assert found.order[0] is best
    assert found.winner is second
    assert list(found.refuted) == [best.trial.config]
    broken = record(0, 30.0, purpose="baseline")
    assert rank([broken, best, again], TASK).winner is best


def test_what_was_measured_when_all_were_slower_is_not_held_against_it() -> None:
    """The baseline became 40 % slower in the course of it; whoever was measured last is better than it looks."""
    drifting = baselines({at: 2.0 * (1 + 0.4 * at / 60) for at in (0, 10, 20, 30, 40, 50, 60)})
    early, late = record(1, 1.50, {"threads": 1}), record(58, 1.80, {"threads": 2})
    ranking = rank([*drifting, early, late], TASK)
    assert ranking.drift.significant
    assert ranking.winner is not None
    assert ranking.winner.parameters == {"threads": 2}
    assert rank([*drifting[:1], early, late], TASK).winner == early


def test_the_queue_comes_before_the_start() -> None:
    """Whoever waited an hour for its turn was measured no later than it was."""
    drifting = baselines({at: 2.0 * (1 + 0.4 * at / 60) for at in (0, 10, 20, 30, 40, 50, 60)})
    early = record(1, 1.50, {"threads": 1})
    waited = replace(early, phases={**early.phases, "queue": 3600.0})
    assert rank([*drifting, waited], TASK).goodness == rank([*drifting, early], TASK).goodness


def test_a_slow_node_is_taken_out() -> None:
    """The baseline is 30 % slower there, so a configuration that ran there is compared with that."""
    runs = [
        record(n, 2.6 if n % 2 else 2.0, purpose="control" if n else "baseline", node=f"n{n % 2}") for n in range(8)
    ]
    on_slow, on_fast = record(9, 1.8, {"threads": 1}, node="n1"), record(10, 1.6, {"threads": 2}, node="n0")
    ranking = rank([*runs, on_slow, on_fast], TASK)
    assert ranking.winner is not None
    assert ranking.winner.parameters == {"threads": 1}


def test_a_broken_slo_is_no_winner_however_fast() -> None:
    """It is still the first of those that come closest."""
    ranking = rank([record(0, 20.0, purpose="baseline"), record(1, 15.0, {"threads": 1})], TASK)
    assert ranking.winner is None
    assert ranking.order[0].parameters == {"threads": 1}


@pytest.mark.parametrize("outcome", ["stopped", "infeasible", "failed"])
def test_only_whole_measurements_are_ranked(outcome: Outcome) -> None:
    """The others say nothing of the whole workload."""
    assert rank([record(1, 1.0, {"threads": 1}, outcome=outcome)], TASK).order == ()


def test_confirming_runs_do_not_change_who_is_confirmed() -> None:
    """The baseline's confirming runs would be the fourth that tells of drift, and make another trial the best."""
    first, other = {"threads": 1}, {"threads": 2}
    searched = [*baselines({0: 2.0, 150: 2.1}), record(10, 1.30, first), record(300, 1.36, other)]
    runs = ((310, 2.2, {}), (312, 1.43, first), (314, 1.43, first), (316, 2.2, {}))
    confirmed = [record(minute, e2e_s, what, "confirm") for minute, e2e_s, what in runs]
    assert rank([*searched, *confirmed], TASK) == rank(searched, TASK)


def test_drift_that_could_not_be_told_is_not_passed_over(tmp_path: Path) -> None:
    """With how many runs of the baseline there were, those that confirm among them, and how many it takes."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "e")
    for each in (*baselines({0: 2.0, 10: 2.0}), record(5, 1.0, {"threads": 2}), record(20, 2.0, purpose="confirm")):
        folder.save_record(each)
    out = Console(file=io.StringIO(), width=200)
    out.print(display.answer(load_results(folder, TASK), "folder", "file"))
    said = "too few runs of the baseline to tell drift from noise (3 of 4); values are ranked as they were measured"
    assert said in out.file.getvalue()  # type: ignore[attr-defined]


def test_drift_that_only_the_confirming_runs_show_is_told(tmp_path: Path) -> None:
    """They come too late to take it out: who is confirmed is not to change by that."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "e")
    late = [record(minute, e2e_s, purpose="confirm") for minute, e2e_s in ((50, 2.5), (60, 2.6))]
    for each in (*baselines({0: 2.0, 25: 2.25}), record(5, 1.0, {"threads": 2}), *late):
        folder.save_record(each)
    results = load_results(folder, TASK)
    told = document(results, {})["drift"]
    assert (told["found"], told["taken_out"]) == (True, False)
    assert "over time, in 4 runs of the baseline" in told["reason"]
    assert told["reason"] in results.drift
    assert "only the confirming runs told it" in results.drift
    assert results.ranking == rank([each for each in results.records if each.trial.purpose != "confirm"], TASK)


def test_drift_is_told_at_the_end(tmp_path: Path) -> None:
    """In the summary and in the results file, in words."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "e")
    for each in baselines({at: 2.0 * (1 + 0.4 * at / 60) for at in (0, 10, 20, 30, 40, 50, 60)}):
        folder.save_record(each)
    folder.save_record(record(58, 1.80, {"threads": 2}))
    results = load_results(folder, TASK)
    told = document(results, {})["drift"]
    assert told["found"]
    assert told["taken_out"]
    assert "over time" in told["reason"]
    out = Console(file=io.StringIO(), width=200)
    out.print(display.answer(results, "folder", "file"))
    assert told["reason"] in out.file.getvalue()  # type: ignore[attr-defined]


def test_what_was_not_confirmed_is_not_recommended(tmp_path: Path) -> None:
    """A run that was cut short shows the best so far and how to start it, and calls it that."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "e")
    for each in (*baselines({0: 2.0}), record(5, 1.0, {"threads": 2})):
        folder.save_record(each)
    results = load_results(folder, TASK)
    assert results.unconfirmed
    out = Console(file=io.StringIO(), width=200)
    out.print(display.answer(results, "folder", "file"))
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert "Best so far, not confirmed: threads=2" in said
    assert "Recommended" not in said
