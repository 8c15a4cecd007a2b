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

from typing import Any

from tests.emulator.api import decode, defaults, errors, rules, selectors
from tests.emulator.api.admission import Admission, Deletion, Hook
from tests.emulator.api.builtin import fill_status
from tests.emulator.api.errors import ApiError, FieldFault
from tests.emulator.api.etcd import Change, Etcd, Key, Record
from tests.emulator.api.kinds import BUILT_IN, CRD, Kind, Object, from_crd
from tests.emulator.api.objects import copied, random_suffix
from tests.emulator.api.patch import MERGE, patched
from tests.emulator.api.selectors import Condition
from tests.emulator.api.watch import Watch

Records = list[Record]
Objects = list[Object]
Warnings = list[str]
ATTEMPTS = 100
"""Of a patch against a moving object, before the conflict is told."""


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
        elif rules.established(change.record.value):
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

    def list(self, resource: str, namespace: str | None = None, labels: str = "", fields: str = "") -> Objects:
        """The objects that match, in all namespaces when none is given."""
        return [copied(record.value) for record in self.records(resource, namespace, labels, fields)[0]]

    def records(
        self, resource: str, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> tuple[Records, int]:
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
    ) -> tuple[Object, Warnings]:
        """As ``create``, with the warnings."""
        kind = self.kind(resource)
        new, warnings = decode.decode(kind, version or kind.version, value, validation)
        key = self._new_key(kind, new, namespace)
        if new["metadata"].pop("resourceVersion", ""):
            raise ApiError(500, "resourceVersion should not be set on objects to be created", "")
        rules.begin(kind, new)
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
            raise ApiError(400, f"the request to {kind.resource} names no namespace")
        metadata["namespace"] = given
        return given

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
        self,
        resource: str,
        value: Object,
        *,
        dry_run: bool = False,
        validation: str = "Ignore",
        version: str | None = None,
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
    ) -> tuple[Object, Warnings]:
        """As ``update`` (or of a subresource), with the warnings."""
        kind = self.kind(resource)
        metadata = value.get("metadata") or {}
        record = self.record(resource, metadata.get("name", ""), metadata.get("namespace"))
        if kind.custom and not metadata.get("resourceVersion"):
            detail = "Invalid value: 0: must be specified for an update"
            fault = FieldFault("metadata.resourceVersion", "FieldValueInvalid", detail)
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
        options: Any = {"dry_run": dry_run, "validation": validation}
        return self.patched(resource, name, patch, namespace, type_, subresource, **options)[0]

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
    ) -> tuple[Object, Warnings]:
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
            raise ApiError(400, "the name of the object does not match the name on the URL")
        new = rules.status_of(kind, old, new) if subresource == "status" else rules.all_but_status(kind, old, new)
        rules.keep_metadata(old, new)
        if not kind.custom:
            defaults.apply(kind, new)
            fill_status(kind, new)
        self._admit(Admission(kind, "UPDATE", new, copied(old), subresource, dry_run))
        self._check(kind, new, old)
        if kind.generation and rules.spec(kind, new) != rules.spec(kind, old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if dry_run or new == old:
            return copied(new)  # type: ignore[no-any-return]
        if "deletionTimestamp" in old["metadata"] and not rules.held(kind, new):
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
            found += rules.change_faults(kind, old, new)
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
        rules.add_propagation(kind, new, options.propagation)
        grace_s = rules.grace_s(kind, new, options.grace_s)
        metadata = new["metadata"]
        gone = not rules.held(kind, new) and grace_s == 0
        if not gone:
            rules.mark_deleted(kind, metadata, grace_s)
            if kind.resource == "namespaces":
                new["status"]["phase"] = "Terminating"
        if options.dry_run or (not gone and new == record.value):
            return new, gone
        if gone:
            return copied(self.etcd.remove(record.key, new, record.version).value), True
        return copied(self.etcd.write(record.key, new, record.version).value), False

    def delete_all(
        self, resource: str, namespace: str | None, labels: str = "", fields: str = "", options: Deletion | None = None
    ) -> Objects:
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
