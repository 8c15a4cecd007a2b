"""Experiments as jobs of a real Ray cluster of two nodes, with the genuine genai-bench."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus

from raytune_autotuner import sessions
from raytune_autotuner.cli import ENVIRONMENT, INTERRUPTED, OK
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.overview import Overview
from raytune_autotuner.records import TrialState
from raytune_autotuner.storage import Storage
from raytune_autotuner.submit import STOP_VARIABLE
from tests.ray_cluster import BIN, Node, RayCluster, ray_cluster
from tests.test_end_to_end import ours, write_task
from tests.waiting import until

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]
SLOW = ("--tpot-s", "1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(Node("worker", cpus=2)) as running:
        yield running


class Submitter:
    """A user's machine: a folder with a task, and the commands."""

    def __init__(self, cluster: RayCluster, folder: Path) -> None:
        self.cluster, self.folder, self.store = cluster, folder, folder / "store"

    def call(self, *command: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **self.cluster.access, "RAYTUNE_AUTOTUNER_STORAGE": str(self.store)}
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.call(
            str(BIN / "raytune-autotuner"), "submit", "task.yaml", "--address", self.cluster.dashboard, *arguments
        )

    def experiment(self, name: str) -> ExperimentFolder:
        return ExperimentFolder(Storage(str(self.store)), name)


@pytest.fixture
def user(cluster: RayCluster, tmp_path: Path) -> Submitter:
    return Submitter(cluster, tmp_path)


def measuring(states: list[TrialState]) -> bool:
    return any(state.phase == "benchmark" for state in states)


def test_submit_runs_a_search_on_the_cluster_and_tells_its_answer(user: Submitter) -> None:
    """The tokenizer travels, the log is followed, the exit code is the job's, nothing is left."""
    write_task(user.folder, "--tpot-s", "0.02")
    shutil.copytree(user.folder / "tokenizer", user.folder / "mine")
    ran = user.submit("--name", "whole", "--set", "benchmark.model_tokenizer=mine")
    assert ran.returncode == OK, ran.stdout + ran.stderr
    assert "Best in the search" in ran.stdout
    assert f"{user.cluster.dashboard}/#/jobs/whole-" in ran.stdout
    assert Overview.of(user.experiment("whole")).state == "done"
    asked = json.loads((user.store / "whole" / "task.json").read_text())
    assert asked["benchmark"]["model_tokenizer"] == "files/benchmark.model_tokenizer"
    assert ours("whole") == []


def test_a_job_that_is_stopped_ends_in_order(user: Submitter) -> None:
    """`ray job submit` works as it is; `ray job stop` tears trials down and writes results, with our environment."""
    write_task(user.folder, *SLOW)
    ray, address = str(BIN / "ray"), ("--address", user.cluster.dashboard)
    env = json.dumps({"env_vars": {STOP_VARIABLE: "90"}})
    ours_is = ("raytune-autotuner", "run", "task.yaml", "--storage", str(user.store), "--name", "stopped")
    options = ("--working-dir", ".", "--runtime-env-json", env, "--submission-id", "stopped-1", "--no-wait")
    handed_in = user.call(ray, "job", "submit", *address, *options, "--", *ours_is)
    assert handed_in.returncode == OK, handed_in.stderr
    folder = user.experiment("stopped")
    until(lambda: measuring(folder.states()), 120)
    stopped = user.call(ray, "job", "stop", *address, "stopped-1")
    assert stopped.returncode == OK, stopped.stdout + stopped.stderr
    assert user.cluster.client().get_job_status("stopped-1") == JobStatus.STOPPED
    said = user.cluster.client().get_job_logs("stopped-1")
    assert "Interrupted: this is what had been measured by then." in said
    assert "would kill this job" not in said
    assert all(state.outcome for state in folder.states())
    assert json.loads((user.store / "stopped" / "results.json").read_text())["interrupted"]
    assert not (user.store / "stopped" / "lock.json").exists()
    assert ours("stopped") == []


def test_an_experiment_is_stopped_from_elsewhere(user: Submitter) -> None:
    """By its name and the storage; whoever follows it sees its end."""
    write_task(user.folder, *SLOW)
    assert user.submit("--name", "remote", "--no-wait").returncode == OK
    folder = user.experiment("remote")
    until(lambda: measuring(folder.states()), 120)
    program = str(BIN / "raytune-autotuner")
    assert "remote: running" in user.call(program, "status").stdout
    assert user.call(program, "stop", "remote").returncode == OK
    assert Overview.of(folder).state == "interrupted"
    (job,) = [job for job in user.cluster.client().list_jobs() if (job.metadata or {}).get("experiment") == "remote"]
    until(lambda: user.cluster.client().get_job_info(str(job.submission_id)).driver_exit_code == INTERRUPTED)
    assert [session.job for session in sessions.load(folder)] == [job.submission_id]
    assert ours("remote") == []


def test_a_cluster_with_another_version_says_so(user: Submitter) -> None:
    """Before anything starts there; exit code 3."""
    write_task(user.folder)
    pretend = "from raytune_autotuner import cli, submit; submit.__version__ = '9.9.9'; cli.main()"
    address = ("--address", user.cluster.dashboard)
    ran = user.call(sys.executable, "-c", pretend, "submit", "task.yaml", *address, "--name", "version")
    assert ran.returncode == ENVIRONMENT, ran.stdout + ran.stderr
    assert "9.9.9 handed the job in" in ran.stdout
    assert not user.store.exists()


def test_a_key_that_the_cluster_lacks_is_named(user: Submitter) -> None:
    """It is not shipped, so it has to be there."""
    write_task(user.folder, benchmark__api_key_env="PLANTED_KEY")
    ran = user.submit("--name", "key")
    assert ran.returncode == ENVIRONMENT, ran.stdout + ran.stderr
    assert "benchmark.api_key_env names PLANTED_KEY, which is not set" in ran.stdout


def test_a_cluster_that_does_not_find_the_program_says_what_to_do(user: Submitter) -> None:
    """As when `ray start` ran without its environment being activated."""
    write_task(user.folder)
    pretend = (
        "from raytune_autotuner import cli, submit; ours = submit.environment; "
        "submit.environment = lambda task: {**ours(task), 'PATH': '/usr/bin:/bin'}; cli.main()"
    )
    address = ("--address", user.cluster.dashboard)
    ran = user.call(sys.executable, "-c", pretend, "submit", "task.yaml", *address, "--name", "path")
    assert ran.returncode == ENVIRONMENT, ran.stdout + ran.stderr
    assert "--ship-package" in ran.stderr


def test_the_package_can_travel(user: Submitter) -> None:
    """The job then runs the submitter's own, from the folder that Ray made for it."""
    write_task(user.folder, benchmark__api_key_env="PLANTED_KEY")  # enough to see where it runs; it need not measure
    ran = user.submit("--name", "travelled", "--ship-package", "--set", "benchmark.api_key_env=ALSO_NOT_THERE")
    assert ran.returncode == ENVIRONMENT, ran.stdout + ran.stderr
    assert "ALSO_NOT_THERE" in ran.stdout
    (job,) = [job for job in user.cluster.client().list_jobs() if (job.metadata or {}).get("experiment") == "travelled"]
    assert job.runtime_env is not None
    assert len(job.runtime_env["py_modules"]) == 1


def test_nothing_of_a_cluster_is_left_when_its_test_is_killed(tmp_path: Path) -> None:
    """By SIGKILL: nobody had time to clean up."""
    script = (
        "import sys, time\nfrom tests.ray_cluster import ray_cluster\n"
        "with ray_cluster() as cluster:\n"
        "    print(cluster.folder, flush=True)\n    time.sleep(600)\n"
    )
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    try:
        assert process.stdout is not None
        folder = process.stdout.readline().strip()
        assert _running_in(folder)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    until(lambda: not _running_in(folder), 60)
    shutil.rmtree(folder, ignore_errors=True)


def _running_in(folder: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text().replace("\0", " ")
        except OSError:
            continue
        if folder in command:
            found.append(command)
    return found
