"""A Kubernetes cluster as this program uses it: get, list, create, patch, delete, logs, watch."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.kube import http as kube_http
from raytune_autotuner.kube import watch as kube_watch
from raytune_autotuner.kube.http import (
    Conflict,
    Connection,
    Lines,
    Load,
    Rejected,
    Request,
    Tunnel,
    Unauthorized,
    Unreachable,
)
from raytune_autotuner.kube.kinds import (
    BASE_MODEL,
    BENCHMARK_JOB,
    CLUSTER_BASE_MODEL,
    CLUSTER_SERVING_RUNTIME,
    CONFIG_MAP,
    CRD,
    CRON_JOB,
    DEPLOYMENT,
    EVENT,
    HPA,
    INFERENCE_SERVICE,
    JOB,
    KINDS,
    NAMESPACE,
    NODE,
    POD,
    PVC,
    REPLICA_SET,
    RESOURCE_QUOTA,
    SECRET,
    SELF_SUBJECT_ACCESS_REVIEW,
    SERVICE,
    SERVICE_ACCOUNT,
    SERVING_RUNTIME,
    Kind,
)
from raytune_autotuner.kube.watch import Event, Gone, Manifest, Matches, Subscription, has_labels

__all__ = [
    "BASE_MODEL",
    "BENCHMARK_JOB",
    "CLUSTER_BASE_MODEL",
    "CLUSTER_SERVING_RUNTIME",
    "CONFIG_MAP",
    "CRD",
    "CRON_JOB",
    "DEPLOYMENT",
    "EVENT",
    "HPA",
    "INFERENCE_SERVICE",
    "JOB",
    "KINDS",
    "NAMESPACE",
    "NODE",
    "POD",
    "PVC",
    "REPLICA_SET",
    "RESOURCE_QUOTA",
    "SECRET",
    "SELF_SUBJECT_ACCESS_REVIEW",
    "SERVICE",
    "SERVICE_ACCOUNT",
    "SERVING_RUNTIME",
    "Cluster",
    "Conflict",
    "Event",
    "Gone",
    "Kind",
    "Manifest",
    "Manifests",
    "Matches",
    "Rejected",
    "Subscription",
    "Unauthorized",
    "Unreachable",
    "has_labels",
]

FIELD_MANAGER = "raytune-autotuner"
MERGE_PATCH = "application/merge-patch+json"
PATIENCE_S = 60.0
"""How long one call is tried again while the server is away, overloaded or broken."""
SILENCE_S = 5.0
"""What a watch may be silent beyond its end."""
PAGE = 500

Manifests = list[Manifest]
T = TypeVar("T")


class Cluster:
    """A Kubernetes API server, as one user. May be used by several threads at once.

    Whatever is called raises, besides what it says itself:

    - ``Rejected``: the server refuses; the error carries its message, status and reason.
    - ``Unreachable``: no proper answer for as long as the policy tries (``PATIENCE_S``).
    - ``Unauthorized``: the credentials are not taken.
    """

    def __init__(self, load: Load, identity: str, *, inside: bool = False, patience_s: float = PATIENCE_S) -> None:
        self.identity = identity
        """Tells servers and users apart, for the watches that are shared."""
        self.inside = inside
        """Whether this process runs in a pod of the cluster, and so reaches its Services."""
        self.patience_s = patience_s
        self.kubeconfig: Path | None = None
        self.context: str | None = None
        self._connection = Connection(load)

    @classmethod
    def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Cluster:
        """As kubectl: the file given, else $KUBECONFIG, else the pod that this runs in, else ~/.kube/config.

        Raises:
            EnvironmentFault: there is no configuration, or it cannot be used.
        """
        named = kubeconfig or os.environ.get("KUBECONFIG")
        if not named and context is None and kube_http.in_pod():
            return cls(kube_http.load_in_pod, "pod", inside=True)
        path = Path(named or "~/.kube/config").expanduser()
        if os.pathsep not in str(path) and not path.is_file():
            ways = "name one with $KUBECONFIG, --set ome.kubeconfig=FILE, or (gc) --kubeconfig"
            raise EnvironmentFault(f"no Kubernetes configuration at {path}: {ways}")
        identity = f"{path.absolute()} {context} {path.stat().st_mtime_ns if path.is_file() else 0}"
        cluster = cls(lambda: kube_http.load_file(path, context), identity)
        cluster.kubeconfig, cluster.context = path, context
        return cluster

    def close(self) -> None:
        """Let go of idle connections; the object can still be used."""
        self._connection.close()

    def with_patience(self, seconds: float) -> Cluster:
        """The same cluster for calls that are tried again for this long only."""
        other = copy.copy(self)
        other.patience_s = seconds
        return other

    def server_version(self) -> str:
        return str(self._call(Request("GET", "/version"))["gitVersion"])

    def api_versions(self, group: str) -> tuple[str, ...]:
        """The served versions of a group; empty when the server does not know it."""
        try:
            found = self._call(Request("GET", f"/apis/{quote(group)}" if group else "/api"))
        except Rejected as error:
            return _unless_absent(error, ())
        return tuple(v if isinstance(v, str) else v["version"] for v in found["versions"])

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Manifest | None:
        """The object, or ``None`` when there is none of this name."""
        try:
            return self._call(Request("GET", _path(kind, namespace, name)))
        except Rejected as error:
            return _unless_absent(error, None)

    def list(
        self, kind: Kind, namespace: str | None = None, labels: Mapping[str, str] | None = None, fields: str = ""
    ) -> Manifests:
        """The objects with all these labels and matching field selector, of all namespaces when none is given."""
        query = {"labelSelector": ",".join(f"{k}={v}" for k, v in (labels or {}).items()), "fieldSelector": fields}
        return self._retried(lambda: self._pages(kind, namespace, query))[0]

    def create(self, kind: Kind, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Create an object, with unknown fields refused; the object as the server has it.

        Raises:
            Conflict: there is one of this name, and it is not what an earlier attempt of this call made.
        """
        query = {**_WRITE, "dryRun": "All" if dry_run else ""}
        request = Request("POST", _path(kind, manifest["metadata"].get("namespace")), query, manifest)
        attempts = 0

        def attempt() -> Manifest:
            nonlocal attempts
            attempts += 1
            return self._connection.json(request)

        try:
            return self._retried(attempt)
        except Conflict:
            made = self._made(kind, manifest) if attempts > 1 else None
            if made is None:
                raise
            return made

    def patch(self, kind: Kind, name: str, namespace: str | None, body: Manifest) -> Manifest:
        """Merge a patch into an object: mappings by key, ``None`` removes, lists are replaced."""
        return self._call(Request("PATCH", _path(kind, namespace, name), _WRITE, body, MERGE_PATCH))

    def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Write an object back.

        Raises:
            Conflict: somebody else has written it since (its ``resourceVersion`` is not the current one).
        """
        meta = manifest["metadata"]
        return self._call(Request("PUT", _path(kind, meta.get("namespace"), meta["name"]), _WRITE, manifest))

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
        """Order the deletion of an object; what is absent is deleted already.

        Raises:
            Conflict: ``uid`` is given and the object of this name is another one.
        """
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self._call(Request("DELETE", _path(kind, namespace, name), {}, options))
        except Rejected as error:
            _unless_absent(error, None)

    def logs(
        self, namespace: str, pod: str, *, container: str | None = None, previous: bool = False, tail_lines: int = 100
    ) -> str:
        """The end of a container's log; empty when it has none (yet)."""
        query = {"container": container or "", "previous": "true" if previous else "", "tailLines": str(tail_lines)}
        request = Request("GET", f"{_path(POD, namespace, pod)}/log", query)
        try:
            return self._retried(lambda: self._connection.read(request)).decode("utf-8", "replace")
        except Rejected as error:
            if error.status in (400, 404):  # the container has not started, or there was none before it
                return ""
            raise

    def can_i(self, verb: str, kind: Kind, namespace: str | None, subresource: str = "") -> bool:
        """Whether this user may do this, as the server's authorizer says."""
        attributes = {"verb": verb, "group": kind.group, "resource": kind.plural, "subresource": subresource}
        if kind.namespaced and namespace:
            attributes["namespace"] = namespace
        review = _object(SELF_SUBJECT_ACCESS_REVIEW, {"spec": {"resourceAttributes": attributes}})
        answer = self._call(Request("POST", _path(SELF_SUBJECT_ACCESS_REVIEW, None), {}, review))
        return bool(answer["status"].get("allowed"))

    def watch(self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None) -> Subscription:
        """The objects with these labels, and what becomes of them; see ``kube_watch``."""
        return self.watch_all(namespace, {kind: has_labels(labels or {})})

    def watch_all(self, namespace: str | None, interests: Mapping[Kind, Matches]) -> Subscription:
        """Several kinds in one subscription, each with a filter of its own."""
        return kube_watch.subscribe(self, namespace, interests)

    def open_port(self, namespace: str, pod: str, port: int) -> Tunnel:
        """A connection to a port of a pod, through the server."""
        return self._connection.port(namespace, pod, port)

    def snapshot(self, kind: Kind, namespace: str | None) -> tuple[Manifests, str]:
        """See ``kube_watch.Source``."""
        return self._retried(lambda: self._pages(kind, namespace, {}), patience_s=0)

    def stream(self, kind: Kind, namespace: str | None, version: str, seconds: int) -> Lines:
        """See ``kube_watch.Source``."""
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        query["timeoutSeconds"] = str(seconds)
        request = Request("GET", _path(kind, namespace), query, read_s=seconds + SILENCE_S)
        return self._retried(lambda: self._connection.lines(request), patience_s=0)

    def _call(self, request: Request) -> Manifest:
        return self._retried(lambda: self._connection.json(request))

    def _retried(self, attempt: Callable[[], T], patience_s: float | None = None) -> T:
        return self._connection.retried(attempt, self.patience_s if patience_s is None else patience_s)

    def _made(self, kind: Kind, manifest: Manifest) -> Manifest | None:
        """What an attempt to create this has made although its answer was lost."""
        meta = manifest["metadata"]
        found = self.get(kind, meta["name"], meta.get("namespace")) if "name" in meta else None
        return found if found is not None and _contains(found, manifest) else None

    def _pages(self, kind: Kind, namespace: str | None, query: Mapping[str, str]) -> tuple[Manifests, str]:
        found: Manifests = []
        token = ""
        while True:
            more = {**query, "limit": str(PAGE), "continue": token}
            page = self._connection.json(Request("GET", _path(kind, namespace), more))
            found += page["items"]
            token = page["metadata"].get("continue") or ""
            if not token:
                return [_object(kind, item) for item in found], str(page["metadata"]["resourceVersion"])


_WRITE = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}


def _unless_absent(error: Rejected, value: T) -> T:
    if error.status == 404:
        return value
    raise error


def _path(kind: Kind, namespace: str | None, name: str = "") -> str:
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    place = f"/namespaces/{quote(namespace, safe='')}" if kind.namespaced and namespace else ""
    return f"{root}{place}/{kind.plural}" + (f"/{quote(name, safe='')}" if name else "")


def _object(kind: Kind, thing: Manifest) -> Manifest:
    """A list leaves out of its items what it says once."""
    return {"apiVersion": kind.api_version, "kind": kind.kind, **thing}


def _contains(found: Any, wanted: Any) -> bool:
    """Whether what was found is what was wanted, with defaults filled in."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_contains(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_contains, found, wanted))
    return bool(found == wanted)
