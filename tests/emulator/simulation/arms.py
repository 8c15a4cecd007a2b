"""What is compared: this program as it is and as it might be, and the plain searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import TrialScheduler

from raytune_autotuner.planning.space import Space
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import Failure, Parameters, TrialId, TrialRecord
from raytune_autotuner.search import Limits, Proposer, RandomSource, Source, make_scheduler, make_source
from raytune_autotuner.task.spec import Asha, Optimization, Task
from raytune_autotuner.verdict import Ask
from tests.emulator.simulation.candidate.model import ModelSource
from tests.emulator.simulation.candidate.promotion import JudgedLadder
from tests.emulator.simulation.controller import History
from tests.emulator.simulation.plain import PLAIN, Arm, play, too_large
from tests.emulator.simulation.study import World
from tests.emulator.simulation.table import Table

MODEL_TRIALS = 60


class OpenGate:
    """An experiment that says no to what its nodes cannot hold, and to nothing else."""

    def __init__(self, world: World) -> None:
        self._world = world

    def confirming(self, baseline: str, winner: str) -> Sequence[Ask]:
        """Nothing: what is found in the end is judged by the table."""
        return ()

    def problem(self, parameters: Parameters) -> Failure | None:
        reason = too_large(self._world, parameters)
        return None if reason is None else Failure("no_fit", reason)

    def same_as(self, parameters: Parameters) -> Parameters:
        return parameters

    def enough(self) -> str | None:
        return None

    def refuse(self, proposal: Proposal, failure: Failure) -> None:
        pass

    def repeated(self, config: str) -> None:
        pass

    def stop_requested(self) -> bool:
        return False

    def ended(self, trial: TrialId) -> TrialRecord | None:
        """Whoever raises has failed, as far as anyone knows, and is not tried again."""
        return TrialRecord(trial, self._world.study.name, 0, {}, "failed", "")


SourceOf = Callable[[Task, Space], Source]


def ours(
    table: Table,
    seed: int,
    *,
    source: SourceOf = make_source,
    raising: bool = False,
    changes: Mapping[str, Any] | None = None,
    ladder: Callable[[Any, int, Any], TrialScheduler] | None = None,
) -> History:
    """This program: ``Proposer`` and scheduler as an experiment makes them; ``changes`` are to ``optimization``."""
    world = table.world
    optimization = world.task.optimization.model_copy(update={"seed": seed, **(changes or {})})
    task = world.task.model_copy(update={"optimization": optimization})
    rungs = world.rungs if optimization.scheduler != "none" else world.rungs[-1:]
    made = source(task, world.space)
    proposer = Proposer(
        made,
        fallback=RandomSource(world.space, seed + 1),
        limits=Limits(optimization.max_iterations),
        gate=OpenGate(world),
        clock=lambda: 0.0,
    )
    search = Hearing(proposer, made) if hasattr(made, "hear") else proposer
    rule = ladder(optimization, len(rungs), made) if ladder else make_scheduler(optimization, len(rungs))
    return play(table, seed, search, rule, rungs, raising)


class Hearing:
    """Lets a source hear every report."""

    def __init__(self, proposer: Proposer, source: Any) -> None:
        self._proposer, self._hear, self.winner = proposer, source.hear, source.winner
        self._parameters: dict[str, Parameters] = {}

    def suggest(self, trial_id: str) -> Any:
        config = self._proposer.suggest(trial_id)
        if isinstance(config, dict):
            self._parameters[trial_id] = Proposal.from_config(config).parameters
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._hear(self._parameters[trial_id], result)
        self._proposer.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result is not None:
            self._hear(self._parameters[trial_id], result)
        self._proposer.on_trial_complete(trial_id, result, error)


def default(table: Table, seed: int) -> History:
    return ours(table, seed)


def model(table: Table, seed: int) -> History:
    """The model-based source, with a ladder that it judges, at what is to be the default for it."""
    world = table.world

    def source(task: Task, space: Space) -> Source:
        return ModelSource(space, task.optimization.seed, total_rungs=len(world.rungs), cost=world.gpus)

    def ladder(optimization: Optimization, rungs: int, made: Any) -> TrialScheduler:
        return JudgedLadder(optimization.scheduler.reduction_factor, rungs, made)  # type: ignore[union-attr]

    return ours(
        table, seed, source=source, ladder=ladder, changes={"scheduler": Asha(), "max_iterations": MODEL_TRIALS}
    )


def ladder(table: Table, seed: int) -> History:
    """The default with ASHA."""
    return ours(table, seed, changes={"scheduler": Asha()})


def unaware(table: Table, seed: int) -> History:
    """The default, but a configuration that cannot work is an error like any other."""
    return ours(table, seed, raising=True)


OURS: Mapping[str, Arm] = {"default": default, "unaware": unaware, "ladder": ladder, "model": model}
ARMS: Mapping[str, Arm] = {**OURS, **PLAIN}
