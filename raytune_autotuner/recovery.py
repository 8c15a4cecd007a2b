"""Finds and removes what experiments have left in the cluster.

An object is an orphan when it carries this program's labels and its experiment has no anchor with a living
heartbeat. Everything else is left alone: objects without our labels, and those of any experiment that is alive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from raytune_autotuner.anchor import (
    ANCHOR,
    EXPERIMENT,
    MANAGED,
    TRIAL,
    Anchor,
    Taken,
    holder_of,
    is_alive,
    labels,
    parse_time,
    server_time,
    silence_s,
)
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import AutotunerError, TransientError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.kube import (
    BENCHMARK_JOB,
    CONFIG_MAP,
    INFERENCE_SERVICE,
    POD,
    Cluster,
    Conflict,
    Kind,
    Unreachable,
)
from raytune_autotuner.records import TrialId

logger = logging.getLogger(__name__)

HOLDER = "raytune-autotuner gc"
SWEPT: tuple[Kind, ...] = (INFERENCE_SERVICE, BENCHMARK_JOB, POD)
"""What is deleted, in this order. The rest (Deployments, Services, Jobs …) follows its owner."""
LINGER_S = 60.0
"""How much longer than its grace period a pod may take to end before its object is removed by force."""
POLL_S = 0.5
REAP_S = 30.0
"""So often it is looked for what ended trials have left."""
JOIN_S = 10.0
"""How long a look under way is waited for; it deletes nothing that the end would keep."""
ENDING = frozenset({"teardown", "ended"})
"""Phases in which a trial has no more use for what it has in the cluster; one that is reopened leaves them first."""

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Orphan:
    """An object of ours that nobody alive looks after."""

    kind: str
    name: str
    namespace: str
    experiment: str
    """The value of its label, which is the experiment's name wherever that may stand in a label."""
    reason: str
    age_s: float
    """Since the object was made."""


def find_orphans(cluster: Cluster, namespace: str) -> list[Orphan]:
    """What has no living owner in a namespace, anchors last."""
    now = server_time(cluster, namespace)
    # Objects before anchors: an experiment makes its anchor first, so none that begins meanwhile looks ownerless.
    found = [(kind, each) for kind in SWEPT for each in cluster.list(kind, namespace, MANAGED)]
    anchors = cluster.list(CONFIG_MAP, namespace, {**MANAGED, ANCHOR: "true"})
    found += [(CONFIG_MAP, anchor) for anchor in anchors]
    owners = {_experiment(anchor): anchor for anchor in anchors}
    return [
        Orphan(
            kind=kind.kind,
            name=each["metadata"]["name"],
            namespace=namespace,
            experiment=_experiment(each),
            reason=reason,
            age_s=_age_s(each, now),
        )
        for kind, each in found
        if (reason := _ownerless(owners.get(_experiment(each)), now))
    ]


def remove(cluster: Cluster, orphans: Iterable[Orphan], deadline: Deadline) -> list[Orphan]:
    """Remove the orphans' experiments from the cluster and wait until their pods are gone; those removed.

    Takes each experiment's anchor first, so one that has come back to life meanwhile is left alone, and one that
    wants to begin under the same name has to wait.

    Raises:
        TransientError: something is still there when the deadline is over; names it.
    """
    listed = list(orphans)
    removed = set()
    for namespace, experiment in dict.fromkeys((orphan.namespace, orphan.experiment) for orphan in listed):
        # gone on, or just being removed by somebody else
        with suppress(Taken), Anchor.create(cluster, namespace, experiment, HOLDER) as anchor:
            sweep(anchor, deadline)
            anchor.delete()
            removed.add((namespace, experiment))
    return [orphan for orphan in listed if (orphan.namespace, orphan.experiment) in removed]


def sweep(anchor: Anchor, deadline: Deadline, spared: Collection[TrialId] = ()) -> set[str]:
    """Delete every object of the experiment whose anchor is held, and wait until none is left; whose they were.

    The anchor stays, and so do the services of ``spared`` trials, which go on with them. For the start of an
    experiment, which may be a resumed one, and for its end.

    Raises:
        TransientError: something is still there when the deadline is over, or the server is away; names it.
    """
    cluster, namespace = anchor.cluster, anchor.namespace
    asked: set[str] = set()
    trials: set[str] = set()
    names = {trial.name for trial in spared}
    while True:
        try:
            left = [(kind, each) for kind, each in _objects(anchor) if not _serves(kind, each, names)]
            if not left:
                return trials - {""}
            if deadline.expired and asked:
                listed = ", ".join(f"{kind.kind} {each['metadata']['name']}" for kind, each in left)
                raise TransientError(f"still in namespace {namespace} after {deadline.seconds:.0f} s: {listed}")
            anchor.check()
            for kind, each in left:
                if each["metadata"]["uid"] not in asked:
                    _delete(cluster, kind, each)
                    asked.add(each["metadata"]["uid"])
                    trials.add(_trial(each))
            _force(cluster, [each for kind, each in left if kind is POD], namespace)
        except Unreachable:  # it may be back, and what is left here would hold its GPUs
            if deadline.expired:
                raise
        time.sleep(min(POLL_S, deadline.remaining()))


@contextmanager
def reaping(anchor: Anchor, folder: ExperimentFolder) -> Iterator[None]:
    """Remove what ended trials have left while the body runs: their workers could not, or are gone."""
    over = threading.Event()
    thread = threading.Thread(target=_keep_reaping, args=(anchor, folder, over), name="reaper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(JOIN_S)


def _keep_reaping(anchor: Anchor, folder: ExperimentFolder, over: threading.Event) -> None:
    seen: frozenset[str] = frozenset()
    while not over.wait(REAP_S):
        try:
            seen = reap(anchor, folder, seen)
        except AutotunerError as error:  # may have passed by the next look
            logger.warning("what ended trials have left cannot be removed yet: %s", error)
        except Exception:  # whatever it is, nobody else would look again
            logger.exception("what ended trials have left cannot be removed")


def reap(anchor: Anchor, folder: ExperimentFolder, seen: Collection[str] = ()) -> frozenset[str]:
    """Delete what trials have left that ended, or came to their end, before the last look; does not wait for it.

    ``seen`` is what the last look has returned, the uids of all that ending trials had: a worker that is just tearing
    down is given until the next one, also to save its logs.
    """
    found = _objects(anchor)  # before the states: what a trial makes when it goes on is not among them
    ending = {name for name in {_trial(each) for _, each in found} - {""} if _is_ending(folder, name)}
    left = [(kind, each) for kind, each in found if _trial(each) in ending]
    anchor.check()
    for kind, each in left:
        meta = each["metadata"]
        if meta["uid"] in seen and "deletionTimestamp" not in meta:
            logger.warning("trial %s has left %s %s, which is removed", _trial(each), kind.kind, meta["name"])
            _delete(anchor.cluster, kind, each)
    _force(anchor.cluster, [each for kind, each in left if kind is POD], anchor.namespace)
    return frozenset(each["metadata"]["uid"] for _, each in left)


def _is_ending(folder: ExperimentFolder, trial: str) -> bool:
    state = folder.state(trial)
    return state is not None and state.phase in ENDING


def _serves(kind: Kind, each: Manifest, trials: Collection[str]) -> bool:
    """Whether an object is the service of one of these trials, or a pod of it; a benchmark's pod is a Job's."""
    meta = each["metadata"]
    owned_by_job = any(owner["kind"] == "Job" for owner in meta.get("ownerReferences") or ())
    return kind is not BENCHMARK_JOB and not owned_by_job and _trial(each) in trials


def _objects(anchor: Anchor) -> list[tuple[Kind, Manifest]]:
    selector = labels(anchor.experiment)
    return [(kind, each) for kind in SWEPT for each in anchor.cluster.list(kind, anchor.namespace, selector)]


def _delete(cluster: Cluster, kind: Kind, each: Manifest, grace_s: int | None = None) -> None:
    """Delete this very object, not one of the same name that has come after it."""
    meta = each["metadata"]
    with suppress(Conflict):
        cluster.delete(kind, meta["name"], meta["namespace"], grace_s=grace_s, uid=meta["uid"])


def _force(cluster: Cluster, pods: Iterable[Manifest], namespace: str) -> None:
    """Remove the objects of pods that should have ended long ago: their node no longer answers."""
    for pod in _overdue(list(pods), cluster, namespace):
        _delete(cluster, POD, pod, grace_s=0)


def _overdue(pods: list[Manifest], cluster: Cluster, namespace: str) -> Iterator[Manifest]:
    ending = [pod for pod in pods if "deletionTimestamp" in pod["metadata"]]
    if not ending:
        return
    now = server_time(cluster, namespace)
    for pod in ending:
        # deletionTimestamp is when the grace period ends
        late = now - parse_time(pod["metadata"]["deletionTimestamp"])
        if late > timedelta(seconds=LINGER_S):
            yield pod


def _ownerless(anchor: Manifest | None, now: datetime) -> str:
    """Why nobody looks after an experiment; empty when somebody does."""
    if anchor is None:
        return "its experiment has no anchor"
    if holder_of(anchor) == HOLDER:
        return "its removal has begun"
    if is_alive(anchor, now):
        return ""
    return f"its experiment's heartbeat stopped {silence_s(anchor, now):.0f} s ago (holder {holder_of(anchor)})"


def _experiment(each: Manifest) -> str:
    return str((each["metadata"].get("labels") or {}).get(EXPERIMENT, ""))


def _trial(each: Manifest) -> str:
    return str((each["metadata"].get("labels") or {}).get(TRIAL, ""))


def _age_s(each: Manifest, now: datetime) -> float:
    return max(0.0, (now - parse_time(each["metadata"].get("creationTimestamp", ""))) / timedelta(seconds=1))
