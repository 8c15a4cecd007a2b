"""What the plots show, of experiments of every kind."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner import overview, plots
from raytune_autotuner.errors import FailureClass
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import ledger
from raytune_autotuner.plots.view import View, when
from raytune_autotuner.records import Failure, TrialRecord
from raytune_autotuner.results import Results, load_results
from raytune_autotuner.summary import ending
from tests.example_experiment import Example, build

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ExperimentFolder:
    return build(tmp_path_factory.mktemp("plots"), Example(trials=24, confirm=1, requests=6, running=4))


@pytest.fixture(scope="module")
def results(folder: ExperimentFolder) -> Results:
    return load_results(folder, overview.read_task(folder))


def only(results: Results, *records: TrialRecord) -> Results:
    """The same experiment if it had these trials only."""
    baseline = next((r for r in records if r.trial.purpose == "baseline"), None)
    scored = [r for r in records if r.outcome == "completed" and r.score and not r.score.violation]
    winner = min(scored, key=lambda r: r.score.loss if r.score else 0.0, default=None)
    return replace(
        results, records=records, baseline=baseline, winner=winner, closest=None, verdict=None, ledger=ledger(records)
    )


def traces(plot: plots.Plot) -> dict[str, dict[str, Any]]:
    return {trace.get("name", ""): trace for trace in json.loads(plot.to_json())["data"]}


def test_every_plot_has_a_title_words_and_numbers(folder: ExperimentFolder, results: Results) -> None:
    """An experiment with all there is fills every plot, for the eye and for a screen reader."""
    drawn = plots.figures(results, folder.states())
    assert list(drawn) == list(plots.PLOTS)
    for name, plot in drawn.items():
        assert plot.name == name
        assert plot.title
        assert plot.caption.endswith(".")
        assert plot.table.rows
        assert all(len(row) == len(plot.table.columns) for row in plot.table.rows)
        assert json.loads(plot.to_json("dark"))["layout"]["template"]["layout"]["font"]["color"] == "#e6edf3"


def test_nothing_measured_draws_nothing(results: Results) -> None:
    """Before the first trial has ended there is no plot, and no error."""
    assert plots.figures(only(results)) == {}


def test_what_there_is_is_drawn_whatever_is_missing(results: Results) -> None:
    """One trial, no baseline, or nothing but failures: no plot fails, and those that can say something do."""
    failed = tuple(replace(r, failure=r.failure) for r in results.records if r.outcome == "infeasible")
    searched = tuple(r for r in results.records if r.trial.purpose == "search")
    for records in ((results.records[0],), searched, failed, searched[:1], failed[:1]):
        drawn = plots.figures(only(results, *records))
        assert {"best_so_far", "timeline", "ledger"} <= set(drawn)
        for plot in drawn.values():
            assert plot.to_div()


def test_the_best_so_far_only_gets_better_and_keeps_the_slo(results: Results) -> None:
    """The step line is monotone in the objective's direction; what was stopped or breaks the SLO is not on it."""
    plot = plots.figures(results, names=["best_so_far"])["best_so_far"]
    best = traces(plot)["best so far"]["y"]
    assert best == sorted(best)
    assert results.winner is not None
    assert results.winner.score is not None
    assert best[-1] == results.winner.score.value


@pytest.mark.parametrize("kind", ["interrupted", "budget", "slo_lost"])
def test_a_trial_that_was_ended_is_drawn_as_what_it_ended_as(kind: FailureClass, results: Results) -> None:
    """Whoever ended it: somebody, the budget, or what it had measured."""
    first, second, *_ = results.records
    cut = replace(second, outcome="stopped", score=None, failure=Failure(kind, "why"))
    plot = plots.figures(only(results, first, cut), names=["best_so_far"])["best_so_far"]
    assert f"{ending(cut)} (1)" in traces(plot)


def test_importance_is_drawn_with_its_uncertainty(results: Results) -> None:
    """The most important parameter first in words and table; a forest is grown once for the same trials."""
    drawn = plots.figures(results, names=["importance", "marginals"])
    bars = json.loads(drawn["importance"].to_json())["data"][0]
    assert bars["error_x"]["array"]
    assert drawn["importance"].caption.startswith(str(drawn["importance"].table.rows[0][0]))
    low, mean, high = 2, 1, 3
    assert all(row[low] <= row[mean] <= row[high] for row in drawn["importance"].table.rows)  # type: ignore[operator]
    again = plots.figures(replace(results), names=["importance"])
    assert again["importance"].table == drawn["importance"].table


def test_too_few_trials_have_no_importance(results: Results) -> None:
    """A picture would say more than is known."""
    few = [r for r in results.records if r.trial.purpose == "search"][:5]
    assert plots.figures(only(results, *few), names=["importance", "marginals"]) == {}


def test_no_trial_on_the_front_is_beaten_in_both(results: Results) -> None:
    """And every other one is, among those that keep the SLO."""
    plot = plots.figures(results, names=["tradeoff"])["tradeoff"]
    front = traces(plot)["Pareto front"]
    points = list(zip(front["x"], front["y"], strict=True))
    whole = [(row[2], row[3]) for row in plot.table.rows if row[1] == "completed" and row[5] == "yes"]
    assert 0 < len(whole) < len(plot.table.rows)
    assert points
    for x, y in whole:
        beaten = any(a >= x and b <= y and (a, b) != (x, y) for a, b in whole)
        assert beaten == ((x, y) not in points)


def test_nobody_who_breaks_the_slo_is_on_the_front(results: Results) -> None:
    """Where nobody keeps it there is no front, and the words say why."""
    broken = tuple(
        replace(r, rungs=tuple(replace(g, score=replace(g.score, violation=0.1)) for g in r.rungs))
        for r in results.records
    )
    plot = plots.figures(only(results, *broken), names=["tradeoff"])["tradeoff"]
    assert "Pareto front" not in traces(plot)
    assert "keeps the SLO" in plot.caption


def test_no_gpu_is_held_by_two_at_once_in_the_timeline(folder: ExperimentFolder, results: Results) -> None:
    """A node needs as many rows as it had GPUs in use, and no bar covers another one."""
    plot = plots.figures(results, folder.states(), names=["timeline"])["timeline"]
    lanes: dict[float, list[tuple[float, float]]] = {}
    for trace in json.loads(plot.to_json())["data"]:
        for base, x, y, width in zip(trace["base"], trace["x"], trace["y"], trace["width"], strict=True):
            begin = when(base).timestamp()
            for lane in range(round(y - width / 2), round(y + width / 2) + 1):
                if abs(lane - y) <= width / 2:
                    lanes.setdefault(lane, []).append((begin, begin + x / 1000))
    assert max(lanes) < 16
    for spans in lanes.values():
        spans.sort()
        assert all(end <= begin + 0.01 for (_, end), (begin, _) in pairwise(spans))


def test_running_trials_are_in_the_timeline_until_now(folder: ExperimentFolder, results: Results) -> None:
    """Those that wait for their GPUs hold none."""
    states = folder.states()
    running = {s.number for s in View(results, tuple(states)).running}
    later = max(when(s.updated_at) for s in states).replace(year=2100)
    plot = plots.figures(results, states, names=["timeline"], now=later)["timeline"]
    shown = {int(str(row[0]).lstrip("#")): str(row[4]) for row in plot.table.rows if row[5] == "running"}
    assert set(shown) == {n for n in running if next(s for s in states if s.number == n).phase != "queue"}
    assert all(end.startswith("2100") for end in shown.values())


def test_the_ledger_adds_up(results: Results) -> None:
    """Its phases are the whole of what was spent, as a trial goes through them and in the unit of the axis."""
    plot = plots.figures(results, names=["ledger"])["ledger"]
    spent = {row[1]: float(row[2] or 0) for row in plot.table.rows if row[0] == "spent"}
    assert plot.table.columns[2] == plot.figure.layout.xaxis.title.text == "GPU-hours"
    assert 3600 * sum(spent.values()) == pytest.approx(results.ledger.total, rel=1e-3)
    assert [name for name in spent if name in ("deploy", "load", "benchmark", "teardown")] == [
        *("deploy", "load", "benchmark", "teardown")
    ]


def test_switches_are_on_and_off_everywhere(results: Results) -> None:
    """In pictures and in tables alike."""
    for name, plot in plots.figures(results, names=["marginals", "parallel"]).items():
        cells = {cell for row in plot.table.rows for cell in row}
        assert not {"True", "False"} & cells, name
        assert '"True"' not in plot.to_json()
    assert plots.figures(results, names=["parallel"])["parallel"].table.to_html().count("<td>on</td>")


def test_what_tasks_and_logs_say_is_data(results: Results) -> None:
    """A name that is markup ends no script, starts none, and is shown as it is."""
    record = results.records[3]
    failure = Failure("crash", HOSTILE, HOSTILE)
    bad = [
        replace(record, number=i, parameters={HOSTILE: f"{HOSTILE}{i}"}, failure=failure, node=HOSTILE)
        for i in range(4)
    ]
    for plot in plots.figures(only(results, results.records[0], *bad)).values():
        div = plot.to_div()
        assert "<script>alert" not in div
        assert "<img" not in div
        assert div.count("</script>") == 1
        payload = re.search(r'<script type="application/json"[^>]*>(.*)</script>', div, re.DOTALL)
        assert payload is not None
        assert "<img" not in json.dumps(json.loads(payload[1]), ensure_ascii=False)


def test_throughput_by_load_is_per_gpu_as_the_score_is(results: Results) -> None:
    """A trial on four GPUs is not drawn four times as good as its score; limits on the whole are not drawn then."""
    many = next(r for r in results.records if r.gpus > 1 and r.score)
    plot = plots.trial_figures(many, {"output_tokens_per_s": 1.0}, ["by_load"])["by_load"]
    drawn = json.loads(plot.to_json())
    assert many.score is not None
    assert max(drawn["data"][1]["y"]) == pytest.approx(many.score.value)
    assert "per GPU" in drawn["layout"]["annotations"][0]["text"]
    assert "shapes" not in drawn["layout"]
    assert "output_tokens_per_s per GPU" in plot.table.columns
    last = replace(many.rungs[-1], score=replace(many.rungs[-1].score, objective="maximize_throughput"))
    plot = plots.trial_figures(replace(many, rungs=(last,)), {}, ["by_load"])["by_load"]
    assert max(json.loads(plot.to_json())["data"][0]["y"]) == pytest.approx(many.score.value * many.gpus)


def test_an_axis_names_every_objective(results: Results) -> None:
    """In words, without the direction; of several the score is one weighted number."""
    one = plots.figures(results, names=["best_so_far"])["best_so_far"].figure.layout.yaxis.title.text
    assert one == "throughput per GPU (tokens/s/GPU)"
    optimization = results.task.optimization.model_copy(
        update={"objectives": ("maximize_throughput_per_gpu", "ttft_p99_s")}
    )
    several = replace(results, task=results.task.model_copy(update={"optimization": optimization}))
    assert View(several).objective.startswith("weighted score of throughput per GPU and TTFT p99")


def test_a_plot_is_scrolled_rather_than_squeezed(results: Results) -> None:
    """It says how much room its texts need, the more the more is side by side; a keyboard reaches what is scrolled."""
    drawn = plots.figures(results)
    for plot in drawn.values():
        assert f'min-width:{plot.min_width}px"' in plot.to_div()
        assert plot.to_div().index('<div class="scroll" tabindex="0"') < plot.to_div().index('class="plot-area"')
    assert drawn["parallel"].min_width > drawn["percentiles"].min_width > drawn["best_so_far"].min_width


def test_a_trial_has_plots_of_its_own(results: Results) -> None:
    """Each rung is a line; of a trial that measured nothing there is nothing."""
    assert results.winner is not None
    drawn = plots.trial_figures(results.winner, results.task.optimization.slo)
    assert set(drawn) == set(plots.TRIAL_PLOTS)
    assert {"rung 1", "rung 2"} <= set(traces(drawn["by_load"]))
    assert plots.trial_figures(replace(results.winner, rungs=()), {}) == {}


def test_engine_metrics_are_drawn_over_time(folder: ExperimentFolder, results: Results) -> None:
    """With the loads as boundaries, also before there is a record; where nothing was kept over time bars remain."""
    record = next(r for r in results.records if len(r.rungs) == 2)
    series = folder.engine_series(record.trial.name)
    assert list(series) == [0, 1]
    plot = plots.trial_figures(None, {}, engine=series)["engine"]
    drawn = json.loads(plot.to_json())
    assert {trace["name"] for trace in drawn["data"]} == {"rung 1", "rung 2"}
    assert {trace["type"] for trace in drawn["data"]} == {"scatter"}
    assert len(drawn["layout"]["shapes"]) == len(series[1].loads) * len(series[1].values)
    assert plots.trial_figures(record, {}, engine=series)["engine"].table == plot.table
    assert json.loads(plots.trial_figures(record, {})["engine"].to_json())["data"][0]["type"] == "bar"


def test_a_thousand_trials_stay_small(results: Results) -> None:
    """Lines are thinned out, tables cut, and the page stays light."""
    many = tuple(
        replace(r, number=1000 * i + r.number, parameters={**r.parameters, "batch": i + r.number})
        for i in range(60)
        for r in results.records
        if r.trial.purpose == "search"
    )
    drawn = plots.figures(only(results, results.records[0], *many))
    assert sum(len(plot.to_div()) for plot in drawn.values()) < 5_000_000
    thinned = [name for name in traces(drawn["parallel"]) if " of " in name]
    assert thinned


def test_the_script_brings_its_own_plotly(tmp_path: Path) -> None:
    """Nothing is fetched: the library is in it, with both themes."""
    script = plots.script()
    assert "plotly.js v" in script
    assert "</script" not in script
    assert '"dark"' in script
