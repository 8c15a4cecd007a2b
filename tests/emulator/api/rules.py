"""What each kind of request may do to an object: what it keeps, what it may not change, what holds a deletion."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from tests.emulator.api import errors
from tests.emulator.api.errors import FieldFault
from tests.emulator.api.kinds import Kind, Object
from tests.emulator.api.objects import at, copied, timestamp

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


def established(crd: Object) -> bool:
    conditions: Iterable[Object] = at(crd, "status.conditions") or ()
    return any(part["type"] == "Established" and part["status"] == "True" for part in conditions)


def begin(kind: Kind, value: Object) -> None:
    """The metadata of a new object; a status that a client sends along is dropped where it has a door of its own."""
    metadata = value["metadata"]
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink", "managedFields"):
        metadata.pop(key, None)
    metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()}
    if kind.generation:
        metadata["generation"] = 1
    if kind.status and kind.resource != "nodes":  # a kubelet registers its node with what it has
        value.pop("status", None)


def status_of(kind: Kind, old: Object, new: Object) -> Object:
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


def all_but_status(kind: Kind, old: Object, new: Object) -> Object:
    if kind.status:
        new.pop("status", None)
        if "status" in old:
            new["status"] = copied(old["status"])
    return new


KEPT = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "namespace")


def keep_metadata(old: Object, new: Object) -> None:
    """What no client can change."""
    for key in KEPT:
        new["metadata"].pop(key, None)
        if key in old["metadata"]:
            new["metadata"][key] = old["metadata"][key]
    new["metadata"].pop("managedFields", None)


def spec(kind: Kind, value: Object) -> Object:
    """What ``generation`` counts the changes of."""
    beside = ("metadata", "status") if kind.status or not kind.custom else ("metadata",)
    return {key: part for key, part in value.items() if key not in beside}


POD_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates", "nodeName")


def change_faults(kind: Kind, old: Object, new: Object) -> list[FieldFault]:
    found = []
    before, after = (set(value["metadata"].get("finalizers") or ()) for value in (old, new))
    if "deletionTimestamp" in old["metadata"] and after - before:
        added = ", ".join(f'"{name}"' for name in sorted(after - before))
        why = "no new finalizers can be added if the object is being deleted, found new finalizers"
        found.append(FieldFault("metadata.finalizers", "FieldValueForbidden", f"Forbidden: {why} []string{{{added}}}"))
    for path in kind.immutable:
        if at(old, path) is not None and at(old, path) != at(new, path):
            found.append(FieldFault(path, "FieldValueInvalid", f"Invalid value: {at(new, path)}: field is immutable"))
    if kind.resource == "pods" and frozen_pod(old) != frozen_pod(new):
        why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
        why += "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
        why += "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        found.append(FieldFault("spec", "FieldValueForbidden", f"Forbidden: {why}"))
    return found


def frozen_pod(pod: Object) -> Object:
    """What of a pod's spec never changes; its node is given once, by the scheduler."""
    spec = {key: part for key, part in pod.get("spec", {}).items() if key not in POD_MUTABLE}
    for name in ("containers", "initContainers"):
        spec[name] = [{**container, "image": ""} for container in spec.get(name) or ()]
    return spec


def held(kind: Kind, value: Object) -> bool:
    """Whether something still holds an object that is to be deleted."""
    held = bool(value["metadata"].get("finalizers"))
    if kind.resource == "namespaces":
        return held or bool(at(value, "spec.finalizers"))
    if kind.resource == "pods":
        return held or value["metadata"].get("deletionGracePeriodSeconds", 0) > 0
    return held


def add_propagation(kind: Kind, value: Object, propagation: str | None) -> None:
    finalizers = [name for name in value["metadata"].get("finalizers") or () if name not in (FOREGROUND, ORPHAN)]
    if propagation is None and kind.resource == "jobs.batch":
        propagation = "Orphan"
    if propagation is None:
        return
    if propagation not in ("Background", "Foreground", "Orphan"):
        supported = '"Background", "Foreground", "Orphan"'
        detail = f'Unsupported value: "{propagation}": supported values: {supported}'
        fault = FieldFault("propagationPolicy", "FieldValueNotSupported", detail)
        raise errors.invalid("DeleteOptions", "meta.k8s.io", "", [fault])
    if propagation != "Background":
        finalizers.append(FOREGROUND if propagation == "Foreground" else ORPHAN)
    if finalizers:
        value["metadata"]["finalizers"] = finalizers
    else:
        value["metadata"].pop("finalizers", None)


def grace_s(kind: Kind, value: Object, asked_s: int | None) -> int:
    """How long a pod may take to end: nothing when it never ran or is over."""
    runs = bool(at(value, "spec.nodeName")) and at(value, "status.phase") not in ("Succeeded", "Failed")
    if kind.resource != "pods" or not runs:
        value["metadata"].pop("deletionGracePeriodSeconds", None)
        return 0
    grace_s = at(value, "spec.terminationGracePeriodSeconds") if asked_s is None else asked_s
    current_s = value["metadata"].get("deletionGracePeriodSeconds")
    grace_s = max(grace_s or 0, 0) if current_s is None else min(max(grace_s or 0, 0), current_s)
    if grace_s == 0:
        value["metadata"].pop("deletionGracePeriodSeconds", None)
    return grace_s


def mark_deleted(kind: Kind, metadata: Object, grace_s: int) -> None:
    if "deletionTimestamp" not in metadata or metadata.get("deletionGracePeriodSeconds", 0) > grace_s:
        metadata["deletionTimestamp"] = timestamp(grace_s)
        if kind.generation:
            metadata["generation"] = metadata.get("generation", 0) + 1
    metadata["deletionGracePeriodSeconds"] = grace_s
