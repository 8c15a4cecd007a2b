"""WIN, TIE or UNSTABLE, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raytune_autotuner.summary import BEYOND, shown
from raytune_autotuner.verdict.design import blocks, nodes
from raytune_autotuner.verdict.effect import Effect, chance, effect
from raytune_autotuner.verdict.noise import measured
from raytune_autotuner.verdict.runs import Measurement, Run, Side, in_order, of

VerdictKind = Literal["WIN", "TIE", "UNSTABLE"]
NOISY = 0.15
"""An interval wider than ± this, around no difference, says that the machine is too noisy to tell."""
PLAIN = 0.05
"""A cause is named when chance explains as much less often than this."""
BOUNDLESS = 1e6
"""Stands for no bound at all, so that intervals stay finite and can be written as JSON."""
UNBOUNDED = math.log1p(BOUNDLESS)


def _percent(relative: float) -> str:
    return f"{relative:+.1%}"


@dataclass(frozen=True)
class Verdict:
    """``gain``, ``low`` and ``high`` are relative: 0.2 is 20 % better than the baseline, ``BOUNDLESS`` is no bound.

    People are told them in the words of ``gained`` and ``interval``, if the two were ``compared``.
    """

    kind: VerdictKind
    gain: float
    low: float
    high: float
    confidence: float
    """That the interval holds the truth, however often it was looked at before."""
    baseline: float
    winner: float
    unit: str
    baseline_runs: int
    winner_runs: int
    reason: str
    noise: float = 0.0
    """Standard deviation of one run, relative."""
    winner_anyway: bool = False
    """Run the winner although no gain was shown: the baseline breaks the SLO by more, or does not work."""

    @property
    def compared(self) -> bool:
        """Whether both were measured; otherwise there are no numbers to tell."""
        return self.baseline_runs > 0 and self.winner_runs > 0

    def gained(self, over: str = "", percent: Callable[[float], str] = _percent) -> str:
        """``+20.0%``, followed by what it is ``over``; both values where a percentage of the one says nothing."""
        if not self.compared:
            return "not compared"
        if self.gain <= BEYOND:
            return f"{percent(self.gain)}{over}"
        before = shown(self.baseline) if self.baseline else "nothing"
        return f"from {before} to {shown(self.winner)} {self.unit}".rstrip()

    def interval(self, percent: Callable[[float], str] = _percent) -> str:
        """``+10.0% to +30.0%``, as far as it has bounds."""
        if self.low > BEYOND:
            return f"above {BEYOND:g} times"
        low = percent(self.low)
        return f"{low} to {percent(self.high)}" if self.high <= BEYOND else f"{low} without an upper bound"


def compare(baseline: Sequence[Measurement], winner: Sequence[Measurement], confidence: float, seed: int) -> Verdict:
    """The verdict on two configurations that were measured in turn (A B B A …), a number of times fixed before.

    Raises:
        ValueError: one of them was not measured at all.
    """
    runs = [
        measured(side, measurement, seed + 2 * i + place, started_at=i + (i + place) % 2 / 2)
        for place, (side, measurements) in enumerate(_sides(baseline, winner))
        for i, measurement in enumerate(measurements)
    ]
    return judge(runs, 1 - confidence, confidence)


def _sides(
    baseline: Sequence[Measurement], winner: Sequence[Measurement]
) -> tuple[tuple[Side, Sequence[Measurement]], ...]:
    return ("baseline", baseline), ("winner", winner)


def judge(runs: Sequence[Run], alpha: float, confidence: float, failures: Sequence[str] = ()) -> Verdict:
    """The verdict on these runs, with ``alpha`` the share of the error that may be spent on it.

    Raises:
        ValueError: a side has no run.
    """
    baseline, winner = of("baseline", runs), of("winner", runs)
    if not baseline or not winner:
        raise ValueError("both sides need at least one measurement")
    found = effect(runs) or _confounded(baseline, winner)
    half = min(found.half(alpha), UNBOUNDED)
    kind, reason = _kind(runs, found.delta, half, alpha, failures)
    anyway = kind != "WIN" and not failures and _violation(baseline) > _violation(winner)
    if anyway:
        reason = f"{reason}; the winner keeps the SLO better and is the one to run, its gain unproven"
    return Verdict(
        kind=kind,
        gain=_relative(found.delta),
        low=_relative(found.delta - half),
        high=_relative(found.delta + half),
        confidence=confidence,
        baseline=float(np.mean([run.score.value for run in baseline])),
        winner=float(np.mean([run.score.value for run in winner])),
        unit=winner[0].score.unit,
        baseline_runs=len(baseline),
        winner_runs=len(winner),
        reason=reason,
        noise=math.sqrt(found.variance),
        winner_anyway=anyway,
    )


def _relative(delta: float) -> float:
    return math.expm1(min(delta, UNBOUNDED))


def _violation(runs: Sequence[Run]) -> float:
    return float(np.mean([run.score.violation for run in runs]))


def _confounded(baseline: Sequence[Run], winner: Sequence[Run]) -> Effect:
    means = [float(np.mean([run.log_goodness for run in side])) for side in (baseline, winner)]
    return Effect(means[1] - means[0], math.inf, 0.0, math.inf)


def _kind(
    runs: Sequence[Run], delta: float, half: float, alpha: float, failures: Sequence[str]
) -> tuple[VerdictKind, str]:
    winner = of("winner", runs)
    if failures:
        tried = len(winner) + len(failures)
        return "UNSTABLE", f"the winner failed in {len(failures)} of {tried} runs when measured again: {failures[0]}"
    if broken := [run.score for run in winner if run.score.violation > 0]:
        return (
            "UNSTABLE",
            f"the winner broke the SLO in {len(broken)} of {len(winner)} runs when it was measured again: "
            f"{broken[0].worst}",
        )
    if mended := _keeps_what_the_baseline_breaks(runs, alpha):
        return "WIN", f"it keeps the SLO that the baseline breaks: {mended}"
    if delta - half > 0:
        return "WIN", "the interval lies above no gain"
    if broken := [run.score for run in of("baseline", runs) if run.score.violation > 0]:
        said = f"the baseline broke the SLO in {len(broken)} of {len(of('baseline', runs))} runs: {broken[0].worst}"
        return "UNSTABLE", f"no gain beyond the noise, but {said}"
    if delta + half < 0:
        return "UNSTABLE", "the baseline was better when both were measured again; keep the baseline"
    if half > NOISY:
        return "UNSTABLE", f"too noisy to tell the two apart: {_varied(runs)}"
    return "TIE", "the difference lies within the noise"


def _keeps_what_the_baseline_breaks(runs: Sequence[Run], alpha: float) -> str:
    """The broken limit in words, when the baseline breaks it by more than the noise; the winner keeps all."""
    baseline = of("baseline", runs)
    if not all(run.score.violation > 0 for run in baseline):
        return ""
    mended = effect(runs, lambda run: -math.log1p(run.score.violation))
    return baseline[0].score.worst if mended and mended.delta > mended.half(alpha) else ""


def _varied(runs: Sequence[Run]) -> str:
    """What made the runs differ: what can be told from chance, then how far they lie apart all the same."""
    runs = in_order(runs)
    found = effect(runs)
    if found is None:
        return "each configuration had nodes of its own, and nodes may differ; only a node that both run on can tell"
    y = np.array([run.log_goodness for run in runs])
    sides = np.array([[1.0, float(run.side == "winner")] for run in runs])
    time = np.hstack([blocks(len(runs)), np.arange(len(runs), dtype=np.float64)[:, None]])
    causes = []
    if chance(y, sides, nodes([run.node for run in runs])) < PLAIN:
        causes.append(f"the nodes differ ({_levels(runs)})")
    if chance(y, sides, time) < PLAIN:
        causes.append("the level changed over time")
    return "; ".join([*causes, f"the runs of one configuration differ by {math.sqrt(found.variance):.0%}"])


def _levels(runs: Sequence[Run]) -> str:
    by_node: dict[str, list[float]] = {}
    for run in runs:
        by_node.setdefault(run.node or "unknown", []).append(run.log_goodness)
    means = {name: float(np.mean(values)) for name, values in sorted(by_node.items())}
    return ", ".join(f"{name} {math.expm1(mean - max(means.values())):+.0%}" for name, mean in means.items())
