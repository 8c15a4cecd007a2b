"""What decides what a configuration measures, besides its parameters: where all is equal, so is the measurement."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from raytune_autotuner import __version__
from raytune_autotuner.records import Rung
from raytune_autotuner.setup import Setup
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.spec import Optimization, Task
from raytune_autotuner.task.taskfile import Steps

NVIDIA_SMI_S = 10.0
OURS = frozenset({"api_key_env", "rungs"})
"""Fields of the benchmark that change nothing, or are told by the ladder."""
OME = (
    *("image", "env", "secret_env", "annotations", "model_kind", "replicas", "decoder", "router", "template"),
    *("benchmark", "benchmark_image", "node_selector"),
)
"""Fields of ``ome`` that decide what runs, where, and how it is measured."""
FILES: Sequence[Steps] = (
    ("model", "chat_template"),
    ("runtime", "ome", "template"),
    ("workload", "dataset", "path"),
    ("workload", "dataset", "config"),
)
"""What may name a file: what is in it counts, not where it lies."""
SCORE = frozenset({"objective", "objectives", "weights", "slo", "canary"})
PACKAGES = {"llamacpp_server": "xllamacpp", "sglang": "sglang", "vllm": "vllm"}
"""Who serves, by a part of the command."""
FIELDS = 2
"""Levels of names in ``constant`` that are ours; below them, they are the user's."""
MOVING = re.compile(r"(^|:)(latest|main|nightly|dev)$")

Identity = Mapping[str, Any]


def identity(setup: Setup) -> dict[str, Any]:
    """By topic; ``None`` where it cannot be told, which equals nothing."""
    task = setup.task
    found: dict[str, Any] = json.loads(  # as it is read back
        json.dumps(
            {
                "model": task.model.model_dump(exclude={"namespace"}),
                "engine": setup.engine.name,
                "engine version": engine_version(setup),
                "hardware": hardware(setup),
                "runtime": {
                    "command": setup.command,
                    "arguments": [*setup.runtime_args, *task.extra_args],
                    "environment": dict(task.runtime.env),
                    "ome": {name: getattr(task.ome, name) for name in OME} if task.backend == "ome" else None,
                },
                "workload": workload(task, setup.rungs),
                "client": {"genai-bench": _package("genai-bench"), "raytune-autotuner": __version__.split(".")[:2]},
            },
            default=_plain,
        )
    )
    for steps in FILES:
        if taskfile.holds(found, steps):
            taskfile.at(found, steps[:-1])[steps[-1]] = _contents(taskfile.at(found, steps))
    return found


def constant(setup: Setup) -> dict[str, Any]:
    """By topic, what has to stay as it is from an experiment's first session to its last.

    What limits or steers the search may change, a timeout too: what it let end is the same with another one. So may
    the machines: a node that is lost must not end an experiment.
    """
    task, found = setup.task, identity(setup)
    runtime = {name: value for name, value in found["runtime"].items() if name not in ("command", "arguments")}
    given = {
        "engine": setup.engine.name,
        "command": setup.command,
        "runtime_args": setup.runtime_args,
        "served_name": setup.facts.get("served_name"),
        "extra_args": task.extra_args,
        "model": {name: value for name, value in found["model"].items() if name != "facts"},
        "runtime": {**runtime, "base_runtime": task.base_runtime, "image": setup.image},
        "resources": task.resources.model_dump(include={"cpus", "gpus"}),
        "workload": {name: value for name, value in found["workload"].items() if name not in ("timeout_s", "slo")},
        "score": _score(task.optimization),
    }
    return dict(json.loads(json.dumps(given)))


def _score(optimization: Optimization) -> dict[str, Any]:
    priced = "minimize_cost" in (optimization.objective, *optimization.objectives)
    return optimization.model_dump(mode="json", include={*SCORE, *(["price_per_gpu_hour"] if priced else [])})


def workload(task: Task, rungs: Sequence[Rung]) -> dict[str, Any]:
    """What is asked of the server, and in which steps."""
    searched = any(rung.levels for rung in rungs)  # which levels are measured depends on the SLO then
    return {
        **task.benchmark.model_dump(mode="json", exclude=set(OURS)),
        "ladder": [asdict(rung) for rung in rungs],
        "timeout_s": task.optimization.timeout_per_iteration,
        **({"slo": dict(task.optimization.slo)} if searched else {}),
    }


def engine_version(setup: Setup) -> str | None:
    """OME: the image, when its name stands for one build; else the package or the program that serves."""
    if setup.task.backend == "ome":
        image = setup.image or ""
        named = "@sha256:" in image or (":" in image.rsplit("/", 1)[-1] and not MOVING.search(image))
        return image if named else None
    command = [*(setup.command or setup.engine.command)]
    words = " ".join(command)
    for part, package in PACKAGES.items():
        if part in words and not (part == "llamacpp_server" and os.environ.get("LLAMA_SERVER")):
            return f"{package} {version}" if (version := _package(package)) else None
    program = os.environ.get("LLAMA_SERVER") if "llamacpp_server" in words else command[0]
    found = shutil.which(program or "")
    return _stamp(Path(found)) if found else None


def hardware(setup: Setup) -> list[str] | None:
    """The kinds of GPUs of the nodes, or of this machine with its processor."""
    if setup.task.backend == "ome":
        return sorted(set(setup.hardware)) if setup.hardware and all(setup.hardware) else None
    return [f"{os.cpu_count()} x {_processor()}", *sorted(_gpus()), f"{setup.task.resources.cpus or 'all'} cores"]


def unlike(mine: Identity, other: Identity) -> Iterator[str]:
    """In words, what is not equal."""
    for topic, here in mine.items():
        there = other.get(topic)
        if here is None or there is None:
            yield f"{topic} is not known {'here' if here is None else 'there'}"
        elif here != there:
            yield f"{topic}: {_difference(here, there)}"


def _difference(here: Any, there: Any) -> str:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        return "; ".join(f"{name} was {_short(there.get(name))} and is {_short(here.get(name))}" for name in names)
    return f"was {_short(there)} and is {_short(here)}"


def changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """In words, each value in what was written of ``constant`` that is another one now.

    Topics and their fields that were not written yet, because a newer version knows them, say nothing.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = before if place.count(".") < FIELDS else {**before, **now}
        for name in names:
            yield from changes(before.get(name), now.get(name), f"{place}.{name}")
    elif _are_mappings(before) and _are_mappings(now) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from changes(one, other, f"{place}.{index}")
    elif before != now:
        yield f"{place[1:]} was {before} and is {now}"


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _contents(path: str | None) -> str | None:
    """A file by its name and what is in it; what names no file here stays as it is."""
    file = Path(path or "").expanduser()
    try:
        return f"{file.name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]})"
    except OSError:
        return path


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _stamp(program: Path) -> str:
    """A program that says nothing of its version is known by its size and date."""
    info = program.resolve().stat()
    return f"{program.resolve()}, {info.st_size} bytes of {info.st_mtime_ns}"


@cache
def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


@cache
def _gpus() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        said = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in said.stdout.splitlines() if line.strip())
