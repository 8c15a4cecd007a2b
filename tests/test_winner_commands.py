"""Leaving out flags and verifying, from the command line; the measurements are made up, no Ray runs here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raytune_autotuner import experiment, minimal
from raytune_autotuner.cli import BAD_INPUT, ENVIRONMENT, INTERRUPTED, NOTHING_FEASIBLE, OK, main
from raytune_autotuner.experiment import Options
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.gate import Course
from raytune_autotuner.planning.checks import load_checked
from raytune_autotuner.records import BudgetState, Parameters, config_hash
from raytune_autotuner.results import Results, load_results
from raytune_autotuner.search import Limits, ListSource, Proposer, Wanted
from raytune_autotuner.setup import Setup
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Budget
from tests.test_end_to_end import write_task
from tests.test_minimal import plainly
from tests.test_results import record
from tests.test_search import Driver, Fence

WINNER: Parameters = {"pace": 0.002, "threads": 4}


class MadeUp:
    """Measures what a course wants in no time; ``seconds`` says how long a request takes."""

    def __init__(self) -> None:
        self.real = experiment.run
        self.seconds: Callable[[Parameters], float] = lambda parameters: 1.0
        self.budget = 1000
        self.setups: list[tuple[Setup, Options]] = []

    def run(self, setup: Setup, options: Options, course: Course) -> Results:
        self.setups.append((setup, options))
        setup.folder.root.write("task.json", setup.task.model_dump_json())
        setup.folder.root.write(experiment.COURSE, json.dumps(options.about))
        made = setup.folder.records()
        while (wanted := tuple(course.wanted(made, lambda one, other: ()))) and len(made) < self.budget:
            for each in wanted[: self.budget - len(made)]:
                n = len(made)
                latency_s = self.seconds(each.parameters) * (1 + 0.002 * (n % 3))
                found = record(n, each.parameters, latency_s, purpose="confirm", rungs=1, repeat=n)
                argv = setup.trial(found.trial, n, each.parameters).job.deployment.argv
                made.append(replace(found, command=argv, started_at=f"2026-01-01T00:{n % 60:02}:00+00:00"))
                setup.folder.save_record(made[-1])
        if wanted and setup.task.optimization.budget:
            setup.folder.save_budget(BudgetState(60.0, confirming=f"the budget paid for 0 of the {len(wanted)} runs"))
        return load_results(setup.folder, setup.task)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """And a finished experiment, with a winner of two flags."""
    made_up = MadeUp()
    monkeypatch.setattr(experiment, "run", made_up.run)
    monkeypatch.setattr(minimal, "measured", plainly)
    monkeypatch.chdir(tmp_path)
    file = write_task(tmp_path, optimization__objective="minimize_latency", optimization__scheduler="none")
    task, _ = load_checked(file)
    folder = ExperimentFolder(Storage("store"), "exp")
    folder.root.write("task.json", task.model_dump_json())
    command = ("{python}", "-m", "server", "--port", "{port}", "--pace", "0.002")
    confirming = [({}, 2.0), (WINNER, 1.0), (WINNER, 1.02), ({}, 2.02)]
    folder.save_record(record(0, {}, 2.0, purpose="baseline"))
    folder.save_record(replace(record(1, WINNER, 1.0), command=command))
    for n, (parameters, latency_s) in enumerate(confirming, 2):
        folder.save_record(record(n, parameters, latency_s, purpose="confirm", rungs=1, repeat=n))
    return made_up


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--storage", "store"], catch_exceptions=False)


class TestVerify:
    """The file against the baseline."""

    def test_a_gain_that_holds_is_a_win(self, made_up: MadeUp) -> None:
        """What is deployed is the file's own command line, under a name that stands for the file."""
        made_up.seconds = lambda parameters: 1.0 if parameters else 2.0
        assert invoke("export", "exp", "-o", "winner.sh").exit_code == OK
        result = invoke("verify", "winner.sh", "--name", "again")
        assert result.exit_code == OK
        assert "WIN: +" in result.stdout
        setup, options = made_up.setups[0]
        assert options.aside
        contender = next(r for r in setup.folder.records() if r.parameters)
        assert contender.parameters["file"] == "winner.sh"
        assert contender.command == ("{python}", "-m", "server", "--port", "{port}", "--pace", "0.002")
        assert next(r for r in setup.folder.records() if not r.parameters).command != contender.command

    def test_its_folder_reads_like_any_other(self, made_up: MadeUp) -> None:
        """Baseline, winner and verdict, though nothing was searched; and there is nothing to resume."""
        made_up.seconds = lambda parameters: 1.0 if parameters else 2.0
        assert invoke("verify", "exp", "--name", "again").exit_code == OK
        setup = made_up.setups[0][0]
        results = load_results(setup.folder, setup.task)
        assert results.verdict is not None
        assert results.verdict.kind == "WIN"
        assert invoke("resume", "again").exit_code == BAD_INPUT
        assert invoke("extend", "again", "--trials", "1").exit_code == BAD_INPUT

    def test_a_gain_that_is_gone_is_a_tie_or_worse(self, made_up: MadeUp) -> None:
        """Equal is a tie, which is no failure; worse is."""
        assert invoke("verify", "exp", "--name", "equal").exit_code == OK
        made_up.seconds = lambda parameters: 3.0 if parameters else 2.0
        assert invoke("verify", "exp", "--name", "worse").exit_code == NOTHING_FEASIBLE

    def test_an_end_before_the_answer_is_an_interruption(self, made_up: MadeUp) -> None:
        """One run of one side says nothing."""
        made_up.budget = 1
        assert invoke("verify", "exp", "--name", "cut").exit_code == INTERRUPTED

    def test_what_the_budget_did_not_pay_for_is_told(self, made_up: MadeUp) -> None:
        """As a reason of the verdict as it stands, and where there is none."""
        made_up.budget = 1
        none = invoke("verify", "exp", "--name", "none", "--set", "optimization.budget={gpu_hours: 1}")
        assert none.exit_code == INTERRUPTED
        assert "Confirming was cut short: the budget paid for 0 of the" in none.stdout
        made_up.seconds, made_up.budget = lambda parameters: 1.0 if parameters else 1.05, 2
        some = invoke("verify", "exp", "--name", "some", "--set", "optimization.budget={gpu_hours: 1}")
        assert "measured 1 and 1 times" in some.stdout
        assert "; the budget paid for 0 of the" in " ".join(some.stdout.split())
        assert made_up.setups[0][0].task.optimization.budget == Budget(gpu_hours=1)

    def test_nothing_but_the_budget_may_be_another_one(self, made_up: MadeUp) -> None:
        """It would be compared with another question."""
        assert invoke("verify", "exp", "--set", "optimization.budgets=1").exit_code == BAD_INPUT
        result = invoke("export", "exp", "--minimal", "--set", "benchmark.num_concurrency=[8]")
        assert result.exit_code == BAD_INPUT
        assert "only optimization.budget may be another one here" in result.stderr
        assert not made_up.setups


@pytest.mark.parametrize("command", [("verify", "exp", "--name", "exp"), ("export", "exp", "--minimal")])
def test_an_experiment_with_a_search_is_not_mixed_with_these_runs(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Refused before anything is written: it could not be resumed any more."""
    monkeypatch.setattr(experiment, "run", made_up.real)
    shutil.copytree("store/exp", "store/exp-minimal")
    before = {path: path.read_bytes() for path in Path("store").rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, [*command, "--storage", "store"])
    assert result.exit_code == ENVIRONMENT, result.output
    assert "experiment" in result.stderr
    assert {path: path.read_bytes() for path in Path("store").rglob("*") if path.is_file()} == before


class TestMinimal:
    """Which flags can go."""

    def test_a_flag_without_effect_is_left_out(self, made_up: MadeUp) -> None:
        """And the export says so; what was measured lies beside the experiment."""
        made_up.seconds = lambda parameters: 1.0 if "pace" in parameters else 1.3
        result = invoke("export", "exp", "--minimal", "-o", "winner.sh")
        assert result.exit_code == OK, result.stderr
        assert "dropped: threads" in result.stderr
        assert "kept: pace" in result.stderr
        text = Path("winner.sh").read_text()
        assert "raytune-autotuner/left-out: threads" in text
        assert "--tpot-s 0.002" in text
        assert "--threads" not in text
        found = json.loads(Path("store/exp-minimal/minimal.json").read_text())
        assert (found["parameters"], found["is_over"]) == ({"pace": 0.002}, True)

    def test_it_goes_on_after_an_interruption(self, made_up: MadeUp) -> None:
        """With what was measured; nothing is exported before the answer."""
        made_up.seconds = lambda parameters: 1.0 if "pace" in parameters else 1.3
        made_up.budget = 3
        assert invoke("export", "exp", "--minimal", "-o", "winner.sh").exit_code == INTERRUPTED
        assert not Path("winner.sh").exists()
        made_up.budget = 1000
        assert invoke("export", "exp", "--minimal", "-o", "winner.sh").exit_code == OK
        assert [options.resume for _, options in made_up.setups] == [False, True]

    def test_what_the_budget_has_ended_goes_on_with_a_larger_one(self, made_up: MadeUp) -> None:
        """It is told so, and nothing is exported before the answer."""
        made_up.seconds = lambda parameters: 1.0 if "pace" in parameters else 1.3
        made_up.budget = 3
        command = ("export", "exp", "--minimal", "-o", "winner.sh", "--set")
        result = invoke(*command, "optimization.budget={gpu_hours: 1}")
        assert result.exit_code == INTERRUPTED
        assert "open: pace" in result.stderr
        cure = "give the same command again with a larger budget (--set optimization.budget.…) to go on"
        assert f"the budget paid for 0 of the 1 runs; {cure}" in result.stderr
        assert "interrupted" not in result.stderr
        assert not Path("winner.sh").exists()
        made_up.budget = 1000
        assert invoke(*command, "optimization.budget={gpu_hours: 2}").exit_code == OK

    @staticmethod
    def known(winner: Parameters, *args: str, when: str | None = None) -> None:
        """The experiment with another winner, flags of its runtime, and ``threads`` only on a condition."""
        folder = ExperimentFolder(Storage("store"), "exp")
        task = json.loads(folder.root.read("task.json") or "")
        task["runtime"]["args"] = args
        task["parameters"]["threads"] = {"type": "choice", "values": [2, 4], "when": when}
        task["parameters"]["parallel"] = {"type": "choice", "values": [2, 4]}
        folder.root.write("task.json", json.dumps(task))
        for each in folder.records():
            if each.parameters:
                folder.root.delete(f"trials/{each.trial.name}/record.json")
                trial = replace(each.trial, config=config_hash(winner))
                folder.save_record(replace(each, trial=trial, parameters=winner))

    def test_what_the_runtime_says_anyway_is_not_measured(self, made_up: MadeUp) -> None:
        """Nor a flag left out that it does not give; the result says so."""
        self.known({**WINNER, "parallel": None}, "-t", "4")
        made_up.seconds = lambda parameters: 1.0 if "pace" in parameters else 1.3
        result = invoke("export", "exp", "--minimal", "-o", "winner.sh")
        assert result.exit_code == OK, result.stderr
        for name in ("threads", "parallel"):
            assert f"dropped: {name}: the launch is the same without it (0 runs)" in result.stderr
        setup, _ = made_up.setups[0]
        assert {name for r in setup.folder.records() for name in r.parameters} == {"pace"}
        text = Path("winner.sh").read_text()
        assert "--tpot-s 0.002" in text
        assert "WIN +" in text
        assert "worth no more" not in text

    def test_what_a_condition_speaks_of_can_go_after_what_depends_on_it(self, made_up: MadeUp) -> None:
        """Though it is the first by name."""
        self.known({"parallel": 4, "threads": 2, "pace": 0.002}, when="parallel == 4")
        made_up.seconds = lambda parameters: 1.0 if "pace" in parameters else 1.3
        assert invoke("export", "exp", "--minimal", "-o", "winner.sh").exit_code == OK
        found = json.loads(Path("store/exp-minimal/minimal.json").read_text())
        assert found["parameters"] == {"pace": 0.002}

    def test_what_was_measured_is_exported_when_the_launch_is_the_same(self, made_up: MadeUp) -> None:
        """What goes last without a run leaves a configuration that nobody ran under that name."""
        self.known({"parallel": 4, "threads": 2, "pace": 0.002}, "--parallel", "4", when="parallel == 4")
        made_up.seconds = lambda parameters: 1.0 if "pace" in parameters else 1.3
        assert invoke("export", "exp", "--minimal", "-o", "winner.sh").exit_code == OK
        found = json.loads(Path("store/exp-minimal/minimal.json").read_text())
        assert found["parameters"] == {"pace": 0.002}
        text = Path("winner.sh").read_text()
        assert "raytune-autotuner/left-out: threads\n" in text
        assert "--parallel 4" in text
        assert "--threads" not in text

    def test_a_winner_that_is_the_baseline_in_other_words_has_nothing_to_leave_out(self, made_up: MadeUp) -> None:
        """Nothing is started."""
        self.known({"threads": 4, "parallel": None}, "--threads=4")
        result = invoke("export", "exp", "--minimal")
        assert result.exit_code == BAD_INPUT
        assert "changes nothing of the baseline" in result.stderr
        assert not made_up.setups

    def test_where_every_flag_counts_the_winner_stays(self, made_up: MadeUp) -> None:
        """Then it is exported as it is."""
        made_up.seconds = lambda parameters: 1.0 + 0.3 * (len(WINNER) - len(parameters))
        result = invoke("export", "exp", "--minimal")
        assert result.exit_code == OK
        assert "left-out: nothing" in result.stdout

    def test_there_must_be_something_to_leave_out(self, made_up: MadeUp) -> None:
        """A baseline has no changes; and a trial of choice is no winner."""
        assert invoke("export", "exp", "--minimal", "--trial", "1").exit_code == BAD_INPUT
        folder = ExperimentFolder(Storage("store"), "none")
        folder.root.write("task.json", ExperimentFolder(Storage("store"), "exp").root.read("task.json") or "")
        folder.save_record(record(0, {}, 2.0, purpose="baseline"))
        assert invoke("export", "none", "--minimal").exit_code == BAD_INPUT
        assert not made_up.setups


def test_a_course_takes_the_place_of_the_search() -> None:
    """Only what it wants is run, each time as a confirming run of its own; no baseline, no search."""
    batches = [[Wanted({"a": 1}), Wanted({}, "n2")], [Wanted({"a": 1})]]
    source, gate = ListSource([{"a": 9}]), Fence()
    proposer = Proposer(
        source,
        fallback=None,
        limits=Limits(5),
        gate=gate,
        course=lambda: batches.pop(0) if batches else (),
        clock=lambda: 100.0,
    )
    driver, seen = Driver(proposer, gate), []
    for batch in (2, 1):
        asked = [driver.ask() for _ in range(batch)]
        seen += [proposal for _, proposal in asked]
        for name, _ in asked:
            driver.end(name, [1.0])
    assert [(p.trial.purpose, dict(p.parameters), p.trial.repeat) for p in seen] == [
        ("confirm", {"a": 1}, 1),
        ("confirm", {}, 1),
        ("confirm", {"a": 1}, 2),
    ]
    assert driver.finished()
