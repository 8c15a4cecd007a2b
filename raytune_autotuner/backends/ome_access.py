"""The way to a service's endpoint: its Service inside the cluster, a forwarded port outside."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import threading
from pathlib import Path
from typing import Protocol

from raytune_autotuner.backends.ome_manifest import Access
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import AutotunerError, TransientError
from raytune_autotuner.kube import POD, SERVICE, Cluster, Manifest
from raytune_autotuner.processes import OwnedProcess

HOST = "127.0.0.1"
FORWARD_LOG = "port-forward.log"
FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")
LOST = re.compile(r"lost connection to pod|error creating (error|forwarding) stream|error upgrading connection", re.I)
"""What kubectl says when the connection that carries all others is gone; a client that hangs up is no such thing."""
OPEN_S = 30.0
POLL_S = 0.05
GRACE_S = 2.0
CHUNK = 65536
KEPT_CHARACTERS = 4096


class Way(Protocol):
    """Leads to the endpoint until it is closed."""

    @property
    def url(self) -> str:
        """Base URL of the endpoint."""

    def check(self) -> None:
        """Raise a TransientError when it leads nowhere any more."""

    def close(self) -> None:
        """Idempotent."""


def open_way(cluster: Cluster, access: Access, namespace: str, service: str, folder: Path, owner: str) -> Way:
    """The way that was chosen; by default the Service when this process runs in the cluster.

    Raises:
        TransientError: there is no such Service (yet), or no port can be forwarded.
    """
    found = cluster.get(SERVICE, service, namespace)
    if found is None:
        raise TransientError(f"there is no Service {namespace}/{service}")
    if access == "service" or (access == "auto" and cluster.inside):
        return Direct(found)
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return Relay(cluster, found)
    return Kubectl(cluster, kubectl, found, folder / FORWARD_LOG, owner)


def port_of(service: Manifest) -> dict[str, object]:
    """The port that takes requests: the one called http, else the first."""
    ports = service["spec"].get("ports") or []
    if not ports:
        raise TransientError(f"Service {service['metadata']['name']} has no port")
    return dict(next((port for port in ports if str(port.get("name", "")).startswith("http")), ports[0]))


class Direct:
    """The Service itself, by its cluster IP, so that no name has to spread first; by name where it has none."""

    def __init__(self, service: Manifest) -> None:
        meta, ip = service["metadata"], service["spec"].get("clusterIP")
        host = ip if ip and ip != "None" else f"{meta['name']}.{meta['namespace']}.svc.cluster.local"
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port_of(service)['port']}"

    def check(self) -> None:
        """See ``Way``."""

    def close(self) -> None:
        """See ``Way``."""


class Kubectl:
    """``kubectl port-forward`` on a free local port; it dies with this process.

    Raises:
        TransientError: no port was forwarded in time.
    """

    def __init__(self, cluster: Cluster, kubectl: str, service: Manifest, log: Path, owner: str) -> None:
        meta = service["metadata"]
        self._what = f"kubectl port-forward to service {meta['namespace']}/{meta['name']}"
        self._log = log
        self._read = log.stat().st_size if log.exists() else 0
        self._words = ""
        self._process = OwnedProcess(
            [
                kubectl,
                *(["--kubeconfig", str(cluster.kubeconfig)] if cluster.kubeconfig else []),
                *(["--context", cluster.context] if cluster.context else []),
                *("port-forward", "--address", HOST, "--namespace", meta["namespace"]),
                *(f"service/{meta['name']}", f":{port_of(service)['port']}"),
            ],
            log=log,
            env=os.environ,
            owner=owner,
        )
        try:
            self.url = f"http://{HOST}:{self._await_port(Deadline.after(OPEN_S))}"
        except BaseException:
            self.close()
            raise

    def _await_port(self, deadline: Deadline) -> str:
        while not deadline.expired:
            ended = self._process.wait(POLL_S) is not None
            if found := FORWARDING.search(self._said()):
                return found[1]
            if ended:
                break
        raise TransientError(f"{self._what} did not start: {self._said().strip()[-500:]}")

    def check(self) -> None:
        """See ``Way``."""
        if self._process.poll() is not None or LOST.search(self._said()):
            raise TransientError(f"{self._what} dropped: {self._said().strip()[-500:]}")

    def close(self) -> None:
        """See ``Way``."""
        self._process.stop(GRACE_S)

    def _said(self) -> str:
        """The end of what it has said; a line for each connection makes that long."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        self._read += len(new)
        self._words = (self._words + new.decode("utf-8", "replace"))[-KEPT_CHARACTERS:]
        return self._words


class Relay:
    """A port forwarded by this process, where there is no kubectl: each connection goes to a pod of the Service."""

    def __init__(self, cluster: Cluster, service: Manifest) -> None:
        self._cluster, self._service = cluster, service
        self._pod, self._port = self._target()
        self._fault: str | None = None
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name=f"relay-{self._pod}", daemon=True)
        self._thread.start()

    def _target(self) -> tuple[str, int]:
        meta, spec = self._service["metadata"], self._service["spec"]
        pods = self._cluster.list(POD, meta["namespace"], spec.get("selector") or {})
        for pod in pods:
            conditions = (pod.get("status") or {}).get("conditions") or ()
            if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
                return pod["metadata"]["name"], _pod_port(pod, port_of(self._service))
        raise TransientError(f"Service {meta['namespace']}/{meta['name']} has no pod that is ready")

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._carry, args=(client,), name=f"relay-{self._pod}", daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """Both directions of one connection, until either end hangs up."""
        try:
            tunnel = self._cluster.open_port(self._service["metadata"]["namespace"], self._pod, self._port)
        except AutotunerError as error:
            self._fault = str(error)
            client.close()
            return
        ends = {client, tunnel.socket}
        self._sockets |= ends
        back = threading.Thread(target=_pump, args=(tunnel.socket, client), name=f"relay-{self._pod}", daemon=True)
        back.start()
        _pump(client, tunnel.socket)
        back.join()
        self._fault = self._fault or tunnel.error()
        self._sockets -= ends
        for end in ends:
            end.close()

    def check(self) -> None:
        """See ``Way``."""
        if self._fault is not None:
            raise TransientError(f"the port-forward to pod {self._pod} dropped: {self._fault}")

    def close(self) -> None:
        """See ``Way``."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        for end in list(self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes from one end, then its end."""
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError, ValueError):
            end.shutdown(how)


def _pod_port(pod: Manifest, port: dict[str, object]) -> int:
    """The number of the port in the pod; a Service may name it."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, str) and not target.isdigit():
        for container in pod["spec"]["containers"]:
            for each in container.get("ports") or ():
                if each.get("name") == target:
                    return int(each["containerPort"])
        raise TransientError(f"pod {pod['metadata']['name']} has no port named {target}")
    return int(str(target))
