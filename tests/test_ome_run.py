"""The whole program against the emulated cluster, with the rights of configs/kubernetes/rbac.yaml and no others.

The real command, the genuine genai-bench, several trials at once. With ``--kubeconfig FILE`` the cluster is a real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner.anchor import MANAGED
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.kube import BENCHMARK_JOB, DEPLOYMENT, INFERENCE_SERVICE, JOB, POD, Cluster
from raytune_autotuner.storage import Storage
from tests.emulator.cluster import Emulator, Node
from tests.fakes import tiny_tokenizer
from tests.ome_cluster import crds
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("whole")
ROOT = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).with_name("raytune-autotuner"))
NAMESPACE = "autotuner"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer for genai-bench, here and (as the model's folder on every node) in BenchmarkJobs."""
    return tiny_tokenizer(tmp_path / "tokenizer")


class RealCluster:
    """A cluster that is there, through the same few doors as the emulated one."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig_tls = kubeconfig
        self._cluster = Cluster.connect(str(kubeconfig))

    def kubeconfig_for(self, service_account: str, namespace: str, *, plain: bool = True) -> Path:
        return self.kubeconfig_tls

    def objects(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        return self._cluster.list(KINDS[kind], namespace, MANAGED)

    def processes(self) -> dict[str, int]:
        return {}

    def apply(self, text: str) -> None:
        thing = json.loads(text)
        self._cluster.create(KINDS[thing["kind"]], thing)


KINDS = {each.kind: each for each in (INFERENCE_SERVICE, BENCHMARK_JOB, POD, DEPLOYMENT, JOB)}


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Path | None:
    """The kubeconfig of a real cluster, when one is given."""
    given = request.config.getoption("--kubeconfig")
    return Path(given).resolve() if given else None


@pytest.fixture
def task_file(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.getoption("--ome-task") or ROOT / "configs" / "simple_task.json").resolve()


@pytest.fixture
def cluster(tokenizer: Path, real: Path | None) -> Iterator[Emulator | RealCluster]:
    """Two nodes with two GPUs each, and what configs/kubernetes has for configs/simple_task.json."""
    if real is not None:
        yield RealCluster(real)
        return
    with Emulator([Node("n1", gpus=2), Node("n2", gpus=2)], crds=crds(), time_scale=60) as emulator:
        for name in ("namespace", "rbac", "results-pvc", "runtime"):
            emulator.apply(ROOT / "configs" / "kubernetes" / f"{name}.yaml")
        model = (ROOT / "configs" / "kubernetes" / "model.yaml").read_text()
        emulator.apply(model.replace("/mnt/data/models/meta/llama-3-2-1b-instruct", str(tokenizer)))
        yield emulator


def run(
    tmp_path: Path, cluster: Emulator | RealCluster, task: Path, command: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    kubeconfig = cluster.kubeconfig_for("raytune-autotuner", NAMESPACE, plain=False)
    settings = [f"ome.kubeconfig={kubeconfig}", *arguments]
    options = [word for setting in settings for word in (("--set", setting) if "=" in setting else (setting,))]
    return subprocess.run(
        [COMMAND, command, str(task), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def left(cluster: Emulator | RealCluster) -> list[str]:
    kinds = ("InferenceService", "BenchmarkJob", "Pod", "Deployment", "Job")
    names = [f"{kind} {o['metadata']['name']}" for kind in kinds for o in cluster.objects(kind, NAMESPACE)]
    return names + [f"process {name}" for name in cluster.processes()]


MODES = {
    "--direct": ("optimization.confirm.repeats=1",),
    # a BenchmarkJob costs half a minute of CPU, so this one measures once at one level
    "--benchmark-job": (
        "optimization.confirm.repeats=0",
        "optimization.scheduler=none",
        "benchmark.warmup_requests=0",
        "benchmark.num_concurrency=[2]",
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_simple_task_runs_and_leaves_nothing(
    tmp_path: Path, cluster: Emulator | RealCluster, tokenizer: Path, real: Path | None, task_file: Path, mode: str
) -> None:
    """Four grid points and the baseline, measured either way; 0 objects, 0 pods and 0 processes afterwards."""
    settings = (
        *(() if real else (f"benchmark.model_tokenizer={tokenizer}",)),
        "benchmark.max_requests_per_iteration=8",
        "benchmark.max_time_per_iteration=1",
        'benchmark.traffic_scenarios=["D(20,10)"]',
    )
    result = run(tmp_path, cluster, task_file, "run", mode, *settings, *MODES[mode])
    assert result.returncode == 0, result.stdout + result.stderr
    doc = json.loads((tmp_path / "results" / "simple-tune_results.json").read_text())
    outcomes = [(entry["purpose"], entry["outcome"]) for entry in doc["all_results"]]
    assert outcomes.count(("baseline", "completed")) == 1
    assert sum(purpose == "search" for purpose, _ in outcomes) == 4
    assert doc["ledger"]["unit"] == "GPU-seconds"
    assert {entry["gpus"] for entry in doc["all_results"]} == {1, 2}
    assert doc["best_result"]["argv"][:3] == ["python3", "-m", "sglang.launch_server"]
    assert bool(doc["best_result"]["notes"]) == (mode == "--benchmark-job")
    assert left(cluster) == []


def test_a_single_trial_is_nobodys_orphan_and_sigterm_leaves_nothing(
    tmp_path: Path, cluster: Emulator | RealCluster, tokenizer: Path, real: Path | None, task_file: Path
) -> None:
    """gc leaves it alone in mid-measurement; told to end, it removes its service and says that it was interrupted."""
    kubeconfig = cluster.kubeconfig_for("raytune-autotuner", NAMESPACE, plain=False)
    settings = (f"ome.kubeconfig={kubeconfig}", *(() if real else (f"benchmark.model_tokenizer={tokenizer}",)))
    options = [word for setting in settings for word in ("--set", setting)]
    folder = ExperimentFolder(Storage(str(tmp_path / "store")), "single")
    process = subprocess.Popen(
        [COMMAND, "trial", str(task_file), *options, "--storage", str(tmp_path / "store"), "--name", "single"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: process.poll() is not None or any(s.phase == "benchmark" for s in folder.states()))
        gc = [COMMAND, "gc", "--namespace", NAMESPACE, "--kubeconfig", str(cluster.kubeconfig_tls)]
        listed = subprocess.run(gc, capture_output=True, text=True, timeout=60, check=True)
        process.terminate()
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert "nothing to remove" in listed.stdout
    assert (process.returncode, "interrupted" in said) == (130, True), said
    assert left(cluster) == []


def test_doctor_finds_a_ready_cluster_and_names_what_is_missing(
    tmp_path: Path, cluster: Emulator | RealCluster, task_file: Path
) -> None:
    """Exit code 0 when all is well; 3 and the command that mends it when the model is gone."""
    good = run(tmp_path, cluster, task_file, "doctor")
    assert good.returncode == 0, good.stdout + good.stderr
    bad = run(tmp_path, cluster, task_file, "doctor", "model.name=no-such-model")
    assert bad.returncode == 3
    assert "no-such-model" in bad.stdout
    assert "run:" in bad.stdout


def test_gc_lists_and_removes_what_has_no_owner(tmp_path: Path, cluster: Emulator | RealCluster) -> None:
    """A dry run touches nothing; --yes removes the orphan."""
    labels = {"app.kubernetes.io/managed-by": "raytune-autotuner", "raytune-autotuner/experiment": "dead"}
    pod = {"containers": [{"name": "c", "image": "busybox", "command": ["sleep", "1000"]}]}
    metadata = {"name": "orphan", "namespace": NAMESPACE, "labels": labels}
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}) + "\n")
    command = [COMMAND, "gc", "--namespace", NAMESPACE, "--kubeconfig", str(cluster.kubeconfig_tls)]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "Pod autotuner/orphan" in listed.stdout
    assert cluster.objects("Pod", NAMESPACE)
    removed = subprocess.run([*command, "--yes"], capture_output=True, text=True, timeout=120, check=True)
    assert "1 of 1 removed" in removed.stdout
    assert not cluster.objects("Pod", NAMESPACE)
