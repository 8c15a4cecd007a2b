"""Engines as data: what one file per engine says, and the pure functions over it.

An engine file (``templates/engines/*.yaml``) names the command, the parameters with their flags and aliases, how
many GPUs a configuration takes, where health, info and metrics are, and what its log says when it fails.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from raytune_autotuner import resources
from raytune_autotuner.engines import arguments
from raytune_autotuner.engines.arguments import Option
from raytune_autotuner.errors import FailureClass, Problem, SpecError
from raytune_autotuner.records import Failure, Parameters, ParameterValue
from raytune_autotuner.task import expressions
from raytune_autotuner.task.parameters import Choice, Model, Parameter, Scalar

REASON_LENGTH = 300
"""Characters of a log line that are kept as a failure's reason."""
TRUE_WORDS = frozenset({"true", "on", "yes", "1", "enabled"})
FALSE_WORDS = frozenset({"false", "off", "no", "0", "disabled", "none", ""})


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
        return self

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


class Preset(Model):
    description: str
    parameters: dict[str, Parameter] = Field(min_length=1)


class Start(Model):
    description: str
    parameters: dict[str, ParameterValue] = Field(min_length=1)


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
        elif isinstance(asked, Choice) and known.values:
            wrong = [value for value in asked.values if value is not None and value not in known.values]
            yield from (f"presets.{preset}.{name}: {value!r} is not among the values" for value in wrong)


def _start_faults(engine: Engine, start: Start) -> Iterator[str]:
    for name, value in start.parameters.items():
        known = engine.parameters.get(name)
        if known is None:
            yield f"starts: {name} is no parameter of this engine"
        elif known.values and value is not None and value not in known.values:
            yield f"starts: {name}: {value!r} is not among the values"


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


def build_argv(
    engine: Engine,
    *,
    command: Sequence[str] | None,
    runtime_args: Sequence[str],
    extra_args: Sequence[str],
    parameters: Parameters,
    raw_flags: Mapping[str, str],
    facts: Mapping[str, str],
) -> tuple[str, ...]:
    """Command and arguments in full; with no parameters these are the runtime's own, and what is ours to set.

    What is already there is replaced in place, whatever its spelling, and new options come last. ``facts`` fill the
    engine file's placeholders (``{model_path}``, ``{served_name}``); ``{python}``, ``{host}`` and ``{port}`` stay for
    the backend when they are not given. A fixed argument whose other facts are missing is left out. ``raw_flags``
    are the flags of parameters that the engine file does not know.

    Raises:
        SpecError: a parameter is neither known nor marked as a raw flag.
    """
    extra = arguments.split(extra_args)
    replaced = {flag for option in extra for flag in _all_flags(engine, option) if flag}
    options = (*(o for o in arguments.split(runtime_args) if not o.is_one_of(replaced)), *extra)
    for name, value in parameters.items():
        flags, replacement = _option(engine, name, value, raw_flags)
        options = arguments.put(options, flags, replacement)
    for fixed in engine.fixed:
        if (filled := _filled(fixed, facts)) is not None:
            options = arguments.put(options, {fixed.flag, *fixed.aliases}, filled)
    return tuple(fill(word, facts) for word in command or engine.command) + arguments.join(options)


def _all_flags(engine: Engine, option: Option) -> frozenset[str]:
    known = (parameter.flags for parameter in engine.parameters.values() if option.is_one_of(parameter.flags))
    return next(known, frozenset({option.flag}))


def _option(
    engine: Engine, name: str, value: ParameterValue, raw_flags: Mapping[str, str]
) -> tuple[frozenset[str], Option | None]:
    """The flags that a parameter may stand under, and the option that says its value."""
    known = engine.canonical(name)
    if known is None and name not in raw_flags:
        cure = f"mark it with `flag: --…` to use it as it is, or use {', '.join(engine.parameters)}"
        raise SpecError.single(f"parameters.{name}", f"unknown to {engine.name}; {cure}")
    if known is None:
        return frozenset({raw_flags[name]}), _said(raw_flags[name], None, value)
    parameter = engine.parameters[known]
    if parameter.type == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)
    return parameter.flags, _said(parameter.flag, parameter.off_flag, value)


def _said(flag: str, off_flag: str | None, value: ParameterValue) -> Option | None:
    if value is None or value is False:
        return Option(off_flag) if off_flag and value is False else None
    return Option(flag) if value is True else Option(flag, (str(value),))


PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
BACKEND_FACTS = frozenset({"host", "port", "python"})


def _filled(fixed: Fixed, facts: Mapping[str, str]) -> Option | None:
    if fixed.value is None:
        return Option(fixed.flag)
    if set(PLACEHOLDER.findall(fixed.value)) - set(facts) - BACKEND_FACTS:
        return None
    return Option(fixed.flag, (fill(fixed.value, facts),))


def fill(text: str, facts: Mapping[str, str]) -> str:
    """The text with the placeholders of known facts replaced."""
    return PLACEHOLDER.sub(lambda found: facts.get(found[1], found[0]), text)


def gpu_count(engine: Engine, parameters: Parameters, runtime_args: Sequence[str]) -> int:
    """The GPUs that one replica takes, from the parameters, else the runtime's own arguments, else the defaults.

    Raises:
        SpecError: the engine's formula has no whole-number value for these parameters.
    """
    values: dict[str, ParameterValue] = {name: p.default for name, p in engine.parameters.items()}
    values |= _values(engine, arguments.split(runtime_args))
    known = {engine.canonical(name): value for name, value in parameters.items()}
    values |= {name: value for name, value in known.items() if name and value is not None}
    try:
        count = float(expressions.parse(engine.gpus).evaluate(values))
    except (expressions.ExpressionError, ValueError) as error:
        raise SpecError.single("parameters", f"no number of GPUs: {error}", engine.name) from error
    if not count.is_integer() or count < 0:
        raise SpecError.single("parameters", f"{engine.gpus} is {count:g}, not a number of GPUs", engine.name)
    return int(count)


def spoken(engine: Engine, args: Sequence[str]) -> dict[str, Hashable]:
    """What a command line says, by parameter; by flag, with the words that follow, where none is known."""
    said: dict[str, Hashable] = {}
    for option in arguments.split(args):
        if known := dict(_values(engine, (option,))):
            said.update(known)
            continue
        before = said.get(option.flag, ())
        said[option.flag] = (*(before if isinstance(before, tuple) else ()), *option.values)
    return said


def usual_values(engine: Engine, runtime_args: Sequence[str]) -> dict[str, ParameterValue]:
    """What parameters are when a trial leaves them out: by the runtime's own arguments, else by the engine file."""
    defaults = {name: p.default for name, p in engine.parameters.items() if p.default is not None}
    return {**defaults, **dict(_values(engine, arguments.split(runtime_args)))}


def _values(engine: Engine, options: Iterable[Option]) -> Iterator[tuple[str, ParameterValue]]:
    """The parameters that stand in a command line."""
    for option in options:
        for name, parameter in engine.parameters.items():
            if option.is_one_of(parameter.flags):
                yield name, _value(parameter, option)


def _value(parameter: EngineParameter, option: Option) -> ParameterValue:
    if not option.values:
        return option.flag != parameter.off_flag
    word = option.values[0]
    try:
        return int(word) if parameter.type == "int" else float(word) if parameter.type == "float" else word
    except ValueError:
        return word  # a form of the engine's own, such as 8k


def classify(engine: Engine, log_tail: str, exit_code: int | None) -> Failure:
    """What kind of failure the end of an engine's log tells; the first pattern of the file that matches decides."""
    for failure in engine.failures:
        if found := list(re.finditer(failure.pattern, log_tail, re.IGNORECASE)):
            return Failure(failure.kind, _line(log_tail, found[-1].start()), log_tail, failure.hint)
    return Failure("crash", _ending(exit_code), log_tail, _ending_hint(exit_code))


def pattern_of(engine: Engine, failure: Failure) -> FailurePattern | None:
    """The pattern by which a failure was told; ``None`` when it was not told by the engine's log."""
    return next(
        (p for p in engine.failures if p.kind == failure.kind and re.search(p.pattern, failure.reason, re.IGNORECASE)),
        None,
    )


def _line(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    line, _, _ = text[start:].partition("\n")
    return line.strip()[:REASON_LENGTH]


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "the engine failed"
    if exit_code >= 0:
        return f"the engine ended with exit code {exit_code}"
    try:
        return f"the engine was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"the engine was ended by signal {-exit_code}"


def _ending_hint(exit_code: int | None) -> str:
    return "nobody said so, but the kernel ends processes like this when memory runs out" if exit_code == -9 else ""


def differences(engine: Engine, parameters: Parameters, info: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the server's own info contradicts what was asked; what it does not tell is no contradiction."""
    found = []
    for name, asked in parameters.items():
        parameter = engine.parameters.get(engine.canonical(name) or "")
        said = _lookup(info, parameter.info) if parameter and parameter.info else None
        if said is not None and asked is not None and asked != "auto" and not same_value(asked, said):
            found.append(f"{name}: asked for {asked}, the server says {said}")
    return tuple(found)


def reported(engine: Engine, info: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The parameters as the server tells them, those that it tells plainly."""
    said = {name: _lookup(info, p.info) for name, p in engine.parameters.items() if p.info}
    return {name: value for name, value in said.items() if isinstance(value, str | int | float | bool)}


def _lookup(info: Any, path: str) -> Any:
    """The value at a dotted path through mappings and lists; ``None`` when there is none."""
    for key in path.split("."):
        if isinstance(info, Mapping):
            info = info.get(key)
        elif isinstance(info, Sequence) and not isinstance(info, str) and key.isdigit() and int(key) < len(info):
            info = info[int(key)]
        else:
            return None
    return info


def same_value(asked: object, said: object) -> bool:
    """Whether a server reports what it was told, in words of its own."""
    if isinstance(asked, bool) or isinstance(said, bool):
        return _truth(asked) == _truth(said)
    try:
        return math.isclose(float(str(asked)), float(str(said)), rel_tol=1e-3)
    except ValueError:
        return str(asked).lower() == str(said).lower()


def _truth(value: Any) -> bool | str:
    word = str(value).lower()
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else word
