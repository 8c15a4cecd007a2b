"""One container of a pod: pulled, started, probed, restarted, ended."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.emulator.api.objects import timestamp
from tests.emulator.world.launch import Launch, NotMade, Surroundings, launch
from tests.emulator.world.nodes import Object
from tests.emulator.world.probes import probe

if TYPE_CHECKING:
    from tests.emulator.world.pod import Pod

BACKOFF_S = (10.0, 300.0)
"""Of pulls and restarts: the first and the longest one."""
RESTART_S = 1.0
MIN_PERIOD_S = 0.05
"""Real seconds between two probes."""
OOM_AFTER_S = 2.0
RETRY_S = 5.0


class Container:
    """Works on the world's thread; whatever changes calls ``pod.changed``."""

    def __init__(self, pod: Pod, spec: Object) -> None:
        self.pod = pod
        self.spec = spec
        self.name = str(spec["name"])
        self.state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self.last: Object = {}
        self.restarts = 0
        self.ready = False
        self.started = False
        self.running = False
        self.launch: Launch | None = None
        self._attempts = 0
        self._oom = False
        self._failed: dict[str, int] = {}

    @property
    def over(self) -> bool:
        """It has ended and will not be started again."""
        return "terminated" in self.state and not self._restarts(self.state["terminated"]["exitCode"])

    @property
    def key(self) -> str:
        return f"{self.pod.uid}/{self.name}/{self.restarts}"

    def log(self, previous: bool = False) -> Path:
        return self.pod.folder / f"{self.name}.{self.restarts - previous}.log"

    def status(self) -> Object:
        """The entry among the pod's ``containerStatuses``."""
        return {
            "name": self.name,
            "image": self.spec.get("image", ""),
            "imageID": f"{self.spec.get('image', '')}@sha256:0" if self.running else "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
            **({"containerID": f"containerd://{self.key}"} if self.running else {}),
        }

    # Image

    def pull(self) -> None:
        """Get the image, then start."""
        faults = self.pod.faults
        image = self.spec.get("image", "")
        if not faults.pull_fails and faults.pull_s is None and image in self.pod.images:
            self.pod.tell("Normal", "Pulled", f'Container image "{image}" already present on machine')
            self.start()
            return
        self.pod.tell("Normal", "Pulling", f'Pulling image "{image}"')
        seconds = self.pod.context.pull_s if faults.pull_s is None else faults.pull_s
        self.pod.context.after(seconds, ("pull", self.key, self._attempts), self._pulled)

    def _pulled(self) -> None:
        if self.pod.ending or self.pod.lost:
            return
        image = self.spec.get("image", "")
        if not (said := self.pod.faults.pull_fails):
            self.pod.images.add(image)
            self.pod.tell("Normal", "Pulled", f'Successfully pulled image "{image}"')
            self.start()
            return
        message = f'failed to pull and unpack image "{image}": {said}'
        self.pod.tell("Warning", "Failed", f'Failed to pull image "{image}": {message}')
        self.pod.tell("Warning", "Failed", "Error: ErrImagePull")
        self._wait("ErrImagePull", message)
        delay = min(BACKOFF_S[0] * 2**self._attempts, BACKOFF_S[1])
        self._attempts += 1
        self.pod.context.after(min(1.0, delay / 2), ("back-off", self.key, self._attempts), self._pull_back_off)
        self.pod.context.after(delay, ("pull again", self.key, self._attempts), self._pull_again)

    def _pull_back_off(self) -> None:
        if "waiting" in self.state and not self.pod.ending:
            image = self.spec.get("image", "")
            self.pod.tell("Normal", "BackOff", f'Back-off pulling image "{image}"')
            self.pod.tell("Warning", "Failed", "Error: ImagePullBackOff")
            self._wait("ImagePullBackOff", f'Back-off pulling image "{image}"')

    def _pull_again(self) -> None:
        if "waiting" in self.state and not self.pod.ending and not self.pod.lost:
            self.pull()

    def _wait(self, reason: str, message: str) -> None:
        self.state = {"waiting": {"reason": reason, "message": message}}
        self.pod.changed()

    # Process

    def start(self) -> None:
        """Start the process."""
        if self.pod.ending or self.pod.lost:
            return
        try:
            self.launch = launch(self.pod.value, self.spec, self._surroundings())
        except NotMade as fault:
            self.pod.tell("Warning", "Failed", f"Error: {fault.message}")
            self._wait(fault.reason, fault.message)
            self.pod.context.after(RETRY_S, ("make again", self.key), self.start)
            return
        faults = self.pod.faults
        argv = self.launch.argv
        if faults.exit_at_start is not None:
            argv = ("sh", "-c", f"exit {faults.exit_at_start}")
        self._oom = faults.oom_killed_at_start
        key = self.key
        self.pod.containers.start(
            key, argv, self.launch.env, self.log(), self.launch.cwd, lambda code: self._hear(key, code)
        )
        self.running = True
        self.state = {"running": {"startedAt": timestamp()}}
        self.started = "startupProbe" not in self.spec
        self.ready = self.started and "readinessProbe" not in self.spec
        self._failed.clear()
        self.pod.tell("Normal", "Started", f"Started container {self.name}")
        if self._oom:
            self.pod.context.after(OOM_AFTER_S, ("oom", key), lambda: self.signal(signal.SIGKILL, key))
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if kind in self.spec:
                delay = float(self.spec[kind].get("initialDelaySeconds", 0))
                self.pod.context.after(delay, (kind, key), self._prober(kind, key))
        self.pod.changed()

    def _surroundings(self) -> Surroundings:
        pod, faults = self.pod, self.pod.faults
        switches = pod.context.switches(pod.model, pod.node)
        switches = replace(
            switches,
            crash_at_start=faults.crash_at_start,
            hang_at_start=faults.hang_at_start,
            crash_after_requests=faults.crash_after_requests,
            hang_after_requests=faults.hang_after_requests,
            error_share=faults.error_share,
            error_code=faults.error_code,
            ignore_sigterm=faults.slow_to_die,
            overrides=faults.overrides,
        )
        folder = pod.context.folder
        return Surroundings(
            store=pod.context.store,
            claims=folder / "claims",
            host=folder / "nodes" / pod.node,
            pod=pod.folder,
            address=pod.address,
            switches=switches,
            programs=pod.context.programs,
        )

    def signal(self, number: int, key: str | None = None) -> None:
        """Signal the process, if it is still the one that was meant."""
        if self.running and (key is None or key == self.key):
            self.pod.containers.signal(self.key, number)

    def _hear(self, key: str, code: int) -> None:
        """In the thread of the runtime."""
        self.pod.context.loop.soon(("ended", key), lambda: self._end(key, code))

    def _end(self, key: str, code: int) -> None:
        if key != self.key or not self.running:
            return
        self.running = self.ready = self.started = False
        if self.pod.lost:
            return  # nobody is there to report it
        reason = "OOMKilled" if self._oom else "Error" if code else "Completed"
        started = self.state.get("running", {}).get("startedAt", timestamp())
        ended = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": timestamp()}
        self.state = {"terminated": {**ended, "containerID": f"containerd://{key}"}}
        if not self.pod.ending and self._restarts(code):
            delay = RESTART_S if not self.restarts else min(BACKOFF_S[0] * 2 ** (self.restarts - 1), BACKOFF_S[1])
            if self.restarts:
                self.pod.context.after(RESTART_S, ("crash loop", key), lambda: self._back_off(key, delay))
            self.pod.context.after(delay, ("restart", key), lambda: self._restart(key))
        self.pod.changed()

    def _restarts(self, code: int) -> bool:
        policy = self.pod.value["spec"].get("restartPolicy", "Always")
        return policy == "Always" or (policy == "OnFailure" and code != 0)

    def _back_off(self, key: str, delay: float) -> None:
        if key != self.key or "terminated" not in self.state or self.pod.ending:
            return
        name = f"{self.pod.name}_{self.pod.namespace}({self.pod.uid})"
        self.last = self.state
        message = f"back-off {delay:.0f}s restarting failed container={self.name} pod={name}"
        self.pod.tell("Warning", "BackOff", f"Back-off restarting failed container {self.name} in pod {name}")
        self._wait("CrashLoopBackOff", message)

    def _restart(self, key: str) -> None:
        if key != self.key or self.running or self.pod.ending or self.pod.lost:
            return
        if "terminated" in self.state:
            self.last = self.state
        self.restarts += 1
        self.start()

    def revive(self) -> None:
        """The node is back after it was lost: what ran there has gone."""
        self.running = False
        self.last = {"terminated": {"exitCode": 255, "reason": "Unknown", "finishedAt": timestamp()}}
        self.restarts += 1
        self.start()

    # Probes

    def _prober(self, kind: str, key: str) -> Callable[[], None]:
        def check() -> None:
            if key != self.key or not self.running or self.pod.ending:
                return
            if kind == "startupProbe" and self.started:
                return
            if kind != "startupProbe" and not self.started:
                self._again(kind, key)
                return
            self.pod.probing.submit(self._probe, kind, key)

        return check

    def _again(self, kind: str, key: str) -> None:
        context = self.pod.context
        period_s = max(MIN_PERIOD_S, float(self.spec[kind].get("periodSeconds", 10)) / context.time_scale)
        context.loop.after(period_s, (kind, key), self._prober(kind, key))

    def _probe(self, kind: str, key: str) -> None:
        """In a thread of the probers."""
        fault = probe(self.spec[kind], self.spec, self.pod.address, self.pod.context.time_scale)
        self.pod.context.loop.soon(("probed", kind, key), lambda: self._probed(kind, key, fault))

    def _probed(self, kind: str, key: str, fault: str | None) -> None:
        if key != self.key or not self.running or self.pod.lost:
            return
        if kind == "readinessProbe" and fault is None and self.pod.faults.never_ready:
            fault = "HTTP probe failed with statuscode: 503"
        self._failed[kind] = self._failed.get(kind, 0) + 1 if fault else 0
        before = (self.started, self.ready)
        if fault:
            self._fail(kind, fault)
        elif kind == "startupProbe":
            self.started = True
            self.ready = "readinessProbe" not in self.spec
        elif kind == "readinessProbe":
            self.ready = True
        if before != (self.started, self.ready):
            self.pod.changed()
        self._again(kind, key)

    def _fail(self, kind: str, fault: str) -> None:
        limit = int(self.spec[kind].get("failureThreshold", 3))
        word = kind.removesuffix("Probe").capitalize()
        if kind != "readinessProbe" or self.ready or self._failed[kind] == 1:
            self.pod.tell("Warning", "Unhealthy", f"{word} probe failed: {fault}")
        if self._failed[kind] < limit:
            return
        if kind == "readinessProbe":
            self.ready = False
        else:
            said = f"Container {self.name} failed {word.lower()} probe, will be restarted"
            self.pod.tell("Normal", "Killing", said)
            self.signal(signal.SIGKILL)
