"""How an experiment is begun and taken up again, and what its exit code is; the experiment itself is a fake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner, Result

from raytune_autotuner import experiment
from raytune_autotuner.cli import BAD_INPUT, ENVIRONMENT, INTERRUPTED, NOTHING_FEASIBLE, OK, main
from raytune_autotuner.cli.options import ACCIDENT
from raytune_autotuner.errors import FailureClass, Superseded
from raytune_autotuner.experiment import Options
from raytune_autotuner.jobs import OUR_CODES
from raytune_autotuner.records import SearchEnd
from raytune_autotuner.results import Results, load_results
from raytune_autotuner.setup import Setup
from raytune_autotuner.submit import VERSION_VARIABLE
from tests.test_cli_cluster import done
from tests.test_end_to_end import write_task


class FakeExperiment:
    """Notes what it was asked; its results are those of a finished one, changed as the test wants."""

    def __init__(self, storage: Path) -> None:
        self.asked: list[tuple[Setup, Options]] = []
        self.winner, self.interrupted = True, False
        self.end: SearchEnd | None = None
        self._storage = storage

    def run(self, setup: Setup, options: Options) -> Results:
        self.asked.append((setup, options))
        finished = done(self._storage, f"finished-{len(self.asked)}")
        results = replace(
            load_results(finished.folder, finished.task), interrupted=self.interrupted, ended_early=self.end
        )
        return results if self.winner else replace(results, winner=None, verdict=None)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeExperiment:
    fake = FakeExperiment(tmp_path / "finished")
    monkeypatch.setattr(experiment, "run", fake.run)
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path)
    return fake


def invoke(*arguments: str, **env: str) -> Result:
    return CliRunner(env=env).invoke(main, [*arguments, "--storage", "store"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("winner", "interrupted", "wanted"),
    [(True, False, OK), (False, False, NOTHING_FEASIBLE), (True, True, INTERRUPTED), (False, True, INTERRUPTED)],
)
def test_the_exit_code_says_how_it_ended(winner: bool, interrupted: bool, wanted: int, fake: FakeExperiment) -> None:
    """And is 0 in any case for a runner that would try again what fails."""
    fake.winner, fake.interrupted = winner, interrupted
    assert invoke("run", "task.yaml").exit_code == wanted
    assert invoke("run", "task.yaml", "--ended-is-ok").exit_code == OK


@pytest.mark.parametrize(
    ("winner", "kind", "wanted"),
    [(True, "crash", ENVIRONMENT), (False, "infrastructure", ENVIRONMENT), (False, "crash", NOTHING_FEASIBLE)],
)
def test_a_search_that_only_failed_in_the_end_is_told(
    winner: bool, kind: FailureClass, wanted: int, fake: FakeExperiment
) -> None:
    """With the end of the log; it is the environment's fault where others worked before."""
    fake.winner = winner
    fake.end = SearchEnd("identical_failures", "5 trials in a row failed alike", kind, 5, "line 1\nthe last line")
    ended = invoke("run", "task.yaml")
    assert ended.exit_code == wanted
    assert "The search ended early: 5 trials in a row failed alike." in ended.output
    assert "  | the last line" in ended.output


@pytest.mark.parametrize("winner", [True, False])
def test_a_search_that_settled_has_done_its_work(winner: bool, fake: FakeExperiment) -> None:
    """It is said, and is no fault of anything."""
    fake.winner = winner
    fake.end = SearchEnd("settled", "the model expects less than 0.2% of any configuration", max_trials=100)
    ended = invoke("run", "task.yaml")
    assert ended.exit_code == (OK if winner else NOTHING_FEASIBLE)
    assert "Nothing is left to gain: the model expects less than 0.2% of any configuration." in ended.output


def test_an_accident_is_no_answer(fake: FakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours shows its traceback and has a code of its own; who was superseded is told so, and no more."""

    def raising(error: Exception) -> Result:
        monkeypatch.setattr(experiment, "run", Mock(side_effect=error))
        return invoke("run", "task.yaml")

    ours = raising(RuntimeError("a bug"))
    assert (ours.exit_code, "Traceback" in ours.stderr, "a bug" in ours.stderr) == (ACCIDENT, True, True)
    assert ACCIDENT in OUR_CODES
    other = raising(Superseded("session 2 of exp has begun"))
    assert (other.exit_code, "Traceback" in other.stderr) == (ENVIRONMENT, False)
    assert "error: session 2 of exp has begun" in other.stderr


def test_auto_resume_goes_on_with_what_is_there(fake: FakeExperiment) -> None:
    """And begins what is not."""
    arguments = ("run", "task.yaml", "--resume", "auto", "--name", "exp")
    assert invoke(*arguments).exit_code == OK
    (setup, options) = fake.asked[0]
    assert (setup.folder.name, options.resume) == ("exp", False)
    setup.folder.root.write("task.json", setup.task.model_dump_json())
    assert invoke(*arguments, "--force").exit_code == OK
    (setup, options) = fake.asked[1]
    assert (options.resume, options.force) == (True, True)


def test_only_extend_searches_on_where_nothing_was_left_to_gain(fake: FakeExperiment) -> None:
    """As many trials as it is told, beyond those that there were."""
    assert invoke("run", "task.yaml", "--name", "exp").exit_code == OK
    setup, _ = fake.asked[0]
    setup.folder.root.write("task.json", setup.task.model_dump_json())
    assert invoke("resume", "exp").exit_code == OK
    assert invoke("extend", "exp", "--trials", "7").exit_code == OK
    assert [options.search_on for _, options in fake.asked] == [False, False, True]
    assert fake.asked[2][0].task.optimization.max_iterations == 7


def test_auto_resume_needs_the_name(fake: FakeExperiment) -> None:
    """Nobody could tell what is meant."""
    result = invoke("run", "task.yaml", "--resume", "auto")
    assert result.exit_code == BAD_INPUT
    assert "--name" in result.stderr
    assert not fake.asked


def test_resume_needs_the_folder_alone(fake: FakeExperiment, tmp_path: Path) -> None:
    """The task is in it; the name may be cut short."""
    assert invoke("run", "task.yaml", "--name", "exp-1").exit_code == OK
    first = fake.asked[0][0]
    first.folder.root.write("task.json", first.task.model_dump_json())
    (tmp_path / "task.yaml").unlink()
    assert invoke("resume", "exp").exit_code == OK
    setup, options = fake.asked[1]
    assert (setup.folder.name, setup.task, options.resume) == ("exp-1", first.task, True)


def test_resume_of_what_is_not_there(fake: FakeExperiment) -> None:
    """Bad input."""
    assert invoke("resume", "exp").exit_code == BAD_INPUT
    assert not fake.asked


def test_results_cannot_be_a_folder(fake: FakeExperiment, tmp_path: Path) -> None:
    """Told before anything starts."""
    result = invoke("run", "task.yaml", "--results", str(tmp_path))
    assert result.exit_code == BAD_INPUT
    assert not fake.asked


def test_a_job_by_hand_is_told_what_it_lacks(fake: FakeExperiment) -> None:
    """Time to stop in order, and a storage that stays; the run goes on."""
    job = json.dumps({"metadata": {"job_submission_id": "x"}})
    result = invoke("run", "task.yaml", RAY_JOB_CONFIG_JSON_ENV_VAR=job)
    assert result.exit_code == OK
    assert "RAY_JOB_STOP_WAIT_TIME_S" in result.stderr
    assert "--storage store" in result.stderr


def test_a_job_of_another_version_does_not_start(fake: FakeExperiment) -> None:
    """The environment's fault, with both versions."""
    result = invoke("run", "task.yaml", **{VERSION_VARIABLE: "9.9.9"})
    assert result.exit_code == ENVIRONMENT
    assert "9.9.9" in result.stderr
    assert not fake.asked
