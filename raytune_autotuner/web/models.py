"""What the API answers and takes."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raytune_autotuner import redaction
from raytune_autotuner.planning.plan import Plan
from raytune_autotuner.records import Score
from raytune_autotuner.web.cards import Card
from raytune_autotuner.web.problems import Fault
from raytune_autotuner.web.reader import Snapshot
from raytune_autotuner.web.tables import Row


class Answer(BaseModel):
    """Nothing that was not said is in an answer."""

    model_config = ConfigDict(extra="forbid")


class TaskText(BaseModel):
    """A task as its file says it."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(max_length=1_000_000, description="YAML or JSON")


class StartRequest(TaskText):
    name: str | None = Field(None, max_length=80, description="default: the task's name and the time")


class ScoreAnswer(Answer):
    value: float
    unit: str
    objective: str
    direction: str
    keeps_slo: bool

    @classmethod
    def of(cls, score: Score | None) -> ScoreAnswer | None:
        if score is None:
            return None
        return cls(
            value=score.value,
            unit=score.unit,
            objective=score.objective,
            direction=score.direction,
            keeps_slo=not score.violation,
        )


class ExperimentAnswer(Answer):
    """An experiment in a line."""

    name: str
    state: str
    task_name: str
    model: str
    engine: str
    objective: str
    workload: str
    trials_ended: int
    trials_planned: int
    best: ScoreAnswer | None
    gain: float | None
    spent: float
    spent_unit: str
    started_at: datetime | None
    reason: str

    @classmethod
    def of(cls, card: Card) -> ExperimentAnswer:
        return cls(
            name=card.name,
            state=card.state,
            task_name=card.task_name,
            model=card.model,
            engine=card.engine,
            objective=card.objective,
            workload=card.workload,
            trials_ended=card.ended,
            trials_planned=card.planned,
            best=ScoreAnswer.of(card.best),
            gain=card.gain,
            spent=card.spent,
            spent_unit=card.unit,
            started_at=card.started_at,
            reason=redaction.text(card.reason),
        )


class Experiments(Answer):
    experiments: list[ExperimentAnswer]


class ExperimentDetail(Answer):
    """An experiment with its answer so far; ``results`` has every trial."""

    name: str
    state: str
    version: str
    task: dict[str, Any]
    trials_ended: int
    trials_running: int
    trials_planned: int
    waiting: dict[str, str]
    winner: str | None
    recommended: str | None
    best: ScoreAnswer | None
    verdict: dict[str, Any] | None
    refuted: dict[str, str]
    """By trial, why one that might have been the winner did not hold up when it was measured again."""
    ledger: dict[str, Any]
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, seen: Snapshot) -> ExperimentDetail:
        results = seen.results
        return cls(
            name=seen.name,
            state=seen.state,
            version=str(seen.version),
            task=redaction.hidden(seen.task.model_dump(mode="json")),
            trials_ended=len(seen.records),
            trials_running=seen.running,
            trials_planned=seen.planned,
            waiting=dict(seen.waiting),
            winner=results.winner.trial.name if results.winner else None,
            recommended=results.recommended.trial.name if results.recommended else None,
            best=ScoreAnswer.of(seen.best),
            verdict=asdict(results.verdict) if results.verdict else None,
            refuted={record.trial.name: why for record, why in results.refuted},
            ledger=asdict(results.ledger),
            started_at=seen.started_at,
            ended_at=seen.ended_at,
        )


class TrialAnswer(Answer):
    name: str
    number: int
    purpose: str
    standing: str
    phase: str
    reason: str
    rungs: int
    total_rungs: int
    parameters: dict[str, str | int | float | bool | None]
    score: ScoreAnswer | None
    complete: bool
    metrics: dict[str, float]
    wall_s: float
    node: str | None

    @classmethod
    def of(cls, row: Row) -> TrialAnswer:
        return cls(
            name=row.name,
            number=row.number,
            purpose=row.purpose,
            standing=row.standing,
            phase=row.phase,
            reason=redaction.text(row.reason),
            rungs=row.rungs,
            total_rungs=row.total_rungs,
            parameters=redaction.hidden(dict(row.parameters)),
            score=ScoreAnswer.of(row.score),
            complete=row.complete,
            metrics=dict(row.metrics),
            wall_s=row.wall_s,
            node=row.node,
        )


class Trials(Answer):
    trials: list[TrialAnswer]
    total: int
    page: int
    pages: int


class PlanAnswer(Answer):
    """What an experiment will do at most, and how long that takes, at best and at worst."""

    task_name: str
    objective: str
    strategy: str
    points: int
    trials: int
    rungs: int
    gpus_per_trial: tuple[int, int]
    trial_s: tuple[float, float]
    total_s: tuple[float, float]
    gpu_hours: tuple[float, float]
    cost: tuple[float, float] | None
    notes: list[str]
    assumptions: list[str]

    @classmethod
    def of(cls, plan: Plan) -> PlanAnswer:
        return cls(
            task_name=plan.task_name,
            objective=plan.objective,
            strategy=plan.strategy,
            points=plan.points,
            trials=plan.trials,
            rungs=len(plan.rungs),
            gpus_per_trial=plan.gpus,
            trial_s=plan.trial_s,
            total_s=plan.total_s,
            gpu_hours=plan.gpu_hours,
            cost=plan.cost,
            notes=list(plan.notes),
            assumptions=list(plan.assumptions),
        )


class Validation(Answer):
    valid: bool
    faults: list[Fault]
    plan: PlanAnswer | None


class Started(Answer):
    name: str
    """Of the experiment; its folder appears when it has begun."""


class LogAnswer(Answer):
    file: str
    files: list[str]
    text: str
    """The end of it."""
