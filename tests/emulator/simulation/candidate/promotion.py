"""Who goes on to the next rung, by the judgement of a source that has a model of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ray.tune.schedulers import TrialScheduler

from raytune_autotuner.proposal import META, Proposal
from raytune_autotuner.records import Parameters
from raytune_autotuner.search.ladder import Ladder


class Judge(Protocol):
    """A source that hears every report."""

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        """Take in a report; the same one may come twice."""

    def goes_on(self, parameters: Parameters) -> bool:
        """Whether a trial is worth its next rung."""


class JudgedLadder(Ladder):
    """Keeps ASHA's books, and lets the judge decide; baseline and confirming runs always go to the end."""

    def __init__(self, reduction_factor: float, total_rungs: int, judge: Judge) -> None:
        super().__init__(reduction_factor, total_rungs)
        self._judge = judge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        super().on_trial_result(tune_controller, trial, result)
        if trial.config[META]["purpose"] == "confirm" or result["done"]:
            return str(TrialScheduler.CONTINUE)
        parameters = Proposal.from_config(trial.config).parameters
        self._judge.hear(parameters, result)
        goes_on = trial.config[META]["purpose"] != "search" or self._judge.goes_on(parameters)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)
