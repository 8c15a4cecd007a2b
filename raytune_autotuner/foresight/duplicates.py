"""Configurations that are the same to the engine, though they are written differently.

Two are equal when their command lines say the same, an engine's documented default included. What servers say of
themselves adds to that: a flag that was ignored, a number that was clamped, a value that the engine chose itself. All
of this holds while everything else is equal, since what an engine does to one parameter may depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raytune_autotuner.engines.server_info import reported, same_value
from raytune_autotuner.foresight.cases import Case
from raytune_autotuner.foresight.launch import Launch, Values
from raytune_autotuner.records import Parameters, config_hash


@dataclass(frozen=True)
class _Known:
    parameters: Parameters
    values: Values
    said: Mapping[str, object]
    """What the server reports, by parameter."""


@dataclass
class Equals:
    """The configurations of an experiment, all that are equal under one of them."""

    launch: Launch
    _known: dict[str, _Known] = field(default_factory=dict)
    _kept: set[str] = field(default_factory=set)
    """Parameters of which servers have reported what they were told."""
    _changed: set[str] = field(default_factory=set)
    """Those of which one has reported another number: cut to a limit, or made from it, as half of it is."""

    def learn(self, cases: Iterable[Case]) -> None:
        """Take in what has been measured, with what servers say of themselves."""
        for case in cases:
            if not case.info:
                self.add(case.parameters)
                continue
            values = self.launch.values(case.parameters)
            said = reported(self.launch.engine, case.info)
            self._known[config_hash(case.parameters)] = _Known(case.parameters, values, said)
            for name, value in said.items():
                if _is_number(asked := values.get(name)):
                    (self._kept if same_value(asked, value) else self._changed).add(name)

    def add(self, parameters: Parameters) -> None:
        """A configuration that is going to be measured."""
        self._known.setdefault(config_hash(parameters), _Known(parameters, self.launch.values(parameters), {}))

    def same_as(self, parameters: Parameters) -> Parameters:
        """The one among those known that is equal to this one; itself when there is none."""
        if config_hash(parameters) in self._known:
            return parameters
        values = self.launch.values(parameters)
        found = (known.parameters for known in self._known.values() if self._equal(known, values))
        return next(found, parameters)

    def _equal(self, known: _Known, values: Values) -> bool:
        return all(self._comes_to_the_same(known, name, values.get(name)) for name in _differing(known.values, values))

    def _comes_to_the_same(self, known: _Known, name: str, value: object) -> bool:
        asked, said = known.values.get(name), known.said.get(name)
        if value is None or said is None:
            return False
        if not _is_number(value):
            return same_value(value, said)
        if asked is None:  # the engine's own choice, where its reports are to be trusted
            return same_value(value, said) and name in self._kept - self._changed
        return not same_value(asked, said) and self._clamped(known, name, value)

    def _clamped(self, known: _Known, name: str, value: object) -> bool:
        """Whether it lies between two of which the engine has made the same, all else being equal."""
        for other in self._known.values():
            at = other.values.get(name)
            alike = _differing(other.values, known.values) == {name} and name in other.said
            if alike and same_value(other.said[name], known.said[name]) and _between(value, known.values.get(name), at):
                return True
        return False


def _differing(a: Values, b: Values) -> set[str]:
    return {name for name, _ in a.items() ^ b.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _between(value: object, one: object, other: object) -> bool:
    if not (_is_number(value) and _is_number(one) and _is_number(other)):
        return False
    low, high = sorted((float(str(one)), float(str(other))))
    return low <= float(str(value)) <= high
