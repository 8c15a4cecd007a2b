"""Whether the winner is really better than the baseline, and by how much. Pure.

Both are measured several times, in turn (A B B A …). The gain is the ratio of their goodness (the objective's
value, or its inverse where smaller is better), so 0.2 means 20 % better. ``decide`` says after each run whether
more of them are needed; ``compare`` judges a fixed number of them; ``drift`` tells from the baseline's repeats in
the course of a search whether values that were measured at different times or on different nodes compare.
"""

from __future__ import annotations

from raytune_autotuner.verdict.drift import Drift, drift
from raytune_autotuner.verdict.effect import Effect, effect
from raytune_autotuner.verdict.judge import Verdict, VerdictKind, compare
from raytune_autotuner.verdict.noise import measured, within_variance
from raytune_autotuner.verdict.runs import Measurement, Run, Side, log_goodness
from raytune_autotuner.verdict.sequential import Again, Ask, Settings, decide

__all__ = [
    "Again",
    "Ask",
    "Drift",
    "Effect",
    "Measurement",
    "Run",
    "Settings",
    "Side",
    "Verdict",
    "VerdictKind",
    "compare",
    "decide",
    "drift",
    "effect",
    "log_goodness",
    "measured",
    "within_variance",
]
