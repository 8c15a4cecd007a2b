"""The report of an experiment, in every format and of every kind of experiment."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from raytune_autotuner import plots, report
from raytune_autotuner.cli import ENVIRONMENT, main
from raytune_autotuner.cli.options import BAD_INPUT
from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import ledger
from raytune_autotuner.records import Failure, TrialRecord
from raytune_autotuner.report import answer, evidence
from raytune_autotuner.report.images import save
from raytune_autotuner.report.pages import inline
from raytune_autotuner.task.spec import parse_task
from raytune_autotuner.verdict import Verdict
from tests.example_experiment import Example, build

HOSTILE = "</script><script>alert(1)</script></pre><img src=x onerror=alert(2)> | ``` [a](javascript:b) {{ 7 * 7 }}"
SMALL = Example(trials=14, confirm=1, requests=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ExperimentFolder:
    return build(tmp_path_factory.mktemp("report"), SMALL)


@pytest.fixture(scope="module")
def facts(folder: ExperimentFolder) -> report.Report:
    return report.read(folder)


def with_records(facts: report.Report, *records: TrialRecord, winner: bool = False) -> report.Report:
    """The same report if the experiment had these trials only."""
    results = replace(
        facts.results,
        records=records,
        baseline=next((r for r in records if r.trial.purpose == "baseline"), None),
        winner=facts.results.winner if winner else None,
        closest=None,
        verdict=None,
        ledger=ledger(records),
    )
    return replace(facts, results=results)


def with_verdict(facts: report.Report, kind: str, low: float = -0.1) -> report.Report:
    verdict = Verdict(kind, 0.2, low, 0.3, 0.95, 100.0, 120.0, "tokens/s", 3, 3, "why")  # type: ignore[arg-type]
    return replace(facts, results=replace(facts.results, verdict=verdict))


class Page(HTMLParser):
    """What a page holds: tags, texts, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        outside = (v for k, v in attrs if k in ("src", "href", "srcset", "poster", "action") and v)
        self.fetched += [each for each in outside if not each.startswith("#")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_says_the_answer_first_and_fetches_nothing(facts: report.Report) -> None:
    """Badge and headline stand before all evidence; no tag refers to anything outside of the file."""
    page = report.html(with_verdict(facts, "WIN", 0.1))
    assert (
        page.index(">WIN<")
        < page.index("Change the configuration: +20% over the baseline")
        < page.index(">Evidence</h2>")
    )
    parsed = Page(page)
    assert parsed.fetched == []
    assert "link" not in parsed.tags
    assert "@import" not in page.split("<body>")[0]
    assert page.count("plotly.js v") == 1
    assert "default-src 'none'" in page


def test_a_winner_that_is_to_be_run_without_a_gain_is_no_reason_to_keep_the_baseline(facts: report.Report) -> None:
    """The headline says what the recommendation is."""
    unproven = with_verdict(facts, "UNSTABLE")
    assert unproven.results.verdict is not None
    verdict = replace(unproven.results.verdict, winner_anyway=True)
    found = answer.answer(replace(unproven, results=replace(unproven.results, verdict=verdict)))
    assert found.headline.startswith("Run the winner, its gain unproven")


@pytest.mark.parametrize(
    ("kind", "low", "tone", "said"),
    [
        ("WIN", 0.1, "good", "Change the configuration: +20%"),
        ("WIN", -0.1, "good", "it keeps the SLO"),
        ("TIE", -0.1, "neutral", "Keep the baseline"),
        ("UNSTABLE", -0.1, "warn", "did not hold up"),
    ],
)
def test_each_verdict_is_put_into_plain_words(
    facts: report.Report, kind: str, low: float, tone: str, said: str
) -> None:
    """What to do, in one sentence; the reason stands below it."""
    found = answer.answer(with_verdict(facts, kind, low))
    assert (found.badge, found.tone) == (kind, tone)
    assert said in found.headline
    assert "Why." in found.explanation


def test_without_a_verdict_no_gain_is_claimed(facts: report.Report) -> None:
    """Not confirmed, the baseline the best, nothing feasible, nothing measured: each is said as it is."""
    searched = [r for r in facts.results.records if r.trial.purpose != "confirm"]
    cut_short = with_records(facts, *searched, winner=True)
    unconfirmed = answer.answer(cut_short)
    assert unconfirmed.badge == "NOT CONFIRMED"
    assert "no gain is claimed" in unconfirmed.explanation
    for page in (report.html(cut_short), report.markdown(cut_short)):
        assert "Best configuration so far, not confirmed" in page
        assert "Recommended" not in page
    base = facts.results.baseline
    best = with_records(facts, *searched)
    assert answer.answer(replace(best, results=replace(best.results, winner=base))).badge == "BASELINE"
    failed = [r for r in searched if r.outcome == "infeasible"]
    assert answer.answer(with_records(facts, *failed)).headline == "No configuration works."
    close = with_records(facts, *failed)
    assert "comes closest" in answer.answer(replace(close, results=replace(close.results, closest=base))).explanation
    assert answer.answer(with_records(facts)).headline == "Nothing has been measured."


def test_a_running_experiment_is_reported_so_far(tmp_path: Path) -> None:
    """And an interrupted one as cut short."""
    running = report.read(build(tmp_path, Example(trials=3, confirm=0, requests=4, running=2, name="live")))
    assert running.state == "running"
    page = report.html(running)
    assert ">SO FAR<" in page
    assert "of 4" in page or "of 5" in page or " of " in page
    cut = replace(running, state="interrupted")
    assert "cut short" in answer.answer(cut).explanation


def test_a_report_of_nothing_is_a_report(facts: report.Report) -> None:
    """Before anything is measured there is a page and a text, without plots and without an error."""
    empty = with_records(facts)
    assert "Nothing has been measured" in report.html(empty)
    assert "plotly.js v" not in report.html(empty)
    assert "Nothing has been measured" in report.markdown(empty)


def hostile(facts: report.Report) -> report.Report:
    task = facts.results.task.model_copy(update={"description": HOSTILE})
    base = facts.results.records[0]
    failure = Failure("crash", HOSTILE, f"line\n{HOSTILE}\n```", HOSTILE)
    bad = replace(facts.results.records[3], parameters={HOSTILE: HOSTILE}, failure=failure, outcome="infeasible")
    told = replace(
        base, differences=(HOSTILE,), notes=(HOSTILE,), argv=("serve", HOSTILE), engine_info={HOSTILE: HOSTILE}
    )
    found = with_records(facts, told, bad)
    results = replace(found.results, task=task, closest=told)
    return replace(found, results=results, task_text=HOSTILE, manifest=HOSTILE, environment={HOSTILE: HOSTILE})


def test_texts_are_data_in_the_page(facts: report.Report) -> None:
    """Whatever a task or a log says starts no script and no element."""
    page = report.html(hostile(facts))
    clean = Page(report.html(facts))
    parsed = Page(page)
    assert "img" not in parsed.tags
    assert "alert(1)" not in "".join(parsed.words).split("</script>")[0] or "<script>alert" not in page
    assert "<script>alert" not in page
    assert "{{ 7 * 7 }}" in page
    assert parsed.fetched == clean.fetched == []


def test_markdown_says_all_that_the_page_says(tmp_path: Path) -> None:
    """As short tables; the task is folded, without its defaults, and is still the same task."""
    facts = report.read(build(tmp_path, Example(trials=24, confirm=1, requests=4)))
    text = report.markdown(facts)
    for title in ("Apply it", "Best so far", "Front of", "What the score depends on", "Environment"):
        assert f"### {title}" in text
    assert "raytune-autotuner export" in text
    assert "package ray | 2.60.0" in text
    folded = re.search(r"<details>.*?```json\n(.*?)\n```\n\n</details>", text, re.DOTALL)
    assert folded
    assert parse_task(json.loads(folded[1]), "report") == facts.results.task
    assert len(folded[1]) < len(facts.task_text) / 2


def test_markdown_is_tables_and_no_html(facts: report.Report) -> None:
    """A parser with GitHub's tables sees them all; hostile texts make no HTML, no link and no extra column."""
    parser = MarkdownIt("commonmark").enable("table")
    for found in (facts, hostile(facts)):
        tokens = parser.parse(report.markdown(found))
        kinds = [token.type for token in tokens] + [c.type for token in tokens for c in token.children or ()]
        assert kinds.count("table_open") >= 3
        assert not {"html_inline", "link_open", "image"} & set(kinds)
        own = [token.content.strip() for token in tokens if token.type == "html_block"]
        assert own == ["<details><summary>task.json (what it does not say is as by default)</summary>", "</details>"]
    first = [token for token in tokens if token.type == "heading_open"]
    assert first


def test_inline_text_shows_as_it_was_written() -> None:
    """Marks of Markdown and HTML in a text are its letters."""
    text = "a|b *c* <d> [e](f) #g `h` @someone"
    rendered = MarkdownIt("commonmark").enable("table").renderInline(inline(text))
    assert rendered == "a|b *c* &lt;d&gt; [e](f) #g `h` @someone"


def test_the_csv_has_the_latencies_and_throughput_of_each_trial(facts: report.Report) -> None:
    """TTFT, TPOT and throughput are columns; what was not measured is empty."""
    rows = list(csv.DictReader(io.StringIO(report.FORMATS["csv"](facts))))
    assert len(rows) == len(facts.results.records)
    by_name = {row["trial"]: row for row in rows}
    for record in facts.results.records:
        row = by_name[record.trial.name]
        columns = ("output_tokens_per_s", "ttft_p99_s", "tpot_mean_s")
        assert all(bool(row[name]) == bool(record.rungs) for name in columns)
    assert facts.results.winner is not None
    best = by_name[facts.results.winner.trial.name]
    loads = facts.results.winner.rungs[-1].metrics.loads
    assert float(best["output_tokens_per_s"]) == max(load.values["output_tokens_per_s"] for load in loads)


def test_the_json_is_the_results_document(facts: report.Report) -> None:
    """With where it comes from and in which state."""
    said = json.loads(report.json_text(facts))
    assert said["experiment"] == facts.results.experiment
    assert said["state"] == facts.state
    assert said["total_experiments"] == len(facts.results.records)


def test_a_lost_node_is_no_configuration_that_could_not_work(facts: report.Report) -> None:
    """What the infrastructure lost is counted by itself."""
    found = facts.results.records
    records = [replace(r, outcome="failed") for r in found[:2]] + [r for r in found[2:] if r.outcome != "failed"]
    note = next(tile.note for tile in answer.tiles(with_records(facts, *records)) if tile.label == "trials")
    infeasible = sum(r.outcome == "infeasible" for r in records)
    assert f"{infeasible} could not work" in note
    assert "2 lost to the infrastructure" in note


def test_a_trial_that_was_cut_short_was_stopped_early_and_says_why(facts: report.Report) -> None:
    """It is counted with those that others were better than, and is no interruption."""
    cut = Failure("slo_lost", "ttft_p99_s (limit 1 s): 9 of at most 64 requests took longer, 2 are enough")
    first, second, third, fourth, *_ = facts.results.records
    records = [
        first,
        replace(second, outcome="stopped", score=None, failure=cut),
        replace(third, outcome="stopped", score=None, failure=None),
        replace(fourth, outcome="stopped", score=None, failure=Failure("interrupted", "somebody")),
    ]
    found = with_records(facts, *records)
    note = next(tile.note for tile in answer.tiles(found) if tile.label == "trials")
    assert note == "2 stopped early"
    page = report.html(found)
    assert f"<td>stopped early: {cut.kind}</td>" in page
    for shown in (page, report.markdown(found)):
        assert "What failed or was cut short, and why" in shown
        assert "requests took longer, 2 are enough" in shown


def test_failures_are_counted_by_class_with_their_proof(facts: report.Report) -> None:
    """The most frequent first; the lines of the log that tell are with them."""
    groups = evidence.failures(facts.results)
    counts = [len(group.trials) for group in groups]
    assert counts == sorted(counts, reverse=True)
    memory = next(group for group in groups if group.kind == "out_of_memory")
    assert "CUDA out of memory" in memory.log_tail
    assert memory.hint


def command(folder: ExperimentFolder, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    run = CliRunner().invoke(main, ["report", folder.name, "--storage", folder.storage.uri, *arguments], env=env)
    return run.exit_code, run.output


@pytest.mark.parametrize(
    ("file", "commands"),
    [
        ("results.json", ("status",)),
        ("trials/{trial}/record.json", ("status", "report", "export")),
    ],
)
def test_a_damaged_file_is_told_with_its_place(file: str, commands: tuple[str, ...], tmp_path: Path) -> None:
    """By whatever needs it; nothing is written to the folder."""
    folder = build(tmp_path, SMALL)
    path = file.format(trial=folder.trial_names()[0])
    folder.root.write(path, '{"half": ')
    for command in commands:
        run = CliRunner().invoke(main, [command, folder.name, "--storage", folder.storage.uri])
        assert run.exit_code == ENVIRONMENT, command
        assert f"{folder.root.location(path)} is damaged" in run.output
    assert folder.root.read(path) == '{"half": '


def test_the_ending_of_the_file_says_what_is_written(folder: ExperimentFolder, tmp_path: Path) -> None:
    """An ending that is none of ours is refused before anything is read, with those there are."""
    assert command(folder, "-o", str(tmp_path / "new" / "report.md")) == (0, f"{tmp_path}/new/report.md\n")
    assert (tmp_path / "new" / "report.md").read_text(encoding="utf-8").startswith("## ")
    code, said = command(folder, "-o", str(tmp_path / "report.pdf"))
    assert code == BAD_INPUT
    assert ".html, .md, .csv, .json" in said
    assert not (tmp_path / "report.pdf").exists()


def test_a_report_that_cannot_be_written_there_is_bad_input(
    folder: ExperimentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the flag and the place: here a file stands where a folder would be."""
    monkeypatch.setenv("CHROME_PATH", "browser")
    (tmp_path / "file").touch()
    for flag, place in (("--output", tmp_path / "file" / "r.html"), ("--png", tmp_path / "file" / "png")):
        code, said = command(folder, "-o", str(tmp_path / "r.csv"), flag, str(place))
        assert code == BAD_INPUT
        assert f"error: {place}: {flag}: " in said


def test_png_files_come_from_a_browser(
    folder: ExperimentFolder, facts: report.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each plot is one file; without a browser it is said what is needed, after the report was written."""
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\nfor a in "$@"; do case "$a" in --screenshot=*) echo PNG > "${a#*=}"; esac; done\n')
    browser.chmod(0o755)
    monkeypatch.setenv("CHROME_PATH", str(browser))
    drawn = plots.figures(facts.results, names=["ledger"]).values()
    assert save(drawn, tmp_path / "png") == [tmp_path / "png" / "ledger.png"]
    assert (tmp_path / "png" / "ledger.png").read_text() == "PNG\n"
    browser.write_text("#!/bin/sh\necho no display >&2\n")
    with pytest.raises(EnvironmentFault, match="no display"):
        save(drawn, tmp_path / "png")
    monkeypatch.delenv("CHROME_PATH")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    code, said = command(folder, "-o", str(tmp_path / "s.csv"), "--png", str(tmp_path / "png"))
    assert code == ENVIRONMENT
    assert "Chromium or Chrome" in said
    assert (tmp_path / "s.csv").exists()
