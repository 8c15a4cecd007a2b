"""A whole experiment whose folder is on a real S3 server."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from raytune_autotuner import experiment
from raytune_autotuner.experiment import Options
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import TrialId, config_hash
from raytune_autotuner.storage import Storage
from raytune_autotuner.trial import run
from tests.fakes.trials import FakeSetup
from tests.s3_server import S3Server, s3  # noqa: F401 - a fixture
from tests.test_experiment import fake_setup

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SLOW_AND_FAST = {"type": "choice", "values": [0.5, 4.0], "flag": "--speed"}


def on_s3(setup: FakeSetup, uri: str) -> FakeSetup:
    return replace(setup, folder=ExperimentFolder(Storage(uri), "exp"))


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_an_experiment_writes_the_same_files_as_to_a_local_folder(
    tmp_path: Path,
    s3: S3Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And comes to the same answer; no secret is in them, and no work folder stays on the disk."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    changes = {"parameters__speed": SLOW_AND_FAST, "optimization__confirm": {"repeats": 1}}
    local = experiment.run(fake_setup(tmp_path, **changes), Options(tmp_path / "local.json"))
    remote = experiment.run(on_s3(fake_setup(tmp_path, **changes), s3.uri("lab")), Options(tmp_path / "remote.json"))
    assert remote.winner is not None
    assert local.winner is not None
    assert remote.winner.parameters == local.winner.parameters
    assert [(r.trial, r.outcome) for r in remote.records] == [(r.trial, r.outcome) for r in local.records]
    assert set(s3.files("lab/exp")) == names(tmp_path / "exp")
    assert list(scratch.glob("raytune-autotuner-work-*")) == []
    assert s3.environment["AWS_SECRET_ACCESS_KEY"].encode() not in b"".join(s3.files().values())


@pytest.mark.parametrize("fault", ["", "rung1:crash"])
def test_what_a_trial_produces_reaches_the_store_and_leaves_the_disk(
    tmp_path: Path,
    s3: S3Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Raw output after each rung, and all of it however the trial ends; no work folder stays behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    setup = on_s3(fake_setup(tmp_path), "s3://tuning/one")
    parameters = {"speed": 1.0, "fault": fault}
    name = TrialId("search", config_hash(parameters))
    trial = setup.trial(name, 0, parameters)
    (trial.job.deployment.folder / "engine.log").write_text("loading\n")
    trial.step()
    assert s3.files(f"one/exp/trials/{name.name}")["engine.log"] == b"loading\n"
    (trial.job.deployment.folder / "engine.log").write_text("loading\nserving\n")
    run(trial)
    assert s3.files(f"one/exp/trials/{name.name}")["engine.log"] == b"loading\nserving\n"
    assert setup.folder.record(name.name) == trial.record
    assert not trial.job.deployment.folder.exists()
