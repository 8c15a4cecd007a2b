"""What an experiment has behind it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from raytune_autotuner import history
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import Failure, TrialId, TrialRecord, TrialState
from raytune_autotuner.storage import Storage

BEGUN = "2026-01-01T00:00:00.000+00:00"
DAY_AFTER = datetime.fromisoformat(BEGUN) + timedelta(days=1)
TRIAL = TrialId("search", "0123456789ab")


@pytest.fixture
def folder(tmp_path: Path) -> ExperimentFolder:
    return ExperimentFolder(Storage(str(tmp_path)), "exp")


def state(phase: str = "benchmark", **phases: float) -> TrialState:
    return TrialState(TRIAL, 3, {"a": 1}, phase, "", 1, 2, BEGUN, BEGUN, phases=phases)


def record(outcome: str, failure: Failure | None = None) -> TrialRecord:
    return TrialRecord(TRIAL, "exp", 3, {"a": 1}, outcome, BEGUN, failure=failure, phases={"load": 5.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "kind", "is_over"),
    [
        ("completed", None, True),
        ("stopped", None, True),
        ("stopped", "interrupted", False),
        ("infeasible", "out_of_memory", True),
        ("failed", "infrastructure", False),
    ],
)
def test_what_is_over(folder: ExperimentFolder, outcome: str, kind: str | None, is_over: bool) -> None:
    """A result is; an accident is not."""
    folder.save_state(state())
    folder.save_record(record(outcome, Failure(kind, "why") if kind else None))  # type: ignore[arg-type]
    past = history.take_up(folder, None)
    assert ([r.trial for r in past.ended], [p.trial for p in past.open]) == (
        ([TRIAL], []) if is_over else ([], [TRIAL])
    )
    assert (folder.record(TRIAL.name) is not None) is is_over


def test_what_a_dead_trial_did_until_it_died_is_charged_to_it(folder: ExperimentFolder) -> None:
    """In the phase in which it died."""
    folder.save_state(state("benchmark", load=5.0, benchmark=1.0))
    history.take_up(folder, datetime.fromisoformat(BEGUN) + timedelta(seconds=30))
    again = folder.state(TRIAL.name)
    assert again is not None
    assert (again.phase, again.outcome, again.phases) == ("queue", None, {"load": 5.0, "benchmark": 31.0})


def test_what_it_held_while_it_waited_for_a_node_is_for_the_next_worker_to_find_out(folder: ExperimentFolder) -> None:
    """It may have got one just when its worker died: waiting costs nothing, an engine that nobody uses does."""
    folder.save_state(state("schedule", schedule=2.0))
    history.take_up(folder, datetime.fromisoformat(BEGUN) + timedelta(seconds=30))
    again = folder.state(TRIAL.name)
    assert again is not None
    assert (again.phases, again.unattended_s) == ({"schedule": 2.0}, 30.0)


def test_what_nobody_went_on_with_is_charged_when_it_is_removed(folder: ExperimentFolder) -> None:
    """From the last word of who left it, once; a trial that is over has paid for its own end."""
    begun = state("queue", load=5.0)
    folder.save_state(replace(begun, unattended_s=1000.0))
    history.settle(folder, TRIAL.name)
    first = folder.state(TRIAL.name)
    assert first is not None
    assert first.phases["idle"] > 1000 + (datetime.fromisoformat(first.updated_at) - DAY_AFTER).total_seconds()
    assert (first.unattended_s, first.phases["load"]) == (0.0, 5.0)
    history.settle(folder, TRIAL.name)
    again = folder.state(TRIAL.name)
    assert again is not None
    assert again.phases["idle"] < first.phases["idle"] + 1000
    folder.save_state(replace(begun, outcome="completed"))
    history.settle(folder, TRIAL.name)
    assert folder.state(TRIAL.name) == replace(begun, outcome="completed")


def test_an_experiment_that_ended_by_itself_is_charged_nothing_more(folder: ExperimentFolder) -> None:
    """However long ago that was: a full disk may have kept its trials' ends from being written."""
    folder.save_state(state("benchmark", benchmark=1.0))
    history.take_up(folder, None)
    again = folder.state(TRIAL.name)
    assert again is not None
    assert (again.phases, again.updated_at) == ({"benchmark": 1.0}, BEGUN)


def test_taking_up_can_be_interrupted_and_repeated(folder: ExperimentFolder) -> None:
    """Nothing is charged twice."""
    folder.save_state(state("benchmark", benchmark=1.0))
    died = datetime.fromisoformat(BEGUN) + timedelta(seconds=30)
    first = history.take_up(folder, died)
    second = history.take_up(folder, died + timedelta(seconds=1000))
    again = folder.state(TRIAL.name)
    assert again is not None
    assert again.phases == {"benchmark": 31.0}
    assert [p.trial for p in first.open] == [p.trial for p in second.open]


def test_the_cost_of_an_interrupted_trial_is_kept(folder: ExperimentFolder) -> None:
    """Its record knows it; the record goes when the state has it."""
    folder.save_state(state("ended"))
    folder.save_record(record("stopped", Failure("interrupted", "Ctrl-C")))
    history.take_up(folder, None)
    again = folder.state(TRIAL.name)
    assert again is not None
    assert again.phases == {"load": 5.0}


def test_a_trial_whose_worker_is_gone_is_over_or_open(folder: ExperimentFolder) -> None:
    """What it wrote decides."""
    folder.save_state(state())
    assert history.over(folder, TRIAL) is None
    folder.save_record(record("completed"))
    found = history.over(folder, TRIAL)
    assert found is not None
    assert found.outcome == "completed"
    assert history.over(folder, TrialId("search", "unknown")) is None
