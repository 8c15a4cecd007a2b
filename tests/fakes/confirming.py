"""Confirming runs in a made-up world, at two levels of detail, and what ``decide`` makes of them.

A run's value is the product of what the configuration gives, the noise of the run, the drift at its time and the
factor of its node. In detail, it follows from requests that are correlated in time, as genai-bench would report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.confirmation import Confirmation, refuted
from raytune_autotuner.metrics import summarise
from raytune_autotuner.objectives import Context
from raytune_autotuner.records import Load, LoadMetrics, Metrics, RequestSamples, Score, TrialId, TrialRecord
from raytune_autotuner.task.spec import Optimization, Task, parse_task
from raytune_autotuner.verdict import Again, Ask, Measurement, Run, Settings, Verdict, decide, measured

Drifting = Literal["none", "steady", "wandering", "step", "daily"]
Placing = Literal["as asked", "anywhere", "anywhere, not told", "each on its own"]
TASK = parse_task(
    {"task_name": "t", "backend": "local", "engine": "llamacpp", "model": {"name": "m", "path": "m.gguf"}}, "made up"
)
THROUGHPUT = Context(1, Optimization(objective="maximize_throughput"))
MOST = 64
"""Moments for which the drift is drawn."""


@dataclass(frozen=True)
class World:
    """Relative: 0.05 is 5 %. ``noise`` is the coefficient of variation of one run."""

    noise: float
    gain: float = 0.0
    drifting: Drifting = "none"
    drift: float = 0.1
    """From beginning to end of a dozen runs, or the deviation of what wanders."""
    slow_node: float = 0.0
    placing: Placing = "as asked"
    nodes: tuple[str, ...] = ("a", "b")
    heavy: bool = False
    """One run in ten is an outlier."""
    broken_share: float = 0.0
    """How often a run of either configuration breaks the SLO."""


@dataclass(frozen=True)
class Tally:
    """What came out of many repetitions."""

    kinds: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    covered: int = 0
    repetitions: int = 0

    def share(self, kind: str) -> float:
        return self.kinds[kind] / self.repetitions


def level(drifting: Drifting, size: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Log goodness that all runs share, by moment; a moment is one run long."""
    at = np.arange(MOST) / 12
    if drifting == "steady":
        return float(rng.choice([-1, 1])) * size * at
    if drifting == "wandering":
        return np.cumsum(rng.standard_normal(MOST)) * size / math.sqrt(12)
    if drifting == "step":
        return float(rng.choice([-1, 1])) * size * (at * 12 >= rng.integers(1, 12))
    if drifting == "daily":
        return size * np.sin(2 * np.pi * (at + rng.random()))
    return np.zeros(MOST)


def _noise(world: World, rng: np.random.Generator) -> float:
    wide = 4.0 if world.heavy and rng.random() < 0.1 else 1.0
    return float(rng.standard_normal()) * math.sqrt(math.log1p(world.noise**2)) * wide


def _node(world: World, ask: Ask, rng: np.random.Generator) -> str | None:
    if world.placing == "as asked":
        return ask.node
    if world.placing == "each on its own":
        return world.nodes[0] if ask.side == "winner" else world.nodes[-1]
    return str(rng.choice(world.nodes))


def simple_run(world: World, ask: Ask, log_goodness: float, moment: int, rng: np.random.Generator) -> Run:
    value = math.exp(log_goodness)
    broken = rng.random() < world.broken_share
    excess = abs(float(rng.standard_normal())) * world.noise if broken else 0.0
    worst = "e2e_p99_s over its limit" if broken else ""
    score = Score("maximize_throughput", value, "tokens/s", "max", -value, excess, worst)
    return Run(ask.side, score, node=ask.node, started_at=float(moment))


def detailed_run(world: World, ask: Ask, log_goodness: float, moment: int, rng: np.random.Generator) -> Run:
    """From the requests of two loads; slow spells last some twenty requests."""
    loads = tuple(_load(concurrency, math.exp(-log_goodness), rng) for concurrency in (4, 16))
    metrics = Metrics(0, loads, traffic_s=0.0, client_overhead_s=0.0)
    measurement = Measurement(metrics, THROUGHPUT)
    return measured(ask.side, measurement, moment, node=ask.node, started_at=float(moment), bootstraps=12)


def _load(concurrency: int, e2e_s: float, rng: np.random.Generator, requests: int = 64) -> LoadMetrics:
    spells = np.convolve(rng.standard_normal(requests + 20), np.ones(20) / math.sqrt(20), mode="valid")[:requests]
    tokens = np.maximum(1, rng.lognormal(math.log(200), 0.2, requests)).round()
    e2e = e2e_s * tokens / 200 * np.exp(0.02 * spells + 0.03 * rng.standard_normal(requests))
    samples = RequestSamples(
        ttft_s=tuple((0.1 * e2e).tolist()),
        tpot_s=tuple((0.9 * e2e / tokens).tolist()),
        e2e_s=tuple(e2e.tolist()),
        input_tokens=(100.0,) * requests,
        output_tokens=tuple(tokens.tolist()),
    )
    values = summarise(samples, concurrency, 0.0)
    load = Load("N(100,10)/(200,40)", concurrency)
    return LoadMetrics(load, concurrency, requests, 0, float(e2e.sum()) / concurrency, values, samples)


Make = Callable[[World, Ask, float, int, np.random.Generator], Run]


def confirm(
    world: World, settings: Settings, rng: np.random.Generator, make: Make = simple_run
) -> tuple[Verdict, list[Run]]:
    """One confirmation from its first run to its verdict."""
    runs: list[Run] = []
    shared = level(world.drifting, world.drift, rng)
    slow = str(rng.choice(world.nodes)) if world.nodes else None
    answer = decide(runs, settings)
    while isinstance(answer, Again):
        for ask in answer.runs:
            runs.append(_made(world, ask, shared[len(runs)], slow, len(runs), rng, make))
        answer = decide(runs, settings)
    return answer, runs


def _made(
    world: World,
    ask: Ask,
    shared: float,
    slow: str | None,
    moment: int,
    rng: np.random.Generator,
    make: Make = simple_run,
) -> Run:
    ran_on = _node(world, ask, rng)
    value = shared + _noise(world, rng) + (math.log1p(world.gain) if ask.side == "winner" else 0.0)
    value += math.log1p(-world.slow_node) if ran_on == slow else 0.0
    told = None if world.placing == "anywhere, not told" else ran_on
    return make(world, replace(ask, node=told), float(value), moment, rng)


def confirmations(
    world: World, repetitions: int, seed: int, make: Make = simple_run, settings: Settings | None = None
) -> Iterator[tuple[Verdict, list[Run]]]:
    rng = np.random.default_rng(seed)
    settings = settings or Settings(nodes=world.nodes)
    for _ in range(repetitions):
        yield confirm(world, settings, rng, make)


def tally(
    world: World, repetitions: int, seed: int, make: Make = simple_run, settings: Settings | None = None
) -> Tally:
    """How often each verdict comes, how often its interval holds the truth, and what it costs."""
    ended = list(confirmations(world, repetitions, seed, make, settings))
    return Tally(
        kinds=Counter(verdict.kind for verdict, _ in ended),
        runs=sum(len(runs) for _, runs in ended),
        covered=sum(verdict.low <= world.gain <= verdict.high for verdict, _ in ended),
        repetitions=repetitions,
    )


BASELINE = "baseline"


class _Heard(Confirmation):
    """Knows its runs beforehand, by trial, so that their records need no measurements."""

    def __init__(self, task: Task, runs: Mapping[str, Run]) -> None:
        super().__init__(task)
        self._heard = runs

    def _run(self, record: TrialRecord, baseline: str) -> Run:
        return self._heard[record.trial.name]


def confirm_finalists(world: World, finalists: int, rng: np.random.Generator) -> list[Verdict]:
    """One experiment's confirming runs with so many finalists; the verdicts, the latest first.

    As an experiment does it: the next best takes the place of whoever breaks the SLO, with the runs that are left.
    """
    names = [f"finalist-{n}" for n in range(finalists)]
    records: list[TrialRecord] = []
    runs: dict[str, Run] = {}
    heard = _Heard(TASK, runs)
    shared, slow = level(world.drifting, world.drift, rng), str(rng.choice(world.nodes))
    asks: list[tuple[str, Ask]] = []
    while True:
        out = refuted(records, BASELINE)
        best = next((name for name in names if name not in out), names[0])
        if any(config not in (BASELINE, best) for config, _ in asks):
            asks = []
        if not asks:
            wanted = heard.wanted(records, BASELINE, best, world.nodes)
            asks = [(best if ask.side == "winner" else BASELINE, ask) for ask in wanted]
        if not asks:
            return [verdict for _, verdict in heard.verdicts(records, BASELINE)]
        (config, ask), asks = asks[0], asks[1:]
        run = _made(world, ask, shared[len(runs)], slow, len(runs), rng)
        trial = TrialId("confirm", config, len(runs))
        runs[trial.name] = run
        at = datetime.fromtimestamp(60.0 * len(records), timezone.utc).isoformat()
        records.append(TrialRecord(trial, "exp", len(records), {}, "completed", at, (), 1, score=run.score))


def finalists_that_err(world: World, finalists: int, repetitions: int, seed: int) -> float:
    """How often one of several finalists that are no better than the baseline is called a WIN."""
    rng = np.random.default_rng(seed)
    told = (confirm_finalists(world, finalists, rng) for _ in range(repetitions))
    return sum(any(verdict.kind == "WIN" for verdict in verdicts) for verdicts in told) / repetitions


def same() -> dict[str, World]:
    """Two identical configurations, in every world that a user may have."""
    worlds = {}
    for noise in (0.01, 0.03, 0.1):
        cells = {
            "steady machine": World(noise),
            "one node": World(noise, nodes=()),
            "steady drift": World(noise, drifting="steady"),
            "wandering drift": World(noise, drifting="wandering", drift=0.05),
            "a step": World(noise, drifting="step"),
            "daily drift": World(noise, drifting="daily"),
            "slow node": World(noise, slow_node=0.1),
            "slow node, drift": World(noise, slow_node=0.1, drifting="steady"),
            "slow node, not swapped": World(noise, slow_node=0.1, placing="each on its own"),
            "slow node, placed anywhere": World(noise, slow_node=0.1, placing="anywhere"),
            "slow node of four, not told": World(
                noise, slow_node=0.1, placing="anywhere, not told", nodes=("a", "b", "c", "d")
            ),
            "slow node of two, not told": World(noise, slow_node=0.1, placing="anywhere, not told"),
            "outliers": World(noise, heavy=True),
            "SLO at its edge": World(noise, broken_share=0.5),
        }
        worlds.update({f"{noise:.0%} {name}": world for name, world in cells.items()})
    return worlds


def better() -> dict[str, World]:
    """A true gain of 5 % at 1 % noise."""
    return {
        "steady machine": World(0.01, 0.05),
        "one node": World(0.01, 0.05, nodes=()),
        "steady drift": World(0.01, 0.05, drifting="steady"),
        "slow node": World(0.01, 0.05, slow_node=0.1),
        "slow node, drift": World(0.01, 0.05, slow_node=0.1, drifting="steady"),
    }
