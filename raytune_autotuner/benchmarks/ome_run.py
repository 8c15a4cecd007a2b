"""One BenchmarkJob while it runs, with what OME never reports about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raytune_autotuner.benchmarks.ome_reader import CLAIM, broken, stuck
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError, TrialInfeasible
from raytune_autotuner.kube import BENCHMARK_JOB, EVENT, POD, Cluster, Event
from raytune_autotuner.kube.watch import has_labels

CHECK_EVERY_S = 1.0
CLAIM_S = 60.0
"""How long a claim may stay unbound while a pod waits for it."""


@dataclass(frozen=True)
class Place:
    """Which BenchmarkJob, and the claim that its pod mounts."""

    namespace: str
    name: str
    claim: str


@dataclass(frozen=True)
class Limits:
    """OME has none: seconds until the pod runs, and for it to run."""

    start_s: float
    run_s: float


class JobRun:
    """One BenchmarkJob while it runs."""

    def __init__(
        self,
        cluster: Cluster,
        place: Place,
        limits: Limits,
        deadline: Deadline,
        check: Callable[[], object],
    ) -> None:
        self.pod: Mapping[str, Any] | None = None
        self.message = ""
        """OME's, when the job has failed."""
        self.check = check
        self._cluster = cluster
        self._place = place
        self._limits = limits
        self._deadline = deadline
        self._limit = Deadline.after(limits.start_s)
        self._unbound: Deadline | None = None
        self._running = False

    @property
    def node(self) -> str | None:
        return self.pod["spec"].get("nodeName") if self.pod else None

    def until_ended(self) -> str:
        """Wait for the job's end; its state (Completed or Failed).

        Raises:
            EnvironmentFault: the pod can never run (image, claim).
            TrialInfeasible: ``timeout``; it runs for longer than it may.
            TransientError: it was not started in time, or somebody removed it.
        """
        interests = {BENCHMARK_JOB: self._is_it, POD: has_labels(pods_of(self._place.name))}
        with self._cluster.watch_all(self._place.namespace, interests) as changes:
            checked = Deadline.after(CHECK_EVERY_S)
            while True:
                event = changes.wait(checked)
                if event is not None and (state := self._take_in(event)):
                    self._find_pod()
                    return state
                if checked.expired:
                    self.check()
                    checked = Deadline.after(CHECK_EVERY_S)
                self._check_time()

    def _find_pod(self) -> None:
        """Look for the pod: the job's watch may be ahead of the pods'."""
        if self.pod is None:
            pods = self._cluster.list(POD, self._place.namespace, pods_of(self._place.name))
            self.pod = pods[-1] if pods else None

    def _is_it(self, thing: Mapping[str, Any]) -> bool:
        return bool(thing["metadata"]["name"] == self._place.name)

    def _take_in(self, event: Event) -> str | None:
        """The job's state, once it has ended."""
        status = event.object.get("status") or {}
        if event.kind == POD:
            self._take_in_pod(event.object)
        elif event.type == "DELETED":
            raise TransientError(f"somebody removed BenchmarkJob {self._place.namespace}/{self._place.name}")
        elif status.get("state") in ("Completed", "Failed"):
            self.message = str(status.get("failureMessage") or "")
            return str(status["state"])
        return None

    def _take_in_pod(self, pod: Mapping[str, Any]) -> None:
        self.pod = pod
        if reason := broken(pod):
            raise EnvironmentFault(f"BenchmarkJob {self._place.name} cannot run, its pod says {reason}; {self._look()}")
        waits_for_claim = bool(CLAIM.search(stuck(pod)))
        self._unbound = (self._unbound or Deadline.after(CLAIM_S)) if waits_for_claim else None
        if not self._running and (pod.get("status") or {}).get("phase") not in (None, "Pending"):
            self._running = True
            self._limit = Deadline.after(self._limits.run_s)

    def _check_time(self) -> None:
        if self._unbound is not None and self._unbound.expired:
            claim = f"{self._place.namespace}/{self._place.claim}"
            reason = stuck(self.pod) if self.pod else ""
            look = f"kubectl -n {self._place.namespace} describe pvc {self._place.claim}"
            raise EnvironmentFault(f"PersistentVolumeClaim {claim} is pending for {CLAIM_S:.0f} s: {reason}; {look}")
        if self._deadline.expired:
            raise TrialInfeasible("timeout", f"the load did not end within the trial's {self._deadline.seconds:.0f} s")
        if self._limit.expired and self._running:
            raise TrialInfeasible("timeout", f"the load did not end within {self._limit.seconds:.0f} s")
        if self._limit.expired:
            raise TransientError(
                f"BenchmarkJob {self._place.name} did not start within {self._limit.seconds:.0f} s: {self._why()}"
            )

    def _why(self) -> str:
        """Why there is no running pod."""
        self._find_pod()
        if self.pod is None:
            controller = "kubectl -n ome logs -l control-plane=ome-controller-manager --tail=50"
            return f"OME has made no pod for it and says why only in its log; {controller}"
        name = self.pod["metadata"]["name"]
        events = self._cluster.list(EVENT, self._place.namespace, fields=f"involvedObject.name={name}")
        warnings = [f"{each.get('reason')}: {each.get('message')}" for each in events if each.get("type") == "Warning"]
        return stuck(self.pod) or "; ".join(warnings[-3:]) or f"its pod is pending; {self._look()}"

    def _look(self) -> str:
        return f"kubectl -n {self._place.namespace} describe pods -l benchmark={self._place.name}"


def pods_of(name: str) -> dict[str, str]:
    """OME's label on the pods of a BenchmarkJob."""
    return {"benchmark": name}
