"""The pages: what stands on them, and what their buttons do."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import zipfile
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from starlette.testclient import TestClient

from raytune_autotuner import display, overview, report
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.planning.init_task import write_task
from raytune_autotuner.plots.style import described
from raytune_autotuner.records import Failure, Reused, Score, SearchEnd, TrialId, config_hash
from raytune_autotuner.results import Results, load_results, results_of
from raytune_autotuner.results_file import to_text
from raytune_autotuner.storage import Storage
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.spec import parse_task
from raytune_autotuner.web import cards, reader
from raytune_autotuner.web.app import create_app
from raytune_autotuner.web.cluster import Choice, standing
from raytune_autotuner.web.new_task import STARTS
from raytune_autotuner.web.settings import Settings
from raytune_autotuner.web.words import number, percent
from tests.example_experiment import Example, build
from tests.test_cli_cluster import done
from tests.web_site import DONE, HERE, HTML, RUNNING, STOPPED, Starts, client, fill, texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of tests that change nothing."""
    return fill(tmp_path_factory.mktemp("storage"))


def test_the_list_has_every_experiment_with_state_progress_score_and_spend(folder: Path) -> None:
    """The one that runs says so; what lies beside experiments is passed over."""
    (folder / "some-file.txt").write_text("")
    (folder / "not-an-experiment").mkdir(exist_ok=True)
    shown = client(folder).get("/experiments").text
    assert not texts(shown, DONE, RUNNING, STOPPED, "tokens/s/GPU", "GPU-h", "badge running", "badge done", "badge WIN")
    assert "not-an-experiment" not in shown


@pytest.mark.parametrize(
    ("query", "there"),
    [("?q=rag", {STOPPED}), ("?state=running", {RUNNING}), ("?q=sglang", {DONE, RUNNING, STOPPED}), ("?q=zzz", set())],
)
def test_the_list_is_filtered(folder: Path, query: str, there: set[str]) -> None:
    """By words and by state."""
    shown = client(folder).get(f"/experiments{query}").text
    assert {name for name in (DONE, RUNNING, STOPPED) if f"/experiments/{name}" in shown} == there


def test_an_experiment_that_cannot_be_read_spoils_no_list(folder: Path, tmp_path: Path) -> None:
    """It stands there with the reason; its page says so as well."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "task.json").write_text("{ this is not JSON")
    asked = client(tmp_path)
    assert not texts(asked.get("/experiments").text, "broken", "unreadable", "not JSON")
    answer = asked.get("/experiments/broken")
    assert answer.status_code == 409
    assert "not JSON" in answer.text


@pytest.mark.parametrize("file", ["task.json", "results.json"])
def test_a_file_of_another_shape_spoils_no_list(file: str, tmp_path: Path) -> None:
    """It is JSON, and not what is expected there."""
    broken = done(tmp_path, "broken")
    broken.folder.root.write(file, "[]")
    assert not texts(client(tmp_path).get("/experiments").text, "broken", "unreadable")


def test_an_empty_storage_says_what_to_do(tmp_path: Path) -> None:
    """The list is a beginning."""
    assert not texts(client(tmp_path).get("/experiments").text, "No experiment yet", 'href="/new"')


def test_the_baseline_has_no_gain_over_itself() -> None:
    """While it is the best, the list claims nothing."""
    best = Score("maximize_throughput", 100.0, "tokens/s", "max", -100.0, 0.0)
    assert cards._gain(None, best, 100.0) is None
    assert cards._gain(None, best, 80.0) == pytest.approx(0.25)


def test_the_gain_beside_a_verdict_is_the_verdicts(folder: Path) -> None:
    """In the list and on the experiment's page; without a verdict it is said to be the search's own."""
    asked, verdict = client(folder), json.loads((folder / DONE / "results.json").read_text())["verdict"]
    claimed = percent(verdict["gain"])
    rows = asked.get("/experiments").text.split("<tr id=")
    of = {name: next(row for row in rows if name in row) for name in (DONE, RUNNING)}
    assert not texts(of[DONE], claimed, verdict["kind"])
    assert "in the search" in of[RUNNING]
    assert "in the search" not in of[DONE]
    assert f"{claimed} over the baseline when measured again" in asked.get(f"/experiments/{DONE}").text


def test_the_best_score_is_said_to_be_the_searchs_with_the_baseline_there(folder: Path) -> None:
    """Since the gain beside it is the verdict's, from other runs; on both pages as in the report."""
    asked = client(folder)
    data = json.loads((folder / DONE / "results.json").read_text())
    base = data["baseline"]["objective_score"]
    for path in (f"/experiments/{DONE}", f"/compare?experiment={DONE}&experiment={STOPPED}"):
        assert f'class="faint">in the search; baseline {number(base)} tokens/s/GPU<' in asked.get(path).text
    assert f"in the search; baseline {base:.1f}" in asked.get(f"/experiments/{DONE}/report").text


@pytest.mark.parametrize(
    ("told", "said", "interval"),
    [
        ({"gain": 1e6, "low": 1e5, "high": 1e6, "baseline": 0.0}, "from nothing to", "interval above 1000 times"),
        ({"gain": 0.2, "low": -1.0, "high": 1e6}, "+20.0 %", "interval -100.0 % without an upper bound"),
        ({"gain": 0.0, "low": -1.0, "high": 1e6, "winner_runs": 0}, "not compared", ""),
    ],
)
def test_a_gain_without_a_sensible_percentage_has_none(
    told: dict[str, Any], said: str, interval: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the list, on the experiment's page and beside another one; and no bound where there is none."""
    file = fill(tmp_path) / DONE / "results.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"verdict": found["verdict"] | told}))

    def changed(*arguments: Any) -> Results:
        made = results_of(*arguments)
        return replace(made, verdict=replace(made.verdict, **told)) if made.verdict else made

    monkeypatch.setattr(reader, "results_of", changed)
    asked = client(tmp_path)
    for path in ("/experiments", f"/experiments/{DONE}", f"/compare?experiment={DONE}&experiment={RUNNING}"):
        shown = asked.get(path).text
        assert not texts(shown, said)
        assert "00000.0 %" not in shown
    page = asked.get(f"/experiments/{DONE}").text
    assert (interval in page) if interval else "% interval" not in page
    assert ("times in turn" in page) == bool(interval)


def test_several_objectives_are_all_named_and_valued(tmp_path: Path) -> None:
    """The score is called a weighted one, and the value of each objective stands beside it."""
    objectives = {"optimization": {"objectives": ["maximize_throughput_per_gpu", "ttft_p99_s"]}}
    build(tmp_path, Example(name="several", trials=6, confirm=0, requests=4, task=objectives))
    asked = client(tmp_path)
    pages = [asked.get(path).text for path in ("/experiments", "/experiments/several", "/experiments/several/report")]
    for shown in pages:
        assert not texts(shown, "maximize throughput per GPU and TTFT p99", "weighted", "tokens/s/GPU, TTFT p99 ")


def test_an_experiment_has_its_answer_first(folder: Path) -> None:
    """Verdict with interval, winner against baseline, cost, trials, ledger."""
    shown = client(folder).get(f"/experiments/{DONE}").text
    assert not texts(shown, "<strong>WIN</strong>", "95 % interval", "Best in the search", "per GPU-hour")
    assert not texts(shown, "tp_size", "TTFT p99", "stopped early", "sglang.launch_server")


def test_what_is_reachable_is_said_where_nothing_keeps_the_slo(tmp_path: Path) -> None:
    """On the page and in every report, with who came closer without having been measured whole."""
    limits = {"optimization": {"slo": {"ttft_p99_s": 0.001}}}
    folder = build(tmp_path, Example(name="tight", trials=20, confirm=0, requests=4, task=limits))
    made = overview.read_task(folder)
    closest = load_results(folder, made).closest
    assert closest is not None
    near = replace(closest, trial=TrialId("search", "near"), number=99, outcome="stopped", score=None)
    rung = replace(near.rungs[0], score=replace(near.rungs[0].score, violation=0.5, worst="TTFT 0.0015"))
    folder.save_record(replace(near, rungs=(rung,)))
    results = load_results(folder, made)
    reachable, closer = results.near
    assert reachable.startswith("The tightest SLO that it would keep: ttft_p99_s ")
    assert closer.startswith("Trial #99 came closer")
    shown, found = client(tmp_path).get("/experiments/tight").text, report.read(folder)
    for text in (shown, report.html(found), report.markdown(found)):
        plain = html.unescape(text).replace("\\", "")
        assert reachable in plain
        assert closer in plain


def test_who_did_not_hold_up_is_said_beside_the_answer(tmp_path: Path) -> None:
    """On the page, in the report and by the API; the winner is the one that took its place."""
    folder = build(tmp_path, Example(name="out", trials=20, confirm=2, requests=4, out=True))
    results = load_results(folder, parse_task(json.loads(folder.root.read("task.json")), "task.json"))
    ((out, why),) = results.refuted
    assert results.winner is not None
    asked = client(tmp_path)
    page, about = asked.get("/experiments/out").text, asked.get("/api/v1/experiments/out").json()
    said = f'trials/{out.trial.name}">#{out.number}</a> is out: it {html.escape(why)}.'
    assert not texts(page, said, f'Winner <a href="/experiments/out/trials/{results.winner.trial.name}">')
    assert f"#{out.number} is out: it {html.escape(why)}" in asked.get("/experiments/out/report").text
    assert about["refuted"] == {out.trial.name: why}
    assert about["winner"] == results.winner.trial.name


def test_why_the_search_ended_is_said_beside_the_answer(tmp_path: Path) -> None:
    """On the page and in the report."""
    folder = build(tmp_path, Example(name="settled", trials=8, confirm=2, requests=4))
    asked, said = client(tmp_path), "Nothing is left to gain: the model expects nothing."
    paths = ("/experiments/settled", "/experiments/settled/report")
    assert not any(said in asked.get(path).text for path in paths)
    folder.save_search_end(SearchEnd("settled", "the model expects nothing", max_trials=100))
    assert all(said in client(tmp_path).get(path).text for path in paths)


def test_state_and_dashboard_are_seen_first(folder: Path) -> None:
    """Not at the foot of a long page."""
    settings = Settings(Storage(str(folder)), ray_address="http://head:8265")
    shown = TestClient(create_app(settings), base_url=HERE, headers=HTML).get(f"/experiments/{RUNNING}").text
    assert shown.index('id="live-state"') < shown.index("<main")
    assert shown.index("http://head:8265") < shown.index('aria-label="At a glance"')


def test_the_page_leads_to_the_job_that_runs_the_experiment(tmp_path: Path) -> None:
    """Where it is one, and where the dashboard is known."""
    folder = ExperimentFolder(Storage(str(fill(tmp_path))), RUNNING)
    told = json.loads(folder.root.read("sessions/0001.json") or "")
    folder.root.write("sessions/0001.json", to_text({**told, "job": "raysubmit 1"}))
    settings = Settings(Storage(str(tmp_path)), ray_address="http://head:8265")
    shown = TestClient(create_app(settings), base_url=HERE, headers=HTML).get(f"/experiments/{RUNNING}").text
    assert 'href="http://head:8265/#/jobs/raysubmit%201"' in shown
    assert "/#/jobs/" not in client(tmp_path).get(f"/experiments/{RUNNING}").text


def test_the_table_is_sorted_filtered_and_cut_on_the_server(folder: Path) -> None:
    """Best first; only what fits; 50 at most on a page."""
    asked = client(folder)

    def numbers(query: str) -> list[int]:
        shown = asked.get(f"/experiments/{DONE}{query}").text
        return [int(n) for n in re.findall(r'<tr id="row-[^>]*>\s*<td class="num">(\d+)', shown)]

    assert numbers("?sort=number&order=asc")[:3] == [0, 1, 2]
    best_first = asked.get(f"/api/v1/experiments/{DONE}/trials?sort=score&order=desc").json()["trials"]
    assert numbers("?sort=score&order=desc") == [trial["number"] for trial in best_first]
    assert 0 < len(numbers("?standing=infeasible")) < 31
    assert numbers("?purpose=baseline") == [0]
    assert numbers("?page=999")
    by_parameter = asked.get(f"/api/v1/experiments/{DONE}/trials?sort=parameter:tp_size&order=asc&q=search").json()
    sizes = [trial["parameters"]["tp_size"] for trial in by_parameter["trials"]]
    assert sizes == sorted(sizes)


def test_what_was_measured_comes_before_what_was_set(folder: Path) -> None:
    """In the table of trials; why a trial ended stands under its state."""
    shown = client(folder).get(f"/experiments/{DONE}?standing=infeasible").text
    found = re.findall(r'<th scope="col"[^>]*><a [^>]*>(.+?)</a>', shown)
    head = [html.unescape(each.replace("<wbr>", "")) for each in found]
    wanted = [
        "#",
        "Trial",
        "State",
        "Score, tokens/s/GPU",
        "Output tokens/s",
        "TTFT p99",
        "TPOT p95",
        "E2E p99",
        "Time",
        "Rung",
    ]
    assert head[: len(wanted)] == wanted
    assert "tp_size" in head[len(wanted) :]
    assert "* at an earlier rung" in shown
    assert "at an earlier rung" not in client(folder).get(f"/experiments/{DONE}?standing=completed").text
    assert re.search(r'infeasible</span><div class="reason">out of memory: CUDA out of memory</div></td>', shown)


def test_a_running_experiment_is_stopped_by_its_button(tmp_path: Path) -> None:
    """The stop request lies in its folder; one that does not run is refused."""
    asked = client(fill(tmp_path))
    assert "Stop</button>" in asked.get(f"/experiments/{RUNNING}").text
    assert asked.post(f"/experiments/{RUNNING}/stop").status_code == 303
    assert (tmp_path / RUNNING / "stop").exists()
    assert "Stopping" in asked.get(f"/experiments/{RUNNING}").text
    assert asked.post(f"/experiments/{DONE}/stop").status_code == 422
    assert not (tmp_path / DONE / "stop").exists()


def test_only_what_was_interrupted_is_resumed(tmp_path: Path) -> None:
    """By the same command as on a terminal."""
    starts = Starts(Storage(str(fill(tmp_path))))
    asked = client(tmp_path, starts)
    assert "Resume</button>" in asked.get(f"/experiments/{STOPPED}").text
    assert asked.post(f"/experiments/{STOPPED}/resume").status_code == 303
    assert asked.post(f"/experiments/{DONE}/resume").status_code == 422
    assert asked.post(f"/experiments/{RUNNING}/resume").status_code == 422
    assert starts.started == [(STOPPED, "resume")]


def test_everything_is_downloaded_without_secrets(tmp_path: Path) -> None:
    """Every file, whole; what looks like a secret is not in it; nothing from outside of the folder."""
    fill(tmp_path)
    trial = next((tmp_path / DONE / "trials").glob("baseline-*"))
    (trial / "engine.log").write_text("started with api_key=sk-123456789 and port=1\n" * 3)
    (tmp_path / "outside.txt").write_text("not yours")
    (trial / "link.txt").symlink_to(tmp_path / "outside.txt")
    answer = client(tmp_path).get(f"/experiments/{DONE}/download")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as found:
        assert found.testzip() is None
        names = found.namelist()
        assert f"{DONE}/task.json" in names
        assert len([name for name in names if name.endswith("record.json")]) > 20
        log = found.read(f"{DONE}/trials/{trial.name}/engine.log").decode()
        assert "sk-123456789" not in log
        assert "port=1" in log
        assert not any("link.txt" in name for name in names)
        json.loads(found.read(f"{DONE}/task.json"))


SECRET, FLAG = "pa55phrase-of-env", "sk-of-a-flag"


def _with_secrets(folder: Path) -> None:
    """One in a variable and one in a flag, in every file that can have them."""
    fill(folder)
    task = {"runtime": {"env": {"PLAIN": SECRET}, "args": ["--api-key", FLAG]}}
    made = build(folder, Example(name="secret", trials=3, requests=2, confirm=1, task=task))
    record = next(each for each in made.records() if each.trial.purpose == "baseline")
    made.save_record(replace(record, argv=(*record.argv, "--api-key", FLAG)))
    container = {"env": [{"name": "PLAIN", "value": SECRET}], "args": ["--api-key", FLAG]}
    for trial in made.trial_names():
        made.root.write(f"trials/{trial}/inference-service.yaml", yaml.safe_dump({"spec": {"runner": container}}))


@pytest.mark.parametrize("form", ["html", "md", "csv", "json"])
def test_a_report_has_no_secrets(tmp_path: Path, form: str) -> None:
    """In any form: reports travel."""
    _with_secrets(tmp_path)
    shown = report.FORMATS[form](report.read(ExperimentFolder(Storage(str(tmp_path)), "secret")))
    assert SECRET not in shown
    assert FLAG not in shown


def test_no_page_and_no_download_has_secrets(tmp_path: Path) -> None:
    """Nor the task that is made from an experiment, be it from its record or from the file that was started here."""
    _with_secrets(tmp_path)
    asked = client(tmp_path)
    baseline = next((tmp_path / "secret" / "trials").glob("baseline-*")).name
    paths = ("/experiments/secret", f"/experiments/secret/trials/{baseline}", "/api/v1/experiments/secret")
    found = [asked.get(path).text for path in (*paths, "/experiments/secret/report", "/new?copy=secret")]
    own = f"# mine\nruntime:\n  env: {{PLAIN: {SECRET}}}  # not yours\n  args: [--api-key, {FLAG}]\n"
    (tmp_path / "secret" / "launch").mkdir()
    (tmp_path / "secret" / "launch" / "task.yaml").write_text(own)
    copied = asked.get("/new?copy=secret").text
    assert _text(copied) == own.replace(SECRET, "•••").replace(FLAG, "•••")
    with zipfile.ZipFile(io.BytesIO(asked.get("/experiments/secret/download").content)) as archive:
        found += [copied, *(archive.read(name).decode(errors="replace") for name in archive.namelist())]
    assert not [text for text in found if SECRET in text or FLAG in text]


def test_a_copied_task_asks_for_its_secrets(tmp_path: Path) -> None:
    """What stands in their place starts nothing, and is said beside its field."""
    _with_secrets(tmp_path)
    shown = client(tmp_path).get("/new?copy=secret").text
    assert "stands for what was hidden" in shown[shown.index('id="f-runtime-env-fault"') :]
    assert 'id="f-runtime-args-fault"' in shown
    assert "disabled>Start" in shown


def test_the_report_is_a_file(folder: Path) -> None:
    """One that opens by itself."""
    answer = client(folder).get(f"/experiments/{DONE}/report")
    assert answer.headers["content-disposition"] == f"attachment; filename={DONE}.html"
    assert not texts(answer.text, "<!doctype html>", "WIN")


def test_the_plots_are_figures_of_plotly(folder: Path) -> None:
    """In both themes, with words and heights; an unknown theme is refused."""
    asked = client(folder)
    for theme in ("light", "dark"):
        plots = asked.get(f"/experiments/{DONE}/plots?theme={theme}").json()
        assert {"best_so_far", "tradeoff", "timeline", "ledger"} <= set(plots)
        assert all(plot["figure"]["data"] and plot["caption"] and plot["height"] for plot in plots.values())
    assert asked.get(f"/experiments/{DONE}/plots?theme=pink").status_code == 422
    assert not {"importance", "marginals"} & set(asked.get(f"/experiments/{DONE}/plots").json())
    assert set(asked.get(f"/experiments/{DONE}/plots?part=slow").json()) <= {"importance", "marginals"}


def test_a_trial_shows_all_that_is_known(folder: Path) -> None:
    """Parameters, command line, phases, metrics by load, percentiles, what the engine said."""
    best = client(folder).get(f"/api/v1/experiments/{DONE}").json()["winner"]
    shown = client(folder).get(f"/experiments/{DONE}/trials/{best}").text
    assert re.search(r"<dd>2026-11-20 \d\d:\d\d UTC</dd>", shown)
    assert not texts(shown, "tp_size", "sglang.launch_server", "teardown", "D(512,128) × 64", "TTFT p99", "kv cache")
    assert client(folder).get(f"/experiments/{DONE}/trials/{best}/plots").json()


def test_a_running_trial_shows_where_it_stands(folder: Path) -> None:
    """It has no record yet."""
    trials = client(folder).get(f"/api/v1/experiments/{RUNNING}/trials?standing=running").json()["trials"]
    for trial in trials:
        shown = client(folder).get(f"/experiments/{RUNNING}/trials/{trial['name']}")
        assert shown.status_code == 200
        assert not texts(shown.text, "badge running", "tp_size")
    assert trials


def test_a_failed_trial_shows_the_lines_that_prove_it(folder: Path) -> None:
    """The class, the reason, what to do, and the line marked in the log."""
    trials = client(folder).get(f"/api/v1/experiments/{DONE}/trials?standing=infeasible&q=out+of+memory").json()
    shown = client(folder).get(f"/experiments/{DONE}/trials/{trials['trials'][0]['name']}").text
    assert not texts(shown, "out of memory", "lower mem_fraction_static", "<mark>")


def test_a_trial_that_was_cut_short_says_why_it_was_stopped_early(tmp_path: Path) -> None:
    """On its page, and in the list, which finds it by that."""
    fill(tmp_path)
    target = ExperimentFolder(Storage(str(tmp_path)), DONE)
    last = target.records()[5]
    cut = replace(last, outcome="stopped", score=None, failure=Failure("saturated", "it rises with 9 in the queue"))
    target.save_record(cut)
    asked = client(tmp_path)
    shown = asked.get(f"/experiments/{DONE}/trials/{cut.trial.name}").text
    assert not texts(shown, "Why it was stopped early: saturated", "it rises with 9 in the queue")
    listed = asked.get(f"/api/v1/experiments/{DONE}/trials?standing=stopped+early&q=saturated").json()["trials"]
    assert [each["name"] for each in listed] == [cut.trial.name]


def test_a_trial_that_was_taken_over_says_from_where_and_how_old_it_is(tmp_path: Path) -> None:
    """In terminal, pages, every report and at the mouse in the plots; in the table with the moment itself."""
    folder = build(tmp_path, Example(name="again", trials=6, confirm=0, requests=4))
    made = load_results(folder, overview.read_task(folder)).winner
    assert made is not None
    at = (datetime.now(timezone.utc) - timedelta(days=3, hours=1)).isoformat()
    taken = replace(made, reused_from=Reused("older", "search-x", at, 9.0))
    folder.save_record(taken)
    asked, found, said = client(tmp_path), report.read(folder), "from older, 3 d old"
    page = asked.get("/experiments/again").text
    assert said in page.split(f'id="row-{made.trial.name}"')[1].split("</tr>")[0]
    assert f" · {said}" in asked.get(f"/experiments/again/trials/{made.trial.name}").text
    whole, short = report.html(found), report.markdown(found)
    assert f"(trial #{made.number}, {said})" in whole
    assert f"<td>completed, {said}</td>" in whole
    assert f"(trial {made.number}, {said})" in short
    assert "1 taken over from earlier experiments" in short
    assert described(taken).startswith(f"<b>#{made.number}</b> {made.trial.purpose}, completed, {said}<br>")
    terminal = Console(file=io.StringIO(), width=200)
    terminal.print(display.trial_answer(taken, "folder"))
    assert f"Outcome: completed, {said}" in terminal.file.getvalue()  # type: ignore[attr-defined]
    rows = list(csv.DictReader(io.StringIO(report.FORMATS["csv"](found))))
    where = {row["trial"]: (row["reused_from"], row["measured_at"]) for row in rows}
    assert where.pop(made.trial.name) == ("older/search-x", at)
    assert set(where.values()) == {("", "")}


def test_what_is_in_a_log_is_not_html(tmp_path: Path) -> None:
    """Names, reasons and parameters neither."""
    fill(tmp_path)
    target = ExperimentFolder(Storage(str(tmp_path)), DONE)
    record = target.records()[5]
    evil = {"schedule_policy": "<script>alert(1)</script>"}
    trial = TrialId("search", config_hash(evil))
    target.save_record(type(record)(**{**record.__dict__, "trial": trial, "parameters": evil, "number": 999}))
    asked = client(tmp_path)
    for path in (f"/experiments/{DONE}", f"/experiments/{DONE}/trials/{trial.name}"):
        shown = asked.get(path).text
        assert "<script>alert" not in shown
        assert "&lt;script&gt;alert" in shown


def test_experiments_are_compared_side_by_side(folder: Path) -> None:
    """Where they differ is marked; that loads differ is said."""
    shown = client(folder).get(f"/compare?experiment={DONE}&experiment={STOPPED}").text
    assert not texts(shown, DONE, STOPPED, "tp_size", "Verdict")
    assert "different loads" not in shown
    assert "Choose two" in client(folder).get(f"/compare?experiment={DONE}").text
    assert client(folder).get("/compare?experiment=../etc&experiment=x").status_code == 404
    many = client(folder).get("/compare", params={"experiment": [f"e{n}" for n in range(9)]})
    assert many.status_code == 422
    assert not texts(many.text, "<!doctype html>", "at most 8")


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    """Best so far is drawn over one another where the scores mean the same; a broken SLO is marked, flags are named."""
    build(tmp_path, Example(name="one", trials=3, confirm=0, requests=4))
    tight = {"optimization": {"slo": {"ttft_p99_s": 0.001}}}
    build(tmp_path, Example(name="tight", trials=2, confirm=0, requests=4, task=tight))
    free = {"optimization": {"objective": "minimize_ttft", "slo": {}}}
    build(tmp_path, Example(name="other", trials=0, confirm=0, requests=4, task=free))
    asked = client(tmp_path)
    shown = asked.get("/compare?experiment=one&experiment=tight").text
    assert not texts(shown, "different limits", "breaks the SLO: ttft_p99_s")
    drawn = asked.get("/compare/plots?experiment=one&experiment=one&experiment=tight").json()
    assert [trace["name"] for trace in drawn["best_so_far"]["figure"]["data"]] == ["one", "tight"]
    assert "tight has nothing yet that keeps the SLO" in drawn["best_so_far"]["caption"]
    shown = html.unescape(asked.get("/compare?experiment=one&experiment=other").text)
    assert not texts(shown, "different objectives", "the runtime's own flag")
    assert asked.get("/compare/plots?experiment=one&experiment=other").json() == {}


def test_a_new_task_begins_valid_and_with_its_plan(tmp_path: Path) -> None:
    """Whatever it begins with."""
    for name in STARTS:
        shown = client(tmp_path).get(f"/new?start={name}").text
        assert not texts(shown, "Time in all", "at most")
        assert not re.search(r"\d+ faults?</p>", shown)


def test_a_field_of_seconds_says_so(tmp_path: Path) -> None:
    """By the unit in its name."""
    shown = client(tmp_path).get("/new?start=sglang").text
    assert not texts(shown, ">Pull timeout (s)</label>", ">TTFT p99 (s)</label>")


def test_faults_stand_beside_their_fields(tmp_path: Path) -> None:
    """Of the form and of the text; the text that people edit is kept as they wrote it."""
    form = {
        "task_name": "No Name",
        "backend": "local",
        "engine": "llamacpp",
        "model.name": "m",
        "model.path": "m.gguf",
        "optimization.max_iterations": "-3",
        "optimization.slo": "ttft_p50_s: fast",
        "optimization.slo.ttft_p99_s": "slow",
        "optimization.budget.wall_time": "8 weeks",
        "benchmark.num_concurrency": "1 4",
        "searched": "threads",
        "parameter:threads": "4..1",
    }
    shown = client(tmp_path).post("/new/form", data=form).text
    places = ("task_name", "optimization-max_iterations", "optimization-slo", "optimization-slo-ttft_p99_s")
    for place in (*places, "optimization-budget-wall_time"):
        assert f'id="f-{place}-fault"' in shown
    assert 'id="fault-threads"' in shown
    assert "num_concurrency: [1, 4]" in shown
    assert "disabled>Start" in shown


def test_a_text_that_cannot_be_read_locks_the_form(tmp_path: Path) -> None:
    """It keeps what it said last, and the text what was written; when it can be read again, both go on."""
    asked = client(tmp_path)
    good = write_task(STARTS["sglang"])
    bad = good.replace("optimization:", "optimization: [") + "# kept\n"
    broken = asked.post("/new/form", data={"shown": good, "text": bad}).text
    assert not texts(broken, "# kept", "not YAML", 'value="my-runtime"', "cannot be read as it is")
    assert re.search(r'<fieldset class="form"\s+disabled>', broken)
    assert _text(broken) == bad
    sent = _fields(broken)
    again = asked.post("/new/form", data={"shown": sent["shown"][0], "text": good}).text
    assert _text(again) == good
    assert not re.search(r'<fieldset class="form"\s+disabled>', again)


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ("max_iterations: 20  # each", {"optimization.max_iterations": "7"}, "max_iterations: 7  # each"),
        ("  max_iterations: 20  # each\n", {"optimization.max_iterations": ""}, ""),
        ("task_name:", {"description": "why: this"}, "task_name:"),
        ("  slo: {ttft_p99_s: 1.5}\n", {"optimization.slo": ""}, ""),
        ("    - 4\n    - 8\n", {"benchmark.num_concurrency": "1, 2, 3"}, "    - 1\n    - 2\n    - 3\n"),
        ("values: [1, 2]", {"parameter:tp_size": "1, 4"}, "values: [1, 4]"),
        (
            "{ttft_p99_s: 1.5}",
            {"optimization.slo": "{ttft_p99_s: 1.5, error_ratio: 0}"},
            "{ttft_p99_s: 1.5, error_ratio: 0}",
        ),
        ("{ttft_p99_s: 1.5}", {"optimization.slo.ttft_p99_s": "2"}, "{ttft_p99_s: 2}"),
        ("{ttft_p99_s: 1.5}", {"optimization.slo.tpot_p99_s": "0.05"}, "{ttft_p99_s: 1.5, tpot_p99_s: 0.05}"),
        ("  slo: {ttft_p99_s: 1.5}\n", {"optimization.slo.ttft_p99_s": ""}, ""),
        (
            "  objective: maximize_throughput\n",
            {"optimization.budget.gpu_hours": "20", "optimization.budget.wall_time": "8h"},
            "  objective: maximize_throughput\n  budget:\n    gpu_hours: 20\n    wall_time: 8h\n",
        ),
    ],
)
def test_the_form_changes_its_own_in_the_text(tmp_path: Path, before: str, changes: dict[str, str], after: str) -> None:
    """Comments, order and what the form does not know stay as they were written."""
    text = COMMENTED
    assert before in text
    asked = client(tmp_path)
    sent = {**_fields(asked.post("/new/form", data={"text": text}).text), **changes}
    now = _text(asked.post("/new/form", data=sent).text)
    kept = now.replace("description: 'why: this'\n", "") if "description" in changes else now
    assert kept == text.replace(before, after)
    if "description" in changes:
        assert taskfile.parse(now, "task").data["description"] == "why: this"


COMMENTED = """# of Ann
task_name: commented
optimizaton: {misspelt: true}  # stays, with its fault
backend: ome
engine: sglang
model: {name: m}
base_runtime: r

parameters:
  # two nodes
  tp_size: {type: choice, values: [1, 2]}
optimization:
  # the most
  max_iterations: 20  # each
  slo: {ttft_p99_s: 1.5}
  objective: maximize_throughput
benchmark:
  num_concurrency:  # of users
    - 4
    - 8
  model_tokenizer: t
# the end
"""


def test_a_misspelt_section_stays_with_its_fault(tmp_path: Path) -> None:
    """Whatever is changed in the form."""
    asked = client(tmp_path)
    sent = {**_fields(asked.post("/new/form", data={"text": COMMENTED}).text), "optimization.max_iterations": "7"}
    shown = asked.post("/new/form", data=sent).text
    assert not texts(shown, "optimizaton: {misspelt: true}", "<code>optimizaton</code>")


def test_form_and_text_are_changed_at_once(tmp_path: Path) -> None:
    """Neither takes back what was done to the other meanwhile."""
    asked = client(tmp_path)
    sent = _fields(asked.post("/new/form", data={"text": COMMENTED}).text)
    sent |= {"optimization.max_iterations": ["7"], "text": [COMMENTED.replace("- 8", "- 16")]}
    assert _text(asked.post("/new/form", data=sent).text) == COMMENTED.replace("- 8", "- 16").replace("20  #", "7  #")


def _text(shown: str) -> str:
    found = re.search(r'<textarea [^>]*id="text"[^>]*>(.*?)</textarea>', shown, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_form_and_text_say_the_same(tmp_path: Path) -> None:
    """What the text says fills the form; the form sent back gives the same task."""
    asked = client(tmp_path)
    for wish in STARTS.values():
        shown = asked.post("/new/form", data={"text": write_task(wish)}).text
        again = asked.post("/new/form", data=_fields(shown)).text
        assert _plan(again) == _plan(shown)
        assert _fields(again) == _fields(shown)


def _fields(shown: str) -> dict[str, list[str]]:
    """What a browser would send of the form."""
    form = shown[shown.index('id="fields"') : shown.index("</form>")]
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input [^>]*?name="([^"]+)" value="([^"]*)"(?![^>]*type="checkbox")', form):
        if f'name="{name}" value="{value}" checked' in form or "checkbox" not in _tag(form, name, value):
            found.setdefault(name, []).append(html.unescape(value))
    for name, value in re.findall(r'<textarea [^>]*?name="([^"]+)"[^>]*>([^<]*)</textarea>', form):
        found.setdefault(name, []).append(html.unescape(value))
    for name, options in re.findall(r'<select [^>]*?name="([^"]+)"[^>]*>(.*?)</select>', form):
        chosen = re.search(r"<option selected>([^<]*)", options)
        found.setdefault(name, []).append(chosen[1] if chosen else "")
    return found


def _tag(form: str, name: str, value: str) -> str:
    at = form.index(f'name="{name}" value="{value}"')
    return form[form.rindex("<", 0, at) : form.index(">", at)]


def _plan(shown: str) -> str:
    return shown[shown.index('id="plan-box"') : shown.index('id="assumed"')]


def test_a_task_is_started_here_only_when_it_is_valid(tmp_path: Path) -> None:
    """The text goes to the experiment as it was written."""
    starts = Starts(Storage(str(tmp_path)))
    asked = client(tmp_path, starts)
    text = write_task(STARTS["local"])
    refused = asked.post("/new/start", data={"text": text.replace("maximize_throughput", "win"), "name": "x"})
    assert refused.status_code == 422
    answer = asked.post("/new/start", data={"text": text, "name": "my-run"})
    assert answer.headers["location"] == "/experiments/my-run"
    assert starts.started == [("my-run", text)]
    asked.post("/new/start", data={"text": text})
    assert starts.started[1][0].startswith("local-demo-2")


def test_what_is_started_is_what_the_form_says_now(tmp_path: Path) -> None:
    """Also before the page has followed; what cannot be read in it starts nothing."""
    starts = Starts(Storage(str(tmp_path)))
    asked = client(tmp_path, starts)
    sent = {**_fields(asked.get("/new?start=local").text), "optimization.max_iterations": "7"}
    assert asked.post("/new/start", data={**sent, "optimization.max_iterations": "["}).status_code == 422
    assert asked.post("/new/start", data=sent).status_code == 303
    ((_, text),) = starts.started
    assert "max_iterations: 7" in text


def test_a_ray_cluster_that_is_not_there_is_said(tmp_path: Path) -> None:
    """An address of another form is the user's fault, and nothing is lost of what was written."""
    text = write_task(STARTS["local"])
    answer = client(tmp_path).post("/new/start", data={"text": text, "where": "ray", "address": "head:8265"})
    assert answer.status_code == 422
    assert not texts(answer.text, "http://HEAD:8265", "local-demo")


def test_a_task_is_uploaded_and_downloaded(tmp_path: Path) -> None:
    """As it is; what is no text is refused."""
    asked = client(tmp_path)
    text = write_task(STARTS["sglang"])
    assert "my-runtime" in asked.post("/new/upload", files={"file": ("task.yaml", text.encode())}).text
    assert "UTF-8" in asked.post("/new/upload", files={"file": ("x", b"\xff\xfe\x00")}).text
    assert asked.post("/new/download", data={"text": text}).text.replace("\r\n", "\n") == text


def test_a_new_task_is_made_from_an_experiment(folder: Path) -> None:
    """Its task, with all that it searched."""
    shown = client(folder).get(f"/new?copy={DONE}").text
    assert not texts(shown, "llama-3-1-8b-instruct", "maximize_throughput_per_gpu", "0.7..0.95", "16..512 log")
    task = overview.read_task(ExperimentFolder(Storage(str(folder)), DONE))
    assert parse_task(taskfile.parse(_text(shown), "task").data, "task") == task
    assert "null" not in _text(shown)
    assert "telemetry" not in _text(shown)


@pytest.mark.parametrize(
    ("name", "kind", "namespace", "said"),
    [
        ("both", None, "a", "In_Transit"),
        ("both", None, "b", "Ready"),
        ("both", "ClusterBaseModel", "a", "Ready"),
        ("own", "BaseModel", "a", "Failed"),
        ("own", "BaseModel", "b", "only in namespace a"),
        ("own", "ClusterBaseModel", "a", "not in the cluster"),
        ("other", None, None, "not in the cluster"),
        ("", None, None, ""),
    ],
)
def test_what_is_known_of_a_named_model(name: str, kind: str | None, namespace: str | None, said: str) -> None:
    """One of the namespace comes before one of the cluster."""
    choices = (
        Choice("both", "ClusterBaseModel", None, "Ready"),
        Choice("both", "BaseModel", "a", "In_Transit"),
        Choice("own", "BaseModel", "a", "Failed"),
    )
    assert standing(choices, name, kind, namespace) == said
    assert standing((), name, kind, namespace) == ""  # nothing is known where nothing can be listed


@pytest.mark.parametrize("use", ["", "BaseModel", "BaseModel/a/", "Secret/a/b", "///", "BaseModel/a"])
def test_what_is_no_choice_changes_nothing(tmp_path: Path, use: str) -> None:
    """Whatever is sent."""
    asked = client(tmp_path)
    sent = {**_fields(asked.post("/new/form", data={"text": COMMENTED}).text), "use": use}
    assert _text(asked.post("/new/form", data=sent).text) == COMMENTED


def test_a_model_of_the_cluster_is_used_where_one_of_a_namespace_was(tmp_path: Path) -> None:
    """Its kind goes with it."""
    asked = client(tmp_path)
    text = COMMENTED.replace("model: {name: m}", "model: {name: m, namespace: a}\nome: {model_kind: BaseModel}")
    sent = {**_fields(asked.post("/new/form", data={"text": text}).text), "use": "ClusterBaseModel//x"}
    data = taskfile.parse(_text(asked.post("/new/form", data=sent).text), "task").data
    assert data["model"] == {"name": "x", "namespace": "a"}
    assert data["ome"] == {"model_kind": "ClusterBaseModel"}


def test_without_a_cluster_names_are_typed(tmp_path: Path) -> None:
    """The page says why there is nothing to choose from."""
    assert not texts(client(tmp_path).get("/new/cluster").text, "No cluster to choose from", "typed")
