"""On which nodes a trial has room. Knows no Ray, no clock and no durations; who is next is decided in ``line``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

Cost = Callable[[str, int], tuple[object, ...]]
"""Of taking that many GPUs of that node; the cheapest is taken."""

DUST = 1e-6
"""CPUs come in fractions, whose sums are not exact."""
SHOWN = 3
WHOLE = math.inf
"""CPUs of a need that wants a node to itself, whatever node it will be."""


@dataclass(frozen=True)
class GpuNode:
    """A node of a cluster, and its GPUs."""

    name: str
    allocatable: int
    free: int
    """Those that no pod has asked for."""
    product: str = ""
    """Which GPUs they are, where the node says it."""


@dataclass(frozen=True)
class Need:
    """What a trial takes: GPUs for each of its pods, CPUs for the worker that drives it."""

    pods: tuple[int, ...] = ()
    cpus: float = 0.0
    avoid: frozenset[str] = frozenset()
    """Nodes to keep away from as long as others could ever do, such as one that has just failed."""

    @property
    def gpus(self) -> int:
        return sum(self.pods)

    def __str__(self) -> str:
        if not self.gpus:
            return f"{self.cpus:g} CPUs"
        gpus = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}"
        pods = [pod for pod in self.pods if pod]
        return f"{gpus} on one node" if len(pods) == 1 else f"{gpus} in pods of {', '.join(map(str, pods))}"


def pods(gpus: int, replicas: int = 1, nodes: int = 1) -> tuple[int, ...]:
    """The pods of an engine with that many GPUs in each replica, each replica in equal parts on that many nodes.

    Raises:
        ValueError: there are no equal parts.
    """
    if gpus % nodes:
        raise ValueError(f"{gpus} GPUs cannot be split into {nodes} equal parts")
    return (gpus // nodes,) * (nodes * replicas) if gpus else ()


@dataclass(frozen=True)
class Placement:
    """GPUs by node, the largest share first; the trial's worker is there."""

    shares: tuple[tuple[str, int], ...]
    cpus: float = 0.0

    @property
    def home(self) -> str:
        return self.shares[0][0]

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(node for node, _ in self.shares)

    @property
    def gpus(self) -> int:
        return sum(gpus for _, gpus in self.shares)


class Pool:
    """GPUs by node, and CPUs for workers.

    Several nodes may share a host (a Ray node); without ``hosts`` each is its own, without ``cpus`` there are always
    enough.
    """

    def __init__(
        self, nodes: Mapping[str, int], cpus: Mapping[str, float] | None = None, hosts: Mapping[str, str] | None = None
    ) -> None:
        self._running: dict[int, Placement] = {}
        self._used: dict[str, int] = {}
        self._others: Mapping[str, int] = {}
        self._others_cpus: Mapping[str, float] = {}
        self.update(nodes, cpus, hosts)
        self.started = 0
        """So many placements were ever taken; those taken later have higher numbers."""

    @property
    def nodes(self) -> Mapping[str, int]:
        """The GPUs of each node, taken or not."""
        return self._gpus

    @property
    def most_cpus(self) -> float:
        """Those of the host that has the most, taken or not."""
        return max((self._cpus or {}).values(), default=0.0)

    @property
    def free(self) -> dict[str, int]:
        """The GPUs of each node that neither we nor others have."""
        return {node: left if left > 0 else 0 for node, left in self._left.items()}

    @property
    def taken(self) -> Mapping[str, int]:
        """The GPUs of each node that placements of this pool hold."""
        return {node: gpus for node, gpus in self._used.items() if gpus}

    def never(self, need: Need) -> str | None:
        """Why no wait could help, with figures; ``None`` when one could."""
        if self._fit(need, self._gpus, self._cpus, self._snug(self._gpus)) is not None:
            return None
        if self._fit(need, self._gpus, None, self._snug(self._gpus)) is not None:
            return f"needs {need.cpus:g} CPUs for its worker, the most on a node is {self.most_cpus:g}"
        return f"needs {need}, {self._sizes()}"

    def find(self, need: Need, within: Mapping[str, int] | None = None) -> Placement | None:
        """Where it would go now: one node if any has room, else the fewest; the smallest hole that will do."""
        room = self.free if within is None else within
        shares = self._fit(need, room, self._free_cpus(), self._snug(room))
        return None if shares is None else Placement(shares, need.cpus)

    def take(self, need: Need, within: Mapping[str, int] | None = None) -> Placement | None:
        """``find``, and hold it until ``release``."""
        placement = self.find(need, within)
        if placement is not None:
            self.hold(placement)
        return placement

    def hold(self, placement: Placement) -> None:
        """Take exactly this, whether it fits or not, such as what a trial had before a restart."""
        self.started += 1
        self._running[self.started] = placement
        self._count(placement, 1)

    def release(self, placement: Placement) -> None:
        """Give back what was taken; its nodes may be gone by then.

        Raises:
            ValueError: it is not held.
        """
        number = next((n for n, held in self._running.items() if held == placement), None)
        if number is None:
            raise ValueError(f"{placement} is not held")
        del self._running[number]
        self._count(placement, -1)

    def lose(self, node: str) -> None:
        """The node is no more; what runs there is released by whoever took it."""
        self._gpus.pop(node, None)
        self._recount()

    def update(
        self, nodes: Mapping[str, int], cpus: Mapping[str, float] | None = None, hosts: Mapping[str, str] | None = None
    ) -> None:
        """The nodes as they are now; what is held stays held."""
        self._gpus = dict(nodes)
        self._cpus = None if cpus is None else dict(cpus)
        self._hosts = dict(hosts or {})
        self._recount()

    def set_in_use(self, gpus: Mapping[str, int], cpus: Mapping[str, float] | None = None) -> None:
        """What is in use by node, and by host, in all: what is above our own placements is held by others."""
        self._others = {node: max(0, in_use - self._used.get(node, 0)) for node, in_use in gpus.items()}
        ours = self._used_cpus()
        self._others_cpus = {host: max(0.0, in_use - ours.get(host, 0.0)) for host, in_use in (cpus or {}).items()}
        self._recount()

    def lingers(self, placement: Placement) -> bool:
        """Whether others seem to hold something where this was, so that it may not have been given back yet."""
        home = self._host(placement.home)
        return self._others_cpus.get(home, 0.0) > DUST or any(self._others.get(node, 0) for node in placement.nodes)

    def forgive(self, placements: Iterable[Placement]) -> None:
        """Take these out of what others seem to hold, until the next ``set_in_use``."""
        gpus, cpus = dict(self._others), dict(self._others_cpus)
        for placement in placements:
            home = self._host(placement.home)
            cpus[home] = max(0.0, cpus.get(home, 0.0) - placement.cpus)
            for node, share in placement.shares:
                gpus[node] = max(0, gpus.get(node, 0) - share)
        self._others, self._others_cpus = gpus, cpus
        self._recount()

    def to_clear(self, need: Need) -> Mapping[str, int] | None:
        """The GPUs by node that come free for it first: where the last of those in the way began earliest."""
        without_others = {node: gpus - self._others.get(node, 0) for node, gpus in self._gpus.items()}
        cost = self._last_in_the_way()
        for room in (without_others, self._gpus):
            shares = self._fit(need, room, self._cpus, cost)
            if shares is not None:
                return dict(shares)
        return None

    def can_be_cleared(self, shares: Mapping[str, int]) -> bool:
        """Whether the end of our own trials is enough."""
        return all(self._gpus.get(node, 0) - self._others.get(node, 0) >= gpus for node, gpus in shares.items())

    def taken_since(self, number: int, node: str) -> int:
        """The GPUs of a node in placements taken after the first ``number``, and still held."""
        return sum(
            gpus for n, held in self._running.items() if n > number for name, gpus in held.shares if name == node
        )

    def why(self, need: Need) -> str:
        """What is missing right now, with figures."""
        if (never := self.never(need)) is not None:
            return never
        free = self._allowed(need, self.free)
        if self._fit(need, free, None, self._snug(free)) is not None:
            if self.find(need) is not None:
                return "next in turn"
            return f"needs {need.cpus:g} CPUs for its worker; other trials have them"
        most = sorted(free, key=lambda node: (-free[node], node))[: 1 if len(need.pods) == 1 else SHOWN]
        said = ", ".join(f"{free[node]} of {self._gpus[node]} on {node}" for node in most)
        return f"needs {need}; the most free is {said}"

    def _fit(
        self, need: Need, room: Mapping[str, int], cpus: Mapping[str, float] | None, cost: Cost
    ) -> tuple[tuple[str, int], ...] | None:
        if cpus is not None:
            room = {n: gpus for n, gpus in room.items() if cpus.get(self._host(n), 0.0) >= need.cpus - DUST}
        return fit(need.pods or (0,), self._allowed(need, room), cost)

    def _allowed(self, need: Need, room: Mapping[str, int]) -> Mapping[str, int]:
        if not need.avoid or not self._others_could_do(need):
            return room
        return {n: gpus for n, gpus in room.items() if n not in need.avoid}

    def _others_could_do(self, need: Need) -> bool:
        room = {n: gpus for n, gpus in self._gpus.items() if n not in need.avoid}
        return self._fit(Need(need.pods, need.cpus), room, self._cpus, self._snug(room)) is not None

    def _snug(self, room: Mapping[str, int]) -> Cost:
        return lambda node, gpus: (room[node], self._gpus[node], node)

    def _last_in_the_way(self) -> Cost:
        """When the last of those began that must end first: who began early ends early, as a rule."""
        free = self.free
        ends: dict[str, list[tuple[int, int]]] = {}
        for number, held in self._running.items():  # in the order in which they began
            for node, gpus in held.shares:
                ends.setdefault(node, []).append((number, gpus))

        def cost(node: str, gpus: int) -> tuple[object, ...]:
            left, last = free[node], 0
            for number, freed in ends.get(node, ()):
                if left >= gpus:
                    break
                left, last = left + freed, number
            return (last, gpus - free[node], node)

        return cost

    def _recount(self) -> None:
        self._left = {n: gpus - self._used.get(n, 0) - self._others.get(n, 0) for n, gpus in self._gpus.items()}

    def _count(self, placement: Placement, sign: int) -> None:
        for node, gpus in placement.shares:
            self._used[node] = self._used.get(node, 0) + sign * gpus
            if node in self._left:
                self._left[node] -= sign * gpus

    def _free_cpus(self) -> Mapping[str, float] | None:
        if self._cpus is None:
            return None
        ours, others = self._used_cpus(), self._others_cpus
        return {host: cpus - ours.get(host, 0.0) - others.get(host, 0.0) for host, cpus in self._cpus.items()}

    def _used_cpus(self) -> dict[str, float]:
        used: dict[str, float] = {}
        for held in self._running.values():
            host = self._host(held.home)
            used[host] = used.get(host, 0.0) + held.cpus
        return used

    def _host(self, node: str) -> str:
        return self._hosts.get(node, node)

    def _sizes(self) -> str:
        sizes = [(gpus, name) for name, gpus in self._gpus.items() if gpus]
        if not sizes:
            return "no node has any"
        if len(sizes) > 1 and len({gpus for gpus, _ in sizes}) == 1:
            return f"each of the {len(sizes)} nodes has {sizes[0][0]}"
        largest = sorted(sizes, key=lambda size: (-size[0], size[1]))[:SHOWN]
        return f"the largest {'have' if len(largest) > 1 else 'has'} {', '.join(f'{g} ({n})' for g, n in largest)}"


def fit(pods: Sequence[int], room: Mapping[str, int], cost: Cost) -> tuple[tuple[str, int], ...] | None:
    """Shares of the fewest nodes that can hold these pods, each pod on one node; the largest share first."""
    roomiest = tuple(sorted(room.values(), reverse=True))
    largest_first = tuple(sorted(pods, reverse=True))
    for count in range(1, min(len(pods), len(roomiest)) + 1):
        if (sums := _sums(largest_first, roomiest[:count])) is not None:
            return tuple(_assigned(sorted(sums, reverse=True), room, cost))
    return None


@lru_cache(maxsize=4096)
def _sums(pods: tuple[int, ...], bins: tuple[int, ...]) -> tuple[int, ...] | None:
    """What to put into each bin; if the largest bins cannot hold the pods, no others can."""
    if not pods:
        return (0,) * len(bins)
    if sum(pods) > sum(bins):
        return None
    for at, left in enumerate(bins):
        if left >= pods[0] and left not in bins[:at]:
            rest = _sums(pods[1:], (*bins[:at], left - pods[0], *bins[at + 1 :]))
            if rest is not None:
                return (*rest[:at], rest[at] + pods[0], *rest[at + 1 :])
    return None


def _assigned(sums: Sequence[int], room: Mapping[str, int], cost: Cost) -> Iterator[tuple[str, int]]:
    """A node for each sum, the largest first because it has the least choice."""
    left = set(room)
    for gpus in sums:
        node = min((n for n in left if room[n] >= gpus), key=lambda n: cost(n, gpus))
        left.remove(node)
        yield node, gpus
