"""What is compared: this program, this program without a part of it, and the plain searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raytune_autotuner.foresight import Launch, Roofline
from raytune_autotuner.foresight.facts import Facts
from raytune_autotuner.planning.plan import ladder
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import Failure, Parameters, TrialId, TrialRecord, config_hash
from raytune_autotuner.search import Lessons, Limits, Proposer, RandomSource, make_scheduler, make_source
from raytune_autotuner.task.spec import Task
from raytune_autotuner.verdict import Ask
from raytune_autotuner.warm_start import engine_points
from tests.emulator.simulation import known
from tests.emulator.simulation.controller import History
from tests.emulator.simulation.experience import Experience, Experienced
from tests.emulator.simulation.plain import PLAIN, Arm, play, too_large
from tests.emulator.simulation.study import World
from tests.emulator.simulation.table import Table

TRIALS = 100
"""Budget of this program's arms; the plain ones have more (``plain_trials``), and the grid all that it has."""


class OpenGate:
    """An experiment that says no to what its nodes cannot hold, and to what must fail as others have."""

    def __init__(self, world: World, experience: Experience | None = None) -> None:
        self._world, self._experience = world, experience
        self._end: str | None = None

    def champion(self) -> Parameters | None:
        """Nobody, for the same reason."""
        return None

    def confirming(self, baseline: str, winner: str) -> Sequence[Ask]:
        """Nothing: what is found in the end is judged by the table."""
        return ()

    def problem(self, parameters: Parameters) -> Failure | None:
        reason = too_large(self._world, parameters)
        if reason is not None:
            return Failure("no_fit", reason)
        return self._experience.problem(parameters) if self._experience else None

    def same_as(self, parameters: Parameters) -> Parameters:
        return self._experience.same_as(parameters) if self._experience else parameters

    def enough(self) -> str | None:
        return self._end

    def settled(self, reason: str) -> None:
        self._end = reason

    def refuse(self, proposal: Proposal, failure: Failure) -> None:
        pass

    def affords(self, parameters: Parameters) -> bool:
        return True

    def unpaid(self) -> None:
        pass

    def give_up(self, proposal: Proposal) -> None:
        pass

    def repeated(self, config: str) -> None:
        pass

    def stop_requested(self) -> bool:
        return False

    def ended(self, trial: TrialId) -> TrialRecord | None:
        """Whoever raises has failed, as far as anyone knows, and is not tried again."""
        return TrialRecord(trial, self._world.study.name, 0, {}, "failed", "")


def ours(
    table: Table, seed: int, *, raising: bool = False, cold: bool = False, facts: Facts | None = None, **changes: Any
) -> History:
    """This program: source, ``Proposer`` and scheduler of an experiment; ``changes`` are to ``optimization``.

    ``cold`` begins without the points of the engine file; ``facts`` are what is known of model and GPU in place of all.
    """
    world = table.world
    said = {"max_iterations": TRIALS, **changes, "seed": seed}
    task = world.task.model_copy(update={"optimization": world.task.optimization.model_copy(update=said)})
    rungs = ladder(task)
    lessons = _lessons(task, world, cold, known.facts(world) if facts is None else facts)
    source = make_source(task, world.space, lessons, world.gpus)
    experience = None if raising else Experience(table)
    proposer = Proposer(
        source,
        fallback=RandomSource(world.space, seed + 1),
        limits=Limits(
            task.optimization.max_iterations,
            task.optimization.baseline_every,
            task.optimization.stop_after_hopeless_trials,
        ),
        gate=OpenGate(world, experience),
        clock=lambda: 0.0,
    )
    search = Experienced(proposer, experience) if experience else proposer
    return play(table, seed, search, make_scheduler(task.optimization, len(rungs), (), source), rungs, raising)


def _lessons(task: Task, world: World, cold: bool, facts: Facts) -> Lessons:
    """What a search begins with in a storage without earlier experiments."""
    launch = Launch(world.engine, world.args)
    usual, roofline = launch.usual(), Roofline.of(task, launch, facts)
    expects = roofline.expects if roofline else None
    points = [] if cold else engine_points(world.engine, world.space, usual, expects)
    free = {config_hash(point.parameters): point.free for point in points}
    return Lessons(first=tuple(point.parameters for point in points), free=free, usual=usual, expects=expects)


def default(table: Table, seed: int) -> History:
    """What a task gets that says nothing of how to search."""
    return ours(table, seed)


def unaware(table: Table, seed: int) -> History:
    """The default, but a configuration that cannot work is an error like any other."""
    return ours(table, seed, raising=True)


def cold(table: Table, seed: int) -> History:
    """The default, but it begins without what the engine file holds worth trying first (``warm_start: false``)."""
    return ours(table, seed, cold=True)


def endless(table: Table, seed: int) -> History:
    """The default, but it goes on until its trials are used up, whatever they promise."""
    return ours(table, seed, stop_after_hopeless_trials=None)


def unknown(table: Table, seed: int) -> History:
    """The default, with a model and GPUs of which nothing is known beforehand."""
    return ours(table, seed, facts={})


def misled(table: Table, seed: int) -> History:
    """The default, told that memory is half as fast as it is, that links are four times as fast, and products twice."""
    wrong = {"gpu_gb_s": 0.5, "link_gb_s": 4.0, "gpu_tflops": 2.0}
    facts = {name: value * wrong.get(name, 1.0) for name, value in known.facts(table.world).items()}
    return ours(table, seed, facts=facts)


def whole(table: Table, seed: int) -> History:
    """The default without a ladder."""
    return ours(table, seed, scheduler="none")


def tpe(table: Table, seed: int) -> History:
    """HyperOpt's TPE as this program wraps it, with ASHA."""
    return ours(table, seed, strategy="bayesian")


OURS: Mapping[str, Arm] = {
    "default": default,
    "cold": cold,
    "endless": endless,
    "unknown": unknown,
    "misled": misled,
    "unaware": unaware,
    "whole": whole,
    "tpe": tpe,
}
ARMS: Mapping[str, Arm] = {**OURS, **PLAIN}
