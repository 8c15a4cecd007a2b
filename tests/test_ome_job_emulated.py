"""BenchmarkJobs in the emulated cluster, with exactly the shipped rights: OME's Job, a claim, the reader's pod."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner.anchor import Anchor, labels, object_name
from raytune_autotuner.benchmarks import ome_run
from raytune_autotuner.benchmarks.ome_job import OmeJob, OmeJobSettings
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.doctor import Needs, examine
from raytune_autotuner.errors import EnvironmentFault, TransientError, TrialInfeasible
from raytune_autotuner.kube import BENCHMARK_JOB, INFERENCE_SERVICE, POD, Cluster
from raytune_autotuner.records import Endpoint, Load, Rung, TrialId
from raytune_autotuner.recovery import sweep
from raytune_autotuner.task import spec
from tests.emulator.api import ome_crds
from tests.emulator.cluster import Emulator, Faults, Node
from tests.waiting import until

pytestmark = pytest.mark.skipif(ome_crds() is None, reason="OME's CRDs are not here; set RAYTUNE_AUTOTUNER_OME_CRDS")

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "tests" / "data" / "genai"
GOOD = SAMPLES / "seconds" / "D100_100_text-to-text_num_concurrency_4_time_21s.json"
ALL_FAILED = SAMPLES / "all_errors" / "debug_for_run_D5000_10_1.json"
NS, EXPERIMENT, TRIAL = "autotuner", "exp", TrialId("search", "0123456789ab")
RUNG = Rung(0, (Load("D(100,100)", 4),), max_requests=40, max_minutes=1)
ENDPOINT = Endpoint("http://unused", "m")
NEEDS = Needs(NS, "llama-3-2-1b-instruct", "llama-3-2-1b-instruct-rt", claim="raytune-autotuner-results")

BENCH = textwrap.dedent(
    """
    import pathlib, shutil, sys, time
    said = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    folder = pathlib.Path(said["--experiment-base-dir"], said["--experiment-folder-name"])
    folder.mkdir(parents=True)
    if said["--max-requests-per-run"] == "1":
        time.sleep(600)
    source = {failed!r} if said["--max-requests-per-run"] == "2" else {good!r}
    shutil.copy(source, folder)
    print("done with", said["--traffic-scenario"])
    """
).format(good=str(GOOD), failed=str(ALL_FAILED))


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(
        [Node("n1", gpus=4)], time_scale=120, programs={"genai-bench": (sys.executable, "-c", BENCH)}
    ) as made:
        for name in ("namespace", "rbac", "results-pvc", "model", "runtime"):
            made.apply(ROOT / "configs" / "kubernetes" / f"{name}.yaml")
        yield made


@pytest.fixture(scope="module")
def cluster(emulator: Emulator) -> Iterator[Cluster]:
    made = Cluster.connect(str(emulator.kubeconfig_for("raytune-autotuner", NS)))
    yield made
    made.close()


@pytest.fixture(scope="module")
def anchor(cluster: Cluster) -> Iterator[Anchor]:
    """An experiment with one ready service."""
    held = Anchor.create(cluster, NS, EXPERIMENT, "me")
    name = object_name(EXPERIMENT, TRIAL)
    service: dict[str, Any] = {
        "apiVersion": INFERENCE_SERVICE.api_version,
        "kind": INFERENCE_SERVICE.kind,
        "metadata": {
            "name": name,
            "namespace": NS,
            "labels": labels(EXPERIMENT, TRIAL),
            "ownerReferences": [held.owner_reference()],
        },
        "spec": {
            "model": {"kind": "ClusterBaseModel", "name": NEEDS.model},
            "runtime": {"kind": "ClusterServingRuntime", "name": NEEDS.runtime},
            "engine": {"minReplicas": 1, "maxReplicas": 1, "runner": {"name": "ome-container"}},
        },
    }
    cluster.create(INFERENCE_SERVICE, service)
    until(lambda: ready(cluster.get(INFERENCE_SERVICE, name, NS)), 60)
    yield held
    sweep(held, Deadline.after(60))
    held.delete()
    assert [cluster.list(kind, NS) for kind in (INFERENCE_SERVICE, BENCHMARK_JOB, POD)] == [[], [], []]


def ready(service: dict[str, Any] | None) -> bool:
    conditions = ((service or {}).get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@pytest.fixture
def settings(anchor: Anchor) -> OmeJobSettings:
    return OmeJobSettings(
        benchmark=spec.Benchmark(additional_params={"temperature": "0.0"}),
        namespace=NS,
        experiment=EXPERIMENT,
        trial=TRIAL,
        service=object_name(EXPERIMENT, TRIAL),
        image="genai-bench:0.0.5",
        claim="raytune-autotuner-results",
        owner=anchor.owner_reference(),
        template=(ROOT / "templates" / "ome" / "benchmark_job.yaml.j2").read_text(),
    )


def nothing(cluster: Cluster) -> bool:
    """Neither a BenchmarkJob nor a pod but the engine's."""
    return not cluster.list(BENCHMARK_JOB, NS) and len(cluster.list(POD, NS)) == 1


def test_a_rung_is_measured_through_the_claim(cluster: Cluster, settings: OmeJobSettings, tmp_path: Path) -> None:
    """From the object to the parsed metrics, and nothing but the results is left."""
    job = OmeJob(cluster, settings)
    metrics = job.run(ENDPOINT, replace(RUNG, repeats=2), tmp_path / "rung-0", Deadline.after(100), lambda: None)
    job.close()
    assert metrics.loads[0].completed > 0
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*") if path.is_file())
    assert kept == sorted(f"rung-0/0-4-{n}/{name}" for n in (0, 1) for name in (GOOD.name, "genai_bench.log"))
    assert "done with D(100,100)" in (tmp_path / "rung-0/0-4-0/genai_bench.log").read_text()
    until(lambda: nothing(cluster))


def test_requests_that_all_fail_are_told(cluster: Cluster, settings: OmeJobSettings, tmp_path: Path) -> None:
    """Although OME says Completed."""
    job = OmeJob(cluster, settings)
    with pytest.raises(TrialInfeasible, match="HTTP 400"):
        job.run(ENDPOINT, replace(RUNG, max_requests=2), tmp_path / "rung-0", Deadline.after(100), lambda: None)
    until(lambda: nothing(cluster))


@pytest.fixture
def faults(emulator: Emulator) -> Iterator[Faults]:
    yield emulator.faults
    emulator.faults.clear()


def test_an_image_that_cannot_be_pulled_is_told(
    faults: Faults, cluster: Cluster, settings: OmeJobSettings, tmp_path: Path
) -> None:
    """Although OME says Running."""
    faults.add(pods=object_name(EXPERIMENT, TRIAL), pull_fails="manifest unknown")
    job = OmeJob(cluster, replace(settings, image="genai-bench:none"))
    with pytest.raises(EnvironmentFault, match=r"(ErrImagePull|ImagePullBackOff).*genai-bench:none"):
        job.run(ENDPOINT, RUNG, tmp_path / "rung-0", Deadline.after(100), lambda: None)
    until(lambda: nothing(cluster))


def test_a_claim_that_stays_pending_is_told(
    emulator: Emulator,
    faults: Faults,
    cluster: Cluster,
    settings: OmeJobSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OME says Running here as well."""
    monkeypatch.setattr(ome_run, "CLAIM_S", 1.0)
    faults.claims_pending = True
    (claim,) = yaml.safe_load_all((ROOT / "configs" / "kubernetes" / "results-pvc.yaml").read_text())
    claim["metadata"]["name"] = "unbound"
    emulator.apply(yaml.safe_dump(claim))
    job = OmeJob(cluster, replace(settings, claim="unbound"))
    with pytest.raises(EnvironmentFault, match="PersistentVolumeClaim autotuner/unbound is pending"):
        job.run(ENDPOINT, RUNG, tmp_path / "rung-0", Deadline.after(100), lambda: None)
    until(lambda: nothing(cluster))


def test_a_mount_that_fails_is_told(faults: Faults, cluster: Cluster, settings: OmeJobSettings, tmp_path: Path) -> None:
    """Only the pod's events show it."""
    faults.add(pods=object_name(EXPERIMENT, TRIAL), mount_fails="MountVolume.SetUp failed for volume results")
    job = OmeJob(cluster, replace(settings, start_s=3.0))
    with pytest.raises(TransientError, match=r"did not start within 3 s: .*MountVolume\.SetUp failed"):
        job.run(ENDPOINT, RUNG, tmp_path / "rung-0", Deadline.after(100), lambda: None)
    until(lambda: nothing(cluster))


def test_a_load_that_hangs_ends_with_the_trial(cluster: Cluster, settings: OmeJobSettings, tmp_path: Path) -> None:
    """And its pod is gone, so that it loads the engine no more."""
    job = OmeJob(cluster, settings)
    with pytest.raises(TrialInfeasible, match="the trial's 5 s"):
        job.run(ENDPOINT, replace(RUNG, max_requests=1), tmp_path / "rung-0", Deadline.after(5), lambda: None)
    job.close()
    assert nothing(cluster)


def test_the_doctor_is_content(cluster: Cluster) -> None:
    """With the emulated cluster as the shipped files make it."""
    assert [finding for finding in examine(cluster, NEEDS) if finding.level == "error"] == []
