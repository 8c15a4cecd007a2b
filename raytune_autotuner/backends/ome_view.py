"""What the cluster shows of one service, kept up to date by watches that all services of this process share."""

from __future__ import annotations

import contextlib
import math

from raytune_autotuner.backends.ome_diagnosis import View
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import TransientError
from raytune_autotuner.kube import (
    DEPLOYMENT,
    EVENT,
    INFERENCE_SERVICE,
    POD,
    REPLICA_SET,
    Cluster,
    Kind,
    Manifest,
    Matches,
    has_labels,
)

SERVICE_LABEL = "ome.io/inferenceservice"
COMPONENT_LABEL = "component"
FORCE = ((1, 0.5), (0, 0.8))
"""Seconds that pods are given to end, each from a share of a removal's time on."""


class Observer:
    """Follows one service by name; close it."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self._interests = interests(name)
        self._objects: dict[tuple[Kind, str], Manifest] = {}
        self._subscription = cluster.watch_all(namespace, self._interests)

    def take_in(self, deadline: Deadline) -> None:
        """Wait for news until the deadline, and take in all that has come.

        Raises:
            Rejected: the watch is forbidden.
        """
        try:
            while (event := self._subscription.wait(deadline)) is not None:
                key = (event.kind, event.object["metadata"]["uid"])
                if event.type == "DELETED":
                    self._objects.pop(key, None)
                else:
                    self._objects[key] = event.object
                deadline = Deadline.after(0)
        except TransientError:  # the server is away; what is known may be old by the time it is back
            self._subscription.close()
            self._objects.clear()
            self._subscription = self._cluster.watch_all(self._namespace, self._interests)

    @property
    def view(self) -> View:
        services = self._of(INFERENCE_SERVICE)
        return View(
            service=services[-1] if services else None,
            pods=self._of(POD),
            events=self._of(EVENT),
            deployments=self._of(DEPLOYMENT),
            replica_sets=self._of(REPLICA_SET),
        )

    def close(self) -> None:
        self._subscription.close()

    def _of(self, wanted: Kind) -> tuple[Manifest, ...]:
        return tuple(thing for (kind, _), thing in self._objects.items() if kind == wanted)


def interests(name: str) -> dict[Kind, Matches]:
    """What belongs to a service: itself, what carries OME's label of it, and events about things named after it."""
    labelled = has_labels({SERVICE_LABEL: name})

    def is_about(event: Manifest) -> bool:
        about = str((event.get("involvedObject") or {}).get("name", ""))
        return about == name or about.startswith(f"{name}-")

    return {
        INFERENCE_SERVICE: lambda thing: bool(thing["metadata"]["name"] == name),
        POD: labelled,
        EVENT: is_about,
        DEPLOYMENT: labelled,
        REPLICA_SET: labelled,
    }


def remove(cluster: Cluster, namespace: str, name: str, deadline: Deadline, patience_s: float = math.inf) -> None:
    """Delete a service and wait until it and all its pods are gone, which only then hold no GPUs any more.

    After half of the time, or of ``patience_s`` when that is less, pods are given one second to end; near its end they
    are removed by force. Idempotent.

    Raises:
        TransientError: something stays; says what.
    """
    patience_s = min(patience_s, deadline.remaining())
    force = [(grace_s, deadline.sooner(share * patience_s)) for grace_s, share in FORCE]
    cluster.delete(INFERENCE_SERVICE, name, namespace, propagation="Foreground")
    wanted = {kind: matches for kind, matches in interests(name).items() if kind in (INFERENCE_SERVICE, POD)}
    with cluster.watch_all(namespace, wanted) as changes:
        while left := remains(cluster, namespace, name):
            if deadline.expired:
                raise TransientError(_complaint(left, deadline.seconds))
            if force and force[0][1].expired:
                grace_s, _ = force.pop(0)
                _end(cluster, left, grace_s)
            changes.wait((force[0][1] if force else deadline).sooner(1.0))


def remains(cluster: Cluster, namespace: str, name: str) -> list[Manifest]:
    """The service, if it is there, and its pods."""
    service = cluster.get(INFERENCE_SERVICE, name, namespace)
    return [*([service] if service else []), *cluster.list(POD, namespace, {SERVICE_LABEL: name})]


def _end(cluster: Cluster, left: list[Manifest], grace_s: int) -> None:
    for thing in left:
        meta = thing["metadata"]
        if thing["kind"] == POD.kind:
            with contextlib.suppress(TransientError):  # it is another one by now
                cluster.delete(POD, meta["name"], meta["namespace"], grace_s=grace_s, uid=meta["uid"])


def _complaint(left: list[Manifest], seconds: float) -> str:
    names = ", ".join(f"{thing['kind']} {thing['metadata']['namespace']}/{thing['metadata']['name']}" for thing in left)
    finalizers = [f for thing in left if thing["kind"] != POD.kind for f in thing["metadata"].get("finalizers") or ()]
    text = f"still there {seconds:.0f} s after the deletion: {names}"
    if finalizers and all(thing["kind"] != POD.kind for thing in left):
        text += f" (held by {', '.join(finalizers)}; OME cannot let go of it when its model was deleted before it)"
    return text
