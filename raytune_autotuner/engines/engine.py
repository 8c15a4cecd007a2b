"""Engines as data: what one file per engine says.

An engine file (``templates/engines/*.yaml``) names the command, the parameters with their flags and aliases, how
many GPUs a configuration takes, where health, info and metrics are, and what its log says when it fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from raytune_autotuner import resources
from raytune_autotuner.errors import FailureClass, Problem, SpecError
from raytune_autotuner.records import ParameterValue
from raytune_autotuner.task import expressions
from raytune_autotuner.task.parameters import Choice, Model, Parameter, Scalar


def _formula(text: str) -> str:
    expressions.parse(text)  # says by a ValueError what is wrong
    return text


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error
    return text


Flag = Annotated[str, Field(pattern=r"^--?[A-Za-z][A-Za-z0-9_.-]*$")]
Regex = Annotated[str, AfterValidator(_regex)]


class EngineParameter(Model):
    """One launch parameter of an engine."""

    flag: Flag
    aliases: tuple[str, ...] = Field((), description="other flags, and other names that people use")
    type: Literal["int", "float", "str", "choice", "bool"]
    values: tuple[Scalar, ...] = Field((), description="type choice: what the engine accepts")
    off_flag: Flag | None = Field(None, description="the flag that turns it off; without one, False leaves it out")
    default: Scalar = Field(None, description="the engine's own, where it is the same for every model and GPU")
    typical: Scalar = Field(
        None, description="roughly what the engine chooses, where that varies with the model or GPU"
    )
    unlimited: float | None = Field(None, description="the number that means no limit, such as -1")
    low: float | None = Field(None, description="sensible limits of a search, not of the engine")
    high: float | None = None
    log: bool = False
    help: str = Field(min_length=1)
    lossy: bool = Field(False, description="may change what the model answers")
    late: bool = Field(False, description="of no effect before the first request, so no start fails because of it")
    info: str | None = Field(None, description="dotted path in the server's own info, to compare with what was asked")

    @model_validator(mode="after")
    def _check(self) -> EngineParameter:
        if (self.type == "choice") != bool(self.values):
            raise ValueError("values belong to type choice, and only there")
        if self.off_flag and self.type != "bool":
            raise ValueError("off_flag belongs to type bool")
        if self.default is not None and self.typical is not None:
            raise ValueError("what has a default is not typical of some models or GPUs; leave one out")
        for value in (self.default, self.typical):
            if value is not None and not self.takes(value):
                raise ValueError(f"default or typical: {value!r} is {self.misfit}")
        return self

    def takes(self, value: ParameterValue) -> bool:
        """Whether it may have this value, sensible or not; written as text, it is the same."""
        if self.type == "str" or self.values:
            return not self.values or str(value) in map(str, self.values)
        if isinstance(value, bool) or self.type == "bool":
            return isinstance(value, bool) and self.type == "bool"
        return isinstance(value, int | float) and (self.type == "float" or float(value).is_integer())

    @property
    def misfit(self) -> str:
        """What is wrong with a value that it does not take."""
        return "not among the values" if self.values else f"not of type {self.type}"

    @cached_property
    def flags(self) -> frozenset[str]:
        """Every spelling that sets or clears it on a command line."""
        spelled = (alias if alias.startswith("-") else f"--{alias.replace('_', '-')}" for alias in self.aliases)
        return frozenset({self.flag, *spelled, *([self.off_flag] if self.off_flag else [])})

    @property
    def unsaid(self) -> ParameterValue:
        """What it is when nothing is said; ``None`` where the engine decides."""
        return False if self.default is None and self.type == "bool" and not self.off_flag else self.default

    def spellings(self, name: str) -> frozenset[str]:
        """All its names, without dashes."""
        return frozenset(_plain(text) for text in (name, self.flag, *self.aliases))


class Fixed(Model):
    """An argument that is ours to set; left out when a fact that it needs is not known."""

    flag: Flag
    aliases: tuple[Flag, ...] = ()
    value: str | None = None


class MetricNames(Model):
    """Prometheus names by ours, those of several versions of the engine; what a server lacks is left out."""

    path: str = "/metrics"
    gauges: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="amounts: summed over ranks")
    ratios: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="averaged over ranks")
    counters: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    info: dict[str, str] = Field(
        default_factory=dict, description="metrics whose labels tell the configuration, by their key in the info"
    )


Worse = Literal["higher", "lower"]


class CacheReset(Model):
    """The request that empties what the engine keeps from one request to the next."""

    method: Literal["GET", "POST"] = "POST"
    path: str = Field(pattern="^/")
    hint: str = Field("", description="what to do when the server does not know the path")


class FailurePattern(Model):
    """What a log says when an engine fails, and which other configurations fail the same way."""

    pattern: Regex
    kind: FailureClass = Field(alias="class")
    hint: str = ""
    worse: dict[str, Worse] = Field(
        default_factory=dict,
        description="by parameter: which way leads further into the failure, all else being equal",
    )
    only: tuple[str, ...] | Literal["named"] = Field(
        (), description="the parameters that alone decide; `named`: those whose flags the message names"
    )
    without: tuple[str, ...] = Field((), description="parameters that play no part")
    needs: tuple[str, ...] = Field(
        (), description="what must be said for all this to hold: left out, the engine derives it from the others"
    )


Formula = Annotated[str, AfterValidator(_formula)]
FACTS = frozenset({"layers", "heads", "kv_heads", "head_dim", "max_context", "weights_gib", "gpu_gib"})
"""What a rule may speak of beside parameters: the model's shape, its weights as they are loaded, one GPU's memory."""


class Fit(Model):
    """What a start surely needs: ``must`` holds, or ``need`` is no more than ``have`` (both in GiB, of one GPU)."""

    why: str = Field(min_length=1, description="what is wrong when it is not so")
    must: Formula | None = None
    need: Formula | None = None
    have: Formula | None = None

    @model_validator(mode="after")
    def _check(self) -> Fit:
        if (self.must is None) == (self.need is None) or (self.need is None) != (self.have is None):
            raise ValueError("write either must, or need and have")
        return self

    @property
    def names(self) -> frozenset[str]:
        """Of the parameters and facts that it speaks of."""
        return frozenset().union(*(expressions.parse(text).names for text in (self.must, self.need, self.have) if text))


STORED = frozenset({"stored_bytes", "gpu_fp8"})
"""Facts that a roofline may speak of: bytes of a parameter in the checkpoint, whether the GPU multiplies in FP8 (1)."""


class Roofline(Model):
    """Of one replica, what ``foresight.roofline`` needs to know to estimate its speed."""

    tensor_parallel: Formula = Field(description="GPUs over which each layer is split")
    attention_parallel: Formula | None = Field(
        None, description="GPUs over which a request's attention is split; default: all of `tensor_parallel`"
    )
    pipeline_stages: Formula = "1"
    replicas: Formula = "1"
    weights: Formula = Field("1", description="bytes of the weights relative to those of the checkpoint")
    products: Formula = Field("1", description="time of a matrix product relative to one in 16 bits")
    cache_bytes: Formula = Field("2", description="of one number in the KV cache")
    memory: Formula = Field(description="share of a GPU's memory for weights and KV cache")
    requests: Formula = Field(description="requests that one replica decodes at the same time, at most")
    tokens: Formula = Field(description="prompt tokens in one step, at most")
    graphs: Formula = Field("0", description="the largest batch that is captured as a CUDA graph")

    @property
    def names(self) -> frozenset[str]:
        """Of the parameters that it speaks of."""
        return frozenset().union(*(expressions.parse(text).names for text in self.formulas.values()))

    @property
    def formulas(self) -> dict[str, str]:
        """By name, with the defaults filled in."""
        return {**dict(self), "attention_parallel": self.attention_parallel or self.tensor_parallel}


class Preset(Model):
    description: str
    parameters: dict[str, Parameter] = Field(min_length=1)


class Start(Model):
    description: str
    parameters: dict[str, ParameterValue | tuple[ParameterValue, ...]] = Field(
        min_length=1, description="a value, or several, of which the first that the task searches counts"
    )

    @property
    def alternatives(self) -> dict[str, tuple[ParameterValue, ...]]:
        return {name: value if isinstance(value, tuple) else (value,) for name, value in self.parameters.items()}


class Engine(Model):
    """What an engine file says."""

    name: str
    description: str
    command: tuple[str, ...] = Field(min_length=1)
    fixed: tuple[Fixed, ...] = ()
    parameters: dict[str, EngineParameter]
    gpus: str = Field(description="how many GPUs a configuration takes: an expression over the parameters")
    chat_template_flag: Flag | None = Field(None, description="takes the file of a chat template")
    health: str = Field(pattern="^/", description="answers 200 when the engine can serve")
    info: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="where it tells its configuration; of each list, the first path that answers"
    )
    metrics: MetricNames | None = None
    failures: tuple[FailurePattern, ...] = ()
    terms: dict[str, Formula] = Field(default_factory=dict, description="what `fits` and later terms may speak of")
    fits: tuple[Fit, ...] = Field((), description="what a start surely needs; the unknown is no need")
    roofline: Roofline | None = Field(None, description="what a rough estimate of the speed needs to know")
    presets: dict[str, Preset] = Field(default_factory=dict)
    starts: tuple[Start, ...] = Field((), description="configurations that are worth trying first")
    api_backend: Literal["openai", "vllm", "sglang"] = "openai"
    server_engine: str = Field(description="genai-bench's --server-engine")
    cache_reset: CacheReset | None = Field(None, description="how its caches are emptied before each load")
    cache_off: tuple[str, ...] = Field((), description="arguments that turn off what outlives a request, on demand")

    @model_validator(mode="after")
    def _check(self) -> Engine:
        try:
            unknown = expressions.parse(self.gpus).names - set(self.parameters)
        except expressions.ExpressionError as error:
            raise ValueError(f"gpus: {error}") from error
        faults = [f"gpus: {name} is no parameter of this engine" for name in sorted(unknown)]
        faults += _spelled_twice(self.parameters)
        used = {*(n for fit in self.fits for n in fit.names), *(n for name in self.terms for n in self.parts(name))}
        faults += [
            f"fits: {name} is neither a parameter of this engine nor one of {', '.join(sorted(FACTS))}"
            for name in sorted(used - set(self.parameters) - set(self.terms) - FACTS)
        ]
        faults += [
            f"roofline: {name} is no parameter of this engine"
            for name in sorted((self.roofline.names if self.roofline else set()) - {*self.parameters, *STORED})
        ]
        faults += [fault for failure in self.failures for fault in _failure_faults(self, failure)]
        faults += [fault for name, preset in self.presets.items() for fault in _preset_faults(self, name, preset)]
        faults += [fault for start in self.starts for fault in _start_faults(self, start)]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @cached_property
    def _names(self) -> Mapping[str, str]:
        return {spelling: name for name, p in self.parameters.items() for spelling in p.spellings(name)}

    def parts(self, name: str) -> frozenset[str]:
        """What a term is made of; nothing when it is none."""
        return expressions.parse(self.terms[name]).names if name in self.terms else frozenset()

    def canonical(self, name: str) -> str | None:
        """The parameter that is meant by a name, an alias or a flag; ``None`` when the engine has none such."""
        return self._names.get(_plain(name))


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _spelled_twice(parameters: Mapping[str, EngineParameter]) -> Iterator[str]:
    owners: dict[str, str] = {}
    for name, parameter in parameters.items():
        for spelling in sorted(parameter.spellings(name)):
            if (other := owners.setdefault(spelling, name)) != name:
                yield f"parameters: {spelling} means both {other} and {name}"


def _failure_faults(engine: Engine, failure: FailurePattern) -> Iterator[str]:
    only = failure.only if failure.only != "named" else ()
    named = (*failure.worse, *only, *failure.without, *failure.needs)
    for name in named:
        if name not in engine.parameters:
            yield f"failures: {failure.pattern!r} speaks of {name}, which is no parameter of this engine"


def _preset_faults(engine: Engine, preset: str, content: Preset) -> Iterator[str]:
    for name, asked in content.parameters.items():
        known = engine.parameters.get(name)
        if known is None:
            yield f"presets.{preset}: {name} is no parameter of this engine"
        elif isinstance(asked, Choice):
            wrong = [v for v in asked.values if v is not None and v is not False and not known.takes(v)]
            yield from (f"presets.{preset}.{name}: {value!r} is {known.misfit}" for value in wrong)


def _start_faults(engine: Engine, start: Start) -> Iterator[str]:
    for name, values in start.alternatives.items():
        known = engine.parameters.get(name)
        if known is None:
            yield f"starts: {name} is no parameter of this engine"
        elif not values:
            yield f"starts: {name}: a list without a value; leave {name} out instead"
        else:
            wrong = [value for value in values if value is not None and not known.takes(value)]
            yield from (f"starts: {name}: {value!r} is {known.misfit}" for value in wrong)


def engine_names() -> list[str]:
    """The engines that are shipped."""
    return sorted(path.stem for path in (resources.templates() / "engines").glob("*.yaml"))


def load_engine(name_or_path: str) -> Engine:
    """The engine of this name, or the one that a file of the user's describes.

    Raises:
        SpecError: there is none such (lists those there are), or the file is at fault (names the place).
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in engine_names():
            valid = f"{', '.join(engine_names())}, or an engine file's path"
            raise SpecError.single("engine", f"{name_or_path!r} is unknown; valid are {valid}")
        path = resources.templates() / "engines" / f"{name_or_path}.yaml"
    return _read(path)


def _read(path: Path) -> Engine:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise SpecError.single("", "an engine file is a mapping", str(path))
        return Engine.model_validate({"name": path.stem, **content})
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError.single("engine", f"cannot be read: {error}", str(path)) from error
    except yaml.YAMLError as error:
        raise SpecError.single("", f"is not YAML: {error}", str(path)) from error
    except ValidationError as error:
        problems = [Problem(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        raise SpecError(problems, str(path)) from error
