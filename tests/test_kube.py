"""The Kubernetes client against a scripted server: errors, retries, shared watches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner import kube
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.kube import (
    CONFIG_MAP,
    INFERENCE_SERVICE,
    KINDS,
    NODE,
    POD,
    Cluster,
    Conflict,
    Event,
    Rejected,
    Subscription,
    Unauthorized,
    Unreachable,
)
from raytune_autotuner.kube import http as kube_http
from raytune_autotuner.kube import watch as kube_watch
from tests.fakes.api_stub import DROPPED, Answer, ApiStub, Asked, Watch, refusal, serve
from tests.waiting import until

PODS = "/api/v1/namespaces/ns/pods"
MAPS = "/api/v1/namespaces/ns/configmaps"
SOON_S = 20.0


@pytest.fixture
def stub() -> Iterator[ApiStub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def cluster(stub: ApiStub, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster.connect(str(stub.kubeconfig(tmp_path / "config")))
    cluster.patience_s = 5.0
    yield cluster
    cluster.close()


def pod(name: str, version: int = 1, uid: str = "", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "uid": uid or name, "resourceVersion": str(version), "labels": labels},
    }


def listing(version: int, *items: dict[str, Any], more: str = "") -> Answer:
    return Answer(
        200, {"kind": "List", "metadata": {"resourceVersion": str(version), "continue": more}, "items": items}
    )


def config_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "ns"}, "data": data}


def told(subscription: Subscription) -> tuple[str, str] | None:
    event = subscription.wait(Deadline.after(SOON_S))
    return (event.type, event.object["metadata"]["name"]) if event else None


def silent(subscription: Subscription) -> bool:
    return subscription.wait(Deadline.after(0)) is None


class TestConnect:
    """Finding the configuration."""

    def test_no_file(self, tmp_path: Path) -> None:
        """A missing file is named."""
        with pytest.raises(EnvironmentFault, match="nowhere"):
            Cluster.connect(str(tmp_path / "nowhere"))

    @pytest.mark.parametrize("text", ["", "[]", "{a", "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: []"])
    def test_broken_file(self, tmp_path: Path, text: str) -> None:
        """A file that is no kubeconfig is this machine's fault, whatever is in it."""
        (tmp_path / "config").write_text(text)
        with pytest.raises(EnvironmentFault, match="configuration"):
            Cluster.connect(str(tmp_path / "config"))

    def test_unknown_context(self, stub: ApiStub, tmp_path: Path) -> None:
        """A context that the file does not have is named."""
        with pytest.raises(EnvironmentFault, match="nonsense"):
            Cluster.connect(str(stub.kubeconfig(tmp_path / "config")), "nonsense")

    def test_environment_variable(self, stub: ApiStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """$KUBECONFIG is used when no file is named."""
        monkeypatch.setenv("KUBECONFIG", str(stub.kubeconfig(tmp_path / "config")))
        assert Cluster.connect().kubeconfig == tmp_path / "config"

    def test_in_a_pod(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: ApiStub) -> None:
        """A pod's own account is used when there is no other configuration, and Services can be reached."""
        monkeypatch.delenv("KUBECONFIG", raising=False)
        monkeypatch.setattr(kube_http, "in_pod", lambda: True)
        path = stub.kubeconfig(tmp_path / "config")
        monkeypatch.setattr(kube_http, "load_in_pod", lambda: kube_http.load_file(path, None))
        assert Cluster.connect().inside
        assert not Cluster.connect(str(path)).inside

    def test_not_in_a_pod(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the variable of a pod this is none."""
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        assert not kube_http.in_pod()
        with pytest.raises(kube_http.ConfigException):
            kube_http.load_in_pod()


class TestRequests:
    """What is sent, and what comes back."""

    def test_version(self, stub: ApiStub, cluster: Cluster) -> None:
        """The server's version and the versions of a group."""
        stub.on("GET", "/version", Answer(200, {"gitVersion": "v1.36.2"}))
        stub.on("GET", "/apis/ome.io", Answer(200, {"versions": [{"version": "v1beta1"}]}))
        stub.on("GET", "/api", Answer(200, {"versions": ["v1"]}))
        assert cluster.server_version() == "v1.36.2"
        assert cluster.api_versions("ome.io") == ("v1beta1",)
        assert cluster.api_versions("") == ("v1",)
        assert cluster.api_versions("nobody.io") == ()

    def test_get(self, stub: ApiStub, cluster: Cluster) -> None:
        """An object comes back as it is, with the token sent; one that is absent is None."""
        stub.on("GET", f"{PODS}/a", Answer(200, pod("a")))
        assert cluster.get(POD, "a", "ns") == pod("a")
        assert cluster.get(POD, "b", "ns") is None
        assert stub.asked[0].headers["authorization"] == "Bearer secret"

    def test_paths(self, stub: ApiStub, cluster: Cluster) -> None:
        """Custom, core and cluster-wide resources have paths of their own, and names are quoted."""
        for kind, namespace, name in ((INFERENCE_SERVICE, "ns", "a"), (NODE, None, "n"), (POD, "ns", "a/b?c")):
            cluster.get(kind, name, namespace)
        assert [asked.path for asked in stub.asked] == [
            "/apis/ome.io/v1beta1/namespaces/ns/inferenceservices/a",
            "/api/v1/nodes/n",
            f"{PODS}/a%2Fb%3Fc",
        ]

    def test_list(self, stub: ApiStub, cluster: Cluster) -> None:
        """Pages are put together, and selectors are sent with each."""
        stub.on("GET", PODS, listing(5, {"metadata": {"name": "a"}}, more="t"), listing(5, {"metadata": {"name": "b"}}))
        found = cluster.list(POD, "ns", {"x": "1", "y": "2"}, "status.phase=Running")
        assert [(p["kind"], p["metadata"]["name"]) for p in found] == [("Pod", "a"), ("Pod", "b")]
        first, second = stub.requests("GET", PODS)
        assert first.query["labelSelector"] == second.query["labelSelector"] == "x=1,y=2"
        assert first.query["fieldSelector"] == "status.phase=Running"
        assert second.query["continue"] == "t"

    def test_create(self, stub: ApiStub, cluster: Cluster) -> None:
        """Unknown fields are to be refused; a dry run says so."""
        stub.on("POST", MAPS, lambda asked: Answer(201, asked.body))
        assert cluster.create(CONFIG_MAP, config_map(a="1")) == config_map(a="1")
        cluster.create(CONFIG_MAP, config_map(), dry_run=True)
        real, dry = stub.requests("POST", MAPS)
        assert real.query == {"fieldManager": "raytune-autotuner", "fieldValidation": "Strict"}
        assert dry.query["dryRun"] == "All"

    def test_write(self, stub: ApiStub, cluster: Cluster) -> None:
        """A patch is a merge patch; a replacement is put."""
        stub.on("PATCH", f"{MAPS}/m", Answer(200, config_map()))
        stub.on("PUT", f"{MAPS}/m", Answer(200, config_map()))
        cluster.patch(CONFIG_MAP, "m", "ns", {"data": {"a": None}})
        cluster.replace(CONFIG_MAP, config_map(b="2"))
        patch, put = stub.asked
        assert patch.headers["Content-Type"] == "application/merge-patch+json"
        assert patch.body == {"data": {"a": None}}
        assert put.body == config_map(b="2")

    def test_delete(self, stub: ApiStub, cluster: Cluster) -> None:
        """Options are sent; what is absent is deleted already; another uid is a conflict."""
        stub.on("DELETE", f"{PODS}/a", Answer(200, {}), refusal(409, "the UID does not match", "Conflict"))
        cluster.delete(POD, "a", "ns", grace_s=0, propagation="Foreground", uid="u")
        assert stub.asked[0].body == {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": "u"},
        }
        with pytest.raises(Conflict):
            cluster.delete(POD, "a", "ns", uid="other")
        cluster.delete(POD, "gone", "ns")

    def test_logs(self, stub: ApiStub, cluster: Cluster) -> None:
        """The end of a log; empty where there is none yet."""
        stub.on(
            "GET", f"{PODS}/a/log", Answer(200, b"x\xff\n"), refusal(400, "is waiting to start"), refusal(403, "no")
        )
        assert cluster.logs("ns", "a", container="c", previous=True, tail_lines=7) == "x�\n"
        assert stub.asked[0].query == {"container": "c", "previous": "true", "tailLines": "7"}
        assert cluster.logs("ns", "a") == ""
        with pytest.raises(Rejected):
            cluster.logs("ns", "a")

    def test_can_i(self, stub: ApiStub, cluster: Cluster) -> None:
        """The authorizer is asked about the very verb and resource."""
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        stub.on("POST", path, Answer(201, {"status": {"allowed": True}}), Answer(201, {"status": {}}))
        assert cluster.can_i("get", POD, "ns", "log")
        assert stub.asked[0].body["spec"]["resourceAttributes"] == {
            "verb": "get",
            "group": "",
            "resource": "pods",
            "subresource": "log",
            "namespace": "ns",
        }
        assert not cluster.can_i("list", NODE, "ns")
        assert "namespace" not in stub.asked[1].body["spec"]["resourceAttributes"]

    def test_kinds(self) -> None:
        """Every kind in the table is there once."""
        assert POD in KINDS
        assert len({kind.kind for kind in KINDS}) == len(KINDS)


class TestErrors:
    """Each answer that is no success has one error of ours."""

    @pytest.mark.parametrize("status", [400, 403, 405, 422])
    def test_refused(self, stub: ApiStub, cluster: Cluster, status: int) -> None:
        """The server's message, status and reason are in the error, and nothing is tried again."""
        stub.on("POST", MAPS, refusal(status, "unknown field spec.tpyo", "Invalid"))
        with pytest.raises(Rejected, match="tpyo") as error:
            cluster.create(CONFIG_MAP, config_map())
        assert (error.value.status, error.value.reason) == (status, "Invalid")
        assert len(stub.asked) == 1

    def test_refused_without_json(self, stub: ApiStub, cluster: Cluster) -> None:
        """What a proxy says in other words is told as it is."""
        stub.on("GET", "/version", Answer(418, b"<html>teapot</html>"))
        with pytest.raises(Rejected, match="teapot"):
            cluster.server_version()

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_passing_fault(self, stub: ApiStub, cluster: Cluster, status: int) -> None:
        """A server that is overloaded or broken for a moment is asked again."""
        stub.on("GET", "/version", refusal(status, "busy"), DROPPED, Answer(200, {"gitVersion": "v1"}))
        assert cluster.server_version() == "v1"
        assert len(stub.asked) == 3

    def test_retry_after(self, stub: ApiStub, cluster: Cluster) -> None:
        """A server that says to come back later than we would wait is not asked again."""
        stub.on("GET", "/version", refusal(429, "busy", Retry_After="60"))
        with pytest.raises(Unreachable, match="busy"):
            cluster.server_version()
        assert len(stub.asked) == 1

    def test_lasting_fault(self, stub: ApiStub, cluster: Cluster) -> None:
        """The patience ends."""
        stub.on("GET", "/version", refusal(500, "broken"))
        cluster.patience_s = 0.3
        with pytest.raises(Unreachable, match="broken"):
            cluster.server_version()
        assert len(stub.asked) > 1

    def test_nobody_listens(self, tmp_path: Path) -> None:
        """A server that is away is unreachable, and so is one that sends something else."""
        with serve() as stub:
            path = stub.kubeconfig(tmp_path / "config")
        cluster = Cluster.connect(str(path))
        cluster.patience_s = 0
        with pytest.raises(Unreachable):
            cluster.server_version()

    def test_a_token_that_cannot_be_read_for_a_moment(self, stub: ApiStub, cluster: Cluster) -> None:
        """The client reads its file again every minute: what that raises may pass like any other fault."""
        stub.on("GET", "/version", Answer(200, {"gitVersion": "v1"}))
        settings = cluster._connection._client.configuration.auth_settings
        answers = iter([OSError(24, "too many open files"), None])

        def read() -> Any:
            if (error := next(answers)) is not None:
                raise error
            return settings()

        cluster._connection._client.configuration.auth_settings = read
        assert cluster.server_version() == "v1"

    def test_no_json(self, stub: ApiStub, cluster: Cluster) -> None:
        """An answer that is no JSON is a broken server's."""
        stub.on("GET", "/version", Answer(200, b"<html>"))
        cluster.patience_s = 0
        with pytest.raises(Unreachable, match="not JSON"):
            cluster.server_version()

    def test_answer_that_breaks_off(self, stub: ApiStub, cluster: Cluster) -> None:
        """An answer that is shorter than it said is asked for again."""
        short = Answer(200, b'{"gitV', {"X": "y"})
        stub.on("GET", "/version", short, Answer(200, {"gitVersion": "v1"}))
        assert cluster.server_version() == "v1"

    def test_frozen_server(self, stub: ApiStub, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that never answers does not hang the client."""
        frozen = threading.Event()
        stub.on("GET", "/version", lambda asked: Answer(200, str(frozen.wait(SOON_S))))
        cluster.patience_s = 0
        with pytest.raises(Unreachable):
            cluster._connection.json(kube.Request("GET", "/version", read_s=0.2))
        frozen.set()

    def test_rotated_token(self, stub: ApiStub, cluster: Cluster, tmp_path: Path) -> None:
        """Credentials are read again when they are not taken any more."""

        def answer(asked: Asked) -> Answer:
            if asked.headers["authorization"] == "Bearer new":
                return Answer(200, {"gitVersion": "v1"})
            stub.kubeconfig(tmp_path / "config", token="new")
            return refusal(401, "Unauthorized")

        stub.on("GET", "/version", answer)
        assert cluster.server_version() == "v1"

    def test_bad_token(self, stub: ApiStub, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        """Credentials that stay bad are an error of their own."""
        monkeypatch.setattr(kube_http, "UNAUTHORIZED_S", 0.1)
        stub.on("GET", "/version", refusal(401, "Unauthorized"))
        with pytest.raises(Unauthorized):
            cluster.server_version()

    def test_exists(self, stub: ApiStub, cluster: Cluster) -> None:
        """An object that is there already is a conflict."""
        stub.on("POST", MAPS, refusal(409, 'configmaps "m" already exists', "AlreadyExists"))
        with pytest.raises(Conflict, match="already exists"):
            cluster.create(CONFIG_MAP, config_map())

    def test_created_although_the_answer_was_lost(self, stub: ApiStub, cluster: Cluster) -> None:
        """An object that a lost attempt has made is ours, with what the server has filled in."""
        made = {**config_map(a="1"), "immutable": False}
        stub.on("POST", MAPS, DROPPED, refusal(409, "exists", "AlreadyExists"))
        stub.on("GET", f"{MAPS}/m", Answer(200, made))
        assert cluster.create(CONFIG_MAP, config_map(a="1")) == made

    def test_somebody_elses_although_an_answer_was_lost(self, stub: ApiStub, cluster: Cluster) -> None:
        """An object of this name that says something else is not ours."""
        stub.on("POST", MAPS, DROPPED, refusal(409, "exists", "AlreadyExists"))
        stub.on("GET", f"{MAPS}/m", Answer(200, config_map(a="2")))
        with pytest.raises(Conflict):
            cluster.create(CONFIG_MAP, config_map(a="1"))

    def test_lists_are_compared_in_full(self) -> None:
        """A default may be added to a mapping, nothing to a list."""
        assert kube._contains({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]})
        assert not kube._contains({"a": [1, 2]}, {"a": [1]})


class TestWatch:
    """One watch for all who are interested."""

    def test_what_is_there_comes_first(self, stub: ApiStub, cluster: Cluster) -> None:
        """Objects that exist are told as added, then what becomes of them, for those with the labels."""
        stub.on("GET", PODS, listing(5, pod("a", app="x"), pod("b", app="y")))
        with cluster.watch(POD, "ns", {"app": "x"}) as subscription:
            assert told(subscription) == ("ADDED", "a")
            watch = stub.next_watch()
            assert watch.asked.query["resourceVersion"] == "5"
            watch.send("MODIFIED", pod("b", 6, app="y"))
            watch.send("MODIFIED", pod("a", 7, app="x"))
            watch.send("DELETED", pod("a", 8, app="x"))
            assert told(subscription) == ("MODIFIED", "a")
            assert told(subscription) == ("DELETED", "a")
            assert silent(subscription)

    def test_label_taken_away(self, stub: ApiStub, cluster: Cluster) -> None:
        """An object that stops matching is gone for the one who asked for it."""
        stub.on("GET", PODS, listing(5, pod("a", app="x")))
        with cluster.watch(POD, "ns", {"app": "x"}) as subscription:
            assert told(subscription) == ("ADDED", "a")
            stub.next_watch().send("MODIFIED", pod("a", 6))
            assert told(subscription) == ("DELETED", "a")

    def test_shared(self, stub: ApiStub, cluster: Cluster) -> None:
        """Fifty subscribers are served by one watch, and a late one is told what is there."""
        stub.on("GET", PODS, listing(5, pod("a")))
        subscriptions = [cluster.watch(POD, "ns") for _ in range(50)]
        watch = stub.next_watch()
        assert [told(s) for s in subscriptions] == [("ADDED", "a")] * 50
        watch.send("ADDED", pod("b", 6))
        assert [told(s) for s in subscriptions] == [("ADDED", "b")] * 50
        with cluster.watch(POD, "ns") as late:
            assert {told(late), told(late)} == {("ADDED", "a"), ("ADDED", "b")}
        assert kube_watch.active() == 1
        assert len(stub.open) == 1
        for subscription in subscriptions:
            subscription.close()
        assert kube_watch.active() == 0

    def test_other_credentials_are_not_shared(self, stub: ApiStub, cluster: Cluster, tmp_path: Path) -> None:
        """Two users have a watch each."""
        stub.on("GET", PODS, listing(5))
        other = Cluster.connect(str(stub.kubeconfig(tmp_path / "other", "other")))
        with cluster.watch(POD, "ns"), other.watch(POD, "ns"):
            tokens = {stub.next_watch().asked.headers["authorization"] for _ in range(2)}
        assert tokens == {"Bearer secret", "Bearer other"}

    def test_thread_ends_with_the_last_subscriber(self, stub: ApiStub, cluster: Cluster) -> None:
        """No thread is left, also when the server says nothing."""
        stub.on("GET", PODS, listing(5))
        with cluster.watch(POD, "ns"):
            stub.next_watch()
            assert _threads()
        until(lambda: not _threads())

    def test_several_kinds(self, stub: ApiStub, cluster: Cluster) -> None:
        """One subscription can be told of several kinds, each with its own filter."""
        stub.on("GET", PODS, listing(5, pod("a"), pod("b")))
        stub.on("GET", MAPS, listing(5, {"metadata": {"name": "m", "uid": "m", "resourceVersion": "1"}}))
        wanted = {POD: lambda thing: thing["metadata"]["name"] == "b", CONFIG_MAP: lambda thing: True}
        with cluster.watch_all("ns", wanted) as subscription:
            events = [subscription.wait(Deadline.after(SOON_S)) for _ in range(2)]
            assert {(e.kind, e.object["metadata"]["name"]) for e in events if e} == {(POD, "b"), (CONFIG_MAP, "m")}
            assert silent(subscription)

    @pytest.mark.parametrize("ending", [Watch.end, Watch.drop])
    def test_resumed(self, stub: ApiStub, cluster: Cluster, ending: Any) -> None:
        """A watch that ended or broke goes on from the last version seen, bookmarks included, without a new list."""
        stub.on("GET", PODS, listing(5))
        with cluster.watch(POD, "ns") as subscription:
            watch = stub.next_watch()
            watch.send("ADDED", pod("a", 6))
            watch.send("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
            ending(watch)
            again = stub.next_watch()
            assert again.asked.query["resourceVersion"] == "9"
            again.send("ADDED", pod("b", 10))
            assert [told(subscription), told(subscription)] == [("ADDED", "a"), ("ADDED", "b")]
            lists = [a for a in stub.requests("GET", PODS) if "watch" not in a.query]
            assert len(lists) == 1

    def test_too_old(self, stub: ApiStub, cluster: Cluster) -> None:
        """After 410 Gone the difference to a new list is told: gone, changed, new; unchanged is silent."""
        stub.on(
            "GET", PODS, listing(5, pod("a"), pod("b"), pod("c")), listing(90, pod("b"), pod("c", 70), pod("d", 80))
        )
        with cluster.watch(POD, "ns") as subscription:
            assert {told(subscription) for _ in range(3)} == {("ADDED", n) for n in "abc"}
            stub.next_watch().send("ERROR", {"code": 410, "message": "too old resource version"})
            stub.next_watch()
            changes = {told(subscription) for _ in range(3)}
            assert changes == {("DELETED", "a"), ("MODIFIED", "c"), ("ADDED", "d")}
            assert silent(subscription)

    def test_made_anew_while_nobody_looked(self, stub: ApiStub, cluster: Cluster) -> None:
        """An object of the same name that came after the old one is another one."""
        stub.on("GET", PODS, listing(5, pod("a", 1, "old")), listing(90, pod("a", 80, "new")))
        with cluster.watch(POD, "ns") as subscription:
            told(subscription)
            stub.next_watch().send("ERROR", {"code": 410, "message": "too old"})
            assert [told(subscription), told(subscription)] == [("DELETED", "a"), ("ADDED", "a")]

    def test_server_errors_are_waited_out(self, stub: ApiStub, cluster: Cluster) -> None:
        """Neither a list nor a watch that fails for a moment is noticed by the subscriber."""
        stub.on("GET", PODS, refusal(500, "broken"), DROPPED, listing(5, pod("a")))
        with cluster.watch(POD, "ns") as subscription:
            assert told(subscription) == ("ADDED", "a")
            stub.next_watch().send("ERROR", {"code": 500, "message": "etcd has no leader"})
            stub.next_watch().send("ADDED", pod("b", 6))
            assert told(subscription) == ("ADDED", "b")

    def test_a_fault_that_nobody_thought_of(
        self, stub: ApiStub, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who listens is told, instead of waiting for what does not come, and the next one has a watch of its own."""
        stub.on("GET", PODS, listing(5), listing(6, pod("a")))
        with cluster.watch(POD, "ns") as subscription:
            watch = stub.next_watch()
            with monkeypatch.context() as patch:
                patch.setattr(kube_watch._SharedWatch, "_note", lambda *_: {}["nobody"])
                watch.send("MODIFIED", pod("a", 6))
                with pytest.raises(TransientError, match="watch of pods has failed: KeyError"):
                    told(subscription)
        with cluster.watch(POD, "ns") as again:
            assert told(again) == ("ADDED", "a")

    def test_watches_that_end_at_once(self, stub: ApiStub, cluster: Cluster) -> None:
        """Where no watch can be kept, lists take its place."""
        stub.on("GET", PODS, listing(5), listing(9, pod("a", 7)))
        stub.on("GET", PODS + "?watch", Answer(200, b""))
        with cluster.watch(POD, "ns") as subscription:
            assert told(subscription) == ("ADDED", "a")

    def test_garbage(self, stub: ApiStub, cluster: Cluster) -> None:
        """A line that is no JSON breaks the watch, which goes on from where it was."""
        stub.on("GET", PODS, listing(5))
        with cluster.watch(POD, "ns") as subscription:
            stub.next_watch().raw(b"<html>\n")
            stub.next_watch().send("ADDED", pod("b", 6))
            assert told(subscription) == ("ADDED", "b")

    def test_event_in_pieces(self, stub: ApiStub, cluster: Cluster) -> None:
        """An event may come in several chunks, and several in one."""
        stub.on("GET", PODS, listing(5))
        with cluster.watch(POD, "ns") as subscription:
            watch = stub.next_watch()
            watch.raw(b'{"type": "ADDED", "obj')
            watch.raw(
                b'ect": {"metadata": {"name": "a", "uid": "a", "resourceVersion": "6"}}}\n{"type": "ADDED", "object"'
            )
            watch.raw(b': {"metadata": {"name": "b", "uid": "b", "resourceVersion": "7"}}}\n')
            assert [told(subscription), told(subscription)] == [("ADDED", "a"), ("ADDED", "b")]

    def test_forbidden(self, stub: ApiStub, cluster: Cluster) -> None:
        """A subscriber who may not watch is told so, each time; the next one starts anew."""
        stub.on("GET", PODS, refusal(403, "pods is forbidden", "Forbidden"), listing(5, pod("a")))
        with cluster.watch(POD, "ns") as subscription:
            for _ in range(2):
                with pytest.raises(Rejected, match="forbidden"):
                    subscription.wait(Deadline.after(SOON_S))
        with cluster.watch(POD, "ns") as subscription:
            assert told(subscription) == ("ADDED", "a")

    def test_outage(self, stub: ApiStub, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        """Subscribers are told when the server stays away."""
        monkeypatch.setattr(kube_watch, "OUTAGE_S", 0.2)
        stub.on("GET", PODS, refusal(503, "away"))
        with cluster.watch(POD, "ns") as subscription, pytest.raises(TransientError, match="away"):
            subscription.wait(Deadline.after(SOON_S))

    def test_deadline(self, stub: ApiStub, cluster: Cluster) -> None:
        """Nothing happens: nothing is told."""
        stub.on("GET", PODS, listing(5))
        with cluster.watch(POD, "ns") as subscription:
            assert subscription.wait(Deadline.after(0.05)) is None

    def test_silent_connection(self, stub: ApiStub, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection that has died without a word is given up a little after the watch should have ended."""
        monkeypatch.setattr(kube_watch, "WATCH_S", 0)
        monkeypatch.setattr(kube, "SILENCE_S", 0.2)
        stub.on("GET", PODS, listing(5))
        with cluster.watch(POD, "ns") as subscription:
            stub.next_watch()
            stub.next_watch().send("ADDED", pod("a", 6))
            assert told(subscription) == ("ADDED", "a")

    def test_event_tells_its_kind(self) -> None:
        """An event is a value."""
        assert Event("ADDED", {}, POD) == Event("ADDED", {}, POD)


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "watch-pods-ns"]
