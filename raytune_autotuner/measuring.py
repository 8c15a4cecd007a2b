"""Measures the rungs of one deployment, each load by itself.

A rung is its loads one after the other, or, where the objective is about the level of concurrency, a search for the
highest level that keeps the SLO (see ``capacity``) with one load for each level that is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raytune_autotuner.benchmarks import Answered, Check
from raytune_autotuner.capacity import next_level
from raytune_autotuner.cutoff import Course, hopeless
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import TrialInfeasible
from raytune_autotuner.goodput import with_goodput
from raytune_autotuner.metrics import merge
from raytune_autotuner.objectives import Context, loosened, reachable, upper_limits, violation
from raytune_autotuner.records import Failure, Knee, Load, Metrics, Probe, Rung

TIME_FACTOR = 1.5
"""Another level is tried when this many times the longest load so far fits into what is left of the trial."""
CLIENT_LIMIT = 0.9
"""Of its one core: from here on the client may be what is measured."""
OVERLOAD = ("request_errors", "timeout")
"""What a level may be too high for, unless it is the lowest."""


@dataclass(frozen=True)
class Measured:
    """What one rung has come to."""

    metrics: Metrics
    knees: tuple[Knee, ...] = ()
    cut: Failure | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What the measuring of a rung needs of its trial."""

    context: Context
    deadline: Deadline
    run: Callable[[Rung, str, Check], Metrics]
    """Measures one load once; the text is a name for it within the rung, empty when it is the rung's only one."""
    reset: Callable[[], str | None] = lambda: None
    """Empties the engine's caches; why they may not be empty, in words."""
    cuts: bool = False
    """Whether loads that are hopeless are ended."""
    queue: Callable[[], Sequence[float]] = tuple
    """The engine's queue since the rung began, looked at regularly."""
    slack: float = 1.0
    """So many times as far away are the limits beyond which a load is hopeless."""

    @property
    def slo(self) -> dict[str, float]:
        return self.context.optimization.slo

    @property
    def bounds(self) -> dict[str, float]:
        """Limits beyond which a load is hopeless."""
        return loosened(self.slo, self.slack)


def measure(rung: Rung, bench: Bench) -> Measured:
    """One rung; raises what a benchmark raises (see ``benchmarks.Benchmark``)."""
    notes: list[str] = []
    runs = _Runs(bench, notes)
    found = _searched(rung, bench, runs) if rung.levels is not None else _fixed(rung, bench, runs)
    metrics = with_goodput(found.metrics, bench.slo)
    return replace(found, metrics=metrics, notes=tuple(dict.fromkeys(notes)))


def _fixed(rung: Rung, bench: Bench, runs: _Runs) -> Measured:
    """Its loads in turn, up to one with which the SLO is lost for the whole rung."""
    found: list[Metrics] = []
    cut = None
    for n, load in enumerate(rung.loads):
        metrics, cut = runs.load(rung, load, "" if len(rung.loads) == 1 else f"load-{n}", may_cut=True)
        found.append(metrics)
        if cut is None and n + 1 < len(rung.loads):
            cut = _lost_for_all(metrics, bench)
        if cut is not None:
            break
    return Measured(_together(rung, found, found), cut=cut)


def _lost_for_all(metrics: Metrics, bench: Bench) -> Failure | None:
    """A limit that this load broke is one that every load has to keep."""
    excess, worst = violation(metrics, upper_limits(bench.bounds)) if bench.cuts else (0.0, "")
    level = metrics.loads[0].load.level
    return Failure("slo_lost", f"{worst} at {level} in flight, which the other loads cannot mend") if excess else None


@dataclass(frozen=True)
class _Runs:
    """Runs loads under equal conditions, and collects what may have spoiled that."""

    bench: Bench
    notes: list[str]

    def load(self, rung: Rung, load: Load, name: str, *, may_cut: bool) -> tuple[Metrics, Failure | None]:
        """One load, as often as the rung says, as one; and why it was cut short, if it was."""
        one = replace(rung, loads=(load,), repeats=1, levels=None)
        names = [name] if rung.repeats == 1 else [f"{name}-repeat-{n}".lstrip("-") for n in range(rung.repeats)]
        found, cut = [], None
        for each in names:
            metrics, cut = self._once(one, load, each, may_cut and self.bench.cuts)
            found.append(metrics)
            if cut is not None:
                break
        merged = merge([metrics.loads[0] for metrics in found])
        return replace(_together(rung, found, found), loads=(merged,)), cut

    def _once(self, rung: Rung, load: Load, name: str, may_cut: bool) -> tuple[Metrics, Failure | None]:
        if (reason := self.bench.reset()) is not None:
            self.notes.append(f"the engine's caches were not empty before each load: {reason}")
        watch = _Watch(rung, load, self.bench, len(self.bench.queue())) if may_cut else _unwatched
        metrics = self.bench.run(rung, name, watch)
        for measured in metrics.loads:
            if measured.client_cpu is not None and measured.client_cpu >= CLIENT_LIMIT:
                self.notes.append(
                    f"the benchmark client used {measured.client_cpu:.0%} of its core at {load.level} in flight: what "
                    f"was measured there is in part the client, not the engine"
                )
        return metrics, watch.cut if isinstance(watch, _Watch) and metrics.loads[0].cut else None


def _unwatched(answered: Answered | None = None) -> str | None:
    return None


@dataclass
class _Watch:
    """Looks at a load while it runs, and ends it when it is hopeless."""

    rung: Rung
    load: Load
    bench: Bench
    queue_seen: int
    """Looks at the queue that were before this load."""
    cut: Failure | None = None

    def __call__(self, answered: Answered | None = None) -> str | None:
        if answered is None:
            return None
        self.cut = hopeless(
            Course(
                load=self.load,
                concurrency=self.load.level,
                requests=self.rung.requests(self.load.level),
                slo=self.bench.bounds,
                answered=answered,
                queue=self.bench.queue()[self.queue_seen :],
            )
        )
        return self.cut.reason if self.cut else None


def _together(rung: Rung, kept: list[Metrics], all_: list[Metrics]) -> Metrics:
    """The loads of some, with the time of all."""
    traffic_s = sum(metrics.traffic_s for metrics in all_)
    overhead_s = sum(metrics.client_overhead_s for metrics in all_)
    return Metrics(rung.index, tuple(load for metrics in kept for load in metrics.loads), traffic_s, overhead_s)


def _searched(rung: Rung, bench: Bench, runs: _Runs) -> Measured:
    searches = [
        _Search(rung, load, runs, f"load-{n}-" if len(rung.loads) > 1 else "") for n, load in enumerate(rung.loads)
    ]
    knees = tuple(search.run() for search in searches)
    every = [metrics for search in searches for metrics in search.measured]
    return Measured(_together(rung, [search.best for search in searches], every), knees)


class _Search:
    """The search for the knee of one traffic scenario."""

    def __init__(self, rung: Rung, load: Load, runs: _Runs, prefix: str) -> None:
        assert rung.levels is not None
        self._rung, self._load, self._runs, self._bench, self._prefix = rung, load, runs, runs.bench, prefix
        self._levels = rung.levels
        self._limits = upper_limits(runs.bench.slo)
        self._probes: list[Probe] = []
        self._measured: dict[int, Metrics] = {}
        self._longest_s = 0.0

    @property
    def measured(self) -> list[Metrics]:
        """Of every level, in the order of trying."""
        return list(self._measured.values())

    @property
    def best(self) -> Metrics:
        """Of the knee; of the lowest level measured when there is none."""
        return self._measured[self._kept or min(self._measured)]

    @property
    def _kept(self) -> int | None:
        return max((probe.level for probe in self._probes if probe.kept), default=None)

    @property
    def _broken(self) -> int | None:
        return min((probe.level for probe in self._probes if not probe.kept), default=None)

    def run(self) -> Knee:
        """Raises what the load at the lowest level raises: a configuration that fails there cannot work."""
        note = ""
        while (level := next_level(self._levels, self._load.level, self._kept, self._broken)) is not None:
            if self._measured and self._bench.deadline.remaining() < TIME_FACTOR * self._longest_s:
                note = f"the time of the trial did not suffice to try {level}"
                break
            if (probe := self._probe(level)) is None:
                note = f"the time of the trial was over at {level}"
                break
            self._probes.append(probe)
        if self._broken is None and not note:
            note = f"{self._levels.high} is the highest level that may be tried"
        whole = not any(load.cut for load in self.best.loads)
        lost = reachable(self.best, self._bench.slo) if self._kept is None and whole else {}
        return Knee(self._load.scenario, self._kept, self._broken, tuple(self._probes), lost, note)

    def _probe(self, level: int) -> Probe | None:
        """``None`` when the trial's time was over before the level had shown what it can."""
        before_s = self._bench.deadline.remaining()
        load, is_lowest = Load(self._load.scenario, level), level == self._levels.low
        try:
            # The lowest level is not cut: what it measures says which SLO is reachable.
            metrics, cut = self._runs.load(self._rung, load, f"{self._prefix}level-{level}", may_cut=not is_lowest)
        except TrialInfeasible as fault:
            over = self._bench.deadline.expired
            if fault.kind not in OVERLOAD or (not self._measured if over else is_lowest):
                raise
            return None if over else _failed(level, fault, before_s - self._bench.deadline.remaining())
        self._longest_s = max(self._longest_s, before_s - self._bench.deadline.remaining())
        self._measured[level] = metrics
        probe = _judged(with_goodput(metrics, self._bench.slo), self._limits)
        return probe if cut is None else replace(probe, kept=False, worst=f"{cut.kind}: {cut.reason}")


def _judged(metrics: Metrics, limits: dict[str, float]) -> Probe:
    (load,) = metrics.loads
    excess, worst = violation(metrics, limits)
    requests, tokens = (load.values.get(f"goodput_{name}_per_s") for name in ("requests", "tokens"))
    return Probe(load.load.level, excess == 0, worst, requests, tokens, metrics.traffic_s)


def _failed(level: int, fault: TrialInfeasible, spent_s: float) -> Probe:
    return Probe(level, False, f"{fault.kind}: {fault.reason}", None, None, spent_s)


def in_words(knees: tuple[Knee, ...]) -> str:
    """Where the knee is and what breaks the SLO above it; empty where no level was searched."""
    said = [f"{knee.scenario} {_in_words(knee)}" if len(knees) > 1 else _in_words(knee) for knee in knees]
    return "; ".join(said)


def _in_words(knee: Knee) -> str:
    worst = next((probe.worst for probe in knee.probes if probe.level == knee.breaks), "")
    note = f"; {knee.note}" if knee.note else ""
    if knee.level is None:
        return f"no level keeps the SLO: {knee.breaks} breaks {worst}{note}"
    above = f"; {knee.breaks} breaks {worst}" if knee.breaks else ""
    return f"at {knee.level} in flight{above}{note}"
