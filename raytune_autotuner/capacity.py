"""The search for the knee: the highest level of concurrency at which a load keeps the SLO. Pure.

The level is doubled from the lowest one until the SLO is broken, then the interval between the last level that kept it
and the first that broke it is halved until it is within the tolerance. The number of probes is bounded, and the levels
follow from what was kept and broken alone.
"""

from __future__ import annotations

from itertools import pairwise

from raytune_autotuner.records import LevelSearch


def next_level(search: LevelSearch, kept: int | None, broken: int | None) -> int | None:
    """What to try next; ``None`` when the knee is found.

    ``kept`` is the highest level so far that kept the SLO, ``broken`` the lowest that broke it.
    """
    if kept is None:
        return search.low if broken is None else None
    if broken is None:
        return min(2 * kept, search.high) if kept < search.high else None
    return (kept + broken) // 2 if broken - kept > max(1, search.tolerance * kept) else None


def most_probes(search: LevelSearch) -> int:
    """How many levels are tried at most."""
    doubling = [search.low]
    while (level := next_level(search, doubling[-1], None)) is not None:
        doubling.append(level)
    halvings = (_halvings(search, kept, broken) for kept, broken in pairwise(doubling))
    return max([len(doubling), *(n + 2 + probes for n, probes in enumerate(halvings))])


def _halvings(search: LevelSearch, kept: int, broken: int) -> int:
    """Of an interval, at most."""
    gap, probes = broken - kept, 0
    while gap > max(1, search.tolerance * kept):
        gap -= gap // 2
        probes += 1
    return probes
