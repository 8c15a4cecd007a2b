"""Who is next: the trials that wait for a place. Knows no Ray, no clock and no durations.

The widest that fits goes first, which leaves the narrow ones to fill the gaps. But who has been overtaken ``PATIENCE``
times comes before all others, and a place is cleared for it: nothing starts there any more that would be in its way, so
it waits at most for the end of those that ran at that moment, whatever arrives meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from raytune_autotuner.packing import Need, Placement, Pool

Item = TypeVar("Item")

LOOK_AHEAD = 8
"""Proposals that may wait. More pack little better (``scripts/bench_packing``) and know less of what was measured."""
PATIENCE = 8
"""Against 0 it saves 4 % of the time on one node of 8 GPUs, and makes no difference on many nodes."""
ONE_GPU = Need((1,))


@dataclass(eq=False)
class _Entry(Generic[Item]):
    item: Item
    need: Need
    in_order: bool
    overtaken: int = 0


@dataclass(frozen=True)
class Waiting(Generic[Item]):
    """One that waits, and for what, in words."""

    item: Item
    need: Need
    why: str


class Line(Generic[Item]):
    """The trials that wait for a place, the oldest first. ``least`` is the smallest need that may still come."""

    def __init__(self, *, look_ahead: int = LOOK_AHEAD, patience: int = PATIENCE, least: Need = ONE_GPU) -> None:
        self._look_ahead = look_ahead
        self._patience = patience
        self._least = least
        self._entries: list[_Entry[Item]] = []
        self._cleared_for: _Entry[Item] | None = None
        self._cleared: Mapping[str, int] = {}
        self._cleared_since = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, item: Item, need: Need, *, in_order: bool = False) -> None:
        """Those added ``in_order`` start in the order in which they were added."""
        self._entries.append(_Entry(item, need, in_order))

    def renew(self, need: Callable[[Item], Need]) -> None:
        """Tell what each of those that wait needs now."""
        for entry in self._entries:
            entry.need = need(entry.item)

    def start_next(self, pool: Pool) -> tuple[Item, Placement] | None:
        """Take a place for one of the trials, which thereby leaves the line; ``None`` when none may start now."""
        first = self._first(pool)
        self._clear_for(first, pool)
        tried = set()
        for entry in self._ranked(first):
            if entry.need in tried:
                continue
            tried.add(entry.need)
            if (placement := pool.take(entry.need, None if entry is first else self._room(pool))) is not None:
                self._leave(entry)
                return entry.item, placement
        return None

    def wants_more(self, pool: Pool) -> bool:
        """Whether another trial could use what ``start_next`` has left, and may be waited for."""
        return len(self) < self._look_ahead and pool.find(self._least, self._room(pool)) is not None

    def waiting(self, pool: Pool) -> list[Waiting[Item]]:
        return [Waiting(entry.item, entry.need, self._why(entry, pool)) for entry in self._entries]

    def hopeless(self, pool: Pool) -> list[Waiting[Item]]:
        """Take out those that can never start, such as after the loss of a node."""
        lost = [entry for entry in self._entries if pool.never(entry.need) is not None]
        self._entries = [entry for entry in self._entries if entry not in lost]
        return [Waiting(entry.item, entry.need, pool.why(entry.need)) for entry in lost]

    def _eligible(self) -> Iterator[_Entry[Item]]:
        in_order = False
        for entry in self._entries:
            if not (entry.in_order and in_order):
                yield entry
            in_order = in_order or entry.in_order

    def _first(self, pool: Pool) -> _Entry[Item] | None:
        """The oldest, once it has been overtaken often enough; nobody has been more often."""
        oldest = next((e for e in self._eligible() if pool.never(e.need) is None), None)
        return oldest if oldest is not None and oldest.overtaken >= self._patience else None

    def _ranked(self, first: _Entry[Item] | None) -> list[_Entry[Item]]:
        return sorted(self._eligible(), key=lambda entry: (entry is not first, -entry.need.gpus))

    def _clear_for(self, first: _Entry[Item] | None, pool: Pool) -> None:
        if first is self._cleared_for and pool.can_be_cleared(self._cleared):
            return
        self._cleared_for = first
        self._cleared = (pool.to_clear(first.need) or {}) if first is not None else {}
        self._cleared_since = pool.started

    def _room(self, pool: Pool) -> dict[str, int]:
        """What others than the first may use: on the nodes that are cleared for it only what it leaves over."""
        room = pool.free
        for node, gpus in self._cleared.items():
            if node in room:
                over = pool.nodes[node] - gpus - pool.taken_since(self._cleared_since, node)
                room[node] = max(0, min(room[node], over))
        return room

    def _leave(self, entry: _Entry[Item]) -> None:
        at = self._entries.index(entry)
        for older in self._entries[:at]:
            older.overtaken += 1
        del self._entries[at]
        if entry is self._cleared_for:
            self._cleared_for, self._cleared = None, {}

    def _why(self, entry: _Entry[Item], pool: Pool) -> str:
        if entry not in self._eligible():
            return "waits for those before it"
        why = pool.why(entry.need)
        if entry is self._cleared_for and self._cleared:
            return f"{why}; being cleared for it: {', '.join(self._cleared)}"
        return why
