"""Performance profiles: one YAML file describes a model on a GPU (see ``tests/emulator/profiles/README.md``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raytune_autotuner.task import expressions

PROFILES = Path(__file__).resolve().parents[1] / "profiles"
GIB = 2**30

Scalar = bool | int | float | str | None
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


def _expression(text: str) -> str:
    expressions.parse(text)
    return text


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))


class Gpu(Part):
    name: str
    memory_gib: Positive
    other_gib: float = Field(0.6, ge=0, description="taken before the engine takes anything: context and libraries")
    tflops: Positive = Field(description="dense 16-bit peak")
    bandwidth_gb_s: Positive
    link_gb_s: Positive = Field(description="between two GPUs, one direction")
    link_latency_us: Positive = Field(10.0, description="of one all-reduce, whatever its size")


class Model(Part):
    name: str
    architecture: str
    parameters_b: Positive = Field(description="billions")
    active_parameters_b: Positive | None = Field(None, description="of a mixture of experts: those a token meets")
    bytes_per_parameter: Positive = 2.0
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    context_length: int = Field(gt=0)


class Cost(Part):
    prefill_efficiency: Share = Field(0.55, description="share of the peak that large chunks reach")
    prefill_half_tokens: float = Field(200.0, ge=0, description="tokens in a step at which half of that is reached")
    decode_efficiency: Share = Field(0.75, description="share of the memory bandwidth when reading weights")
    attention_efficiency: Share = Field(0.6, description="share of the bandwidth when reading the KV cache")
    host_ms: float = Field(2.0, ge=0, description="scheduling between two steps")
    host_us_per_request: float = Field(15.0, ge=0, description="the same, for each running request")
    graph_launch_ms: float = Field(0.3, ge=0, description="starting a step that is captured as a CUDA graph")
    eager_launch_ms: float = Field(9.0, ge=0, description="starting a decode step that is not")
    activation_mib_per_token: float = Field(0.35, ge=0, description="of a step, on one GPU when tp is 1")
    graph_mib_per_request: float = Field(4.0, ge=0, description="CUDA graphs, for each captured batch slot")


class Start(Part):
    load_gb_s: Positive = Field(2.0, description="reading weights")
    init_s: float = Field(12.0, ge=0, description="imports, process groups")
    graph_s: float = Field(0.35, ge=0, description="capturing one batch size")
    compile_s: float = Field(60.0, ge=0, description="torch.compile")


class Quantization(Part):
    bytes_per_parameter: Positive
    compute: Positive = Field(1.0, description="speed of matrix products relative to 16 bits")


class Speculation(Part):
    acceptance: Share = Field(0.7, description="chance that a drafted token is accepted")
    draft: float = Field(0.08, ge=0, description="cost of drafting one token, as a share of a step")


class Effect(Part):
    """Factors on the time of a part while an expression over the parameters holds; several multiply."""

    when: Annotated[str, AfterValidator(_expression)]
    prefill: Positive = 1.0
    decode: Positive = 1.0
    host: Positive = 1.0

    @cached_property
    def condition(self) -> expressions.Expression:
        return expressions.parse(self.when)


class Failing(Part):
    """A region of the parameters that fails, beyond what memory explains."""

    when: Annotated[str, AfterValidator(_expression)]
    at: Literal["start", "load"] = "start"
    after_requests: int = Field(1, ge=1, description="at load: the request that brings it down")
    message: str = Field(description="the last line of the traceback, e.g. `ValueError: ...`")
    hang: bool = Field(False, description="hangs instead of ending")

    @cached_property
    def condition(self) -> expressions.Expression:
        return expressions.parse(self.when)


class Noise(Part):
    """Coefficients of variation, unless said otherwise."""

    step_cv: float = Field(0.02, ge=0, description="from step to step")
    run_cv: float = Field(0.01, ge=0, description="from one start of the engine to the next")
    drift_cv: float = Field(0.0, ge=0, description="amplitude of a slow wave over hours")
    drift_period_s: Positive = 7200.0
    nodes: dict[str, Positive] = Field(default_factory=dict, description="factor on the time of steps, by node")


class Profile(Part):
    """What a profile file says; units are in the names."""

    name: str
    description: str
    gpu: Gpu
    model: Model
    cost: Cost = Cost()
    start: Start = Start()
    noise: Noise = Noise()
    speculation: Speculation = Speculation()
    quantizations: dict[str, Quantization] = Field(default_factory=dict)
    effects: tuple[Effect, ...] = ()
    failures: tuple[Failing, ...] = ()
    defaults: dict[Literal["sglang", "vllm"], dict[str, Scalar]] = Field(
        default_factory=dict, description="what an engine chooses on this hardware when a parameter is left out"
    )


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile of this name among ``tests/emulator/profiles``, or the one in a file."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = PROFILES / f"{name_or_path}.yaml"
    return Profile.model_validate({"name": path.stem, **yaml.safe_load(path.read_text())})


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def holds(condition: expressions.Expression, values: Mapping[str, Scalar]) -> bool:
    """Whether a condition over the parameters holds; one over a parameter without a value does not."""
    try:
        return bool(condition.evaluate(values))
    except expressions.ExpressionError:
        return False
