"""What is read back from an experiment folder."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from rich.console import Console

from raytune_autotuner import display, plots, report
from raytune_autotuner.errors import FailureClass
from raytune_autotuner.export import PREFIX, provenance
from raytune_autotuner.folder import COURSE, ExperimentFolder
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import (
    Failure,
    Knee,
    Outcome,
    Parameters,
    Purpose,
    RungRecord,
    TrialId,
    TrialRecord,
    config_hash,
)
from raytune_autotuner.report import Report, answer, evidence
from raytune_autotuner.results import Results, load_results
from raytune_autotuner.results_file import document, to_text, trials_csv
from raytune_autotuner.storage import Storage
from raytune_autotuner.summary import line, summarise
from raytune_autotuner.task.spec import Task, parse_task
from raytune_autotuner.verdict.judge import BOUNDLESS
from tests.fakes.trials import sample_metrics
from tests.web_site import client


def task(**optimization: object) -> Task:
    return parse_task(
        {
            "task_name": "t",
            "backend": "local",
            "engine": "llamacpp",
            "model": {"name": "m", "path": "m.gguf"},
            "optimization": {"objective": "minimize_latency", **optimization},
            "benchmark": {"traffic_scenarios": ["D(10,10)"]},
        },
        "task.yaml",
    )


def record(
    number: int,
    parameters: Parameters,
    e2e_s: float,
    *,
    purpose: Purpose = "search",
    outcome: Outcome = "completed",
    rungs: int = 2,
    gpus: int = 0,
    failure: Failure | None = None,
    repeat: int = 0,
    slo: dict[str, float] | None = None,
) -> TrialRecord:
    context = Context(gpus, task(slo=slo or {}).optimization)
    first = 1 if purpose == "confirm" else 0
    done = []
    for index in range(first, first + rungs):
        metrics = sample_metrics(index, e2e_s, noise=0.02, seed=number)
        done.append(RungRecord(index, metrics, score(metrics, context), wall_s=10.0 * (index + 1)))
    total = 1 if purpose == "confirm" else 2
    return TrialRecord(
        trial=TrialId(purpose, config_hash(parameters), repeat),
        experiment="exp",
        number=number,
        parameters=parameters,
        outcome=outcome,
        started_at="2026-01-01T00:00:00+00:00",
        rungs=tuple(done),
        total_rungs=total,
        score=done[-1].score if rungs == total else None,
        failure=failure,
        argv=("server", *(f"--{k}={v}" for k, v in parameters.items())),
        gpus=gpus,
        phases={"queue": 5.0, "load": 2.0, "benchmark": 10.0 * rungs, "teardown": 1.0},
    )


def folder_with(tmp_path: Path, *records: TrialRecord) -> ExperimentFolder:
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    for r in records:
        folder.save_record(r)
    return folder


OOM = Failure("out_of_memory", "no memory")


def full(tmp_path: Path) -> ExperimentFolder:
    return folder_with(
        tmp_path,
        record(0, {}, 2.0, purpose="baseline"),
        record(1, {"a": 1}, 1.0),
        record(2, {"a": 2}, 3.0, outcome="stopped", rungs=1),
        record(3, {"a": 3, "b": None}, 1.0, outcome="infeasible", rungs=0, failure=OOM),
        record(4, {}, 2.0, purpose="confirm", rungs=1, repeat=1),
        record(5, {"a": 1}, 1.0, purpose="confirm", rungs=1, repeat=1),
        record(6, {"a": 1}, 1.02, purpose="confirm", rungs=1, repeat=2),
        record(7, {}, 2.02, purpose="confirm", rungs=1, repeat=2),
    )


def test_the_winner_is_the_best_of_the_search_and_its_verdict_from_the_confirming_runs(tmp_path: Path) -> None:
    """Twice as fast in both: a WIN, recommended."""
    results = load_results(full(tmp_path), task())
    assert results.winner is not None
    assert results.winner.parameters == {"a": 1}
    assert results.verdict is not None
    assert results.verdict.kind == "WIN"
    assert results.verdict.winner_runs == 2
    assert results.recommended is results.winner
    assert [r.number for r in results.search] == [1, 2, 3]


def test_confirming_runs_never_become_the_winner(tmp_path: Path) -> None:
    """A lucky repeat is not a new configuration."""
    folder = full(tmp_path)
    folder.save_record(record(8, {"a": 1}, 0.1, purpose="confirm", rungs=1, repeat=3))
    results = load_results(folder, task())
    assert results.winner is not None
    assert results.winner.trial.purpose == "search"


def extended(tmp_path: Path, again_s: float = 0.0) -> ExperimentFolder:
    """More trials after a WIN have found a better one, which was measured again if there is a time."""
    folder = full(tmp_path)
    folder.save_record(record(8, {"a": 4}, 0.8))
    order = [{}, {"a": 4}, {"a": 4}, {}] if again_s else []
    for n, parameters in enumerate(order):
        e2e_s = again_s if parameters else 2.0
        folder.save_record(record(9 + n, parameters, e2e_s, purpose="confirm", rungs=1, repeat=10 + n))
    return folder


@pytest.mark.parametrize(("again_s", "why"), [(0.0, "not confirmed"), (2.0, "not proven")])
def test_a_confirmed_winner_stays_until_a_better_one_is_confirmed(tmp_path: Path, again_s: float, why: str) -> None:
    """What was found since then is told, and not recommended."""
    results = load_results(extended(tmp_path, again_s), task())
    assert results.winner is not None
    assert results.winner.parameters == {"a": 1}
    assert results.recommended is results.winner
    assert results.verdict is not None
    assert results.verdict.kind == "WIN"
    assert why in results.verdict.reason


def test_a_better_winner_that_is_confirmed_takes_over(tmp_path: Path) -> None:
    """By its own runs alone."""
    results = load_results(extended(tmp_path, 0.8), task())
    assert results.recommended is not None
    assert results.recommended.parameters == {"a": 4}
    assert results.verdict is not None
    assert results.verdict.winner_runs == 2


LIMIT = {"e2e_mean_s": 3.0}


def finalists(tmp_path: Path, *, again: bool) -> Results:
    """The best of the search broke the SLO when it was measured again; ``again``: the second best took its place."""
    records = [
        record(0, {}, 2.0, purpose="baseline"),
        record(1, {"a": 1}, 1.0),
        record(2, {"a": 2}, 1.2),
        record(3, {}, 2.0, purpose="confirm", rungs=1, repeat=1),
        record(4, {"a": 1}, 9.0, purpose="confirm", rungs=1, repeat=1, slo=LIMIT),
    ]
    order = [{}, {"a": 2}, {"a": 2}, {}] if again else []
    later = [record(5 + n, p, 1.2 if p else 2.0, purpose="confirm", rungs=1, repeat=5 + n) for n, p in enumerate(order)]
    return load_results(folder_with(tmp_path, *records, *later), task(slo=LIMIT))


def said_of(results: Results) -> str:
    out = Console(file=io.StringIO(), width=200)
    out.print(display.answer(results, "folder", "file"))
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_next_best_is_the_winner_when_the_best_does_not_hold_up(tmp_path: Path) -> None:
    """Confirmed by runs of its own; of the other it is told why it is out."""
    results = finalists(tmp_path, again=True)
    assert results.winner is not None
    assert results.winner.parameters == {"a": 2}
    assert results.recommended is results.winner
    assert results.verdict is not None
    assert (results.verdict.kind, results.verdict.winner_runs) == ("WIN", 2)
    ((out, why),) = results.refuted
    assert out.parameters == {"a": 1}
    assert why.startswith("broke the SLO when it was measured again: e2e_mean_s")
    assert document(results, {})["refuted"] == [{"trial": out.trial.name, "reason": why}]
    assert provenance(results, out)[PREFIX + "verdict"] == why
    assert "trial #1 is out: it broke the SLO" in said_of(results)
    assert "Winner: a=2" in said_of(results)
    assert summarise(results.records, planned=9).best == results.winner.score
    grid = evidence.confirming(results)
    assert grid is not None
    assert [row[1] for row in grid.rows] == ["baseline", "#1, out", "baseline", "winner", "winner", "baseline"]


@pytest.mark.parametrize("failed", [False, True])
def test_the_plots_agree_with_the_answer_on_who_is_out(failed: bool, tmp_path: Path) -> None:
    """It is neither on the front nor the best so far, and is drawn as what it is."""
    results = finalists(tmp_path, again=True)
    if failed:
        out = record(4, {"a": 1}, 1.0, purpose="confirm", rungs=0, repeat=1, outcome="infeasible", failure=OOM)
        results = load_results(folder_with(tmp_path, out), results.task)
    assert "trial #1 is out" in said_of(results)
    drawn = plots.figures(results, names=["tradeoff", "best_so_far"])
    front = {row[0]: row[-2:] for row in drawn["tradeoff"].table.rows}
    assert front == {"#0": ("", "yes"), "#1": ("", "not when measured again"), "#2": ("yes", "yes")}
    assert drawn["tradeoff"].caption.endswith("1 of 3 did not hold up when measured again.")
    names = {trace.name: len(trace.x) for trace in drawn["tradeoff"].figure.data}
    assert (names["keeps the SLO"], names["breaks the SLO"], names["did not hold up when measured again"]) == (2, 0, 1)
    scores = [r.score.value for r in results.records[:3] if r.score]
    assert [row[-1] for row in drawn["best_so_far"].table.rows] == [scores[0], scores[0], scores[2]]
    assert "was found by trial #2" in drawn["best_so_far"].caption


def test_who_is_out_is_the_best_as_long_as_there_is_no_other(tmp_path: Path) -> None:
    """In the line and in the plot as in the answer; but it is not on the front."""
    folder = folder_with(
        tmp_path,
        record(0, {}, 9.0, purpose="baseline", slo=LIMIT),
        record(1, {"a": 1}, 1.0),
        record(2, {}, 9.0, purpose="confirm", rungs=1, repeat=1, slo=LIMIT),
        record(3, {"a": 1}, 3.1, purpose="confirm", rungs=1, repeat=1, slo=LIMIT),
    )
    results = load_results(folder, task(slo=LIMIT))
    assert results.winner is not None
    assert results.winner.number == 1
    assert "Best in the search: a=1" in said_of(results)
    assert summarise(results.records, planned=9).best == results.winner.score
    drawn = plots.figures(results, names=["tradeoff", "best_so_far"])
    assert results.winner.score is not None
    assert drawn["best_so_far"].table.rows[-1][-1] == results.winner.score.value
    assert "keeps the SLO and held up when measured again, so there is no front yet" in drawn["tradeoff"].caption


def goodput(number: int, parameters: Parameters, e2e_s: float, purpose: Purpose, repeat: int = 0) -> TrialRecord:
    """Scored by how many requests begin to be answered in time."""
    made = record(number, parameters, e2e_s, purpose=purpose, rungs=2 - (purpose == "confirm"), repeat=repeat, gpus=1)
    context = Context(1, task(objective="maximize_goodput", slo={"ttft_s": 0.01}).optimization)
    rungs = tuple(replace(rung, score=score(rung.metrics, context)) for rung in made.rungs)
    return replace(made, rungs=rungs, score=rungs[-1].score)


def test_a_gain_over_nothing_is_told_without_a_percentage(tmp_path: Path) -> None:
    """In the terminal, the headline, the numbers on top, what is exported and the line."""
    folder = folder_with(
        tmp_path,
        goodput(0, {}, 2.0, "baseline"),
        goodput(1, {"a": 1}, 0.05, "search"),
        goodput(2, {}, 2.0, "confirm", 1),
        goodput(3, {"a": 1}, 0.05, "confirm", 1),
        goodput(4, {"a": 1}, 0.05, "confirm", 2),
        goodput(5, {}, 2.0, "confirm", 2),
    )
    results = load_results(folder, task(objective="maximize_goodput", slo={"ttft_s": 0.01}))
    assert results.verdict is not None
    assert results.winner is not None
    assert (results.verdict.kind, results.verdict.baseline) == ("WIN", 0.0)
    assert results.verdict.gain == pytest.approx(BOUNDLESS)
    facts = Report(results, (), "done", 9, "", {}, (), 0.0, "", "folder", datetime.now(timezone.utc))
    told = f"from nothing to {results.verdict.winner:.1f} requests/s/GPU"
    assert f"WIN: {told}, 95% confidence interval above 1000 times (" in said_of(results)
    assert answer.answer(facts).headline == f"Change the configuration: {told}."
    assert answer.tiles(facts)[0] == answer.Tile("gain over the baseline", told, "95% interval above 1000 times")
    assert provenance(results, results.winner)[PREFIX + "verdict"] == f"WIN {told} (above 1000 times at 95%)"
    assert "over the baseline" not in line(summarise(results.records, planned=9))


def test_where_one_side_could_not_be_measured_no_numbers_are_told(tmp_path: Path) -> None:
    """Only the reason."""
    folder = folder_with(
        tmp_path,
        record(0, {}, 2.0, purpose="baseline"),
        record(1, {"a": 1}, 1.0),
        record(2, {}, 2.0, purpose="confirm", rungs=1, repeat=1),
        record(3, {"a": 1}, 1.0, purpose="confirm", rungs=0, repeat=1, outcome="infeasible", failure=OOM),
    )
    results = load_results(folder, task())
    assert results.verdict is not None
    assert results.winner is not None
    why = "the winner failed when it was measured again: out_of_memory: no memory"
    assert f"UNSTABLE: {why}.\n" in said_of(results)
    assert provenance(results, results.winner)[PREFIX + "verdict"] == f"UNSTABLE: {why}"
    assert results.verdict.gained() == "not compared"


def test_while_nobody_took_the_place_of_one_that_did_not_hold_up_that_is_the_answer(tmp_path: Path) -> None:
    """The budget may not have paid for more."""
    results = finalists(tmp_path, again=False)
    assert results.winner is not None
    assert results.winner.parameters == {"a": 1}
    assert results.verdict is not None
    assert results.verdict.kind == "UNSTABLE"
    assert results.recommended is results.baseline
    assert not results.refuted


def test_a_better_one_that_is_found_later_is_the_best_so_far(tmp_path: Path) -> None:
    """Those that were out before it was found are no answer any more."""
    finalists(tmp_path, again=False)
    folder = folder_with(tmp_path, record(9, {"a": 3}, 0.5))
    results = load_results(folder, task(slo=LIMIT))
    assert results.winner is not None
    assert results.winner.parameters == {"a": 3}
    assert results.unconfirmed
    assert not results.refuted


def test_of_those_that_are_out_the_one_that_beats_the_baseline_is_to_be_run(tmp_path: Path) -> None:
    """It broke the SLO by a little, the baseline by a lot, and the next best failed."""
    folder = folder_with(
        tmp_path,
        record(0, {}, 9.0, purpose="baseline", slo=LIMIT),
        record(1, {"a": 1}, 1.0),
        record(2, {"a": 2}, 1.2),
        record(3, {}, 9.0, purpose="confirm", rungs=1, repeat=1, slo=LIMIT),
        record(4, {"a": 1}, 3.1, purpose="confirm", rungs=1, repeat=1, slo=LIMIT),
        record(5, {}, 9.0, purpose="confirm", rungs=1, repeat=2, slo=LIMIT),
        record(6, {"a": 2}, 1.2, purpose="confirm", rungs=0, repeat=1, outcome="infeasible", failure=OOM),
    )
    results = load_results(folder, task(slo=LIMIT))
    assert results.recommended is not None
    assert results.recommended.parameters == {"a": 1}
    assert results.verdict is not None
    assert results.verdict.winner_anyway
    assert [record.parameters for record, _ in results.refuted] == [{"a": 2}]


def test_what_ties_with_the_recommended_one_is_told(tmp_path: Path) -> None:
    """By what is different in it; whoever is told apart is not named."""
    folder = full(tmp_path)
    folder.save_record(record(8, {"a": 4, "b": 1}, 1.005))
    folder.save_record(record(9, {"a": 5}, 1.3))
    results = load_results(folder, task())
    assert [point.parameters for point in results.tied] == [{"a": 4, "b": 1}]
    assert "#8 (a=4, b=1)" in results.tied_said
    assert "raytune-autotuner export exp --minimal" in results.tied_said
    assert document(results, {})["within_noise_of_recommended"] == [results.tied[0].trial]
    assert "Within the noise of it: #8" in said_of(results)
    page = client(tmp_path).get(f"/experiments/{saved_task(folder).name}").text
    assert "Within the noise of it: #8 (a=4, b=1)" in page


def test_a_file_that_does_not_work_does_not_win_its_verification(tmp_path: Path) -> None:
    """Its folder says the same as the terminal did: unstable, and the baseline is to be kept."""
    folder = folder_with(
        tmp_path,
        record(0, {}, 2.0, purpose="confirm", rungs=1, repeat=1),
        record(1, {"file": "x"}, 1.0, purpose="confirm", outcome="infeasible", rungs=0, repeat=1, failure=OOM),
    )
    results = load_results(folder, task())
    assert results.winner is None
    assert results.recommended is results.baseline is not None
    assert results.verdict is not None
    assert results.verdict.kind == "UNSTABLE"
    assert results.verdict.reason in " ".join(said_of(results).split())


def test_the_score_of_a_verified_file_is_that_of_its_first_run(tmp_path: Path) -> None:
    """There was no search that it could be from."""
    folder = folder_with(
        tmp_path,
        record(0, {}, 2.0, purpose="confirm", rungs=1, repeat=1),
        record(1, {"file": "x"}, 1.0, purpose="confirm", rungs=1, repeat=1),
    )
    assert load_results(folder, task()).best_said().startswith("in the first run; baseline ")
    assert load_results(full(tmp_path / "searched"), task()).best_said().startswith("in the search; baseline ")


def test_an_ablation_has_no_winner_of_its_own(tmp_path: Path) -> None:
    """Its answer is what it left of another experiment's."""
    folder = folder_with(
        tmp_path,
        record(0, {"a": 1, "b": 2}, 1.0, purpose="confirm", rungs=1, repeat=1),
        record(1, {"a": 1}, 1.0, purpose="confirm", rungs=1, repeat=1),
    )
    folder.root.write(COURSE, json.dumps({"kind": "minimal", "of": "chat"}))
    results = load_results(folder, task())
    assert results.recommended is None
    assert "export chat --minimal" in said_of(results)
    found = answer.answer(report.read(saved_task(folder)))
    assert (found.badge, "export chat --minimal" in found.explanation) == ("ABLATION", True)
    assert "export chat --minimal" in client(tmp_path).get(f"/experiments/{folder.name}").text


@pytest.mark.parametrize(
    ("outcome", "said", "badge", "unconfirmed"),
    [
        ("stopped", "were not measured to the end (interrupted)", "NOT CONFIRMED", True),
        ("infeasible", "do not work here (interrupted)", "NO BASELINE", False),
    ],
)
def test_a_baseline_that_was_not_measured_is_not_said_to_fail(
    outcome: Outcome, said: str, badge: str, unconfirmed: bool, tmp_path: Path
) -> None:
    """And what was found beside it is not confirmed."""
    cut = record(0, {}, 2.0, purpose="baseline", outcome=outcome, rungs=1, failure=Failure("interrupted", "stopped"))
    folder = saved_task(folder_with(tmp_path, cut, record(1, {"a": 1}, 1.0)))
    results = load_results(folder, task())
    assert results.unconfirmed == unconfirmed
    assert said in said_of(results)
    assert answer.answer(report.read(folder)).badge == badge


def saved_task(folder: ExperimentFolder) -> ExperimentFolder:
    folder.root.write("task.json", task().model_dump_json())
    return folder


def test_without_a_win_the_baseline_is_recommended(tmp_path: Path) -> None:
    """A tie costs nothing to keep things as they are."""
    folder = folder_with(
        tmp_path,
        record(0, {}, 2.0, purpose="baseline"),
        record(1, {"a": 1}, 1.0),
        record(2, {}, 1.5, purpose="confirm", rungs=1, repeat=1),
        record(3, {"a": 1}, 1.5, purpose="confirm", rungs=1, repeat=1),
    )
    results = load_results(folder, task())
    assert results.verdict is not None
    assert results.verdict.kind != "WIN"
    assert results.recommended is results.baseline


def test_a_baseline_that_breaks_the_slo_is_not_recommended(tmp_path: Path) -> None:
    """Without a gain that shows, it is the winner that keeps the SLO."""
    slo = {"e2e_mean_s": 1.98}
    values = ((2.05, {}), (1.90, {"a": 1}), (1.90, {"a": 1}), (1.90, {}))
    folder = folder_with(
        tmp_path,
        record(0, {}, 2.0, purpose="baseline", slo=slo),
        record(1, {"a": 1}, 1.90, slo=slo),
        *(
            record(2 + n, parameters, e2e_s, purpose="confirm", rungs=1, repeat=n, slo=slo)
            for n, (e2e_s, parameters) in enumerate(values)
        ),
    )
    results = load_results(folder, task(slo=slo))
    assert results.verdict is not None
    assert results.verdict.kind == "UNSTABLE"
    assert results.recommended is results.winner


def test_without_confirming_runs_there_is_no_verdict(tmp_path: Path) -> None:
    """The search's own value of the winner is no evidence of a gain."""
    folder = folder_with(tmp_path, record(0, {}, 2.0, purpose="baseline"), record(1, {"a": 1}, 1.0))
    results = load_results(folder, task())
    assert results.verdict is None
    assert results.winner is not None


def test_when_nothing_keeps_the_slo_the_closest_is_named(tmp_path: Path) -> None:
    """And nothing is called a winner."""
    slo = {"e2e_p99_s": 0.5}
    folder = folder_with(tmp_path, record(0, {}, 2.0, purpose="baseline", slo=slo), record(1, {"a": 1}, 1.0, slo=slo))
    results = load_results(folder, task(slo=slo))
    assert results.winner is None
    assert results.closest is not None
    assert results.closest.parameters == {"a": 1}
    assert results.closest.score is not None
    assert "e2e_p99_s" in results.closest.score.worst


@pytest.mark.parametrize(("kind", "said"), [("slo_lost", "stopped early: slo_lost - why"), ("budget", "stopped: bud")])
def test_the_terminal_says_why_a_trial_was_cut_short(kind: FailureClass, said: str, tmp_path: Path) -> None:
    """That is an early stop; the end of the budget is none."""
    cut = record(1, {"a": 1}, 1.0, outcome="stopped", rungs=1, failure=Failure(kind, "why"))
    results = load_results(folder_with(tmp_path, record(0, {}, 2.0, purpose="baseline"), cut), task())
    assert said in said_of(results)


def test_the_results_file_has_the_keys_that_readers_know(tmp_path: Path) -> None:
    """And is plain JSON."""
    doc = json.loads(to_text(document(load_results(full(tmp_path), task()), {"elapsed_time": 1.0})))
    assert {
        "task_name",
        "total_experiments",
        "successful_experiments",
        "elapsed_time",
        "best_result",
        "all_results",
        "verdict",
        "ledger",
        "seed",
    } <= set(doc)
    assert (doc["total_experiments"], doc["successful_experiments"]) == (8, 6)
    for entry in doc["all_results"]:
        assert {"experiment_id", "parameters", "status", "metrics", "objective_score", "outcome", "argv"} <= set(entry)
    assert doc["best_result"]["metrics"]["loads"][0]["e2e_mean_s"] == pytest.approx(1.0, rel=0.05)
    assert doc["all_results"][3]["failure"]["kind"] == "out_of_memory"
    assert "samples" not in json.dumps(doc)


def test_the_table_has_one_row_per_trial_and_one_column_per_parameter(tmp_path: Path) -> None:
    """Readable by any spreadsheet."""
    rows = list(csv.DictReader(io.StringIO(trials_csv(load_results(full(tmp_path), task())))))
    assert len(rows) == 8
    assert [row["a"] for row in rows[:4]] == ["", "1", "2", "3"]
    assert rows[3]["outcome"] == "infeasible"
    assert rows[3]["reason"] == "out_of_memory"


def test_the_knee_and_what_spoiled_it_are_told(tmp_path: Path) -> None:
    """Levels in the table and the document; notes of the measurements behind the answer are its caveats."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    knees = (Knee("D(1,1)", 8, 10, ()), Knee("D(9,9)", None, 1, ()))
    for number, e2e_s, note in ((0, 2.0, "the client was busy"), (1, 1.0, "caches stayed"), (2, 3.0, "nobody asks")):
        purpose: Purpose = "search" if number else "baseline"
        made = record(number, {"a": number} if number else {}, e2e_s, purpose=purpose)
        rungs = tuple(replace(rung, knees=knees, notes=(note,)) for rung in made.rungs)
        folder.save_record(replace(made, rungs=rungs))
    results = load_results(folder, task())
    rows = list(csv.DictReader(io.StringIO(trials_csv(results))))
    assert {(row["knee"], row["breaks"]) for row in rows} == {("8;", "10;1")}
    assert results.caveats == ("the client was busy", "caches stayed")
    told = json.loads(to_text(document(results, {})))
    assert [knee["level"] for knee in told["all_results"][0]["knees"]] == [8, None]
    assert (told["caveats"], told["reachable_slo"]) == (list(results.caveats), {})


@pytest.mark.parametrize(("confirming", "told"), [((), True), ((True,), True), ((True, False), False)])
def test_a_winner_whose_answers_were_never_compared_comes_with_a_caution(
    tmp_path: Path, confirming: tuple[bool, ...], told: bool
) -> None:
    """Until one of its confirming runs was."""
    note = "the quality of its answers was not compared: HTTP 500"
    runs = [replace(record(1, {"a": 1}, 1.0), notes=(note,))]
    runs += [
        replace(record(n, {"a": 1}, 1.0, purpose="confirm", rungs=1, repeat=n), notes=(note,) * missed)
        for n, missed in enumerate(confirming, 2)
    ]
    results = load_results(folder_with(tmp_path, record(0, {}, 2.0, purpose="baseline"), *runs), task())
    assert results.caveats == ((f"winner: {note}",) if told else ())
    assert results.winner is not None
    assert results.notes(results.winner) == ()


def test_an_slo_that_nothing_keeps_names_the_tightest_one_that_is_reachable(tmp_path: Path) -> None:
    """By the trial that comes closest."""
    folder, slo = ExperimentFolder(Storage(str(tmp_path)), "exp"), {"e2e_p99_s": 0.5, "ttft_p99_s": 5.0}
    for number, e2e_s in ((0, 2.0), (1, 1.0)):
        purpose: Purpose = "search" if number else "baseline"
        folder.save_record(record(number, {"a": number} if number else {}, e2e_s, purpose=purpose, slo=slo))
    found = load_results(folder, task(slo=slo)).reachable_slo
    assert found == {"e2e_p99_s": pytest.approx(1.0, rel=0.1), "ttft_p99_s": 5.0}


TIGHT = {"e2e_p99_s": 0.5}


def cut_short(number: int, e2e_s: float, *, level: int = 4) -> TrialRecord:
    """In its first rung, by a load that lost the SLO."""
    lost = Failure("slo_lost", "too many took longer")
    made = record(number, {"a": number}, e2e_s, outcome="stopped", rungs=1, failure=lost, slo=TIGHT)
    metrics = sample_metrics(0, e2e_s, level=level)
    scored = score(metrics, Context(0, task(slo=TIGHT).optimization))
    return replace(made, rungs=(replace(made.rungs[0], metrics=metrics, score=scored, cut=lost),))


def test_who_came_closer_to_the_slo_without_being_measured_whole_is_told_beside_what_is_reachable(
    tmp_path: Path,
) -> None:
    """What is called reachable was measured whole; the other one is named with what measures it so."""
    base = record(0, {}, 4.0, purpose="baseline", slo=TIGHT)
    results = load_results(folder_with(tmp_path, base, cut_short(1, 0.7), cut_short(2, 0.6)), task(slo=TIGHT))
    assert results.closest == base
    assert results.reachable_slo == {"e2e_p99_s": pytest.approx(4.0, rel=0.1)}
    reachable, closer = results.near
    assert reachable == f"The tightest SLO that it would keep: e2e_p99_s {results.reachable_slo['e2e_p99_s']:.4g}."
    assert closer == (
        "Trial #2 came closer as far as it was measured (stopped early in rung 1 of 2): e2e_p99_s 0.6, limit <= 0.5. "
        """Measure it whole with `raytune-autotuner trial task.json --params '{"a": 2}'`."""
    )
    told = " ".join(said_of(results).split())
    assert reachable in told
    assert closer in told
    assert document(results, {})["came_closer"] == {"trial": f"search-{config_hash({'a': 2})}", "reason": closer}


def test_where_nothing_was_measured_whole_the_closest_is_told_all_the_same(tmp_path: Path) -> None:
    """And nothing is called reachable."""
    dead = record(0, {}, 4.0, purpose="baseline", outcome="infeasible", rungs=0, failure=OOM)
    results = load_results(folder_with(tmp_path, dead, cut_short(1, 0.6)), task(slo=TIGHT))
    assert results.closest is None
    assert results.reachable_slo == {}
    (said,) = results.near
    assert said.startswith("Trial #1 came closest as far as it was measured")


@pytest.mark.parametrize(("first_load_s", "closer"), [(0.8, False), (1.2, True)])
def test_how_far_a_trial_came_is_compared_at_the_loads_that_it_had(
    first_load_s: float, closer: bool, tmp_path: Path
) -> None:
    """It was cut short at 1 s in the first load; the whole trial came to 4 s in the second."""
    base = record(0, {}, 4.0, purpose="baseline", slo=TIGHT)
    light = sample_metrics(0, first_load_s, level=1).loads
    rungs = tuple(replace(r, metrics=replace(r.metrics, loads=(*light, *r.metrics.loads))) for r in base.rungs)
    records = (replace(base, rungs=rungs), cut_short(1, 1.0, level=1))
    assert bool(load_results(folder_with(tmp_path, *records), task(slo=TIGHT)).closer) is closer


@pytest.mark.parametrize("slo", [{}, {"e2e_p99_s": 9.0}])
def test_nobody_came_closer_where_the_slo_is_kept_or_there_is_none(slo: dict[str, float], tmp_path: Path) -> None:
    """Also while nothing has been measured whole."""
    stopped = record(1, {"a": 1}, 1.0, outcome="stopped", rungs=1, slo=slo)
    whole = [record(0, {}, 2.0, purpose="baseline", slo=slo)] if slo else []
    assert load_results(folder_with(tmp_path, *whole, stopped), task(slo=slo)).near == ()
