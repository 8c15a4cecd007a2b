"""The search for the knee."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.capacity import most_probes, next_level
from raytune_autotuner.records import LevelSearch


def searched(search: LevelSearch, first: int, keeps: Callable[[int], bool]) -> tuple[list[int], int | None, int | None]:
    """The levels that are tried, the knee, and the level that breaks."""
    tried: list[int] = []
    kept = broken = None
    while (level := next_level(search, first, kept, broken)) is not None:
        tried.append(level)
        kept, broken = (level, broken) if keeps(level) else (kept, level)
    return tried, kept, broken


@pytest.mark.parametrize(
    ("search", "first", "knee", "tried", "found"),
    [
        (LevelSearch(1, 64, 0.1), 1, 11, [1, 2, 4, 8, 16, 12, 10, 11], (11, 12)),
        (LevelSearch(1, 64, 0.3), 1, 11, [1, 2, 4, 8, 16, 12, 10], (10, 12)),
        (LevelSearch(1, 64, 1.0), 1, 11, [1, 2, 4, 8, 16], (8, 16)),
        (LevelSearch(4, 100, 0.1), 4, 3, [4], (None, 4)),
        (LevelSearch(4, 100, 0.1), 4, 1000, [4, 8, 16, 32, 64, 100], (100, None)),
        (LevelSearch(5, 5, 0.1), 5, 5, [5], (5, None)),
        (LevelSearch(1, 512, 0.1), 32, 12, [32, 16, 8, 12, 14, 13], (12, 13)),
        (LevelSearch(1, 512, 1.0), 32, 12, [32, 16, 8], (8, 16)),
        (LevelSearch(1, 512, 0.1), 32, 0, [32, 16, 8, 4, 2, 1], (None, 1)),
        (LevelSearch(3, 512, 0.1), 32, 0, [32, 16, 8, 4, 3], (None, 3)),
        (LevelSearch(1, 512, 0.1), 32, 40, [32, 64, 48, 40, 44], (40, 44)),
    ],
)
def test_doubled_or_halved_then_bisected(
    search: LevelSearch, first: int, knee: int, tried: list[int], found: tuple[int | None, int | None]
) -> None:
    """Levels by hand: the tolerance ends the search, and so do the lowest and the highest level."""
    levels, *ends = searched(search, first, lambda level: level <= knee)
    assert (levels, tuple(ends)) == (tried, found)


@given(st.integers(1, 64), st.integers(0, 500), st.integers(0, 3000), st.floats(0.01, 1.0), st.integers(0, 3000))
def test_the_knee_is_found_within_the_bound(low: int, above: int, more: int, tolerance: float, knee: int) -> None:
    """For any true knee: it lies in the interval found, which is within tolerance, after no more probes than said."""
    search, first = LevelSearch(low, low + above + more, tolerance), low + above
    tried, kept, broken = searched(search, first, lambda level: level <= knee)
    assert len(tried) == len(set(tried)) <= most_probes(search, first)
    assert all(search.low <= level <= search.high for level in tried)
    assert kept is not None or broken == search.low
    assert kept is None or kept <= knee
    assert broken is None or broken > knee
    if kept is not None and broken is not None:
        assert broken - kept <= max(1, tolerance * kept)


@given(st.sampled_from([1, 3, 100, 1024]), st.lists(st.booleans(), max_size=40))
def test_whatever_the_noise_the_search_ends(first: int, answers: list[bool]) -> None:
    """Also where a level is said to be kept above one that is not."""
    search = LevelSearch(1, 1024, 0.05)
    told = iter(answers)
    tried, _, _ = searched(search, first, lambda level: next(told, True))
    assert len(tried) == len(set(tried)) <= most_probes(search, first)


def test_no_fewer_probes_are_said_than_are_needed() -> None:
    """Nor more: of all knees, one needs as many as that, also where the search goes down."""
    search = LevelSearch(1, 512, 0.1)
    for first in (1, 32, 512):
        most = max(len(searched(search, first, lambda level, knee=knee: level <= knee)[0]) for knee in range(513))
        assert most == most_probes(search, first)
