"""A cluster in a box: a Kubernetes API over HTTP, OME's controller, nodes, and engines as real processes.

    with Emulator(nodes=[Node("n1", gpus=8)], time_scale=60) as cluster:
        cluster.apply("model-and-runtime.yaml")
        subprocess.run(["kubectl", "--kubeconfig", cluster.kubeconfig, "get", "pods", "-A"])

Everything listens on loopback addresses only; when the block ends, or the process in any way at all, so do all
processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.emulator.api import ApiServer, LogRequest, ome_crds
from tests.emulator.api.errors import ApiError
from tests.emulator.world.cluster_api import ensure
from tests.emulator.world.context import Context
from tests.emulator.world.faults import Faults, PodFaults
from tests.emulator.world.launch import KEPT
from tests.emulator.world.loop import Loop
from tests.emulator.world.nodes import Node
from tests.emulator.world.workloads import STATIC
from tests.emulator.world.world import World

__all__ = ["Emulator", "Faults", "Node", "PodFaults"]

Object = dict[str, Any]
LOCK_PORT = 47_001
LOG_POLL_S = 0.05
GENAI_BENCH = (str(Path(sys.executable).with_name("genai-bench")),)
OME_NAMESPACE = "ome"


class Emulator:
    """The cluster; a context manager.

    ``time_scale`` cluster seconds pass in a second for everything but serving (pulls, loading, probes, grace periods,
    back-off), ``engine_scale`` for serving: a benchmark that measures real seconds wants 1 there.
    ``profile`` names the performance profile of all engines, ``profiles`` those of single models, by the model's name.
    ``programs`` says what a container's command means on this machine, by its first word.
    ``crds`` is the folder of OME's CRDs; without them there is no OME.
    """

    def __init__(
        self,
        nodes: Sequence[Node] = (Node("n1", gpus=8),),
        *,
        time_scale: float = 60.0,
        engine_scale: float = 1.0,
        profile: str = "llama-3.2-1b-a10",
        profiles: Mapping[str, str] | None = None,
        crds: Path | None = None,
        faults: Faults | None = None,
        programs: Mapping[str, Sequence[str]] | None = None,
        pull_s: float = 8.0,
        seed: int = 0,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="emulated-cluster-"))
        self.api = ApiServer(crds or ome_crds())
        self.store = self.api.store
        self.faults = faults or Faults()
        self.faults.api = self.api.faults
        self._lock, self._subnet = _subnet()
        self._context = Context(
            store=self.store,
            loop=Loop(),
            faults=self.faults,
            folder=self.folder,
            time_scale=time_scale,
            engine_scale=engine_scale,
            profile=profile,
            profiles=profiles or {},
            programs={"genai-bench": GENAI_BENCH, **(programs or {})},
            pull_s=pull_s,
            seed=seed,
            _pod_addresses=_addresses(self._subnet),
        )
        self._ome = any(kind.group == "ome.io" for kind in self.store.kinds())
        self.world = World(self._context, list(nodes), ome=self._ome)

    # Life

    def __enter__(self) -> Emulator:
        self.api.start()
        self.api.hooks.logs = self._logs
        self.api.hooks.target = self._target
        self.api.hooks.exec = self._exec
        self.world.start()
        if self._ome:
            _install_ome(self)
        self.kubeconfig = self.api.kubeconfig(self.folder / "kubeconfig", plain=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.world.stop()
        self.api.stop()
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if kind is None and self.problems:
            raise AssertionError(f"the emulated world met {len(self.problems)} errors") from self.problems[0]

    @property
    def problems(self) -> list[BaseException]:
        """Errors of the emulator itself; the end of the block raises them."""
        return self._context.loop.problems

    # For tests

    kubeconfig: Path
    """Of an administrator, over plain HTTP with a bearer token."""

    @property
    def kubeconfig_tls(self) -> Path:
        """The same over HTTPS, for programs that send tokens over nothing else (kubectl)."""
        return self.api.kubeconfig(self.folder / "kubeconfig-tls")

    def kubeconfig_for(self, service_account: str, namespace: str, *, plain: bool = True) -> Path:
        """Of a service account, with the rights that the RBAC objects in the API give it."""
        path = self.folder / f"kubeconfig-{namespace}-{service_account}{'' if plain else '-tls'}"
        return self.api.kubeconfig(path, self.api.token(service_account, namespace), namespace, plain=plain)

    def apply(self, manifest: str | Path) -> list[Object]:
        """Create or replace every object of a YAML text or file; namespaces are made as needed."""
        is_path = isinstance(manifest, Path) or ("\n" not in manifest and manifest.endswith((".yaml", ".yml")))
        text = Path(manifest).read_text() if is_path else str(manifest)
        return [self._put(value) for value in yaml.safe_load_all(text) if value]

    def _put(self, value: Object) -> Object:
        resource = next(
            kind.resource
            for kind in self.store.kinds()
            if kind.kind == value["kind"]
            and value["apiVersion"] in {f"{kind.group}/{v}".lstrip("/") for v in kind.served}
        )
        kind = self.store.kind(resource)
        namespace = value["metadata"].setdefault("namespace", "default") if kind.namespaced else None
        if namespace:
            ensure(self.store, "namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        if self.store.find(resource, value["metadata"]["name"], namespace) is None:
            return self.store.create(resource, value, namespace, validation="Strict")
        return self.store.patch(resource, value["metadata"]["name"], value, namespace)

    def objects(self, kind: str, namespace: str | None = None) -> list[Object]:
        """All objects of a kind, by its name or its resource, e.g. ``Pod`` or ``deployments.apps``."""
        found = next(each for each in self.store.kinds() if kind in (each.kind, each.resource, each.plural))
        return self.store.list(found.resource, namespace)

    def processes(self) -> dict[str, int]:
        """Process ids of the running containers, by ``pod uid/container/restart``."""
        return self.world.containers.pids()

    def signal(self, pod: str, number: int) -> None:
        """Send a signal to a pod's processes: SIGKILL crashes it, SIGSTOP hangs it, SIGCONT lets it go on."""
        for each in list(self.world.kubelet.pods.values()):
            if each.name == pod:
                for part in each.parts:
                    part.signal(number)

    def claim_folder(self, name: str, namespace: str) -> Path:
        """Where the files of a claim are."""
        return self.folder / "claims" / namespace / name

    # The doors of pods

    def _logs(self, asked: LogRequest) -> Iterator[str]:
        found = self.world.kubelet.log(asked.namespace, asked.name, asked.container, asked.previous)
        if found is None:
            return
        pod, path = found
        part = next(part for part in pod.parts if asked.container in ("", part.name))
        seen = part.launch.as_seen if part.launch else str
        text = path.read_text(errors="replace") if path.exists() else ""
        yield seen(
            "".join(text.splitlines(keepends=True)[-asked.tail :] if asked.tail else text if asked.tail is None else [])
        )
        key, position = part.key, len(text.encode("utf-8", "replace"))
        while asked.follow:
            running = part.running and part.key == key and not pod.gone
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(position)
                data = file.read()
                position += len(data)
                yield seen(data.decode("utf-8", "replace"))
            if not running:
                return
            time.sleep(LOG_POLL_S)

    def _target(self, namespace: str, name: str, port: int) -> tuple[str, int]:
        value = self.store.find("pods", name, namespace)
        address = ((value or {}).get("status") or {}).get("podIP")
        if not address or self.faults.lost(value["spec"].get("nodeName", "")):  # type: ignore[index]
            raise ConnectionRefusedError(f"pod {namespace}/{name} cannot be reached")
        return str(address), port

    def _exec(self, namespace: str, name: str, container: str, argv: list[str]) -> subprocess.Popen[bytes]:
        pod = next(
            each for each in self.world.kubelet.pods.values() if (each.namespace, each.name) == (namespace, name)
        )
        part = next(part for part in pod.parts if container in ("", part.name))
        if not part.running or part.launch is None:
            raise FileNotFoundError("the container is not running")
        words = [part.launch.translate(word) for word in argv]
        env = {**{each: os.environ[each] for each in KEPT if each in os.environ}, **part.launch.env}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=part.launch.cwd, preexec_fn=_die_with_parent
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _subnet() -> tuple[socket.socket, int]:
    """A network 127.N.0.0/16 that no other emulator of this machine has, for as long as the socket is open."""
    for number in random.sample(range(1, 64), 63):
        lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lock.bind((f"127.{number}.0.1", LOCK_PORT))
        except OSError:
            lock.close()
            continue
        return lock, number
    raise RuntimeError("63 emulated clusters run on this machine already")


def _addresses(subnet: int) -> Iterator[str]:
    for high in range(256):
        for low in range(2, 255):
            yield f"127.{subnet}.{high}.{low}"


def _install_ome(cluster: Emulator) -> None:
    """What an installation of OME leaves in the cluster, as far as anybody looks at it."""
    labels = {"control-plane": "ome-controller-manager"}
    pod = {"containers": [{"name": "manager", "image": "ghcr.io/moirai-internal/ome-manager:v0.1.5"}]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "ome-controller-manager",
            "namespace": OME_NAMESPACE,
            "labels": labels,
            "annotations": {STATIC: "true"},
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    maps = {
        "inferenceservice-config": {
            "ingress": '{"disableIngressCreation": true}',
            "deploy": '{"defaultDeploymentMode": "RawDeployment"}',
        },
        "benchmarkjob-config": {
            "benchmarkJob": '{"podConfig": {"image": "ghcr.io/moirai-internal/genai-bench:0.1.113"}}'
        },
    }
    cluster.apply(yaml.safe_dump(deployment))
    for name, data in maps.items():
        metadata = {"name": name, "namespace": OME_NAMESPACE}
        cluster.apply(yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}))
    status = {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 1}
    status["conditions"] = [{"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}]  # type: ignore[assignment]
    with contextlib.suppress(ApiError):
        cluster.store.patch(
            "deployments.apps", "ome-controller-manager", {"status": status}, OME_NAMESPACE, subresource="status"
        )
