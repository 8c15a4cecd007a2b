"""The task file: what the user writes, checked once, then frozen.

Every error names its place in the file, what was found and what is valid, and all errors are reported at
once. What a part of the task can say by itself is checked here; what needs several parts, the engine,
the objectives or the search space is in ``checks``, whose ``load_checked`` is the way in for commands.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from raytune_autotuner.errors import SpecError
from raytune_autotuner.task import scenarios, taskfile
from raytune_autotuner.task.faults import explain
from raytune_autotuner.task.ome import OmeSpec
from raytune_autotuner.task.parameters import Model, Parameter
from raytune_autotuner.task.taskfile import Document, Fault, Steps
from raytune_autotuner.task.texts import (
    EnvironmentName,
    ExpressionText,
    ParameterName,
    ScenarioText,
    Seconds,
    VariableName,
)
from raytune_autotuner.task.tracking import Tracking

FEWEST_BASELINES = 4
"""So many runs of the baseline are needed before drift can be told from noise."""
NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


class ModelFacts(Model):
    """What a model is like, where nothing else tells; what surely cannot start with it is not tried."""

    parameters_b: float | None = Field(None, gt=0, description="billions of parameters, all experts included")
    active_parameters_b: float | None = Field(
        None, gt=0, description="billions of parameters that one token meets, of a mixture of experts"
    )
    bytes_per_parameter: float = Field(2, gt=0, le=8, description="of the weights as they are loaded: 2 for bfloat16")
    layers: int | None = Field(None, ge=1, description="hidden layers")
    heads: int | None = Field(None, ge=1, description="attention heads")
    kv_heads: int | None = Field(None, ge=1, description="key-value heads, where all layers keep every token")
    head_dim: int | None = Field(None, ge=1, description="numbers in one head's key")
    max_context: int | None = Field(None, ge=1, description="tokens of the longest request")

    @model_validator(mode="after")
    def _check(self) -> ModelFacts:
        if self.active_parameters_b is not None and self.active_parameters_b > (self.parameters_b or 0.0):
            raise ValueError("active_parameters_b are some of parameters_b, which have to be said and be more")
        return self


class ModelSpec(Model):
    name: str = Field(min_length=1, description="the model's name: for OME the (Cluster)BaseModel")
    namespace: str | None = Field(None, description="OME: the namespace of the experiment's objects")
    path: str | None = Field(
        None,
        min_length=1,
        description="local engine: a file or folder, or `package:NAME` for a model shipped as a Python package",
    )
    chat_template: str | None = Field(
        None, description="llama.cpp: a shipped template's name (gemma) or a file; for models that carry none"
    )
    facts: ModelFacts = Field(ModelFacts(), description="the model's size and shape, where nothing else tells them")


class RuntimeSpec(Model):
    """The local counterpart of an OME runtime: what the user runs today."""

    command: tuple[str, ...] | None = Field(None, min_length=1, description="replaces the engine file's command")
    args: tuple[str, ...] = Field((), description="the flags in use today; the baseline is exactly these")
    env: dict[EnvironmentName, str] = Field(default_factory=dict, description="environment variables of the engine")


class Asha(Model):
    type: Literal["asha"] = Field("asha", description="asynchronous successive halving")
    reduction_factor: float = Field(2, gt=1, description="1/reduction_factor of the trials goes on to the next rung")


class Confirm(Model):
    repeats: int = Field(2, ge=0, le=20, description="how often winner and baseline are measured again, in turn")
    max_repeats: int = Field(
        6,
        ge=1,
        le=20,
        description="how often at most, all finalists together, when the difference does not stand out before",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the interval that decides between WIN and TIE")

    @property
    def runs(self) -> tuple[int, int]:
        """Of winner and baseline together: at least, and at most."""
        return (2 * self.repeats, 2 * max(self.repeats, self.max_repeats)) if self.repeats else (0, 0)


class Canary(Model):
    """The quality of configurations that set a parameter which may change what the model answers."""

    prompts: tuple[str, ...] = Field((), description="asked beside those that are shipped")
    max_divergence: float = Field(
        0.25, ge=0, le=1, description="the share of answers that may differ from the baseline's; more is infeasible"
    )
    distance: float = Field(0.5, ge=0, le=1, description="answers differ when more than this share of their words does")
    max_tokens: int = Field(32, ge=1, le=4096, description="of each answer")


class Budget(Model):
    """A hard stop. What confirming the winner costs is kept back of it."""

    gpu_hours: float | None = Field(
        None, gt=0, description="GPUs times hours, of all trials together (machine-hours where there are no GPUs)"
    )
    wall_time: Seconds | None = Field(
        None, gt=0, description="how long the experiment may run, e.g. 8h, 90min or seconds; all its sessions together"
    )
    cost: float | None = Field(None, gt=0, description="money; needs optimization.price_per_gpu_hour")

    @model_validator(mode="after")
    def _something(self) -> Budget:
        if self.gpu_hours is None and self.wall_time is None and self.cost is None:
            raise ValueError("sets no limit; valid are gpu_hours, wall_time and cost, e.g. {gpu_hours: 20}")
        return self


Metric = str


class Optimization(Model):
    strategy: Literal["adaptive", "grid_search", "random", "bayesian", "optuna"] = Field(
        "adaptive",
        description="how configurations are proposed; adaptive has a model of speed, SLO and failures, bayesian is "
        "HyperOpt's TPE, optuna needs its extra",
    )
    sampler: Literal["tpe", "nsga2", "gp"] = Field(
        "tpe", description="strategy optuna: Optuna's sampler, also for several objectives; gp needs PyTorch"
    )
    objective: str = Field("maximize_throughput", description="one of the objectives' names, or weighted")
    objectives: tuple[str, ...] = Field(
        (), max_length=4, description="several in place of one: objectives or metrics; the Pareto front is shown"
    )
    weights: dict[Metric, float] | None = Field(
        None,
        description="objective `weighted`: relative importance by metric, as a weighted geometric mean; "
        "the same of `objectives`, for the one configuration that is recommended (default: all alike)",
    )
    slo: dict[Metric, float] = Field(
        default_factory=dict,
        description="limits by metric, e.g. ttft_p99_s: 1.0; on every single request: ttft_s, tpot_s and e2e_s, which "
        "the share slo_attainment of the requests (0.9) has to keep",
    )
    canary: Canary | Literal["none"] = Field(
        Canary(), description="`none`, or how far answers may be from the baseline's where a parameter is lossy"
    )
    cut_hopeless: bool = Field(
        True,
        description="end a load of a search trial that has lost the SLO for good (in a short rung by far), or whose "
        "engine falls behind",
    )
    max_iterations: int = Field(20, ge=1, le=100_000, description="trials proposed by the search, at most")
    timeout_per_iteration: int = Field(1800, ge=1, description="seconds for one trial, from deploy to last result")
    scheduler: Asha | Literal["none"] = Field(
        Asha(), description="`{type: asha}`: stop bad trials early, where there are two rungs or more; or `none`"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="the same seed proposes the same configurations")
    max_concurrent_trials: int | None = Field(None, ge=1, description="default: as many as the resources allow")
    baseline_every: int | None = Field(
        10,
        ge=1,
        description="the baseline is measured again after so many trials that came to their end, to see what drifts; "
        "null: never",
    )
    stop_after_identical_failures: int | None = Field(
        5,
        ge=2,
        description="so many trials in a row that fail with the same cause end the search (more, where failures are so "
        "common that this may be chance); null: never",
    )
    stop_after_hopeless_trials: int | None = Field(
        12,
        ge=1,
        description="so many trials in a row of which `adaptive`'s model expects nothing end the search, when what "
        "differs from the best in one parameter was tried, too; null: never",
    )
    price_per_gpu_hour: float | None = Field(
        None, gt=0, description="money; for the objective minimize_cost, a budget in money, and the ledger"
    )
    warm_start: bool = Field(
        True, description="begin with the engine's starting points and the best of the nearest earlier experiments"
    )
    budget: Budget | None = Field(None, description="what the experiment may cost at most, e.g. {gpu_hours: 20}")
    confirm: Confirm = Field(Confirm(), description="the winner is measured against the baseline again")


class Capacity(Model):
    """Where the knee of the objectives ``maximize_goodput`` and ``maximize_goodput_tokens`` is looked for."""

    min: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="the lowest level, where the search begins; default: it begins at the lowest of num_concurrency, "
        "and goes down to 1 where that breaks the SLO",
    )
    max: int = Field(512, ge=1, le=100_000, description="the highest level that is tried")
    tolerance: float = Field(
        0.1, gt=0, le=1, description="the level that breaks the SLO lies at most this share above the one that keeps it"
    )


class RungSpec(Model):
    """One step of a ladder that is written out; what is left out is taken from the benchmark."""

    num_concurrency: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, min_length=1, description="which of the benchmark's levels (batch sizes for embeddings and rerank)"
    )
    traffic_scenarios: tuple[ScenarioText, ...] | None = Field(
        None, min_length=1, description="which of the benchmark's scenarios"
    )
    max_requests: int | None = Field(None, ge=1, description="per scenario and level")
    max_minutes: int | None = Field(None, ge=1, description="MINUTES per scenario and level")
    tolerance: float | None = Field(None, gt=0, le=1, description="of the search for the highest level")


TaskName = Literal[
    "text-to-text",
    "image-text-to-text",
    "text-to-embeddings",
    "text-to-rerank",
]


DEFAULT_BATCH_SIZES = (1, 8, 32)


class Dataset(Model):
    path: str | None = Field(None, description="a .txt, .csv or .json file, or a dataset's name on a hub")
    config: str | None = Field(None, description="a genai-bench dataset configuration file")
    prompt_column: str | None = Field(None, description="the column with the prompt text")
    image_column: str | None = Field(None, description="the column with the image")


class Benchmark(Model):
    task: TaskName = Field("text-to-text", description="what genai-bench asks of the server")
    model_name: str | None = Field(None, description="the name requests carry; default: model.name")
    model_tokenizer: str | None = Field(
        None, min_length=1, description="a folder or a hub id; default: the model's own, where it can be had locally"
    )
    traffic_scenarios: tuple[ScenarioText, ...] = Field(
        (), description="genai-bench scenarios, e.g. D(100,100); default: `dataset` when there is one, else D(100,100)"
    )
    num_concurrency: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field(
        (1,), min_length=1, description="levels: requests in flight at the same time"
    )
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="text-to-embeddings and text-to-rerank: levels of batch size, in place of num_concurrency; "
        "default: 1, 8, 32",
    )
    capacity: Capacity | None = Field(
        None,
        description="objectives maximize_goodput…: between which levels the highest one is searched that keeps the SLO",
    )
    max_time_per_iteration: int = Field(10, ge=1, description="MINUTES per scenario and level, as in genai-bench")
    max_requests_per_iteration: int = Field(
        100,
        ge=1,
        description="requests per scenario and level, and at least twice the level: the first wave is not counted",
    )
    additional_params: dict[str, Any] = Field(default_factory=dict, description="merged into each request's body")
    dataset: Dataset | None = Field(None, description="where prompts come from; default: genai-bench's own text")
    prefix_len: int | None = Field(None, ge=1, description="tokens at the start of every prompt that all share")
    prefix_ratio: float | None = Field(None, gt=0, lt=1, description="the shared part of every prompt; D(...) only")
    api_backend: Literal["openai", "vllm", "sglang"] | None = Field(None, description="default: the engine's")
    api_key_env: VariableName | None = Field(
        None, description="name of the environment variable that holds the API key"
    )
    warmup_requests: int = Field(4, ge=0, description="requests sent before anything is measured")
    repeats: int = Field(1, ge=1, le=20, description="how often the last rung is measured in one deployment")
    max_error_ratio: float = Field(0.02, ge=0, lt=1, description="more failed requests make the trial infeasible")
    rungs: tuple[RungSpec, ...] | None = Field(
        None, min_length=1, description="the ladder; default: a short run at one level, then the whole workload"
    )

    @property
    def batched(self) -> bool:
        """Whether the levels are batch sizes, with one request at a time."""
        return self.task in scenarios.BATCHED

    @property
    def levels(self) -> tuple[int, ...]:
        return (self.batch_sizes or DEFAULT_BATCH_SIZES) if self.batched else self.num_concurrency

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The traffic scenarios; when none is given the dataset as it is, else the task's usual one."""
        return self.traffic_scenarios or (("dataset",) if self.dataset else (scenarios.DEFAULTS[self.task],))


class Resources(Model):
    cpus: float | None = Field(None, gt=0, description="local engine: cores reserved per trial; default: all")
    gpus: int | None = Field(
        None, ge=0, description="GPUs per trial, with OME per replica; default: the engine file's formula"
    )
    gpu_memory_gib: float | None = Field(
        None, gt=0, description="memory of one GPU, in GiB; OME: default is what the nodes' labels say"
    )
    gpu_name: str | None = Field(
        None, description="kind of GPU, e.g. H100 SXM, for its data sheet; OME: default is what the nodes' labels say"
    )


class Task(Model):
    task_name: str = Field(
        pattern=NAME,
        max_length=40,
        description="small letters, digits and dashes, e.g. llama-8b-chat; names what is made",
    )
    description: str = Field("", description="free text, for people")
    backend: Literal["ome", "local"] = Field("ome", description="where engines run: OME on Kubernetes, or this machine")
    engine: str | None = Field(None, description="an engine file's name; OME: read from the runtime when left out")
    model: ModelSpec = Field(description="what is served, e.g. {name: llama-3-2-1b-instruct}")
    base_runtime: str | None = Field(None, description="OME: the (Cluster)ServingRuntime in use today")
    runtime: RuntimeSpec = RuntimeSpec()
    ome: OmeSpec = Field(OmeSpec(), description="backend ome: how its services are made and reached")
    parameters: dict[ParameterName, Parameter] = Field(
        default_factory=dict, description="what is searched, by the engine's names or aliases"
    )
    presets: tuple[str, ...] = Field((), description="the engine's presets whose parameters are searched as well")
    extra_args: tuple[str, ...] = Field((), description="arguments that every trial gets, after the runtime's own")
    constraints: tuple[ExpressionText, ...] = Field(
        (), description="what must hold between parameters, e.g. `tp_size * dp_size <= 8`"
    )
    optimization: Optimization = Optimization()
    benchmark: Benchmark = Benchmark()
    resources: Resources = Resources()
    tracking: Tracking = Field(Tracking(), description="other tools that get the results as well")


@dataclass(frozen=True)
class Reading:
    """A document as far as it is a task."""

    document: Document
    task: Task | None
    """The task without its damaged parts, so that the rest can be checked as well."""
    faults: tuple[Fault, ...]
    damaged: tuple[Steps, ...]

    def intact(self, *parts: Steps) -> bool:
        """Whether nothing in these parts, and nothing that they are in, was at fault."""
        return not any(d[: len(part)] == part or part[: len(d)] == d for d in self.damaged for part in parts)


REQUIRED: dict[str, Any] = {"task_name": "unnamed", "model": {"name": "unnamed"}}
"""Stands in for what is missing while the rest is checked."""
ROUNDS = 10


def read_task(document: Document) -> Reading:
    """The task that a document says, and everything that is wrong with it.

    Raises:
        SpecError: the document is not a mapping.
    """
    if not isinstance(document.data, dict):
        message = f"a task is a mapping, and this is {taskfile.found(document.data)}"
        raise SpecError.single("", message, document.source)
    data = copy.deepcopy(document.data)
    faults: list[Fault] = []
    damaged: list[Steps] = []
    for _ in range(ROUNDS):
        try:
            task = Task.model_validate_json(json.dumps(data), strict=True)  # strict, and a list is a tuple
        except ValidationError as error:
            found = list(explain(error, data, Task))
            new = (fault for fault in found if not _beneath(fault[0], damaged))
            faults += [fault for fault in new if not _emptied(fault[0], data, damaged)]
            damaged += _prune(data, [steps for steps, _ in found])
        else:
            return Reading(document, task, tuple(faults), tuple(damaged))
    return Reading(document, None, tuple(faults), tuple(damaged))


def _beneath(steps: Steps, damaged: Sequence[Steps]) -> bool:
    return any(steps[: len(d)] == d for d in damaged)


def _emptied(steps: Steps, data: dict[str, Any], damaged: Sequence[Steps]) -> bool:
    """Whether a part says nothing any more only because what it said was at fault."""
    return any(d[: len(steps)] == steps for d in damaged) and taskfile.at(data, steps) == {}


def _prune(data: dict[str, Any], ways: Sequence[Steps]) -> list[Steps]:
    removed: list[Steps] = []
    for steps in ways:
        if not _beneath(steps, removed):
            removed.append(_without(data, steps) or steps)
    return removed


def _without(data: dict[str, Any], steps: Steps) -> Steps:
    """Take the faulty part out, so that its default stands in; answers what was taken out."""
    while steps and (isinstance(steps[-1], int) or not taskfile.holds(data, steps)):
        steps = steps[:-1]
    if steps:
        owner = taskfile.at(data, steps[:-1])
        del owner[steps[-1]]
    else:
        data.update({k: v for k, v in REQUIRED.items() if k not in data})
    return steps


def parse_task(data: Any, source: str) -> Task:
    """The task that plain data says, as far as its parts can be checked by themselves.

    Raises:
        SpecError: lists everything that is wrong.
    """
    return _whole(read_task(Document(data, source)))


def load_task(path: Path, overrides: Sequence[str] = ()) -> Task:
    """The task in a JSON or YAML file, with ``path=value`` overrides; checked as in ``parse_task``.

    Raises:
        SpecError: lists everything that is wrong, with the lines.
    """
    return _whole(read_task(taskfile.override(taskfile.read(path), overrides)))


def _whole(reading: Reading) -> Task:
    if reading.task is None or reading.faults:
        raise SpecError(reading.document.problems(reading.faults), reading.document.source)
    return reading.task


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the task file, for editors."""
    schema = Task.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "raytune-autotuner task"}
