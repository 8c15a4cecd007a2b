"""Services: their endpoints, the proxy behind their addresses, and the workers of routers."""

from __future__ import annotations

from typing import Any

from tests.emulator.api.objects import at
from tests.emulator.api.store import Store
from tests.emulator.world.cluster_api import condition, matches
from tests.emulator.world.containers import Helper
from tests.emulator.world.kubelet import Kubelet
from tests.emulator.world.nodes import Object

Listen = tuple[str, int]
Target = list[Any]


class Services:
    """Recomputes everything on a change of a pod or a Service, and tells only what is new."""

    def __init__(self, store: Store, kubelet: Kubelet) -> None:
        self._store = store
        self._kubelet = kubelet
        self._proxy = Helper("tests.emulator.world.proxy", lambda _: None)
        self._told: dict[Listen, list[Target]] = {}

    def stop(self) -> None:
        self._proxy.stop()

    def update(self) -> None:
        """Bring the proxy and the routers in line with the pods that are ready."""
        pods = [pod for pod in self._store.list("pods") if _serves(pod)]
        wanted: dict[Listen, list[Target]] = {}
        for service in self._store.list("services"):
            selected = service["spec"].get("selector")
            address = service["spec"].get("clusterIP")
            if not selected or address in (None, "", "None"):
                continue
            namespace = service["metadata"]["namespace"]
            behind = [
                pod
                for pod in pods
                if pod["metadata"]["namespace"] == namespace and matches(pod["metadata"].get("labels"), selected)
            ]
            for port in service["spec"].get("ports") or ():
                wanted[(address, port["port"])] = [[pod["status"]["podIP"], target_port(port, pod)] for pod in behind]
        for listen in {*wanted, *self._told}:
            targets = wanted.get(listen, [])
            if self._told.get(listen, []) != targets:
                self._proxy.tell({"listen": list(listen), "targets": targets})
        self._told = wanted
        self._kubelet.write_workers(_workers(pods))


def target_port(port: Object, pod: Object) -> int:
    """The pod's port behind a Service's."""
    target = port.get("targetPort", port["port"])
    if str(target).isdigit():
        return int(str(target))
    ports = [each for container in pod["spec"]["containers"] for each in container.get("ports") or ()]
    return next((int(each["containerPort"]) for each in ports if each.get("name") == target), int(port["port"]))


def _serves(pod: Object) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    return (condition(pod, "Ready") or {}).get("status") == "True" and bool(at(pod, "status.podIP"))


def _workers(pods: list[Object]) -> dict[str, list[str]]:
    """Base URLs of what a router passes requests to: the decoders where there are some, else the engines."""
    found: dict[str, dict[str, list[str]]] = {}
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        service, component = labels.get("ome.io/inferenceservice"), labels.get("component")
        if service and component in ("engine", "decoder"):
            ports = pod["spec"]["containers"][0].get("ports") or [{"containerPort": 8080}]
            url = f"http://{pod['status']['podIP']}:{ports[0]['containerPort']}"
            place = found.setdefault(f"{pod['metadata']['namespace']}/{service}", {})
            place.setdefault(component, []).append(url)
    return {name: parts.get("decoder") or parts.get("engine", []) for name, parts in found.items()}
