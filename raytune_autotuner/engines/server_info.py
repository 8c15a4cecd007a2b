"""What a running server says of its own configuration, beside what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.records import Parameters

TRUE_WORDS = frozenset({"true", "on", "yes", "1", "enabled"})
FALSE_WORDS = frozenset({"false", "off", "no", "0", "disabled", "none", ""})


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
