"""Whether to measure again, after each batch of confirming runs.

Looking several times gives chance several chances. Each look may therefore spend only a part of the error that
the confidence leaves, in proportion to the runs that came since the look before; the parts add up to the whole
(Bonferroni's inequality, whatever the dependence between the looks). So the interval of the last look holds at
the stated confidence whichever look was the last, and for whatever reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raytune_autotuner.verdict.design import BLOCK
from raytune_autotuner.verdict.effect import effect, quantile
from raytune_autotuner.verdict.judge import NOISY, Verdict, judge
from raytune_autotuner.verdict.runs import Run, Side, of

RELEVANT = 0.01
"""No run is spent on telling a smaller gain from none."""
HOPE = 0.9
"""The gain is taken at this one-sided bound when it is asked whether more runs could show it."""


@dataclass(frozen=True)
class Settings:
    """``repeats`` (1 at least) and ``max_repeats`` count the runs of each side."""

    confidence: float = 0.95
    repeats: int = 2
    max_repeats: int = 6
    nodes: tuple[str, ...] = ()
    """Where the two configurations compare; the first two are used, in turn."""

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many runs of each side the result is looked at."""
        last = max(self.repeats, self.max_repeats)
        return (*range(self.repeats, last, 2), last)

    def alpha(self, repeats: int) -> float:
        """The share of the error that may be spent on a look after so many runs of each side."""
        at = min(repeats, self.looks[-1])
        before = max((look for look in self.looks if look < at), default=0)
        return (1 - self.confidence) * (at - before) / self.looks[-1]


@dataclass(frozen=True)
class Ask:
    """One more run. ``node`` is ``None`` where there is no choice."""

    side: Side
    node: str | None = None


@dataclass(frozen=True)
class Again:
    """``runs`` are wanted before the next look, in this order; two neighbours may run at once on their nodes."""

    runs: tuple[Ask, ...]
    reason: str


def decide(
    runs: Sequence[Run], settings: Settings, *, final: bool = False, failures: Sequence[str] = ()
) -> Verdict | Again:
    """What follows from the confirming runs so far; to be asked after each of them.

    ``final`` asks for the verdict as things stand: the budget is spent, or somebody wants to stop.
    ``failures`` are the reasons why runs of the winner failed by its own fault; one is enough for a verdict.

    Raises:
        ValueError: a verdict is due although a side has no run.
    """
    counts = [len(of(side, runs)) for side in ("baseline", "winner")]
    if final or failures or (min(counts) > 0 and _breaks_slo("winner", runs)):  # nothing mends a broken SLO
        return judge(runs, settings.alpha(max(1, min(counts))), settings.confidence, failures)
    look = next((look for look in settings.looks if look >= max(counts)), settings.looks[-1])
    if gap := missing(runs, look, settings.nodes):
        return Again(gap, f"{look} runs of each are wanted")
    alpha = settings.alpha(look)
    verdict = judge(runs, alpha, settings.confidence)
    following = next((later for later in settings.looks if later > look), None)
    if following is None or verdict.kind == "WIN" or _settled(runs, verdict, alpha, settings):
        return verdict
    reason = f"{verdict.gained()} ({verdict.interval()}) after {look} runs of each"
    return Again(missing(runs, following, settings.nodes), reason)


def _breaks_slo(side: Side, runs: Sequence[Run]) -> bool:
    return any(run.score.violation > 0 for run in of(side, runs))


def _settled(runs: Sequence[Run], verdict: Verdict, alpha: float, settings: Settings) -> bool:
    """Whether more runs would be wasted: a plain loss, no gain that matters, or none that they could show."""
    if _breaks_slo("baseline", runs):
        return False  # keeping it may be gain enough
    found = effect(runs)
    if found is None:
        return not settings.nodes  # there is none to bring them together on
    if verdict.high < 0:
        return True
    if (half := found.half(alpha)) > NOISY:
        return False
    last = settings.looks[-1]
    freedom = 2 * last - last // 2 - 2
    shown = quantile(1 - settings.alpha(last) / 2, freedom) * math.sqrt(found.variance * 2 / last)
    hoped = found.delta + quantile(HOPE, found.freedom) * found.error
    return found.delta + half < RELEVANT or hoped < shown


def schedule(repeats: int, nodes: Sequence[str]) -> list[Ask]:
    """A B B A, then B A A B, and so on; each side runs on both nodes within each four."""
    asks: list[Ask] = []
    for i in range(2 * repeats):
        turned = i // BLOCK % 2
        winner = (i % BLOCK in (1, 2)) != bool(turned)
        node = nodes[(i + turned) % 2] if len(nodes) > 1 else next(iter(nodes), None)
        asks.append(Ask("winner" if winner else "baseline", node))
    return asks


def missing(runs: Sequence[Run], repeats: int, nodes: Sequence[str]) -> tuple[Ask, ...]:
    """What of the schedule was not run yet; a run elsewhere than asked stands for one of its side."""
    wanted = schedule(repeats, nodes)
    for run in runs:
        same_side = [ask for ask in wanted if ask.side == run.side]
        if same_side:
            wanted.remove(next((ask for ask in same_side if ask.node == run.node), same_side[0]))
    return tuple(wanted)
