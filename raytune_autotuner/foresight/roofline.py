"""How fast a configuration should be by plain arithmetic, before anything was measured.

A roofline: a step takes as long as what it reads from the GPU's memory, or as its matrix products, whichever is longer,
with something on top for the links between GPUs and for the host. See Williams, Waterman, Patterson, "Roofline", 2009;
for serving of language models, Yuan et al., "LLM Inference Unveiled", 2024. It knows sizes and data sheets, no kernels;
what it gets wrong by the same factor everywhere cancels, and the search learns the rest (``search.model``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.foresight.facts import GIB, SPEEDS, Facts
from raytune_autotuner.foresight.feasibility import Feasibility
from raytune_autotuner.foresight.launch import Launch
from raytune_autotuner.records import Parameters, ParameterValue, config_hash
from raytune_autotuner.task import scenarios
from raytune_autotuner.task.expressions import Expression, parse
from raytune_autotuner.task.spec import Task

MODEL = ("weights_gib", "stored_bytes", "layers", "heads", "kv_heads", "head_dim")
GPU = ("gpu_gib", *SPEEDS)
COMPUTE, READ = 0.5, 0.75
"""Shares of the data sheet's products and bandwidth that engines reach."""
STEP_S, EAGER_S = 4e-3, 6e-3
"""Of the host for each step, and more where the batch is not captured as a CUDA graph."""
NEAR_GB_S, NEAR_S, FAR_S = 100, 10e-6, 25e-6
"""An all-reduce over links of at least so much takes the first of these, else the second, whatever its size."""
OTHER_GIB = 1.0
"""Of a GPU's memory, for what is neither weights nor KV cache."""
LEAST_REQUESTS = 0.5
"""Room for less than this, and nothing can be served."""


@dataclass(frozen=True)
class Speed:
    """Under one load, on average: seconds, and requests and tokens a second of all replicas."""

    ttft_s: float
    tpot_s: float
    e2e_s: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float


@dataclass(frozen=True)
class Roofline:
    """Of one task; ``loads`` are by scenario its tokens in and out and the levels of concurrency."""

    launch: Launch
    facts: Facts
    objective: str
    loads: Sequence[tuple[float, float, Sequence[float]]]
    limits: Mapping[str, float]
    """Of the SLO, by metric."""
    gpus: int | None = None
    """What every trial gets, where the task says so."""
    _known: dict[str, tuple[float, float] | None] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, task: Task, launch: Launch, facts: Facts) -> Roofline | None:
        """``None`` where there is an ``obstacle``."""
        if obstacle(task, launch.engine, facts):
            return None
        loads = [
            (s.input_tokens or 0.0, s.output_tokens or 1.0, task.benchmark.levels)
            for s in map(scenarios.parse, task.benchmark.scenarios)
        ]
        wanted = task.optimization
        return cls(launch, facts, wanted.objective, loads, wanted.slo, task.resources.gpus)

    def expects(self, parameters: Parameters) -> tuple[float, float] | None:
        """Logarithms of the objective's loss, up to a constant, and of the SLO's worst metric relative to its limit.

        ``None`` when it cannot start, finds no room, or has no number.
        """
        telling = config_hash({name: value for name, value in parameters.items() if name in self._telling})
        if telling not in self._known:
            self._known[telling] = self._expects(parameters)
        return self._known[telling]

    def _expects(self, parameters: Parameters) -> tuple[float, float] | None:
        if Feasibility(self.launch, self.facts, self.gpus).problem(parameters):
            return None
        try:
            sizes = self._sizes(parameters)
            replica = _Replica(sizes, self.facts)
            found = [[replica.speed(prompt, answer, n) for n in levels] for prompt, answer, levels in self.loads]
        except (ValueError, ArithmeticError):  # a flag of the runtime's that is no number, or 0 where nothing can be 0
            return None
        known = [[speed for speed in row if speed is not None] for row in found]
        if known != found:
            return None
        return math.log(LOSSES[self.objective](known, self.gpus or sizes["gpus"])), self._log_strain(known)

    def _log_strain(self, speeds: Speeds) -> float:
        limited = [(by, limit) for name, limit in self.limits.items() if (by := _estimate(name))]
        strains = [getattr(speed, by) / limit for by, limit in limited for row in speeds for speed in row]
        return math.log(max(strains, default=1.0))

    @cached_property
    def _telling(self) -> frozenset[str]:
        """The parameters that it looks at."""
        engine = self.launch.engine
        spoken_of = [formula.names for formula in self._formulas.values()]
        rules = [name for rule in engine.fits for name in rule.names]
        return frozenset().union(*spoken_of, rules, *(engine.parts(name) for name in engine.terms))

    @cached_property
    def _formulas(self) -> Mapping[str, Expression]:
        assert self.launch.engine.roofline is not None
        return {name: parse(text) for name, text in self.launch.engine.roofline.formulas.items()}

    def _sizes(self, parameters: Parameters) -> dict[str, float]:
        """What the engine file's formulas give; ``gpus`` are those of all replicas."""
        engine = self.launch.engine
        known: dict[str, ParameterValue] = dict(self.facts)
        for name, value in self.launch.values(parameters).items():
            if value is None and name in engine.parameters:
                value = engine.parameters[name].typical
            if value is None or isinstance(value, str | int | float):
                known[name] = value
        sizes = {name: float(formula.evaluate(known)) for name, formula in self._formulas.items()}
        return {**sizes, "gpus": sizes["tensor_parallel"] * sizes["pipeline_stages"] * sizes["replicas"]}


def obstacle(task: Task, engine: Engine, facts: Facts) -> str | None:
    """Why nothing can be expected beforehand, in words, with what can be done about it where that is something."""
    parsed = [scenarios.parse(text) for text in task.benchmark.scenarios]
    if engine.roofline is None:
        return f"the engine file of {engine.name} does not say how its speed is reckoned"
    if task.benchmark.batched or any(s.input_tokens is None for s in parsed):
        return "the size of the requests is not known"
    if task.optimization.objectives or task.optimization.objective not in LOSSES:
        return "the objective is none of speed alone"
    unknown = [name for name in (*MODEL, *GPU) if name not in facts]
    if unknown:
        told = "model.facts, resources.gpu_name and resources.gpu_memory_gib can tell"
        return f"not known of the model and its GPUs are {', '.join(unknown)} ({told})"
    return None


@dataclass(frozen=True)
class _Replica:
    """One copy of the model on its GPUs; ``of`` are the engine file's sizes. Times are in seconds."""

    of: Mapping[str, float]
    facts: Facts

    @property
    def _gpus(self) -> float:
        """That work on a layer together."""
        return self.of["tensor_parallel"]

    @property
    def _stages(self) -> float:
        return self.of["pipeline_stages"]

    def _read_s(self, gib: float) -> float:
        """Reading so much on each GPU of a stage, one stage after the other."""
        return gib * GIB * self._stages / (self.facts["gpu_gb_s"] * 1e9 * READ)

    def _compute_s(self, operations: float) -> float:
        return operations / (self._gpus * self.facts["gpu_tflops"] * 1e12 * COMPUTE)

    @property
    def weights_gib(self) -> float:
        """On one GPU."""
        return self.facts["weights_gib"] * self.of["weights"] / (self._gpus * self._stages)

    @property
    def token_gib(self) -> float:
        """Keys and values of one token on one GPU; groups of attention data parallelism hold other requests each."""
        group = self.of["attention_parallel"]
        heads = max(1.0, self.facts["kv_heads"] / group) * group / self._gpus
        return 2 * self.facts["layers"] / self._stages * heads * self.facts["head_dim"] * self.of["cache_bytes"] / GIB

    def room(self, context: float) -> float:
        """Requests of so many tokens that the KV cache holds."""
        free = self.facts["gpu_gib"] * self.of["memory"] - OTHER_GIB - self.weights_gib
        return free / (self.token_gib * context)

    @property
    def _active(self) -> float:
        """Share of the weights that a token meets."""
        return self.facts.get("active_share", 1.0)

    def weights_s(self, tokens: float) -> float:
        """Reading the weights for so many tokens: a few of them do not meet all experts of a mixture."""
        return self._read_s(self.weights_gib) * (1 - math.pow(1 - self._active, tokens))

    def products_s(self, tokens: float) -> float:
        """Two operations for each parameter that a token meets."""
        parameters = self.facts["weights_gib"] * GIB / self.facts["stored_bytes"] * self._active
        return self._compute_s(2 * tokens * parameters * self.of["products"])

    @property
    def _all_reduces(self) -> float:
        return 2 * self.facts["layers"] if self._gpus > 1 else 0.0

    @property
    def _width(self) -> float:
        return self.facts["heads"] * self.facts["head_dim"]

    def links_s(self, tokens: float) -> float:
        """Each of the all-reduces sends the hidden state to and fro, in two bytes a number."""
        sent = 2 * (self._gpus - 1) / self._gpus * self._width * 2
        return tokens * self._all_reduces * sent / (self.facts["link_gb_s"] * 1e9)

    @property
    def step_s(self) -> float:
        """Of any step, whatever is in it."""
        return STEP_S + self._all_reduces * (NEAR_S if self.facts["link_gb_s"] >= NEAR_GB_S else FAR_S)

    def decode_s(self, batch: float, context: float) -> float:
        """A step in which each of ``batch`` requests gets its next token; each stage works on a share of them."""
        share = batch / min(self._stages, batch)
        linear_s = max(self.weights_s(share), self.products_s(share))
        uncaptured_s = EAGER_S if batch > self.of["graphs"] else 0.0
        attention_s = self._read_s(share * context * self.token_gib)
        return linear_s + attention_s + self.links_s(share) + self.step_s + uncaptured_s

    def prefill_s(self, prompt: float, batch: float) -> float:
        """Of one prompt; short ones share a step with others."""
        steps = max(1.0, prompt / self.of["tokens"])
        together = max(1.0, min(self.of["tokens"] / prompt, batch))
        linear_s = max(self.products_s(prompt), steps * self.weights_s(self.of["tokens"]) / together)
        scores_s = self._compute_s(2 * self.facts["layers"] * self._width * prompt**2)
        return linear_s + scores_s + self.links_s(prompt) + steps * self.step_s / together

    def speed(self, prompt: float, answer: float, clients: float) -> Speed | None:
        """With so many requests in flight at all replicas; ``None`` when there is no room for one."""
        context = prompt + answer / 2
        room = self.room(context)
        if room < LEAST_REQUESTS:
            return None
        wanted = max(1.0, clients / self.of["replicas"])
        batch = max(1.0, min(wanted, self.of["requests"], room))
        prefill_s, decode_s = self.prefill_s(prompt, batch), self.decode_s(batch, context)
        own_s = prefill_s / min(self._stages, batch)  # stages work on prompts of several requests
        serving_s = answer * decode_s + batch * own_s
        waiting_s = (wanted / batch - 1) * serving_s
        requests_per_s = min(clients, self.of["replicas"] * batch) / serving_s
        return Speed(
            ttft_s=waiting_s + prefill_s * max(1.0, batch / 4),
            tpot_s=decode_s + (batch - 1) * own_s / answer,  # others' prompts come between two tokens
            e2e_s=waiting_s + serving_s,
            requests_per_s=requests_per_s,
            input_tokens_per_s=requests_per_s * prompt,
            output_tokens_per_s=requests_per_s * answer,
        )


Speeds = Sequence[Sequence[Speed]]
"""By scenario and level."""


def _estimate(metric: str) -> str | None:
    """What there is in ``Speed`` of a metric of ``metrics``."""
    return next((name for name in ("ttft_s", "tpot_s", "e2e_s") if metric.startswith(name[:-1])), None)


def _best(speeds: Speeds, name: str = "output_tokens_per_s") -> float:
    return fmean(max(getattr(speed, name) for speed in row) for row in speeds)


def _mean(speeds: Speeds, name: str) -> float:
    return fmean(getattr(speed, name) for row in speeds for speed in row)


LOSSES: Mapping[str, Callable[[Speeds, float], float]] = {
    "minimize_latency": lambda speeds, _: _mean(speeds, "e2e_s"),
    "minimize_ttft": lambda speeds, _: _mean(speeds, "ttft_s"),
    "minimize_tpot": lambda speeds, _: _mean(speeds, "tpot_s"),
    "maximize_throughput": lambda speeds, _: 1 / _best(speeds),
    "maximize_input_throughput": lambda speeds, _: 1 / _best(speeds, "input_tokens_per_s"),
    "maximize_requests": lambda speeds, _: 1 / _best(speeds, "requests_per_s"),
    "maximize_throughput_per_gpu": lambda speeds, gpus: gpus / _best(speeds),
    "minimize_cost": lambda speeds, gpus: gpus / _best(speeds),
}
"""By objective: what is to be small, of a task's speeds on so many GPUs. As in ``objectives``, of a throughput the best
level of each scenario counts, of a latency all of them. Goodput is about a level that is yet to be found."""
