"""A trial in virtual time: what each step costs and what it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytune_autotuner.objectives import OBJECTIVES
from raytune_autotuner.proposal import Ending, Proposal, report
from raytune_autotuner.records import Failure, Outcome, Phase, Rung, Score
from tests.emulator.simulation.luck import Luck
from tests.emulator.simulation.measuring import Fact, Row
from tests.emulator.simulation.study import World


@dataclass(frozen=True)
class Step:
    """From one report of a trial to the next."""

    seconds: Mapping[Phase, float]
    result: dict[str, Any]

    @property
    def duration_s(self) -> float:
        return sum(self.seconds.values())


@dataclass
class SimulatedTrial:
    """What Tune's controller, and so a scheduler, sees as a trial; ``step`` is its actor."""

    trial_id: str
    config: dict[str, Any]
    world: World
    row: Row
    rungs: Sequence[Rung]
    """Those that it runs, of the study's."""
    node: str = ""
    started_s: float = 0.0
    spent: dict[Phase, float] = field(default_factory=dict)
    """GPU-seconds by phase."""
    outcome: Outcome | None = None
    scores: list[Score] = field(default_factory=list)
    _slowness: float = 1.0

    @property
    def proposal(self) -> Proposal:
        return Proposal.from_config(self.config)

    def place(self, node: str, now_s: float, luck: Luck) -> None:
        self.node, self.started_s = node, now_s
        self._slowness = luck.slowness(self.proposal.parameters, self.proposal.trial.repeat, node, now_s)

    def step(self, now_s: float, luck: Luck) -> Step:
        """Deploy if need be and run the next rung; a trial that ends is torn down within it."""
        costs = self.world.study.costs
        seconds: dict[Phase, float] = {}
        if not self.scores:
            seconds |= {"deploy": costs.deploy_s, "load": self.row.start_s * self._slowness}
        rung = self.rungs[len(self.scores)]
        fact = self._fact(rung)
        traffic_s = (self.row.failing_s if fact is None else fact.duration_s) * self._slowness
        if traffic_s:
            seconds |= {"benchmark": traffic_s, "client": costs.client_s * len(rung.loads) * rung.repeats}
        if fact is None:
            self.outcome = "infeasible"
            seconds["idle"] = costs.notice_s
        else:
            self.scores.append(
                self._score(
                    fact, self._slowness * luck.reading(self.proposal.parameters, self.proposal.trial.repeat, rung)
                )
            )
            self.outcome = "completed" if len(self.scores) == len(self.rungs) else None
        self._cut(seconds, now_s)
        if self.outcome:
            seconds["teardown"] = costs.teardown_s
        return Step(seconds, self.report())

    def report(self) -> dict[str, Any]:
        asha = self.world.task.optimization.scheduler
        factor = 2.0 if asha == "none" else asha.reduction_factor
        last = self.scores[-1] if self.scores else None
        return report(last, len(self.scores), factor, ending=self._ending(), node=self.node)

    def _ending(self) -> Ending | None:
        if self.outcome == "infeasible":
            return Ending(self.outcome, Failure(self.row.failure or "timeout", self.row.reason or "took too long"))
        return Ending(self.outcome) if self.outcome else None

    def _fact(self, rung: Rung) -> Fact | None:
        """``None`` when the configuration does not come so far."""
        if not self.row.feasible and rung.index >= len(self.row.rungs):
            return None
        return self.row.rungs[rung.index]

    def _cut(self, seconds: dict[Phase, float], now_s: float) -> None:
        """End at the trial's deadline whatever takes longer."""
        over_s = now_s - self.started_s + sum(seconds.values()) - self.world.task.optimization.timeout_per_iteration
        if self.row.hangs and self.outcome == "infeasible":
            seconds["idle"] -= over_s
        elif over_s > 0:
            self.outcome = "infeasible"
            seconds["benchmark"] = max(0.0, seconds.get("benchmark", 0.0) - over_s)

    def _score(self, fact: Fact, slowness: float) -> Score:
        name = self.world.task.optimization.objective
        objective = OBJECTIVES[name]
        value = fact.value * slowness if objective.direction == "min" else fact.value / slowness
        loss = value if objective.direction == "min" else -value
        slo = fact.slo * slowness
        return Score(name, value, objective.unit, objective.direction, loss, max(0.0, slo - 1), slo=slo)
