"""The nodes' agents: they run the pods that are bound to their node, and keep the nodes' own objects."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.emulator.api.errors import ApiError
from tests.emulator.world.cluster_api import change_status, event, set_condition
from tests.emulator.world.containers import Containers
from tests.emulator.world.context import Context
from tests.emulator.world.nodes import Node, Object
from tests.emulator.world.pod import Pod

TICK_S = 0.05
"""Real seconds between two looks at which nodes are lost."""
UNREACHABLE_S = 40.0
"""After this the control plane notes that a node does not report …"""
EVICTION_S = 300.0
"""… and after this more it gives its pods up."""
UNREACHABLE = "node.kubernetes.io/unreachable"
PROBERS = 8


class Kubelet:
    """All nodes' kubelets. Works on the world's thread."""

    def __init__(self, nodes: list[Node], context: Context, containers: Containers) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.pods: dict[str, Pod] = {}
        self._context = context
        self._containers = containers
        self._addresses = {node.name: context.pod_address() for node in nodes}
        self._images: dict[str, set[str]] = {node.name: set() for node in nodes}
        self._probing = ThreadPoolExecutor(PROBERS, thread_name_prefix="emulated-probe")
        self._lost: set[str] = set()

    def start(self) -> None:
        for node in self.nodes.values():
            self._context.store.create("nodes", node.object(self._addresses[node.name]))
        self._tick()

    def stop(self) -> None:
        self._probing.shutdown(wait=True, cancel_futures=True)

    def changed(self, value: Object) -> None:
        """A pod was made or changed."""
        metadata, node = value["metadata"], value["spec"].get("nodeName")
        pod = self.pods.get(metadata["uid"])
        if pod is None:
            if node not in self.nodes:
                return
            pod = self.pods[metadata["uid"]] = self._pod(value, node)
            if (value.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                return
            if node in self._lost:
                pod.lost = True
            elif "deletionTimestamp" not in metadata:
                pod.begin()
        pod.value = value
        if "deletionTimestamp" in metadata and not pod.lost:
            pod.end(float(metadata.get("deletionGracePeriodSeconds") or 0))

    def gone(self, value: Object) -> None:
        """A pod's object has gone."""
        if pod := self.pods.pop(value["metadata"]["uid"], None):
            pod.drop()

    def address(self, node: str) -> str:
        return self._addresses[node]

    def log(self, namespace: str, name: str, container: str | None, previous: bool) -> tuple[Pod, Path] | None:
        """A running or ended pod's log file; ``None`` when there is none (yet)."""
        for pod in list(self.pods.values()):
            if (pod.namespace, pod.name) == (namespace, name):
                part = next((part for part in pod.parts if container in (None, "", part.name)), None)
                if part is None or (previous and not part.restarts):
                    return None
                if not previous and not part.log().exists() and part.restarts:
                    return pod, part.log(previous=True)
                return pod, part.log(previous)
        return None

    def write_workers(self, ready: dict[str, list[str]]) -> None:
        """Tell routers their workers: base URLs by InferenceService, ``namespace/name``."""
        for pod in self.pods.values():
            labels = pod.value["metadata"].get("labels") or {}
            if labels.get("component") == "router" and pod.folder.is_dir():
                urls = ready.get(f"{pod.namespace}/{labels.get('ome.io/inferenceservice')}", [])
                file = pod.folder / "workers.json"
                made = file.with_suffix(".new")
                made.write_text(json.dumps(urls))
                made.replace(file)

    def _pod(self, value: Object, node: str) -> Pod:
        host = self._addresses[node]
        address = host if value["spec"].get("hostNetwork") else self._context.pod_address()
        images = self._images[node]
        return Pod(value, address, host, self._context, self._containers, images, self._probing)

    # Nodes

    def _tick(self) -> None:
        now = {name for name in self.nodes if self._context.faults.lost(name)}
        for name in sorted(now - self._lost):
            self._lose(name)
        for name in sorted(self._lost - now):
            self._find(name)
        self._context.loop.after(TICK_S, "nodes", self._tick)

    def _lose(self, name: str) -> None:
        self._lost.add(name)
        for pod in self._on(name):
            pod.lose()
        self._context.after(UNREACHABLE_S, ("unreachable", name), lambda: self._note(name))

    def _note(self, name: str) -> None:
        if name not in self._lost:
            return
        self._report(name, "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.")
        self._taint(name, [{"key": UNREACHABLE, "effect": "NoExecute"}, {"key": UNREACHABLE, "effect": "NoSchedule"}])
        for pod in self._on(name):
            event(self._context.store, pod.value, "Warning", "NodeNotReady", "Node is not ready", "node-controller")
            change_status(self._context.store, "pods", pod.name, pod.namespace, _unready)
        self._context.after(EVICTION_S, ("evict", name), lambda: self._evict(name))

    def _evict(self, name: str) -> None:
        if name not in self._lost:
            return
        for pod in self._on(name):
            try:
                self._context.store.delete("pods", pod.name, pod.namespace, uid=pod.uid)
            except ApiError as error:
                if error.code not in (404, 409):
                    raise

    def _find(self, name: str) -> None:
        self._lost.discard(name)
        self._report(name, "True", "KubeletReady", "kubelet is posting ready status")
        self._taint(name, [dict(taint) for taint in self.nodes[name].taints])
        for pod in self._on(name):
            value = self._context.store.find("pods", pod.name, pod.namespace)
            if value is None:
                continue
            pod.value = value
            metadata = value["metadata"]
            if "deletionTimestamp" in metadata:
                pod.lost = False
                pod.end(0.0)
            else:
                pod.find()

    def _on(self, node: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.node == node]

    def _report(self, name: str, state: str, reason: str, message: str) -> None:
        change_status(
            self._context.store,
            "nodes",
            name,
            "",
            lambda status: _void(set_condition(status, "Ready", state, reason, message)),
        )

    def _taint(self, name: str, taints: list[Object]) -> None:
        self._context.store.patch("nodes", name, {"spec": {"taints": taints or None}})


def _void(_: object) -> None:
    return None


def _unready(status: Object) -> None:
    set_condition(status, "Ready", "False", "NodeNotReady", "")
