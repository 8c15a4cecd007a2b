"""The world behind the emulated API: what OME, the scheduler and the kubelets do, and every fault switch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import psutil
import pytest
import requests
import yaml
from kubernetes import client, config

from tests.emulator.api import ApiError, ome_crds
from tests.emulator.api.objects import at
from tests.emulator.cluster import Emulator, Node
from tests.emulator.world.cluster_api import condition
from tests.emulator.world.loop import Loop
from tests.emulator.world.merge import merge
from tests.emulator.world.nodes import quantity
from tests.emulator.world.nodes import requests as requested
from tests.waiting import until

Object = dict[str, Any]
SERVICES = "inferenceservices.ome.io"
NAMESPACE = "tuning"
ROOT = Path(__file__).resolve().parents[1]

needs_crds = pytest.mark.skipif(
    ome_crds() is None, reason="OME's CRDs are not there: name their folder with RAYTUNE_AUTOTUNER_OME_CRDS"
)

BASE = """
apiVersion: ome.io/v1beta1
kind: ClusterBaseModel
metadata: {name: llama}
spec:
  vendor: meta
  modelParameterSize: 1.2B
  modelFormat: {name: safetensors, version: "1.0.0"}
  modelFramework: {name: transformers, version: "4.49.0"}
  storage: {storageUri: "hf://meta-llama/Llama-3.2-1B-Instruct", path: /mnt/data/models/llama}
---
apiVersion: ome.io/v1beta1
kind: ClusterServingRuntime
metadata: {name: srt-llama}
spec:
  supportedModelFormats:
  - modelFramework: {name: transformers, version: "4.49.0"}
    modelFormat: {name: safetensors, version: "1.0.0"}
  engineConfig:
    terminationGracePeriodSeconds: 60
    runner: &runner
      name: ome-container
      image: lmsysorg/sglang:v0.5.5
      ports: [{containerPort: 8080, name: http1, protocol: TCP}]
      command: [python3, -m, sglang.launch_server, --host, 0.0.0.0, --port, "8080", --enable-metrics]
      args: [--model-path, $(MODEL_PATH), --served-model-name, llama, --tp-size, "1"]
      env: [{name: A, value: runtime}, {name: B, value: runtime}]
      resources:
        requests: {cpu: 4, memory: 16Gi, nvidia.com/gpu: 1}
        limits: {cpu: 4, memory: 16Gi, nvidia.com/gpu: 1}
      readinessProbe: {httpGet: {path: /health_generate, port: 8080}, periodSeconds: 5}
  decoderConfig: {runner: *runner}
  routerConfig:
    runner:
      name: router
      image: router:v1
      ports: [{containerPort: 8080, name: http, protocol: TCP}]
      command: [python3, -m, sglang_router.launch_router, --host, 0.0.0.0, --port, "8080", --service-discovery]
      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 5}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Emulator]:
    nodes = [Node("n1", gpus=4), Node("n2", gpus=2, labels={"pool": "small"})]
    with Emulator(nodes, time_scale=120, programs={"genai-bench": (sys.executable, "-c", FAKE_BENCH)}) as found:
        found.apply(BASE)
        yield found


FAKE_BENCH = textwrap.dedent(
    """
    import pathlib, sys, urllib.request
    said = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    models = urllib.request.urlopen(said["--api-base"] + "/v1/models", timeout=10).read()
    folder = pathlib.Path(said["--experiment-base-dir"], said["--experiment-folder-name"])
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(models)
    print("measured into", folder)
    """
)


@pytest.fixture
def name(request: pytest.FixtureRequest, cluster: Emulator) -> Iterator[str]:
    """A name of its own for each test; what the test leaves under it goes, and faults as well."""
    found = f"t{crc32(request.node.nodeid.encode())}"
    yield found
    cluster.faults.clear()
    if cluster.store.find(SERVICES, found, NAMESPACE):
        cluster.store.delete(SERVICES, found, NAMESPACE)
    until(lambda: not pods(cluster, found))


def serve(cluster: Emulator, name: str, *args: str, runner: Object | None = None, **spec: Any) -> Object:
    """Create an InferenceService whose engine has these arguments besides the usual ones."""
    usual = ["--model-path", "$(MODEL_PATH)", "--served-model-name", "llama"]
    given = {"name": "ome-container", "args": [*usual, *args], **(runner or {})}
    engine = {"minReplicas": 1, "maxReplicas": 1, "runner": given, **spec.pop("engine", {})}
    value = {
        "apiVersion": "ome.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"trial": "7"}},
        "spec": {
            "model": {"kind": "ClusterBaseModel", "name": "llama"},
            "runtime": {"kind": "ClusterServingRuntime", "name": "srt-llama"},
            "engine": engine,
            **spec,
        },
    }
    return cluster.apply(yaml.safe_dump(_without_nulls(value)))[0]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value


def pods(cluster: Emulator, name: str) -> list[Object]:
    return cluster.store.list("pods", NAMESPACE, labels=f"ome.io/inferenceservice={name}")


def state(cluster: Emulator, name: str, kind: str = "Ready") -> str | None:
    return (condition(cluster.store.find(SERVICES, name, NAMESPACE), kind) or {}).get("status")


def ready(cluster: Emulator, name: str) -> Object:
    until(lambda: state(cluster, name) == "True")
    return cluster.store.get(SERVICES, name, NAMESPACE)


def container(cluster: Emulator, name: str) -> Object:
    """The status of the container of the only pod; empty before there is one."""
    found = [status for pod in pods(cluster, name) for status in at(pod, "status.containerStatuses") or ()]
    return found[0] if found else {}


def waiting(cluster: Emulator, name: str) -> str | None:
    return at(container(cluster, name), "state.waiting.reason")


def reasons(cluster: Emulator, name: str, about: str | None = None) -> set[str]:
    found = cluster.objects("Event", NAMESPACE)
    mine = [each for each in found if each["involvedObject"]["name"].startswith(name)]
    return {each["reason"] for each in mine if about in (None, each["involvedObject"]["kind"])}


def log(cluster: Emulator, pod: str, **options: Any) -> str:
    """The log, by the official client."""
    api = config.new_client_from_config(str(cluster.kubeconfig))
    with api:
        return str(client.CoreV1Api(api).read_namespaced_pod_log(pod, NAMESPACE, **options))


# OME


@needs_crds
def test_a_service_becomes_ready_with_all_that_ome_makes_for_it(cluster: Emulator, name: str) -> None:
    """Names, labels, conditions and addresses are those of OME 0.1.5."""
    serve(cluster, name)
    service = ready(cluster, name)
    assert [each["type"] for each in service["status"]["conditions"]] == ["EngineReady", "IngressReady", "Ready"]
    assert service["status"]["url"] == f"http://{name}.{NAMESPACE}.svc.cluster.local:8080"
    assert service["status"]["modelStatus"]["modelRevisionStates"]["activeModelState"] == "Loaded"
    assert service["metadata"]["annotations"]["ome.io/deploymentMode"] == "RawDeployment"
    for resource in ("deployments.apps", "services", "horizontalpodautoscalers.autoscaling"):
        assert cluster.store.get(resource, f"{name}-engine", NAMESPACE)
    assert cluster.store.get("services", name, NAMESPACE)["spec"]["selector"]["component"] == "engine"
    assert cluster.store.get("configmaps", f"modelconfig-{name[-20:]}", NAMESPACE)
    [pod] = pods(cluster, name)
    assert (
        pod["metadata"]["labels"].items()
        >= {
            "component": "engine",
            "app": f"{name}-engine",
            "serving-runtime": "srt-llama",
            "base-model-name": "llama",
            "trial": "7",
        }.items()
    )
    until(lambda: "InferenceServiceReady" in reasons(cluster, name, "InferenceService"))


@needs_crds
def test_the_engine_answers_at_the_services_address_with_what_it_was_told(cluster: Emulator, name: str) -> None:
    """Inside the cluster the Service's address works, and the engine runs the arguments of the service."""
    serve(cluster, name, "--mem-fraction-static", "0.77")
    ready(cluster, name)
    address = cluster.store.get("services", f"{name}-engine", NAMESPACE)["spec"]["clusterIP"]
    info = requests.get(f"http://{address}:8080/get_server_info", timeout=10).json()
    assert info["mem_fraction_static"] == 0.77
    assert info["model_path"] == "/mnt/data/models/llama"
    models = requests.get(f"http://{address}:8080/v1/models", timeout=10).json()
    assert models["data"][0]["id"] == "llama"


RUNNER = {
    "name": "ome-container",
    "command": ["a"],
    "args": ["x", "y"],
    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}],
    "resources": {"limits": {"cpu": "1", "gpu": "1"}},
    "tolerations": [{"key": "a"}],
}


@pytest.mark.parametrize(
    ("service", "path", "expected"),
    [
        ({"args": ["z"]}, "args", ["z"]),
        ({"args": []}, "args", ["x", "y"]),
        ({}, "command", ["a"]),
        (
            {"env": [{"name": "B", "value": "2"}, {"name": "C", "value": "2"}]},
            "env",
            [{"name": "B", "value": "2"}, {"name": "C", "value": "2"}, {"name": "A", "value": "1"}],
        ),
        ({"resources": {"limits": {"gpu": "2"}}}, "resources.limits", {"cpu": "1", "gpu": "2"}),
        ({"tolerations": [{"key": "b"}]}, "tolerations", [{"key": "b"}]),
    ],
)
def test_a_runner_is_merged_field_by_field(service: Object, path: str, expected: object) -> None:
    """Arguments and tolerations are replaced as a whole, environment by name, resources per key."""
    merged = merge({"runner": RUNNER}, {"runner": {"name": "ome-container", **service}})
    assert at(merged["runner"], path) == expected


def test_a_runner_without_a_name_loses_the_runtimes() -> None:
    """As in OME 0.1.5, where the empty name is part of the patch."""
    assert merge({"runner": RUNNER}, {"runner": {"args": ["z"]}})["runner"]["name"] == ""


@needs_crds
def test_a_deployment_that_the_api_refuses_shows_nowhere(cluster: Emulator, name: str) -> None:
    """A runner without a name: no Deployment, no event, an empty status."""
    serve(cluster, name, runner={"name": None})
    until(lambda: cluster.store.get(SERVICES, name, NAMESPACE)["metadata"].get("finalizers"))
    cluster.faults.controller_down = True
    assert cluster.store.find("deployments.apps", f"{name}-engine", NAMESPACE) is None
    assert not cluster.store.get(SERVICES, name, NAMESPACE).get("status", {}).get("conditions")
    assert not reasons(cluster, name)
    cluster.faults.controller_down = False


@needs_crds
@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"runtime": {"kind": "ClusterServingRuntime", "name": "missing"}}, "RuntimeFetchError"),
        ({"engine": {"minReplicas": 0}}, "ServerlessModeRejected"),
        ({"engine": {"leader": {"runner": {"name": "l"}}, "worker": {"size": 1}}}, "InternalError"),
    ],
)
def test_early_errors_are_events_beside_an_empty_status(
    cluster: Emulator, name: str, spec: Object, reason: str
) -> None:
    """What stops the reconciler before the children exist is told only by an event."""
    serve(cluster, name, **spec)
    until(lambda: reason in reasons(cluster, name, "InferenceService"))
    assert not cluster.store.get(SERVICES, name, NAMESPACE).get("status", {}).get("conditions")


@needs_crds
def test_an_engine_is_mandatory(cluster: Emulator, name: str) -> None:
    """A service without the engine section never gets children, even where the runtime has one."""
    value = serve(cluster, name)
    cluster.store.delete(SERVICES, name, NAMESPACE)
    until(lambda: cluster.store.find(SERVICES, name, NAMESPACE) is None)
    value = {key: value[key] for key in ("apiVersion", "kind", "spec")} | {
        "metadata": {"name": name, "namespace": NAMESPACE}
    }
    del value["spec"]["engine"]
    cluster.apply(yaml.safe_dump(value))
    until(lambda: "DeploymentModeError" in reasons(cluster, name, "InferenceService"))


@needs_crds
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metadata": {"name": "7up", "namespace": NAMESPACE}}, "must consist of lower case"),
        ({"spec": {"model": {"name": "missing"}, "engine": {}}}, "missing not found"),
        ({"spec": {"model": {"name": "llama"}, "decoder": {}}}, "decoder cannot be specified without engine"),
        ({"spec": {"model": {"name": "llama"}, "engine": {}}}, "no runtime found"),
    ],
)
def test_the_webhook_refuses(cluster: Emulator, changes: Object, said: str) -> None:
    """Names, models, components and runtimes are checked before anything is stored."""
    value = {
        "apiVersion": "ome.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "refused", "namespace": NAMESPACE},
        "spec": {"engine": {}, "runtime": {"name": "srt-llama"}},
        **changes,
    }
    with pytest.raises(ApiError, match=said):
        cluster.apply(yaml.safe_dump(value))


@needs_crds
def test_the_webhook_fills_in_replicas(cluster: Emulator, name: str) -> None:
    """At least one and at most three, where nothing is said."""
    value = serve(cluster, name, engine={"minReplicas": None, "maxReplicas": None})
    assert (value["spec"]["engine"]["minReplicas"], value["spec"]["engine"]["maxReplicas"]) == (1, 3)


@needs_crds
def test_a_service_is_gone_while_its_pod_still_ends(cluster: Emulator, name: str) -> None:
    """The finalizer goes at once; the pod stays, with its GPU, for its grace period."""
    cluster.faults.add(pods=name, slow_to_die=True)
    serve(cluster, name, engine={"terminationGracePeriodSeconds": 120})
    ready(cluster, name)
    cluster.store.delete(SERVICES, name, NAMESPACE)
    until(lambda: cluster.store.find(SERVICES, name, NAMESPACE) is None)
    [pod] = pods(cluster, name)
    until(lambda: "deletionTimestamp" in pods(cluster, name)[0]["metadata"])
    assert any(uid.startswith(pod["metadata"]["uid"]) for uid in cluster.processes())
    until(lambda: not pods(cluster, name))
    until(lambda: not any(uid.startswith(pod["metadata"]["uid"]) for uid in cluster.processes()))


@needs_crds
def test_a_changed_service_is_replaced_in_place(cluster: Emulator, name: str) -> None:
    """The new pod serves in the end, and Ready has stayed true all the time."""
    serve(cluster, name, "--mem-fraction-static", "0.70")
    ready(cluster, name)
    [old] = pods(cluster, name)
    args = ["--model-path", "$(MODEL_PATH)", "--mem-fraction-static", "0.75"]
    patch = {"spec": {"engine": {"runner": {"name": "ome-container", "args": args}}}}
    cluster.store.patch(SERVICES, name, patch, NAMESPACE)
    until(lambda: [pod["metadata"]["uid"] for pod in pods(cluster, name)] not in ([], [old["metadata"]["uid"]]))
    until(lambda: old["metadata"]["uid"] not in [pod["metadata"]["uid"] for pod in pods(cluster, name)])
    assert pods(cluster, name)[0]["spec"]["containers"][0]["args"][-1] == "0.75"


@needs_crds
def test_decoder_and_router_have_conditions_that_ready_leaves_out(cluster: Emulator, name: str) -> None:
    """With prefill, decode and router all up, requests pass through the router to the decoder."""
    cluster.faults.add(pods=f"{name}-router", never_ready=True)
    parts = {"decoder": {"minReplicas": 1, "maxReplicas": 1}, "router": {"minReplicas": 1, "maxReplicas": 1}}
    serve(cluster, name, **parts)
    ready(cluster, name)
    until(lambda: state(cluster, name, "DecoderReady") == "True")
    assert state(cluster, name, "RouterReady") == "False"
    assert state(cluster, name) == "True"
    cluster.faults.clear()
    until(lambda: state(cluster, name, "RouterReady") == "True")
    service = cluster.store.get("services", name, NAMESPACE)["spec"]
    assert service["selector"]["component"] == "router"
    body = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True}
    url = f"http://{service['clusterIP']}:8080/v1/completions"
    until(lambda: _answers(lambda: requests.post(url, json=body, timeout=5)))


def _answers(ask: Callable[[], requests.Response]) -> bool:
    try:
        return ask().ok
    except requests.RequestException:
        return False


# Scheduling


@needs_crds
def test_too_many_gpus_are_unschedulable(cluster: Emulator, name: str) -> None:
    """The pod stays Pending with the condition and the event of the scheduler, and no node in it."""
    gpus = {"nvidia.com/gpu": 8}
    serve(cluster, name, runner={"resources": {"requests": gpus, "limits": gpus}})
    until(lambda: "FailedScheduling" in reasons(cluster, name))
    until(lambda: condition(pods(cluster, name)[0], "PodScheduled") is not None)
    found = condition(pods(cluster, name)[0], "PodScheduled")
    assert found is not None
    assert (found["status"], found["reason"]) == ("False", "Unschedulable")
    assert "2 Insufficient nvidia.com/gpu" in found["message"]


@needs_crds
@pytest.mark.parametrize(("labels", "node"), [({"pool": "small"}, "n2"), ({"kubernetes.io/hostname": "n1"}, "n1")])
def test_a_node_selector_chooses_the_node(cluster: Emulator, name: str, labels: Object, node: str) -> None:
    """Pods go where their selector says."""
    serve(cluster, name, engine={"nodeSelector": labels})
    until(lambda: pods(cluster, name) and pods(cluster, name)[0]["spec"].get("nodeName") == node)


@needs_crds
def test_gpus_are_held_until_the_pod_is_gone(cluster: Emulator, name: str) -> None:
    """A pod that ends slowly keeps the next one waiting; both never run together."""
    gpus = {"nvidia.com/gpu": 4}
    big = {"resources": {"requests": gpus, "limits": gpus}}
    cluster.faults.add(pods=name, will_not_die=True)
    serve(cluster, name, runner=big)
    ready(cluster, name)
    cluster.store.delete(SERVICES, name, NAMESPACE)
    other = f"{name}b"
    serve(cluster, other, runner=big)
    until(lambda: "FailedScheduling" in reasons(cluster, other))
    cluster.faults.clear()
    ready(cluster, other)
    assert not pods(cluster, name)
    cluster.store.delete(SERVICES, other, NAMESPACE)
    until(lambda: not pods(cluster, other))


@needs_crds
def test_pods_on_the_hosts_network_share_no_port(cluster: Emulator, name: str) -> None:
    """One such pod per node; the third one of three waits."""
    serve(cluster, name, engine={"hostNetwork": True, "minReplicas": 3, "maxReplicas": 3})
    until(lambda: len([pod for pod in pods(cluster, name) if pod["spec"].get("nodeName")]) == 2)
    until(lambda: "FailedScheduling" in reasons(cluster, name))
    events = [each["message"] for each in cluster.objects("Event", NAMESPACE) if name in each["metadata"]["name"]]
    assert any("didn't have free ports" in message for message in events)


def test_taints_keep_pods_away_that_do_not_tolerate_them() -> None:
    """A tainted node takes only pods with a toleration, and affinity chooses by expression."""
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    with Emulator([Node("n1", taints=(taint,)), Node("n2", labels={"zone": "b"})], time_scale=120) as small:
        tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        pod(small, "any", ["sleep", "60"])
        term = {"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}
        where = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
        pod(small, "away", ["sleep", "60"], tolerations=tolerations, affinity=where)
        pod(small, "never", ["sleep", "60"], affinity=where)
        until(lambda: [phase(small, each) for each in ("any", "away")] == ["Running", "Running"])
        until(lambda: condition(small.store.get("pods", "never", NAMESPACE), "PodScheduled"))
        assert at(small.store.get("pods", "any", NAMESPACE), "spec.nodeName") == "n2"
        assert at(small.store.get("pods", "away", NAMESPACE), "spec.nodeName") == "n1"
        message = (condition(small.store.get("pods", "never", NAMESPACE), "PodScheduled") or {})["message"]
        assert "untolerated taint {nvidia.com/gpu: present}" in message


def test_quantities_are_read_as_kubernetes_reads_them() -> None:
    """Binary and decimal suffixes, thousandths, and limits that stand in for requests."""
    assert [quantity(text) for text in ("1", "500m", "2Gi", "3k", 4)] == [1, 0.5, 2 * 2**30, 3000, 4]
    spec = {"containers": [{"resources": {"limits": {"cpu": "2", "gpu": 1}, "requests": {"cpu": "500m"}}}]}
    assert requested(spec) == {"pods": 1.0, "cpu": 0.5, "gpu": 1.0}


# The kubelet


@needs_crds
def test_a_failing_pull_shows_as_such(cluster: Emulator, name: str) -> None:
    """ErrImagePull, then ImagePullBackOff, with events; cured, the pod starts."""
    fault = cluster.faults.add(pods=name, pull_fails="manifest unknown")
    serve(cluster, name, runner={"image": f"registry/{name}:v1"})
    until(lambda: waiting(cluster, name) == "ImagePullBackOff")
    until(lambda: {"Failed", "BackOff", "Pulling"} <= reasons(cluster, name, "Pod"))
    with pytest.raises(client.ApiException, match="trying and failing to pull image"):
        log(cluster, pods(cluster, name)[0]["metadata"]["name"])
    cluster.faults.pods.remove(fault)
    ready(cluster, name)


@needs_crds
def test_an_engine_out_of_memory_crash_loops_with_its_log(cluster: Emulator, name: str) -> None:
    """Exit code 137 with reason Error, restarts, back-off, and the log of the container before."""
    serve(cluster, name, "--mem-fraction-static", "0.05")
    until(lambda: waiting(cluster, name) == "CrashLoopBackOff")
    status = container(cluster, name)
    assert status["restartCount"] >= 1
    assert at(status, "lastState.terminated.exitCode") == 137
    assert at(status, "lastState.terminated.reason") == "Error"
    said = log(cluster, pods(cluster, name)[0]["metadata"]["name"], previous=True, tail_lines=5)
    assert "Not enough memory. Please try to increase --mem-fraction-static" in said
    assert state(cluster, name) == "False"


@needs_crds
def test_a_bad_flag_ends_with_code_2(cluster: Emulator, name: str) -> None:
    """As argparse ends."""
    serve(cluster, name, "--no-such-flag")
    until(lambda: at(container(cluster, name), "lastState.terminated.exitCode") == 2)


@needs_crds
@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ({"exit_at_start": 3}, 3, "Error"),
        ({"oom_killed_at_start": True}, 137, "OOMKilled"),
        ({"crash_at_start": "RuntimeError: NCCL error"}, 137, "Error"),
    ],
)
def test_a_container_that_crashes_at_start_tells_how(
    cluster: Emulator, name: str, fault: Object, code: int, reason: str
) -> None:
    """Code and reason of the container's end are those of the fault."""
    cluster.faults.add(pods=name, **fault)
    serve(cluster, name)
    until(lambda: at(container(cluster, name), "lastState.terminated"))
    ended = at(container(cluster, name), "lastState.terminated")
    assert (ended["exitCode"], ended["reason"]) == (code, reason)


@needs_crds
def test_a_crash_under_load_restarts_the_engine(cluster: Emulator, name: str) -> None:
    """After as many requests as the fault says; the pod is not ready meanwhile, and then it is again."""
    cluster.faults.add(pods=name, crash_after_requests=1, times=1)
    serve(cluster, name)
    ready(cluster, name)
    address = at(pods(cluster, name)[0], "status.podIP")
    body = {"prompt": "hello", "max_tokens": 2}
    assert requests.post(f"http://{address}:8080/v1/completions", json=body, timeout=10).ok
    with pytest.raises(requests.ConnectionError):
        requests.post(f"http://{address}:8080/v1/completions", json=body, timeout=10)
    until(lambda: container(cluster, name)["restartCount"] == 1)
    ready(cluster, name)


@needs_crds
def test_a_hanging_engine_gets_unready(cluster: Emulator, name: str) -> None:
    """Stopped by a signal it answers no probe; let go on, it is ready again."""
    serve(cluster, name)
    ready(cluster, name)
    pod_name = pods(cluster, name)[0]["metadata"]["name"]
    cluster.signal(pod_name, signal.SIGSTOP)
    until(lambda: state(cluster, name) == "False")
    cluster.signal(pod_name, signal.SIGCONT)
    ready(cluster, name)


@needs_crds
@pytest.mark.parametrize("fault", [{"hang_at_start": True}, {"never_ready": True}])
def test_an_engine_that_never_gets_ready_runs_and_shows_no_failure(cluster: Emulator, name: str, fault: Object) -> None:
    """It looks exactly like a slow one."""
    cluster.faults.add(pods=name, **fault)
    serve(cluster, name)
    until(lambda: "Unhealthy" in reasons(cluster, name, "Pod"))
    assert at(container(cluster, name), "state.running")
    assert state(cluster, name) == "False"


@needs_crds
def test_a_mount_that_fails_keeps_the_pod_creating(cluster: Emulator, name: str) -> None:
    """With FailedMount events, until it works."""
    cluster.faults.add(pods=name, mount_fails='MountVolume.SetUp failed for volume "m": timed out')
    serve(cluster, name)
    until(lambda: "FailedMount" in reasons(cluster, name, "Pod"))
    until(lambda: waiting(cluster, name) == "ContainerCreating")
    cluster.faults.clear()
    ready(cluster, name)


@needs_crds
def test_a_quota_shows_at_the_replica_set(cluster: Emulator, name: str) -> None:
    """No pod; FailedCreate at the ReplicaSet, ReplicaFailure at the Deployment."""
    cluster.faults.pod_quota = "exceeded quota: gpus, requested: 1, used: 8, limited: 8"
    serve(cluster, name)
    until(lambda: "FailedCreate" in reasons(cluster, name, "ReplicaSet"))
    deployment = lambda: cluster.store.get("deployments.apps", f"{name}-engine", NAMESPACE)  # noqa: E731
    until(lambda: condition(deployment(), "ReplicaFailure"))
    assert not pods(cluster, name)
    cluster.faults.clear()
    ready(cluster, name)


@needs_crds
def test_a_missing_secret_stops_the_container(cluster: Emulator, name: str) -> None:
    """CreateContainerConfigError until the Secret is there."""
    secret = {"valueFrom": {"secretKeyRef": {"name": name, "key": "token"}}}
    serve(cluster, name, runner={"env": [{"name": "HF_TOKEN", **secret}]})
    until(lambda: waiting(cluster, name) == "CreateContainerConfigError")
    assert f'"{name}" not found' in at(container(cluster, name), "state.waiting.message")
    cluster.apply(yaml.safe_dump(_secret(name, other="x")))
    until(lambda: "couldn't find key token" in str(at(container(cluster, name), "state.waiting.message")))
    cluster.apply(yaml.safe_dump(_secret(name, token="x")))
    ready(cluster, name)


def _secret(name: str, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "stringData": data,
    }


@needs_crds
def test_engines_run_with_what_the_fault_overrides(cluster: Emulator, name: str) -> None:
    """An engine that ignores a flag: its argv says one thing, its info another."""
    cluster.faults.add(pods=name, overrides={"mem_frac": 0.6})
    serve(cluster, name, "--mem-fraction-static", "0.8")
    ready(cluster, name)
    address = at(pods(cluster, name)[0], "status.podIP")
    info = requests.get(f"http://{address}:8080/get_server_info", timeout=10).json()
    assert info["mem_fraction_static"] == 0.6


@needs_crds
def test_the_loss_of_a_node_is_noticed_late_and_moves_the_pod(cluster: Emulator, name: str) -> None:
    """The node gets Unknown, its pod not ready and then evicted; another one starts elsewhere; the old one stays
    Terminating until the node is back."""
    serve(cluster, name)
    ready(cluster, name)
    [old] = pods(cluster, name)
    node = old["spec"]["nodeName"]
    cluster.faults.lost_nodes.add(node)
    until(lambda: not _answers(lambda: requests.get(f"http://{old['status']['podIP']}:8080/health", timeout=5)))
    until(lambda: (condition(cluster.store.get("nodes", node), "Ready") or {})["status"] == "Unknown")
    until(lambda: len(pods(cluster, name)) == 2)
    ready(cluster, name)
    assert "deletionTimestamp" in cluster.store.get("pods", old["metadata"]["name"], NAMESPACE)["metadata"]
    cluster.faults.lost_nodes.clear()
    until(lambda: len(pods(cluster, name)) == 1)
    assert (condition(cluster.store.get("nodes", node), "Ready") or {})["status"] == "True"


@needs_crds
def test_a_node_that_is_back_soon_restarts_what_ran_there(cluster: Emulator, name: str) -> None:
    """Before its pods are given up, the same pod goes on with a new container."""
    serve(cluster, name)
    ready(cluster, name)
    [old] = pods(cluster, name)
    cluster.faults.lost_nodes.add(old["spec"]["nodeName"])
    until(lambda: not any(key.startswith(old["metadata"]["uid"]) for key in cluster.processes()))
    cluster.faults.lost_nodes.clear()
    until(lambda: container(cluster, name)["restartCount"] == 1)
    ready(cluster, name)
    assert pods(cluster, name)[0]["metadata"]["uid"] == old["metadata"]["uid"]


@needs_crds
def test_startup_and_liveness_probes_restart_what_fails_them(cluster: Emulator, name: str) -> None:
    """An engine that starts too slowly for its startup probe is killed and started again."""
    probe = {"httpGet": {"path": "/health", "port": "http1"}, "periodSeconds": 1, "failureThreshold": 2}
    serve(cluster, name, runner={"startupProbe": probe, "livenessProbe": probe})
    until(lambda: "Killing" in reasons(cluster, name, "Pod"))
    until(lambda: container(cluster, name)["restartCount"] >= 1)


@needs_crds
def test_a_service_that_was_up_is_restarted_when_it_hangs(cluster: Emulator, name: str) -> None:
    """The liveness probe ends an engine that does not answer."""
    probe = {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 10, "failureThreshold": 2}
    serve(cluster, name, runner={"livenessProbe": probe, "startupProbe": {**probe, "failureThreshold": 100}})
    ready(cluster, name)
    cluster.signal(pods(cluster, name)[0]["metadata"]["name"], signal.SIGSTOP)
    until(lambda: container(cluster, name).get("restartCount") == 1)
    ready(cluster, name)


# Webhooks


@needs_crds
def test_webhooks_that_do_not_answer_refuse_everything(cluster: Emulator, name: str) -> None:
    """500 with the webhook's name, for services and for the pods of services."""
    cluster.faults.webhook_down = True
    with pytest.raises(ApiError, match="failed calling webhook"):
        serve(cluster, name)
    cluster.faults.clear()
    serve(cluster, name)
    ready(cluster, name)


@needs_crds
def test_slow_webhooks_only_take_longer(cluster: Emulator, name: str) -> None:
    """Writes from outside wait; the world goes on."""
    cluster.faults.webhook_s = 0.3
    started = threading.Event()
    thread = threading.Thread(target=lambda: (started.set(), serve(cluster, name)))
    thread.start()
    started.wait()
    assert cluster.store.find(SERVICES, name, NAMESPACE) is None
    thread.join()
    ready(cluster, name)


# Pods, claims and benchmarks


def pod(cluster: Emulator, name: str, command: list[str], *, container: Object | None = None, **spec: Any) -> None:
    given = {"name": "main", "image": "busybox:1", "command": command, **(container or {})}
    value = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"restartPolicy": "Never", "containers": [given], **spec},
    }
    cluster.apply(yaml.safe_dump(value))


def phase(cluster: Emulator, name: str) -> str | None:
    return at(cluster.store.find("pods", name, NAMESPACE) or {}, "status.phase")


def claim(cluster: Emulator, name: str) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name, "namespace": NAMESPACE}
    cluster.apply(
        yaml.safe_dump({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
    )


def test_a_reader_pod_prints_the_files_of_a_claim(cluster: Emulator) -> None:
    """Commands see the claim at its mount path, and say that path in their output."""
    claim(cluster, "files")
    pod(cluster, "early", ["true"], volumes=[{"name": "f", "persistentVolumeClaim": {"claimName": "missing"}}])
    until(lambda: condition(cluster.store.get("pods", "early", NAMESPACE), "PodScheduled"))
    folder = cluster.claim_folder("files", NAMESPACE)
    until(folder.is_dir)
    (folder / "run").mkdir()
    (folder / "run" / "result.json").write_text("{}")
    mount = {"volumeMounts": [{"name": "f", "mountPath": "/results", "readOnly": True}]}
    script = "cd /results/run && pwd && sha256sum *.json"
    volumes = [{"name": "f", "persistentVolumeClaim": {"claimName": "files"}}]
    pod(cluster, "reader", ["sh", "-c", script], container=mount, volumes=volumes)
    until(lambda: phase(cluster, "reader") == "Succeeded")
    said = log(cluster, "reader")
    assert said.splitlines()[0] == "/results/run"
    assert said.splitlines()[1].endswith("result.json")
    unscheduled = condition(cluster.store.get("pods", "early", NAMESPACE), "PodScheduled") or {}
    assert 'persistentvolumeclaim "missing" not found' in unscheduled["message"]


def test_a_claim_may_stay_pending(cluster: Emulator) -> None:
    """Its pods are unschedulable then."""
    cluster.faults.claims_pending = True
    claim(cluster, "slow")
    pod(cluster, "patient", ["true"], volumes=[{"name": "f", "persistentVolumeClaim": {"claimName": "slow"}}])
    until(lambda: condition(cluster.store.get("pods", "patient", NAMESPACE), "PodScheduled"))
    refused = condition(cluster.store.get("pods", "patient", NAMESPACE), "PodScheduled") or {}
    assert "unbound immediate PersistentVolumeClaims" in refused["message"]
    cluster.faults.clear()
    until(lambda: at(cluster.store.get("persistentvolumeclaims", "slow", NAMESPACE), "status.phase") == "Bound")


def test_a_pods_environment_comes_from_where_it_is_said(cluster: Emulator) -> None:
    """Values, Secrets, ConfigMaps, fields of the pod, and references to earlier variables."""
    data = {"KEY": "from map"}
    metadata = {"name": "settings", "namespace": NAMESPACE}
    cluster.apply(yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}))
    cluster.apply(yaml.safe_dump(_secret("hidden", token="s3cret")))
    environment = [
        {"name": "PLAIN", "value": "1"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "token"}}},
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "SUM", "value": "$(PLAIN)+$(TOKEN)$$(PLAIN)$(NOBODY)"},
    ]
    sources = [{"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "none", "optional": True}}]
    mounts = [{"name": "m", "mountPath": "/etc/settings"}]
    script = 'echo "$KEY|$TOKEN|$WHO|$SUM"; cat /etc/settings/KEY'
    pod(
        cluster,
        "speaker",
        ["sh", "-c", script],
        container={"env": environment, "envFrom": sources, "volumeMounts": mounts},
        volumes=[{"name": "m", "configMap": {"name": "settings"}}],
    )
    until(lambda: phase(cluster, "speaker") == "Succeeded")
    assert log(cluster, "speaker") == "from map|s3cret|speaker|1+s3cret$(PLAIN)$(NOBODY)\nfrom map"


def test_a_program_that_is_not_there_fails_the_pod(cluster: Emulator) -> None:
    """With the shell's code for it."""
    pod(cluster, "nothing", ["no-such-program"])
    until(lambda: phase(cluster, "nothing") == "Failed")
    assert (
        at(
            cluster.store.get("pods", "nothing", NAMESPACE)["status"]["containerStatuses"][0],
            "state.terminated.exitCode",
        )
        == 127
    )


def test_a_log_is_followed_to_the_end_of_the_container(cluster: Emulator) -> None:
    """Lines come as they are printed, and the stream ends with the container."""
    pod(cluster, "chatty", ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"])
    until(lambda: phase(cluster, "chatty") in ("Running", "Succeeded"))
    api = config.new_client_from_config(str(cluster.kubeconfig))
    with api:
        stream = client.CoreV1Api(api).read_namespaced_pod_log("chatty", NAMESPACE, follow=True, _preload_content=False)
        assert b"".join(stream.stream()).decode().split() == ["1", "2", "3"]
        stream.release_conn()


def test_a_pod_is_killed_after_its_grace(cluster: Emulator) -> None:
    """SIGTERM that is ignored is followed by SIGKILL; nothing is left in the process table."""
    pod(
        cluster,
        "stubborn",
        ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"],
        terminationGracePeriodSeconds=30,
    )
    until(lambda: phase(cluster, "stubborn") == "Running")
    uid = cluster.store.get("pods", "stubborn", NAMESPACE)["metadata"]["uid"]
    pid = next(pid for key, pid in cluster.processes().items() if key.startswith(uid))
    cluster.store.delete("pods", "stubborn", NAMESPACE)
    until(lambda: phase(cluster, "stubborn") is None)
    until(lambda: not psutil.pid_exists(pid))


def test_a_pod_that_will_not_die_can_only_be_forced(cluster: Emulator) -> None:
    """It stays Terminating beyond its grace; force removes the object at once."""
    fault = cluster.faults.add(pods="^undead$", will_not_die=True)
    pod(cluster, "undead", ["sleep", "600"], terminationGracePeriodSeconds=1)
    until(lambda: phase(cluster, "undead") == "Running")
    cluster.store.delete("pods", "undead", NAMESPACE)
    pod(cluster, "meanwhile", ["true"])
    until(lambda: phase(cluster, "meanwhile") == "Succeeded")
    assert phase(cluster, "undead") == "Running"
    cluster.store.delete("pods", "undead", NAMESPACE, grace_s=0)
    assert phase(cluster, "undead") is None
    cluster.faults.pods.remove(fault)


def benchmark(cluster: Emulator, name: str, service: str, **spec: Any) -> None:
    value = {
        "apiVersion": "ome.io/v1beta1",
        "kind": "BenchmarkJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "endpoint": {"inferenceService": {"name": service, "namespace": NAMESPACE}},
            "task": "text-to-text",
            "trafficScenarios": ["D(100,100)"],
            "numConcurrency": [1, 4],
            "maxTimePerIteration": 1,
            "maxRequestsPerIteration": 10,
            "resultFolderName": "run",
            "podOverride": {"image": "genai-bench:v1", "env": [{"name": "X", "value": "1"}]},
            "outputLocation": {"storageUri": "pvc://results/exp/one"},
            **spec,
        },
    }
    cluster.apply(yaml.safe_dump(value))


def job_state(cluster: Emulator, name: str) -> str | None:
    return at(cluster.store.find("benchmarkjobs.ome.io", name, NAMESPACE) or {}, "status.state")


@needs_crds
def test_a_benchmark_job_measures_into_its_claim(cluster: Emulator, name: str) -> None:
    """Pending until the service and the claim are there, then a Job whose files lie under the claim's subpath."""
    benchmark(cluster, name, name)
    until(lambda: job_state(cluster, name) == "Pending")
    claim(cluster, "results")
    serve(cluster, name)
    until(lambda: job_state(cluster, name) == "Completed")
    file = cluster.claim_folder("results", NAMESPACE) / "exp" / "one" / "run" / "result.json"
    assert json.loads(file.read_text())["data"][0]["id"] == "llama"
    [found] = cluster.store.list("pods", NAMESPACE, labels=f"benchmark={name}")
    assert found["spec"]["containers"][0]["name"] == "genai-bench"
    args = found["spec"]["containers"][0]["args"]
    assert args[args.index("--api-model-name") + 1] == "vllm-model"
    assert args[args.index("--max-time-per-run") + 1] == "1"
    assert [args[i + 1] for i, word in enumerate(args) if word == "--num-concurrency"] == ["1", "4"]
    assert "/exp/one/run" in log(cluster, found["metadata"]["name"])
    cluster.store.delete("benchmarkjobs.ome.io", name, NAMESPACE)
    until(lambda: not cluster.store.list("pods", NAMESPACE, labels=f"benchmark={name}"))


@needs_crds
def test_a_benchmark_that_fails_says_so_and_one_that_cannot_start_does_not(cluster: Emulator, name: str) -> None:
    """Failed with the Job's words; with an image that cannot be pulled: Running for ever."""
    claim(cluster, "results")
    serve(cluster, name)
    ready(cluster, name)
    cluster.faults.add(pods=f"{name}f", exit_at_start=1)
    cluster.faults.add(pods=f"{name}p", pull_fails="denied")
    benchmark(cluster, f"{name}f", name)
    benchmark(cluster, f"{name}p", name)
    until(lambda: job_state(cluster, f"{name}f") == "Failed")
    said = cluster.store.get("benchmarkjobs.ome.io", f"{name}f", NAMESPACE)["status"]["failureMessage"]
    assert said == "Job has reached the specified backoff limit"
    until(lambda: "BackOff" in reasons(cluster, f"{name}p", "Pod"))
    assert job_state(cluster, f"{name}p") == "Running"
    for each in (f"{name}f", f"{name}p"):
        cluster.store.delete("benchmarkjobs.ome.io", each, NAMESPACE)
    until(lambda: not cluster.store.list("pods", NAMESPACE, labels=f"benchmark={name}p"))


@needs_crds
@pytest.mark.parametrize(
    "spec",
    [
        {"trafficScenarios": ["D(100)"]},
        {"outputLocation": {"storageUri": "pvc://results"}},
        {"additionalRequestParams": {"temperature": "hot"}},
        {"additionalRequestParams": {"ignore_eos": "yes"}},
        {"endpoint": {}},
    ],
)
def test_the_webhook_refuses_benchmark_jobs(cluster: Emulator, spec: Object) -> None:
    """Scenarios, locations, parameters and endpoints are checked."""
    with pytest.raises(ApiError, match="denied the request"):
        benchmark(cluster, "refused", "any", **spec)


# The emulator itself


def test_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    """Neither processes nor threads nor files."""
    before = {thread.ident for thread in threading.enumerate()}
    with Emulator(time_scale=120) as small:
        pod(small, "sleeper", ["sleep", "600"])
        until(lambda: small.processes())
        pids, folder = list(small.processes().values()), small.folder
    assert {thread.ident for thread in threading.enumerate()} <= before
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not folder.exists()


def test_containers_end_with_a_test_process_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves no chance to clean up: everything ends all the same."""
    script = """
        import sys, threading
        from tests.emulator.cluster import Emulator
        from tests.test_emulator_world import pod
        from tests.waiting import until
        with Emulator(time_scale=120) as cluster:
            pod(cluster, "sleeper", ["sh", "-c", "sleep 600 & sleep 600"])
            until(lambda: cluster.processes())
            print(*cluster.processes().values(), cluster.folder, flush=True)
            threading.Event().wait()
    """
    argv = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."})
    assert process.stdout is not None
    with process.stdout:
        pid_text, folder = process.stdout.readline().split()
    family = psutil.Process(process.pid).children(recursive=True)
    assert int(pid_text) in [each.pid for each in family]
    process.kill()
    process.wait()
    until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family))
    until(lambda: not Path(folder).exists())


def test_errors_of_the_emulator_are_not_hidden() -> None:
    """Work that fails is kept as a problem, conflicts are tried again, and the loop goes on."""
    loop = Loop()
    loop.start()
    done: list[str] = []
    attempts = iter([ApiError(409, "changed"), None])

    def conflicting() -> None:
        if error := next(attempts):
            raise error
        done.append("conflict")

    loop.soon("fault", lambda: 1 / 0)
    loop.soon("conflict", conflicting)
    loop.soon("gone", lambda: (_ for _ in ()).throw(ApiError(404, "gone")))
    loop.after(0.01, "last", lambda: done.append("last"))
    until(lambda: sorted(done) == ["conflict", "last"])
    loop.stop()
    assert [type(problem) for problem in loop.problems] == [ZeroDivisionError]


def test_an_account_may_only_what_it_is_given(cluster: Emulator) -> None:
    """The kubeconfig of a service account is bound by RBAC."""
    api = config.new_client_from_config(str(cluster.kubeconfig_for("nobody", NAMESPACE)))
    with api, pytest.raises(client.ApiException) as refused:
        client.CoreV1Api(api).list_namespaced_pod(NAMESPACE)
    assert refused.value.status == 403


def test_commands_can_be_run_in_a_pod(cluster: Emulator) -> None:
    """They see what the container sees, and end with the connection."""
    pod(cluster, "host", ["sleep", "600"], container={"env": [{"name": "WHO", "value": "me"}]})
    until(lambda: phase(cluster, "host") == "Running")
    process = cluster.api.hooks.exec(NAMESPACE, "host", "main", ["sh", "-c", "echo $WHO"])
    assert process.communicate(timeout=10)[0] == b"me\n"
    with pytest.raises(ConnectionRefusedError):
        cluster.api.hooks.target(NAMESPACE, "nobody", 80)
    cluster.store.delete("pods", "host", NAMESPACE, grace_s=0)
