"""Looks at everything that a task needs of the cluster, before anything is created, and says what mends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raytune_autotuner.anchor import EXPERIMENT
from raytune_autotuner.backends.ome_runtime import parse_runtime
from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.kube import (
    BASE_MODEL,
    BENCHMARK_JOB,
    CLUSTER_BASE_MODEL,
    CLUSTER_SERVING_RUNTIME,
    CRD,
    INFERENCE_SERVICE,
    NAMESPACE,
    NODE,
    POD,
    PVC,
    SERVING_RUNTIME,
    Cluster,
    Kind,
    Rejected,
    Unreachable,
)
from raytune_autotuner.packing import GpuNode
from raytune_autotuner.rights import Scope, rights

OLDEST = (1, 27)
OME_GROUP, OME_VERSION = "ome.io", "v1beta1"
GPU = "nvidia.com/gpu"
INSTALL_OME = "scripts/install-ome --with-ome"
CONTROLLER = "kubectl -n ome get pods -l control-plane=ome-controller-manager"

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    message: str
    fix: str = ""
    """The command that mends it."""


@dataclass(frozen=True)
class Needs:
    """What a task wants of the cluster."""

    namespace: str
    model: str
    runtime: str | None
    model_kind: Literal["ClusterBaseModel", "BaseModel"] = "ClusterBaseModel"
    runtime_kind: Literal["ClusterServingRuntime", "ServingRuntime"] = "ClusterServingRuntime"
    model_namespace: str | None = None
    """Of a BaseModel; default: the namespace of the trials."""
    gpus: int = 1
    """Of the largest trial, on one node."""
    claim: str | None = None
    """The PersistentVolumeClaim for results, where BenchmarkJobs measure."""
    port_forward: bool = True

    @property
    def benchmark_job(self) -> bool:
        return self.claim is not None


def examine(cluster: Cluster, needs: Needs) -> list[Finding]:
    """All findings, in the order in which they should be mended; never raises for what it finds."""
    findings: list[Finding] = []
    for stage in STAGES:
        for check in stage:
            findings += _guarded(check, cluster, needs)
        if any(each.level == "error" for each in findings):
            break  # what follows could only repeat it in other words
    return findings


def _guarded(check: Check, cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    subject = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check(cluster, needs)
    except Rejected as error:
        yield Finding("error", subject, str(error), _prepare(needs) if error.status == 403 else "")
    except (Unreachable, EnvironmentFault) as error:
        yield Finding("error", subject, str(error), "kubectl cluster-info")


def _api(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    version = cluster.server_version()
    number = re.match(r"v?(\d+)\.(\d+)", version)
    if number is None or tuple(map(int, number.groups())) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        yield Finding("error", "API", f"is Kubernetes {version}; OME needs {wanted} or newer", "upgrade the cluster")
    else:
        yield Finding("ok", "API", f"Kubernetes {version}")


def _ome(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    versions = cluster.api_versions(OME_GROUP)
    if OME_VERSION not in versions:
        served = f"serves only {', '.join(versions)}" if versions else "is not installed"
        yield Finding("error", "OME", f"{OME_GROUP}/{OME_VERSION} is needed; it {served}", INSTALL_OME)
        return
    yield Finding("ok", "OME", f"{OME_GROUP} serves {', '.join(versions)}")
    for kind in (INFERENCE_SERVICE, BENCHMARK_JOB, _model_kind(needs), _runtime_kind(needs)):
        yield _crd(cluster, kind)


def _crd(cluster: Cluster, kind: Kind) -> Finding:
    name = f"{kind.plural}.{kind.group}"
    found = cluster.get(CRD, name)
    subject, fix = f"CRD {name}", INSTALL_OME
    if found is None:
        return Finding("error", subject, "is not installed", fix)
    served = [each["name"] for each in found["spec"]["versions"] if each.get("served")]
    if kind.version not in served:
        return Finding("error", subject, f"does not serve {kind.version}, only {', '.join(served)}", fix)
    if not _is_true(found, "Established"):
        wait = f"kubectl wait --for=condition=Established crd/{name} --timeout=300s"
        return Finding("error", subject, "is not established yet", wait)
    return Finding("ok", subject, f"serves {', '.join(served)}")


def _namespace(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    found = cluster.get(NAMESPACE, needs.namespace)
    subject = f"namespace {needs.namespace}"
    if found is None:
        yield Finding("error", subject, "does not exist", _prepare(needs))
        return
    if "deletionTimestamp" in found["metadata"]:
        yield Finding("error", subject, "is being deleted", f"kubectl get namespace {needs.namespace} -o yaml")
        return
    enforced = (found["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce", "privileged")
    if enforced != "privileged":
        message = f"enforces Pod Security `{enforced}`, which refuses OME's hostPath volume for the model"
        label = "pod-security.kubernetes.io/enforce=privileged"
        yield Finding("error", subject, message, f"kubectl label --overwrite namespace {needs.namespace} {label}")
        return
    yield Finding("ok", subject, "exists")


def _permissions(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    missing: dict[tuple[str, Scope], list[str]] = {}
    wanted = rights(needs.benchmark_job, needs.port_forward)
    for right in wanted:
        namespace = needs.namespace if right.scope == "namespace" else None
        if not cluster.can_i(right.verb, right.kind, namespace, right.subresource):
            missing.setdefault((right.resource, right.scope), []).append(right.verb)
    for (resource, scope), verbs in missing.items():
        where = f"in namespace {needs.namespace}" if scope == "namespace" else "in the whole cluster"
        yield Finding(
            "error", f"permission {resource}", f"may not {', '.join(verbs)} {resource} {where}", _prepare(needs)
        )
    if not missing:
        yield Finding("ok", "permissions", f"all {len(wanted)} that are used")


def _model(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    kind = _model_kind(needs)
    subject = f"{kind.kind} {needs.model}"
    found = cluster.get(kind, needs.model, _model_namespace(needs))
    if found is None:
        yield Finding("error", subject, "does not exist", f"kubectl get {kind.plural}{_in(kind, needs)}")
        return
    if found["spec"].get("disabled"):
        yield Finding("error", subject, "is disabled", f"kubectl edit {kind.plural} {needs.model}{_in(kind, needs)}")
        return
    status = found.get("status") or {}
    state, nodes = status.get("state"), status.get("nodesReady") or []
    if state != "Ready":
        failed = f", failed on {', '.join(status['nodesFailed'])}" if status.get("nodesFailed") else ""
        look = f"kubectl describe {kind.plural} {needs.model}{_in(kind, needs)}"
        yield Finding("error", subject, f"is {state or 'without a state yet'}{failed}; it must be Ready", look)
    else:
        yield Finding("ok", subject, f"is Ready on {', '.join(nodes) or 'no node by name'}")
    if not found["spec"]["storage"].get("path"):
        message = "has no spec.storage.path, so pods get no MODEL_PATH"
        look = f"kubectl edit {kind.plural} {needs.model}{_in(kind, needs)}"
        yield Finding("error" if needs.benchmark_job else "warning", subject, message, look)


def _runtime(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    if needs.runtime is None:
        yield Finding("error", "runtime", "the task names none", "set base_runtime; kubectl get clusterservingruntimes")
        return
    kind = _runtime_kind(needs)
    subject = f"{kind.kind} {needs.runtime}"
    found = cluster.get(kind, needs.runtime, needs.namespace)
    if found is None:
        yield Finding("error", subject, "does not exist", f"kubectl get {kind.plural}{_in(kind, needs)}")
        return
    edit = f"kubectl edit {kind.plural} {needs.runtime}{_in(kind, needs)}"
    if found["spec"].get("disabled"):
        yield Finding("error", subject, "is disabled", edit)
        return
    try:
        parse_runtime(found, needs.runtime_kind)
    except SpecError as error:
        yield Finding("error", subject, error.problems[0].message, edit)
        return
    model = cluster.get(_model_kind(needs), needs.model, _model_namespace(needs))
    if model is not None and (reason := unsupported(found["spec"], model["spec"])):
        yield Finding("error", subject, reason, edit)
    else:
        yield Finding("ok", subject, f"exists and supports {needs.model}")


def unsupported(runtime: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Why OME would not serve the model with the runtime, as far as both say; empty when nothing speaks against it."""
    formats = runtime.get("supportedModelFormats") or []
    if not formats:
        return "names no supportedModelFormats"
    if any(_suits(each, model) for each in formats):
        return ""
    offered = "; ".join(sorted({_described(each) for each in formats}))
    return f"supports {offered}; the model is {_described(model)}"


def _suits(offered: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """What the model does not say yet (the model agent fills it in) or the runtime leaves open is no obstacle."""
    return all(
        not wanted or not given or wanted == given
        for wanted, given in zip(_traits(offered), _traits(model), strict=True)
    )


def _traits(of: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("modelFormat", "modelFramework")
    return (
        *((of.get(name) or {}).get("name", "") for name in names),
        of.get("modelArchitecture", ""),
        of.get("quantization", ""),
    )


def _described(of: Mapping[str, Any]) -> str:
    return " ".join(filter(None, _traits(of))) or "unknown"


def _results_claim(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    if needs.claim is None:
        return
    subject = f"PersistentVolumeClaim {needs.claim}"
    found = cluster.get(PVC, needs.claim, needs.namespace)
    if found is None:
        yield Finding(
            "error",
            subject,
            f"does not exist in namespace {needs.namespace}",
            _prepare(needs),
        )
        return
    look = f"kubectl -n {needs.namespace} describe pvc {needs.claim}"
    phase = (found.get("status") or {}).get("phase", "Pending")
    modes = found["spec"].get("accessModes") or []
    if phase == "Lost":
        yield Finding("error", subject, "has lost its volume", look)
    elif phase != "Bound":
        yield Finding(
            "warning", subject, f"is {phase}; that is right only where its storage class waits for a pod", look
        )
    elif "ReadWriteMany" not in modes:
        message = f"is {', '.join(modes)}: benchmarks on different nodes cannot use it at the same time"
        yield Finding("warning", subject, message, "use a storage class with ReadWriteMany")
    else:
        yield Finding("ok", subject, "is Bound")


def _gpus(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    model = cluster.get(_model_kind(needs), needs.model, _model_namespace(needs)) or {}
    holding = (model.get("status") or {}).get("nodesReady") or []
    nodes = [node for node in gpu_nodes(cluster) if not holding or node.name in holding]
    said = (
        ", ".join(f"{n.name} has {n.allocatable} GPUs, {n.free} free" for n in nodes)
        or "no node with the model has any"
    )
    look = "kubectl describe nodes | grep -A8 Allocated"
    if all(node.allocatable < needs.gpus for node in nodes):
        yield Finding("error", "GPUs", f"no node can ever hold a trial of {needs.gpus}: {said}", look)
    elif all(node.free < needs.gpus for node in nodes):
        yield Finding("warning", "GPUs", f"no node has {needs.gpus} free now, so trials will wait: {said}", look)
    else:
        yield Finding("ok", "GPUs", said)


PRODUCT = "nvidia.com/gpu.product"
"""The label by which NVIDIA's GPU feature discovery tells the kind of a node's GPUs."""


def gpu_nodes(cluster: Cluster, selector: Mapping[str, str] | None = None, but_for: str | None = None) -> list[GpuNode]:
    """The nodes with these labels that have GPUs and take pods; those of the experiment ``but_for`` do not count."""
    used: dict[str, int] = {}
    for pod in cluster.list(POD):
        ours = but_for is not None and (pod["metadata"].get("labels") or {}).get(EXPERIMENT) == but_for
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if not (ours or ended) and (node := pod["spec"].get("nodeName")):
            used[node] = used.get(node, 0) + _pod_gpus(pod["spec"])
    usable = [
        n
        for n in cluster.list(NODE, None, selector)
        if not (n.get("spec") or {}).get("unschedulable") and _is_true(n, "Ready")
    ]
    counts = {
        n["metadata"]["name"]: int(((n.get("status") or {}).get("allocatable") or {}).get(GPU, 0)) for n in usable
    }
    products = {n["metadata"]["name"]: (n["metadata"].get("labels") or {}).get(PRODUCT, "") for n in usable}
    found = sorted((name, count) for name, count in counts.items() if count)
    return [GpuNode(name, count, count - used.get(name, 0), products[name]) for name, count in found]


def _pod_gpus(spec: Mapping[str, Any]) -> int:
    def asked(container: Mapping[str, Any]) -> int:
        return int(((container.get("resources") or {}).get("limits") or {}).get(GPU, 0))

    together = sum(map(asked, spec.get("containers") or []))
    return max([together, *map(asked, spec.get("initContainers") or [])])


def _webhooks(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    """Ask for an InferenceService that is not kept: the answer has been through OME's webhooks."""
    manifest = {
        "apiVersion": INFERENCE_SERVICE.api_version,
        "kind": INFERENCE_SERVICE.kind,
        "metadata": {"name": "raytune-autotuner-doctor", "namespace": needs.namespace},
        "spec": {
            "model": {"kind": needs.model_kind, "name": needs.model},
            "runtime": {"kind": needs.runtime_kind, "name": needs.runtime},
            "engine": {"minReplicas": 1, "maxReplicas": 1},
        },
    }
    try:
        cluster.create(INFERENCE_SERVICE, manifest, dry_run=True)
    except Unreachable as error:
        yield Finding("error", "OME's webhooks", str(error), CONTROLLER)
    except Rejected as error:
        if "dry run" in str(error):
            yield Finding("warning", "OME's webhooks", f"cannot be tried: {error}", CONTROLLER)
        else:
            yield Finding(
                "error", "OME's webhooks", f"refuse an InferenceService of this model and runtime: {error}", CONTROLLER
            )
    else:
        yield Finding("ok", "OME's webhooks", "answer")


def _prepare(needs: Needs) -> str:
    """Makes the namespace, the service account with its rights, and the claim."""
    return f"scripts/install-ome --namespace {needs.namespace}"


def _model_kind(needs: Needs) -> Kind:
    return CLUSTER_BASE_MODEL if needs.model_kind == "ClusterBaseModel" else BASE_MODEL


def _runtime_kind(needs: Needs) -> Kind:
    return CLUSTER_SERVING_RUNTIME if needs.runtime_kind == "ClusterServingRuntime" else SERVING_RUNTIME


def _model_namespace(needs: Needs) -> str:
    return needs.model_namespace or needs.namespace


def _in(kind: Kind, needs: Needs) -> str:
    return f" -n {needs.namespace}" if kind.namespaced else ""


def _is_true(thing: Mapping[str, Any], condition: str) -> bool:
    conditions = (thing.get("status") or {}).get("conditions") or []
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)


Check = Callable[[Cluster, Needs], Iterator[Finding]]
STAGES: tuple[tuple[Check, ...], ...] = (
    (_api,),
    (_ome, _namespace, _permissions),
    (_model, _runtime, _results_claim, _gpus),
    (_webhooks,),
)
"""A stage is looked at only when those before it are free of errors."""
