"""The doors of a pod: log, exec, port-forward, binding, eviction. What is behind them is the world's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.emulator.api import execution, portforward
from tests.emulator.api.errors import ApiError, conflict
from tests.emulator.api.kinds import Object
from tests.emulator.api.objects import at
from tests.emulator.api.requests import Answer, Request, Response, Stream
from tests.emulator.api.store import Store


@dataclass(frozen=True)
class LogRequest:
    """Which log, and how much of it."""

    namespace: str
    name: str
    container: str
    previous: bool
    tail: int | None
    follow: bool


def _no_logs(asked: LogRequest) -> Iterator[str]:
    return iter(())


def _no_target(namespace: str, name: str, port: int) -> tuple[str, int]:
    raise ConnectionRefusedError


def _no_exec(namespace: str, name: str, container: str, argv: list[str]) -> subprocess.Popen[bytes]:
    raise FileNotFoundError("nothing runs in this pod")


@dataclass
class PodHooks:
    """What the emulated kubelets provide."""

    logs: Callable[[LogRequest], Iterator[str]] = _no_logs
    """Pieces of text as they come, newlines included; with ``follow`` until the container ends. An empty piece, given
    once in a while as long as nothing comes, lets the server notice a client that has left."""
    target: Callable[[str, str, int], tuple[str, int]] = _no_target
    """The address to connect to for a port of a pod; ``OSError`` where nothing listens."""
    exec: Callable[[str, str, str, list[str]], subprocess.Popen[bytes]] = _no_exec


def log(store: Store, hooks: PodHooks, request: Request) -> Answer:
    """The answer to GET …/pods/NAME/log.

    Raises:
        ApiError: 400, no such container, or one that has no log (yet).
    """
    pod = _pod(store, request)
    container = _container(pod, request.query.get("container", ""))
    asked = LogRequest(
        request.attempt.namespace,
        request.attempt.name,
        container,
        request.flag("previous"),
        request.number("tailLines"),
        request.flag("follow"),
    )
    if not at(pod, "spec.nodeName"):
        return Response(200, b"", "text/plain")
    _check_started(pod, asked)
    pieces = (piece.encode() for piece in hooks.logs(asked))
    if asked.follow:
        return Stream(pieces, "text/plain")
    text = b"".join(pieces)
    return Response(200, text[: request.number("limitBytes")], "text/plain")


def _pod(store: Store, request: Request) -> Object:
    return store.record("pods", request.attempt.name, request.attempt.namespace).value


def _container(pod: Object, wanted: str) -> str:
    name = pod["metadata"]["name"]
    main = [container["name"] for container in pod["spec"]["containers"]]
    init = [container["name"] for container in pod["spec"].get("initContainers") or ()]
    if wanted and wanted not in main + init:
        raise ApiError(400, f"container {wanted} is not valid for pod {name}")
    if not wanted and len(main) > 1:
        choices = f"choose one of: [{' '.join(main)}]"
        choices += f" or one of the init containers: [{' '.join(init)}]" if init else ""
        raise ApiError(400, f"a container name must be specified for pod {name}, {choices}")
    return wanted or main[0]


def _check_started(pod: Object, asked: LogRequest) -> None:
    """A container that has not started has no log; what the kubelet says then."""
    statuses = [*(at(pod, "status.containerStatuses") or ()), *(at(pod, "status.initContainerStatuses") or ())]
    status: Object = next((status for status in statuses if status.get("name") == asked.container), {})
    subject = f'container "{asked.container}" in pod "{asked.name}"'
    ended = at(status, "lastState.terminated")
    if asked.previous:
        if not ended:
            raise ApiError(400, f"previous terminated {subject} not found")
        return
    waiting = at(status, "state.waiting")
    if waiting is None and (at(status, "state.running") or at(status, "state.terminated")):
        return
    if ended or (waiting is None and status):
        return
    reason = (waiting or {}).get("reason", "ContainerCreating")
    words = {
        "ImagePullBackOff": "trying and failing to pull image",
        "ErrImagePull": "image can't be pulled",
    }
    raise ApiError(400, f"{subject} is waiting to start: {words.get(reason, reason)}")


def connect(store: Store, hooks: PodHooks, request: Request) -> Answer:
    """The answer to a request for exec or port-forward.

    Raises:
        ApiError: 400, the pod runs on no node.
    """
    pod = _pod(store, request)
    namespace, name = request.attempt.namespace, request.attempt.name
    if not at(pod, "spec.nodeName"):
        raise ApiError(400, f"pod {name} does not have a host assigned")
    if request.attempt.subresource == "portforward":
        phase = at(pod, "status.phase")
        if phase != "Running":
            raise ApiError(400, f"unable to forward port because pod is not running. Current status={phase}")
        return portforward.upgrade(request, lambda port: hooks.target(namespace, name, port))
    container = _container(pod, request.query.get("container", ""))
    return execution.upgrade(request, lambda argv: hooks.exec(namespace, name, container, argv))


def bind(store: Store, namespace: str, name: str, node: str) -> None:
    """Give a pod its node, as a scheduler does."""
    pod = store.get("pods", name, namespace)
    if at(pod, "spec.nodeName"):
        raise conflict("pods/binding", name, f'pod {name} is already assigned to node "{at(pod, "spec.nodeName")}"')
    pod["spec"]["nodeName"] = node
    store.update("pods", pod)
