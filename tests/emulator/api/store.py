"""What the API server does with objects, in process: the same semantics with and without HTTP.

Controllers of the emulated world use it directly::

    pod = store.get("pods", "a", "default")
    pod["status"]["phase"] = "Running"
    store.update_status("pods", pod)
    for event in store.watch("pods"):
        ...

A resource is named "pods" or "deployments.apps". Objects that come out are copies, free to be changed. Everything
refused is an ``ApiError`` with the code and words of the real server.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.emulator.api import decode, defaults, errors, selectors
from tests.emulator.api.builtin import fill_status
from tests.emulator.api.errors import ApiError, FieldFault
from tests.emulator.api.etcd import Change, Etcd, Key, Record
from tests.emulator.api.kinds import BUILT_IN, CRD, Kind, Object, from_crd
from tests.emulator.api.objects import at, copied, random_suffix, timestamp
from tests.emulator.api.patch import MERGE, patched
from tests.emulator.api.selectors import Condition
from tests.emulator.api.watch import Watch

ATTEMPTS = 100
"""Of a patch against a moving object, before the conflict is told."""
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


@dataclass
class Admission:
    """What an admission hook sees; a mutating one changes ``object`` in place."""

    kind: Kind
    operation: str
    """CREATE, UPDATE or DELETE."""
    object: Object
    old: Object | None
    subresource: str = ""
    dry_run: bool = False


Hook = Callable[[Admission], None]


@dataclass(frozen=True)
class Deletion:
    """The options of a DELETE."""

    grace_s: int | None = None
    propagation: str | None = None
    """Background, Foreground or Orphan; None: the default of the kind."""
    uid: str | None = None
    version: str | None = None
    dry_run: bool = False


class Store:
    """Objects with the server's rules; thread-safe."""

    def __init__(self) -> None:
        self.etcd = Etcd()
        self.mutating: dict[str, list[Hook]] = {}
        """Admission hooks by resource, called in order without any lock held; they may wait."""
        self.validating: dict[str, list[Hook]] = {}
        self._kinds = {kind.resource: kind for kind in BUILT_IN}
        self.etcd.listeners.append(self._note_crd)

    # Kinds

    def kinds(self) -> list[Kind]:
        with self.etcd.lock:
            return list(self._kinds.values())

    def kind(self, resource: str) -> Kind:
        """The kind of a resource.

        Raises:
            ApiError: 404, nothing serves it.
        """
        kind = self._kinds.get(resource)
        if not kind:
            raise errors.no_such_path()
        return kind

    def _note_crd(self, change: Change) -> None:
        if change.record.key.resource != CRD:
            return
        if change.type == "DELETED":
            self._kinds.pop(change.record.key.name, None)
        elif _established(change.record.value):
            self._kinds[change.record.key.name] = from_crd(change.record.value)

    # Reading

    def get(self, resource: str, name: str, namespace: str | None = None) -> Object:
        """An object; raises ``ApiError`` 404 when there is none."""
        return copied(self.record(resource, name, namespace).value)  # type: ignore[no-any-return]

    def find(self, resource: str, name: str, namespace: str | None = None) -> Object | None:
        """An object, or None."""
        record = self.etcd.read(self._key(self.kind(resource), name, namespace))
        return copied(record.value) if record else None

    def record(self, resource: str, name: str, namespace: str | None = None) -> Record:
        record = self.etcd.read(self._key(self.kind(resource), name, namespace))
        if not record:
            raise errors.not_found(resource, name)
        return record

    def list(self, resource: str, namespace: str | None = None, labels: str = "", fields: str = "") -> list[Object]:
        """The objects that match, in all namespaces when none is given."""
        return [copied(record.value) for record in self.records(resource, namespace, labels, fields)[0]]

    def records(
        self, resource: str, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> tuple[list[Record], int]:
        """The records that match, and the version of the list."""
        selected = self.condition(resource, labels, fields)
        records, version = self.etcd.scan(resource, namespace)
        return [record for record in records if selected(record.value)], version

    def condition(self, resource: str, labels: str, fields: str) -> Condition:
        tests = [selectors.label_condition(labels)] if labels else []
        if fields:
            tests.append(selectors.field_condition(self.kind(resource), fields))
        return lambda value: all(test(value) for test in tests)

    def watch(
        self,
        resource: str,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        resource_version: str | None = None,
    ) -> Watch:
        """The changes from a version on; without one, what is there comes first as ADDED."""
        self.kind(resource)
        after = int(resource_version) if resource_version else None
        return Watch(self.etcd, resource, namespace, self.condition(resource, labels, fields), after)

    # Writing

    def create(
        self,
        resource: str,
        value: Object,
        namespace: str | None = None,
        *,
        version: str | None = None,
        dry_run: bool = False,
        validation: str = "Ignore",
    ) -> Object:
        """Store a new object and return it; ``validation`` is Ignore, Warn or Strict.

        Raises:
            ApiError: 400 not decodable, 403 refused, 404 no such namespace, 409 it exists, 422 invalid.
        """
        return self.created(resource, value, namespace, version=version, dry_run=dry_run, validation=validation)[0]

    def created(
        self,
        resource: str,
        value: Object,
        namespace: str | None,
        *,
        version: str | None = None,
        dry_run: bool = False,
        validation: str = "Ignore",
    ) -> tuple[Object, list[str]]:
        """As ``create``, with the warnings."""
        kind = self.kind(resource)
        new, warnings = decode.decode(kind, version or kind.version, value, validation)
        key = self._new_key(kind, new, namespace)
        if new["metadata"].pop("resourceVersion", ""):
            raise ApiError(500, "resourceVersion should not be set on objects to be created", "")
        _begin(kind, new)
        if not kind.custom:
            defaults.apply(kind, new)
        self._admit(Admission(kind, "CREATE", new, None, dry_run=dry_run))
        self._check(kind, new)
        if dry_run:
            if self.etcd.read(key):
                raise errors.already_exists(resource, key.name)
            return new, warnings
        with self.etcd.lock:
            self._check_namespace(kind, key)
            new = self.etcd.write(key, new, None).value
        return copied(new), warnings

    def _new_key(self, kind: Kind, value: Object, namespace: str | None) -> Key:
        metadata = value["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"][:58] + random_suffix()
        namespace = self._namespace_of(kind, metadata, namespace)
        key = Key(kind.resource, namespace, metadata.get("name", ""))
        self._check_namespace(kind, key)
        return key

    def _namespace_of(self, kind: Kind, metadata: Object, namespace: str | None) -> str:
        if not kind.namespaced:
            metadata.pop("namespace", None)
            return ""
        given = metadata.get("namespace") or namespace or ""
        if namespace and given != namespace:
            message = "the namespace of the provided object does not match the namespace sent on the request"
            raise ApiError(400, message)
        if not given:
            raise ApiError(400, f'the request to {kind.resource} names no namespace')
        metadata["namespace"] = given
        return given  # type: ignore[no-any-return]

    def _check_namespace(self, kind: Kind, key: Key) -> None:
        if not kind.namespaced:
            return
        namespace = self.etcd.read(Key("namespaces", "", key.namespace))
        if not namespace:
            raise errors.not_found("namespaces", key.namespace)
        if "deletionTimestamp" in namespace.value["metadata"]:
            why = f"unable to create new content in namespace {key.namespace} because it is being terminated"
            refusal = errors.forbidden(kind.resource, key.name, why)
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {key.namespace} is being terminated"}
            refusal.details["causes"] = [cause | {"field": "metadata.namespace"}]
            raise refusal

    def update(
        self, resource: str, value: Object, *, dry_run: bool = False, validation: str = "Ignore", version: str | None = None
    ) -> Object:
        """Replace all but the status, if its ``resourceVersion`` is still the current one.

        Raises:
            ApiError: 404 gone, 409 changed meanwhile, 400, 403 or 422 as with ``create``.
        """
        return self.updated(resource, value, "", dry_run=dry_run, validation=validation, version=version)[0]

    def update_status(self, resource: str, value: Object) -> Object:
        """Replace the status alone; raises as ``update``."""
        return self.updated(resource, value, "status")[0]

    def updated(
        self,
        resource: str,
        value: Object,
        subresource: str,
        *,
        dry_run: bool = False,
        validation: str = "Ignore",
        version: str | None = None,
    ) -> tuple[Object, list[str]]:
        """As ``update`` (or of a subresource), with the warnings."""
        kind = self.kind(resource)
        metadata = value.get("metadata") or {}
        record = self.record(resource, metadata.get("name", ""), metadata.get("namespace"))
        if kind.custom and not metadata.get("resourceVersion"):
            fault = FieldFault("metadata.resourceVersion", "FieldValueInvalid", "Invalid value: 0: must be specified for an update")
            raise errors.invalid(kind.kind, kind.group, record.key.name, [fault])
        new, warnings = decode.decode(kind, version or kind.version, value, validation)
        self._same(kind, record, new["metadata"])
        return self._replace(kind, record, new, subresource, dry_run=dry_run), warnings

    def _same(self, kind: Kind, record: Record, metadata: Object) -> None:
        """The object that is written must be the one that was read."""
        if metadata.get("resourceVersion") not in (None, "", str(record.version)):
            raise errors.conflict(kind.resource, record.key.name)
        uid = record.value["metadata"]["uid"]
        if metadata.get("uid") not in (None, "", uid):
            why = f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {uid}"
            raise errors.conflict(kind.resource, record.key.name, why)

    def patch(
        self,
        resource: str,
        name: str,
        patch: Any,
        namespace: str | None = None,
        *,
        type_: str = MERGE,
        subresource: str = "",
        dry_run: bool = False,
        validation: str = "Ignore",
    ) -> Object:
        """Change an object by a patch, against whatever its state is by then; raises as ``update``."""
        return self.patched(resource, name, patch, namespace, type_, subresource, dry_run=dry_run, validation=validation)[0]

    def patched(
        self,
        resource: str,
        name: str,
        patch: Any,
        namespace: str | None,
        type_: str,
        subresource: str = "",
        *,
        dry_run: bool = False,
        validation: str = "Ignore",
        version: str | None = None,
    ) -> tuple[Object, list[str]]:
        """As ``patch``, with the warnings."""
        kind = self.kind(resource)
        for left in range(ATTEMPTS, 0, -1):
            record = self.record(resource, name, namespace)
            raw = patched(kind, record.value, patch, type_)
            raw["apiVersion"] = record.value["apiVersion"]
            new, warnings = decode.decode(kind, kind.version, raw, validation)
            self._same(kind, record, new["metadata"])
            try:
                return self._replace(kind, record, new, subresource, dry_run=dry_run), warnings
            except ApiError as error:
                if error.code != 409 or left == 1:
                    raise
        raise AssertionError("unreachable")

    def _replace(self, kind: Kind, record: Record, new: Object, subresource: str, *, dry_run: bool) -> Object:
        """Write the next state of an object, by the rules of what each request may change."""
        old = record.value
        if new["metadata"].get("name") != record.key.name:
            message = f"the name of the object ({new['metadata'].get('name')}) does not match the name on the URL ({record.key.name})"
            raise ApiError(400, message)
        new = _status_of(kind, old, new) if subresource == "status" else _all_but_status(kind, old, new)
        _keep_metadata(old, new)
        if not kind.custom:
            defaults.apply(kind, new)
            fill_status(kind, new)
        self._admit(Admission(kind, "UPDATE", new, copied(old), subresource, dry_run))
        self._check(kind, new, old)
        if kind.generation and _spec(kind, new) != _spec(kind, old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if dry_run or new == old:
            return copied(new)  # type: ignore[no-any-return]
        if "deletionTimestamp" in old["metadata"] and not _held(kind, new):
            return copied(self.etcd.remove(record.key, new, record.version).value)  # type: ignore[no-any-return]
        return copied(self.etcd.write(record.key, new, record.version).value)  # type: ignore[no-any-return]

    def _admit(self, admission: Admission) -> None:
        if admission.subresource == "status":
            return
        for hook in self.mutating.get(admission.kind.resource, ()):
            hook(admission)
        for hook in self.validating.get(admission.kind.resource, ()):
            hook(admission)

    def _check(self, kind: Kind, new: Object, old: Object | None = None) -> None:
        found = decode.faults(kind, new)
        if not kind.custom:
            found += defaults.faults(kind, new)
        if old is not None:
            found += _change_faults(kind, old, new)
        if found:
            raise errors.invalid(kind.kind, kind.group, new["metadata"].get("name", ""), found)

    # Deleting

    def delete(
        self,
        resource: str,
        name: str,
        namespace: str | None = None,
        *,
        grace_s: int | None = None,
        propagation: str | None = None,
        uid: str | None = None,
    ) -> Object:
        """Delete an object or begin to: finalizers, foreground deletion and a pod's grace hold it.

        A scheduled pod stays with a ``deletionTimestamp`` until it is deleted again with ``grace_s=0``, which is
        what a kubelet does once the containers are gone.

        Raises:
            ApiError: 404 gone, 409 it is another one than ``uid``.
        """
        return self.deleted(resource, name, namespace, Deletion(grace_s, propagation, uid))[0]

    def deleted(self, resource: str, name: str, namespace: str | None, options: Deletion) -> tuple[Object, bool]:
        """As ``delete``, and whether the object is gone already."""
        kind = self.kind(resource)
        for left in range(ATTEMPTS, 0, -1):
            record = self.record(resource, name, namespace)
            self._same(kind, record, {"uid": options.uid, "resourceVersion": options.version})
            self._admit_deletion(kind, record, options)
            try:
                return self._delete(kind, record, options)
            except ApiError as error:
                if error.code != 409 or left == 1:
                    raise
        raise AssertionError("unreachable")

    def _admit_deletion(self, kind: Kind, record: Record, options: Deletion) -> None:
        if kind.resource == "namespaces" and record.key.name in ("default", "kube-system", "kube-public"):
            raise errors.forbidden(kind.resource, record.key.name, "this namespace may not be deleted")
        for hook in self.validating.get(kind.resource, ()):
            hook(Admission(kind, "DELETE", copied(record.value), copied(record.value), dry_run=options.dry_run))

    def _delete(self, kind: Kind, record: Record, options: Deletion) -> tuple[Object, bool]:
        new = copied(record.value)
        _add_propagation(kind, new, options.propagation)
        grace_s = _grace_s(kind, new, options.grace_s)
        metadata = new["metadata"]
        gone = not _held(kind, new) and grace_s == 0
        if not gone:
            _mark_deleted(kind, metadata, grace_s)
            if kind.resource == "namespaces":
                new["status"]["phase"] = "Terminating"
        if options.dry_run or (not gone and new == record.value):
            return new, gone
        if gone:
            return copied(self.etcd.remove(record.key, new, record.version).value), True
        return copied(self.etcd.write(record.key, new, record.version).value), False

    def delete_all(
        self, resource: str, namespace: str | None, labels: str = "", fields: str = "", options: Deletion | None = None
    ) -> list[Object]:
        """Delete what matches; returns what it was."""
        found = []
        for record in self.records(resource, namespace, labels, fields)[0]:
            try:
                place = record.key.namespace or None
                found.append(self.deleted(resource, record.key.name, place, options or Deletion())[0])
            except ApiError as error:
                if error.code != 404:
                    raise
        return found

    def _key(self, kind: Kind, name: str, namespace: str | None) -> Key:
        return Key(kind.resource, (namespace or "") if kind.namespaced else "", name)

    def close(self) -> None:
        """End all watches."""
        self.etcd.close()


def _established(crd: Object) -> bool:
    conditions: Iterable[Object] = at(crd, "status.conditions") or ()
    return any(part["type"] == "Established" and part["status"] == "True" for part in conditions)


def _begin(kind: Kind, value: Object) -> None:
    """The metadata of a new object; a status that a client sends along is dropped where it has a door of its own."""
    metadata = value["metadata"]
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink", "managedFields"):
        metadata.pop(key, None)
    metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()}
    if kind.generation:
        metadata["generation"] = 1
    if kind.status and kind.resource != "nodes":  # a kubelet registers its node with what it has
        value.pop("status", None)


def _status_of(kind: Kind, old: Object, new: Object) -> Object:
    """What an update of the status may change: the status, and of built-in kinds labels and annotations too."""
    if not kind.status:
        raise errors.no_such_path()
    result: Object = copied(old)
    if "status" in new:
        result["status"] = new["status"]
    else:
        result.pop("status", None)
    if not kind.custom:
        result["metadata"] = new["metadata"]
    return result


def _all_but_status(kind: Kind, old: Object, new: Object) -> Object:
    if kind.status:
        new.pop("status", None)
        if "status" in old:
            new["status"] = copied(old["status"])
    return new


def _keep_metadata(old: Object, new: Object) -> None:
    """What no client can change."""
    for key in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "namespace"):
        new["metadata"].pop(key, None)
        if key in old["metadata"]:
            new["metadata"][key] = old["metadata"][key]
    new["metadata"].pop("managedFields", None)


def _spec(kind: Kind, value: Object) -> Object:
    """What ``generation`` counts the changes of."""
    beside = ("metadata", "status") if kind.status or not kind.custom else ("metadata",)
    return {key: part for key, part in value.items() if key not in beside}


POD_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates", "nodeName")


def _change_faults(kind: Kind, old: Object, new: Object) -> list[FieldFault]:
    found = []
    before, after = (set(value["metadata"].get("finalizers") or ()) for value in (old, new))
    if "deletionTimestamp" in old["metadata"] and after - before:
        added = ", ".join(f'"{name}"' for name in sorted(after - before))
        why = "no new finalizers can be added if the object is being deleted, found new finalizers"
        found.append(FieldFault("metadata.finalizers", "FieldValueForbidden", f"Forbidden: {why} []string{{{added}}}"))
    for path in kind.immutable:
        if at(old, path) is not None and at(old, path) != at(new, path):
            found.append(FieldFault(path, "FieldValueInvalid", f"Invalid value: {at(new, path)}: field is immutable"))
    if kind.resource == "pods" and _frozen_pod(old) != _frozen_pod(new):
        why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
        why += "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
        why += "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        found.append(FieldFault("spec", "FieldValueForbidden", f"Forbidden: {why}"))
    return found


def _frozen_pod(pod: Object) -> Object:
    """What of a pod's spec never changes; its node is given once, by the scheduler."""
    spec = {key: part for key, part in pod.get("spec", {}).items() if key not in POD_MUTABLE}
    for name in ("containers", "initContainers"):
        spec[name] = [{**container, "image": ""} for container in spec.get(name) or ()]
    return spec


def _held(kind: Kind, value: Object) -> bool:
    """Whether something still holds an object that is to be deleted."""
    held = bool(value["metadata"].get("finalizers"))
    if kind.resource == "namespaces":
        return held or bool(at(value, "spec.finalizers"))
    if kind.resource == "pods":
        return held or value["metadata"].get("deletionGracePeriodSeconds", 0) > 0
    return held


def _add_propagation(kind: Kind, value: Object, propagation: str | None) -> None:
    finalizers = [name for name in value["metadata"].get("finalizers") or () if name not in (FOREGROUND, ORPHAN)]
    if propagation is None and kind.resource == "jobs.batch":
        propagation = "Orphan"
    if propagation is None:
        return
    if propagation not in ("Background", "Foreground", "Orphan"):
        supported = '"Background", "Foreground", "Orphan"'
        detail = f'Unsupported value: "{propagation}": supported values: {supported}'
        raise errors.invalid("DeleteOptions", "meta.k8s.io", "", [FieldFault("propagationPolicy", "FieldValueNotSupported", detail)])
    if propagation != "Background":
        finalizers.append(FOREGROUND if propagation == "Foreground" else ORPHAN)
    if finalizers:
        value["metadata"]["finalizers"] = finalizers
    else:
        value["metadata"].pop("finalizers", None)


def _grace_s(kind: Kind, value: Object, asked_s: int | None) -> int:
    """How long a pod may take to end: nothing when it never ran or is over."""
    if kind.resource != "pods" or not at(value, "spec.nodeName") or at(value, "status.phase") in ("Succeeded", "Failed"):
        value["metadata"].pop("deletionGracePeriodSeconds", None)
        return 0
    grace_s = at(value, "spec.terminationGracePeriodSeconds") if asked_s is None else asked_s
    current_s = value["metadata"].get("deletionGracePeriodSeconds")
    grace_s = max(grace_s or 0, 0) if current_s is None else min(max(grace_s or 0, 0), current_s)
    if grace_s == 0:
        value["metadata"].pop("deletionGracePeriodSeconds", None)
    return grace_s  # type: ignore[no-any-return]


def _mark_deleted(kind: Kind, metadata: Object, grace_s: int) -> None:
    if "deletionTimestamp" not in metadata or metadata.get("deletionGracePeriodSeconds", 0) > grace_s:
        metadata["deletionTimestamp"] = timestamp(grace_s)
        if kind.generation:
            metadata["generation"] = metadata.get("generation", 0) + 1
    metadata["deletionGracePeriodSeconds"] = grace_s
