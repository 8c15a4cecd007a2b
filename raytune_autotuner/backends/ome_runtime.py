"""What a (Cluster)ServingRuntime of OME starts, read so that a trial can say it anew with other flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from raytune_autotuner.engines import arguments
from raytune_autotuner.errors import SpecError
from raytune_autotuner.kube import CLUSTER_SERVING_RUNTIME, SERVING_RUNTIME, Cluster, Kind, Manifest

GPU = "nvidia.com/gpu"
DEFAULT_PORT = 8080
"""What OME gives a Service whose container names no port."""
MAIN_CONTAINER = "ome-container"
SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
KINDS: Mapping[str, Kind] = {kind.kind: kind for kind in (SERVING_RUNTIME, CLUSTER_SERVING_RUNTIME)}


@dataclass(frozen=True)
class Program:
    """What one section of a runtime runs, its command line split where the flags begin."""

    command: tuple[str, ...]
    args: tuple[str, ...]
    image: str | None = None
    gpus: int = 0
    port: int = DEFAULT_PORT
    container: str = MAIN_CONTAINER
    probed: bool = False
    """Whether it has a readiness probe, whose period can be shortened; one without a handler would be refused."""


@dataclass(frozen=True)
class Runtime:
    """A runtime's sections; a service uses those that it declares."""

    kind: str
    name: str
    engine: Program
    decoder: Program | None = None
    router: Program | None = None
    raw: Manifest = field(default_factory=dict, repr=False)

    @property
    def command(self) -> tuple[str, ...]:
        return self.engine.command

    @property
    def args(self) -> tuple[str, ...]:
        return self.engine.args

    @property
    def image(self) -> str | None:
        return self.engine.image

    @property
    def gpus(self) -> int:
        return self.engine.gpus

    @property
    def port(self) -> int:
        return self.engine.port


def read_runtime(cluster: Cluster, name: str, kind: str | None = None, namespace: str | None = None) -> Runtime:
    """The runtime of this name; without a kind the namespace's own comes before the cluster's, as for OME.

    Raises:
        SpecError: there is none such, or its flags cannot be told apart.
    """
    for wanted in (KINDS[kind],) if kind else KINDS.values():
        if wanted.namespaced and namespace is None:
            continue
        found = cluster.get(wanted, name, namespace if wanted.namespaced else None)
        if found is not None:
            return parse_runtime(found, wanted.kind)
    looked = kind or f"ServingRuntime in namespace {namespace} and no ClusterServingRuntime"
    cure = "kubectl get clusterservingruntimes,servingruntimes shows those there are"
    raise SpecError.single("base_runtime", f"there is no {looked} named {name!r}; {cure}")


def parse_runtime(raw: Manifest, kind: str) -> Runtime:
    """What such an object says.

    Raises:
        SpecError: its flags cannot be told apart.
    """
    name, spec = raw["metadata"]["name"], raw.get("spec") or {}
    engine = spec.get("engineConfig") or {}
    place = f"{kind} {name}"
    if engine.get("leader") or engine.get("worker"):
        raise SpecError.single("base_runtime", f"{place} runs over several nodes (leader and worker): not supported")
    return Runtime(
        kind=kind,
        name=name,
        engine=_program(engine.get("runner") or {}, f"{place}, engine"),
        decoder=_section(spec, "decoder", place),
        router=_section(spec, "router", place),
        raw=raw,
    )


def _section(spec: Mapping[str, Any], name: str, place: str) -> Program | None:
    """A section that a service may declare; the engine is refused for what these are only not tuned for."""
    runner = (spec.get(f"{name}Config") or {}).get("runner")
    if not runner:
        return None
    try:
        return _program(runner, f"{place}, {name}")
    except SpecError:
        return None


def _program(runner: Mapping[str, Any], place: str) -> Program:
    words = (*(runner.get("command") or ()), *(runner.get("args") or ()))
    if not words:
        cure = "write command and args into a copy of it and use that"
        raise SpecError.single("base_runtime", f"{place} starts what its image says; {cure}")
    if is_shell(words):
        cure = "make a copy of it with the program in `command` and each flag an item of `args`, and use that"
        raise SpecError.single(
            "base_runtime", f"{place} runs a shell script ({words[0]}), where flags cannot be changed; {cure}"
        )
    command, args = split_program(words)
    ports = [port["containerPort"] for port in runner.get("ports") or () if port.get("containerPort")]
    return Program(
        command=command,
        args=args,
        image=runner.get("image"),
        gpus=_gpus(runner.get("resources") or {}),
        port=int(ports[0]) if ports else _port(args),
        container=runner.get("name") or MAIN_CONTAINER,
        probed=bool(runner.get("readinessProbe")),
    )


def is_shell(words: Sequence[str]) -> bool:
    """Whether a command line hands a script to a shell; a script in a file is a program like others."""
    for word in words:
        program = PurePosixPath(word).name
        if program in SHELLS:
            return any(flag.startswith("-") and not flag.startswith("--") and "c" in flag for flag in words[1:])
        if program != "env" and "=" not in word:
            return False
    return False


def split_program(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A command line as program and flags: ``python3 -m module`` and ``vllm serve MODEL`` belong to the program."""
    module = words.index("-m") + 2 if "-m" in words[:4] else 0
    first = next((i for i, word in enumerate(words) if i >= module and arguments.FLAG.match(word)), len(words))
    return tuple(words[:first]), tuple(words[first:])


def _gpus(resources: Mapping[str, Any]) -> int:
    amount = (resources.get("limits") or {}).get(GPU, (resources.get("requests") or {}).get(GPU, 0))
    return int(amount)


def _port(args: Sequence[str]) -> int:
    found = [option.values[0] for option in arguments.split(args) if option.flag == "--port" and option.values]
    return int(found[-1]) if found and found[-1].isdigit() else DEFAULT_PORT
