"""Binds pods to nodes, and says why where it cannot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from tests.emulator.api.objects import at
from tests.emulator.api.store import Store
from tests.emulator.world.cluster_api import change_status, event, set_condition
from tests.emulator.world.nodes import GPU, Object, quantity, requests

OVER = ("Succeeded", "Failed")


class Scheduler:
    """Looks at one pod after the other, when it comes and whenever there may be room."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def schedule(self, namespace: str, name: str) -> None:
        """Bind a pod that has no node yet."""
        pod = self._store.find("pods", name, namespace)
        if pod is None or pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        nodes = self._store.list("nodes")
        used = _used(self._store.list("pods"))
        if fault := self._claim_fault(pod):
            self._refuse(pod, f"0/{len(nodes)} nodes are available: {fault}. {_preemption(len(nodes))}")
            return
        reasons: Counter[str] = Counter()
        fitting = []
        for node in nodes:
            here = used[node["metadata"]["name"]]
            faults = _faults(pod, node, here)
            reasons.update(faults)
            if not faults:
                free = quantity(at(node, "status.allocatable").get(GPU, 0)) - here.get(GPU, 0.0)
                fitting.append((free, node["metadata"]["name"]))
        if not fitting:
            said = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
            self._refuse(pod, f"0/{len(nodes)} nodes are available: {said}. {_preemption(len(nodes))}")
            return
        self._bind(pod, max(fitting)[1])

    def waiting(self) -> list[tuple[str, str]]:
        """The pods without a node, the oldest first."""
        pods = [pod for pod in self._store.list("pods") if not pod["spec"].get("nodeName")]
        pods.sort(key=lambda pod: int(pod["metadata"]["resourceVersion"]))
        return [(pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in pods]

    def _bind(self, pod: Object, node: str) -> None:
        pod["spec"]["nodeName"] = node
        metadata = self._store.update("pods", pod)["metadata"]
        change_status(
            self._store,
            "pods",
            metadata["name"],
            metadata["namespace"],
            lambda status: _scheduled(status, "True", "", ""),
        )
        said = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
        event(self._store, pod, "Normal", "Scheduled", said, "default-scheduler")

    def _refuse(self, pod: Object, message: str) -> None:
        metadata = pod["metadata"]
        event(self._store, pod, "Warning", "FailedScheduling", message, "default-scheduler")
        change_status(
            self._store,
            "pods",
            metadata["name"],
            metadata["namespace"],
            lambda status: _scheduled(status, "False", "Unschedulable", message),
        )

    def _claim_fault(self, pod: Object) -> str:
        for volume in pod["spec"].get("volumes") or ():
            if name := at(volume, "persistentVolumeClaim.claimName"):
                claim = self._store.find("persistentvolumeclaims", name, pod["metadata"]["namespace"])
                if claim is None:
                    return f'persistentvolumeclaim "{name}" not found'
                if at(claim, "status.phase") != "Bound":
                    return "pod has unbound immediate PersistentVolumeClaims"
        return ""


def _scheduled(status: Object, state: str, reason: str, message: str) -> None:
    set_condition(status, "PodScheduled", state, reason, message)


def _preemption(nodes: int) -> str:
    return f"preemption: 0/{nodes} nodes are available: {nodes} Preemption is not helpful for scheduling."


def _used(pods: list[Object]) -> Mapping[str, dict[str, float]]:
    """What the pods of each node request; those that are ending hold it until they are gone."""
    used: dict[str, dict[str, float]] = defaultdict(dict)
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if node and (pod.get("status") or {}).get("phase") not in OVER:
            for name, amount in {**requests(pod["spec"]), **_host_ports(pod)}.items():
                used[node][name] = used[node].get(name, 0.0) + amount
    return used


def _host_ports(pod: Object) -> dict[str, float]:
    if not pod["spec"].get("hostNetwork"):
        return {}
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or ()]
    return {f"port/{port['containerPort']}": 1.0 for port in ports}


def _faults(pod: Object, node: Object, used: Mapping[str, float]) -> list[str]:
    """Why a pod does not go onto a node, in the scheduler's words."""
    spec = pod["spec"]
    taints = at(node, "spec.taints") or ()
    for taint in taints:
        if taint["effect"] != "PreferNoSchedule" and not _tolerated(taint, spec.get("tolerations") or ()):
            return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
    if at(node, "spec.unschedulable"):
        return ["node(s) were unschedulable"]
    labels = node["metadata"].get("labels") or {}
    if not _selected(spec, labels):
        return ["node(s) didn't match Pod's node affinity/selector"]
    if any(used.get(port) for port in _host_ports(pod)):
        return ["node(s) didn't have free ports for the requested pod ports"]
    allocatable = at(node, "status.allocatable") or {}
    return [
        f"Insufficient {name}"
        for name, amount in requests(spec).items()
        if used.get(name, 0.0) + amount > quantity(allocatable.get(name, 0 if "/" in name else "1e15"))
    ]


def _tolerated(taint: Object, tolerations: Any) -> bool:
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        exists = toleration.get("operator", "Equal") == "Exists"
        if exists and toleration.get("key") in (None, "", taint["key"]):
            return True
        if toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def _selected(spec: Object, labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    path = "nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
    terms = at(spec.get("affinity") or {}, path)
    return not terms or any(all(_expression(each, labels) for each in term["matchExpressions"]) for term in terms)


def _expression(expression: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    tests = {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }
    return tests[expression["operator"]]
