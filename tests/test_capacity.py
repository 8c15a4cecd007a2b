"""The search for the knee."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.capacity import most_probes, next_level
from raytune_autotuner.records import LevelSearch


def searched(search: LevelSearch, keeps: Callable[[int], bool]) -> tuple[list[int], int | None, int | None]:
    """The levels that are tried, the knee, and the level that breaks."""
    tried: list[int] = []
    kept = broken = None
    while (level := next_level(search, kept, broken)) is not None:
        tried.append(level)
        kept, broken = (level, broken) if keeps(level) else (kept, level)
    return tried, kept, broken


@pytest.mark.parametrize(
    ("search", "knee", "tried", "found"),
    [
        (LevelSearch(1, 64, 0.1), 11, [1, 2, 4, 8, 16, 12, 10, 11], (11, 12)),
        (LevelSearch(1, 64, 0.3), 11, [1, 2, 4, 8, 16, 12, 10], (10, 12)),
        (LevelSearch(1, 64, 1.0), 11, [1, 2, 4, 8, 16], (8, 16)),
        (LevelSearch(4, 100, 0.1), 3, [4], (None, 4)),
        (LevelSearch(4, 100, 0.1), 1000, [4, 8, 16, 32, 64, 100], (100, None)),
        (LevelSearch(5, 5, 0.1), 5, [5], (5, None)),
    ],
)
def test_doubled_then_halved(search: LevelSearch, knee: int, tried: list[int], found: tuple[int | None, int]) -> None:
    """Levels by hand: the tolerance ends the search, and so do the lowest and the highest level."""
    levels, *ends = searched(search, lambda level: level <= knee)
    assert (levels, tuple(ends)) == (tried, found)


@given(st.integers(1, 64), st.integers(0, 3000), st.floats(0.01, 1.0), st.integers(0, 3000))
def test_the_knee_is_found_within_the_bound(low: int, more: int, tolerance: float, knee: int) -> None:
    """For any true knee: it lies in the interval found, which is within tolerance, after no more probes than said."""
    search = LevelSearch(low, low + more, tolerance)
    tried, kept, broken = searched(search, lambda level: level <= knee)
    assert len(tried) == len(set(tried)) <= most_probes(search)
    assert kept is None or kept <= knee
    assert broken is None or broken > knee
    if kept is not None and broken is not None:
        assert broken - kept <= max(1, tolerance * kept)


@given(st.lists(st.booleans(), max_size=40))
def test_whatever_the_noise_the_search_ends(answers: list[bool]) -> None:
    """Also where a level is said to be kept above one that is not."""
    search = LevelSearch(1, 1024, 0.05)
    told = iter(answers)
    tried, _, _ = searched(search, lambda level: next(told, True))
    assert len(tried) <= most_probes(search)
