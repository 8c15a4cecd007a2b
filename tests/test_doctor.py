"""What doctor finds in a cluster, and that it names what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner.doctor import Finding, Needs, examine, gpu_nodes, unsupported
from raytune_autotuner.kube import (
    BENCHMARK_JOB,
    CLUSTER_BASE_MODEL,
    CLUSTER_SERVING_RUNTIME,
    CRD,
    INFERENCE_SERVICE,
    NAMESPACE,
    NODE,
    POD,
    PVC,
    Kind,
    Rejected,
    Unauthorized,
    Unreachable,
)
from raytune_autotuner.rights import Right, rights
from tests.fakes.cluster import FakeCluster, Manifest

NS = "autotuner"
CONFIGS = Path(__file__).parent.parent / "configs" / "kubernetes"
NEEDS = Needs(NS, "llama-3-2-1b-instruct", "llama-3-2-1b-instruct-rt", claim="raytune-autotuner-results")


def documents(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((CONFIGS / name).read_text()))


def crd(kind: Kind, established: str = "True", versions: tuple[str, ...] = ("v1beta1",)) -> Manifest:
    return {
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {"versions": [{"name": version, "served": True} for version in versions]},
        "status": {"conditions": [{"type": "Established", "status": established}]},
    }


def node(name: str, gpus: int, ready: str = "True", **spec: Any) -> Manifest:
    status = {"allocatable": {"nvidia.com/gpu": str(gpus)}, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"name": name}, "spec": spec, "status": status}


def pod(name: str, on: str, gpus: int, phase: str = "Running") -> Manifest:
    container = {"name": "c", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    meta = {"name": name, "namespace": "elsewhere"}
    return {"metadata": meta, "spec": {"nodeName": on, "containers": [container]}, "status": {"phase": phase}}


@pytest.fixture
def cluster() -> FakeCluster:
    """A cluster that has everything, made of the files that a user applies."""
    made = FakeCluster()
    for kind in (INFERENCE_SERVICE, BENCHMARK_JOB, CLUSTER_BASE_MODEL, CLUSTER_SERVING_RUNTIME):
        made.put(CRD, crd(kind))
    (namespace,), (model,), (runtime,), (claim,) = map(
        documents, ("namespace.yaml", "model.yaml", "runtime.yaml", "results-pvc.yaml")
    )
    made.put(NAMESPACE, namespace)
    made.put(CLUSTER_BASE_MODEL, {**model, "status": {"state": "Ready", "nodesReady": ["n1"]}})
    made.put(CLUSTER_SERVING_RUNTIME, runtime)
    made.put(PVC, {**claim, "status": {"phase": "Bound"}})
    made.put(NODE, node("n1", 8))
    return made


def faults(cluster: FakeCluster, needs: Needs = NEEDS) -> list[Finding]:
    return [finding for finding in examine(cluster, needs) if finding.level != "ok"]


def change(cluster: FakeCluster, kind: Kind, name: str, edit: Callable[[Manifest], None]) -> None:
    found = cluster.get(kind, name, NS if kind.namespaced else None)
    assert found is not None
    edit(found)
    cluster.put(kind, found)


def test_a_cluster_that_has_everything_is_well(cluster: FakeCluster) -> None:
    """Every subject is looked at, and nothing is left behind by it."""
    findings = examine(cluster, NEEDS)
    assert {finding.level for finding in findings} == {"ok"}
    subjects = " ".join(finding.subject for finding in findings)
    for subject in (
        "API",
        "OME",
        "namespace",
        "permissions",
        "ClusterBaseModel",
        "Runtime",
        "Claim",
        "GPUs",
        "webhooks",
    ):
        assert subject in subjects
    assert cluster.objects(INFERENCE_SERVICE) == []


def _denied(verb: str, resource: str, scope: str = "cluster") -> Callable[[FakeCluster], None]:
    return lambda cluster: cluster.denied.add((verb, resource, "", scope))


CASES: dict[str, tuple[Callable[[FakeCluster], Any], str, str, str]] = {
    "old cluster": (lambda c: setattr(c, "version", "v1.26.9"), "error", "v1.26.9; OME needs 1.27", "upgrade"),
    "odd version": (lambda c: setattr(c, "version", "main"), "error", "main; OME needs 1.27", "upgrade"),
    "no answer": (
        lambda c: c.faults.append(("server_version", None, Unreachable("connection refused"))),
        "error",
        "connection refused",
        "cluster-info",
    ),
    "no credentials": (
        lambda c: c.faults.append(("server_version", None, Unauthorized("expired token"))),
        "error",
        "expired token",
        "cluster-info",
    ),
    "no OME": (lambda c: c.groups.clear(), "error", "is not installed", "install-ome --with-ome"),
    "other OME": (lambda c: c.groups.update({"ome.io": ("v2",)}), "error", "serves only v2", "install-ome"),
    "no CRD": (
        lambda c: c.delete(CRD, "benchmarkjobs.ome.io", None),
        "error",
        "is not installed",
        "install-ome --with-ome",
    ),
    "CRD of another version": (
        lambda c: c.put(CRD, crd(BENCHMARK_JOB, versions=("v1",))),
        "error",
        "does not serve v1beta1, only v1",
        "install-ome",
    ),
    "CRD not established": (
        lambda c: c.put(CRD, crd(INFERENCE_SERVICE, "False")),
        "error",
        "not established",
        "kubectl wait .*crd/inferenceservices.ome.io",
    ),
    "no namespace": (
        lambda c: c.delete(NAMESPACE, NS, None),
        "error",
        "does not exist",
        "install-ome --namespace autotuner",
    ),
    "ending namespace": (
        lambda c: change(c, NAMESPACE, NS, lambda n: n["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z")),
        "error",
        "is being deleted",
        "kubectl get namespace",
    ),
    "strict namespace": (
        lambda c: change(
            c,
            NAMESPACE,
            NS,
            lambda n: n["metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "baseline"}),
        ),
        "error",
        "baseline.*hostPath",
        "kubectl label --overwrite namespace autotuner",
    ),
    "no model": (
        lambda c: c.delete(CLUSTER_BASE_MODEL, NEEDS.model, None),
        "error",
        "does not exist",
        "kubectl get clusterbasemodels",
    ),
    "disabled model": (
        lambda c: change(c, CLUSTER_BASE_MODEL, NEEDS.model, lambda m: m["spec"].update(disabled=True)),
        "error",
        "is disabled",
        "kubectl edit clusterbasemodels",
    ),
    "model on its way": (
        lambda c: change(
            c,
            CLUSTER_BASE_MODEL,
            NEEDS.model,
            lambda m: m.update(status={"state": "In_Transit", "nodesFailed": ["n2"]}),
        ),
        "error",
        "is In_Transit, failed on n2",
        "kubectl describe clusterbasemodels",
    ),
    "model without a path": (
        lambda c: change(c, CLUSTER_BASE_MODEL, NEEDS.model, lambda m: m["spec"]["storage"].pop("path")),
        "error",
        "MODEL_PATH",
        "kubectl edit",
    ),
    "no runtime": (
        lambda c: c.delete(CLUSTER_SERVING_RUNTIME, str(NEEDS.runtime), None),
        "error",
        "does not exist",
        "kubectl get clusterservingruntimes",
    ),
    "disabled runtime": (
        lambda c: change(c, CLUSTER_SERVING_RUNTIME, str(NEEDS.runtime), lambda r: r["spec"].update(disabled=True)),
        "error",
        "is disabled",
        "kubectl edit clusterservingruntimes",
    ),
    "runtime with a script": (
        lambda c: change(
            c,
            CLUSTER_SERVING_RUNTIME,
            str(NEEDS.runtime),
            lambda r: r["spec"]["engineConfig"]["runner"].update(command=["bash", "-lc"], args=["python3 -m x --a 1"]),
        ),
        "error",
        "bash",
        "kubectl edit clusterservingruntimes",
    ),
    "runtime for other models": (
        lambda c: change(
            c,
            CLUSTER_SERVING_RUNTIME,
            str(NEEDS.runtime),
            lambda r: r["spec"]["supportedModelFormats"][0].update(modelArchitecture="Qwen3ForCausalLM"),
        ),
        "error",
        "supports .*Qwen3ForCausalLM; the model is .*LlamaForCausalLM",
        "kubectl edit",
    ),
    "no claim": (
        lambda c: c.delete(PVC, str(NEEDS.claim), NS),
        "error",
        "does not exist in namespace autotuner",
        "install-ome --namespace autotuner",
    ),
    "pending claim": (
        lambda c: c.set_status(PVC, str(NEEDS.claim), NS, phase="Pending"),
        "warning",
        "is Pending",
        "describe pvc raytune-autotuner-results",
    ),
    "lost claim": (
        lambda c: c.set_status(PVC, str(NEEDS.claim), NS, phase="Lost"),
        "error",
        "has lost its volume",
        "describe pvc",
    ),
    "claim of one node": (
        lambda c: change(c, PVC, str(NEEDS.claim), lambda p: p["spec"].update(accessModes=["ReadWriteOnce"])),
        "warning",
        "ReadWriteOnce",
        "ReadWriteMany",
    ),
    "GPUs taken": (
        lambda c: c.put(POD, pod("other", "n1", 8)),
        "warning",
        "no node has 1 free now.*n1 has 8 GPUs, 0 free",
        "kubectl describe nodes",
    ),
    "no GPUs": (lambda c: c.put(NODE, node("n1", 0)), "error", "no node can ever hold a trial of 1", "describe nodes"),
    "GPUs without the model": (
        lambda c: (c.put(NODE, node("n1", 0)), c.put(NODE, node("n2", 8))),
        "error",
        "no node with the model has any",
        "describe nodes",
    ),
    "webhooks away": (
        lambda c: c.faults.append(("create", INFERENCE_SERVICE, Unreachable("failed calling webhook"))),
        "error",
        "failed calling webhook",
        "control-plane=ome-controller-manager",
    ),
    "webhooks refuse": (
        lambda c: c.faults.append(("create", INFERENCE_SERVICE, Rejected("denied the request: no", 400))),
        "error",
        "denied the request",
        "control-plane=ome-controller-manager",
    ),
    "webhooks without dry run": (
        lambda c: c.faults.append(("create", INFERENCE_SERVICE, Rejected("does not support dry run", 400))),
        "warning",
        "cannot be tried",
        "control-plane=ome-controller-manager",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_found_with_what_mends_it(cluster: FakeCluster, case: str) -> None:
    """Exactly one finding, of the right level, with a command."""
    breaks, level, message, fix = CASES[case]
    breaks(cluster)
    (finding,) = faults(cluster)
    assert finding.level == level
    assert_found(message, finding.message)
    assert_found(fix, finding.fix)


def assert_found(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), f"{pattern!r} is not in {text!r}"


def test_a_task_without_a_runtime_is_told_so(cluster: FakeCluster) -> None:
    """The baseline comes from the runtime."""
    (finding,) = faults(cluster, replace(NEEDS, runtime=None))
    assert finding.subject == "runtime"


def test_what_is_not_needed_is_not_missed(cluster: FakeCluster) -> None:
    """Without BenchmarkJobs there has to be no claim; inside the cluster nothing is forwarded."""
    cluster.delete(PVC, str(NEEDS.claim), NS)
    cluster.denied |= {
        ("get", "persistentvolumeclaims", "", "namespace"),
        ("create", "pods", "portforward", "namespace"),
    }
    assert faults(cluster, replace(NEEDS, claim=None, port_forward=False)) == []


def test_errors_of_the_first_stage_are_not_repeated_by_the_next(cluster: FakeCluster) -> None:
    """Without OME there is nothing to say about its models."""
    cluster.groups.clear()
    assert not any("Model" in finding.subject for finding in examine(cluster, NEEDS))


def test_free_gpus_are_counted_per_node() -> None:
    """By what pods ask for that have not ended; nodes that are closed or not ready do not count."""
    cluster = FakeCluster()
    for each in (
        node("a", 8),
        node("b", 4),
        node("closed", 8, unschedulable=True),
        node("down", 8, "Unknown"),
        node("cpu", 0),
    ):
        cluster.put(NODE, each)
    for each in (pod("p1", "a", 2), pod("p2", "a", 1), pod("p3", "a", 4, "Succeeded"), pod("p4", "b", 4)):
        cluster.put(POD, each)
    waiting = pod("p5", "a", 1)
    del waiting["spec"]["nodeName"]
    cluster.put(POD, waiting)
    initial = pod("p6", "a", 0)
    initial["spec"]["initContainers"] = pod("", "", 3)["spec"]["containers"]
    cluster.put(POD, initial)
    assert [(n.name, n.allocatable, n.free) for n in gpu_nodes(cluster)] == [("a", 8, 2), ("b", 4, 0)]


@pytest.mark.parametrize(
    ("formats", "reason"),
    [
        ([], "names no supportedModelFormats"),
        ([{"modelFormat": {"name": "gguf"}}], "supports gguf; the model is safetensors X"),
        ([{"modelFormat": {"name": "gguf"}}, {"modelFormat": {"name": "safetensors"}}], ""),
        ([{}], ""),
    ],
)
def test_what_neither_side_says_is_no_obstacle(formats: list[Manifest], reason: str) -> None:
    """A runtime suits unless something that both name differs."""
    model = {"modelFormat": {"name": "safetensors"}, "modelArchitecture": "X"}
    assert unsupported({"supportedModelFormats": formats}, model) == reason


def granted() -> Iterator[tuple[str, str, str]]:
    """(scope, resource.group, verb) of the shipped rights."""
    for document in documents("rbac.yaml"):
        for rule in document.get("rules", []):
            scope = "namespace" if document["kind"] == "Role" else "cluster"
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        yield scope, f"{resource}.{group}".rstrip("."), verb


def test_the_shipped_rights_are_exactly_those_that_are_used() -> None:
    """None is missing, none is too many, none is given twice."""
    shipped = list(granted())
    assert sorted(shipped) == sorted((r.scope, r.resource, r.verb) for r in rights())


@pytest.mark.parametrize("right", rights(), ids=lambda r: f"{r.scope}-{r.verb}-{r.resource}")
def test_every_missing_right_is_named(cluster: FakeCluster, right: Right) -> None:
    """The resource, the verb and the place, with the command that grants it."""
    cluster.denied.add((right.verb, right.kind.plural, right.subresource, right.scope))
    (named,) = [f for f in faults(cluster) if f.subject == f"permission {right.resource}"]
    where = "namespace autotuner" if right.scope == "namespace" else "the whole cluster"
    assert named.message == f"may not {right.verb} {right.resource} in {where}"
    assert named.fix == "scripts/install-ome --namespace autotuner"


def test_the_shipped_files_name_one_service_account() -> None:
    """The bindings and the CronJob mean the account that is made, in the namespace that is made."""
    account, *_ = documents("rbac.yaml")
    name = {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": NS}
    bindings = [d for d in documents("rbac.yaml") if d["kind"].endswith("Binding")]
    assert [b["subjects"] for b in bindings] == [[name], [name]]
    (job,) = documents("gc-cronjob.yaml")
    template = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert template["serviceAccountName"] == account["metadata"]["name"]
    assert template["containers"][0]["command"] == ["raytune-autotuner", "gc", "--yes", "--namespace", NS]
