"""Deployments, ReplicaSets and Jobs: from a template to pods, and their status from the pods'."""

from __future__ import annotations

import hashlib
import json

from tests.emulator.api.errors import ApiError
from tests.emulator.api.objects import at, copied, random_suffix, timestamp
from tests.emulator.world.cluster_api import (
    change_status,
    condition,
    ensure,
    event,
    owned_by,
    owner_reference,
    set_condition,
)
from tests.emulator.world.context import Context
from tests.emulator.world.nodes import Object

HASH = "pod-template-hash"
RETRY_S = 5.0


class Workloads:
    """Reconciles one object at a time; does nothing when nothing has changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    # Deployments

    def deployment(self, namespace: str, name: str) -> None:
        """Bring the ReplicaSets of a Deployment in line with it, and its status with them."""
        value = self._store.find("deployments.apps", name, namespace)
        if (
            value is None
            or "deletionTimestamp" in value["metadata"]
            or value["metadata"].get("annotations", {}).get(STATIC)
        ):
            return
        current = self._replica_set(value)
        old = [each for each in self._sets_of(value) if each["metadata"]["name"] != current["metadata"]["name"]]
        recreate = at(value, "spec.strategy.type") == "Recreate"
        available = at(current, "status.availableReplicas") or 0
        for each in old:
            if recreate or available >= value["spec"]["replicas"]:
                self._scale(each, 0)
        if not recreate or not any(at(each, "status.replicas") for each in old):
            self._scale(current, value["spec"]["replicas"])
        change_status(
            self._store, "deployments.apps", name, namespace, lambda status: self._fill(status, value, current, old)
        )
        progress_s = float(value["spec"].get("progressDeadlineSeconds") or 600)
        self._context.after(progress_s, ("progress", value["metadata"]["uid"]), lambda: self._overdue(namespace, name))

    def _replica_set(self, deployment: Object) -> Object:
        template = copied(deployment["spec"]["template"])
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        metadata = deployment["metadata"]
        labels = {**(template["metadata"].get("labels") or {}), HASH: digest}
        template["metadata"]["labels"] = labels
        match = {**deployment["spec"]["selector"]["matchLabels"], HASH: digest}
        value = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{metadata['name']}-{digest}",
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": {"deployment.kubernetes.io/revision": "1"},
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {"replicas": 0, "selector": {"matchLabels": match}, "template": template},
        }
        return ensure(self._store, "replicasets.apps", value)

    def _sets_of(self, deployment: Object) -> list[Object]:
        found = self._store.list("replicasets.apps", deployment["metadata"]["namespace"])
        return [each for each in found if owned_by(each, deployment["metadata"]["uid"])]

    def _scale(self, replica_set: Object, replicas: int) -> None:
        if replica_set["spec"]["replicas"] != replicas:
            metadata = replica_set["metadata"]
            self._store.patch(
                "replicasets.apps", metadata["name"], {"spec": {"replicas": replicas}}, metadata["namespace"]
            )

    def _fill(self, status: Object, deployment: Object, current: Object, old: list[Object]) -> None:
        found = [current, *old]
        wanted = deployment["spec"]["replicas"]
        for key in ("replicas", "readyReplicas", "availableReplicas"):
            total = sum(at(each, f"status.{key}") or 0 for each in found)
            if total:
                status[key] = total
            else:
                status.pop(key, None)
        available = status.get("availableReplicas", 0)
        status["updatedReplicas"] = at(current, "status.replicas") or 0
        status["unavailableReplicas"] = max(0, wanted - available)
        status["observedGeneration"] = deployment["metadata"].get("generation", 1)
        enough = available >= wanted
        word = "has" if enough else "does not have"
        reason = "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable"
        set_condition(
            status, "Available", "True" if enough else "False", reason, f"Deployment {word} minimum availability."
        )
        name = current["metadata"]["name"]
        if enough:
            set_condition(
                status,
                "Progressing",
                "True",
                "NewReplicaSetAvailable",
                f'ReplicaSet "{name}" has successfully progressed.',
            )
        elif (condition({"status": status}, "Progressing") or {}).get("reason") != "ProgressDeadlineExceeded":
            set_condition(status, "Progressing", "True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
        failure = condition(current, "ReplicaFailure")
        if failure:
            set_condition(status, "ReplicaFailure", failure["status"], failure["reason"], failure["message"])

    def _overdue(self, namespace: str, name: str) -> None:
        def mark(status: Object) -> None:
            if (condition({"status": status}, "Available") or {}).get("status") != "True":
                said = f'Deployment "{name}" has timed out progressing.'
                set_condition(status, "Progressing", "False", "ProgressDeadlineExceeded", said)

        change_status(self._store, "deployments.apps", name, namespace, mark)

    # ReplicaSets

    def replica_set(self, namespace: str, name: str) -> None:
        """Make or delete pods until there are as many as there should be."""
        value = self._store.find("replicasets.apps", name, namespace)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return
        pods = [pod for pod in self._store.list("pods", namespace) if owned_by(pod, value["metadata"]["uid"])]
        active = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and not _over(pod)]
        failure = ""
        for _ in range(value["spec"]["replicas"] - len(active)):
            pod = _pod(value, f"{name}-{random_suffix()}")
            failure = self._create(pod, value, namespace)
            if failure:
                self._context.after(
                    RETRY_S, ("replicas again", namespace, name), lambda: self.replica_set(namespace, name)
                )
                break
            active.append(pod)
        for pod in active[value["spec"]["replicas"] :]:
            self._store.delete("pods", pod["metadata"]["name"], namespace)
        ready = sum(1 for pod in active if (condition(pod, "Ready") or {}).get("status") == "True")
        change_status(
            self._store,
            "replicasets.apps",
            name,
            namespace,
            lambda status: _fill_set(status, value, min(len(active), value["spec"]["replicas"]), ready, failure),
        )

    def _create(self, pod: Object, owner: Object, namespace: str) -> str:
        """Why a pod cannot be made; empty when it was."""
        try:
            if said := self._context.faults.pod_quota:
                raise ApiError(403, f'pods "{pod["metadata"]["name"]}" is forbidden: {said}')
            self._store.create("pods", pod, namespace)
        except ApiError as error:
            if error.code == 409:
                return ""
            event(
                self._store,
                owner,
                "Warning",
                "FailedCreate",
                f"Error creating: {error.message}",
                "replicaset-controller",
            )
            return error.message
        said = f"Created pod: {pod['metadata']['name']}"
        event(self._store, owner, "Normal", "SuccessfulCreate", said, "replicaset-controller")
        return ""

    # Jobs

    def job(self, namespace: str, name: str) -> None:
        """One pod at a time until one succeeds or too many have failed."""
        value = self._store.find("jobs.batch", name, namespace)
        if value is None or "deletionTimestamp" in value["metadata"] or _ended(value):
            return
        pods = [pod for pod in self._store.list("pods", namespace) if owned_by(pod, value["metadata"]["uid"])]
        succeeded = sum(1 for pod in pods if at(pod, "status.phase") == "Succeeded")
        failed = sum(1 for pod in pods if at(pod, "status.phase") == "Failed")
        active = len(pods) - succeeded - failed
        end = None
        if succeeded:
            end = ("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        elif failed > value["spec"].get("backoffLimit", 6):
            end = ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif not active and not value["spec"].get("suspend"):
            if self._create(_pod(value, f"{name}-{random_suffix()}"), value, namespace):
                self._context.after(RETRY_S, ("job again", namespace, name), lambda: self.job(namespace, name))
            else:
                active = 1

        def fill(status: Object) -> None:
            status.setdefault("startTime", timestamp())
            status["active"], status["succeeded"], status["failed"] = active, succeeded, failed
            status["ready"] = sum(1 for pod in pods if (condition(pod, "Ready") or {}).get("status") == "True")
            if end:
                set_condition(status, end[0], "True", end[1], end[2])
                if end[0] == "Complete":
                    status["completionTime"] = timestamp()

        change_status(self._store, "jobs.batch", name, namespace, fill)


STATIC = "emulated/static"
"""Annotation of Deployments that stand for something that does not run as pods here."""


def _pod(owner: Object, name: str) -> Object:
    template = copied(owner["spec"]["template"])
    metadata = template.get("metadata") or {}
    kept = {key: metadata[key] for key in ("labels", "annotations") if metadata.get(key)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **kept, "ownerReferences": [owner_reference(owner)]},
        "spec": template["spec"],
    }


def _over(pod: Object) -> bool:
    return at(pod, "status.phase") in ("Succeeded", "Failed")


def _ended(job: Object) -> bool:
    return any((condition(job, kind) or {}).get("status") == "True" for kind in ("Complete", "Failed"))


def _fill_set(status: Object, value: Object, replicas: int, ready: int, failure: str) -> None:
    status["replicas"] = status["fullyLabeledReplicas"] = replicas
    status["readyReplicas"] = status["availableReplicas"] = ready
    status["observedGeneration"] = value["metadata"].get("generation", 1)
    if failure:
        set_condition(status, "ReplicaFailure", "True", "FailedCreate", failure)
    else:
        status["conditions"] = [each for each in status.get("conditions", ()) if each["type"] != "ReplicaFailure"]
