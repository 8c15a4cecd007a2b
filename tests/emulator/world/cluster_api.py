"""The few things that every controller does with the API."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from tests.emulator.api.errors import ApiError
from tests.emulator.api.objects import copied, timestamp
from tests.emulator.api.store import Store

Object = dict[str, Any]


def owner_reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owned_by(value: Object, uid: str) -> bool:
    return any(owner["uid"] == uid for owner in value["metadata"].get("ownerReferences") or ())


def owner_named(value: Object, kind: str) -> str | None:
    """The name of the owner of a kind."""
    owners = value["metadata"].get("ownerReferences") or ()
    return next((owner["name"] for owner in owners if owner["kind"] == kind), None)


def ensure(store: Store, resource: str, value: Object) -> Object:
    """Create the object unless it is there; what is there is returned as it is."""
    metadata = value["metadata"]
    found = store.find(resource, metadata["name"], metadata.get("namespace"))
    if found is not None:
        return found
    try:
        return store.create(resource, value, metadata.get("namespace"))
    except ApiError as error:
        if error.code == 409 and (found := store.find(resource, metadata["name"], metadata.get("namespace"))):
            return found
        raise


def change_status(
    store: Store, resource: str, name: str, namespace: str, change: Callable[[Object], None]
) -> Object | None:
    """Change an object's status in place and write it if that made a difference; ``None`` when the object is gone."""
    while (found := store.find(resource, name, namespace)) is not None:
        before = copied(found.get("status"))
        change(found.setdefault("status", {}))
        if found["status"] == (before or {}):
            return found
        try:
            return store.update_status(resource, found)
        except ApiError as error:
            if error.code == 404:
                return None
            if error.code != 409:
                raise
    return None


def set_condition(status: Object, kind: str, state: str, reason: str = "", message: str = "", **more: Any) -> bool:
    """Set one condition; its transition time changes only with its state. Whether the state changed."""
    conditions: list[Object] = status.setdefault("conditions", [])
    old = next((condition for condition in conditions if condition["type"] == kind), None)
    new = {"type": kind, "status": state, **more}
    if reason:
        new["reason"] = reason
    if message:
        new["message"] = message
    changed = old is None or old["status"] != state
    new["lastTransitionTime"] = timestamp() if changed or old is None else old.get("lastTransitionTime", timestamp())
    if old is None:
        conditions.append(new)
    else:
        conditions[conditions.index(old)] = new
    return changed


def condition(value: Object | None, kind: str) -> Object | None:
    conditions = ((value or {}).get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), None)


def event(store: Store, about: Object, kind: str, reason: str, message: str, source: str) -> None:
    """Record an event; the same one again only counts up, as the real recorder does."""
    metadata = about["metadata"]
    namespace = metadata.get("namespace") or "default"
    said = hashlib.sha256(f"{metadata['uid']}/{reason}/{message}".encode()).hexdigest()[:16]
    name = f"{metadata['name']}.{said}"
    now = timestamp()
    try:
        old = store.find("events", name, namespace)
        if old is not None:
            old["count"] = old.get("count", 1) + 1
            old["lastTimestamp"] = now
            store.update("events", old)
            return
        store.create("events", _event(about, namespace, name, now) | _said(kind, reason, message, source), namespace)
    except ApiError as error:
        if error.code not in (403, 404, 409):  # the namespace is on its way out, or somebody was faster
            raise


def _event(about: Object, namespace: str, name: str, now: str) -> Object:
    metadata = about["metadata"]
    involved = {
        "apiVersion": about["apiVersion"],
        "kind": about["kind"],
        "name": metadata["name"],
        "namespace": metadata.get("namespace", ""),
        "uid": metadata["uid"],
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _said(kind: str, reason: str, message: str, source: str) -> Object:
    return {"type": kind, "reason": reason, "message": message, "source": {"component": source}}


def selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def matches(labels: Mapping[str, str] | None, wanted: Mapping[str, str]) -> bool:
    return all((labels or {}).get(key) == value for key, value in wanted.items())
