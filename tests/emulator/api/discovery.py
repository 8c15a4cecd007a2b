"""What the server says of itself: version, groups, resources, and the OpenAPI stub that kubectl looks into."""

from __future__ import annotations

from tests.emulator.api.errors import no_such_path
from tests.emulator.api.kinds import Kind, Object, api_version
from tests.emulator.api.requests import Request, Response, reply
from tests.emulator.api.store import Store

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2",
    "gitCommit": "0000000000000000000000000000000000000000",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "go1.25.0",
    "compiler": "gc",
    "platform": "linux/amd64",
}
ALL_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
REVIEWS = (
    Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False),
    Kind("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", namespaced=False),
    Kind("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False),
    Kind("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False),
)
SUBRESOURCE_KINDS = {
    "scale": ("autoscaling", "v1", "Scale", ["get", "patch", "update"]),
    "log": ("", "", "Pod", ["get"]),
    "exec": ("", "", "PodExecOptions", ["create", "get"]),
    "portforward": ("", "", "PodPortForwardOptions", ["create", "get"]),
    "binding": ("", "", "Binding", ["create"]),
    "eviction": ("policy", "v1", "Eviction", ["create"]),
    "token": ("authentication.k8s.io", "v1", "TokenRequest", ["create"]),
    "finalize": ("", "", "Namespace", ["update"]),
}


def describe(store: Store, request: Request) -> Response:
    """The answer to a GET of a path that is no resource.

    Raises:
        ApiError: 404, no such path.
    """
    parts = [part for part in request.path.split("/") if part]
    kinds = [*store.kinds(), *REVIEWS]
    match parts:
        case ["version"]:
            return reply(VERSION)
        case ["healthz" | "livez" | "readyz", *_]:
            return Response(200, b"ok", "text/plain; charset=utf-8")
        case ["api"]:
            return reply({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
        case ["apis"]:
            groups = [_group(kinds, name) for name in _groups(kinds)]
            return reply({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        case ["apis", group] if group in _groups(kinds):
            return reply({"kind": "APIGroup", "apiVersion": "v1"} | _group(kinds, group))
        case ["api", version]:
            return reply(_resources(kinds, "", version))
        case ["apis", group, version]:
            return reply(_resources(kinds, group, version))
        case ["openapi", "v3"]:
            paths = {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=0"} for path in _api_paths(kinds)}
            return reply({"paths": paths})
        case ["openapi", "v3", *rest] if "/".join(rest) in _api_paths(kinds):
            return reply(_openapi(kinds, rest))
    raise no_such_path()


def _groups(kinds: list[Kind]) -> list[str]:
    return list(dict.fromkeys(kind.group for kind in kinds if kind.group))


def _group(kinds: list[Kind], name: str) -> Object:
    versions = dict.fromkeys(version for kind in kinds if kind.group == name for version in kind.served)
    entries = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def _resources(kinds: list[Kind], group: str, version: str) -> Object:
    served = [kind for kind in kinds if kind.group == group and version in kind.served]
    if not served:
        raise no_such_path()
    resources = [entry for kind in served for entry in _entries(kind)]
    group_version = api_version(group, version)
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _entries(kind: Kind) -> list[Object]:
    verbs = ["create"] if kind in REVIEWS else ALL_VERBS
    entry = {"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind}
    entries = [entry | {"verbs": verbs} | ({"shortNames": list(kind.short)} if kind.short else {})]
    beside = entry | {"singularName": ""}
    if kind.status:
        entries.append(beside | {"name": f"{kind.plural}/status", "verbs": ["get", "patch", "update"]})
    for name in kind.subresources:
        group, version, what, can = SUBRESOURCE_KINDS[name]
        place = {"group": group, "version": version} if group else {}
        entries.append(beside | {"name": f"{kind.plural}/{name}", "kind": what, "verbs": can} | place)
    return entries


def _api_paths(kinds: list[Kind]) -> list[str]:
    places = dict.fromkeys((kind.group, version) for kind in kinds for version in kind.served)
    return [f"apis/{group}/{version}" if group else f"api/{version}" for group, version in places]


def _openapi(kinds: list[Kind], place: list[str]) -> Object:
    """As much of OpenAPI v3 as kubectl needs to learn that the server validates fields."""
    group, version = (place[1], place[2]) if place[0] == "apis" else ("", place[1])
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")]
    paths: Object = {}
    for kind in kinds:
        if kind.group == group and version in kind.served:
            middle = "/namespaces/{namespace}" if kind.namespaced else ""
            operation = {
                "parameters": parameters,
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind.kind},
            }
            paths[f"/{'/'.join(place)}{middle}/{kind.plural}/{{name}}"] = {"patch": operation}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]}, "paths": paths}
