"""A real Ray cluster of several nodes on this machine: one ``ray start`` each, as on machines of their own.

Every node has a loopback address of its own (127.0.0.2, 127.0.0.3, …), so the dashboard shows them apart. Each is an
``OwnedProcess``: nothing of it is left when the test ends, however it ends. Ray's GCS listens on every interface
whatever it is told, so the cluster wants a token; what talks to it needs the environment ``RayCluster.access``.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests
from ray.job_submission import JobSubmissionClient

from raytune_autotuner.loopback import free_port
from raytune_autotuner.processes import OwnedProcess
from tests.waiting import happens

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = 80 * 1024 * 1024
START_S = 120.0
STOP_GRACE_S = 2.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # a process per CPU that nobody uses
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # other work on this machine is no reason to kill a trial
    "RAY_raylet_start_wait_time_s": "120",
}


@dataclass(frozen=True)
class Node:
    """What a node declares to Ray, and the environment of everything that runs on it."""

    name: str
    cpus: int = 4
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


HEAD = Node("head", cpus=0)


class RayCluster:
    """A running cluster; made by ``ray_cluster``."""

    def __init__(self, folder: Path, env: Mapping[str, str], token: bool) -> None:
        self.folder = folder
        self.nodes: dict[str, OwnedProcess] = {}
        self._token = secrets.token_hex(32) if token else ""
        self._auth = {"RAY_AUTH_MODE": "disabled"}
        if token:
            (folder / "token").write_text(self._token)
            self._auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._env = {**ours, **QUIET, **self._auth, **env}
        self._head_name = ""
        self._numbers = itertools.count(1)
        self._folder_owner = OwnedProcess(
            ["sleep", "infinity"], log=folder / "owner.log", env=self._env, owner="test-ray/folder", scratch=folder
        )
        self._gcs_port, self._dashboard_port = free_port(), free_port()

    @property
    def gcs(self) -> str:
        """What ``ray.init(address=…)`` takes."""
        return f"{_ip(0)}:{self._gcs_port}"

    @property
    def dashboard(self) -> str:
        """What ``--address`` of the job commands takes."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def access(self) -> dict[str, str]:
        """The environment of a process outside of the cluster that talks to it by ``dashboard``."""
        return dict(self._auth)

    @property
    def driver(self) -> dict[str, str]:
        """The environment of a driver that is no job: ``ray.init()`` in it joins this cluster."""
        return {**QUIET, **self._auth, "RAY_ADDRESS": self.gcs}

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.dashboard, headers=self._headers)

    def start(self, *nodes: Node) -> None:
        """Add nodes, the head before any other, and wait until each is alive; one that was killed may come again.

        The head comes again at the same address, as a cluster that knows nothing of the one before.
        """
        for node in nodes:  # one after the other: a start takes a core for some seconds, and Ray's patience has an end
            for last in (False, False, True):  # on a busy machine a start may end or hang, and the next one does not
                if self._start(node):
                    break
                said = (self.folder / f"{node.name}.log").read_text()
                assert not last, f"{node.name} does not start: {said}"
                self.kill(node.name)

    def _start(self, node: Node) -> bool:
        """Whether it is alive; a worker gets an address that no node had before."""
        self._head_name = self._head_name or node.name
        is_head = node.name == self._head_name
        number = 0 if is_head else next(self._numbers)
        place = self._as_head() if is_head else ["--address", self.gcs]
        # A folder each: nodes that share one would replace each other's copy of a job's files while they are used.
        flags = [*place, *_flags(node, number), f"--temp-dir={self.folder / node.name}"]
        process = self.nodes[node.name] = OwnedProcess(
            [str(BIN / "ray"), "start", "--block", *flags],
            log=self.folder / f"{node.name}.log",
            env={**self._env, **node.env},
            owner=f"test-ray/{node.name}",
            cwd=self.folder,
        )
        in_time = happens(lambda: process.poll() is not None or _ip(number) in self.alive(), START_S)
        return in_time and process.poll() is None

    def kill(self, name: str) -> None:
        """SIGKILL to everything of a node, as when its machine loses power."""
        self.nodes.pop(name).stop(0)

    def processes(self, name: str, word: str) -> list[psutil.Process]:
        """A node's processes with that word in the name or command: ``raylet``, ``gcs_server``, ``ray::Trial``."""
        main = psutil.Process(self.nodes[name].pid)
        guard = main.parent()
        assert guard is not None
        return [p for p in guard.children(recursive=True) if word in _described(p)]

    def alive(self) -> list[str]:
        """The addresses of the nodes that the head holds for alive."""
        try:
            answer = requests.get(f"{self.dashboard}/nodes?view=summary", headers=self._headers, timeout=10)
        except requests.RequestException:
            return []
        found = answer.json()["data"]["summary"] if answer.ok else []
        return [n["raylet"]["nodeManagerAddress"] for n in found if n["raylet"].get("state") == "ALIVE"]

    def close(self) -> None:
        for name in reversed(list(self.nodes)):  # workers before the head, for which they would look
            self.nodes.pop(name).stop(STOP_GRACE_S)
        self._folder_owner.stop(0)

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _as_head(self) -> list[str]:
        ports = {"port": self._gcs_port, "dashboard-port": self._dashboard_port, "ray-client-server-port": free_port()}
        flags = [f"--{name}={port}" for name, port in ports.items()]
        return ["--head", *flags, "--dashboard-host=127.0.0.1"]


@contextmanager
def ray_cluster(
    *workers: Node, head: Node = HEAD, env: Mapping[str, str] | None = None, token: bool = True
) -> Iterator[RayCluster]:
    """A cluster with its dashboard on; ``env`` is for all nodes. This package and ``tests`` can be imported there."""
    folder = Path(tempfile.mkdtemp(prefix="rc-"))  # short: the paths of the sockets in it have a limit
    shared = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **(env or {})}
    cluster = RayCluster(folder, shared, token)
    try:
        cluster.start(head)
        cluster.start(*workers)
        yield cluster
    finally:
        cluster.close()


def _ip(number: int) -> str:
    return f"127.0.0.{number + 2}"


def _flags(node: Node, number: int) -> list[str]:
    return [
        f"--node-ip-address={_ip(number)}",
        f"--num-cpus={node.cpus}",
        f"--resources={json.dumps(dict(node.resources))}",
        f"--labels={','.join(f'{name}={value}' for name, value in node.labels.items())}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--dashboard-agent-listen-port={free_port()}",
        "--num-gpus=0",
        "--disable-usage-stats",
        "--log-color=false",
    ]


def _described(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.name()} {' '.join(process.cmdline())}"
    return ""
