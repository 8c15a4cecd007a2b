"""What cannot start by plain arithmetic: weights and KV cache against a GPU's memory, sizes that do not divide.

The rules are the engine file's (``fits``). A rule that speaks of anything unknown refuses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from raytune_autotuner.engines.command import gpu_count
from raytune_autotuner.engines.engine import Engine, Fit
from raytune_autotuner.errors import SpecError
from raytune_autotuner.foresight.facts import Facts
from raytune_autotuner.foresight.launch import Launch
from raytune_autotuner.records import Failure, Parameters, ParameterValue
from raytune_autotuner.task.expressions import ExpressionError, parse


@dataclass(frozen=True)
class Unfit:
    """A rule that a configuration breaks."""

    why: str
    arithmetic: str


@dataclass(frozen=True)
class Feasibility:
    """The rules of an engine, with all that is known."""

    launch: Launch
    facts: Facts = field(default_factory=dict)
    gpus: int | None = None
    """What every trial gets, where the task says so."""

    def problem(self, parameters: Parameters) -> Failure | None:
        """Why a configuration surely cannot start, with the arithmetic."""
        found = self.unfit(parameters)
        return None if found is None else Failure("pruned", f"cannot start; {found.why}: {found.arithmetic}")

    def unfit(self, parameters: Parameters) -> Unfit | None:
        if (wanted := self._gpus(parameters)) is not None and self.gpus is not None and wanted > self.gpus:
            return Unfit("it takes more GPUs than a trial is given", f"{wanted} > {self.gpus} (resources.gpus)")
        said = self.launch.values(parameters).items()
        values: dict[str, ParameterValue] = {n: v for n, v in said if v is None or isinstance(v, str | int | float)}
        known = _with_terms(self.launch.engine, {**values, **self.facts})
        found = (_broken(rule, self.launch.engine, known) for rule in self.launch.engine.fits)
        return next((unfit for unfit in found if unfit is not None), None)

    def _gpus(self, parameters: Parameters) -> int | None:
        if self.gpus is None:
            return None
        try:
            args = (*self.launch.runtime_args, *self.launch.extra_args)
            return gpu_count(self.launch.engine, parameters, args)
        except SpecError:
            return None

    def count(self, configurations: Iterable[Parameters]) -> Counter[str]:
        """How many cannot start, by the reason in words."""
        return Counter(unfit.why for each in configurations if (unfit := self.unfit(each)) is not None)


def _with_terms(engine: Engine, known: dict[str, ParameterValue]) -> dict[str, ParameterValue]:
    for name, formula in engine.terms.items():
        with suppress(ExpressionError):  # it speaks of something unknown, and so does every rule that needs it
            known[name] = parse(formula).evaluate(known)
    return known


def _broken(rule: Fit, engine: Engine, known: Mapping[str, ParameterValue]) -> Unfit | None:
    try:
        if rule.must is not None:
            sides, broken = "", not parse(rule.must).evaluate(known)
        else:
            need, have = (float(parse(text).evaluate(known)) for text in (rule.need or "", rule.have or ""))
            sides, broken = f"{need:.1f} GiB > {have:.1f} GiB; ", need > have
    except (ExpressionError, ValueError):
        return None
    text = rule.must or f"{rule.need} <= {rule.have}"
    names = sorted({*rule.names, *(part for name in rule.names for part in engine.parts(name))})
    with_ = ", ".join(f"{n}={_short(known[n])}" for n in names if known.get(n) is not None)
    return Unfit(rule.why, f"{sides}`{text}` does not hold with {with_}") if broken else None


def _short(value: ParameterValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
