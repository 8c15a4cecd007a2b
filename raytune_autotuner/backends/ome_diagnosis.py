"""Why a service does not get ready, from what the cluster shows of it. Pure: manifests in, a diagnosis out.

OME has no failed state (a failed start looks like a slow one), so pods, their events, the ReplicaSets' and OME's own
are read. What may pass by itself is no failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from raytune_autotuner.kube import Manifest

Cause = Literal["ended", "oom_killed", "probe", "image", "config", "mount", "quota", "refused", "ome", "lost", "init"]
"""``ended``: the engine's process; its log tells why. The others are what they say."""

PULL_FAULTS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
     "RegistryUnavailable"}
)  # fmt: skip
CONFIG_FAULTS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
LOST_REASONS = frozenset(
    {"Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempting", "UnexpectedAdmissionError"}
)
HARMLESS_OME = frozenset({"InferenceServiceNotReady"})
REPEATED_OME = frozenset({"InternalError", "UpdateFailed"})
"""OME's events that say it will try again: a fault only when they keep coming."""
LASTING_MOUNT = re.compile(r"not found|hostPath type check failed|does not exist|no such file|unknown filesystem", re.I)
PASSING_REFUSAL = re.compile(r"failed calling webhook|connection refused|timeout|deadline exceeded|try again", re.I)
REPEATS = 3
LASTING_S = 30.0


@dataclass(frozen=True)
class View:
    """What the cluster shows of one service: only what belongs to it."""

    service: Manifest | None = None
    pods: tuple[Manifest, ...] = ()
    events: tuple[Manifest, ...] = ()
    deployments: tuple[Manifest, ...] = ()
    replica_sets: tuple[Manifest, ...] = ()

    @property
    def live_pods(self) -> list[Manifest]:
        return [pod for pod in self.pods if is_live(pod)]

    @property
    def rejected_pods(self) -> list[Manifest]:
        """The first one first."""
        found = [pod for pod in self.pods if _is_rejected(pod)]
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))


@dataclass(frozen=True)
class Diagnosis:
    """A failure; ``pod`` and ``container`` say whose log to read, ``exit_code`` is negative for a signal."""

    cause: Cause
    reason: str
    pod: str = ""
    container: str = ""
    exit_code: int | None = None
    restarted: bool = False
    """The log to read is that of the container before."""


def is_live(thing: Manifest) -> bool:
    """Whether a pod (or the service) is to be reckoned with: neither on its way out nor rejected by its node."""
    return not thing["metadata"].get("deletionTimestamp") and not _is_rejected(thing)


def _is_rejected(pod: Manifest) -> bool:
    """Whether a kubelet did not admit it (OutOfcpu, NodeAffinity …); it stays as it is, and another one is made."""
    status = pod.get("status") or {}
    failed, reason = status.get("phase") == "Failed", status.get("reason")
    return failed and bool(reason) and reason not in LOST_REASONS and not status.get("containerStatuses")


def diagnose(view: View) -> Diagnosis | None:
    """The first failure that the view shows, the most telling kind first; ``None`` while all may still be well."""
    pods = view.live_pods
    found = (
        *(d for pod in pods for d in _lost(pod)),
        *_rejections(view),
        *(d for pod in pods for d in _containers(pod, view.events)),
        *(d for pod in pods for d in _mounts(pod, view.events)),
        *_refusals(view),
        *_ome(view),
    )
    return found[0] if found else None


def _lost(pod: Manifest) -> Iterator[Diagnosis]:
    """The pod was taken away from the outside."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("phase") == "Failed" and status.get("reason") in LOST_REASONS:
        yield Diagnosis("lost", f"pod {name}: {status['reason']}: {status.get('message', '')}", name)
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            yield Diagnosis("lost", f"pod {name}: {condition.get('reason')}: {condition.get('message', '')}", name)


def _rejections(view: View) -> Iterator[Diagnosis]:
    """Pods that take the place of rejected ones are rejected as well: what the scheduler knows does not get better."""
    if not (pods := view.rejected_pods):
        return
    first, last = (_time(pod["metadata"].get("creationTimestamp")) for pod in (pods[0], pods[-1]))
    if first is not None and last is not None and (last - first).total_seconds() >= LASTING_S:
        yield Diagnosis("lost", _rejection(pods[-1]), pods[-1]["metadata"]["name"])


def _rejection(pod: Manifest) -> str:
    status = pod["status"]
    return f"pod {pod['metadata']['name']}: {status.get('reason')}: {status.get('message', '')}"


def _containers(pod: Manifest, events: Iterable[Manifest]) -> Iterator[Diagnosis]:
    status = pod.get("status") or {}
    for container in status.get("initContainerStatuses") or ():
        yield from _init(pod, container)
    for container in status.get("containerStatuses") or ():
        yield from _ended(pod, container, events)
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        yield from _waiting(pod, container, events)


def _init(pod: Manifest, container: Mapping[str, Any]) -> Iterator[Diagnosis]:
    """A container that prepares the pod (OME injects one) has failed."""
    ended, restarted = _termination(container)
    if ended is not None and ended.get("exitCode"):
        name = pod["metadata"]["name"]
        reason = f"pod {name}: {container['name']}, which prepares it, ended with exit code {ended['exitCode']}"
        yield Diagnosis("init", reason, name, container["name"], _exit_code(ended), restarted)


def _ended(pod: Manifest, container: Mapping[str, Any], events: Iterable[Manifest]) -> Iterator[Diagnosis]:
    ended, restarted = _termination(container)
    if ended is None:
        return
    name, code = pod["metadata"]["name"], _exit_code(ended)
    place = f"pod {name}, {container['name']}"
    if ended.get("reason") == "OOMKilled":
        limit = _memory_limit(pod, container["name"])
        reason = f"{place}: OOMKilled, main memory beyond its limit{f' of {limit}' if limit else ''}"
        yield Diagnosis("oom_killed", reason, name, container["name"], code, restarted)
    elif (killing := _killing(pod, events)) is not None:
        yield Diagnosis("probe", f"{place}: {killing}", name, container["name"], code, restarted)
    else:
        yield Diagnosis("ended", f"{place} ended: {_words(ended)}", name, container["name"], code, restarted)


def _termination(container: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, bool]:
    """How a container ended last, and whether it has been started again since."""
    if (now := (container.get("state") or {}).get("terminated")) is not None:
        return now, False
    before = (container.get("lastState") or {}).get("terminated")
    return (before, True) if before is not None and container.get("restartCount", 0) else (None, False)


def _exit_code(ended: Mapping[str, Any]) -> int | None:
    """As a process's exit code; the runtime adds 128 to the number of a signal."""
    code = ended.get("exitCode")
    return 128 - int(code) if code is not None and 128 < int(code) < 160 else code


def _words(ended: Mapping[str, Any]) -> str:
    message = str(ended.get("message") or "").strip()
    reason = ended.get("reason") or ""
    return (
        f"exit code {ended.get('exitCode')}"
        + (f", {reason}" if reason != "Error" else "")
        + (f": {message}" if message else "")
    )


def _memory_limit(pod: Manifest, container: str) -> str | None:
    for spec in pod["spec"].get("containers") or ():
        if spec["name"] == container:
            return ((spec.get("resources") or {}).get("limits") or {}).get("memory")
    return None


def _killing(pod: Manifest, events: Iterable[Manifest]) -> str | None:
    """The kubelet's word that it ended the container because of a probe."""
    for event in _about(pod, events):
        if event.get("reason") == "Killing" and "failed" in str(event.get("message")):
            return str(event["message"])
    return None


def _waiting(pod: Manifest, container: Mapping[str, Any], events: Iterable[Manifest]) -> Iterator[Diagnosis]:
    waiting = (container.get("state") or {}).get("waiting") or {}
    name, reason = pod["metadata"]["name"], waiting.get("reason")
    words = f"pod {name}, {container['name']}: {reason}: {waiting.get('message', '')}"
    if reason in PULL_FAULTS:
        told = f"{words} ({container.get('image', '')})" + (f": {said}" if (said := _pull_failure(pod, events)) else "")
        yield Diagnosis("image", told, name, container["name"])
    elif reason in CONFIG_FAULTS:
        yield Diagnosis("config", words, name, container["name"])


def _pull_failure(pod: Manifest, events: Iterable[Manifest]) -> str:
    """What the registry said, which a pod that backs off says no more."""
    said = [str(e.get("message")) for e in _about(pod, events) if e.get("reason") == "Failed"]
    return next((words for words in said if words.startswith("Failed to pull image")), "")


def _mounts(pod: Manifest, events: Iterable[Manifest]) -> Iterator[Diagnosis]:
    """Volumes that cannot be mounted; once a container runs, what was said before is over."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if any("waiting" not in (c.get("state") or {}) for c in status.get("containerStatuses") or ()):
        return
    for event in _about(pod, events):
        reason, message = event.get("reason"), str(event.get("message"))
        if reason in ("FailedMount", "FailedAttachVolume") and (LASTING_MOUNT.search(message) or _lasting(event)):
            yield Diagnosis("mount", f"pod {name}: {reason}: {message}", name)


def _refusals(view: View) -> Iterator[Diagnosis]:
    """The API server refuses the pods, which only their ReplicaSet is told."""
    for owner in view.replica_sets:
        wanted, made = owner["spec"].get("replicas", 1), (owner.get("status") or {}).get("replicas", 0)
        for event in _about(owner, view.events) if made < wanted else ():
            if event.get("reason") == "FailedCreate":
                yield from _refusal(str(event.get("message")), _lasting(event))
    for thing in (*view.replica_sets, *view.deployments):
        for condition in (thing.get("status") or {}).get("conditions") or ():
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                yield from _refusal(str(condition.get("message")), False)


def _refusal(message: str, lasting: bool) -> Iterator[Diagnosis]:
    if "exceeded quota" in message:
        yield Diagnosis("quota", message)
    elif not PASSING_REFUSAL.search(message):
        yield Diagnosis("refused", message)
    elif lasting:
        yield Diagnosis("quota", message)


def _ome(view: View) -> Iterator[Diagnosis]:
    """OME's own complaints; they count while it has made nothing of the service."""
    service = view.service
    if service is None or (service.get("status") or {}).get("conditions") or view.pods:
        return
    for event in _about(service, view.events):
        reason = event.get("reason")
        if event.get("type") != "Warning" or reason in HARMLESS_OME:
            continue
        message = str(event.get("message"))
        if reason not in REPEATED_OME and not PASSING_REFUSAL.search(message):
            yield Diagnosis("ome", f"OME says {reason}: {message}")
        elif _lasting(event):
            yield Diagnosis("quota", f"OME says {reason}: {message}")


def _about(thing: Manifest, events: Iterable[Manifest]) -> Iterator[Manifest]:
    for event in events:
        if (event.get("involvedObject") or {}).get("uid") == thing["metadata"]["uid"]:
            yield event


def _lasting(event: Manifest) -> bool:
    """Whether something keeps happening."""
    series = event.get("series") or {}
    count = max(int(event.get("count") or 1), int(series.get("count") or 1))
    first = _time(event.get("firstTimestamp") or event.get("eventTime"))
    last = _time(event.get("lastTimestamp") or series.get("lastObservedTime"))
    return count >= REPEATS or (first is not None and last is not None and (last - first).total_seconds() >= LASTING_S)


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


Stage = Literal["schedule", "pull", "load", "ready"]
STAGES: tuple[Stage, ...] = ("schedule", "pull", "load", "ready")


@dataclass(frozen=True)
class Standing:
    """How far a service has come, by the pod that is least far."""

    stage: Stage
    detail: str = field(default="", compare=False)


def progress_of(view: View, conditions: Iterable[str], pods: int) -> Standing:
    """How far it is; ready when these conditions of its status are true and so many pods are."""
    if len(view.live_pods) < pods:
        return Standing("schedule", _first_words(view))
    found = [_pod_progress(pod) for pod in view.live_pods]
    least = min(found, key=lambda standing: STAGES.index(standing.stage))
    if least.stage != "ready":
        return least
    missing = [name for name in conditions if not _is_true(view.service, name)]
    return Standing("load", f"waiting for {', '.join(missing)}") if missing else Standing("ready")


def _first_words(view: View) -> str:
    if view.service is None or not (view.service.get("status") or {}).get("conditions"):
        return "waiting for OME"
    return _rejection(view.rejected_pods[-1]) if view.rejected_pods else "waiting for pods"


def _pod_progress(pod: Manifest) -> Standing:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled") or {}
    if scheduled.get("status") != "True" and not pod["spec"].get("nodeName"):
        return Standing("schedule", f"pod {name}: {scheduled.get('message') or 'waiting for a node'}")
    containers = status.get("containerStatuses") or ()
    if not containers or any("running" not in (c.get("state") or {}) for c in containers):
        return Standing("pull", f"pod {name} on {pod['spec'].get('nodeName')}")
    if (conditions.get("Ready") or {}).get("status") != "True":
        return Standing("load", f"pod {name} on {pod['spec'].get('nodeName')}")
    return Standing("ready")


def _is_true(service: Manifest | None, name: str) -> bool:
    conditions = ((service or {}).get("status") or {}).get("conditions") or ()
    return any(condition["type"] == name and condition["status"] == "True" for condition in conditions)
