"""The doors of an emulated pod, and kubectl against the emulated API."""

from __future__ import annotations

import http.client
import json
import os
import queue
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes import config, watch
from kubernetes.client import ApiException, CoreV1Api
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import PortForward

from tests.emulator.api import ApiServer, LogRequest, bind
from tests.test_emulator_api import WIDGET_CRD, pod, send, widget
from tests.waiting import until

Object = dict[str, Any]
BODY = b"x" * 300_000
LINES = ["one\n", "two\n", "three\n"]


class Echo(BaseHTTPRequestHandler):
    """The engine in a pod: answers with something longer than any frame."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def engine() -> Iterator[int]:
    """The port of an HTTP server on the loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def api(engine: int) -> Iterator[ApiServer]:
    with ApiServer() as server:
        server.add_crd(WIDGET_CRD)
        server.hooks.target = lambda namespace, name, port: ("127.0.0.1", engine if port == 8080 else closed_port())
        server.hooks.exec = lambda namespace, name, container, argv: launched(argv)
        run_pod(server, "web")
        yield server


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launched(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_pod(server: ApiServer, name: str, **status: Any) -> None:
    """A pod that is running on a node."""
    server.store.create("pods", pod(name), "default")
    bind(server.store, "default", name, "n1")
    states = [{"name": "main", "state": {"running": {}}, "ready": True, "restartCount": 0}]
    phase = {"phase": "Running", "containerStatuses": states} | status
    server.store.patch("pods", name, {"status": phase}, "default", subresource="status")


@pytest.fixture(params=["http", "https"])
def core(api: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CoreV1Api]:
    """The client as a kubeconfig makes it, over either protocol."""
    path = api.kubeconfig(tmp_path / "config", plain=request.param == "http")
    with config.new_client_from_config(str(path)) as connection:
        yield CoreV1Api(connection)


# Logs


def test_log_is_what_the_kubelet_gives(api: ApiServer, core: CoreV1Api) -> None:
    """The request reaches the hook with all that was asked for, and its text comes back."""
    asked: list[LogRequest] = []

    def logs(request: LogRequest) -> Iterator[str]:
        asked.append(request)
        return iter(LINES[-(request.tail or 3) :])

    api.hooks.logs = logs
    assert core.read_namespaced_pod_log("web", "default") == "".join(LINES)
    assert core.read_namespaced_pod_log("web", "default", tail_lines=1, container="main") == "three\n"
    assert asked[-1] == LogRequest("default", "web", "main", previous=False, tail=1, follow=False)


def test_log_can_be_followed(api: ApiServer, core: CoreV1Api) -> None:
    """A line arrives when it is written, before the log ends."""
    written: queue.Queue[str] = queue.Queue()
    api.hooks.logs = lambda request: iter(written.get, "end")
    written.put("first\n")
    lines = watch.Watch().stream(core.read_namespaced_pod_log, "web", "default")
    assert next(lines) == "first"
    written.put("second\n")
    assert next(lines) == "second"
    written.put("end")
    assert list(lines) == []


@pytest.mark.parametrize(
    ("status", "options", "message"),
    [
        ({"state": {"waiting": {"reason": "ContainerCreating"}}}, {}, "is waiting to start: ContainerCreating"),
        ({"state": {"waiting": {"reason": "ImagePullBackOff"}}}, {}, "trying and failing to pull image"),
        ({"state": {"running": {}}}, {"previous": True}, 'previous terminated container "main" in pod "log" not found'),
        ({"state": {"running": {}}}, {"container": "other"}, "container other is not valid for pod log"),
    ],
)
def test_log_that_is_not_there(api: ApiServer, core: CoreV1Api, status: Object, options: Object, message: str) -> None:
    """What has not started, was not restarted or does not exist has no log, and the server says which."""
    run_pod(api, "log", containerStatuses=[{"name": "main", "ready": False, "restartCount": 0} | status])
    try:
        with pytest.raises(ApiException) as error:
            core.read_namespaced_pod_log("log", "default", **options)
        assert error.value.status == 400
        assert message in json.loads(error.value.body)["message"]
    finally:
        api.store.delete("pods", "log", "default", grace_s=0)


# Port-forward and exec


def end(forward: PortForward) -> None:
    """Close a forward with its socket, which the client leaves open when the server was the first to close."""
    forward.close()
    until(lambda: not any("port forward proxy" in thread.name for thread in threading.enumerate()), 5)
    forward.websocket.shutdown()


def test_port_forward_of_the_python_client(core: CoreV1Api) -> None:
    """A large answer comes through unharmed, several times, each over a connection of its own."""
    for _ in range(2):
        forward = portforward(core.connect_get_namespaced_pod_portforward, "web", "default", ports="8080")
        connection = http.client.HTTPConnection("pod")
        connection.sock = forward.socket(8080)
        connection.request("GET", "/")
        assert connection.getresponse().read() == BODY
        connection.close()
        assert forward.error(8080) is None
        end(forward)


def test_port_forward_to_nothing(core: CoreV1Api) -> None:
    """A port on which nothing listens gives an error on its own channel."""
    forward = portforward(core.connect_get_namespaced_pod_portforward, "web", "default", ports="9")
    until(lambda: forward.error(9), 5)
    assert "connection refused" in forward.error(9)
    end(forward)


def test_exec(core: CoreV1Api) -> None:
    """A command's output, error output, input and exit status come through."""
    argv = ["sh", "-c", "read line; echo got $line; echo oops >&2; exit 3"]
    options = {"stdin": True, "stdout": True, "stderr": True, "tty": False, "_preload_content": False}
    process = stream(core.connect_get_namespaced_pod_exec, "web", "default", command=argv, **options)
    process.write_stdin("it\n")
    process.run_forever(timeout=10)
    assert process.read_stdout() == "got it\n"
    assert process.read_stderr() == "oops\n"
    assert process.returncode == 3
    process.sock.shutdown()


def handshake(server: ApiServer, name: str, token: str) -> tuple[int, Object]:
    """The answer to a WebSocket handshake that is refused."""
    path = f"/api/v1/namespaces/default/pods/{name}/portforward?ports=8080"
    headers = {"Authorization": f"Bearer {token}", "Connection": "Upgrade", "Upgrade": "websocket"}
    answer = urllib3.request("GET", server.url + path, headers=headers)
    return answer.status, answer.json()


def test_forwarding_needs_the_right_to_create(api: ApiServer) -> None:
    """Reading is not enough for a WebSocket, as since Kubernetes 1.35."""
    group = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get"]}]
    api.store.create(f"roles.{group}", {"metadata": {"name": "half"}, "rules": rules}, "default")
    subject = {"kind": "ServiceAccount", "name": "half", "namespace": "default"}
    binding = {"metadata": {"name": "half"}, "roleRef": {"kind": "Role", "name": "half"}, "subjects": [subject]}
    api.store.create(f"rolebindings.{group}", binding, "default")
    answered, status = handshake(api, "web", api.token("half", "default"))
    assert answered == 403
    assert 'cannot create resource "pods/portforward"' in status["message"]


def test_a_pod_that_does_not_run_has_no_doors(api: ApiServer, core: CoreV1Api) -> None:
    """Neither a forward nor a command reaches a pod without a node."""
    api.store.create("pods", pod("idle"), "default")
    try:
        answered, status = handshake(api, "idle", api.admin_token)
        assert (answered, status["message"]) == (400, "pod idle does not have a host assigned")
        assert core.read_namespaced_pod_log("idle", "default") == ""
    finally:
        api.store.delete("pods", "idle", "default")


def test_a_pod_is_bound_once(api: ApiServer) -> None:
    """The scheduler's binding sets the node; a second one is a conflict."""
    api.store.create("pods", pod("bound"), "default")
    path = "/api/v1/namespaces/default/pods/bound/binding"
    body = {"metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "n7"}}
    assert send(api, "POST", path, body)[0] == 201
    assert api.store.get("pods", "bound", "default")["spec"]["nodeName"] == "n7"
    assert send(api, "POST", path, body)[0] == 409
    api.store.delete("pods", "bound", "default", grace_s=0)


# kubectl


Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def kubectl_argv(api: ApiServer, tmp_path: Path) -> list[str]:
    program = shutil.which("kubectl")
    if not program:
        pytest.skip("kubectl is not installed")
    return [program, "--kubeconfig", str(api.kubeconfig(tmp_path / "config")), "--cache-dir", str(tmp_path / "cache")]


@pytest.fixture
def kubectl(kubectl_argv: list[str]) -> Kubectl:
    def run(*args: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*kubectl_argv, *args], input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done

    return run


def test_kubectl_creates_shows_and_deletes(kubectl: Kubectl) -> None:
    """create, get, patch, label, apply (both ways), wait and delete work on built-in and custom objects."""
    manifest = json.dumps(widget("a") | {"metadata": {"name": "a", "namespace": "default"}})
    assert kubectl("create", "-f", "-", stdin=manifest).stdout == "widget.example.org/a created\n"
    assert kubectl("get", "widgets", "-o", "name").stdout == "widget.example.org/a\n"
    kubectl("patch", "widget", "a", "--type", "merge", "-p", '{"spec":{"size":2}}')
    kubectl("label", "widget", "a", "x=1")
    found = kubectl("get", "widgets", "-l", "x=1", "-o", "jsonpath={.items[0].spec.size}")
    assert found.stdout == "2"
    kubectl("apply", "-f", "-", stdin=manifest.replace('"size": 1', '"size": 3'))
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest.replace('"size": 1', '"size": 4'))
    kubectl("wait", "widget/a", "--for=jsonpath={.spec.size}=4", "--timeout=10s")
    assert kubectl("delete", "widget", "a").stdout.startswith('widget.example.org "a" deleted')
    assert "NotFound" in kubectl("get", "widget", "a", code=1).stderr


def test_kubectl_validates(kubectl: Kubectl) -> None:
    """kubectl leaves validation to the server, which names the typo."""
    manifest = json.dumps(widget("b", {"size": 1, "sice": 2}))
    assert 'unknown field "spec.sice"' in kubectl("create", "-f", "-", stdin=manifest, code=1).stderr
    shown = kubectl("create", "configmap", "c", "--from-literal=a=b", "--dry-run=server", "-o", "name")
    assert shown.stdout == "configmap/c\n"
    kubectl("create", "secret", "generic", "s", "--from-literal=key=abc")
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.key}").stdout == "YWJj"
    kubectl("create", "namespace", "fresh")
    assert kubectl("create", "token", "default", "-n", "fresh").stdout


def test_kubectl_asks_for_rights_and_versions(kubectl: Kubectl) -> None:
    """auth can-i, version, api-resources and describe work."""
    assert kubectl("auth", "can-i", "create", "widgets.example.org").stdout == "yes\n"
    assert "v1.36.2" in kubectl("version", "-o", "json").stdout
    assert "widgets" in kubectl("api-resources", "--api-group", "example.org").stdout
    assert "Name:         web" in kubectl("describe", "pod", "web").stdout.replace(" " * 13, " " * 9)


def test_kubectl_reads_logs_and_executes(api: ApiServer, kubectl: Kubectl) -> None:
    """logs and exec reach the pod."""
    api.hooks.logs = lambda request: iter(LINES)
    assert kubectl("logs", "web").stdout == "".join(LINES)
    assert kubectl("exec", "web", "--", "echo", "hello").stdout == "hello\n"


@pytest.mark.parametrize("websockets", ["true", "false"])
def test_kubectl_port_forward(kubectl_argv: list[str], websockets: str) -> None:
    """Both of kubectl's ways, SPDY within WebSocket and SPDY alone, carry several requests and end with it."""
    argv = [*kubectl_argv, "port-forward", "pod/web", ":8080", "--address", "127.0.0.1"]
    env = os.environ | {"KUBECTL_PORT_FORWARD_WEBSOCKETS": websockets}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line.startswith("Forwarding from 127.0.0.1:"), line
            port = int(line.split()[2].rpartition(":")[2])
            for _ in range(3):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/")
                assert connection.getresponse().read() == BODY
                connection.close()
        finally:
            process.terminate()
