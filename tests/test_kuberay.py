"""The files for KubeRay: no name misspelt, and what they promise holds."""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kubernetes import client
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

from raytune_autotuner import jobs
from raytune_autotuner.cli import main
from raytune_autotuner.submit import STOP_VARIABLE, stop_wait_s
from raytune_autotuner.task.spec import parse_task
from tests.emulator.api import schema

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "kuberay"
FILES = ["raycluster.yaml", "rayjob.yaml"]

CLUSTER_FIELDS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD_FIELDS = {"rayStartParams", "template", "resources", "labels", "serviceType"}
WORKER_FIELDS = HEAD_FIELDS - {"serviceType"} | {"groupName", "replicas", "minReplicas", "maxReplicas"}
JOB_FIELDS = {
    *("entrypoint", "runtimeEnvYAML", "metadata", "jobId", "submissionMode", "backoffLimit", "suspend"),
    *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "rayClusterSpec"),
}
"""KubeRay's names, as far as they are of use here; the schema has them all."""


def document(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return loaded


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates, the head's first."""
    cluster = cluster_of(document)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def unknown(document: dict[str, Any]) -> list[str]:
    """The names in a file that neither KubeRay nor Kubernetes knows."""
    known = [(set(document), {"apiVersion", "kind", "metadata", "spec"})]
    if document["kind"] == "RayJob":
        known.append((set(document["spec"]), JOB_FIELDS))
    cluster = cluster_of(document)
    known += [(set(cluster), CLUSTER_FIELDS), (set(cluster["headGroupSpec"]), HEAD_FIELDS)]
    known += [(set(group), WORKER_FIELDS) for group in cluster["workerGroupSpecs"]]
    found = [name for names, valid in known for name in sorted(names - valid)]
    return found + [name for pod in pods(document) for name in misspelt(pod, "V1PodTemplateSpec")]


def misspelt(value: Any, kind: str) -> Iterator[str]:
    """Names in a Kubernetes value that its type does not have, by the official client's models."""
    if kind[:5].lower() == "list[":
        for item in value:
            yield from misspelt(item, kind[5:-1])
    elif kind.startswith("V1"):
        model = getattr(client, kind)
        types = {model.attribute_map[name]: of for name, of in model.openapi_types.items()}
        for name, item in value.items():
            if name in types:
                yield from misspelt(item, types[name])
            else:
                yield f"{kind}.{name}"


@pytest.mark.parametrize("name", FILES)
def test_no_name_is_misspelt(name: str) -> None:
    """A field that nobody knows would be dropped without a word."""
    assert unknown(document(name)) == []


@pytest.mark.parametrize(
    ("way", "typo"),
    [
        (("spec",), "workerGroupSpec"),
        (("spec", "headGroupSpec"), "rayStartParam"),
        (("spec", "workerGroupSpecs", 0), "maxReplica"),
        (("spec", "workerGroupSpecs", 0, "template", "spec"), "serviceAccount_name"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "tolerations", 0), "efect"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources"), "request"),
    ],
)
def test_a_misspelt_name_is_found(way: tuple[str | int, ...], typo: str) -> None:
    """At every level of the file: the test above can fail."""
    damaged = copy.deepcopy(document("raycluster.yaml"))
    place: Any = damaged
    for step in way:
        place = place[step]
    place[typo] = {}
    assert [name.rpartition(".")[2] for name in unknown(damaged)] == [typo]


@pytest.fixture(scope="module")
def crds() -> dict[str, dict[str, Any]]:
    """KubeRay's schemas by kind."""
    named = os.environ.get("RAYTUNE_AUTOTUNER_KUBERAY_CRDS")
    if not named:
        pytest.skip("KubeRay's CRDs are not here: name their folder with RAYTUNE_AUTOTUNER_KUBERAY_CRDS")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte each
    found = [yaml.load(path.read_bytes(), loader) for path in sorted(Path(named).glob("ray.io_*.yaml"))]
    return {
        crd["spec"]["names"]["kind"]: version["schema"]["openAPIV3Schema"]
        for crd in found
        for version in crd["spec"]["versions"]
        if version["name"] == "v1"
    }


@pytest.mark.parametrize("name", FILES)
def test_kuberays_own_schema_takes_it(name: str, crds: dict[str, dict[str, Any]]) -> None:
    """No unknown name, no wrong value, nothing missing."""
    checked = document(name)
    of_kind = crds[checked["kind"]]
    del checked["metadata"]  # Kubernetes' own, which no CRD describes
    assert schema.prune(copy.deepcopy(checked), of_kind) == []
    assert [str(fault) for fault in schema.faults(checked, of_kind)] == []


def test_kuberays_own_schema_refuses_a_wrong_value(crds: dict[str, dict[str, Any]]) -> None:
    """The test above can fail."""
    damaged = document("raycluster.yaml")
    damaged["spec"]["authOptions"]["mode"] = "tokens"
    del damaged["spec"]["workerGroupSpecs"][0]["groupName"]
    assert len(list(schema.faults(damaged, crds["RayCluster"]))) == 2


@pytest.mark.parametrize("name", FILES)
def test_a_worker_stands_for_its_node(name: str) -> None:
    """It declares GPUs in Ray, asks Kubernetes for none, knows its node, and is the only one there."""
    for group in cluster_of(document(name))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert int(group["resources"]["ome_gpu"]) > 0
        assert group["rayStartParams"]["num-gpus"] == "0"
        assert "nvidia.com/gpu" not in json.dumps(container["resources"])
        env = {entry["name"]: entry for entry in container["env"]}
        assert env["RAYTUNE_AUTOTUNER_NODE"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
        (rule,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert rule["topologyKey"] == "kubernetes.io/hostname"
        assert rule["labelSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("name", FILES)
def test_no_trial_runs_on_the_head_and_nobody_without_the_token_gets_in(name: str) -> None:
    """The head has the drivers; the workers have the trials."""
    cluster = cluster_of(document(name))
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "resources" not in cluster["headGroupSpec"]
    assert cluster["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("name", FILES)
def test_pods_have_the_account_and_the_storage_of_the_other_files(name: str) -> None:
    """What is referred to is made by configs/kubernetes, or is a Secret that is never in a file."""
    made = [
        (each["kind"], each["metadata"]["name"])
        for path in (ROOT / "configs" / "kubernetes").glob("*.yaml")
        for each in yaml.safe_load_all(path.read_text())
    ]
    for pod in pods(document(name)):
        assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in made
        for volume in pod["spec"].get("volumes", ()):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in made
        (container,) = pod["spec"]["containers"]
        values = [entry.get("value", "") for entry in container["env"]]
        assert not any("KEY" in entry["name"] for entry in container["env"]), values


def test_the_image_has_the_ray_that_we_pin() -> None:
    """Another version on the cluster would refuse us, or behave differently."""
    pinned = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if '"ray[' in line)
    version = pinned.split("==")[1].split('"')[0]
    for name in FILES:
        assert cluster_of(document(name))["rayVersion"] == version
        assert all(pod["spec"]["containers"][0]["image"].endswith(f":{version}") for pod in pods(document(name)))


def test_the_job_ends_in_order_and_goes_on_after_an_accident() -> None:
    """Its command line is valid, its storage outside of the cluster, and Ray leaves it time to end."""
    spec = document("rayjob.yaml")["spec"]
    program, command, task, *options = shlex.split(spec["entrypoint"])
    assert program == "raytune-autotuner"
    given = dict(zip(options, [*options[1:], ""], strict=True))
    assert given["--resume"] == "auto"
    assert given["--name"] == spec["metadata"]["experiment"]
    assert given["--storage"].startswith("s3://")
    assert spec["backoffLimit"] > 0
    assert int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"][STOP_VARIABLE]) >= 120
    mounts = pods(document("rayjob.yaml"))[0]["spec"]["containers"][0]["volumeMounts"]
    assert any(task.startswith(mount["mountPath"]) for mount in mounts)
    missing = CliRunner().invoke(main, [command, "no-such-file.yaml", *options])
    assert "no-such-file.yaml" in missing.stderr  # the options were understood


def test_whoever_deletes_the_cluster_ends_its_experiments_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would kill the drivers; there is time for the longest end that `submit` grants, and for Ray's own."""
    pod = document("raycluster.yaml")["spec"]["headGroupSpec"]["template"]["spec"]
    python, flag, code = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(jobs, "stop_all", lambda address, seconds: asked.append((address, seconds)))
    exec(code, {})
    ((address, seconds),) = asked
    assert (python, flag, address) == ("python", "-c", "http://127.0.0.1:8265")
    task = parse_task(yaml.safe_load((ROOT / "configs" / "simple_task.json").read_text()), "task")
    assert stop_wait_s(task) < seconds
    assert seconds + RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", FILES)
def test_each_names_what_it_needs_first(name: str) -> None:
    """Without the cleaner, what a killed driver leaves would hold its GPUs for ever."""
    head = (CONFIGS / name).read_text().split("kubectl", maxsplit=1)[0]
    assert all(file in head for file in ("namespace.yaml", "rbac.yaml", "gc-cronjob.yaml"))
