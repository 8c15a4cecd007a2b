"""The whole program against the emulated cluster: the real command, the genuine genai-bench, several trials at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulator.cluster import Emulator, Node
from tests.fakes import tiny_tokenizer
from tests.ome_cluster import crds

pytestmark = pytest.mark.xdist_group("whole")
ROOT = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).with_name("raytune-autotuner"))
NAMESPACE = "autotuner"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer for genai-bench, here and (as the model's folder on every node) in BenchmarkJobs."""
    return tiny_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def cluster(tokenizer: Path) -> Iterator[Emulator]:
    """Two nodes with two GPUs each, and what configs/kubernetes has for configs/simple_task.json."""
    with Emulator([Node("n1", gpus=2), Node("n2", gpus=2)], crds=crds(), time_scale=60) as emulator:
        for name in ("namespace", "rbac", "results-pvc", "runtime"):
            emulator.apply(ROOT / "configs" / "kubernetes" / f"{name}.yaml")
        model = (ROOT / "configs" / "kubernetes" / "model.yaml").read_text()
        emulator.apply(model.replace("/mnt/data/models/meta/llama-3-2-1b-instruct", str(tokenizer)))
        yield emulator


def run(tmp_path: Path, cluster: Emulator, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = [f"ome.kubeconfig={cluster.kubeconfig_tls}", *arguments]
    options = [word for setting in settings for word in (("--set", setting) if "=" in setting else (setting,))]
    return subprocess.run(
        [COMMAND, command, str(ROOT / "configs" / "simple_task.json"), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def left(cluster: Emulator) -> list[str]:
    kinds = ("InferenceService", "BenchmarkJob", "Pod", "Deployment", "Job")
    names = [f"{kind} {o['metadata']['name']}" for kind in kinds for o in cluster.objects(kind, NAMESPACE)]
    return names + [f"process {name}" for name in cluster.processes()]


MODES = {
    "--direct": ("optimization.confirm.repeats=1",),
    # a BenchmarkJob costs half a minute of CPU, so this one measures once at one level
    "--benchmark-job": (
        "optimization.confirm.repeats=0",
        "benchmark.warmup_requests=0",
        "benchmark.num_concurrency=[2]",
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_simple_task_runs_and_leaves_nothing(tmp_path: Path, cluster: Emulator, tokenizer: Path, mode: str) -> None:
    """Four grid points and the baseline, measured either way; 0 objects, 0 pods and 0 processes afterwards."""
    settings = (
        f"benchmark.model_tokenizer={tokenizer}",
        "benchmark.max_requests_per_iteration=8",
        "benchmark.max_time_per_iteration=1",
        'benchmark.traffic_scenarios=["D(20,10)"]',
    )
    result = run(tmp_path, cluster, "run", mode, *settings, *MODES[mode])
    assert result.returncode == 0, result.stdout + result.stderr
    doc = json.loads((tmp_path / "results" / "simple-tune_results.json").read_text())
    outcomes = [(entry["purpose"], entry["outcome"]) for entry in doc["all_results"]]
    assert outcomes.count(("baseline", "completed")) == 1
    assert sum(purpose == "search" for purpose, _ in outcomes) == 4
    assert doc["ledger"]["unit"] == "GPU-seconds"
    assert {entry["gpus"] for entry in doc["all_results"]} == {1, 2}
    assert doc["best_result"]["argv"][:3] == ["python3", "-m", "sglang.launch_server"]
    assert left(cluster) == []


def test_doctor_finds_a_ready_cluster_and_names_what_is_missing(tmp_path: Path, cluster: Emulator) -> None:
    """Exit code 0 when all is well; 3 and the command that mends it when the model is gone."""
    good = run(tmp_path, cluster, "doctor")
    assert good.returncode == 0, good.stdout + good.stderr
    bad = run(tmp_path, cluster, "doctor", "model.name=no-such-model")
    assert bad.returncode == 3
    assert "no-such-model" in bad.stdout
    assert "run:" in bad.stdout


def test_gc_lists_and_removes_what_has_no_owner(tmp_path: Path, cluster: Emulator) -> None:
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
