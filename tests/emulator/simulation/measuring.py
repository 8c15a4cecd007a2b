"""What one configuration is really worth: a whole trial by way of the performance model, without noise."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from raytune_autotuner.engines.failures import classify
from raytune_autotuner.errors import FailureClass
from raytune_autotuner.metrics import error_ratio, steady, summarise
from raytune_autotuner.objectives import OBJECTIVES, Context, strain
from raytune_autotuner.records import Load, LoadMetrics, Metrics, Parameters, Rung
from tests.emulator.engine import model
from tests.emulator.engine.model import Engine, EngineFailure, Measured
from tests.emulator.engine.profile import Noise
from tests.emulator.simulation.study import World


@dataclass(frozen=True)
class Fact:
    """One rung of one configuration."""

    duration_s: float
    value: float
    """Of the objective."""
    slo: float
    """The worst metric relative to its limit; more than 1 breaks it."""


@dataclass(frozen=True)
class Row:
    """One configuration."""

    gpus: int
    start_s: float
    """Until the engine is ready, or has failed to be."""
    rungs: tuple[Fact, ...] = ()
    """As far as it came."""
    failure: FailureClass | None = None
    failing_s: float = 0.0
    """Until it fails in the rung after those."""
    hangs: bool = False
    reason: str = ""
    """Of the failure, without its numbers."""

    @property
    def feasible(self) -> bool:
        return self.failure is None


def measure(world: World, parameters: Parameters) -> Row:
    """A row, by way of the performance model."""
    still = world.profile.model_copy(update={"noise": Noise(step_cv=0.0, run_cv=0.0)})
    gpus = world.gpus(parameters)
    try:
        engine = model.start(still, world.engine.name, world.values(parameters), gpus=gpus)
    except EngineFailure as error:
        return _broken(world, Row(gpus, _failing_s(world, error)), error)
    rungs: list[Fact] = []
    for rung in world.rungs:
        loads, failure = _loads(world, engine, rung)
        duration_s = rung.repeats * sum(load.duration_s for load in loads)
        if failure:
            return _broken(world, Row(gpus, engine.load_s, tuple(rungs), failing_s=duration_s), failure)
        rungs.append(_fact(loads, rung, duration_s, Context(gpus, world.task.optimization)))
    return Row(gpus, engine.load_s, tuple(rungs))


def _broken(world: World, row: Row, failure: EngineFailure) -> Row:
    kind = "not_ready" if failure.hang else classify(world.engine, failure.message, 1).kind
    return replace(row, failure=kind, hangs=failure.hang, reason=re.sub(r"[0-9.]+", "#", failure.message))


def _failing_s(world: World, failure: EngineFailure) -> float:
    """A wrong flag shows before the weights are read, missing memory thereafter."""
    start, shape = world.profile.start, world.profile.model
    weights_s = shape.parameters_b * shape.bytes_per_parameter / start.load_gb_s
    return start.init_s + (weights_s if failure.out_of_memory else 0.0)


def _loads(world: World, engine: Engine, rung: Rung) -> tuple[list[LoadMetrics], EngineFailure | None]:
    """The loads of a rung, up to the one in which the engine fails."""
    found: list[LoadMetrics] = []
    for load in rung.loads:
        wanted = model.Load(load.scenario, load.level, rung.requests(load.level), 60.0 * rung.max_minutes)
        measured = engine.measure(wanted)
        found.append(_load(load, measured))
        if measured.failure:
            return found, measured.failure
    return found, None


def _load(load: Load, measured: Measured) -> LoadMetrics:
    samples, answered = steady(measured.samples, load.level), len(measured.samples.e2e_s)
    ratio = error_ratio(measured.errors, answered)
    values = summarise(samples, load.level, ratio)
    return LoadMetrics(load, load.level, answered, measured.errors, measured.duration_s, values, samples)


def _fact(loads: Iterable[LoadMetrics], rung: Rung, duration_s: float, context: Context) -> Fact:
    found = Metrics(rung.index, tuple(loads), duration_s, 0.0)
    value = OBJECTIVES[context.optimization.objective].value(found, context)
    return Fact(duration_s, value, strain(found, context.optimization.slo) or 0.0)
