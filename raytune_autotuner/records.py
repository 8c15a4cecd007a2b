"""The values handed between the stages of an experiment, and their JSON form.

Everything here is a frozen dataclass of plain numbers and text in SI units (seconds, tokens/s).
``to_json`` and ``from_json`` are exact inverses for every record.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from raytune_autotuner.errors import FailureClass

ParameterValue = str | int | float | bool | None
Parameters = Mapping[str, ParameterValue]
"""Engine parameters by name. ``True`` is a bare flag, ``False`` and ``None`` leave the flag out."""

Purpose = Literal["baseline", "search", "control", "confirm", "single"]
"""``control`` is the baseline again, in the midst of the search, to see what drifts."""
Outcome = Literal["completed", "stopped", "infeasible", "failed"]
Phase = Literal["queue", "schedule", "deploy", "pull", "load", "client", "warmup", "benchmark", "teardown", "idle"]
"""``queue`` is the wait for a reservation, ``schedule`` that for a node of the cluster, ``pull`` that for image and
volumes; ``client`` is what the benchmark client adds to the traffic, and ``idle`` is waiting for a decision."""
Direction = Literal["min", "max"]

EXPERIMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
"""Names one folder of a storage, and no other place."""

T = TypeVar("T")
Tried = TypeVar("Tried", bound="TrialRecord | TrialState")


def config_hash(parameters: Parameters) -> str:
    """Twelve hex digits that identify a configuration, whatever the order of its parameters."""
    canonical = json.dumps(dict(parameters), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class TrialId:
    """Names a trial from what it measures, so that any process can find what belongs to it."""

    purpose: Purpose
    config: str
    repeat: int = 0

    @property
    def again(self) -> bool:
        """Whether it measures the whole workload of a configuration that has a trial of its own."""
        return self.purpose in ("control", "confirm")

    @property
    def name(self) -> str:
        return f"{self.purpose}-{self.config}" + (f"-{self.repeat}" if self.repeat else "")


@dataclass(frozen=True)
class Endpoint:
    """A ready server: where it is and what it says about itself."""

    url: str
    """Base URL without ``/v1``."""
    model_name: str
    info: Mapping[str, Any] = field(default_factory=dict)
    """What the server reports of its own configuration, as it reports it."""
    argv: tuple[str, ...] = ()
    metrics_url: str | None = None
    adopted: bool = False
    """Whether it was there already, left by a worker that is gone."""
    leftover: bool = False
    """Whether such a worker had left anything, adopted or removed, which held its GPUs until now."""


@dataclass(frozen=True)
class Load:
    """One cell of a workload: a traffic scenario at one level of concurrency (or batch size)."""

    scenario: str
    level: int


@dataclass(frozen=True)
class LevelSearch:
    """Between which levels of concurrency the knee is looked for, and how exactly (see ``capacity``)."""

    low: int
    high: int
    tolerance: float
    """The level that breaks the SLO lies at most this share above the one that keeps it, or 1 above it."""


@dataclass(frozen=True)
class Rung:
    """One benchmark stage: which loads, for how many requests or how long at each."""

    index: int
    loads: tuple[Load, ...]
    max_requests: int
    max_minutes: int
    repeats: int = 1
    levels: LevelSearch | None = None
    """When given, each load begins a search for the highest level that keeps the SLO, and its own is tried first."""

    def requests(self, concurrency: int) -> int:
        """How many requests a load sends: two waves at least, because the first one does not count."""
        return max(self.max_requests, 2 * concurrency)


@dataclass(frozen=True)
class RequestSamples:
    """The requests of one load that count, in the order they finished; tuples of equal length."""

    ttft_s: tuple[float, ...]
    tpot_s: tuple[float | None, ...]
    """Time per output token; ``None`` where the answer was too short to have one."""
    e2e_s: tuple[float, ...]
    input_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]


@dataclass(frozen=True)
class LoadMetrics:
    """What one load measured. ``values`` holds the metrics that ``metrics.METRICS`` names."""

    load: Load
    concurrency: int
    completed: int
    """All that were answered; ``samples`` has those after the first wave (see ``metrics.steady``)."""
    errors: int
    duration_s: float
    values: Mapping[str, float]
    samples: RequestSamples
    error_codes: Mapping[str, int] = field(default_factory=dict)
    reported: Mapping[str, float] = field(default_factory=dict)
    """genai-bench's own figures, kept beside ours (same units)."""
    client_cpu: float | None = None
    """Cores that the client used while it sent. It has one at most: near 1 the client sets the pace, not the engine."""
    cut: str = ""
    """Why it was ended before its end, if it was; then it holds what was answered until then."""


@dataclass(frozen=True)
class EngineStats:
    """The engine's own Prometheus metrics over one rung, by the names the engine file gives them.

    Gauges are summarised as ``<name>_mean`` and ``<name>_max``; counters as their increase.
    """

    samples: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class EngineSeries:
    """The same as it went, thinned out where a rung is long."""

    seconds: tuple[float, ...]
    """Since the rung began."""
    values: Mapping[str, tuple[float | None, ...]]
    """One for each of ``seconds``; of counters what they have grown since the rung began."""
    loads: tuple[tuple[float, str], ...] = ()
    """When each load began, and which."""


@dataclass(frozen=True)
class Metrics:
    """What one rung measured."""

    rung: int
    loads: tuple[LoadMetrics, ...]
    traffic_s: float
    """Seconds during which requests were being sent, over all loads."""
    client_overhead_s: float
    """Seconds of the rung's wall time that the benchmark client spent on anything else."""


@dataclass(frozen=True)
class Score:
    """One number per objective. ``loss`` is smaller-is-better whatever the direction."""

    objective: str
    value: float
    unit: str
    direction: Direction
    loss: float
    violation: float
    """0 when the SLO is kept, else the largest relative excess over a limit (0.5 = 50 % over)."""
    worst: str = ""
    """The SLO limit that is exceeded most, in words; empty when all are kept."""
    at: str = ""
    """The level of concurrency that it holds for, in words, where that was searched."""
    slo: float | None = None
    """The metric that is nearest to its limit, or furthest beyond, relative to that limit; ``None`` without limits."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Of many objectives, the value of each."""


@dataclass(frozen=True)
class Probe:
    """One level that a search for the knee has tried."""

    level: int
    kept: bool
    """Whether the SLO was kept at it."""
    worst: str
    """The limit that is exceeded most, or what else went wrong, in words; empty when the SLO was kept."""
    goodput_requests_per_s: float | None
    goodput_tokens_per_s: float | None
    duration_s: float


@dataclass(frozen=True)
class Knee:
    """How much concurrency a configuration bears under the SLO, for one traffic scenario."""

    scenario: str
    level: int | None
    """The highest level that kept the SLO; ``None`` when none that was tried did."""
    breaks: int | None
    """The lowest level that broke it; ``None`` when none did."""
    probes: tuple[Probe, ...]
    """In the order in which they were tried."""
    reachable: Mapping[str, float] = field(default_factory=dict)
    """When every level broke the SLO: the tightest limits that the lowest one would have kept."""
    note: str = ""
    """Why the search ended where it did, when that was not its tolerance."""


@dataclass(frozen=True)
class RungRecord:
    rung: int
    metrics: Metrics
    """Where the level was searched: those of the knee, or of the lowest level measured if there is no knee."""
    score: Score
    wall_s: float
    engine: EngineStats | None = None
    knees: tuple[Knee, ...] = ()
    """One for each traffic scenario, where the level was searched."""
    notes: tuple[str, ...] = ()
    """What may have spoiled the measurement."""
    cut: Failure | None = None
    """Why the rung was ended before its end, if it was: ``violation`` is then what it had come to, at least."""


@dataclass(frozen=True)
class Answers:
    """What a trial answered to the prompts of the quality canary (see ``canary``)."""

    prompts: tuple[str, ...]
    rounds: tuple[tuple[str, ...], ...]
    """The answers in the order of the prompts, once for each time that they were asked."""


@dataclass(frozen=True)
class Failure:
    kind: FailureClass
    reason: str
    log_tail: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Reused:
    """Where a measurement was taken over from."""

    experiment: str
    trial: str
    """Its name there."""
    measured_at: str
    """UTC, ISO 8601."""
    held_s: float
    """GPU-seconds that it cost there (machine-seconds where it had no GPU)."""


@dataclass(frozen=True)
class TrialRecord:
    """Everything that is known about a trial once it has ended."""

    trial: TrialId
    experiment: str
    number: int
    """Order of proposal, from 0 (the baseline)."""
    parameters: Parameters
    outcome: Outcome
    started_at: str
    """UTC, ISO 8601."""
    rungs: tuple[RungRecord, ...] = ()
    total_rungs: int = 0
    score: Score | None = None
    """The score at the last rung; present only when that rung was finished."""
    failure: Failure | None = None
    argv: tuple[str, ...] = ()
    gpus: int = 0
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase (see ``Phase``)."""
    command: tuple[str, ...] = ()
    """``argv`` before the backend filled in ``{host}``, ``{port}`` and ``{python}``, whole words each."""
    engine_info: Mapping[str, Any] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    """Where the server says it runs something else than was asked."""
    notes: tuple[str, ...] = ()
    """What of the task was without effect on how this was measured."""
    node: str | None = None
    """The node of the cluster that it ran on; ``None`` when that is not known, or was several."""
    reused_from: Reused | None = None
    """The earlier experiment that measured this; ``None`` when this one did."""

    @property
    def wall_s(self) -> float:
        """From its proposal to its end."""
        return sum(self.phases.values())

    @property
    def since_start_s(self) -> float:
        """From ``started_at`` to its end: it waited for its turn before that."""
        return self.wall_s - self.phases.get("queue", 0.0)


@dataclass(frozen=True)
class SearchEnd:
    """Why a search ended before its trials were used up."""

    cause: Literal["identical_failures", "settled"]
    """``settled``: nothing that is left to try is expected to be better."""
    reason: str
    kind: FailureClass | None = None
    """Of the failures."""
    count: int = 0
    log_tail: str = ""
    max_trials: int = 0
    """That the search might have had, when it settled …"""
    searched: str = ""
    """… and what it searched, as a hash."""

    @property
    def said(self) -> str:
        begin = "Nothing is left to gain" if self.cause == "settled" else "The search ended early"
        return f"{begin}: {self.reason}."


@dataclass(frozen=True)
class TrialState:
    """Where a trial stands now; rewritten at each change while it runs."""

    trial: TrialId
    number: int
    parameters: Parameters
    phase: str
    detail: str
    rung: int
    total_rungs: int
    started_at: str
    updated_at: str
    outcome: Outcome | None = None
    score: Score | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase until ``updated_at``."""
    node: str | None = None
    """The node of the cluster that the trial was given; ``None`` when it was given none or several."""
    gpus: int = 0
    unattended_s: float = 0.0
    """Before this worker began, after an earlier one died; nobody knows yet whether its engine was up all the while."""


@dataclass(frozen=True)
class BudgetState:
    """What the driver last said of the budget (``budget.json`` in the experiment folder)."""

    elapsed_s: float
    search: str | None = None
    """Why the search ended before its trials were used up, when the budget is why."""
    confirming: str | None = None
    """Why fewer confirming runs were made than the verdict wanted."""
    gpu_s: float | None = None
    """The limits that this was said of (see ``budget.Limits``)."""
    wall_s: float | None = None


def to_json(record: Any) -> str:
    """A record as indented JSON."""
    return _adapter(type(record)).dump_json(record, indent=1).decode()


def from_json(kind: type[T], text: str | bytes) -> T:
    """The record that ``to_json`` wrote.

    Raises:
        pydantic.ValidationError: the text is not such a record.
    """
    found: T = _adapter(kind).validate_json(text)
    return found


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    """Made once: that takes 50 times as long as using it."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def did_not_hold_up(run: TrialRecord | TrialState) -> bool:
    """Whether a confirming run failed by its configuration's fault, or broke the SLO."""
    broke = run.outcome == "completed" and run.score is not None and run.score.violation > 0
    return run.trial.purpose == "confirm" and (run.outcome == "infeasible" or broke)


def refuted_configs(runs: Iterable[TrialRecord | TrialState]) -> frozenset[str]:
    """The configurations that did not hold up when they were measured again; the baseline is never one of them."""
    return frozenset(run.trial.config for run in runs if did_not_hold_up(run)) - {config_hash({})}


def eligible(trials: Sequence[Tried], gone: Container[str]) -> list[Tried]:
    """Of those that might be the best: whose configuration was not refuted, or all as long as there is no other."""
    return [each for each in trials if each.trial.config not in gone] or list(trials)
