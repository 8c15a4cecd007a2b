"""What the parts of a task must be to each other and to the objectives. A rule is one function that yields faults."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from raytune_autotuner.engines.localmodel import PACKAGE, chat_template_file, resolved
from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.goodput import ATTAINMENT, PER_REQUEST, request_limits
from raytune_autotuner.metrics import METRICS
from raytune_autotuner.objectives import OBJECTIVES, upper_limits
from raytune_autotuner.planning.levels import capacity_search, first_level
from raytune_autotuner.task import scenarios, taskfile
from raytune_autotuner.task.spec import Task
from raytune_autotuner.task.taskfile import Fault, meant

ON_DISK = ("/", ".", "~")
"""With which a path begins that cannot be a name on a hub."""
DATASET_SUFFIXES = (".txt", ".csv", ".json")


def _objective(task: Task) -> Iterator[Fault]:
    optimization = task.optimization
    if optimization.objectives:
        return
    name = optimization.objective
    at = ("optimization", "objective")
    if name not in OBJECTIVES:
        yield at, f"found {taskfile.found(name)}; valid are {', '.join(OBJECTIVES)}{meant(name, OBJECTIVES)}"
    elif OBJECTIVES[name].needs_output_tokens and not _has_output(task):
        valid = ", ".join(name for name, o in OBJECTIVES.items() if not o.needs_output_tokens)
        yield at, f"{task.benchmark.task} has no output tokens, which {name} needs; valid are {valid}"
    elif OBJECTIVES[name].searches_level and not upper_limits(optimization.slo):
        valid = "ttft_s, tpot_s, e2e_s for every single request, or a statistic such as ttft_p99_s"
        yield ("optimization", "slo"), f"is missing; {name} asks what keeps it: write limits on {valid}"
    if name == "minimize_cost" and optimization.price_per_gpu_hour is None:
        yield ("optimization", "price_per_gpu_hour"), "is missing; the objective minimize_cost needs it"
    if optimization.budget and optimization.budget.cost is not None and optimization.price_per_gpu_hour is None:
        yield ("optimization", "price_per_gpu_hour"), "is missing; a budget in money needs it"


def _objectives(task: Task) -> Iterator[Fault]:
    optimization, names = task.optimization, task.optimization.objectives
    valid = (*(n for n, o in OBJECTIVES.items() if n != "weighted" and not o.searches_level), *METRICS)
    for n, name in enumerate(names):
        at = ("optimization", "objectives", n)
        if name not in valid:
            yield at, f"found {taskfile.found(name)}; valid are {', '.join(valid)}{meant(name, valid)}"
        elif name in names[:n]:
            yield at, f"`{name}` is given twice"
        elif _needs_output(name) and not _has_output(task):
            yield at, f"{task.benchmark.task} has no output tokens, which {name} needs"
        elif name == "minimize_cost" and optimization.price_per_gpu_hour is None:
            yield ("optimization", "price_per_gpu_hour"), "is missing; the objective minimize_cost needs it"
    if len(names) == 1:
        yield ("optimization", "objectives"), "names one; write two or more, or `objective:`"
    if names and optimization.objective != type(optimization)().objective:
        yield ("optimization", "objective"), "has no effect beside `objectives`; remove one of the two"


def _needs_output(name: str) -> bool:
    known = OBJECTIVES.get(name)
    return known.needs_output_tokens if known else name.startswith(("tpot_", "output_tokens_"))


def _weights(task: Task) -> Iterator[Fault]:
    weighted = task.optimization.objective == "weighted"
    at = ("optimization", "weights")
    if names := task.optimization.objectives:
        for name, value in (task.optimization.weights or {}).items():
            if name not in names:
                yield (*at, name), f"is not among the objectives{meant(name, names)}; valid are {', '.join(names)}"
            elif value <= 0:
                yield (*at, name), f"found {value:g}; it must be more than 0"
    elif weighted and not task.optimization.weights:
        yield at, "is missing; the objective `weighted` needs it, e.g. {ttft_p99_s: 1, output_tokens_per_s: 2}"
    elif task.optimization.weights and not weighted:
        yield (
            at,
            f"has no effect on the objective {task.optimization.objective}; write `objective: weighted` or remove it",
        )


def _metrics(task: Task) -> Iterator[Fault]:
    weights = {} if task.optimization.objectives else task.optimization.weights or {}
    for part, values in (("slo", task.optimization.slo), ("weights", weights)):
        for name, value in values.items():
            at = ("optimization", part, name)
            known = (*METRICS, *PER_REQUEST) if part == "slo" else tuple(METRICS)
            if name not in known:
                yield at, f"there is no such metric{meant(name, known)}; valid are {', '.join(known)}"
            elif name.startswith(("tpot_", "output_tokens_", "goodput_tokens_")) and not _has_output(task):
                yield at, f"{task.benchmark.task} has no output tokens to measure this on"
            elif value <= 0:
                yield at, f"found {value:g}; it must be more than 0"
            elif name == ATTAINMENT and part == "slo":
                yield from _attainment(task, value)


def _attainment(task: Task, value: float) -> Iterator[Fault]:
    at = ("optimization", "slo", ATTAINMENT)
    if value > 1:
        yield at, f"found {value:g}; it is the share of requests that keep their limits, at most 1"
    if not request_limits(task.optimization.slo):
        yield at, f"needs a limit that a request keeps by itself; valid are {', '.join(PER_REQUEST)}"


def _capacity(task: Task) -> Iterator[Fault]:
    """Of objectives that search the level."""
    benchmark, name = task.benchmark, task.optimization.objective
    searched = name in OBJECTIVES and OBJECTIVES[name].searches_level
    at = ("benchmark", "capacity")
    if searched and benchmark.batched:
        yield ("optimization", "objective"), f"searches the concurrency, and {benchmark.task} has one request at a time"
    if benchmark.capacity is not None and not searched:
        valid = ", ".join(each for each, objective in OBJECTIVES.items() if objective.searches_level)
        yield at, f"has no effect on the objective {name}; it is for {valid}"
    elif searched and (first := first_level(task)) > (high := capacity_search(task).high):
        yield (*at, "max"), f"{high} is less than the level with which the search begins, {first}"
    for n, rung in enumerate(benchmark.rungs or ()):
        if searched and rung.num_concurrency is not None:
            yield ("benchmark", "rungs", n, "num_concurrency"), f"has no effect: {name} searches the level"
        if not searched and rung.tolerance is not None:
            yield ("benchmark", "rungs", n, "tolerance"), f"has no effect on the objective {name}"


def _has_output(task: Task) -> bool:
    return task.benchmark.task.endswith("-to-text")


def _scheduler(task: Task) -> Iterator[Fault]:
    rungs, wanted = task.benchmark.rungs, "scheduler" in task.optimization.model_fields_set
    if wanted and task.optimization.scheduler != "none" and rungs is not None and len(rungs) < 2:
        yield ("benchmark", "rungs"), "asha compares trials between rungs, so it needs two or more"


def _backend(task: Task) -> Iterator[Fault]:
    if task.backend == "ome" and task.base_runtime is None:
        yield ("base_runtime",), "is missing; backend ome needs the (Cluster)ServingRuntime in use today"
    if task.backend == "ome" and task.runtime != type(task.runtime)():
        yield ("runtime",), "is for backend local; with ome the runtime is read from base_runtime"
    if task.backend == "local" and task.ome != type(task.ome)():
        yield ("ome",), "is for backend ome, and the backend is local"
    if task.backend == "local" and task.base_runtime is not None:
        yield ("base_runtime",), "is for backend ome; with local write `runtime`: {args: [...]}"
    if task.backend == "local" and task.model.path is None and task.runtime.command is None:
        yield ("model", "path"), "is missing; backend local needs it, or a runtime.command that knows its model"


def _tokenizer(task: Task) -> Iterator[Fault]:
    if task.benchmark.model_tokenizer is None and task.model.path is None:
        yield ("benchmark", "model_tokenizer"), "is missing; name a folder or a hub id, or model.path to take it from"


def _chat_template(task: Task) -> Iterator[Fault]:
    try:
        _ = task.model.chat_template and chat_template_file(task.model.chat_template)
    except EnvironmentFault as fault:
        yield ("model", "chat_template"), str(fault).removeprefix("model.chat_template: ")


def _traffic(task: Task) -> Iterator[Fault]:
    benchmark = task.benchmark
    at = ("benchmark", "traffic_scenarios")
    valid = scenarios.TASK_FORMS[benchmark.task]
    for n, text in enumerate(benchmark.traffic_scenarios):
        kind = scenarios.parse(text).kind
        if kind not in valid:
            forms = ", ".join(scenarios.FORMS[form] for form in valid)
            yield (*at, n), f"found `{text}`, which {benchmark.task} does not take; valid are {forms}"
        elif kind == "dataset" and benchmark.dataset is None:
            yield (*at, n), "`dataset` needs benchmark.dataset"
        elif text in benchmark.traffic_scenarios[:n]:
            yield (*at, n), f"`{text}` is given twice"


def _benchmark_job(task: Task) -> Iterator[Fault]:
    if task.ome.benchmark == "benchmark_job":
        from raytune_autotuner.benchmarks.ome_job import problems  # the client of Kubernetes is slow to import

        for problem in problems(task.benchmark):
            yield tuple(problem.place.split(".")), problem.message


def _api_backend(task: Task) -> Iterator[Fault]:
    if task.benchmark.task == "text-to-rerank" and task.benchmark.api_backend == "openai":
        yield ("benchmark", "api_backend"), "found `openai`, which has no rerank; valid are vllm, sglang"


def _levels(task: Task) -> Iterator[Fault]:
    benchmark = task.benchmark
    for name, levels in (("num_concurrency", benchmark.num_concurrency), ("batch_sizes", benchmark.batch_sizes)):
        for n, level in enumerate(levels):
            if level in levels[:n]:
                yield ("benchmark", name, n), f"{level} is given twice"
    if benchmark.batched and benchmark.num_concurrency != type(benchmark)().num_concurrency:
        yield ("benchmark", "num_concurrency"), f"{benchmark.task} sends one request at a time; write batch_sizes"
    if benchmark.batch_sizes and not benchmark.batched:
        valid = " and ".join(sorted(scenarios.BATCHED))
        yield ("benchmark", "batch_sizes"), f"is for {valid}; {benchmark.task} takes num_concurrency"


def _rungs(task: Task) -> Iterator[Fault]:
    benchmark = task.benchmark
    for n, rung in enumerate(benchmark.rungs or ()):
        yield from _among(rung.num_concurrency, benchmark.levels, n, "num_concurrency")
        yield from _among(rung.traffic_scenarios, benchmark.scenarios, n, "traffic_scenarios")


def _among(chosen: Sequence[object] | None, valid: Sequence[object], rung: int, name: str) -> Iterator[Fault]:
    for n, item in enumerate(chosen or ()):
        if item not in valid:
            known = ", ".join(map(str, valid))
            yield ("benchmark", "rungs", rung, name, n), f"{item} is not in the workload; valid are {known}"


def _prefix(task: Task) -> Iterator[Fault]:
    benchmark = task.benchmark
    for name in ("prefix_len", "prefix_ratio"):
        at = ("benchmark", name)
        if getattr(benchmark, name) is None:
            continue
        if benchmark.prefix_len and benchmark.prefix_ratio:
            yield at, "prefix_len and prefix_ratio exclude each other"
        for text in benchmark.scenarios:
            scenario = scenarios.parse(text)
            if name == "prefix_ratio" and scenario.kind != "D":
                yield at, f"takes D(input,output) only, not `{text}`"
            elif scenario.min_input_tokens is None:
                yield at, f"takes D, N and U scenarios only, not `{text}`"
            elif name == "prefix_len" and scenario.min_input_tokens < (benchmark.prefix_len or 0):
                yield at, f"is longer than prompts of `{text}`, which can have {scenario.min_input_tokens} tokens"


def _dataset(task: Task) -> Iterator[Fault]:
    dataset, images = task.benchmark.dataset, task.benchmark.task.startswith("image")
    at = ("benchmark", "dataset")
    if dataset is None:
        if images:
            yield at, f"is missing; {task.benchmark.task} takes its images from one"
        return
    if (dataset.path is None) == (dataset.config is None):
        yield at, "needs either path or config"
    if dataset.config is not None:
        yield from _json_file(Path(dataset.config), (*at, "config"))
    if dataset.path is not None:
        yield from _dataset_path(dataset.path, dataset.prompt_column, images)


def _dataset_path(path: str, prompt_column: str | None, images: bool) -> Iterator[Fault]:
    at = ("benchmark", "dataset", "path")
    file = Path(path)
    there = os.access(file, os.F_OK)  # does not raise where a name is too long
    if there and file.is_file() and file.suffix not in DATASET_SUFFIXES:
        yield at, f"found a {file.suffix or 'nameless'} file; valid are {', '.join(DATASET_SUFFIXES)}"
    elif not there and (file.suffix in DATASET_SUFFIXES or path.startswith(ON_DISK)):
        yield at, f"there is no file `{path}`"
    elif there and file.is_file() and images:
        yield at, "images cannot be read from a file; name a dataset on a hub, or use config"
    elif file.suffix == ".csv" and prompt_column is None:
        yield ("benchmark", "dataset", "prompt_column"), "is missing; a .csv file needs it"


def _json_file(path: Path, at: tuple[str, ...]) -> Iterator[Fault]:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        yield at, f"`{path}` cannot be read: {error.strerror}"
    except ValueError as error:
        yield at, f"`{path}` is not JSON: {error}"


def _model_here(task: Task) -> Iterator[Fault]:
    path = task.model.path if task.backend == "local" else None
    if path is not None and not path.startswith(PACKAGE) and (why := _unreadable(path)):
        yield ("model", "path"), f"{why}; name the file or folder that the engine loads, or package:NAME"


def _tokenizer_here(task: Task) -> Iterator[Fault]:
    named = task.benchmark.model_tokenizer if task.backend == "local" else None
    if named is not None and named.startswith(ON_DISK) and (why := _unreadable(named)):
        yield ("benchmark", "model_tokenizer"), f"{why}; name a folder or a hub id"


def _unreadable(path: str) -> str | None:
    place = resolved(path)
    if os.access(place, os.R_OK):
        return None
    return f"`{place}` cannot be read" if os.access(place, os.F_OK) else f"there is no `{place}` on this machine"


TaskRule = Callable[[Task], Iterable[Fault]]
TASK_RULES: Mapping[TaskRule, tuple[str, ...]] = {
    _objective: ("optimization.objective", "optimization.price_per_gpu_hour", "optimization.slo", "benchmark.task"),
    _objectives: ("optimization.objectives", "optimization.objective", "benchmark.task"),
    _capacity: ("optimization.objective", "benchmark"),
    _weights: ("optimization.objective", "optimization.objectives", "optimization.weights"),
    _metrics: ("benchmark.task", "optimization.objectives"),
    _scheduler: ("optimization.scheduler", "benchmark.rungs"),
    _backend: ("backend", "base_runtime", "runtime", "ome", "model"),
    _tokenizer: ("benchmark.model_tokenizer", "model"),
    _chat_template: ("model.chat_template",),
    _traffic: ("benchmark.task", "benchmark.traffic_scenarios", "benchmark.dataset"),
    _benchmark_job: ("benchmark", "ome"),
    _api_backend: ("benchmark.task", "benchmark.api_backend"),
    _levels: ("benchmark.task", "benchmark.num_concurrency", "benchmark.batch_sizes"),
    _rungs: ("benchmark",),
    _prefix: ("benchmark",),
    _dataset: ("benchmark.task", "benchmark.dataset"),
}
"""The rules that need the file alone, with the parts of the task that must be well-formed for each."""

HERE_RULES: Mapping[TaskRule, tuple[str, ...]] = {
    _model_here: ("model.path",),
    _tokenizer_here: ("benchmark.model_tokenizer",),
}
"""The rules about what a local task names on the machine that runs it; a cluster has disks of its own."""
