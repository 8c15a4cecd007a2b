"""Where the kills happen: emulated OME, a real Ray cluster, one experiment, and the driver that is just running it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ray_nodes import NODE_VARIABLE
from raytune_autotuner.storage import Storage
from raytune_autotuner.trial import utc_now
from tests.chaos import driver
from tests.emulator.api.etcd import Change
from tests.emulator.cluster import Emulator
from tests.emulator.cluster import Node as KubernetesNode
from tests.ome_cluster import crds, objects
from tests.ray_cluster import HEAD, ROOT, RayCluster, ray_cluster
from tests.ray_cluster import Node as RayNode
from tests.waiting import until

NODES = {"n1": 2, "n2": 2}
"""GPUs by node, in Kubernetes and in Ray."""
TRIAL_LABEL = "raytune-autotuner/trial"
GPU = "nvidia.com/gpu"
RUNG_S = 0.7
END_S = 400.0
"""How long a driver may take to end in order, or to notice that its cluster is gone."""
IMPATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_worker_niceness": "0"}
"""How long Ray's processes live on without their head, by default a minute; workers yield to nobody."""
KUBERNETES_S_PER_S = 60.0


@dataclass
class Pod:
    """How long a pod held its GPUs."""

    trial: str
    gpus: int
    bound_at: float
    gone_at: float | None = None


@dataclass
class ClusterLog:
    """What happened in the emulated cluster, as it happened."""

    created: list[tuple[float, str]] = field(default_factory=list)
    """InferenceServices by their trial."""
    pods: dict[str, Pod] = field(default_factory=dict)

    def take(self, change: Change) -> None:
        value = change.record.value
        trial = (value["metadata"].get("labels") or {}).get(TRIAL_LABEL, "")
        if change.record.key.resource == "inferenceservices.ome.io" and change.type == "ADDED":
            self.created.append((time.time(), trial))
        if change.record.key.resource == "pods" and trial:
            self._take_pod(change.type, value, trial)

    def _take_pod(self, what: str, value: Mapping[str, Any], trial: str) -> None:
        uid = value["metadata"]["uid"]
        if what == "DELETED" and uid in self.pods:
            self.pods[uid].gone_at = time.time()
        elif uid not in self.pods and value["spec"].get("nodeName"):
            limits = [(each.get("resources") or {}).get("limits") or {} for each in value["spec"]["containers"]]
            self.pods[uid] = Pod(trial, sum(int(limit.get(GPU, 0)) for limit in limits), time.time())

    def gpu_seconds(self) -> Counter[str]:
        """Held, by trial."""
        held: Counter[str] = Counter()
        for pod in list(self.pods.values()):
            held[pod.trial] += pod.gpus * ((pod.gone_at or time.time()) - pod.bound_at)  # type: ignore[assignment]
        return held


class World:
    """Made by ``world``."""

    def __init__(self, folder: Path, emulator: Emulator, order: driver.Order, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.emulator = emulator
        self.log = ClusterLog()
        self.order = order
        self.experiment = ExperimentFolder(Storage(order.storage), order.name)
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.started_at = ""
        """Of the last driver, as trials write it."""
        self.temporary = Path(tempfile.mkdtemp(prefix="ct-"))
        """The temporary folder of everything that is ours; short, because sockets are in it."""
        self._env = {**env, **IMPATIENT, "TMPDIR": str(self.temporary)}
        self._stack = ExitStack()
        self.ray: RayCluster
        (folder / "order.json").write_text(driver.to_json(order), encoding="utf-8")
        emulator.store.etcd.listeners.append(self.log.take)

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        return self.drivers[-1]

    def start_cluster(self) -> None:
        self.ray = self._stack.enter_context(ray_cluster(*map(_ray_node, NODES), env=self._env))

    def restart_cluster(self) -> None:
        for name in list(self.ray.nodes):
            self.ray.kill(name)
        self.ray.start(HEAD, *map(_ray_node, NODES))

    def restart_node(self, name: str) -> None:
        self.ray.kill(name)
        self.ray.start(_ray_node(name))

    def start_driver(self) -> None:
        self.started_at = utc_now()
        self.drivers.append(self.run_driver(*(["--resume", "--force"] if self.drivers else [])))

    def run_driver(self, *flags: str) -> subprocess.Popen[bytes]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env = {**ours, **self._env, **self.ray.driver, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-m", driver.__name__, str(self.folder / "order.json"), *flags]
        with (self.folder / "driver.log").open("ab") as log:
            log.write(f"--- driver {len(self.drivers) + 1} {' '.join(flags)}\n".encode())
            log.flush()
            return subprocess.Popen(command, env=env, cwd=self.folder, stdout=log, stderr=log)

    def await_driver(self) -> int:
        """Its exit code."""
        return self.driver.wait(END_S)

    def workers(self) -> list[psutil.Process]:
        """Of trials."""
        return [each for name in NODES if name in self.ray.nodes for each in self.ray.processes(name, "ray::Trial")]

    def journal(self) -> list[dict[str, Any]]:
        file = Path(self.order.journal)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def answer(self) -> dict[str, Any]:
        """What the last driver that came to its end has found."""
        return dict(json.loads((self.folder / "answer.json").read_text()))

    def driver_log(self) -> str:
        return (self.folder / "driver.log").read_text(errors="replace")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile the experiment does not come to its end, however fast the machine is."""
        file = Path(self.order.journal).with_name(driver.HOLD)
        file.touch()
        yield
        file.unlink()

    def end_cluster(self) -> None:
        self._stack.close()

    def close(self) -> None:
        with suppress(IndexError):
            self.driver.kill()
            self.driver.wait()
        self.end_cluster()
        shutil.rmtree(self.temporary, ignore_errors=True)


def _ray_node(name: str) -> RayNode:
    return RayNode(name, cpus=4, resources={"ome_gpu": NODES[name]}, env={NODE_VARIABLE: name})


@contextmanager
def world(
    folder: Path, *, storage: str | None = None, env: Mapping[str, str] | None = None, rung_s: float = RUNG_S
) -> Iterator[World]:
    """Everything but a driver is running; ``env`` is what drivers, workers and this process need for ``storage``."""
    nodes = [KubernetesNode(name, gpus=gpus) for name, gpus in NODES.items()]
    with (
        patch.dict(os.environ, env or {}),
        Emulator(nodes, time_scale=KUBERNETES_S_PER_S, engine_scale=10.0, crds=crds()) as emulator,
    ):
        emulator.apply(objects())
        (folder / "tokenizer").mkdir()
        order = driver.Order(
            kubeconfig=str(emulator.kubeconfig),
            storage=storage or str(folder / "store"),
            name=f"chaos-{secrets.token_hex(3)}",
            journal=str(folder / "journal"),
            tokenizer=str(folder / "tokenizer"),
            rung_s=rung_s,
        )
        made = World(folder, emulator, order, env or {})
        try:
            made.start_cluster()
            yield made
        finally:
            made.close()


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def strike(process: psutil.Process, number: signal.Signals, patience_s: float = END_S) -> None:
    """Send the signal, and wait for the end that it brings."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
        with suppress(psutil.NoSuchProcess):
            until(lambda: ended(process), patience_s)
