"""Who owns what in the cluster: names, labels, and one anchor object per experiment.

The anchor is a ConfigMap in the trial namespace. It owns every object of its experiment by ownerReference, so that
deleting it removes everything, and carries a heartbeat: where that has stopped, nobody looks after the objects any
more. Whoever wants to touch an experiment's objects has to hold its anchor, also ``gc``; an anchor changes hands only
when its heartbeat is stale, under the API's optimistic lock, so that of two who try one wins.

Both ends of a heartbeat's age are read from the API server's clock, so the clocks of the machines do not matter.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Any

from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.kube import CONFIG_MAP, Cluster, Conflict, Rejected
from raytune_autotuner.records import TrialId

EXPERIMENT, TRIAL, CONFIG = (f"raytune-autotuner/{name}" for name in ("experiment", "trial", "config"))
ANCHOR, HEARTBEAT = (f"raytune-autotuner/{name}" for name in ("anchor", "heartbeat"))
HOLDER, HOLDER_ID = (f"raytune-autotuner/{name}" for name in ("holder", "holder-id"))
MANAGED: Mapping[str, str] = {"app.kubernetes.io/managed-by": "raytune-autotuner"}
"""On everything that this program makes, so that a selector finds it whatever the experiment."""

BEAT_S = 15.0
STALE_S = 120.0
ATTEMPTS = 4
"""How often taking the anchor is tried when others change it at the same time."""

CLOCK = "raytune-autotuner-clock"
"""Of an object that is never kept."""
NAME_CHARACTERS, LABEL_CHARACTERS = 50, 63
HASH_CHARACTERS = 16

Manifest = Mapping[str, Any]


def labels(experiment: str, trial: TrialId | None = None) -> dict[str, str]:
    """What every object of an experiment, or of one of its trials, carries; OME hands it on to the pods."""
    found = {**MANAGED, EXPERIMENT: label_value(experiment)}
    return found if trial is None else {**found, TRIAL: trial.name, CONFIG: trial.config}


def label_value(text: str) -> str:
    """The text itself where it may stand in a label, else a readable stand-in that differs for different texts."""
    if len(text) <= LABEL_CHARACTERS and re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", text):
        return text
    return f"{_slug(text, LABEL_CHARACTERS - HASH_CHARACTERS - 1)}-{_digest(text)}"


def object_name(experiment: str, trial: TrialId) -> str:
    """A trial's object: the same from any process; OME needs at most 50 characters and the last 20 to be unique."""
    tail = f"-{trial.purpose}-{_digest(experiment, trial.name)}"
    return _slug(experiment, NAME_CHARACTERS - len(tail)) + tail


def anchor_name(experiment: str) -> str:
    """The same for an experiment and for its label's value."""
    value = label_value(experiment)
    return f"raytune-autotuner-{_slug(value, 40)}-{_digest(value)}"


def _slug(text: str, limit: int) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower())[:limit].strip("-")
    return slug if slug[:1].isalpha() else f"x{slug}"[:limit]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:HASH_CHARACTERS]


def server_time(cluster: Cluster, namespace: str) -> datetime:
    """The API server's clock, from the time it gives to an object that is not kept (a dry run)."""
    probe = {"metadata": {"name": CLOCK, "namespace": namespace}}
    answer = cluster.create(CONFIG_MAP, {"apiVersion": "v1", "kind": "ConfigMap", **probe}, dry_run=True)
    return parse_time(answer["metadata"]["creationTimestamp"])


def parse_time(text: str) -> datetime:
    """A time of Kubernetes (RFC 3339); the beginning of time for what is none."""
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (ValueError, AttributeError):
        return datetime.min.replace(tzinfo=timezone.utc)
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def silence_s(anchor: Manifest, now: datetime) -> float:
    """Seconds since an anchor's last heartbeat, by the API server's clock."""
    return (now - parse_time(_annotation(anchor, HEARTBEAT))) / timedelta(seconds=1)


def is_alive(anchor: Manifest, now: datetime) -> bool:
    return silence_s(anchor, now) < STALE_S


@dataclass(frozen=True)
class Holder:
    name: str
    """For people; two may have the same, as two machines have the same paths."""
    id: str = ""

    def has(self, anchor: Manifest) -> bool:
        """Whether it is its own; an anchor without an id (of ``gc``, of an earlier version) goes by the name."""
        found = _annotation(anchor, HOLDER_ID)
        return found == self.id if found else holder_of(anchor) == self.name


def holder_of(anchor: Manifest) -> str:
    return _annotation(anchor, HOLDER) or "unknown"


def _annotation(anchor: Manifest, name: str) -> str:
    return str((anchor["metadata"].get("annotations") or {}).get(name, ""))


class Taken(EnvironmentFault):
    """The anchor is somebody else's, or nobody's any more."""


class Anchor:
    """Holds an experiment's anchor; a context manager that keeps the heartbeat going.

    Leaving the context ends the heartbeat and keeps the object, so that the experiment can be resumed; ``delete``
    removes it with everything that it owns.
    """

    def __init__(self, cluster: Cluster, namespace: str, experiment: str, holder: Holder, uid: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.experiment = experiment
        self.name = anchor_name(experiment)
        self.uid = uid
        self.problem = ""
        """Why the last heartbeat did not get through; empty when it did."""
        self._holder = holder
        self._lost = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def create(cls, cluster: Cluster, namespace: str, experiment: str, holder: str, holder_id: str = "") -> Anchor:
        """Take an experiment's anchor: make it, or take over the one that this holder or nobody alive has.

        ``holder`` names the experiment's folder rather than a process, so that it can be resumed at once, and
        ``holder_id`` tells that folder from any other.

        Raises:
            Taken: another holder is alive.
            TransientError: it is being deleted, or others changed it at every attempt.
        """
        me = Holder(holder, holder_id)
        for _ in range(ATTEMPTS):
            now = server_time(cluster, namespace)
            found = cluster.get(CONFIG_MAP, anchor_name(experiment), namespace)
            if found is not None and not me.has(found) and is_alive(found, now):
                raise Taken(_taken(experiment, namespace, holder_of(found), silence_s(found, now)))
            if found is not None and "deletionTimestamp" in found["metadata"]:
                raise TransientError(f"experiment {experiment} is just being removed from namespace {namespace}")
            manifest = _manifest(experiment, namespace, me, now, found)
            try:
                kept = cluster.replace(CONFIG_MAP, manifest) if found else cluster.create(CONFIG_MAP, manifest)
            except Conflict:
                continue
            except Rejected as error:
                if error.status not in (404, 409):  # gone, or there, since we looked
                    raise
                continue
            return cls(cluster, namespace, experiment, me, kept["metadata"]["uid"])
        raise TransientError(f"the anchor of experiment {experiment} in namespace {namespace} kept changing")

    def owner_reference(self) -> dict[str, Any]:
        """Makes Kubernetes remove an object of the same namespace once the anchor is gone.

        It does not block the anchor's own deletion: that needs rights that not every cluster gives.
        """
        return {"apiVersion": "v1", "kind": "ConfigMap", "name": self.name, "uid": self.uid}

    def beat(self) -> None:
        """Say that somebody is alive.

        Raises:
            Taken: the anchor has been deleted, or somebody else has it now; for good.
            TransientError: it could not be written this time.
        """
        self.check()
        now = server_time(self.cluster, self.namespace)
        found = self.cluster.get(CONFIG_MAP, self.name, self.namespace)
        if found is None or found["metadata"]["uid"] != self.uid:
            self._lost = "it has been deleted, and with it everything that the experiment had in the cluster"
        elif not self._holder.has(found):
            self._lost = f"{holder_of(found)} has taken it over, because no heartbeat came through for {STALE_S:.0f} s"
        else:
            self.cluster.replace(CONFIG_MAP, _manifest(self.experiment, self.namespace, self._holder, now, found))
        self.check()

    def check(self) -> None:
        """Raises Taken once the anchor is known to be lost; costs nothing."""
        if self._lost:
            raise Taken(f"the anchor {self.name} in namespace {self.namespace} is lost: {self._lost}")

    def delete(self) -> None:
        """Remove the anchor, and so everything that it owns; nothing when it is not ours any more. Idempotent."""
        self.end()
        found = self.cluster.get(CONFIG_MAP, self.name, self.namespace)
        if found is not None and found["metadata"]["uid"] == self.uid and self._holder.has(found):
            self.cluster.delete(CONFIG_MAP, self.name, self.namespace, uid=self.uid)

    def end(self) -> None:
        """End the heartbeat. Idempotent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Anchor:
        self._thread = threading.Thread(target=self._keep_beating, name="anchor-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_S) and not self._lost:
            try:
                self.beat()
                self.problem = ""
            except Exception as error:  # noqa: BLE001 - a heart that stopped unseen would let others remove what runs
                self.problem = str(error) or repr(error)


def _manifest(experiment: str, namespace: str, holder: Holder, now: datetime, found: Manifest | None) -> dict[str, Any]:
    """The anchor as it should be; with the version of ``found``, so that a change in between is noticed."""
    metadata: dict[str, Any] = {
        "name": anchor_name(experiment),
        "namespace": namespace,
        "labels": {**labels(experiment), ANCHOR: "true"},
        "annotations": {HOLDER: holder.name, HEARTBEAT: now.isoformat(timespec="seconds").replace("+00:00", "Z")},
    }
    if holder.id:
        metadata["annotations"][HOLDER_ID] = holder.id
    if found is not None:
        metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
        metadata["uid"] = found["metadata"]["uid"]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"experiment": experiment}}


def _taken(experiment: str, namespace: str, holder: str, silence: float) -> str:
    return (
        f"experiment {experiment} is running in namespace {namespace}: {holder} gave a sign of life "
        f"{max(0.0, silence):.0f} s ago; end it, wait {STALE_S:.0f} s after its death, or choose another --name"
    )
