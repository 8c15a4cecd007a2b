"""When a trial is stopped early."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raytune_autotuner.proposal import BUDGET, LOSS, META, Proposal, reports
from raytune_autotuner.records import TrialRecord
from raytune_autotuner.search.source import Judge, Source
from raytune_autotuner.task.spec import Optimization

Void = Callable[[str], bool]
"""Whether a trial that waits for its worker, by Tune's id, is not to begin after all."""
LOOK_S = 1.0


class Evicting(TrialScheduler):
    """Begins trials in the order in which they were proposed, and takes back those that wait for a place that is gone.

    Ray would wait for such a place for ever, without a word. Its own order looks at every trial there ever was, ten
    times a second.
    """

    def __init__(self, void: Void, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._void = void
        self._looked = float("-inf")

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        waiting: list[Trial] = [each for each in tune_controller.get_live_trials() if each.status == Trial.PENDING]
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            for trial in waiting:
                if self._void(trial.trial_id):
                    tune_controller.stop_trial(trial)
        still = (trial for trial in waiting if trial.status == Trial.PENDING)
        return min(still, key=lambda trial: trial.config[META]["number"], default=None)


class Straight(Evicting, FIFOScheduler):
    """Every trial goes to the end."""


class Ladder(Evicting, ASHAScheduler):
    """ASHA over the rungs of one deployment; all but the search's own trials always go to the end.

    The time attribute is ``reduction_factor ** rung``, so that ASHA's milestones are exactly our rungs.
    """

    def __init__(self, reduction_factor: float, total_rungs: int, void: Void = lambda trial: False) -> None:
        super().__init__(
            void,
            time_attr=BUDGET,
            metric=LOSS,
            mode="min",
            grace_period=1,
            max_t=reduction_factor ** (total_rungs - 1),  # any number will do
            reduction_factor=reduction_factor,
        )
        self._reduction_factor = reduction_factor

    def remember(self, records: Iterable[TrialRecord]) -> None:
        """Hear the trials of before, so that those to come are compared with them."""
        for record in records:
            trial = SimpleNamespace(trial_id=record.trial.name, config={META: {"purpose": record.trial.purpose}})
            self.on_trial_add(None, trial)  # a name is all that ASHA needs of a trial
            for result in reports(record, self._reduction_factor):
                if not result["done"]:
                    super().on_trial_result(None, trial, result)  # type: ignore[arg-type]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if not _again(trial):
            super().on_trial_add(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if not _again(trial):
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        if not _again(trial):
            super().on_trial_remove(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if _again(trial):
            return str(TrialScheduler.CONTINUE)
        action: str = super().on_trial_result(tune_controller, trial, result)
        return action if trial.config[META]["purpose"] == "search" else str(TrialScheduler.CONTINUE)


def _again(trial: Any) -> bool:
    """Whether it measures the last rung alone, which is not to be compared with the first one of others."""
    return trial.config[META]["purpose"] in ("control", "confirm")


class JudgedLadder(Ladder):
    """Keeps ASHA's books and lets a judge decide, who knows more: whether a trial may still win."""

    def __init__(self, reduction_factor: float, total_rungs: int, void: Void, judge: Judge) -> None:
        super().__init__(reduction_factor, total_rungs, void)
        self._judge = judge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        super().on_trial_result(tune_controller, trial, result)
        if trial.config[META]["purpose"] != "search" or result["done"]:
            return str(TrialScheduler.CONTINUE)
        parameters = Proposal.from_config(trial.config).parameters
        self._judge.hear(parameters, result)  # the searcher would hear of it only after this
        return str(TrialScheduler.CONTINUE if self._judge.goes_on(parameters) else TrialScheduler.STOP)


def make_scheduler(
    optimization: Optimization,
    total_rungs: int,
    ended: Iterable[TrialRecord] = (),
    source: Source | None = None,
    void: Void = lambda trial: False,
) -> TrialScheduler:
    """The task's way to stop trials early; ``ended`` are those that an experiment that goes on has behind it."""
    if optimization.scheduler == "none" or total_rungs < 2:
        return Straight(void)
    factor = optimization.scheduler.reduction_factor
    ladder = Ladder(factor, total_rungs, void)
    if isinstance(source, Judge):
        ladder = JudgedLadder(factor, total_rungs, void, source)
    ladder.remember(record for record in ended if not record.trial.again)
    return ladder
