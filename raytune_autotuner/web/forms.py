"""The form of a task, made from the task file's JSON Schema and the engine's file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import yaml

from raytune_autotuner.engines.engine import Engine, engine_names, load_engine
from raytune_autotuner.objectives import OBJECTIVES
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.spec import json_schema
from raytune_autotuner.web import parameter_text
from raytune_autotuner.web.cluster import Stock, standing
from raytune_autotuner.web.problems import Fault

Kind = Literal["text", "integer", "number", "scalar", "switch", "choice", "lines", "numbers", "yaml"]
OWN = ("parameters", "presets")
"""Fields that have a part of the form for themselves."""
OPENED = ("optimization.budget",)
"""Sections of a section whose fields are shown one by one; others are a text in YAML."""
LIMITS: Mapping[str, tuple[str, str]] = {
    "ttft_p99_s": ("TTFT p99 (s)", "99 of 100 requests have their first token by then"),
    "tpot_p99_s": ("TPOT p99 (s)", "99 of 100 requests have this time per output token, or less"),
    "e2e_p99_s": ("E2E latency p99 (s)", "99 of 100 requests are answered by then"),
    "error_ratio": ("Error ratio", "failed requests of all, e.g. 0.01"),
}
"""Metrics that most SLOs limit, with a field each beside that of all limits."""
MAIN: Mapping[str, tuple[str, ...]] = {
    "What is served": (
        *("task_name", "description", "backend", "engine", "model.name", "base_runtime"),
        *("model.path", "runtime.args", "model.chat_template"),
    ),
    "What is wanted": (
        *("optimization.objective", *(f"optimization.slo.{name}" for name in LIMITS), "optimization.slo"),
        *("optimization.strategy", "optimization.max_iterations", "optimization.timeout_per_iteration"),
        *("optimization.budget.gpu_hours", "optimization.budget.wall_time", "optimization.budget.cost"),
        *("optimization.price_per_gpu_hour", "optimization.scheduler"),
    ),
    "Traffic": (
        *("benchmark.task", "benchmark.traffic_scenarios", "benchmark.num_concurrency"),
        *("benchmark.max_requests_per_iteration", "benchmark.max_time_per_iteration", "benchmark.model_tokenizer"),
    ),
}
"""What most tasks say; everything else is a step further away."""
SUGGESTED: Mapping[str, tuple[str, ...]] = {
    "engine": tuple(engine_names()),
    "optimization.objective": tuple(OBJECTIVES),
}
LABELS = {
    "task_name": "Name",
    "base_runtime": "Runtime in use today",
    "runtime.args": "Flags in use today",
    "model.name": "Model",
    "model.path": "Model file or folder",
    **{f"optimization.slo.{name}": label for name, (label, _) in LIMITS.items()},
    "optimization.slo": "All limits (SLO)",
    "optimization.max_iterations": "Trials of the search",
    "optimization.timeout_per_iteration": "Seconds for one trial",
    "optimization.budget.gpu_hours": "Budget in GPU-hours",
    "optimization.budget.wall_time": "Budget in time",
    "optimization.budget.cost": "Budget in money",
    "optimization.price_per_gpu_hour": "Price per GPU-hour",
    "benchmark.task": "Kind of requests",
    "benchmark.num_concurrency": "Requests in flight",
    "benchmark.max_requests_per_iteration": "Requests per load",
    "benchmark.max_time_per_iteration": "Minutes per load",
    "benchmark.model_tokenizer": "Tokenizer",
}


NOTHING_KNOWN = Stock()


@dataclass(frozen=True)
class Field:
    """One field of the form."""

    place: str
    label: str
    help: str
    kind: Kind
    choices: tuple[str, ...] = ()
    """All there are (kind ``choice``), else those to pick from."""
    default: str = ""
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False
    value: str = ""
    fault: str = ""
    standing: str = ""
    """Of a model or runtime: whether the cluster has it ready, where that is known."""

    @property
    def identity(self) -> str:
        """For HTML."""
        return "f-" + re.sub(r"\W", "-", self.place)


@dataclass(frozen=True)
class ParameterRow:
    name: str
    help: str
    searched: bool
    text: str
    suggestion: str
    fault: str = ""
    lossy: bool = False


@dataclass(frozen=True)
class Form:
    main: Mapping[str, Sequence[Field]]
    more: Mapping[str, Sequence[Field]]
    groups: Mapping[str, Sequence[ParameterRow]]
    """Parameters by preset, and the others."""
    presets: Sequence[tuple[str, str, bool]]
    """Name, description, whether it is chosen."""
    faults: Sequence[Fault]
    """Those that belong to no field."""


@cache
def fields() -> tuple[Field, ...]:
    """Every field of a task file, in its order."""
    schema = json_schema()
    return tuple(_fields(schema, schema.get("$defs", {}), ""))


def _fields(schema: Mapping[str, Any], defs: Mapping[str, Any], above: str) -> Iterator[Field]:
    for name, given in schema["properties"].items():
        place = f"{above}{name}"
        if place in OWN:
            continue
        inner = _resolved(given, defs)
        if "properties" in inner and inner.get("type") == "object" and (not above or place in OPENED):
            yield from _fields(inner, defs, f"{place}.")
            continue
        yield _field(place, given, inner, name in schema.get("required", ()))
        if place == "optimization.slo":  # read after it: one limit that is changed beside others in the text stays
            limit = _resolved(inner["additionalProperties"], defs)
            yield from (_field(f"{place}.{n}", {"description": said}, limit, False) for n, (_, said) in LIMITS.items())


def _resolved(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Past references and past "or null"."""
    if "$ref" in schema:
        return defs[str(schema["$ref"]).rpartition("/")[2]]  # type: ignore[no-any-return]
    kinds = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return _resolved(kinds[0], defs) if len(kinds) == 1 else schema


def _label(place: str) -> str:
    """``ome.pull_timeout_s`` as ``Pull timeout (s)``."""
    words = re.sub("_s$", " (s)", place.rpartition(".")[2]).replace("_", " ")
    return words[0].upper() + words[1:]


def _field(place: str, given: Mapping[str, Any], inner: Mapping[str, Any], required: bool) -> Field:
    kind = _kind(inner)
    default = given.get("default")
    return Field(
        place=place,
        label=LABELS.get(place) or _label(place),
        help=given.get("description", inner.get("description", "")),
        kind=kind,
        choices=tuple(map(str, inner["enum"])) if kind == "choice" else SUGGESTED.get(place, ()),
        default=shown(default, kind) if default not in (None, "", [], {}) else "",
        minimum=inner.get("minimum", inner.get("exclusiveMinimum")),
        maximum=inner.get("maximum", inner.get("exclusiveMaximum")),
        required=required,
    )


def _kind(schema: Mapping[str, Any]) -> Kind:
    if "enum" in schema:
        return "choice"
    items = schema.get("items", {})
    if schema.get("type") == "array" and items.get("type") in ("string", "integer", "number"):
        return "lines" if items["type"] == "string" else "numbers"
    if {each.get("type") for each in schema.get("anyOf", ())} == {"number", "string"}:
        return "scalar"
    kinds: Mapping[str, Kind] = {"string": "text", "integer": "integer", "number": "number", "boolean": "switch"}
    return kinds.get(str(schema.get("type")), "yaml")


def shown(value: Any, kind: Kind) -> str:
    """A value of a task as the text of its field."""
    if value is None:
        return ""
    if kind == "lines" and isinstance(value, list | tuple):
        return "\n".join(map(str, value))
    if kind == "numbers" and isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        flat = all(not isinstance(each, dict | list) for each in value.values())
        return _yaml(value) if flat else json.dumps(value)
    if isinstance(value, list | tuple | bool):
        return json.dumps(value)
    return str(value)


def _yaml(data: Any) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)).strip()


def make(data: Any, faults: Iterable[Fault], stock: Stock = NOTHING_KNOWN) -> Form:
    """The form that shows a task's data, valid or not, beside what the cluster has."""
    data = data if isinstance(data, dict) else {}
    beside, others = _assigned(list(faults), data)
    standings = _standings(data, stock) if data.get("backend", "ome") == "ome" else {}
    filled = [_filled(field, data, beside, standings) for field in fields()]
    by_place = {field.place: field for field in filled}
    main = {title: [by_place.pop(place) for place in places] for title, places in MAIN.items()}
    more: dict[str, list[Field]] = {}
    for place, field in by_place.items():
        more.setdefault(place.partition(".")[0] if "." in place else "others", []).append(field)
    engine = engine_of(data)
    chosen = data.get("presets") if isinstance(data.get("presets"), list) else []
    presets = [(n, p.description, n in (chosen or [])) for n, p in engine.presets.items()] if engine else []
    return Form(main, more, _groups(engine, data, beside), presets, others)


def _filled(field: Field, data: Mapping[str, Any], beside: Mapping[str, str], standings: Mapping[str, str]) -> Field:
    value = taskfile.at(data, tuple(field.place.split(".")))
    fault, known = beside.get(field.place, ""), standings.get(field.place, "")
    return replace(field, value=shown(value, field.kind), fault=fault, standing=known)


def _standings(data: Mapping[str, Any], stock: Stock) -> dict[str, str]:
    """Of the model and the runtime that a task names, by the places of their fields."""

    def said(place: str) -> str:
        return str(taskfile.at(data, tuple(place.split("."))) or "")

    namespace = said("ome.namespace") or said("model.namespace")
    model_kind = said("ome.model_kind") or "ClusterBaseModel"
    return {
        "model.name": standing(stock.models, said("model.name"), model_kind, namespace),
        "base_runtime": standing(stock.runtimes, said("base_runtime"), said("ome.runtime_kind") or None, namespace),
    }


def _assigned(faults: list[Fault], data: Mapping[str, Any]) -> tuple[dict[str, str], list[Fault]]:
    """Messages by the place of the field that shows them, and those that no field shows."""
    places = [field.place for field in fields()]
    searched = data.get("parameters")
    places += [f"parameters.{name}" for name in searched] if isinstance(searched, dict) else []
    beside: dict[str, str] = {}
    others: list[Fault] = []
    for fault in faults:
        place = _nearest(fault.place, places)
        if place is None:
            others.append(fault)
        else:
            inner = fault.place[len(place) :].lstrip(".")
            said = f"{inner}: {fault.message}" if inner else fault.message
            beside[place] = f"{beside[place]}; {said}" if place in beside else said
    return beside, others


def _nearest(place: str, places: Sequence[str]) -> str | None:
    above = [each for each in places if place == each or place.startswith((f"{each}.", f"{each}["))]
    if above:
        return max(above, key=len)
    return next((each for each in places if place and each.startswith(f"{place}.")), None)


def engine_of(data: Mapping[str, Any]) -> Engine | None:
    name = data.get("engine") or ("sglang" if data.get("backend", "ome") == "ome" else None)
    if not isinstance(name, str) or name not in engine_names():  # a file of the user's is not opened from here
        return None
    return load_engine(name)


def _groups(engine: Engine | None, data: Mapping[str, Any], beside: Mapping[str, str]) -> dict[str, list[ParameterRow]]:
    found = data.get("parameters")
    searched: Mapping[str, Any] = found if isinstance(found, dict) else {}
    names = {(engine.canonical(name) or name) if engine else name: name for name in searched}
    groups: dict[str, list[ParameterRow]] = {}
    if engine is not None:
        of = {name: title for title, preset in reversed(engine.presets.items()) for name in preset.parameters}
        order = [*engine.presets, "more parameters"]
        for title in order:
            rows = [n for n in engine.parameters if of.get(n, "more parameters") == title]
            groups[title] = [_known_row(engine, n, names.get(n), searched, beside) for n in rows]
    own = [name for name in searched if not engine or engine.canonical(name) is None]
    groups["of your own"] = [
        ParameterRow(name, "", True, line(searched[name]), "", beside.get(f"parameters.{name}", "")) for name in own
    ]
    return groups


def _known_row(
    engine: Engine, name: str, spelt: str | None, searched: Mapping[str, Any], beside: Mapping[str, str]
) -> ParameterRow:
    known, suggestion = engine.parameters[name], parameter_text.suggested(engine, name)
    text = line(searched[spelt]) if spelt else suggestion
    fault = beside.get(f"parameters.{spelt}", "") if spelt else ""
    return ParameterRow(spelt or name, known.help, spelt is not None, text, suggestion, fault, known.lossy)


def line(parameter: Any) -> str:
    """A searched parameter of a task as the text of its row."""
    if isinstance(parameter, dict):
        return parameter_text.write(parameter) or json.dumps(parameter)
    return json.dumps(parameter)
