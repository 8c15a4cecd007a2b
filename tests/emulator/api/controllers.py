"""What the control plane does by itself, some time after a request: garbage collection, namespaces, CRDs.

One thread works off what the storage's changes concern.
"""

from __future__ import annotations

import queue
import threading

from tests.emulator.api.errors import ApiError
from tests.emulator.api.etcd import Change, Key, Record
from tests.emulator.api.kinds import CRD, Object, from_crd
from tests.emulator.api.objects import at, owner_uids, timestamp
from tests.emulator.api.rules import FOREGROUND, ORPHAN
from tests.emulator.api.store import Store

RETRY_S = 0.1
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


class Controllers:
    """The garbage collector and the namespace and CRD controllers of one store."""

    def __init__(self, store: Store, lag_s: float = 0.0) -> None:
        self.lag_s = lag_s
        """How long after a change its consequences come; the real collector takes about 0.6 s."""
        self._store = store
        self._queue: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="emulated control plane")
        store.etcd.listeners.append(self._note)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._queue.put(None)
        self._thread.join()

    def _note(self, change: Change) -> None:
        """Queue what a change concerns; called under the storage's lock."""
        key, value = change.record.key, change.record.value
        if change.type == "DELETED":
            for dependent in self._store.etcd.dependents(value["metadata"]["uid"]):
                self._queue.put(dependent.key)
            for uid in owner_uids(value):
                if owner := self._store.etcd.by_uid(uid):
                    self._queue.put(owner.key)
            if key.namespace:
                self._queue.put(Key("namespaces", "", key.namespace))
            self._queue.put(Key(CRD, "", key.resource))
        elif _concerns(key, value):
            self._queue.put(key)

    def _work(self) -> None:
        while (key := self._queue.get()) is not None:
            if self.lag_s and self._stopped.wait(self.lag_s):
                return
            try:
                self._look_at(key)
            except ApiError as error:
                if error.code == 404:
                    continue
                if error.code != 409:  # refused by a webhook, say: again later, as the real ones do
                    self._stopped.wait(RETRY_S)
                self._queue.put(key)

    def _look_at(self, key: Key) -> None:
        record = self._store.etcd.read(key)
        if record is None:
            return
        if key.resource == CRD:
            self._look_at_crd(record)
        elif key.resource == "namespaces":
            self._look_at_namespace(record)
        if "deletionTimestamp" in record.value["metadata"]:
            self._continue_deletion(record)
        elif owner_uids(record.value):
            self._collect(record)

    # Garbage collection

    def _collect(self, record: Record) -> None:
        """Delete an object whose owners are all gone (or go before it), drop references to those that are."""
        owners = record.value["metadata"]["ownerReferences"]
        solid, waiting = [], []
        for reference in owners:
            owner = self._owner(record, reference)
            if owner and _is_foreground(owner.value):
                waiting.append(reference)
            elif owner:
                solid.append(reference)
        if len(solid) == len(owners):
            return
        if solid:
            self._change(record, {"ownerReferences": solid})
        else:
            in_turn = waiting and self._store.etcd.dependents(record.value["metadata"]["uid"])
            self._delete(record, "Foreground" if in_turn else "Background")

    def _owner(self, record: Record, reference: Object) -> Record | None:
        """The owner, if it is there, is that very object, and is not in another namespace."""
        owner = self._store.etcd.by_uid(reference["uid"])
        if owner and owner.key.namespace not in ("", record.key.namespace):
            return None
        return owner

    def _continue_deletion(self, record: Record) -> None:
        finalizers = record.value["metadata"].get("finalizers") or ()
        dependents = self._store.etcd.dependents(record.value["metadata"]["uid"])
        if ORPHAN in finalizers:
            for dependent in dependents:
                self._orphan(dependent, record.value["metadata"]["uid"])
            self._unhold(record, ORPHAN)
        elif FOREGROUND in finalizers:
            blocking = [dependent for dependent in dependents if _blocks(dependent.value, record)]
            for dependent in dependents:
                if "deletionTimestamp" not in dependent.value["metadata"]:
                    self._collect(dependent)
            if not blocking:
                self._unhold(record, FOREGROUND)

    def _orphan(self, dependent: Record, uid: str) -> None:
        kept = [owner for owner in dependent.value["metadata"]["ownerReferences"] if owner["uid"] != uid]
        self._change(dependent, {"ownerReferences": kept or None})

    def _unhold(self, record: Record, finalizer: str) -> None:
        kept = [name for name in record.value["metadata"]["finalizers"] if name != finalizer]
        self._change(record, {"finalizers": kept or None})

    def _change(self, record: Record, metadata: Object) -> None:
        key = record.key
        metadata |= {"uid": record.value["metadata"]["uid"]}
        self._store.patch(key.resource, key.name, {"metadata": metadata}, key.namespace or None)

    def _delete(self, record: Record, propagation: str) -> None:
        key, uid = record.key, record.value["metadata"]["uid"]
        self._store.delete(key.resource, key.name, key.namespace or None, propagation=propagation, uid=uid)

    # Namespaces and CRDs

    def _look_at_namespace(self, record: Record) -> None:
        if "deletionTimestamp" not in record.value["metadata"]:
            self._default_account(record.key.name)
            return
        left = False
        for resource in self._store.etcd.resources():
            if self._store.kind(resource).namespaced:
                self._store.delete_all(resource, record.key.name)
                left = left or bool(self._store.etcd.scan(resource, record.key.name)[0])
        if not left:
            self._store.patch("namespaces", record.key.name, {"spec": {"finalizers": None}})

    def _default_account(self, namespace: str) -> None:
        if not self._store.find("serviceaccounts", "default", namespace):
            self._store.create("serviceaccounts", {"metadata": {"name": "default"}}, namespace)

    def _look_at_crd(self, record: Record) -> None:
        value = record.value
        if "deletionTimestamp" in value["metadata"]:
            if CLEANUP in (value["metadata"].get("finalizers") or ()):
                self._remove_instances(record)
        elif not at(value, "status.acceptedNames"):
            served = established(value)
            self._change(record, {"finalizers": served["metadata"]["finalizers"]})
            self._store.patch(CRD, record.key.name, {"status": served["status"]}, subresource="status")

    def _remove_instances(self, record: Record) -> None:
        resource = from_crd(record.value).resource
        self._store.delete_all(resource, None)
        if not self._store.etcd.scan(resource, None)[0]:
            self._unhold(record, CLEANUP)


def established(crd: Object) -> Object:
    """A CRD as it is once its names are accepted and its resource is served."""
    since = timestamp()
    conditions = [
        {"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": since}
        for type_, reason, message in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    stored = [version["name"] for version in crd["spec"]["versions"] if version.get("storage")]
    names = {"singular": crd["spec"]["names"]["kind"].lower()} | crd["spec"]["names"]
    metadata = crd["metadata"] | {"finalizers": [CLEANUP]}
    status = {"conditions": conditions, "acceptedNames": names, "storedVersions": stored}
    return crd | {"metadata": metadata, "status": status}


def _concerns(key: Key, value: Object) -> bool:
    metadata = value["metadata"]
    if key.resource in ("namespaces", CRD):
        return True
    return "deletionTimestamp" in metadata or bool(metadata.get("ownerReferences"))


def _is_foreground(value: Object) -> bool:
    return "deletionTimestamp" in value["metadata"] and FOREGROUND in (value["metadata"].get("finalizers") or ())


def _blocks(dependent: Object, owner: Record) -> bool:
    """Whether a dependent is one that a foreground deletion of its owner waits for."""
    uid = owner.value["metadata"]["uid"]
    references = dependent["metadata"].get("ownerReferences") or ()
    return any(reference["uid"] == uid and reference.get("blockOwnerDeletion") for reference in references)
