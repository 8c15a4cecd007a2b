"""What an experiment achieved, judged by the table that it never saw."""

from __future__ import annotations

import math

from tests.emulator.simulation.controller import History
from tests.emulator.simulation.table import Table

WITHIN = 0.03


def gpu_hours_to_best(history: History, table: Table, within: float = WITHIN) -> float:
    """GPU-hours until the best found so far is near the exhaustive best for good; infinite when it never is.

    The best found so far is what the experiment itself takes for it, with the noise that it saw.
    """
    near, since = False, math.inf
    for each in history.ended:
        now_near = each.incumbent is not None and table.is_near_best(each.incumbent, within)
        if now_near and not near:
            since = each.spent_gpu_s / 3600
        near = now_near
    return since if near else math.inf


def regret(history: History, table: Table) -> float:
    """By how much the best found in the end is behind the exhaustive best."""
    winner = history.ended[-1].incumbent if history.ended else None
    return math.inf if winner is None else (table.loss(winner) - table.best) / abs(table.best)


def lost_share(history: History) -> float:
    """Share of the GPU-hours that went into configurations that cannot work."""
    return history.lost_gpu_s / history.gpu_s if history.gpu_s else 0.0
