"""A searched parameter as one line of text, as people write it: ``1, 2, 4`` or ``0.7..0.95 step 0.05``.

::

    1, 2, 4                     one of these; `default` leaves the flag out
    1..8    16..512 log         whole numbers between, by ratio
    0.7..0.95 step 0.05         numbers between
    switch                      with the flag and without it
    … when EXPRESSION           only when this holds
    … flag --FLAG               for what the engine file does not know
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from raytune_autotuner.engines.engine import Engine, EngineParameter
from raytune_autotuner.errors import SpecError
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.parameters import Parameter

SWITCH, DEFAULT = "switch", "default"
RANGE = re.compile(
    r"(?P<low>-?[\d.]+(?:e[-+]?\d+)?)\s*\.\.\s*(?P<high>-?[\d.]+(?:e[-+]?\d+)?)"
    r"(?:\s+step\s+(?P<step>[\d.]+(?:e[-+]?\d+)?))?(?P<log>\s+log)?",
    re.IGNORECASE,
)
TAIL = re.compile(r"^(?P<values>.*?)(?:\s+when\s+(?P<when>.+?))?(?:\s+flag\s+(?P<flag>--?[\w.-]+))?$", re.DOTALL)
PLAIN = re.compile(r"[^\s,\"'\[\]{}#&*!|>%@`][^,\"\[\]{}#]*")


def write(parameter: Mapping[str, Any]) -> str:
    """The line of a parameter as a task file has it; empty when it has another form."""
    kind = parameter.get("type")
    if kind == "choice" and isinstance(parameter.get("values"), list | tuple):
        text = ", ".join(_word(value) for value in parameter["values"])
    elif kind in ("int", "float") and "low" in parameter and "high" in parameter:
        text = f"{_number(parameter['low'], kind)}..{_number(parameter['high'], kind)}"
        step = parameter.get("step")
        text += f" step {step}" if step not in (None, 1) else ""
        text += " log" if parameter.get("log") else ""
    elif kind == "bool":
        text = SWITCH
    else:
        return ""
    return text + "".join(f" {key} {parameter[key]}" for key in ("when", "flag") if parameter.get(key))


def read(text: str) -> dict[str, Any]:
    """The parameter that a line says.

    Raises:
        SpecError: it says none.
    """
    found = TAIL.match(text.strip())
    assert found is not None
    values = found["values"].strip()
    more = {key: found[key].strip() for key in ("when", "flag") if found[key]}
    if not values:
        raise SpecError.single("", "say which values, e.g. 1, 2, 4 or 0.7..0.95")
    if values == SWITCH:
        return {"type": "bool", **more}
    if matched := RANGE.fullmatch(values):
        return {**_range(matched), **more}
    return {"type": "choice", "values": _values(values), **more}


def suggested(engine: Engine, name: str) -> str:
    """The values to begin with: those of a preset, else what the engine file takes for sensible."""
    for preset in engine.presets.values():
        if name in preset.parameters:
            return write(as_data(preset.parameters[name]))
    parameter = engine.parameters[name]
    if parameter.type == "bool":
        return SWITCH
    if parameter.values:
        return ", ".join(map(_word, parameter.values))
    return _between(parameter)


def as_data(parameter: Parameter) -> dict[str, Any]:
    data: dict[str, Any] = parameter.model_dump(mode="json", exclude_unset=True)
    return data


def _between(parameter: EngineParameter) -> str:
    if parameter.low is None or parameter.high is None:
        return ""
    kind = parameter.type if parameter.type in ("int", "float") else "int"
    return write({"type": kind, "low": parameter.low, "high": parameter.high, "log": parameter.log})


def _number(value: Any, kind: str) -> str:
    if kind == "int" and isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _word(value: Any) -> str:
    if value is None:
        return DEFAULT
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.strip() == value and _scalar(value) == value and value != DEFAULT
        return value if plain else json.dumps(value)
    return json.dumps(value)


def _range(found: re.Match[str]) -> dict[str, Any]:
    numbers = {key: _scalar(found[key]) for key in ("low", "high", "step") if found[key]}
    if not all(isinstance(value, int | float) for value in numbers.values()):
        raise SpecError.single("", f"`{found[0]}` is no range of numbers; write e.g. 1..8")
    kind = "int" if all(isinstance(value, int) for value in numbers.values()) else "float"
    return {"type": kind, **numbers, **({"log": True} if found["log"] else {})}


def _values(text: str) -> list[Any]:
    words = taskfile.parse(f"[{text}]", "values").data
    if not isinstance(words, list):
        raise SpecError.single("", "separate the values by commas")
    return [None if word == DEFAULT else word for word in words]


def _scalar(text: str) -> Any:
    try:
        return taskfile.parse(text, "value").data
    except SpecError:
        return text
