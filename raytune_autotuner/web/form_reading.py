"""What somebody has changed in the form of a task, as changes of the task's data."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raytune_autotuner.errors import SpecError
from raytune_autotuner.task import taskfile
from raytune_autotuner.web import forms, parameter_text
from raytune_autotuner.web.forms import Field, Kind
from raytune_autotuner.web.problems import Fault

Given = Mapping[str, Sequence[str]]
"""What a browser sends of a form."""
NUMBER_BREAK = re.compile(r"[,;\s]+")
ROW = "parameter:"
CHOICES: Mapping[str, tuple[str, Sequence[str]]] = {
    "ClusterBaseModel": ("model_kind", ("model", "name")),
    "BaseModel": ("model_kind", ("model", "name")),
    "ClusterServingRuntime": ("runtime_kind", ("base_runtime",)),
    "ServingRuntime": ("runtime_kind", ("base_runtime",)),
}
"""What can be picked from the cluster: the setting that says its kind, and that which names it."""
ORDER = ("task_name", "description", "backend", "engine", "model", "base_runtime", "runtime", "ome", "parameters")
"""How people write a task; what is not here comes after."""


def read(given: Given, before: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The data of a task with what was changed in a form that showed ``before``, and what of it cannot be read.

    Everything that the form does not have, or that is as it was shown, stays.
    """
    wanted = copy.deepcopy(dict(data))
    faults: list[Fault] = []
    for field in forms.fields():
        if field.place not in given:
            continue
        steps, text = field.place.split("."), _plain(given[field.place][0])
        if text == _sent(field, taskfile.at(before, tuple(steps))):
            continue
        try:
            _put(wanted, steps, _value(text, field.kind)) if text else _remove(wanted, steps)
        except SpecError as error:
            faults.append(Fault(place=field.place, message=error.problems[0].message))
    faults += _read_parameters(given, before, wanted)
    _read_presets(given, before, wanted)
    if "use" in given:
        _use(given["use"][0], wanted)
    return _arranged(wanted), faults


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _sent(field: Field, value: Any) -> str:
    """What a browser sends of a field that nobody has touched."""
    text = forms.shown(value, field.kind)
    if field.kind in ("choice", "switch"):
        return text if text in (field.choices or ("true", "false")) else ""
    return text.strip() if field.kind in ("lines", "yaml") else _of_one_line(text)


def _of_one_line(text: str) -> str:
    return re.sub(r"[\r\n]", "", text).strip()


def _put(data: dict[str, Any], steps: Sequence[str], value: Any) -> None:
    for step in steps[:-1]:
        if not isinstance(data.get(step), dict):
            data[step] = {}
        data = data[step]
    data[steps[-1]] = value


def _remove(data: dict[str, Any], steps: Sequence[str]) -> None:
    """With the sections that would hold nothing then."""
    within = data.get(steps[0])
    if len(steps) > 1 and isinstance(within, dict):
        _remove(within, steps[1:])
    if len(steps) == 1 or within == {}:
        data.pop(steps[0], None)


def _value(text: str, kind: Kind) -> Any:
    if kind in ("text", "choice"):
        return text
    if kind == "lines":
        return [line.strip() for line in text.splitlines() if line.strip()]
    if kind == "numbers":
        return taskfile.parse(f"[{', '.join(NUMBER_BREAK.split(text.strip(',; ')))}]", "field").data
    return taskfile.parse(text, "field").data


def _read_parameters(given: Given, before: Mapping[str, Any], wanted: dict[str, Any]) -> Iterator[Fault]:
    ticked, shown = given.get("searched", ()), _mapping(before.get("parameters"))
    for key in given:
        name = key.removeprefix(ROW)
        if not key.startswith(ROW):
            continue
        if name not in ticked:
            if name in shown:
                _remove(wanted, ("parameters", name))
        elif name not in shown or _plain(given[key][0]) != _of_one_line(forms.line(shown[name])):
            try:
                _put(wanted, ("parameters", name), _parameter(given[key][0]))
            except (SpecError, ValueError) as error:
                said = error.problems[0].message if isinstance(error, SpecError) else "this is not JSON"
                if name not in _mapping(wanted.get("parameters")):
                    _put(wanted, ("parameters", name), {})
                yield Fault(place=f"parameters.{name}", message=said)


def _parameter(text: str) -> Any:
    return json.loads(text) if text.lstrip().startswith("{") else parameter_text.read(text)


def _read_presets(given: Given, before: Mapping[str, Any], wanted: dict[str, Any]) -> None:
    if "presets" not in given:
        return
    chosen, shown = [each for each in given["presets"] if each], _list(before.get("presets"))
    engine = forms.engine_of(before)
    removed = [name for name in engine.presets if name in shown and name not in chosen] if engine else []
    now = [each for each in _list(wanted.get("presets")) if each not in removed]
    now += [each for each in chosen if each not in shown and each not in now]
    if now:
        wanted["presets"] = now
    elif removed:
        wanted.pop("presets", None)


def _use(chosen: str, wanted: dict[str, Any]) -> None:
    """What was picked from the cluster's: ``Choice.identity``. One of a namespace is served in that namespace."""
    kind, namespace, name = [*chosen.split("/", 2), "", ""][:3]
    field, place = CHOICES.get(kind, ("", ()))
    if not name or not field:
        return
    _put(wanted, place, name)
    _put(wanted, ("ome", field), kind)
    if namespace:
        _put(wanted, ("model", "namespace"), namespace)
        _remove(wanted, ("ome", "namespace"))
    _remove(wanted, ("backend",))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _arranged(data: dict[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in (*(n for n in ORDER if n in data), *(n for n in data if n not in ORDER))}
