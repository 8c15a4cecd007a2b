"""The winner with as few changes from the baseline as it takes: each changed flag is dropped if that costs nothing.

One flag after the other, from the least important on: the present configuration and the same without the flag are
measured in turn (A B B A), and the flag goes when the loss is less than a margin at the stated confidence
(non-inferiority: the lower end of the interval lies above the margin), and likewise what more the SLO is broken by.
Looks and their share of the error are those of the verdict, the error of each flag being its own. What was dropped is
left out of the comparisons that follow, so losses within the margin could add up: the sum is bounded by one last
comparison with the whole winner, and where that fails the flags dropped last come back. A flag without which the engine
is started with the same goes at once.

Everything follows from the records, so an interrupted ablation goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from raytune_autotuner.objectives import Context
from raytune_autotuner.records import Parameters, TrialRecord, config_hash
from raytune_autotuner.search import Nodes, Wanted
from raytune_autotuner.task.spec import Confirm, Optimization
from raytune_autotuner.verdict import Ask, Measurement, Run, Settings, Side, effect, measured
from raytune_autotuner.verdict.runs import of
from raytune_autotuner.verdict.sequential import missing

MARGIN = 0.02
"""The loss, relative, that is taken for none. At 1 % of noise, 10 runs of each show a loss down to 1 %."""
MAX_REPEATS = 10
"""Of each side of a comparison: to show that there is no difference takes more than to show one."""
SPARE_RUNS = 2
"""So many runs of a comparison may be lost to the infrastructure."""

SIDES: tuple[Side, Side] = ("baseline", "winner")
"""Here the configuration with the flag, and the one without it."""
Answer = Literal["dropped", "kept", "open"]
"""``open`` while there is no answer yet."""


@dataclass(frozen=True)
class Step:
    """One flag tried: ``gain`` is that of leaving it out, relative, with its interval; ``None`` before any run."""

    parameter: str
    answer: Answer
    reason: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0


@dataclass(frozen=True)
class Ablation:
    """Where an ablation stands; ``parameters`` are what is left of the winner."""

    parameters: Parameters
    steps: tuple[Step, ...]
    wanted: tuple[Wanted, ...] = ()
    """The runs that come next; none when it is over."""
    unpaid: str | None = None
    """What of them the budget did not pay for, when that has ended the ablation before it was over."""

    @property
    def is_over(self) -> bool:
        return all(step.answer != "open" for step in self.steps)


@dataclass(frozen=True)
class Pair:
    """Two configurations to be compared; ``smaller`` lacks a flag that ``larger`` has."""

    larger: Parameters
    smaller: Parameters


@dataclass(frozen=True)
class Plan:
    """What is to be ablated, and how surely."""

    winner: Parameters
    order: tuple[str, ...]
    """Flags in the order in which they are tried: the least important first."""
    optimization: Optimization
    margin: float = MARGIN
    allowed: Callable[[Parameters], str | None] = lambda parameters: None
    """Why a configuration may not run (a constraint that it breaks)."""
    idle: frozenset[str] = frozenset()
    """Flags without which the launch is the same."""
    _known: dict[str, Run] = field(default_factory=dict, repr=False, compare=False)

    @property
    def settings(self) -> Settings:
        confirm: Confirm = self.optimization.confirm
        return Settings(confirm.confidence, max(2, confirm.repeats), max(MAX_REPEATS, confirm.max_repeats))

    @property
    def runs(self) -> int:
        """At most so many are made."""
        return 2 * self.settings.looks[-1] * (len(set(self.order) - self.idle) + 1)

    def told(self, parameters: Parameters) -> Parameters:
        """Those that change something of the launch."""
        return {name: value for name, value in parameters.items() if name not in self.idle}

    def wanted(self, records: Sequence[TrialRecord], nodes: Nodes) -> tuple[Wanted, ...]:
        """See ``gate.Course``."""
        return self.stand(records, nodes).wanted

    def stand(self, records: Sequence[TrialRecord], nodes: Nodes = lambda one, other: ()) -> Ablation:
        """What follows from the runs so far."""
        current, steps = dict(self.winner), []
        mine = (r for r in records if r.trial.purpose == "confirm" and not _was_unpaid(r))
        left = sorted(mine, key=lambda r: r.number)
        for name in self.order:
            smaller = {key: value for key, value in current.items() if key != name}
            if problem := self.allowed(smaller):
                steps.append(Step(name, "kept", f"cannot be left out: {problem}"))
                continue
            if name in self.idle:
                steps.append(Step(name, "dropped", "the launch is the same without it"))
                current = smaller
                continue
            step, asks, left = self._compared(name, left, Pair(current, smaller), nodes)
            steps.append(step)
            if step.answer == "open":
                return Ablation(current, tuple(steps), asks)
            current = smaller if step.answer == "dropped" else current
        return self._whole(current, steps, left, nodes)

    def _whole(self, current: Parameters, steps: list[Step], left: Sequence[TrialRecord], nodes: Nodes) -> Ablation:
        """What was dropped one after the other is compared with the winner as a whole."""
        dropped = [s.parameter for s in steps if s.answer == "dropped" and s.parameter not in self.idle]
        if len(dropped) < 2:
            return Ablation(current, tuple(steps))
        step, asks, left = self._compared(", ".join(dropped), left, Pair(self.winner, current), nodes)
        if step.answer == "open":
            return Ablation(current, (*steps, step), asks)
        if step.answer == "dropped":
            return Ablation(current, (*steps, step))
        last = dropped[-1]
        reason = f"{step.reason} when all that was dropped is left out together"
        mended = [replace(s, answer="kept", reason=reason) if s.parameter == last else s for s in steps]
        return self._whole({**current, last: self.winner[last]}, mended, left, nodes)

    def _compared(
        self, name: str, left: Sequence[TrialRecord], pair: Pair, nodes: Nodes
    ) -> tuple[Step, tuple[Wanted, ...], list[TrialRecord]]:
        """The answer of the first runs of a pair that have one, and the records after those.

        Comparisons were made one after the other, so the records that follow are of the next ones, which may have a
        configuration in common with this one.
        """
        configs = (config_hash(pair.larger), config_hash(pair.smaller))
        mine: list[TrialRecord] = []
        shared = nodes(pair.larger, pair.smaller)
        step, asks = self._judge(name, mine, pair, shared)
        for n, record in enumerate(left, 1):
            if record.trial.config in configs:
                mine.append(record)
                step, asks = self._judge(name, mine, pair, shared)
                if step.answer != "open":
                    return step, (), list(left[n:])
        return step, asks, []

    def _judge(
        self, name: str, made: Sequence[TrialRecord], pair: Pair, nodes: Sequence[str]
    ) -> tuple[Step, tuple[Wanted, ...]]:
        smaller = config_hash(pair.smaller)
        if failed := [r for r in made if r.outcome == "infeasible" and r.failure and r.trial.config == smaller]:
            failure = failed[0].failure
            assert failure is not None
            return Step(name, "kept", f"without it: {failure.kind}: {failure.reason}", runs=len(made)), ()
        runs = [self._run(record, smaller) for record in made if record.outcome == "completed"]
        counts = [len(of(side, runs)) for side in SIDES]
        settings = self.settings
        look = next((look for look in settings.looks if look >= max(counts)), settings.looks[-1])
        spent = len(made) >= 2 * settings.looks[-1] + SPARE_RUNS
        if (asks := missing(runs, look, nodes)) and not spent:
            return Step(name, "open", f"{look} runs of each are wanted", runs=len(runs)), _of(asks, pair)
        if min(counts) == 0:
            return Step(name, "kept", "it could not be measured without it", runs=len(runs)), ()
        step = self._looked(name, runs, settings.alpha(max(1, min(counts))))
        following = next((later for later in settings.looks if later > look), None)
        if step.answer == "open" and following is not None and not spent:
            return step, _of(missing(runs, following, nodes), pair)
        if step.answer == "open":
            return Step(name, "kept", f"the runs do not show that it can go: {step.reason}", *_figures(step)), ()
        return step, ()

    def _looked(self, name: str, runs: Sequence[Run], alpha: float) -> Step:
        broken = {side: [run.score.worst for run in of(side, runs) if run.score.violation > 0] for side in SIDES}
        if broken["winner"] and not broken["baseline"]:
            return Step(name, "kept", f"without it the SLO is broken: {broken['winner'][0]}", runs=len(runs))
        step = self._tested(name, runs, alpha, lambda run: run.log_goodness)
        if not broken["winner"] or step.answer == "kept":
            return step
        kept = self._tested(name, runs, alpha, lambda run: -math.log1p(run.score.violation))
        if kept.answer == "dropped":
            return step
        more = "is" if kept.answer == "kept" else "may be"
        return replace(
            step, answer=kept.answer, reason=f"without it the SLO {more} broken by more: {broken['winner'][0]}"
        )

    def _tested(self, name: str, runs: Sequence[Run], alpha: float, response: Callable[[Run], float]) -> Step:
        """Whether ``response``, a logarithm of which more is better, loses less than the margin."""
        found = effect(runs, response)
        if found is None:
            return Step(name, "kept", "both could not be measured on one node", runs=len(runs))
        half = found.half(2 * alpha)  # one-sided: only a loss counts
        gain, low, high = (math.expm1(found.delta + side) for side in (0.0, -half, half))
        said = f"{gain:+.1%} ({low:+.1%} to {high:+.1%}) without it"
        answer: Answer = "dropped" if low > -self.margin else "kept" if high < -self.margin else "open"
        return Step(name, answer, said, gain, low, high, len(runs))

    def _run(self, record: TrialRecord, smaller: str) -> Run:
        """A run as the statistics see it; the same for both pairs that a configuration is part of, but for its side."""
        name = record.trial.name
        if name not in self._known:
            context = Context(record.gpus, self.optimization)
            measurement = Measurement(record.rungs[-1].metrics, context)
            begun = datetime.fromisoformat(record.started_at).timestamp()
            seed = self.optimization.seed + record.number
            self._known[name] = measured("baseline", measurement, seed, record.node, begun)
        known = self._known[name]
        return replace(known, side="winner" if record.trial.config == smaller else "baseline")


def _was_unpaid(record: TrialRecord) -> bool:
    """Ended by the budget: it says nothing of its configuration, and is wanted again when there is more money."""
    return record.failure is not None and record.failure.kind == "budget"


def _figures(step: Step) -> tuple[float | None, float | None, float | None, int]:
    return step.gain, step.low, step.high, step.runs


def _of(asks: Sequence[Ask], pair: Pair) -> tuple[Wanted, ...]:
    return tuple(Wanted(pair.smaller if ask.side == "winner" else pair.larger, ask.node) for ask in asks)


def order(
    winner: Parameters,
    shares: Mapping[str, float],
    needs: Mapping[str, Collection[str]] | None = None,
    idle: Collection[str] = (),
) -> tuple[str, ...]:
    """The flags of a configuration, the least important first; of what is not known, before all others.

    ``idle`` ones come before those. What others need (``needs``, by who needs it, and in no circle) comes after them,
    or it could not go.
    """
    left = sorted(winner, key=lambda name: (name not in idle, shares.get(name, -1.0), name))
    ordered: list[str] = []
    while left:
        needed = {of for name in left for of in (needs or {}).get(name, ())}
        ordered.append(next(name for name in left if name not in needed))
        left.remove(ordered[-1])
    return tuple(ordered)


def described(ablation: Ablation) -> Iterator[str]:
    """What the ablation has found, a line for each flag."""
    for step in ablation.steps:
        yield f"{step.answer}: {step.parameter}: {step.reason} ({step.runs} runs)"
