"""What else than the configuration may have changed the values of runs, given their order and their nodes.

Every four successive runs (one A B B A) have a level of their own, so whatever changes slowly cancels; a common
slope within them takes out what changes steadily, and each node has its level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raytune_autotuner.verdict.runs import Side

BLOCK = 4
Columns = NDArray[np.float64]
Place = tuple[Side, str | None]


@dataclass(frozen=True)
class Design:
    """What least squares needs to know of the order and the places of the runs."""

    disturbed: Columns
    """Projects on what drift and nodes could have done."""
    cleared: NDArray[np.float64]
    """Which side each run was, as far as no disturbance looks like it."""
    weight: float
    freedom: int


@lru_cache(maxsize=1024)
def design_of(places: tuple[Place, ...]) -> Design | None:
    """The design of runs in the order of time, or ``None`` when each side had nodes of its own."""
    side = np.array([float(side == "winner") for side, _ in places])
    found = None
    for disturbance in _disturbances(places):
        disturbed = disturbance @ np.linalg.pinv(disturbance)
        cleared = side - disturbed @ side
        freedom = len(places) - round(float(np.trace(disturbed))) - 1
        if float(cleared @ cleared) > 1e-9:
            found = Design(disturbed, cleared, float(cleared @ cleared), freedom)
            if freedom > 0:
                break
    return found


def _disturbances(places: Sequence[Place]) -> Iterator[Columns]:
    """What else may have changed the values, as columns; the fullest description first."""
    names = [node for _, node in places]
    if len(places) == BLOCK and _cancels(places):
        yield blocks(len(places))  # nothing else can shift the difference, and freedom is precious
        return
    yield np.hstack([blocks(len(places)), nodes(names), _slope(len(places))])
    yield np.hstack([blocks(len(places)), nodes(names)])


def _cancels(places: Sequence[Place]) -> bool:
    """Whether the order cancels a steady drift, and the nodes were swapped."""
    sides = [side for side, _ in places]
    first = Counter(node for side, node in places if side == sides[0])
    second = Counter(node for side, node in places if side != sides[0])
    return sides[0] == sides[3] != sides[1] == sides[2] and first == second


def block_of(count: int) -> NDArray[np.int64]:
    """Which block each of ``count`` runs belongs to; what is left over belongs to the last."""
    return np.minimum(np.arange(count) // BLOCK, max(0, count // BLOCK - 1))


def blocks(count: int) -> Columns:
    """One column per block."""
    number = block_of(count)
    return np.asarray(number[:, None] == np.unique(number)[None, :], dtype=np.float64)


def nodes(names: Sequence[str | None]) -> Columns:
    """One column per node but the first."""
    known = [name or "" for name in names]
    others = sorted(set(known))[1:]
    return np.array([[float(name == other) for other in others] for name in known]).reshape(len(known), -1)


def _slope(count: int) -> Columns:
    """The place within the block."""
    number, place = block_of(count), np.arange(count, dtype=np.float64)
    for each in np.unique(number):
        place[number == each] -= place[number == each].mean()
    return place[:, None]
