"""A configuration as the engine sees it: every option of its command line, wherever it comes from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import cast

from raytune_autotuner.engines.command import build_argv, spoken
from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.records import Parameters, ParameterValue, config_hash

Values = Mapping[str, Hashable]
"""By parameter, or by flag where the engine file knows none; ``None`` is left to the engine."""


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

    def usual(self) -> dict[str, ParameterValue]:
        """What parameters are in a start that gives none of them; ``None`` where the flag is left out.

        Not in it are raw flags that stand in the command line, as it is not known what their words come to, and what
        the engine itself turns on or off when neither flag is there.
        """
        said = self.values({})
        usual: dict[str, ParameterValue] = {name: None for name, flag in self.raw_flags.items() if flag not in said}
        for name, parameter in self.engine.parameters.items():
            if said[name] is not None or not parameter.off_flag:
                usual[name] = cast(ParameterValue, said[name])
        return usual

    def _values(self, parameters: Parameters) -> Values:
        argv = build_argv(
            self.engine,
            command=("",),
            runtime_args=self.runtime_args,
            extra_args=self.extra_args,
            parameters=parameters,
            raw_flags=self.raw_flags,
            facts={},
        )
        return {**{name: p.unsaid for name, p in self.engine.parameters.items()}, **spoken(self.engine, argv[1:])}
