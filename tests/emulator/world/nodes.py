"""The machines of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Node:
    """One machine. Models are on every node unless they are listed."""

    name: str
    gpus: int = 0
    cpus: int = 64
    memory_gib: int = 512
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    models: tuple[str, ...] | None = None
    """Names of the models that its agent has loaded; ``None``: all."""

    def object(self, address: str) -> Object:
        capacity = {"cpu": str(self.cpus), "memory": f"{self.memory_gib}Gi", "pods": "110"}
        if self.gpus:
            capacity[GPU] = str(self.gpus)
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", **self.labels}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "spec": {"taints": [dict(taint) for taint in self.taints]} if self.taints else {},
            "status": {
                "capacity": capacity,
                "allocatable": dict(capacity),
                "addresses": [
                    {"type": "InternalIP", "address": address},
                    {"type": "Hostname", "address": self.name},
                ],
                "conditions": [ready("True", "KubeletReady", "kubelet is posting ready status")],
                "nodeInfo": {"kubeletVersion": "v1.31.0"},
            },
        }


def ready(status: str, reason: str, message: str) -> Object:
    return {"type": "Ready", "status": status, "reason": reason, "message": message}


BYTES = {
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "m": 1e-3,
}


def quantity(text: Any) -> float:
    """The number that a Kubernetes quantity says, e.g. ``500m`` or ``16Gi``."""
    word = str(text)
    digits = word.rstrip("kKMGTim")
    return float(digits) * BYTES[word[len(digits) :]]


def requests(pod_spec: Object) -> dict[str, float]:
    """What all containers of a pod request together; a limit without a request is one."""
    total: dict[str, float] = {"pods": 1.0}
    for container in pod_spec.get("containers", ()):
        resources = container.get("resources") or {}
        for name, amount in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            total[name] = total.get(name, 0.0) + quantity(amount)
    return total
