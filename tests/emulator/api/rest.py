"""From a request to its answer."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.emulator.api import discovery, patch, pods, reviews
from tests.emulator.api.admission import Deletion
from tests.emulator.api.errors import ApiError, FieldFault, invalid, no_such_path
from tests.emulator.api.etcd import Record
from tests.emulator.api.faults import Faults
from tests.emulator.api.kinds import Kind, Object
from tests.emulator.api.objects import at, timestamp
from tests.emulator.api.rbac import Attempt, Authenticator, Authorizer, service_account
from tests.emulator.api.requests import Answer, Request, Stream, reply
from tests.emulator.api.store import Store
from tests.emulator.api.streaming import BOOKMARK_S, Streaming
from tests.emulator.api.watch import Watch

SUCCESS = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


class Rest:
    """The API on a store: authentication, authorization, and the verbs."""

    def __init__(self, store: Store, faults: Faults, hooks: pods.PodHooks) -> None:
        self.store = store
        self.faults = faults
        self.hooks = hooks
        self.bookmark_s = BOOKMARK_S
        self._lock = threading.Lock()
        self.authenticator = Authenticator()
        self.authorizer = Authorizer(store)
        self.open_watches: Counter[tuple[str, str]] = Counter()
        """By resource and namespace ("" for all)."""
        self.requests: Counter[tuple[str, str]] = Counter()
        """Since the start, by verb and resource."""

    def answer(self, request: Request) -> Answer:
        """Raises ``ApiError`` for whatever is refused."""
        request.user = self.authenticator.user(request.headers.get("Authorization", ""))
        with self._lock:
            self.requests[request.attempt.verb, request.resource] += 1
        self.faults.strike(request)
        self.authorizer.check(request.user, request.attempt)
        if request.attempt.path:
            return discovery.describe(self.store, request)
        if request.attempt.subresource:
            return self._subresource(request)
        return self._object(request)

    def _kind(self, request: Request) -> Kind:
        kind = self.store.kind(request.resource)
        if request.version not in kind.served:
            raise no_such_path()
        return kind

    def _object(self, request: Request) -> Answer:
        if request.attempt.verb == "create":
            return self._create(request)
        kind = self._kind(request)
        match request.attempt.verb:
            case "get":
                return reply(self.store.get(kind.resource, request.attempt.name, _namespace(request)))
            case "list":
                return self._list(kind, request)
            case "watch":
                return Stream(self._watch(kind, request))
            case "update":
                return self._update(request)
            case "patch":
                return self._patch(request)
            case "delete":
                return self._delete(kind, request)
            case "deletecollection":
                return self._delete_all(kind, request)
        raise ApiError(405, "the server does not allow this method on the requested resource")

    def _create(self, request: Request) -> Answer:
        body = request.json()
        if isinstance(body, dict):
            review = reviews.answer(self.authorizer, request.user, request.resource, body)
            if review:
                return reply(review, 201)
        kind = self._kind(request)
        created, warnings = self.store.created(
            kind.resource,
            body,
            _namespace(request),
            version=request.version,
            dry_run=request.dry_run,
            validation=_validation(request),
        )
        return reply(created, 201, warnings)

    def _update(self, request: Request, subresource: str = "") -> Answer:
        body = request.json()
        if not isinstance(body, dict):
            raise ApiError(400, "the body is not an object")
        _match_url(request, body)
        updated, warnings = self.store.updated(
            request.resource,
            body,
            subresource,
            dry_run=request.dry_run,
            validation=_validation(request),
            version=request.version,
        )
        return reply(updated, warnings=warnings)

    def _patch(self, request: Request, subresource: str = "") -> Answer:
        body = request.json()
        attempt, type_ = request.attempt, request.content_type
        if type_ == patch.APPLY:
            if not request.query.get("fieldManager"):
                fault = FieldFault("fieldManager", "FieldValueRequired", "Required value: is required for apply patch")
                raise invalid("PatchOptions", "meta.k8s.io", "", [fault])
            if not subresource and not self.store.find(request.resource, attempt.name, _namespace(request)):
                body.setdefault("metadata", {}).setdefault("name", attempt.name)
                request.headers = {}  # the body is read
                return self._apply_new(request, body)
        changed, warnings = self.store.patched(
            request.resource,
            attempt.name,
            body,
            _namespace(request),
            type_,
            subresource,
            dry_run=request.dry_run,
            validation=_validation(request),
        )
        return reply(changed, warnings=warnings)

    def _apply_new(self, request: Request, body: Object) -> Answer:
        options: dict[str, Any] = {"dry_run": request.dry_run, "validation": _validation(request)}
        created, warnings = self.store.created(request.resource, body, _namespace(request), **options)
        return reply(created, 201, warnings)

    def _delete(self, kind: Kind, request: Request) -> Answer:
        left, gone = self.store.deleted(kind.resource, request.attempt.name, _namespace(request), _deletion(request))
        if not gone or kind.returns_deleted:
            return reply(left)
        details = {"name": request.attempt.name, "group": kind.group, "kind": kind.plural}
        details["uid"] = left["metadata"]["uid"]
        return reply(SUCCESS | {"details": {key: value for key, value in details.items() if value}})

    def _delete_all(self, kind: Kind, request: Request) -> Answer:
        labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        version = self.store.etcd.version
        items = self.store.delete_all(kind.resource, _namespace(request), labels, fields, _deletion(request))
        metadata = {"resourceVersion": str(version)}
        return reply({"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": metadata, "items": items})

    def _list(self, kind: Kind, request: Request) -> Answer:
        labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        records, version = self.store.records(kind.resource, _namespace(request), labels, fields)
        page, metadata = _page(records, version, request)
        items = ",".join(record.text if kind.custom else record.bare for record in page)
        head = {"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": metadata}
        answer = reply({})
        answer.body = f'{json.dumps(head)[:-1]},"items":[{items}]}}'.encode()
        return answer

    def _subresource(self, request: Request) -> Answer:
        kind, attempt = self._kind(request), request.attempt
        if attempt.subresource == "status" and kind.status and attempt.verb in ("get", "update", "patch"):
            return self._status(request)
        if attempt.subresource not in kind.subresources:
            raise no_such_path()
        match attempt.subresource, attempt.verb:
            case "log", "get":
                return pods.log(self.store, self.hooks, request)
            case (("exec" | "portforward"), ("get" | "create")):
                self.authorizer.check(request.user, _as_create(attempt))
                return pods.connect(self.store, self.hooks, request)
            case "binding", "create":
                pods.bind(self.store, attempt.namespace, attempt.name, at(request.json(), "target.name") or "")
                return reply(SUCCESS, 201)
            case "eviction", "create":
                self.store.deleted("pods", attempt.name, attempt.namespace, Deletion())
                return reply(SUCCESS, 201)
            case "token", "create":
                return self._token(request)
            case "finalize", "update":
                return self._finalize(request)
            case "scale", ("get" | "update" | "patch"):
                return self._scale(request)
        raise ApiError(405, "the server does not allow this method on the requested resource")

    def _status(self, request: Request) -> Answer:
        if request.attempt.verb == "get":
            return reply(self.store.get(request.resource, request.attempt.name, _namespace(request)))
        change = self._update if request.attempt.verb == "update" else self._patch
        return change(request, "status")

    def _finalize(self, request: Request) -> Answer:
        finalizers = at(request.json(), "spec.finalizers") or None
        changes = {"spec": {"finalizers": finalizers}}
        return reply(self.store.patch(request.resource, request.attempt.name, changes))

    def _token(self, request: Request) -> Answer:
        attempt = request.attempt
        self.store.record("serviceaccounts", attempt.name, attempt.namespace)
        token = self.authenticator.issue(service_account(attempt.namespace, attempt.name))
        spec = {"audiences": [], "expirationSeconds": 3600} | (request.json().get("spec") or {})
        status = {"token": token, "expirationTimestamp": timestamp(3600.0)}
        head = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {"name": attempt.name}}
        return reply(head | {"spec": spec, "status": status}, 201)

    def _scale(self, request: Request) -> Answer:
        name, namespace = request.attempt.name, _namespace(request)
        value = self.store.get(request.resource, name, namespace)
        if request.attempt.verb != "get":
            changed = patch.merged(_scale_of(value), request.json())
            changes = {"spec": {"replicas": at(changed, "spec.replicas") or 0}}
            value = self.store.patch(request.resource, name, changes, namespace, dry_run=request.dry_run)
        return reply(_scale_of(value))

    # Watching

    def _watch(self, kind: Kind, request: Request) -> Iterator[bytes]:
        after = None if request.flag("sendInitialEvents") else request.number("resourceVersion") or None
        labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        if request.attempt.name and "fieldSelector" not in request.query:
            fields = f"metadata.name={request.attempt.name}"
        selected = self.store.condition(kind.resource, labels, fields)
        watch = Watch(self.store.etcd, kind.resource, _namespace(request), selected, after)
        return Streaming(kind, watch, request, self.faults, self.bookmark_s, self._counted(request)).chunks()

    def _counted(self, request: Request) -> Callable[[int], None]:
        place = request.resource, request.attempt.namespace

        def count(change: int) -> None:
            with self._lock:
                self.open_watches[place] += change

        return count


def _match_url(request: Request, body: Object) -> None:
    """Fill in the name and namespace of the URL; raises ``ApiError`` 400 when the body has others."""
    metadata, name, namespace = body.setdefault("metadata", {}), request.attempt.name, _namespace(request)
    if metadata.setdefault("name", name) != name:
        message = f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        raise ApiError(400, message)
    if namespace and metadata.setdefault("namespace", namespace) != namespace:
        raise ApiError(400, "the namespace of the object does not match the namespace on the request")


def _namespace(request: Request) -> str | None:
    if request.attempt.resource == "namespaces":
        return None
    return request.attempt.namespace or None


def _validation(request: Request) -> str:
    return request.query.get("fieldValidation") or "Warn"


def _deletion(request: Request) -> Deletion:
    """The options of a DELETE, from its body or its query."""
    body = request.json() if request.body else {}
    options = body if isinstance(body, dict) else {}
    grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
    orphan = options.get("orphanDependents", request.query.get("orphanDependents"))
    propagation = options.get("propagationPolicy", request.query.get("propagationPolicy"))
    if propagation is None and orphan is not None:
        propagation = "Orphan" if str(orphan).lower() == "true" else "Background"
    conditions = options.get("preconditions") or {}
    return Deletion(
        None if grace is None else int(grace),
        propagation,
        conditions.get("uid"),
        conditions.get("resourceVersion"),
        request.dry_run or "All" in (options.get("dryRun") or ()),
    )


def _page(records: list[Record], version: int, request: Request) -> tuple[list[Record], Object]:
    """The part of a list that is asked for, and the list's metadata."""
    metadata: Object = {"resourceVersion": str(version)}
    limit, token = request.number("limit") or 0, request.query.get("continue")
    if token:
        start = json.loads(base64.urlsafe_b64decode(token))
        metadata["resourceVersion"] = start["version"]
        records = [record for record in records if [record.key.namespace, record.key.name] > start["after"]]
    if not limit or len(records) <= limit:
        return records, metadata
    last = records[limit - 1].key
    after = {"version": metadata["resourceVersion"], "after": [last.namespace, last.name]}
    metadata["continue"] = base64.urlsafe_b64encode(json.dumps(after).encode()).decode()
    metadata["remainingItemCount"] = len(records) - limit
    return records[:limit], metadata


def _as_create(attempt: Attempt) -> Attempt:
    """Since Kubernetes 1.35 a WebSocket, though it is a GET, needs the right to create as well."""
    return Attempt("create", attempt.group, attempt.resource, attempt.subresource, attempt.namespace, attempt.name)


def _scale_of(value: Object) -> Object:
    metadata = value["metadata"]
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata},
        "spec": {"replicas": at(value, "spec.replicas") or 0},
        "status": {"replicas": at(value, "status.replicas") or 0},
    }
