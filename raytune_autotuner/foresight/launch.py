"""A configuration as the engine sees it: every option of its command line, wherever it comes from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from raytune_autotuner.engines.command import build_argv, spoken
from raytune_autotuner.engines.engine import Engine, EngineParameter
from raytune_autotuner.records import Parameters, ParameterValue, config_hash

Values = Mapping[str, Hashable]
"""By parameter, or by flag where the engine file knows none; ``None`` is left to the engine."""
Usual = Mapping[str, tuple[ParameterValue, ...]]
"""By parameter, what all comes to the same; ``None`` is the flag left out. Nothing where it is not known."""


@dataclass(frozen=True)
class Launch:
    """What all trials of an experiment are started with, beside their parameters."""

    engine: Engine
    runtime_args: tuple[str, ...] = ()
    """The flags in use today."""
    extra_args: tuple[str, ...] = ()
    raw_flags: Mapping[str, str] = field(default_factory=dict)
    """Flags of the parameters that the engine file does not know."""
    _known: dict[str, Values] = field(default_factory=dict, repr=False, compare=False)

    def values(self, parameters: Parameters) -> Values:
        """What the engine is told with these parameters; what is not said has the engine file's default."""
        name = config_hash(parameters)
        if name not in self._known:
            self._known[name] = self._values(parameters)
        return self._known[name]

    def usual(self) -> Usual:
        """What parameters are in a start that gives none of them."""
        said = self._said({})
        usual: dict[str, tuple[ParameterValue, ...]] = {}
        for name, parameter in self.engine.parameters.items():
            usual[name] = _told(parameter, said[name]) if name in said else (None, parameter.unsaid)
        for name, raw_flag in self.raw_flags.items():
            flag = raw_flag.replace("_", "-")
            usual[name] = _meant(cast(tuple[str, ...], said[flag])) if flag in said else (None, False)
        return usual

    def _values(self, parameters: Parameters) -> Values:
        return {**{name: p.unsaid for name, p in self.engine.parameters.items()}, **self._said(parameters)}

    def _said(self, parameters: Parameters) -> Values:
        """In the command line."""
        argv = build_argv(
            self.engine,
            command=("",),
            runtime_args=self.runtime_args,
            extra_args=self.extra_args,
            parameters=parameters,
            raw_flags=self.raw_flags,
            facts={},
        )
        return spoken(self.engine, argv[1:])


def _told(parameter: EngineParameter, said: Hashable) -> tuple[ParameterValue, ...]:
    value = next((v for v in parameter.values if str(v) == said), cast(ParameterValue, said))
    return (value, None) if value == parameter.unsaid else (value,)


def _meant(words: tuple[str, ...]) -> tuple[ParameterValue, ...]:
    """By what stands behind a flag that the engine file does not know; a word may be a number."""
    if len(words) != 1:
        return () if words else (True,)
    numbers: list[ParameterValue] = []
    for kind in (int, float):
        with suppress(ValueError):
            numbers.append(kind(words[0]))
    return (words[0], *numbers)
