"""The performance model in virtual time: what a configuration measures under a load, without a server.

``start`` says whether and when a configuration is ready; ``Engine.measure`` runs one load against it. Both are pure
functions of profile, parameters, load and seed: nothing waits, and a minute of traffic takes milliseconds.
How a step takes the time it takes stands in ``costs``, what fits into memory in ``memory``, which requests share a
step in ``scheduling``; the HTTP server drives the same scheduler against the wall clock.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raytune_autotuner.records import RequestSamples
from tests.emulator.engine.costs import costs
from tests.emulator.engine.memory import EngineFailure, Plan, failures, plan
from tests.emulator.engine.profile import Profile
from tests.emulator.engine.scheduling import Clock, Request, Scheduler
from tests.emulator.engine.settings import Values, settings

__all__ = ["Engine", "EngineFailure", "Load", "Measured", "Values", "start"]

FORM = re.compile(r"([DNU])\((\d+),(\d+)\)(?:/\((\d+),(\d+)\))?")
UNLIMITED_S = 1e9
Lengths = Callable[[random.Random], tuple[int, int]]


@dataclass(frozen=True)
class Load:
    """Traffic of one rung: closed loop at a concurrency, as genai-bench makes it, or Poisson arrivals at a rate."""

    scenario: str
    """genai-bench's notation: ``D(100,200)``, ``N(480,240)/(300,150)``, ``U(50,100)/(20,40)``, ``U(100,100)``."""
    concurrency: int = 1
    requests: int = 100
    """The load ends when this many are through …"""
    seconds: float = math.inf
    """… or after this time."""
    rate_per_s: float | None = None
    """Open loop: arrivals a second; ``concurrency`` is then without effect."""


@dataclass(frozen=True)
class Measured:
    """What one load gave; ``failure`` says why it broke off, if it did."""

    samples: RequestSamples
    duration_s: float
    errors: int
    retracted: int
    failure: EngineFailure | None = None


@dataclass
class Engine:
    """A started engine. Successive loads see its clock go on, so that drift shows."""

    profile: Profile
    plan: Plan
    ranks: tuple[Scheduler, ...]
    load_s: float
    """From the start to ready."""
    random: random.Random
    served: int = 0
    _crash_at: float = field(init=False)

    def __post_init__(self) -> None:
        regions = failures(self.profile, self.plan.settings, "load")
        self._crash_at = min((region.after_requests for region in regions), default=math.inf)

    @property
    def gpus(self) -> int:
        chosen = self.plan.settings
        return chosen.tp * chosen.pp * chosen.dp

    def submitted(self) -> None:
        """Count a request.

        Raises:
            EngineFailure: the profile lets the engine fail at this one.
        """
        self.served += 1
        if self.served >= self._crash_at:
            region = min(failures(self.profile, self.plan.settings, "load"), key=lambda each: each.after_requests)
            raise EngineFailure(region.message, "out of memory" in region.message, region.hang)

    def measure(self, load: Load) -> Measured:
        """Run one load to its end."""
        start_s = max(rank.clock.now_s for rank in self.ranks)
        for rank in self.ranks:
            rank.clock.now_s = start_s
        run = _Run(self, load, start_s)
        failure = None
        try:
            run.play()
        except EngineFailure as error:
            failure = error
        lost = 0
        for rank in self.ranks:
            lost += len(rank.waiting) + len(rank.prefilling) + len(rank.running)
            for request in [*rank.waiting, *rank.prefilling, *rank.running]:
                rank.cancel(request)
        return Measured(
            samples=_samples(run.finished),
            duration_s=max(rank.clock.now_s for rank in self.ranks) - start_s,
            errors=run.refused + (lost if failure else 0),
            retracted=sum(rank.retracted for rank in self.ranks),
            failure=failure,
        )


def start(
    profile: Profile,
    engine: str,
    values: Values,
    *,
    gpus: int | None = None,
    node: str = "",
    seed: int = 0,
    now_s: float = 0.0,
) -> Engine:
    """Start an engine with parameters by the names of its engine file (``sglang`` or ``vllm``).

    ``seed`` fixes the noise of this start and all that follows; ``now_s`` is the cluster's time, for the drift.

    Raises:
        EngineFailure: it does not start.
    """
    chosen = settings(profile, engine, values)
    planned = plan(profile, chosen, gpus)
    # Only numbers and text seed a generator the same in every process.
    source = random.Random(f"{profile.name}/{node}/{seed}")
    timing = costs(profile, planned, node)
    ranks = tuple(
        Scheduler(profile, planned, timing, Clock(profile.noise, random.Random(source.random()), now_s))
        for _ in range(chosen.dp)
    )
    for rank in ranks:  # one start, one luck
        rank.clock.factor, rank.clock.phase = ranks[0].clock.factor, ranks[0].clock.phase
    return Engine(profile, planned, ranks, planned.load_s * math.exp(source.gauss(0, 0.03)), source)


class _Run:
    """One load in virtual time: the rank that is furthest behind makes the next step.

    A request is pending until the clock of its rank has come to the time it was sent: ranks do not run in step.
    """

    def __init__(self, engine: Engine, load: Load, start_s: float) -> None:
        self.engine = engine
        self.load = load
        self.finished: list[Request] = []
        self.refused = 0
        self._end_s = start_s + load.seconds
        self._lengths = lengths(load.scenario)
        self._pending: list[list[tuple[float, int, Request]]] = [[] for _ in engine.ranks]
        self._issued = 0
        for sent_s in self._first_times(start_s):
            self._send(sent_s)

    def play(self) -> None:
        clocks = [(rank.clock.now_s, number) for number, rank in enumerate(self.engine.ranks)]
        heapq.heapify(clocks)
        while clocks and len(self.finished) + self.refused < self.load.requests:
            now_s, number = heapq.heappop(clocks)
            if now_s >= self._end_s:
                return
            if self._advance(number, now_s):
                heapq.heappush(clocks, (self.engine.ranks[number].clock.now_s, number))
            elif not clocks and any(self._pending):
                clocks = [(self.engine.ranks[n].clock.now_s, n) for n, pending in enumerate(self._pending) if pending]
                heapq.heapify(clocks)

    def _advance(self, number: int, now_s: float) -> bool:
        """One step of a rank; false when it has nothing to do and nothing to wait for, for the time being."""
        rank, pending = self.engine.ranks[number], self._pending[number]
        if rank.idle and pending:
            now_s = rank.clock.now_s = max(now_s, pending[0][0])
        while pending and pending[0][0] <= now_s:
            self.engine.submitted()
            if not rank.submit(heapq.heappop(pending)[2]):
                self.refused += 1
                self._replace(now_s)
        if rank.idle:
            if pending:
                return True
            # Whoever is furthest behind may still send something here.
            ahead = [r.clock.now_s for n, r in enumerate(self.engine.ranks) if n != number and not r.idle]
            rank.clock.now_s = max(now_s, min(ahead, default=now_s)) + 1e-6
            return bool(ahead)
        step = rank.step(pending[0][0] - now_s if pending else UNLIMITED_S)
        for request in step.finished:
            self.finished.append(request)
            self._replace(rank.clock.now_s)
        return True

    def _replace(self, now_s: float) -> None:
        """In a closed loop, what is through is followed by another one."""
        if self.load.rate_per_s is None and self._issued < self.load.requests:
            self._send(now_s)

    def _first_times(self, start_s: float) -> Iterator[float]:
        if self.load.rate_per_s is None:
            yield from [start_s] * min(self.load.concurrency, self.load.requests)
            return
        for _ in range(self.load.requests):
            start_s += self.engine.random.expovariate(self.load.rate_per_s)
            yield start_s

    def _send(self, sent_s: float) -> None:
        request = Request(*self._lengths(self.engine.random), arrived_s=sent_s)
        heapq.heappush(self._pending[self._issued % len(self._pending)], (sent_s, self._issued, request))
        self._issued += 1


def lengths(scenario: str) -> Lengths:
    """Draws prompt and answer lengths of a scenario in genai-bench's notation."""
    form = FORM.fullmatch(scenario.replace(" ", ""))
    if form is None:
        raise ValueError(f"{scenario!r} is no scenario of the kinds D, N, U")
    kind, *words = form.groups()
    a, b, c, d = (int(word) if word else None for word in words)
    assert a is not None
    assert b is not None
    if kind == "D":
        return lambda _: (a, b)
    if kind == "U" and (c is None or d is None):
        return lambda source: (source.randint(1, a), source.randint(1, b))
    if c is None or d is None:
        raise ValueError(f"{scenario!r} lacks its second half")
    if kind == "U":
        return lambda source: (source.randint(a, b), source.randint(c, d))
    return lambda source: (max(1, round(source.gauss(a, b))), max(2, round(source.gauss(c, d))))


def _samples(finished: list[Request]) -> RequestSamples:
    ttft, tpot, e2e = [], [], []
    for request in finished:
        assert request.first_s is not None
        assert request.finished_s is not None
        ttft.append(request.first_s - request.arrived_s)
        e2e.append(request.finished_s - request.arrived_s)
        rest = request.finished_s - request.first_s
        tpot.append(rest / (request.output - 1) if request.output > 1 else None)
    return RequestSamples(
        ttft_s=tuple(ttft),
        tpot_s=tuple(tpot),
        e2e_s=tuple(e2e),
        input_tokens=tuple(float(request.prompt) for request in finished),
        output_tokens=tuple(float(request.output) for request in finished),
    )
