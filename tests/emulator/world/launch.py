"""From a container's specification to a process of this machine.

There are no namespaces here, so three things are put in where a container would find them by itself: the folder
behind a mount path, the address behind a name of the cluster's DNS, and the pod's own address for 0.0.0.0.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.emulator.api.store import Store
from tests.emulator.engine import router
from tests.emulator.engine.switches import Switches
from tests.emulator.world.nodes import GPU, Object, quantity

EXPANDED = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
SERVICE_NAME = re.compile(r"\b([a-z0-9][-a-z0-9]*)\.([a-z0-9][-a-z0-9]*)\.svc(?:\.cluster\.local)?\b")
PROGRAMS: Mapping[str, str] = {
    "sglang.launch_server": "sglang",
    "vllm.entrypoints.openai.api_server": "vllm",
    "sglang_router.launch_router": "router",
    "sglang::router": "router",
}
"""Python modules that are emulated, and as what."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


class NotMade(Exception):
    """The container cannot be made; ``reason`` is that of its waiting state."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Surroundings:
    """Where a pod runs."""

    store: Store
    claims: Path
    """Folder of the claims: ``namespace/name``."""
    host: Path
    """Folder that stands for the node's file system."""
    pod: Path
    """The pod's own folder."""
    address: str
    switches: Switches
    programs: Mapping[str, Sequence[str]]
    """What a command's first word means here, e.g. ``genai-bench``."""


@dataclass(frozen=True)
class Launch:
    """What to start; ``folders`` are the real places of the mount paths, longest first."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    folders: tuple[tuple[str, str], ...]
    translate: Callable[[str], str]
    """The same for the words of a command that is run beside it."""

    def as_seen(self, text: str) -> str:
        """Output of the process, with the paths that the container knows."""
        for mount, folder in self.folders:
            text = text.replace(folder, mount)
        return text


def launch(pod: Object, container: Object, around: Surroundings) -> Launch:
    """Raises NotMade when something it refers to is missing."""
    folders = _mounts(pod, container, around)
    variables = _environment(pod, container, around)
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    if not words:
        raise NotMade("CreateContainerError", "no command specified")
    here = _translator(folders, around.store)
    expanded = _program([_expand(str(word), variables) for word in words], around.programs)
    # What is emulated looks at no files: it may keep the paths that it is told.
    argv = expanded if expanded[0] in PROGRAMS.values() else [here(word) for word in expanded]
    env = {name: os.environ[name] for name in KEPT if name in os.environ} | OFFLINE
    env |= {name: here(value) for name, value in variables.items()}
    env |= _emulated(pod, container, around)
    cwd = Path(here(container["workingDir"])) if container.get("workingDir") else around.pod
    cwd.mkdir(parents=True, exist_ok=True)
    return Launch(tuple(argv), env, cwd, folders, here)


def _program(argv: Sequence[str], programs: Mapping[str, Sequence[str]]) -> list[str]:
    """The words with which this machine does what the command means."""
    first = argv[0].rpartition("/")[2]
    if re.fullmatch(r"python(3(\.\d+)?)?", first):
        if len(argv) > 2 and argv[1] == "-m" and argv[2] in PROGRAMS:
            return [PROGRAMS[argv[2]], *argv[3:]]
        return [sys.executable, *argv[1:]]
    if first == "vllm" and argv[1:2] == ["serve"]:
        return ["vllm", *(["--model", *argv[2:]] if argv[2:] and not argv[2].startswith("-") else argv[2:])]
    if first in programs:
        return [*programs[first], *argv[1:]]
    return list(argv)


def _emulated(pod: Object, container: Object, around: Surroundings) -> dict[str, str]:
    gpus = int(quantity(((container.get("resources") or {}).get("limits") or {}).get(GPU, 0)))
    switches = Switches(**{**around.switches.__dict__, "gpus": gpus, "address": around.address})
    workers = {router.WORKERS: str(around.pod / "workers.json"), router.ADDRESS: around.address}
    return {**switches.environment(), **workers, "HOSTNAME": pod["metadata"]["name"]}


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` as the kubelet expands it: an unknown name stays as it is, ``$$`` is a dollar."""
    return EXPANDED.sub(lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]), text)


def _environment(pod: Object, container: Object, around: Surroundings) -> dict[str, str]:
    namespace = pod["metadata"]["namespace"]
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        for kind, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if kind in source:
                found = _data(around.store, resource, source[kind]["name"], namespace, source[kind].get("optional"))
                variables |= {source.get("prefix", "") + key: value for key, value in found.items()}
    for variable in container.get("env") or ():
        value = _value(variable, pod, around)
        if value is not None:
            variables[variable["name"]] = _expand(value, variables)
    return variables


def _value(variable: Object, pod: Object, around: Surroundings) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return str(variable.get("value") or "")
    for kind, resource in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
        if kind in source:
            wanted = source[kind]
            optional = wanted.get("optional")
            found = _data(around.store, resource, wanted["name"], pod["metadata"]["namespace"], optional)
            if wanted["key"] not in found and not optional:
                what = "Secret" if resource == "secrets" else "ConfigMap"
                place = f"{pod['metadata']['namespace']}/{wanted['name']}"
                raise NotMade("CreateContainerConfigError", f"couldn't find key {wanted['key']} in {what} {place}")
            return found.get(wanted["key"])
    path = (source.get("fieldRef") or {}).get("fieldPath", "")
    facts: dict[str, Callable[[], str]] = {
        "metadata.name": lambda: str(pod["metadata"]["name"]),
        "metadata.namespace": lambda: str(pod["metadata"]["namespace"]),
        "status.podIP": lambda: around.address,
        "spec.nodeName": lambda: str(pod["spec"]["nodeName"]),
    }
    return facts[path]() if path in facts else ""


def _data(store: Store, resource: str, name: str, namespace: str, optional: Any) -> dict[str, str]:
    found = store.find(resource, name, namespace)
    if found is None:
        if optional:
            return {}
        raise NotMade("CreateContainerConfigError", f'{resource[:-1]} "{name}" not found')
    data = found.get("data") or {}
    if resource == "secrets":
        return {key: base64.b64decode(value).decode("utf-8", "replace") for key, value in data.items()}
    return {key: str(value) for key, value in data.items()}


def _mounts(pod: Object, container: Object, around: Surroundings) -> tuple[tuple[str, str], ...]:
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
    folders = []
    for mount in container.get("volumeMounts") or ():
        volume = volumes.get(mount["name"])
        if volume is None:
            raise NotMade("CreateContainerConfigError", f'volume "{mount["name"]}" not found')
        folder = _folder(volume, pod, around)
        if mount.get("subPath"):
            folder = folder / mount["subPath"]
        folder.mkdir(parents=True, exist_ok=True)
        if str(folder) != mount["mountPath"].rstrip("/"):
            folders.append((mount["mountPath"].rstrip("/"), str(folder)))
    return tuple(sorted(folders, key=lambda each: -len(each[0])))


def _folder(volume: Object, pod: Object, around: Surroundings) -> Path:
    namespace = pod["metadata"]["namespace"]
    if claim := volume.get("persistentVolumeClaim"):
        return around.claims / str(namespace) / str(claim["claimName"])
    if path := (volume.get("hostPath") or {}).get("path"):
        return Path(path) if Path(path).is_dir() else around.host / path.lstrip("/")
    folder = around.pod / "volumes" / str(volume["name"])
    folder.mkdir(parents=True, exist_ok=True)
    for kind, resource, key in (("configMap", "configmaps", "name"), ("secret", "secrets", "secretName")):
        if source := volume.get(kind):
            for name, text in _data(around.store, resource, source[key], namespace, source.get("optional")).items():
                (folder / name).write_text(text)
    return folder


def _translator(folders: Sequence[tuple[str, str]], store: Store) -> Callable[[str], str]:
    """Puts real folders for mount paths, and cluster IPs for the names of Services."""
    patterns = [(re.compile(rf"(?<![\w./-]){re.escape(mount)}(?![\w-])"), folder) for mount, folder in folders]

    def address(found: re.Match[str]) -> str:
        service = store.find("services", found[1], found[2])
        return service["spec"]["clusterIP"] if service else found[0]

    def translate(text: str) -> str:
        for pattern, folder in patterns:
            text = pattern.sub(lambda _, folder=folder: folder, text)  # type: ignore[misc]
        return SERVICE_NAME.sub(address, text)

    return translate
