"""BenchmarkJobs as a benchmark: against OME's schema, with results read by the real shell script of the reader."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raytune_autotuner.anchor import Anchor, labels, object_name
from raytune_autotuner.backends.ome_manifest import SecretKey
from raytune_autotuner.benchmarks import ome_job, ome_reader, ome_run
from raytune_autotuner.benchmarks.ome_job import OmeJob, OmeJobSettings, manifest, notes, problems
from raytune_autotuner.benchmarks.ome_reader import files_in
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError, TrialInfeasible
from raytune_autotuner.kube import BENCHMARK_JOB, EVENT, POD, PVC, Kind, Unreachable
from raytune_autotuner.records import Endpoint, Load, Metrics, Rung, TrialId
from raytune_autotuner.task import spec
from tests.fakes.cluster import FakeCluster, Manifest

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "tests" / "data" / "genai"
TEMPLATE = (ROOT / "templates" / "ome" / "benchmark_job.yaml.j2").read_text()
NS, EXPERIMENT, TRIAL = "autotuner", "exp", TrialId("search", "0123456789ab")
GOOD = SAMPLES / "seconds" / "D100_100_text-to-text_num_concurrency_4_time_21s.json"
HALF = SAMPLES / "half_errors" / "D20_10_text-to-text_num_concurrency_2_time_1s.json"
ALL_FAILED = SAMPLES / "all_errors" / "debug_for_run_D5000_10_1.json"
LOAD = Load("D(100,100)", 4)
RUNG = Rung(0, (LOAD,), max_requests=50, max_minutes=10)
ENDPOINT = Endpoint("http://unused", "m")
WAITING = {"reason": "ImagePullBackOff", "message": "Back-off pulling image genai:1"}
UNBOUND = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims"


def crds() -> Path:
    folder = Path(os.environ.get("RAYTUNE_AUTOTUNER_OME_CRDS", ROOT.parent / "shared" / "ome-crds"))
    if not folder.is_dir():
        pytest.skip(f"OME's CRDs are not at {folder}; set RAYTUNE_AUTOTUNER_OME_CRDS")
    return folder


class Ome:
    """What OME, a node and a claim do to a BenchmarkJob, as each test wants it; the reader's script really runs."""

    def __init__(self, cluster: FakeCluster, claim: Path) -> None:
        self.cluster = cluster
        self.claim = claim
        self.files: dict[str, bytes] = {GOOD.name: GOOD.read_bytes(), "experiment_metadata.json": b"{}"}
        self.state = "Completed"
        self.pod: Manifest | None = {"phase": "Succeeded"}
        self.log = "Main script finished"
        self.readers = 0
        self.spoil: Callable[[int, str], str] = lambda number, log: log
        self.reader_status: Manifest = {}
        self.jobs: list[Manifest] = []
        self.reader_specs: list[Manifest] = []
        self._logs: dict[str, str] = {}
        cluster.controllers.append(self)
        cluster.log = lambda pod: self._logs[pod]

    def __call__(self, kind: Kind, thing: Manifest) -> None:
        if kind == BENCHMARK_JOB:
            self._benchmark(thing)
        elif kind == POD and ome_reader.READER in (thing["metadata"].get("labels") or {}):
            self._read(thing)

    def _benchmark(self, job: Manifest) -> None:
        self.jobs.append(job)
        name = job["metadata"]["name"]
        if self.pod is not None:
            owner = {"kind": "BenchmarkJob", "name": name, "uid": job["metadata"]["uid"]}
            meta = {"name": f"{name}-x", "namespace": NS, "labels": {"benchmark": name}, "ownerReferences": [owner]}
            self.cluster.put(POD, {"metadata": meta, "spec": {"nodeName": "n1", "containers": [{"image": "genai:1"}]}})
            self._logs[f"{name}-x"] = self.log
            self.cluster.set_status(POD, f"{name}-x", NS, phase="Pending")
            self.cluster.set_status(POD, f"{name}-x", NS, **self.pod)
        if self.state in ("Completed", "Failed"):
            self._write(job["spec"])
        self.cluster.set_status(BENCHMARK_JOB, name, NS, state=self.state, failureMessage="the Job failed")

    def _write(self, job: Manifest) -> None:
        uri = job["outputLocation"]["storageUri"].removeprefix("pvc://results/")
        if self.files:
            folder = self.claim / uri / job["resultFolderName"]
            folder.mkdir(parents=True)
            for name, content in self.files.items():
                (folder / name).write_bytes(content)

    def _read(self, pod: Manifest) -> None:
        self.readers += 1
        self.reader_specs.append(pod)
        name = pod["metadata"]["name"]
        if self.reader_status:
            self.cluster.set_status(POD, name, NS, **self.reader_status)
            return
        command = [part.replace(ome_reader.MOUNT, str(self.claim)) for part in pod["spec"]["containers"][0]["command"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self._logs[name] = self.spoil(self.readers, done.stdout)
        phase = "Failed" if done.returncode else "Succeeded"
        state = {"terminated": {"exitCode": done.returncode}}
        self.cluster.set_status(POD, name, NS, phase=phase, containerStatuses=[{"state": state}])


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    made.put(PVC, {"metadata": {"name": "results", "namespace": NS}, "spec": {}, "status": {"phase": "Bound"}})
    return made


@pytest.fixture
def ome(cluster: FakeCluster, tmp_path: Path) -> Ome:
    return Ome(cluster, tmp_path / "claim")


@pytest.fixture
def settings(cluster: FakeCluster) -> OmeJobSettings:
    return OmeJobSettings(
        benchmark=spec.Benchmark(additional_params={"temperature": "0.0", "ignore_eos": True, "top_k": 5}),
        namespace=NS,
        experiment=EXPERIMENT,
        trial=TRIAL,
        service=object_name(EXPERIMENT, TRIAL),
        image="genai:1",
        claim="results",
        owner=Anchor.create(cluster, NS, EXPERIMENT, "me").owner_reference(),
        template=TEMPLATE,
    )


class Runner:
    def __init__(self, cluster: FakeCluster, settings: OmeJobSettings, folder: Path) -> None:
        self.cluster, self.settings, self.folder = cluster, settings, folder
        self.job = OmeJob(cluster, settings)
        self.checks = 0
        self.failure: Exception | None = None

    def check(self) -> None:
        self.checks += 1
        if self.failure is not None:
            raise self.failure

    def __call__(self, rung: Rung = RUNG, seconds: float = 60.0) -> Metrics:
        self.job.prepare()
        return self.job.run(ENDPOINT, rung, self.folder, Deadline.after(seconds), self.check)

    def nothing_left(self) -> bool:
        return self.cluster.objects(BENCHMARK_JOB) == self.cluster.objects(POD) == []


@pytest.fixture
def run(cluster: FakeCluster, ome: Ome, settings: OmeJobSettings, tmp_path: Path) -> Runner:
    return Runner(cluster, settings, tmp_path / "rung-0")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ome_run, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(ome_run, "CLAIM_S", 0.05)
    monkeypatch.setattr(ome_job, "REMOVAL_S", 0.05)
    monkeypatch.setattr(ome_job, "FETCH_S", 0.2)


def test_a_rung_is_measured_and_nothing_is_left(run: Runner, ome: Ome) -> None:
    """The metrics are those of genai-bench's file, which is kept with its log."""
    metrics = run()
    (load,) = metrics.loads
    assert load.load == LOAD
    assert load.completed > 0
    assert metrics.traffic_s == load.duration_s
    (kept,) = run.folder.iterdir()
    assert (kept / GOOD.name).read_bytes() == GOOD.read_bytes()
    assert (kept / "genai_bench.log").read_text() == ome.log
    assert run.nothing_left()


def test_every_load_has_an_object_and_a_folder_of_its_own(run: Runner, ome: Ome) -> None:
    """Also when the same is measured twice; names fit where OME puts them."""
    run(replace(RUNG, loads=(LOAD, LOAD), repeats=2))
    names = [job["metadata"]["name"] for job in ome.jobs]
    folders = [job["spec"]["resultFolderName"] for job in ome.jobs]
    assert len(set(names)) == len(set(folders)) == 4
    assert all(len(name) <= 63 for name in names)


def test_the_object_says_what_was_asked(run: Runner, ome: Ome) -> None:
    """Minutes as minutes, one scenario and level, request parameters as text, and the anchor as its owner."""
    run()
    (job,) = ome.jobs
    said = job["spec"]
    assert said["endpoint"] == {"inferenceService": {"name": run.settings.service, "namespace": NS}}
    assert (said["task"], said["trafficScenarios"], said["numConcurrency"]) == ("text-to-text", ["D(100,100)"], [4])
    assert (said["maxTimePerIteration"], said["maxRequestsPerIteration"]) == (10, 50)
    assert said["additionalRequestParams"] == {"temperature": "0.0", "ignore_eos": "true", "top_k": "5"}
    assert said["outputLocation"] == {"storageUri": "pvc://results/exp"}
    assert said["podOverride"] == {"image": "genai:1"}
    assert job["metadata"]["ownerReferences"] == [run.settings.owner]
    assert labels(EXPERIMENT, TRIAL).items() <= job["metadata"]["labels"].items()


@pytest.mark.parametrize("full", [False, True])
def test_the_manifest_is_valid_for_ome(settings: OmeJobSettings, full: bool) -> None:
    """By the schema of OME's own CRD, with everything optional and without."""
    if full:
        settings = replace(
            settings,
            env={"HF_HUB_OFFLINE": "1"},
            secret_env={"HF_TOKEN": SecretKey("hugging-face", "token")},
            resources={"limits": {"cpu": "4"}},
            node_selector={"pool": "cpu"},
            tolerations=({"key": "a", "operator": "Exists"},),
        )
    made = manifest(settings, "name", LOAD, RUNG, "folder")
    assert ("env" in made["spec"]["podOverride"]) is full
    document = yaml.safe_load((crds() / "ome.io_benchmarkjobs.yaml").read_text())
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.validate(made, schema)
    assert unknown(made["spec"], schema["properties"]["spec"]) == []


def unknown(thing: Any, schema: Mapping[str, Any], path: str = "spec") -> list[str]:
    """Fields that strict validation refuses."""
    if isinstance(thing, list):
        return [name for each in thing for name in unknown(each, schema.get("items", {}), path)]
    if not isinstance(thing, dict) or "properties" not in schema:
        return []
    known = schema["properties"]
    strange = [f"{path}.{name}" for name in thing if name not in known]
    return strange + [n for name in thing if name in known for n in unknown(thing[name], known[name], f"{path}.{name}")]


def test_the_settings_travel(settings: OmeJobSettings) -> None:
    """Ray hands them to workers."""
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_own_limits_follow_the_minutes() -> None:
    """The one place where minutes become seconds."""
    assert ome_job.allowed_s(replace(RUNG, max_minutes=2)) - ome_job.allowed_s(replace(RUNG, max_minutes=1)) == 60


def test_requests_that_all_fail_make_the_trial_infeasible_although_the_job_is_completed(run: Runner, ome: Ome) -> None:
    """OME says Completed whatever the answers were; the reason comes from genai-bench's own file."""
    ome.files = {ALL_FAILED.name: ALL_FAILED.read_bytes()}
    with pytest.raises(TrialInfeasible, match="HTTP 400") as caught:
        run()
    assert caught.value.kind == "request_errors"
    assert run.nothing_left()


def test_too_many_failed_requests_make_the_trial_infeasible(run: Runner, ome: Ome) -> None:
    """Above the task's limit, with the share."""
    ome.files = {HALF.name: HALF.read_bytes()}
    with pytest.raises(TrialInfeasible, match=r"10 of 20 requests failed, allowed are 2\.0%") as caught:
        run(replace(RUNG, loads=(Load("D(20,10)", 2),)))
    assert caught.value.kind == "request_errors"


@pytest.mark.parametrize(
    ("log", "kind", "reason"),
    [
        ("Dropping invalid metrics record", "request_errors", "single token"),
        ("No request metrics collected", "timeout", "no request was finished"),
    ],
)
def test_a_missing_result_is_explained_by_the_log(run: Runner, ome: Ome, log: str, kind: str, reason: str) -> None:
    """What genai-bench says when it has nothing to write."""
    ome.files, ome.state, ome.log = {}, "Failed", log
    with pytest.raises(TrialInfeasible, match=reason) as caught:
        run()
    assert caught.value.kind == kind


def test_a_failed_job_without_a_reason_may_be_tried_again(run: Runner, ome: Ome) -> None:
    """With OME's message and the end of the log."""
    ome.files, ome.state, ome.log = {}, "Failed", "boom"
    with pytest.raises(TransientError, match=r"(?s)Failed the Job failed.*boom"):
        run()
    assert run.nothing_left()


def test_an_engine_that_died_explains_more_than_the_job(run: Runner, ome: Ome) -> None:
    """The trial's own check is asked before genai-bench's complaints are believed."""
    ome.files = {ALL_FAILED.name: ALL_FAILED.read_bytes()}
    run.failure = TrialInfeasible("crash", "the engine died")
    with pytest.raises(TrialInfeasible, match="the engine died"):
        run()


def test_a_failed_check_ends_a_load_that_runs(run: Runner, ome: Ome, hasty: None) -> None:
    """Within about a second of its time, whatever the job does; and it is removed."""
    ome.state, ome.pod = "Running", {"phase": "Running"}
    run.failure = TrialInfeasible("crash", "the engine died")
    with pytest.raises(TrialInfeasible, match="the engine died"):
        run()
    assert run.nothing_left()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"containerStatuses": [{"state": {"waiting": WAITING}}]}, "ImagePullBackOff: Back-off pulling image genai:1"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}, "ErrImagePull: genai:1"),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": 'persistentvolumeclaim "r" not found'}
                ]
            },
            'persistentvolumeclaim "r" not found',
        ),
    ],
)
def test_a_pod_that_can_never_run_ends_the_wait_at_once(run: Runner, ome: Ome, status: Manifest, message: str) -> None:
    """OME would say Running for ever."""
    ome.state, ome.pod = "Running", {"phase": "Pending", **status}
    with pytest.raises(EnvironmentFault, match=message) as caught:
        run()
    assert "kubectl -n autotuner describe pods -l benchmark=" in str(caught.value)
    assert run.nothing_left()


def test_a_pending_claim_is_named(run: Runner, ome: Ome, hasty: None) -> None:
    """After a while in which it might have been provided."""
    condition = {"type": "PodScheduled", "status": "False", "message": UNBOUND}
    ome.state, ome.pod = "Running", {"phase": "Pending", "conditions": [condition]}
    with pytest.raises(
        EnvironmentFault, match=r"PersistentVolumeClaim autotuner/results is pending.*describe pvc results"
    ):
        run()


def test_a_missing_claim_is_named_before_anything_is_made(run: Runner, ome: Ome, cluster: FakeCluster) -> None:
    """OME would leave the job Pending for ever and say so in its log only."""
    cluster.delete(PVC, "results", NS)
    with pytest.raises(EnvironmentFault, match=r"autotuner/results does not exist.*install-ome"):
        run()
    assert ome.jobs == []


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        (None, "OME has made no pod.*control-plane=ome-controller-manager"),
        ({"phase": "Pending"}, "describe pods"),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
            },
            "Unschedulable",
        ),
    ],
)
def test_a_pod_that_does_not_start_in_time_may_be_tried_again(
    run: Runner, ome: Ome, hasty: None, pod: Manifest | None, why: str
) -> None:
    """With what is known of the reason."""
    ome.state, ome.pod = "Pending", pod
    run.job = OmeJob(run.cluster, replace(run.settings, start_s=0.05))
    with pytest.raises(TransientError, match=f"did not start within 0 s: .*{why}"):
        run()
    assert run.nothing_left()


def test_a_failed_mount_is_told_from_the_events(run: Runner, ome: Ome, cluster: FakeCluster, hasty: None) -> None:
    """Nothing else shows it."""
    ome.state, ome.pod = "Running", {"phase": "Pending"}
    run.job = OmeJob(run.cluster, replace(run.settings, start_s=0.05))

    def note(kind: Kind, thing: Manifest) -> None:
        if kind == BENCHMARK_JOB:
            involved = {"name": f"{thing['metadata']['name']}-x"}
            meta = {"name": "e", "namespace": NS}
            event = {
                "involvedObject": involved,
                "type": "Warning",
                "reason": "FailedMount",
                "message": "no such volume",
            }
            cluster.put(EVENT, {"metadata": meta, **event})

    cluster.controllers.append(note)
    with pytest.raises(TransientError, match="FailedMount: no such volume"):
        run()


def test_a_load_that_never_ends_has_a_deadline_of_its_own(
    run: Runner, ome: Ome, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OME gives the Job none."""
    monkeypatch.setattr(ome_job, "MINUTE_S", 0.001)
    monkeypatch.setattr(ome_job, "CLIENT_S", 0.05)
    ome.state, ome.pod = "Running", {"phase": "Running"}
    with pytest.raises(TrialInfeasible, match="did not end within") as caught:
        run()
    assert caught.value.kind == "timeout"
    assert run.nothing_left()


def test_the_trials_deadline_holds_as_well(run: Runner, ome: Ome, hasty: None) -> None:
    """Whichever comes first."""
    ome.state, ome.pod = "Running", {"phase": "Running"}
    with pytest.raises(TrialInfeasible, match="the trial's 0 s"):
        run(seconds=0.05)


def test_a_job_that_somebody_removed_may_be_tried_again(
    run: Runner, ome: Ome, cluster: FakeCluster, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed at once."""
    ome.state, ome.pod = "Running", {"phase": "Running"}
    monkeypatch.setattr(run, "check", lambda: cluster.delete(BENCHMARK_JOB, cluster.objects(BENCHMARK_JOB)[0], NS))
    with pytest.raises(TransientError, match="somebody removed BenchmarkJob"):
        run()


def test_what_an_earlier_process_left_is_removed_first(run: Runner, ome: Ome, cluster: FakeCluster) -> None:
    """It would load the same engine."""
    meta = {"name": "left", "namespace": NS, "labels": labels(EXPERIMENT, TRIAL)}
    other = {"name": "another", "namespace": NS, "labels": labels(EXPERIMENT, replace(TRIAL, repeat=1))}
    cluster.put(BENCHMARK_JOB, {"metadata": meta})
    cluster.put(BENCHMARK_JOB, {"metadata": other})
    run()
    assert cluster.objects(BENCHMARK_JOB) == ["another"]


def test_a_measurement_is_not_lost_to_a_pod_that_will_not_go(
    run: Runner, ome: Ome, cluster: FakeCluster, hasty: None
) -> None:
    """It counts; the next load waits for the pod, and closing says what is left."""
    real = ome._benchmark

    def undying(job: Manifest) -> None:
        cluster.undying.add(f"{job['metadata']['name']}-x")
        real(job)

    ome._benchmark = undying  # type: ignore[method-assign]
    assert run().loads[0].completed > 0
    with pytest.raises(TransientError, match="is still there"):
        run.job.close()
    for name in cluster.objects(POD):
        cluster.delete(POD, name, NS, grace_s=0)
    run.job.close()
    run.job.close()
    assert run.nothing_left()


def test_closing_what_was_never_used_asks_nothing(run: Runner, cluster: FakeCluster) -> None:
    """The trial closes its benchmark on every path."""
    before = len(cluster.calls)
    run.job.close()
    assert len(cluster.calls) == before


def test_a_missing_right_is_no_fault_of_the_configuration(run: Runner, cluster: FakeCluster) -> None:
    """It says what is refused and who tells more."""
    cluster.denied.add(("create", "benchmarkjobs", "", "namespace"))
    with pytest.raises(EnvironmentFault, match="cannot create; raytune-autotuner doctor"):
        run()


def test_closing_maps_a_refusal(run: Runner, ome: Ome, cluster: FakeCluster) -> None:
    """The trial's teardown knows of infrastructure that fails, and of nothing else."""
    run()
    assert run.job._open == set()
    run.job._open = {"left"}
    cluster.denied.add(("delete", "benchmarkjobs", "", "namespace"))
    with pytest.raises(TransientError, match="may be left"):
        run.job.close()


def test_a_log_that_cannot_be_read_does_not_cost_the_result(run: Runner, cluster: FakeCluster) -> None:
    """It is said in its place."""
    cluster.faults.append(("logs", None, Unreachable("away")))
    run()
    (kept,) = run.folder.iterdir()
    assert "away" in (kept / "genai_bench.log").read_text()


def test_tokens_are_not_kept(run: Runner, ome: Ome) -> None:
    """genai-bench writes every option in clear."""
    token = "hf_" + "a1" * 12
    ome.log = f"hf-token: {token}"
    ome.files["experiment_metadata.json"] = f'{{"cmd": "--hf-token {token}"}}'.encode()
    run()
    (kept,) = run.folder.iterdir()
    assert all(token not in path.read_text() for path in kept.iterdir())


def test_the_reader_is_modest(run: Runner, ome: Ome) -> None:
    """It goes where the claim is mounted, may not write, has no API token and an end of its own."""
    run()
    (pod,) = ome.reader_specs
    term = pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]
    assert term["preference"]["matchExpressions"][0]["values"] == ["n1"]
    assert pod["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["activeDeadlineSeconds"] == ome_reader.LIFETIME_S
    assert pod["metadata"]["ownerReferences"] == [run.settings.owner]


@pytest.mark.parametrize("spoilt", ["rotated", "cut", "flipped", "empty"])
def test_a_result_that_came_through_damaged_is_read_again(run: Runner, ome: Ome, spoilt: str) -> None:
    """What has been measured is not lost to a log that was cut off, rotated away or damaged."""
    spoil: dict[str, Callable[[str], str]] = {
        "rotated": lambda log: log[len(log) // 2 :],
        "cut": lambda log: log[: len(log) // 2],
        "flipped": lambda log: log.replace("A", "B"),
        "empty": lambda log: "",
    }
    ome.spoil = lambda number, log: spoil[spoilt](log) if number == 1 else log
    assert run().loads[0].completed > 0
    assert ome.readers == 2


def test_a_result_that_never_comes_through_is_an_error_that_says_where_it_is(run: Runner, ome: Ome) -> None:
    """After some attempts."""
    ome.spoil = lambda number, log: log[:-40]
    with pytest.raises(
        TransientError, match=r"exp/search-0123456789ab-rung-0-.* of PersistentVolumeClaim autotuner/results"
    ):
        run()
    assert ome.readers == ome_job.FETCHES
    assert run.nothing_left()


def test_a_reader_without_an_image_is_told(run: Runner, ome: Ome) -> None:
    """At once, as the cluster's fault."""
    ome.reader_status = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": WAITING}}]}
    with pytest.raises(EnvironmentFault, match="cannot be read: ImagePullBackOff"):
        run()
    assert run.nothing_left()


def test_a_reader_that_does_not_start_in_time_is_told(run: Runner, ome: Ome, hasty: None) -> None:
    """With the scheduler's words."""
    condition = {"type": "PodScheduled", "status": "False", "message": "no room"}
    ome.reader_status = {"phase": "Pending", "conditions": [condition]}
    with pytest.raises(TransientError, match="was not read within 0 s: no room"):
        run()


def test_a_reader_that_fails_is_told(run: Runner, ome: Ome) -> None:
    """With its exit code."""
    ome.reader_status = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137}}}]}
    ome.cluster.log = lambda pod: "killed"
    with pytest.raises(TransientError, match=r"failed \(137\)"):
        run()


@pytest.mark.parametrize("name", ["../evil.json", "a/b.json", ""])
def test_a_file_name_stays_in_its_folder(name: str) -> None:
    """Whatever a pod prints."""
    with pytest.raises(ValueError, match="unexpected line"):
        list(files_in(f"m begin 1 {'0' * 64} {name}\nm end\nm done", "m"))


@pytest.mark.parametrize(
    ("settings_given", "place", "reason"),
    [
        ({"dataset": {"path": "prompts.txt"}}, "benchmark.dataset", "another workload"),
        ({"task": "text-to-embeddings"}, "benchmark.task", "text-to-text only"),
        ({"traffic_scenarios": ["dataset"]}, "benchmark.traffic_scenarios", "refuses `dataset`"),
        ({"prefix_len": 100}, "benchmark.prefix_len", "no field"),
        ({"prefix_ratio": 0.5}, "benchmark.prefix_ratio", "no field"),
    ],
)
def test_what_would_change_the_workload_is_refused(settings_given: Manifest, place: str, reason: str) -> None:
    """With the reason and the way out."""
    (problem,) = problems(spec.Benchmark.model_validate(settings_given))
    assert problem.place == place
    assert reason in problem.message
    assert "--direct" in problem.message


@pytest.mark.parametrize("scenario", ["D(100,100)", "N(480,240)/(300,150)", "U(50,100)/(200,250)", "U(50,100)"])
def test_what_ome_can_do_is_not_refused(scenario: str) -> None:
    """Every form of text traffic."""
    assert problems(spec.Benchmark(traffic_scenarios=(scenario,))) == []


def test_what_is_without_effect_is_said() -> None:
    """One sentence per setting, and always that nothing is seen of a load while it runs."""
    given = spec.Benchmark(
        additional_params={"temperature": "0.0"},
        model_name="m",
        model_tokenizer="t",
        api_backend="vllm",
        api_key_env="KEY",
    )
    said = notes(given)
    assert said[0].startswith("benchmark.additional_params (temperature) are set")
    assert len(said) == 6
    assert all("without effect" in note for note in said[:5])
    (always,) = notes(spec.Benchmark())
    assert said[5] == always
    assert "no load is ended early" in always
