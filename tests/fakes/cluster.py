"""A cluster in memory: what ``kube.Cluster`` shows of one, without HTTP.

It gives uids, versions and times, refuses like a server, collects garbage by ownerReference and tells watchers. A
controller is a function in ``controllers``, called with every object that was created.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from raytune_autotuner.kube import Conflict, Kind, Rejected
from raytune_autotuner.kube.watch import Event, Matches, Subscription, has_labels

Manifest = dict[str, Any]
Key = tuple[Kind, str | None, str]


class FakeCluster:
    inside = False

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self.version = "v1.32.4"
        self.groups: dict[str, tuple[str, ...]] = {"ome.io": ("v1beta1",)}
        self.denied: set[tuple[str, str, str, str]] = set()
        """(verb, resource, subresource, scope) that is not allowed."""
        self.controllers: list[Callable[[Kind, Manifest], None]] = []
        self.faults: list[tuple[str, Kind | None, Exception]] = []
        """(method, kind or any, what it raises); each is raised once."""
        self.calls: list[tuple[str, Kind, str]] = []
        self.undying: set[str] = set()
        """Names of objects whose deletion is ordered and never done, unless by force."""
        self.log: Callable[[str], str] = lambda pod: ""
        self._objects: dict[Key, Manifest] = {}
        self._numbers = itertools.count(1)
        self._watchers: list[tuple[str | None, Mapping[Kind, Matches], Subscription]] = []

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def objects(self, kind: Kind) -> list[str]:
        return sorted(name for of, _, name in self._objects if of == kind)

    def put(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Store an object as a controller does, and tell the watchers."""
        key = _key(kind, manifest)
        known = self._objects.get(key)
        kept = copy.deepcopy(manifest)
        meta = kept["metadata"]
        meta["uid"] = known["metadata"]["uid"] if known else f"uid-{next(self._numbers)}"
        meta["creationTimestamp"] = known["metadata"]["creationTimestamp"] if known else self._time()
        meta["resourceVersion"] = str(next(self._numbers))
        self._objects[key] = kept
        self._tell("MODIFIED" if known else "ADDED", kind, kept)
        return copy.deepcopy(kept)

    def set_status(self, kind: Kind, name: str, namespace: str, **status: Any) -> None:
        found = self._objects[kind, namespace, name]
        self.put(kind, {**found, "status": {**(found.get("status") or {}), **status}})

    def server_version(self) -> str:
        self._fault("server_version", None)
        return self.version

    def api_versions(self, group: str) -> tuple[str, ...]:
        return self.groups.get(group, ())

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Manifest | None:
        self._check("get", kind, name, namespace)
        return copy.deepcopy(self._objects.get((kind, namespace if kind.namespaced else None, name)))

    def list(
        self, kind: Kind, namespace: str | None = None, labels: Mapping[str, str] | None = None, fields: str = ""
    ) -> list[Manifest]:
        self._check("list", kind, "", namespace)
        matches = has_labels(labels or {})
        found = [each for (of, place, _), each in self._objects.items() if of == kind and namespace in (None, place)]
        return [copy.deepcopy(each) for each in found if matches(each) and _selected(each, fields)]

    def create(self, kind: Kind, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        name, namespace = manifest["metadata"]["name"], manifest["metadata"].get("namespace")
        self._check("create", kind, name, namespace)
        if _key(kind, manifest) in self._objects:
            raise Conflict(f"{kind.plural} {name} already exists")
        if dry_run:
            return {**manifest, "metadata": {**manifest["metadata"], "creationTimestamp": self._time()}}
        kept = self.put(kind, manifest)
        for controller in self.controllers:
            controller(kind, copy.deepcopy(kept))
        return kept

    def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        meta = manifest["metadata"]
        self._check("update", kind, meta["name"], meta.get("namespace"))
        known = self._objects.get(_key(kind, manifest))
        if known is None:
            raise Rejected(f"{kind.plural} {meta['name']} not found", 404, "NotFound")
        if known["metadata"]["resourceVersion"] != meta["resourceVersion"]:
            raise Conflict("the object has been modified")
        return self.put(kind, manifest)

    def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None,
        *,
        grace_s: int | None = None,
        propagation: str = "Background",
        uid: str | None = None,
    ) -> None:
        self._check("delete", kind, name, namespace)
        found = self._objects.get((kind, namespace, name))
        if found is None:
            return
        if uid not in (None, found["metadata"]["uid"]):
            raise Conflict("the uid differs")
        if name in self.undying and grace_s != 0:
            found["metadata"].setdefault("deletionTimestamp", self._time())
            return
        del self._objects[kind, namespace, name]
        self._tell("DELETED", kind, found)
        owned = [(of, each["metadata"]["name"]) for (of, _, _), each in self._objects.items() if _owned(each, found)]
        for of, child in owned:
            self.delete(of, child, namespace)

    def logs(
        self, namespace: str, pod: str, *, container: str | None = None, previous: bool = False, tail_lines: int = 100
    ) -> str:
        self._fault("logs", None)
        return "\n".join(self.log(pod).splitlines()[-tail_lines:])

    def can_i(self, verb: str, kind: Kind, namespace: str | None, subresource: str = "") -> bool:
        scope = "namespace" if namespace else "cluster"
        return (verb, kind.plural, subresource, scope) not in self.denied

    def watch(self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None) -> Subscription:
        return self.watch_all(namespace, {kind: has_labels(labels or {})})

    def watch_all(self, namespace: str | None, interests: Mapping[Kind, Matches]) -> Subscription:
        subscription = Subscription()
        self._watchers.append((namespace, interests, subscription))
        for (kind, place, _), each in list(self._objects.items()):
            if kind in interests and place == namespace and interests[kind](each):
                subscription.tell(Event("ADDED", copy.deepcopy(each), kind))
        return subscription

    def _tell(self, change: Any, kind: Kind, thing: Manifest) -> None:
        for namespace, interests, subscription in self._watchers:
            if thing["metadata"].get("namespace") == namespace and kind in interests and interests[kind](thing):
                subscription.tell(Event(change, copy.deepcopy(thing), kind))

    def _check(self, verb: str, kind: Kind, name: str, namespace: str | None) -> None:
        self.calls.append((verb, kind, name))
        self._fault(verb, kind)
        if not self.can_i(verb, kind, namespace if kind.namespaced else None):
            raise Rejected(f"{kind.plural} is forbidden: cannot {verb}", 403, "Forbidden")

    def _fault(self, method: str, kind: Kind | None) -> None:
        for fault in self.faults:
            if fault[0] == method and fault[1] in (None, kind):
                self.faults.remove(fault)
                raise fault[2]

    def _time(self) -> str:
        return self.now.isoformat(timespec="seconds").replace("+00:00", "Z")


def _key(kind: Kind, manifest: Manifest) -> Key:
    return kind, manifest["metadata"].get("namespace"), manifest["metadata"]["name"]


def _owned(each: Manifest, owner: Manifest) -> bool:
    references = each["metadata"].get("ownerReferences") or []
    return any(reference["uid"] == owner["metadata"]["uid"] for reference in references)


def _selected(each: Manifest, fields: str) -> bool:
    return all(_field(each, path) == value for path, value in _pairs(fields))


def _pairs(fields: str) -> Iterator[tuple[str, str]]:
    for term in filter(None, fields.split(",")):
        path, _, value = term.partition("=")
        yield path, value


def _field(each: Any, path: str) -> Any:
    for step in path.split("."):
        each = (each or {}).get(step)
    return each
