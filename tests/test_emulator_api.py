"""The emulated Kubernetes API does what the real server does, as the official client sees it."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes import client, config, dynamic, watch
from kubernetes.client import ApiClient, ApiException, CoreV1Api, CustomObjectsApi

from tests.emulator.api import Admission, ApiError, ApiServer, Fault, denied_by_webhook, ome_crds
from tests.emulator.api.streaming import IDLE_S
from tests.waiting import until

Object = dict[str, Any]
Objects = list[Object]
Names = list[str]
GROUP, VERSION = "example.org", "v1"
WIDGETS = f"widgets.{GROUP}"
WIDGET_SCHEMA: Object = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 9},
                "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
                "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "settings": {"type": "object", "additionalProperties": {"type": "string"}},
                "parts": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"type": "string"}, "count": {"type": "integer", "default": 1}},
                    },
                },
            },
        },
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
WIDGET_CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": WIDGETS},
    "spec": {
        "group": GROUP,
        "names": {"plural": "widgets", "kind": "Widget", "singular": "widget", "listKind": "WidgetList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": WIDGET_SCHEMA},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        server.add_crd(WIDGET_CRD)
        yield server


def connected(server: ApiServer, token: str | None = None) -> ApiClient:
    configuration = client.Configuration(host=server.url)
    configuration.retries = False
    configuration.api_key["authorization"] = f"Bearer {token or server.admin_token}"
    return ApiClient(configuration)


@pytest.fixture
def admin(api: ApiServer) -> Iterator[ApiClient]:
    with connected(api) as made:
        yield made


@pytest.fixture
def core(admin: ApiClient) -> CoreV1Api:
    return CoreV1Api(admin)


@pytest.fixture
def namespace(api: ApiServer) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.store.create("namespaces", {"metadata": {"name": name}})
    return name


class Widgets:
    """The custom objects of one namespace through the official client."""

    def __init__(self, connection: ApiClient, namespace: str) -> None:
        self._api = CustomObjectsApi(connection)
        self._place = (GROUP, VERSION, namespace, "widgets")

    def create(self, name: str, spec: Object | None = None, metadata: Object | None = None, **options: Any) -> Object:
        return self._api.create_namespaced_custom_object(*self._place, widget(name, spec, metadata), **options)  # type: ignore[no-any-return]

    def get(self, name: str) -> Object:
        return self._api.get_namespaced_custom_object(*self._place, name)  # type: ignore[no-any-return]

    def replace(self, value: Object, **options: Any) -> Object:
        name = value["metadata"]["name"]
        return self._api.replace_namespaced_custom_object(*self._place, name, value, **options)  # type: ignore[no-any-return]

    def replace_status(self, value: Object) -> Object:
        name = value["metadata"]["name"]
        return self._api.replace_namespaced_custom_object_status(*self._place, name, value)  # type: ignore[no-any-return]

    def patch(self, name: str, body: Any, **options: Any) -> Object:
        return self._api.patch_namespaced_custom_object(*self._place, name, body, **options)  # type: ignore[no-any-return]

    def patch_status(self, name: str, body: Any) -> Object:
        return self._api.patch_namespaced_custom_object_status(*self._place, name, body)  # type: ignore[no-any-return]

    def delete(self, name: str, **options: Any) -> Object:
        return self._api.delete_namespaced_custom_object(*self._place, name, **options)  # type: ignore[no-any-return]

    def list(self, **options: Any) -> Object:
        return self._api.list_namespaced_custom_object(*self._place, **options)  # type: ignore[no-any-return]

    def names(self, **options: Any) -> Names:
        return [item["metadata"]["name"] for item in self.list(**options)["items"]]

    def events(self, count: int | None = None, **options: Any) -> Objects:
        """The first events of a watch; without a count, all until its server-side timeout of one second."""
        stream = watch.Watch().stream
        options |= {"timeout_seconds": 1 if count is None else 30}
        events = stream(self._api.list_namespaced_custom_object, *self._place, **options)
        found = list(itertools.islice(events, count))
        events.close()
        return found


def widget(name: str, spec: Object | None = None, metadata: Object | None = None) -> Object:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Widget",
        "metadata": {"name": name} | (metadata or {}),
        "spec": {"size": 1} if spec is None else spec,
    }


@pytest.fixture
def widgets(admin: ApiClient, namespace: str) -> Widgets:
    return Widgets(admin, namespace)


def refused(error: pytest.ExceptionInfo[ApiException]) -> Object:
    """The Status object of a refusal, checked to agree with the HTTP status."""
    status: Object = json.loads(error.value.body)
    assert status["kind"] == "Status"
    assert status["code"] == error.value.status
    return status


def config_map(name: str, **more: Any) -> Object:
    return {"metadata": {"name": name} | more}


def pod(name: str, **spec: Any) -> Object:
    container = {"name": "main", "image": "engine:1"}
    return {"metadata": {"name": name}, "spec": {"containers": [container]} | spec}


def owner(value: Object, *, block: bool = False) -> Object:
    reference = {"apiVersion": value["apiVersion"], "kind": value["kind"], "name": value["metadata"]["name"]}
    return reference | {"uid": value["metadata"]["uid"], "blockOwnerDeletion": block}


def send(server: ApiServer, method: str, path: str, body: Any = None) -> tuple[int, Object]:
    """A request as it stands, without the client's own checks."""
    headers = {"Authorization": f"Bearer {server.admin_token}", "Content-Type": "application/json"}
    text = None if body is None else json.dumps(body)
    answer = urllib3.request(method, server.url + path, body=text, headers=headers)
    return answer.status, answer.json()


def gone(server: ApiServer, resource: str, name: str, namespace: str | None = None) -> bool:
    return server.store.find(resource, name, namespace) is None


# Creating


def test_create_returns_what_the_server_adds(widgets: Widgets) -> None:
    """A new object has a uid, a resourceVersion, a creation time and generation 1."""
    metadata = widgets.create("a")["metadata"]
    assert uuid.UUID(metadata["uid"])
    assert int(metadata["resourceVersion"]) > 0
    assert metadata["creationTimestamp"].endswith("Z")
    assert metadata["generation"] == 1


def test_create_again_is_a_conflict(widgets: Widgets) -> None:
    """409 AlreadyExists in the server's words."""
    widgets.create("a")
    with pytest.raises(ApiException) as error:
        widgets.create("a")
    status = refused(error)
    assert (status["code"], status["reason"]) == (409, "AlreadyExists")
    assert status["message"] == f'{WIDGETS} "a" already exists'


def test_get_of_nothing_is_not_found(widgets: Widgets, core: CoreV1Api, namespace: str) -> None:
    """404 with the resource and the name, of custom and built-in kinds."""
    with pytest.raises(ApiException) as error:
        widgets.get("none")
    assert refused(error)["message"] == f'{WIDGETS} "none" not found'
    with pytest.raises(ApiException) as error:
        core.read_namespaced_pod("none", namespace)
    assert refused(error)["message"] == 'pods "none" not found'


def test_unknown_resource_is_not_found(admin: ApiClient, namespace: str) -> None:
    """A resource that nothing serves is a 404 of another kind."""
    with pytest.raises(ApiException) as error:
        CustomObjectsApi(admin).list_namespaced_custom_object("none.org", "v1", namespace, "things")
    assert refused(error)["message"] == "the server could not find the requested resource"


def test_generate_name(core: CoreV1Api, namespace: str) -> None:
    """generateName makes different names with its prefix."""
    body = {"metadata": {"generateName": "run-"}}
    names = {core.create_namespaced_config_map(namespace, body).metadata.name for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("run-") and len(name) == 9 for name in names)


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"name": "Not_a_name"}, "metadata.name"),
        ({"name": "a", "labels": {"key": "no spaces"}}, "metadata.labels"),
        ({"name": "a", "labels": {"key": "x" * 64}}, "metadata.labels"),
        ({"name": "a", "labels": {"-key": "x"}}, "metadata.labels"),
        ({"name": "a", "annotations": {"a b": "x"}}, "metadata.annotations"),
        (
            {"name": "a", "ownerReferences": [{"name": "b", "kind": "B", "apiVersion": "v1", "uid": ""}]},
            "ownerReferences",
        ),
    ],
)
def test_invalid_metadata_is_named(widgets: Widgets, metadata: Object, field: str) -> None:
    """422 names the field of the metadata that is wrong."""
    with pytest.raises(ApiException) as error:
        widgets.create("a", metadata=metadata)
    status = refused(error)
    assert status["reason"] == "Invalid"
    assert field in status["details"]["causes"][0]["field"]


def test_create_checks_type_and_namespace(admin: ApiClient, namespace: str) -> None:
    """An object of another kind, version or namespace than the URL's is a bad request; a missing namespace is 404."""
    api = CustomObjectsApi(admin)
    for change in (
        {"kind": "Other"},
        {"apiVersion": "example.org/v9"},
        {"metadata": {"name": "a", "namespace": "other"}},
    ):
        with pytest.raises(ApiException) as error:
            api.create_namespaced_custom_object(GROUP, VERSION, namespace, "widgets", widget("a") | change)
        assert refused(error)["reason"] == "BadRequest"
    with pytest.raises(ApiException) as error:
        api.create_namespaced_custom_object(GROUP, VERSION, "nowhere", "widgets", widget("a"))
    assert refused(error)["message"] == 'namespaces "nowhere" not found'


def test_dry_run_changes_nothing(widgets: Widgets) -> None:
    """A dry run answers as the real thing would, refusals included, and stores nothing."""
    assert widgets.create("a", dry_run="All")["spec"]["color"] == "red"
    assert widgets.names() == []
    widgets.create("a")
    with pytest.raises(ApiException) as error:
        widgets.create("a", dry_run="All")
    assert error.value.status == 409
    widgets.patch("a", {"spec": {"size": 2}}, dry_run="All")
    widgets.delete("a", dry_run="All")
    assert widgets.get("a")["spec"]["size"] == 1


# Schema


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "spec.size: Required value"),
        ({"size": "x"}, 'spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"'),
        ({"size": 0}, "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        ({"size": 10}, "spec.size: Invalid value: 10: spec.size in body should be less than or equal to 9"),
        ({"size": 1, "color": "blue"}, 'spec.color: Unsupported value: "blue": supported values: "red", "green"'),
        ({"size": 1, "code": "A"}, "spec.code: Invalid value: \"A\": spec.code in body should match '^[a-z]+$'"),
        ({"size": 1, "code": "abcdef"}, "spec.code: Too long: may not be more than 5 bytes"),
        ({"size": 1, "port": True}, "spec.port in body must be of type integer,string"),
        ({"size": 1, "settings": {"a": 1}}, "spec.settings.a in body must be of type string"),
        ({"size": 1, "parts": [{}]}, "spec.parts[0].name: Required value"),
        ({"size": 1, "parts": [{"name": "a"}, {"name": "a"}]}, 'spec.parts[1]: Duplicate value: {"name": "a"}'),
    ],
)
def test_schema_faults_are_invalid(widgets: Widgets, spec: Object, message: str) -> None:
    """422 names the field and says what is wrong with it."""
    with pytest.raises(ApiException) as error:
        widgets.create("a", spec)
    status = refused(error)
    assert (status["code"], status["reason"]) == (422, "Invalid")
    assert message in status["message"]
    assert status["message"].startswith(f'Widget.{GROUP} "a" is invalid: ')


def test_strict_validation_names_unknown_fields(widgets: Widgets) -> None:
    """Strict validation refuses what it does not know, by path, in metadata and lists too."""
    spec = {"size": 1, "sice": 2, "parts": [{"name": "a", "nam": "b"}], "free": {"anything": 1}}
    with pytest.raises(ApiException) as error:
        widgets.create("a", spec, {"labelz": {}}, field_validation="Strict")
    status = refused(error)
    assert (status["code"], status["reason"]) == (400, "BadRequest")
    for path in ("spec.sice", "spec.parts[0].nam", "metadata.labelz"):
        assert f'unknown field "{path}"' in status["message"]
    assert "anything" not in status["message"]
    with pytest.raises(ApiException, match="400"):
        widgets.replace(widgets.create("a") | {"spec": {"size": 1, "x": 1}}, field_validation="Strict")
    with pytest.raises(ApiException, match="400"):
        widgets.patch("a", {"spec": {"x": 1}}, field_validation="Strict")


def test_unknown_fields_are_pruned_and_defaults_filled(widgets: Widgets) -> None:
    """Without strict validation unknown fields vanish; defaults appear in objects and in lists."""
    made = widgets.create("a", {"size": 1, "sice": 2, "free": {"any": [1]}, "parts": [{"name": "a", "x": 1}]})
    assert made["spec"] == {"size": 1, "color": "red", "free": {"any": [1]}, "parts": [{"name": "a", "count": 1}]}


def test_labels_must_be_strings(widgets: Widgets) -> None:
    """A number where the metadata wants a string cannot be decoded."""
    with pytest.raises(ApiException) as error:
        widgets.create("a", metadata={"labels": {"n": 1}})
    assert "cannot unmarshal number into Go struct field" in refused(error)["message"]


def test_built_in_kinds_are_validated(api: ApiServer, namespace: str) -> None:
    """Pods have a schema as well: wrong types, unknown and missing fields, GPUs without a limit."""
    cases: list[tuple[Object, int, str]] = [
        ({"terminationGracePeriodSeconds": "x"}, 400, "cannot unmarshal string"),
        ({"nodeSelectr": {}}, 400, 'unknown field "spec.nodeSelectr"'),
        ({"containers": [{"image": "a"}]}, 422, "spec.containers[0].name: Required value"),
        ({"containers": []}, 422, "spec.containers: Required value"),
        ({"containers": [{"name": "a", "image": "a"}] * 2}, 422, 'spec.containers[1].name: Duplicate value: "a"'),
        (
            {"containers": [{"name": "a", "image": "a", "resources": {"requests": {"nvidia.com/gpu": 1}}}]},
            422,
            "Limit must be set for non overcommitable resources",
        ),
    ]
    for spec, code, message in cases:
        path = f"/api/v1/namespaces/{namespace}/pods?fieldValidation=Strict"
        answered, status = send(api, "POST", path, pod("a", **spec))
        assert (answered, status["code"]) == (code, code)
        assert message in status["message"]


def test_built_in_defaults(api: ApiServer, core: CoreV1Api, namespace: str) -> None:
    """A pod, a service and a secret come back with what the server fills in; quantities are strings."""
    container = {"name": "m", "image": "i", "resources": {"limits": {"cpu": 2, "nvidia.com/gpu": 1}}}
    send(api, "POST", f"/api/v1/namespaces/{namespace}/pods", pod("a", containers=[container]))
    made = core.read_namespaced_pod("a", namespace)
    assert (made.spec.restart_policy, made.spec.termination_grace_period_seconds) == ("Always", 30)
    assert made.spec.containers[0].resources.requests == {"cpu": "2", "nvidia.com/gpu": "1"}
    assert made.status.phase == "Pending"
    service = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}
    made = core.create_namespaced_service(namespace, service)
    assert made.spec.cluster_ip.startswith("127.")
    assert (made.spec.ports[0].target_port, made.spec.ports[0].protocol) == (80, "TCP")
    secret = core.create_namespaced_secret(namespace, {"metadata": {"name": "k"}, "stringData": {"key": "abc"}})
    assert secret.data == {"key": "YWJj"}


def test_a_pods_spec_cannot_change(core: CoreV1Api, namespace: str) -> None:
    """All of a pod's spec but a few fields is frozen; immutable fields of other kinds are too."""
    core.create_namespaced_pod(namespace, pod("a"))
    with pytest.raises(ApiException) as error:
        core.patch_namespaced_pod("a", namespace, {"spec": {"hostname": "b"}})
    assert "pod updates may not change fields other than" in refused(error)["message"]
    core.create_namespaced_service(namespace, {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})
    with pytest.raises(ApiException) as error:
        core.patch_namespaced_service("s", namespace, {"spec": {"clusterIP": "127.1.1.1"}})
    assert "field is immutable" in refused(error)["message"]


# Selecting


def test_label_selectors(widgets: Widgets) -> None:
    """Equality, sets and presence select by labels."""
    for name, labels in {"a": {"x": "1"}, "b": {"x": "2"}, "c": {"y": "1"}}.items():
        widgets.create(name, metadata={"labels": labels})
    chosen = {
        "x=1": ["a"],
        "x==2": ["b"],
        "x!=1": ["b", "c"],
        "x in (1, 2)": ["a", "b"],
        "x notin (1)": ["b", "c"],
        "x": ["a", "b"],
        "!x": ["c"],
        "x,x!=1": ["b"],
    }
    assert {selector: widgets.names(label_selector=selector) for selector in chosen} == chosen
    with pytest.raises(ApiException, match="unable to parse requirement"):
        widgets.names(label_selector="x in 1")


def test_field_selectors(core: CoreV1Api, widgets: Widgets, namespace: str) -> None:
    """Names of everything, more of some kinds; what a kind cannot be selected by is a bad request."""
    core.create_namespaced_pod(namespace, pod("a", nodeName="n1"))
    core.create_namespaced_pod(namespace, pod("b"))
    widgets.create("w")

    def pods(selector: str) -> list[str]:
        return [item.metadata.name for item in core.list_namespaced_pod(namespace, field_selector=selector).items]

    assert pods("spec.nodeName=n1") == ["a"]
    assert pods("spec.nodeName!=n1,status.phase=Pending") == ["b"]
    assert pods("metadata.name=b") == ["b"]
    assert widgets.names(field_selector="metadata.name=w") == ["w"]
    for selected in (lambda: widgets.names(field_selector="spec.size=1"), lambda: pods("spec.volumes=x")):
        with pytest.raises(ApiException, match="field label not supported"):
            selected()


def test_events_are_selected_by_what_they_are_about(core: CoreV1Api, namespace: str) -> None:
    """An event is created and found by its object."""
    for name in ("a", "b"):
        about = {"kind": "Pod", "name": name, "namespace": namespace}
        event = {
            "metadata": {"generateName": f"{name}."},
            "involvedObject": about,
            "reason": "Pulled",
            "type": "Normal",
        }
        core.create_namespaced_event(namespace, event)
    found = core.list_namespaced_event(namespace, field_selector="involvedObject.name=a,reason=Pulled").items
    assert [event.involved_object.name for event in found] == ["a"]


def test_list_in_pages(widgets: Widgets) -> None:
    """limit and continue walk through a list at one version."""
    for name in "abc":
        widgets.create(name)
    first = widgets.list(limit=2)
    assert first["metadata"]["remainingItemCount"] == 1
    rest = widgets.list(limit=2, _continue=first["metadata"]["continue"])
    assert [item["metadata"]["name"] for item in first["items"] + rest["items"]] == ["a", "b", "c"]
    assert "continue" not in rest["metadata"]


def test_lists_of_built_in_kinds_hold_bare_items(api: ApiServer, core: CoreV1Api, namespace: str) -> None:
    """Items have no kind in a built-in list and have one in a custom list, as from the real server."""
    core.create_namespaced_config_map(namespace, config_map("a"))
    found = send(api, "GET", f"/api/v1/namespaces/{namespace}/configmaps")[1]
    assert (found["kind"], "kind" in found["items"][0]) == ("ConfigMapList", False)


# Watching


def test_watch_from_a_list_has_no_gap(widgets: Widgets) -> None:
    """From a list's version on every change comes once, in order; a deletion comes with the last state."""
    widgets.create("before")
    version = widgets.list()["metadata"]["resourceVersion"]
    widgets.create("a")
    widgets.patch("a", {"spec": {"size": 2}})
    widgets.delete("a")
    events = widgets.events(3, resource_version=version)
    seen = [(event["type"], event["object"]["spec"]["size"]) for event in events]
    assert seen == [("ADDED", 1), ("MODIFIED", 2), ("DELETED", 2)]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(versions)
    assert versions[0] > int(version)


def test_watch_without_a_version_begins_with_what_is_there(widgets: Widgets) -> None:
    """Existing objects come as ADDED first."""
    widgets.create("a")
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in widgets.events(1)] == [("ADDED", "a")]


def test_watch_through_a_selector(widgets: Widgets) -> None:
    """Entering a selection looks like a creation, leaving it like a deletion."""
    version = widgets.create("a")["metadata"]["resourceVersion"]
    widgets.patch("a", {"metadata": {"labels": {"x": "1"}}})
    widgets.patch("a", {"spec": {"size": 2}})
    widgets.patch("a", {"metadata": {"labels": None}})
    widgets.patch("a", {"spec": {"size": 3}})
    events = widgets.events(3, resource_version=version, label_selector="x=1")
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]


def test_watch_is_live(api: ApiServer, widgets: Widgets) -> None:
    """A change reaches an open watch at once, not at its end; closing it is noticed by the server."""
    stream = watch.Watch()
    events = stream.stream(widgets._api.list_namespaced_custom_object, *widgets._place, timeout_seconds=60)
    threading.Timer(0.1, widgets.create, ["a"]).start()
    assert next(events)["object"]["metadata"]["name"] == "a"
    place = WIDGETS, widgets._place[2]
    assert api.rest.open_watches[place] == 1
    stream.stop()
    events.close()
    until(lambda: api.rest.open_watches[place] == 0)


def test_bookmarks(api: ApiServer, widgets: Widgets, core: CoreV1Api, namespace: str) -> None:
    """A watch that asks for it learns the current version before its timeout, though nothing happened to it."""
    version = widgets.list()["metadata"]["resourceVersion"]
    core.create_namespaced_config_map(namespace, config_map("elsewhere"))
    events = widgets.events(resource_version=version, allow_watch_bookmarks=True)
    assert [event["type"] for event in events] == ["BOOKMARK"]
    assert events[0]["object"]["kind"] == "Widget"
    assert widgets.events(resource_version=version) == []


def test_bookmarks_come_regularly(api: ApiServer, widgets: Widgets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so often a bookmark comes, not only at the end."""
    monkeypatch.setattr(api.rest, "bookmark_s", 0.1)
    assert len(widgets.events(2, allow_watch_bookmarks=True)) == 2


def test_initial_events_end_with_a_bookmark(api: ApiServer, widgets: Widgets) -> None:
    """A streaming list tells where what was there ends."""
    widgets.create("a")
    options = {"send_initial_events": True, "resource_version_match": "NotOlderThan", "allow_watch_bookmarks": True}
    stream = watch.Watch().stream
    api_ = CoreV1Api(widgets._api.api_client)
    events = stream(api_.list_namespace, timeout_seconds=1, **options)
    marked = [event["raw_object"]["metadata"].get("annotations") for event in events if event["type"] == "BOOKMARK"]
    assert marked[0] == {"k8s.io/initial-events-end": "true"}


def test_an_old_version_is_gone() -> None:
    """After compaction a watch from an old version is told 410 as an event, which the client raises."""
    with ApiServer() as server, connected(server) as connection:
        core = CoreV1Api(connection)
        version = core.list_namespaced_config_map("default").metadata.resource_version
        core.create_namespaced_config_map("default", config_map("a"))
        server.store.etcd.compact()
        stream = watch.Watch().stream(
            core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=1
        )
        with pytest.raises(ApiException) as error:
            next(stream)
        assert error.value.status == 410
        assert "Expired: too old resource version" in error.value.reason
        fresh = core.list_namespaced_config_map("default").metadata.resource_version
        stream = watch.Watch().stream(
            core.list_namespaced_config_map, "default", resource_version=fresh, timeout_seconds=1
        )
        assert list(stream) == []


# Changing


def test_optimistic_locking(widgets: Widgets) -> None:
    """A PUT of a version that is no longer current is a conflict; one without a version is invalid."""
    first = widgets.create("a")
    widgets.patch("a", {"spec": {"size": 2}})
    with pytest.raises(ApiException) as error:
        widgets.replace(first)
    status = refused(error)
    assert (status["code"], status["reason"]) == (409, "Conflict")
    assert "the object has been modified; please apply your changes to the latest version" in status["message"]
    with pytest.raises(ApiException) as error:
        widgets.replace(widget("a"))
    assert "metadata.resourceVersion" in refused(error)["message"]
    with pytest.raises(ApiException) as error:
        widgets.patch("a", {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}})
    assert error.value.status == 409


def test_parallel_patches_all_count(api: ApiServer, widgets: Widgets) -> None:
    """Patches of one object from many threads lose nothing."""
    widgets.create("a")

    def label(number: int) -> None:
        api.store.patch(WIDGETS, "a", {"metadata": {"labels": {f"n{number}": "x"}}}, widgets._place[2])

    threads = [threading.Thread(target=label, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(widgets.get("a")["metadata"]["labels"]) == 16


def test_generation_counts_changes_of_the_spec(widgets: Widgets) -> None:
    """Neither the status nor the metadata nor a patch that changes nothing moves the generation."""
    widgets.create("a")
    widgets.patch("a", {"metadata": {"labels": {"x": "1"}}})
    widgets.patch_status("a", {"status": {"ready": True}})
    assert widgets.get("a")["metadata"]["generation"] == 1
    changed = widgets.patch("a", {"spec": {"size": 2}})
    assert changed["metadata"]["generation"] == 2
    same = widgets.patch("a", {"spec": {"size": 2}})
    assert same["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]


def test_status_is_a_door_of_its_own(widgets: Widgets) -> None:
    """The object's door does not change the status, and the status's door changes nothing else."""
    made = widgets.create("a")
    made["status"] = {"ready": True}
    assert "status" not in widgets.replace(made)
    current = widgets.get("a")
    current |= {"status": {"ready": True}, "spec": {"size": 5}}
    changed = widgets.replace_status(current)
    assert changed["status"] == {"ready": True}
    assert changed["spec"]["size"] == 1
    assert widgets.patch("a", {"status": None})["status"] == {"ready": True}


def test_merge_patch(widgets: Widgets) -> None:
    """null removes, objects merge, lists are replaced."""
    widgets.create("a", {"size": 1, "code": "abc", "settings": {"x": "1"}, "parts": [{"name": "p"}]})
    spec = widgets.patch("a", {"spec": {"code": None, "settings": {"y": "2"}, "parts": [{"name": "q"}]}})["spec"]
    assert spec["settings"] == {"x": "1", "y": "2"}
    assert [part["name"] for part in spec["parts"]] == ["q"]
    assert "code" not in spec


def test_json_patch(widgets: Widgets) -> None:
    """Steps apply in order; a test that fails or a path that is not there is refused as a whole."""
    widgets.create("a", {"size": 1, "settings": {"a/b": "1"}, "parts": [{"name": "p"}]})
    steps: list[Object] = [
        {"op": "test", "path": "/spec/size", "value": 1},
        {"op": "replace", "path": "/spec/size", "value": 2},
        {"op": "add", "path": "/spec/parts/-", "value": {"name": "q"}},
        {"op": "add", "path": "/spec/parts/0", "value": {"name": "o"}},
        {"op": "copy", "from": "/spec/settings/a~1b", "path": "/spec/settings/c"},
        {"op": "move", "from": "/spec/settings/a~1b", "path": "/spec/settings/d"},
        {"op": "remove", "path": "/spec/parts/1"},
    ]
    kind = "application/json-patch+json"
    spec = widgets.patch("a", steps, _content_type=kind)["spec"]
    assert spec["size"] == 2
    assert [part["name"] for part in spec["parts"]] == ["o", "q"]
    assert spec["settings"] == {"c": "1", "d": "1"}
    for step in (steps[0], {"op": "remove", "path": "/spec/none"}, {"op": "add", "path": "/spec/parts/9", "value": {}}):
        with pytest.raises(ApiException) as error:
            widgets.patch("a", [{"op": "replace", "path": "/spec/size", "value": 3}, step], _content_type=kind)
        assert error.value.status == 422
    assert widgets.get("a")["spec"]["size"] == 2


def test_strategic_merge_patch(core: CoreV1Api, admin: ApiClient, namespace: str) -> None:
    """Lists of built-in kinds merge by name; a custom kind does not take such a patch."""
    apps = client.AppsV1Api(admin)
    labels = {"app": "a"}
    containers = [
        {"name": "main", "image": "a:1", "env": [{"name": "X", "value": "1"}]},
        {"name": "side", "image": "b:1"},
    ]
    template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    deployment = {"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
    apps.create_namespaced_deployment(namespace, deployment)
    changes = [{"name": "main", "env": [{"name": "Y", "value": "2"}]}, {"name": "side", "$patch": "delete"}]
    patch = {"spec": {"template": {"spec": {"containers": changes}}}}
    made = apps.patch_namespaced_deployment("a", namespace, patch)
    assert [(part.name, part.image) for part in made.spec.template.spec.containers] == [("main", "a:1")]
    assert [variable.name for variable in made.spec.template.spec.containers[0].env] == ["X", "Y"]
    kind = "application/strategic-merge-patch+json"
    with pytest.raises(ApiException) as error:
        Widgets(admin, namespace).patch("none", {}, _content_type=kind)
    assert error.value.status == 404
    Widgets(admin, namespace).create("w")
    with pytest.raises(ApiException) as error:
        Widgets(admin, namespace).patch("w", {}, _content_type=kind)
    assert refused(error)["reason"] == "UnsupportedMediaType"


def test_server_side_apply_creates_and_changes(widgets: Widgets) -> None:
    """An apply patch creates what is absent and merges into what is there."""
    options = {"_content_type": "application/apply-patch+yaml", "field_manager": "test"}
    widgets.patch("a", widget("a", {"size": 1}), **options)
    assert widgets.get("a")["metadata"]["generation"] == 1
    assert widgets.patch("a", widget("a", {"size": 3}), **options)["spec"]["size"] == 3
    with pytest.raises(ApiException, match="fieldManager"):
        widgets.patch("a", widget("a"), _content_type="application/apply-patch+yaml")


def test_scale(admin: ApiClient, namespace: str) -> None:
    """The scale subresource reads and sets the replicas."""
    apps = client.AppsV1Api(admin)
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "m", "image": "i"}]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    apps.create_namespaced_deployment(namespace, {"metadata": {"name": "a"}, "spec": spec})
    assert apps.patch_namespaced_deployment_scale("a", namespace, {"spec": {"replicas": 4}}).spec.replicas == 4
    assert apps.read_namespaced_deployment("a", namespace).spec.replicas == 4


# Deleting


def test_finalizers_hold_a_deletion(widgets: Widgets) -> None:
    """A finalized object stays, marked; no finalizer can be added any more; the last one gone ends it."""
    made = widgets.create("a", metadata={"finalizers": ["example.org/hold"]})
    widgets.delete("a")
    held = widgets.get("a")
    assert held["metadata"]["deletionTimestamp"]
    assert held["metadata"]["uid"] == made["metadata"]["uid"]
    with pytest.raises(ApiException, match="no new finalizers can be added if the object is being deleted"):
        widgets.patch("a", {"metadata": {"finalizers": ["example.org/hold", "example.org/more"]}})
    widgets.patch("a", {"metadata": {"finalizers": None}})
    assert widgets.names() == []


def test_delete_answers_and_preconditions(widgets: Widgets) -> None:
    """Success names the uid; another uid than expected is a conflict; what is absent is not found."""
    uid = widgets.create("a")["metadata"]["uid"]
    with pytest.raises(ApiException) as error:
        widgets.delete("a", body={"preconditions": {"uid": "other"}})
    assert "Precondition failed: UID in precondition: other" in refused(error)["message"]
    status = widgets.delete("a", body={"preconditions": {"uid": uid}})
    assert (status["status"], status["details"]["uid"]) == ("Success", uid)
    with pytest.raises(ApiException, match="404"):
        widgets.delete("a")


@pytest.mark.parametrize("propagation", ["Background", "Foreground", "Orphan"])
def test_owner_references_cascade(api: ApiServer, widgets: Widgets, namespace: str, propagation: str) -> None:
    """Children go after (background) or before (foreground) their owner, with theirs, or stay without a reference."""
    parent = widgets.create("parent")
    child = widgets.create("child", metadata={"ownerReferences": [owner(parent, block=True)]})
    widgets.create("grandchild", metadata={"ownerReferences": [owner(child, block=True)]})
    version = widgets.list()["metadata"]["resourceVersion"]
    widgets.delete("parent", propagation_policy=propagation)
    until(lambda: gone(api, WIDGETS, "parent", namespace), 5)
    if propagation == "Orphan":
        assert widgets.names() == ["child", "grandchild"]
        assert "ownerReferences" not in widgets.get("child")["metadata"]
        return
    until(lambda: widgets.names() == [], 5)
    deleted = [event for event in widgets.events(resource_version=version) if event["type"] == "DELETED"]
    order = [event["object"]["metadata"]["name"] for event in deleted]
    downwards = ["parent", "child", "grandchild"]
    assert order == (downwards if propagation == "Background" else downwards[::-1])


def test_a_child_of_an_absent_owner_is_collected(api: ApiServer, widgets: Widgets, namespace: str) -> None:
    """An owner that is gone (or only shares the name) does not keep an object; one that is left does."""
    old, other = widgets.create("parent"), widgets.create("other")
    widgets.delete("parent")
    widgets.create("parent")
    widgets.create("child", metadata={"ownerReferences": [owner(old)]})
    widgets.create("kept", metadata={"ownerReferences": [owner(old), owner(other)]})
    until(lambda: gone(api, WIDGETS, "child", namespace), 5)
    until(lambda: len(widgets.get("kept")["metadata"]["ownerReferences"]) == 1, 5)
    assert set(widgets.names()) == {"kept", "other", "parent"}


def test_an_owner_in_another_namespace_does_not_count(api: ApiServer, widgets: Widgets, admin: ApiClient) -> None:
    """A reference across namespaces is taken for an absent owner."""
    api.store.create("configmaps", config_map("far"), "default")
    far = api.store.get("configmaps", "far", "default")
    widgets.create("child", metadata={"ownerReferences": [owner(far)]})
    until(lambda: widgets.names() == [], 5)


def test_a_refused_collection_is_tried_again(api: ApiServer, widgets: Widgets, namespace: str) -> None:
    """A webhook that refuses a deletion for a while delays the garbage collector and does not end it."""
    refusals = iter([True, True, False])

    def refuse(admission: Admission) -> None:
        if admission.object["metadata"]["name"] == "child" and next(refusals, False):
            raise denied_by_webhook("keep.example.org", "not yet")

    widgets.create("child", metadata={"ownerReferences": [owner(widgets.create("parent"))]})
    api.store.validating[WIDGETS] = [refuse]
    try:
        widgets.delete("parent")
        until(lambda: gone(api, WIDGETS, "child", namespace), 5)
        assert next(refusals, None) is None
    finally:
        api.store.validating.clear()


def test_delete_collection(widgets: Widgets, api: ApiServer) -> None:
    """Everything that a selector matches goes at once."""
    for name, color in (("a", "x"), ("b", "x"), ("c", "y")):
        widgets.create(name, metadata={"labels": {"color": color}})
    widgets._api.delete_collection_namespaced_custom_object(*widgets._place, label_selector="color=x")
    assert widgets.names() == ["c"]


def test_a_namespace_goes_with_its_content(api: ApiServer, core: CoreV1Api, widgets: Widgets, namespace: str) -> None:
    """Deleting a namespace removes what is in it, waits for finalizers, and refuses what is new."""
    widgets.create("held", metadata={"finalizers": ["example.org/hold"]})
    core.create_namespaced_config_map(namespace, config_map("a"))
    core.delete_namespace(namespace)
    until(lambda: gone(api, "configmaps", "a", namespace), 5)
    assert core.read_namespace(namespace).status.phase == "Terminating"
    with pytest.raises(ApiException) as error:
        widgets.create("late")
    status = refused(error)
    assert (status["code"], status["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    assert f"unable to create new content in namespace {namespace} because it is being terminated" in status["message"]
    widgets.patch("held", {"metadata": {"finalizers": None}})
    until(lambda: gone(api, "namespaces", namespace), 5)
    with pytest.raises(ApiException, match="403"):
        core.delete_namespace("default")


def test_a_new_namespace_has_an_account(api: ApiServer, namespace: str) -> None:
    """The default service account appears by itself."""
    until(lambda: not gone(api, "serviceaccounts", "default", namespace), 5)


def test_pods_end_gracefully(core: CoreV1Api, api: ApiServer, namespace: str) -> None:
    """A pod on a node stays marked until the kubelet is done with it; one that never ran or is over goes at once."""
    core.create_namespaced_pod(namespace, pod("unscheduled"))
    core.delete_namespaced_pod("unscheduled", namespace)
    assert gone(api, "pods", "unscheduled", namespace)
    core.create_namespaced_pod(namespace, pod("running", nodeName="n1"))
    marked = core.delete_namespaced_pod("running", namespace)
    assert (marked.metadata.deletion_grace_period_seconds, bool(marked.metadata.deletion_timestamp)) == (30, True)
    shorter = core.delete_namespaced_pod("running", namespace, grace_period_seconds=5)
    assert shorter.metadata.deletion_grace_period_seconds == 5
    core.delete_namespaced_pod("running", namespace, grace_period_seconds=0)
    assert gone(api, "pods", "running", namespace)
    core.create_namespaced_pod(namespace, pod("done", nodeName="n1"))
    core.patch_namespaced_pod_status("done", namespace, {"status": {"phase": "Succeeded"}})
    core.delete_namespaced_pod("done", namespace)
    assert gone(api, "pods", "done", namespace)


def test_jobs_orphan_their_pods_by_default(admin: ApiClient, core: CoreV1Api, api: ApiServer, namespace: str) -> None:
    """Deleting a Job without a policy leaves its pods, as the real server does."""
    batch = client.BatchV1Api(admin)
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "m", "image": "i"}]}}
    batch.create_namespaced_job(namespace, {"metadata": {"name": "j"}, "spec": {"template": template}})
    job = api.store.get("jobs.batch", "j", namespace)
    api.store.create("pods", pod("p") | {"metadata": {"name": "p", "ownerReferences": [owner(job)]}}, namespace)
    batch.delete_namespaced_job("j", namespace)
    until(lambda: gone(api, "jobs.batch", "j", namespace), 5)
    assert "ownerReferences" not in api.store.get("pods", "p", namespace)["metadata"]


# CRDs


def test_a_crd_is_served_once_it_is_established(api: ApiServer, admin: ApiClient, namespace: str) -> None:
    """A CRD that is created becomes Established, is found by discovery, and takes its objects with it."""
    extensions, objects = client.ApiextensionsV1Api(admin), CustomObjectsApi(admin)
    crd = json.loads(json.dumps(WIDGET_CRD).replace("widget", "gadget").replace("Widget", "Gadget"))
    extensions.create_custom_resource_definition(crd)
    name = f"gadgets.{GROUP}"

    def established() -> bool:
        status = extensions.read_custom_resource_definition(name).status
        conditions = (status and status.conditions) or []
        return any(part.type == "Established" and part.status == "True" for part in conditions)

    until(established)
    gadget = widget("a") | {"kind": "Gadget"}
    objects.create_namespaced_custom_object(GROUP, VERSION, namespace, "gadgets", gadget)
    found = dynamic.DynamicClient(admin).resources.get(api_version=f"{GROUP}/{VERSION}", kind="Gadget")
    assert found.get(namespace=namespace).items[0].metadata.name == "a"
    extensions.delete_custom_resource_definition(name)
    until(lambda: gone(api, "customresourcedefinitions.apiextensions.k8s.io", name), 5)
    with pytest.raises(ApiException, match="could not find the requested resource"):
        objects.list_namespaced_custom_object(GROUP, VERSION, namespace, "gadgets")


@pytest.fixture(scope="module")
def ome() -> Iterator[ApiServer]:
    folder = ome_crds()
    if not folder:
        pytest.skip("OME's CRDs are not here: set RAYTUNE_AUTOTUNER_OME_CRDS to the folder that has them")
    with ApiServer(folder) as server:
        yield server


SERVICE: Object = {
    "apiVersion": "ome.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "trial"},
    "spec": {
        "model": {"kind": "ClusterBaseModel", "name": "m"},
        "runtime": {"kind": "ClusterServingRuntime", "name": "r"},
        "engine": {
            "minReplicas": 1,
            "maxReplicas": 1,
            "runner": {
                "name": "ome-container",
                "args": ["--tp-size", "1"],
                "resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"nvidia.com/gpu": "1"}},
            },
        },
    },
}


def test_omes_schemas_are_enforced(ome: ApiServer) -> None:
    """An InferenceService is accepted; a field that OME does not have and a wrong type are refused by name."""
    with connected(ome) as connection:
        place = ("ome.io", "v1beta1", "default", "inferenceservices")
        objects = CustomObjectsApi(connection)
        assert objects.create_namespaced_custom_object(*place, SERVICE, field_validation="Strict")
        odd = json.loads(json.dumps(SERVICE).replace('"trial"', '"odd"'))
        odd["spec"]["runtime"]["runtimeParameters"] = {"tp": 1}
        with pytest.raises(ApiException, match=r"spec\.runtime\.runtimeParameters"):
            objects.create_namespaced_custom_object(*place, odd, field_validation="Strict")
        del odd["spec"]["runtime"]["runtimeParameters"]
        odd["spec"]["engine"]["runner"]["args"] = ["--tp-size", 1]
        with pytest.raises(ApiException) as error:
            objects.create_namespaced_custom_object(*place, odd)
        assert "spec.engine.runner.args[1] in body must be of type string" in refused(error)["message"]
        assert "status" not in objects.get_namespaced_custom_object(*place, "trial")


def test_all_of_omes_kinds_are_served(ome: ApiServer) -> None:
    """Discovery lists every kind, with a status where OME has one."""
    with connected(ome) as connection:
        found = CustomObjectsApi(connection).get_api_resources("ome.io", "v1beta1").resources
    names = {resource.name for resource in found}
    assert {"inferenceservices", "inferenceservices/status", "benchmarkjobs", "clusterservingruntimes"} <= names
    assert "servingruntimes/status" not in names


# Rights


@pytest.fixture
def account(api: ApiServer, namespace: str) -> Iterator[ApiClient]:
    """A service account that may do nothing yet."""
    with connected(api, api.token("tuner", namespace)) as made:
        yield made


def grant(server: ApiServer, namespace: str, *rules: Object) -> None:
    group = "rbac.authorization.k8s.io"
    server.store.create(f"roles.{group}", {"metadata": {"name": "tuner"}, "rules": list(rules)}, namespace)
    subject = {"kind": "ServiceAccount", "name": "tuner", "namespace": namespace}
    binding = {"metadata": {"name": "tuner"}, "roleRef": {"kind": "Role", "name": "tuner"}, "subjects": [subject]}
    server.store.create(f"rolebindings.{group}", binding, namespace)


def test_without_rights_everything_is_forbidden(account: ApiClient, namespace: str) -> None:
    """403 says who cannot do what where, in the server's words."""
    user = f"system:serviceaccount:{namespace}:tuner"
    core = CoreV1Api(account)
    with pytest.raises(ApiException) as error:
        core.list_namespaced_pod(namespace)
    status = refused(error)
    place = f'in API group "" in the namespace "{namespace}"'
    assert status["message"] == f'pods is forbidden: User "{user}" cannot list resource "pods" {place}'
    assert status["reason"] == "Forbidden"
    with pytest.raises(ApiException) as error:
        core.read_node("n1")
    expected = (
        f'nodes "n1" is forbidden: User "{user}" cannot get resource "nodes" in API group "" at the cluster scope'
    )
    assert refused(error)["message"] == expected
    assert client.VersionApi(account).get_code().major == "1"


def test_rights_are_what_roles_grant(api: ApiServer, account: ApiClient, namespace: str) -> None:
    """Verbs, groups, subresources and names of a Role count, in its namespace only, from the moment it is bound."""
    grant(
        api,
        namespace,
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]},
        {"apiGroups": [GROUP], "resources": ["widgets"], "verbs": ["*"], "resourceNames": ["mine"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    )
    core, widgets = CoreV1Api(account), Widgets(account, namespace)
    assert core.list_namespaced_config_map(namespace).items == []
    api.store.create(WIDGETS, widget("mine"), namespace)
    assert widgets.get("mine")
    assert widgets.names(field_selector="metadata.name=mine") == ["mine"]
    for refused_call in (
        lambda: core.create_namespaced_config_map(namespace, config_map("a")),
        lambda: core.list_namespaced_config_map("default"),
        lambda: widgets.create("mine"),
        lambda: widgets.get("other"),
        lambda: widgets.names(),
        lambda: widgets.patch_status("mine", {}),
        lambda: core.read_namespaced_pod("p", namespace),
    ):
        with pytest.raises(ApiException) as error:
            refused_call()
        assert error.value.status == 403
    with pytest.raises(ApiException) as error:
        core.read_namespaced_pod_log("p", namespace)
    assert error.value.status == 404


def test_a_cluster_role_can_be_bound_to_a_group(api: ApiServer, account: ApiClient, namespace: str) -> None:
    """A ClusterRoleBinding reaches all namespaces and the groups of service accounts."""
    group = "rbac.authorization.k8s.io"
    rule = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}
    api.store.create(f"clusterroles.{group}", {"metadata": {"name": namespace}, "rules": [rule]})
    subject = {"kind": "Group", "name": f"system:serviceaccounts:{namespace}"}
    role = {"kind": "ClusterRole", "name": namespace}
    binding = {"metadata": {"name": namespace}, "roleRef": role, "subjects": [subject]}
    api.store.create(f"clusterrolebindings.{group}", binding)
    assert CoreV1Api(account).list_node().items == []


def test_self_subject_access_review(api: ApiServer, account: ApiClient, admin: ApiClient, namespace: str) -> None:
    """The review answers what the server would do, for a user without any other right too."""
    grant(api, namespace, {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get"]})

    def allowed(connection: ApiClient, **attributes: str) -> bool:
        spec = {"resourceAttributes": {"namespace": namespace} | attributes}
        review = client.AuthorizationV1Api(connection).create_self_subject_access_review({"spec": spec})
        return bool(review.status.allowed)

    assert allowed(account, verb="get", resource="pods")
    assert allowed(account, verb="get", resource="pods", subresource="log")
    assert not allowed(account, verb="get", resource="pods", subresource="exec")
    assert not allowed(account, verb="list", resource="pods")
    assert not allowed(account, verb="get", resource="pods", namespace="default")
    assert allowed(admin, verb="delete", resource="nodes")
    rules = client.AuthorizationV1Api(account).create_self_subject_rules_review({"spec": {"namespace": namespace}})
    assert ["pods", "pods/log"] in [rule.resources for rule in rules.status.resource_rules]


def test_who_one_is(api: ApiServer, account: ApiClient, core: CoreV1Api, namespace: str) -> None:
    """A token request gives a token that works; a wrong one is unauthorized; none at all is nobody."""
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "tuner"}})
    token = core.create_namespaced_service_account_token("tuner", namespace, {"spec": {"audiences": []}}).status.token
    with connected(api, token) as connection:
        review = client.AuthenticationV1Api(connection).create_self_subject_review({})
        assert review.status.user_info.username == f"system:serviceaccount:{namespace}:tuner"
    with connected(api, "wrong") as connection, pytest.raises(ApiException) as error:
        CoreV1Api(connection).list_namespace()
    assert (refused(error)["code"], refused(error)["message"]) == (401, "Unauthorized")
    configuration = client.Configuration(host=api.url)
    with ApiClient(configuration) as connection, pytest.raises(ApiException) as error:
        CoreV1Api(connection).list_namespace()
    assert 'User "system:anonymous" cannot list resource "namespaces"' in refused(error)["message"]


# Admission, faults, lifetime


def test_admission_hooks(api: ApiServer, widgets: Widgets, namespace: str) -> None:
    """A mutating hook changes what is stored, a validating one refuses it."""

    def enlarge(admission: Admission) -> None:
        if admission.object["metadata"]["namespace"] == namespace:
            admission.object["spec"]["size"] += 1

    def limit(admission: Admission) -> None:
        if admission.operation != "DELETE" and admission.object["spec"]["size"] > 3:
            raise denied_by_webhook("limit.example.org", "too big")

    api.store.mutating[WIDGETS], api.store.validating[WIDGETS] = [enlarge], [limit]
    try:
        assert widgets.create("a")["spec"]["size"] == 2
        with pytest.raises(ApiException) as error:
            widgets.create("b", {"size": 3})
        assert refused(error)["message"] == 'admission webhook "limit.example.org" denied the request: too big'
        assert widgets.names() == ["a"]
    finally:
        api.store.mutating.clear()
        api.store.validating.clear()


@pytest.mark.parametrize("status", [401, 429, 500, 503, 504])
def test_faults_can_be_injected(api: ApiServer, widgets: Widgets, status: int) -> None:
    """A burst of refusals hits the requests that it is for and is over by itself."""
    fault = api.faults.add(Fault(status=status, count=2, verbs=frozenset({"list"}), resources=frozenset({WIDGETS})))
    try:
        widgets.create("a")
        for _ in range(2):
            with pytest.raises(ApiException) as error:
                widgets.names()
            assert refused(error)["code"] == status
            assert (error.value.headers.get("Retry-After") == "1") == (status == 429)
        assert widgets.names() == ["a"]
        assert fault.hits == 2
    finally:
        api.faults.clear()


def test_a_share_of_requests_fails(api: ApiServer, widgets: Widgets) -> None:
    """Half of the requests means some and not all."""
    api.faults.add(Fault(status=500, share=0.5, resources=frozenset({WIDGETS})))
    outcomes = []
    try:
        for _ in range(40):
            try:
                outcomes.append(widgets.names() == [])
            except ApiException:
                outcomes.append(False)
    finally:
        api.faults.clear()
    assert 5 < sum(outcomes) < 35


def test_watches_can_be_dropped(api: ApiServer, widgets: Widgets) -> None:
    """A dropped watch breaks off in the middle of its answer, which the client sees as a protocol error."""
    widgets.create("a")
    events = watch.Watch().stream(widgets._api.list_namespaced_custom_object, *widgets._place, timeout_seconds=60)
    next(events)
    api.faults.drop_watches()
    with pytest.raises(urllib3.exceptions.ProtocolError):
        next(events)
    assert widgets.names() == ["a"]


def test_odd_requests_are_refused(api: ApiServer, namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither text that is no JSON, nor numbers that are none, nor objects of an odd shape break the server."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    assert send(api, "GET", f"{path}?limit=x")[0] == 400
    assert send(api, "POST", path, ["a", "list"])[0] == 400
    assert send(api, "POST", path, {"metadata": ["a", "list"]})[0] in (400, 500)
    assert send(api, "PUT", path, {})[0] in (404, 405)
    assert send(api, "GET", "/apis/none.org")[0] == 404
    assert send(api, "GET", path)[0] == 200
    capsys.readouterr()


@pytest.mark.parametrize("plain", [True, False])
def test_stopping_leaves_nothing(tmp_path: Path, plain: bool) -> None:
    """A server with open watches and idle connections stops, and no thread of it is left."""
    before = set(threading.enumerate())
    server = ApiServer().start()
    connection = config.new_client_from_config(str(server.kubeconfig(tmp_path / "config", plain=plain)))
    events = watch.Watch().stream(CoreV1Api(connection).list_namespace, timeout_seconds=60)
    next(events)
    CoreV1Api(connection).list_node()
    until(lambda: server.rest.requests["list", "nodes"])
    with socket.create_connection(("127.0.0.1", server.port)):  # one that says nothing at all
        local = server.store.watch("pods")
        reader = threading.Thread(target=list, args=[local])
        reader.start()
        server.stop()
        reader.join()
    assert set(threading.enumerate()) <= before
    events.close()
    connection.close()


def test_a_watch_over_tls_notices_its_clients_leaving(api: ApiServer, tmp_path: Path) -> None:
    """Over TLS as well an idle watch goes on, and ends when its client is gone."""
    with config.new_client_from_config(str(api.kubeconfig(tmp_path / "config"))) as connection:
        stream = watch.Watch()
        events = stream.stream(CoreV1Api(connection).list_namespace, timeout_seconds=60)
        next(events)
        place = "namespaces", ""
        assert api.rest.open_watches[place] == 1
        threading.Timer(3 * IDLE_S, api.store.create, ["namespaces", {"metadata": {"name": "late"}}]).start()
        assert any(event["object"].metadata.name == "late" for event in events)
        stream.stop()
        events.close()
    until(lambda: api.rest.open_watches[place] == 0, 5)


def test_the_store_in_process(api: ApiServer, namespace: str) -> None:
    """Controllers get copies, optimistic locking and watches without HTTP."""
    store = api.store
    with store.watch("pods", namespace) as pods:
        made = store.create("pods", pod("a"), namespace)
        made["spec"]["containers"][0]["image"] = "changed in the copy"
        assert store.get("pods", "a", namespace)["spec"]["containers"][0]["image"] == "engine:1"
        current = store.get("pods", "a", namespace)
        current["status"]["phase"] = "Running"
        store.update_status("pods", current)
        with pytest.raises(ApiError) as error:
            store.update("pods", current)
        assert error.value.code == 409
        store.delete("pods", "a", namespace)
        seen = [pods.next(1.0) for _ in range(3)]
        assert [event.type for event in seen if event] == ["ADDED", "MODIFIED", "DELETED"]
        assert pods.next(0.0) is None
