"""Continuous batching: which requests an engine works on in each step, and how long the step takes."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

from tests.emulator.engine.costs import Costs
from tests.emulator.engine.memory import EngineFailure, Plan, activation_bytes, cuda_out_of_memory
from tests.emulator.engine.profile import Noise, Profile

MATCHED_QUEUE = 128
"""SGLang orders by prefix only while no more requests wait than this."""


@dataclass(eq=False)
class Request:
    """One request and how far it got; token counts only."""

    prompt: int
    output: int
    cached: int = 0
    """Prompt tokens that the prefix cache holds."""
    arrived_s: float = 0.0
    first_s: float | None = None
    finished_s: float | None = None
    emitted: int = 0
    held: int = 0
    """Tokens in the KV cache when it joined the running batch, less the decode count at that moment."""
    to_prefill: int = 0
    admitted: int = 0
    """Its number in the order of admission."""
    active: bool = False
    cancelled: bool = False


@dataclass(frozen=True)
class Step:
    """What happened in one go: one prefill or mixed step, or some decode steps of the same batch."""

    duration_s: float
    first: tuple[Request, ...] = ()
    """Those whose prompt is through: they have a token more."""
    finished: tuple[Request, ...] = ()
    decoded: int = 0
    """Tokens that each request of the running batch got."""
    prompt_tokens: int = 0


@dataclass
class Clock:
    """Noise on the time of steps: from step to step, from start to start, and a slow drift."""

    noise: Noise
    random: random.Random
    now_s: float = 0.0
    factor: float = field(init=False)
    phase: float = field(init=False)

    def __post_init__(self) -> None:
        self.factor = math.exp(self.random.gauss(0.0, self.noise.run_cv))
        self.phase = self.random.uniform(0.0, 2 * math.pi)

    def noisy(self, duration_s: float, steps: int = 1) -> float:
        noise = self.noise
        factor = self.factor * math.exp(self.random.gauss(0.0, noise.step_cv / math.sqrt(steps)))
        if noise.drift_cv:
            factor *= 1 + noise.drift_cv * math.sin(self.phase + 2 * math.pi * self.now_s / noise.drift_period_s)
        return duration_s * factor


class Scheduler:
    """One data-parallel rank of an engine. ``submit`` requests, then ``step`` as long as it is not idle.

    Times are the engine's own (virtual) seconds. Nothing here waits.
    """

    def __init__(self, profile: Profile, plan: Plan, costs: Costs, clock: Clock) -> None:
        self.plan = plan
        self.costs = costs
        self.clock = clock
        self.waiting: deque[Request] = deque()
        self.prefilling: deque[Request] = deque()
        self.running: dict[Request, None] = {}
        self.retracted = 0
        self._profile = profile
        self._ends: list[tuple[int, int, Request]] = []
        self._decoded = 0
        self._admitted = 0
        self._context = 0  # tokens of the running requests
        self._reserved = 0  # tokens of the prompts being prefilled

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.prefilling or self.running)

    @property
    def usage(self) -> float:
        """Share of the KV cache that is in use."""
        return (self._context + self._reserved) / max(1, self.plan.capacity_tokens)

    def submit(self, request: Request) -> bool:
        """Queue a request; false when the queue is full. Requests longer than the KV cache get a shorter answer."""
        limit = self.plan.settings.max_queued
        if limit is not None and len(self.waiting) >= limit:
            return False
        request.output = max(1, min(request.output, self.plan.capacity_tokens - request.prompt - 1))
        self.waiting.append(request)
        return True

    def cancel(self, request: Request) -> None:
        """Forget a request whose client has gone."""
        request.cancelled = True
        if request in self.running:
            self._leave(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        elif request in self.prefilling:
            self.prefilling.remove(request)
            self._reserved -= request.prompt + request.emitted

    def step(self, limit_s: float) -> Step:
        """Do the next piece of work; decode steps are taken together up to the limit or the next change.

        Raises:
            EngineFailure: the step needs more memory than there is.
        """
        self._admit()
        settings = self.plan.settings
        if self.prefilling and (settings.mixed or not self.running or self._prefill_first()):
            return self._prefill_step(len(self.running) if settings.mixed else 0)
        return self._decode_steps(limit_s)

    def _prefill_first(self) -> bool:
        # A round of several decode steps is not interrupted by prefill.
        rounds = self.plan.settings.steps_per_round
        return rounds == 1 or self._decoded % rounds == 0

    def _admit(self) -> None:
        settings = self.plan.settings
        if settings.policy == "lpm" and 1 < len(self.waiting) <= MATCHED_QUEUE:
            self.waiting = deque(sorted(self.waiting, key=lambda request: -request.cached))
        elif settings.policy == "shortest-prefill-first" and len(self.waiting) > 1:
            self.waiting = deque(sorted(self.waiting, key=lambda request: request.prompt))
        while self.waiting and len(self.running) + len(self.prefilling) < settings.max_running:
            request = self.waiting[0]
            tokens = request.prompt + request.emitted
            alone = not (self.running or self.prefilling)
            if not alone and self._context + self._reserved + tokens + self._promised(request) > self._capacity:
                return
            self.waiting.popleft()
            self._admitted += 1
            request.admitted = self._admitted
            cached = min(request.cached, request.prompt - 1) if settings.prefix_cache else 0
            request.to_prefill = max(1, tokens - cached)
            self.prefilling.append(request)
            self._reserved += tokens

    @property
    def _capacity(self) -> int:
        return self.plan.capacity_tokens

    def _promised(self, request: Request) -> int:
        """Room kept for answers that are still to come."""
        reserve = self.plan.settings.reserve
        if not reserve:
            return len(self.running)
        left = request.output - request.emitted
        for other in self.prefilling:
            left += other.output - other.emitted
        ahead = sum(end - self._decoded for end, _, other in self._ends if other.active)
        return int((left + ahead) * reserve)

    def _prefill_step(self, decodes: int) -> Step:
        settings = self.plan.settings
        vllm = settings.engine == "vllm"
        budget = max(1, settings.step_tokens - (decodes if vllm else 0))
        tokens, scores, done = 0, 0.0, []
        while self.prefilling:
            request = self.prefilling[0]
            left = budget - tokens
            part = min(request.to_prefill, left)
            if part < request.to_prefill and not settings.chunked:
                if tokens:
                    break
                part = request.to_prefill  # a prompt longer than a step is taken whole
            if part <= 0:
                break
            before = request.prompt + request.emitted - request.to_prefill
            scores += part * (before + part / 2)
            tokens += part
            request.to_prefill -= part
            if request.to_prefill:
                break
            done.append(self.prefilling.popleft())
        if decodes:
            self._make_room()
            decodes = len(self.running)
        self._check_memory(tokens, decodes + len(done))
        duration = self.clock.noisy(self.costs.step_s(tokens, scores, decodes, self._context))
        finished = self._decode(1) if decodes else []
        self.clock.now_s += duration
        for request in done:
            self._join(request)
            if request.emitted >= request.output:
                self._leave(request)
                finished.append(request)
        self._stamp(done, finished)
        return Step(duration, tuple(done), tuple(finished), 1 if decodes else 0, tokens)

    def _decode_steps(self, limit_s: float) -> Step:
        self._make_room()
        batch = len(self.running)
        one = self.costs.step_s(0, 0.0, batch, self._context) / self.costs.tokens_per_step
        until_end = self._next_end() - self._decoded
        until_full = (self._capacity - self._context - self._reserved) // batch
        steps = max(1, min(until_end, until_full, int(limit_s / one)))
        rounds = self.plan.settings.steps_per_round
        if rounds > 1:  # a round is not interrupted
            steps = min(
                until_end, max(1, rounds - self._decoded % rounds if steps < rounds else steps // rounds * rounds)
            )
        middle = self._context + batch * (steps - 1) // 2
        each = self.costs.step_s(0, 0.0, batch, middle) / self.costs.tokens_per_step
        self._check_memory(0, batch)
        duration = self.clock.noisy(each * steps, steps)
        self.clock.now_s += duration
        finished = self._decode(steps)
        self._stamp((), finished)
        return Step(duration, (), tuple(finished), steps)

    def _stamp(self, first: list[Request] | tuple[Request, ...], finished: list[Request]) -> None:
        for request in first:
            if request.first_s is None:
                request.first_s = self.clock.now_s
        for request in finished:
            request.finished_s = self.clock.now_s

    def _join(self, request: Request) -> None:
        tokens = request.prompt + request.emitted
        self._reserved -= tokens
        self._context += tokens
        request.emitted += 1
        request.held = tokens - self._decoded
        request.active = True
        self.running[request] = None
        heapq.heappush(self._ends, (self._decoded + request.output - request.emitted, request.admitted, request))

    def _leave(self, request: Request) -> None:
        self.running.pop(request, None)
        self._context -= request.held + self._decoded
        request.active = False

    def _next_end(self) -> int:
        while not self._ends[0][2].active or self._ends[0][1] != self._ends[0][2].admitted:
            heapq.heappop(self._ends)
        return self._ends[0][0]

    def _decode(self, steps: int) -> list[Request]:
        self._decoded += steps
        self._context += steps * len(self.running)
        finished = []
        while self._ends and (self._ends[0][0] <= self._decoded or not self._ends[0][2].active):
            _, number, request = heapq.heappop(self._ends)
            if request.active and number == request.admitted:
                request.emitted = request.output
                self._leave(request)
                finished.append(request)
        return finished

    def progress(self, request: Request) -> int:
        """Tokens of the answer so far."""
        if not request.active:
            return request.emitted
        return request.held + self._decoded - request.prompt + 1

    def _make_room(self) -> None:
        """Send the latest requests back to the queue when the KV cache has no room for a step."""
        while len(self.running) > 1 and self._context + self._reserved + len(self.running) > self._capacity:
            request = next(reversed(self.running))
            request.emitted = self.progress(request)
            self._leave(request)
            request.admitted = 0
            self.retracted += 1
            self.waiting.appendleft(request)

    def _check_memory(self, prompt_tokens: int, requests: int) -> None:
        needed = activation_bytes(self._profile, self.plan.settings, prompt_tokens, requests)
        if needed > self.plan.headroom_bytes:
            message = cuda_out_of_memory(needed, needed - self.plan.headroom_bytes)
            raise EngineFailure(message, out_of_memory=True)
