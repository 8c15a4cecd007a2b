"""Failure diagnosis case by case, on objects as a cluster shows them."""

from __future__ import annotations

from typing import Any

import pytest

from raytune_autotuner.backends.ome_diagnosis import Diagnosis, Standing, View, diagnose, progress_of

Thing = dict[str, Any]
NAME = "llama-search-0123456789abcdef"
POD_NAME = f"{NAME}-engine-7d9c5b6f4-x2x9k"
CONDITIONS = ("Ready", "EngineReady")


def service(*true: str, conditions: bool = True) -> Thing:
    kinds = {"Ready", "EngineReady", "IngressReady", *true} if conditions else set()
    return {
        "metadata": {"name": NAME, "uid": "svc"},
        "status": {"conditions": [{"type": k, "status": "True" if k in true else "False"} for k in sorted(kinds)]},
    }


def pod(name: str = POD_NAME, **more: Any) -> Thing:
    """A pod that runs and is ready; ``more`` replaces parts of its status or says node and metadata."""
    status = {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
        "containerStatuses": [container(running={})],
    }
    metadata = {"name": name, "uid": name, "labels": {"component": "engine"}, **more.pop("metadata", {})}
    limits = {"limits": {"memory": "16Gi", "nvidia.com/gpu": "1"}}
    spec = {"nodeName": more.pop("node", "gpu-1"), "containers": [{"name": "ome-container", "resources": limits}]}
    return {"metadata": metadata, "spec": spec, "status": {**status, **more}}


def container(name: str = "ome-container", restarts: int = 0, last: Thing | None = None, **state: Any) -> Thing:
    found = {"name": name, "restartCount": restarts, "state": state, "image": "lmsysorg/sglang:v9", "ready": False}
    return {**found, "lastState": {"terminated": last}} if last else found


def died(code: int, reason: str = "Error", message: str = "") -> Thing:
    return {"exitCode": code, "reason": reason, "message": message}


def event(reason: str, message: str, about: str = POD_NAME, type_: str = "Warning", **more: Any) -> Thing:
    return {"reason": reason, "message": message, "type": type_, "involvedObject": {"uid": about}, **more}


def replica_set(made: int = 0, wanted: int = 1, **status: Any) -> Thing:
    return {"metadata": {"uid": "rs"}, "spec": {"replicas": wanted}, "status": {"replicas": made, **status}}


def with_container(*statuses: Thing, **more: Any) -> View:
    return View(service(), (pod(containerStatuses=list(statuses), **more),))


def rejected(name: str = POD_NAME, reason: str = "OutOfnvidia.com/gpu", made_s: int = 0) -> Thing:
    """As a kubelet leaves a pod that it does not admit: on its node, without conditions and containers."""
    words = "Pod was rejected: Node didn't have enough resource: nvidia.com/gpu"
    found = pod(name, metadata={"creationTimestamp": f"2026-01-01T00:00:{made_s:02}Z"})
    return {**found, "status": {"phase": "Failed", "reason": reason, "message": words}}


CRASH_LOOP = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}

CASES: dict[str, tuple[View, Diagnosis | None]] = {
    "nothing there yet": (View(), None),
    "service without a status": (View(service(conditions=False)), None),
    "all is well": (View(service("Ready", "EngineReady"), (pod(),)), None),
    "loading": (View(service(), (pod(conditions=[]),)), None),
    "container being created": (with_container(container(waiting={"reason": "ContainerCreating"})), None),
    "terminated": (
        with_container(container(terminated=died(1))),
        Diagnosis("ended", f"pod {POD_NAME}, ome-container ended: exit code 1", POD_NAME, "ome-container", 1, False),
    ),
    "terminated with a message": (
        with_container(container(terminated=died(2, "ContainerCannotRun", "exec: python3 not found\n"))),
        Diagnosis(
            "ended",
            f"pod {POD_NAME}, ome-container ended: exit code 2, ContainerCannotRun: exec: python3 not found",
            POD_NAME,
            "ome-container",
            2,
            False,
        ),
    ),
    "ended by itself without a fault": (
        with_container(container(terminated=died(0, "Completed"))),
        Diagnosis(
            "ended", f"pod {POD_NAME}, ome-container ended: exit code 0, Completed", POD_NAME, "ome-container", 0
        ),
    ),
    "crash loop": (
        with_container(container(restarts=1, last=died(1), waiting=CRASH_LOOP)),
        Diagnosis("ended", f"pod {POD_NAME}, ome-container ended: exit code 1", POD_NAME, "ome-container", 1, True),
    ),
    "started again already": (
        with_container(container(restarts=1, last=died(139), running={})),
        Diagnosis("ended", f"pod {POD_NAME}, ome-container ended: exit code 139", POD_NAME, "ome-container", -11, True),
    ),
    "killed": (
        with_container(container(terminated=died(137))),
        Diagnosis("ended", f"pod {POD_NAME}, ome-container ended: exit code 137", POD_NAME, "ome-container", -9, False),
    ),
    "main memory": (
        with_container(container(terminated=died(137, "OOMKilled"))),
        Diagnosis(
            "oom_killed",
            f"pod {POD_NAME}, ome-container: OOMKilled, main memory beyond its limit of 16Gi",
            POD_NAME,
            "ome-container",
            -9,
            False,
        ),
    ),
    "main memory, in a crash loop, of a container without a limit": (
        with_container(container("sidecar", 2, died(137, "OOMKilled"), waiting=CRASH_LOOP)),
        Diagnosis(
            "oom_killed",
            f"pod {POD_NAME}, sidecar: OOMKilled, main memory beyond its limit",
            POD_NAME,
            "sidecar",
            -9,
            True,
        ),
    ),
    "startup probe": (
        View(
            service(),
            (pod(containerStatuses=[container(restarts=1, last=died(137), running={})]),),
            (event("Killing", "Container ome-container failed startup probe, will be restarted", type_="Normal"),),
        ),
        Diagnosis(
            "probe",
            f"pod {POD_NAME}, ome-container: Container ome-container failed startup probe, will be restarted",
            POD_NAME,
            "ome-container",
            -9,
            True,
        ),
    ),
    "another pod's probe": (
        View(
            service(),
            (pod(containerStatuses=[container(terminated=died(1))]),),
            (event("Killing", "Container failed liveness probe", "other"),),
        ),
        Diagnosis("ended", f"pod {POD_NAME}, ome-container ended: exit code 1", POD_NAME, "ome-container", 1, False),
    ),
    "a pod that is on its way out": (
        View(
            service(),
            (pod(metadata={"deletionTimestamp": "now"}, containerStatuses=[container(terminated=died(137))]),),
        ),
        None,
    ),
    "init container": (
        with_container(initContainerStatuses=[container("model-init", terminated=died(3))]),
        Diagnosis(
            "init",
            f"pod {POD_NAME}: model-init, which prepares it, ended with exit code 3",
            POD_NAME,
            "model-init",
            3,
            False,
        ),
    ),
    "init container that did its work": (
        with_container(initContainerStatuses=[container("model-init", terminated=died(0, "Completed"))]),
        None,
    ),
    "image": (
        with_container(container(waiting={"reason": "ImagePullBackOff", "message": "no such image"})),
        Diagnosis(
            "image",
            f"pod {POD_NAME}, ome-container: ImagePullBackOff: no such image (lmsysorg/sglang:v9)",
            POD_NAME,
            "ome-container",
        ),
    ),
    "image of an init container": (
        with_container(initContainerStatuses=[container("model-init", waiting={"reason": "ErrImagePull"})]),
        Diagnosis("image", f"pod {POD_NAME}, model-init: ErrImagePull:  (lmsysorg/sglang:v9)", POD_NAME, "model-init"),
    ),
    "secret that there is not": (
        with_container(container(waiting={"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'})),
        Diagnosis(
            "config",
            f'pod {POD_NAME}, ome-container: CreateContainerConfigError: secret "hf" not found',
            POD_NAME,
            "ome-container",
        ),
    ),
    "evicted": (
        View(service(), (pod(phase="Failed", reason="Evicted", message="low on memory", containerStatuses=[]),)),
        Diagnosis("lost", f"pod {POD_NAME}: Evicted: low on memory", POD_NAME),
    ),
    "preempted": (
        View(
            service(),
            (pod(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]),),
        ),
        Diagnosis("lost", f"pod {POD_NAME}: PreemptionByScheduler: ", POD_NAME),
    ),
    "mount that will never work": (
        View(
            service(),
            (pod(containerStatuses=[container(waiting={"reason": "ContainerCreating"})]),),
            (event("FailedMount", 'MountVolume.SetUp failed for volume "m": hostPath type check failed'),),
        ),
        Diagnosis(
            "mount",
            f'pod {POD_NAME}: FailedMount: MountVolume.SetUp failed for volume "m": hostPath type check failed',
            POD_NAME,
        ),
    ),
    "mount that may work in a moment": (
        View(service(), (pod(containerStatuses=[]),), (event("FailedMount", "failed to sync secret cache"),)),
        None,
    ),
    "mount that keeps failing": (
        View(service(), (pod(containerStatuses=[]),), (event("FailedMount", "failed to sync", count=3),)),
        Diagnosis("mount", f"pod {POD_NAME}: FailedMount: failed to sync", POD_NAME),
    ),
    "mount that failed before it worked": (
        View(service(), (pod(),), (event("FailedMount", "object not found", count=9),)),
        None,
    ),
    "quota": (
        View(
            service(),
            events=(event("FailedCreate", 'pods "x" is forbidden: exceeded quota: gpus', "rs"),),
            replica_sets=(replica_set(),),
        ),
        Diagnosis("quota", 'pods "x" is forbidden: exceeded quota: gpus'),
    ),
    "pod security": (
        View(
            service(),
            events=(event("FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted"', "rs"),),
            replica_sets=(replica_set(),),
        ),
        Diagnosis("refused", 'pods "x" is forbidden: violates PodSecurity "restricted"'),
    ),
    "webhook that is away for a moment": (
        View(
            service(),
            events=(event("FailedCreate", "failed calling webhook: connection refused", "rs"),),
            replica_sets=(replica_set(),),
        ),
        None,
    ),
    "webhook that stays away": (
        View(
            service(),
            events=(
                event(
                    "FailedCreate",
                    "failed calling webhook: connection refused",
                    "rs",
                    firstTimestamp="2026-01-01T00:00:00Z",
                    lastTimestamp="2026-01-01T00:00:45Z",
                ),
            ),
            replica_sets=(replica_set(),),
        ),
        Diagnosis("quota", "failed calling webhook: connection refused"),
    ),
    "refusal that is over": (
        View(
            service(), (pod(),), (event("FailedCreate", "exceeded quota", "rs"),), replica_sets=(replica_set(made=1),)
        ),
        None,
    ),
    "refusal told by the Deployment": (
        View(
            service(),
            deployments=(
                {
                    "metadata": {"uid": "d"},
                    "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "denied"}]},
                },
            ),
        ),
        Diagnosis("refused", "denied"),
    ),
    "OME refuses": (
        View(
            service(conditions=False), events=(event("RuntimeValidationError", "runtime does not support it", "svc"),)
        ),
        Diagnosis("ome", "OME says RuntimeValidationError: runtime does not support it"),
    ),
    "OME complained about an earlier service of this name": (
        View(service(conditions=False), events=(event("RuntimeValidationError", "does not support", "svc-before"),)),
        None,
    ),
    "OME complained and went on": (
        View(service(), events=(event("ModelReconcileError", "not found", "svc"),)),
        None,
    ),
    "OME tries again": (View(service(conditions=False), events=(event("InternalError", "conflict", "svc"),)), None),
    "OME tries again and again": (
        View(service(conditions=False), events=(event("InternalError", "conflict", "svc", series={"count": 4}),)),
        Diagnosis("quota", "OME says InternalError: conflict"),
    ),
    "OME says what is no failure": (
        View(
            service(conditions=False),
            events=(
                event("InferenceServiceNotReady", "not ready", "svc"),
                event("InferenceServiceReady", "ready", "svc", "Normal"),
            ),
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_diagnosis(case: str) -> None:
    """What the cluster shows is read as what it means."""
    view, expected = CASES[case]
    assert diagnose(view) == expected


def test_a_lost_pod_explains_its_container() -> None:
    """The containers of an evicted pod ended because of that."""
    view = View(
        service(), (pod(phase="Failed", reason="Evicted", containerStatuses=[container(terminated=died(137))]),)
    )
    found = diagnose(view)
    assert found is not None
    assert found.cause == "lost"


@pytest.mark.parametrize("reason", ["OutOfcpu", "NodeAffinity", "TopologyAffinityError"])
def test_a_pod_that_its_node_rejects_is_replaced(reason: str) -> None:
    """Only when its replacements are rejected as well is the service lost."""
    view = View(service(), (rejected("first", reason), rejected("second", reason, made_s=5), pod()))
    assert diagnose(view) is None
    assert [each["metadata"]["name"] for each in view.live_pods] == [POD_NAME]
    found = diagnose(View(service(), (rejected("last", reason, made_s=40), rejected("first", reason))))
    assert found is not None
    assert (found.cause, found.pod) == ("lost", "last")
    assert found.reason.startswith(f"pod last: {reason}: Pod was rejected")


STANDINGS: dict[str, tuple[View, int, Standing, str]] = {
    "nothing": (View(), 1, Standing("schedule"), "waiting for OME"),
    "OME has begun": (View(service()), 1, Standing("schedule"), "waiting for pods"),
    "a pod without a node": (
        View(
            service(),
            (pod(node=None, conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]),),
        ),
        1,
        Standing("schedule"),
        f"pod {POD_NAME}: 0/3 nodes",
    ),
    "pulling": (
        with_container(container(waiting={"reason": "ContainerCreating"})),
        1,
        Standing("pull"),
        f"pod {POD_NAME} on gpu-1",
    ),
    "no container yet": (with_container(), 1, Standing("pull"), f"pod {POD_NAME} on gpu-1"),
    "loading": (View(service(), (pod(conditions=[]),)), 1, Standing("load"), f"pod {POD_NAME} on gpu-1"),
    "pod ready, service not": (View(service("Ready"), (pod(),)), 1, Standing("load"), "waiting for EngineReady"),
    "ready": (View(service(*CONDITIONS), (pod(),)), 1, Standing("ready"), ""),
    "ready, but a replica is missing": (
        View(service(*CONDITIONS), (pod(),)),
        2,
        Standing("schedule"),
        "waiting for pods",
    ),
    "the least one counts": (
        View(service(*CONDITIONS), (pod(), pod("second", conditions=[]))),
        2,
        Standing("load"),
        "pod second on gpu-1",
    ),
    "a rejected one does not": (
        View(service(*CONDITIONS), (rejected("first"), pod())),
        1,
        Standing("ready"),
        "",
    ),
    "nothing but a rejected one": (
        View(service(), (rejected(),)),
        1,
        Standing("schedule"),
        f"pod {POD_NAME}: OutOfnvidia.com/gpu: Pod was rejected: Node didn't have enough resource: nvidia.com/gpu",
    ),
    "an old pod does not": (
        View(service(*CONDITIONS), (pod(metadata={"deletionTimestamp": "now"}),)),
        1,
        Standing("schedule"),
        "waiting for pods",
    ),
}


@pytest.mark.parametrize("case", STANDINGS)
def test_standing(case: str) -> None:
    """How far a service has come, and what it waits for."""
    view, pods, expected, detail = STANDINGS[case]
    found = progress_of(view, CONDITIONS, pods)
    assert (found, found.detail) == (expected, detail)
