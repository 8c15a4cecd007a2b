"""One pod on a node, from its binding to its end."""

from __future__ import annotations

import shutil
import signal
from concurrent.futures import Executor
from pathlib import Path

from tests.emulator.api.objects import timestamp
from tests.emulator.world.cluster_api import change_status, event, set_condition
from tests.emulator.world.container import Container
from tests.emulator.world.containers import Containers
from tests.emulator.world.context import Context
from tests.emulator.world.faults import PodFaults
from tests.emulator.world.nodes import Object

MOUNT_RETRY_S = 2.0
UNKILLABLE_RETRY_S = 1.0


class Pod:
    """Runs the containers of a pod and reports on them. Works on the world's thread."""

    def __init__(
        self,
        value: Object,
        address: str,
        host: str,
        context: Context,
        containers: Containers,
        images: set[str],
        probing: Executor,
    ) -> None:
        self.value = value
        self.context = context
        self.containers = containers
        self.images = images
        self.probing = probing
        self.address = address
        self.host = host
        self.uid = str(value["metadata"]["uid"])
        self.name = str(value["metadata"]["name"])
        self.namespace = str(value["metadata"]["namespace"])
        self.node = str(value["spec"]["nodeName"])
        self.model = str((value["metadata"].get("labels") or {}).get("base-model-name", ""))
        self.folder: Path = context.folder / "pods" / self.uid
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ending = False
        self.lost = False
        self.gone = False
        self._killed = False
        self._start_time = timestamp()
        self.parts = [Container(self, spec) for spec in value["spec"]["containers"]]

    @property
    def faults(self) -> PodFaults:
        """As they are now."""
        return self.context.faults.of_pod(self.uid, self.name, self.node)

    def begin(self) -> None:
        """Mount, pull, start."""
        if self.ending or self.lost:
            return
        if said := self.faults.mount_fails:
            self.tell("Warning", "FailedMount", said)
            self.context.after(MOUNT_RETRY_S, ("mount", self.uid), self.begin)
        else:
            for part in self.parts:
                part.pull()
        self.changed()

    def end(self, grace_s: float) -> None:
        """SIGTERM now, SIGKILL after the grace; called again with a shorter grace, that holds."""
        if not self.ending:
            self.ending = True
            for part in self.parts:
                if part.running:
                    self.tell("Normal", "Killing", f"Stopping container {part.name}")
                    if not (self.faults.will_not_die or self.faults.slow_to_die):
                        part.signal(signal.SIGTERM)
        self.context.after(grace_s, ("kill", self.uid), self._kill)
        self.changed()

    def _kill(self) -> None:
        if self.faults.will_not_die:
            self.context.after(UNKILLABLE_RETRY_S, ("kill", self.uid), self._kill)
            return
        for part in self.parts:
            part.signal(signal.SIGKILL)

    def drop(self) -> None:
        """The object has gone: nothing may be left of the pod."""
        self.ending = self.gone = True
        for part in self.parts:
            part.signal(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def lose(self) -> None:
        """The node has gone, and what ran there with it."""
        self.lost = True
        for part in self.parts:
            part.signal(signal.SIGKILL)

    def find(self) -> None:
        """The node is back."""
        self.lost = False
        if self.ending:
            self.changed()
            return
        for part in self.parts:
            part.revive()

    def changed(self) -> None:
        """Report, soon; several changes are reported together."""
        self.context.loop.soon(("report", self.uid), self._report)

    def tell(self, kind: str, reason: str, message: str) -> None:
        event(self.context.store, self.value, kind, reason, message, "kubelet")

    def _report(self) -> None:
        if self.lost or self.gone:
            return
        if change_status(self.context.store, "pods", self.name, self.namespace, self._fill) is None:
            return
        if self.ending and not any(part.running for part in self.parts):
            self.context.store.delete("pods", self.name, self.namespace, grace_s=0, uid=self.uid)

    def _fill(self, status: Object) -> None:
        status["phase"] = self._phase()
        status["hostIP"] = self.host
        status.setdefault("startTime", self._start_time)
        if any(part.running or part.restarts for part in self.parts):
            status["podIP"] = self.address
            status["podIPs"] = [{"ip": self.address}]
        over = status["phase"] in ("Succeeded", "Failed")
        ready = all(part.ready for part in self.parts)
        why = "PodCompleted" if over else "" if ready else "ContainersNotReady"
        unready = " ".join(part.name for part in self.parts if not part.ready)
        message = "" if ready or over else f"containers with unready status: [{unready}]"
        set_condition(status, "Initialized", "True")
        for kind in ("Ready", "ContainersReady"):
            set_condition(status, kind, "True" if ready and not over else "False", why, message)
        status["containerStatuses"] = [part.status() for part in self.parts]

    def _phase(self) -> str:
        if all(part.over for part in self.parts):
            failed = any(part.state["terminated"]["exitCode"] for part in self.parts)
            return "Failed" if failed else "Succeeded"
        return "Running" if any(part.running or part.restarts or part.over for part in self.parts) else "Pending"
