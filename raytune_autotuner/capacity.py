"""The search for the knee: the highest level of concurrency at which a load keeps the SLO. Pure.

From the first level on it is doubled until the SLO is broken; where the first one breaks it, it is halved until the SLO
is kept. Then the interval between the level that kept it and the one that broke it is halved until it is within the
tolerance. The number of probes is bounded, and the levels follow from what was kept and broken alone.
"""

from __future__ import annotations

from itertools import pairwise

from raytune_autotuner.records import LevelSearch


def next_level(search: LevelSearch, first: int, kept: int | None, broken: int | None) -> int | None:
    """What to try next; ``None`` when the knee is found, or when the lowest level breaks the SLO.

    ``kept`` is the highest level so far that kept the SLO, ``broken`` the lowest that broke it.
    """
    if kept is None:
        if broken is None:
            return first
        return max(search.low, broken // 2) if broken > search.low else None
    if broken is None:
        return min(2 * kept, search.high) if kept < search.high else None
    return (kept + broken) // 2 if broken - kept > max(1, search.tolerance * kept) else None


def most_probes(search: LevelSearch, first: int) -> int:
    """How many levels are tried at most."""
    most = 0
    for walk in (_walk(search, first, keeps=True), _walk(search, first, keeps=False)):
        halvings = (_halvings(search, min(pair), max(pair)) for pair in pairwise(walk))
        most = max([most, len(walk), *(n + 2 + probes for n, probes in enumerate(halvings))])
    return most


def _walk(search: LevelSearch, first: int, *, keeps: bool) -> list[int]:
    """What is tried while every level keeps the SLO, or every one breaks it."""
    levels: list[int] = []
    level: int | None = first
    while level is not None:
        levels.append(level)
        level = next_level(search, first, level if keeps else None, None if keeps else level)
    return levels


def _halvings(search: LevelSearch, kept: int, broken: int) -> int:
    """Of an interval, at most."""
    gap, probes = broken - kept, 0
    while gap > max(1, search.tolerance * kept):
        gap -= gap // 2
        probes += 1
    return probes
