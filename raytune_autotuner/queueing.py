"""The queue of an experiment: proposals wait for GPUs, and take them where there are some.

``line`` decides who is next, ``packing`` on which node, and ``reservation`` says it to Ray, which holds the
reservation until the trial's worker has ended, and with it the trial's pods.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.line import Line
from raytune_autotuner.packing import WHOLE, Need, Placement, Pool
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.ray_nodes import Unplaced
from raytune_autotuner.records import Parameters
from raytune_autotuner.reservation import Places, Reservation

LOOK_S = 1.0
"""So often the pool is told what others hold and which nodes there are."""
HOPE_S = 600.0
"""So long a node that is needed may be away."""
LINGER_S = 600.0
"""So long the teardown of a trial that was stopped early may take."""
PLACING_S = 60.0
"""Ray places a reservation at once, unless another job was faster: then it goes back into the line."""


class PlacedQueue:
    """See ``search.Queue``. Used by Tune's driver loop alone.

    ``look`` gives the nodes as they are now.
    ``tell`` is given every trial that waits with the reason, in words, whenever that changes.
    ``unplaced`` gives what Ray has been asked for and has not placed.
    """

    def __init__(
        self,
        look: Callable[[], Places],
        need: Callable[[Parameters], Need],
        tell: Callable[[dict[str, str]], None] = lambda waiting: None,
        clock: Callable[[], float] = time.monotonic,
        unplaced: Callable[[], Sequence[Unplaced]] = lambda: (),
    ) -> None:
        self._look_at_nodes = look
        self._look_at_unplaced = unplaced
        self._places = look()
        self._asked_need = need
        self._tell = tell
        self._clock = clock
        self._pool = self._places.pool()
        usual = self._need({})
        self._line: Line[Proposal] = Line(least=replace(usual, pods=usual.pods and (1,)))
        self._reclaimed: deque[tuple[Proposal, Placement]] = deque()
        """Trials of before that go on where their service still is."""
        self._held: dict[str, Placement] = {}
        self._lingering: list[tuple[Placement, float]] = []
        """Those of trials that have ended, which Ray may still hold, and since when."""
        self._started_at: dict[str, float] = {}
        self._unplaced: Sequence[Unplaced] = ()
        self._looked_at_unplaced = float("-inf")
        self._unfinished: dict[str, Proposal] = {}
        """Those that wait and those that run."""
        self._avoided: dict[str, frozenset[str]] = {}
        """Nodes on which a trial has failed, by its name."""
        self._looked = float("-inf")
        self._told: dict[str, str] = {}
        self._hopeless_since: float | None = None

    def __len__(self) -> int:
        return len(self._line) + len(self._reclaimed)

    def never(self, parameters: Parameters) -> str | None:
        """Why no wait could bring a configuration its GPUs."""
        return self._pool.never(self._need(parameters))

    def nodes_for(self, *configurations: Parameters) -> tuple[str, ...]:
        """The named nodes that can each hold any of these configurations whole, so that they can be compared there."""
        needs = [replace(self._need(each), cpus=0.0) for each in configurations]
        if not all(need.gpus for need in needs):
            return ()
        named = [name for name, place in self._places.by_name.items() if place.node is not None]
        alone = {name: Pool({name: self._pool.nodes[name]}) for name in named if name in self._pool.nodes}
        return tuple(sorted(name for name, pool in alone.items() if not any(map(pool.never, needs))))

    def kinds(self) -> dict[str, str]:
        """Which GPUs the nodes of Ray have, by name; empty text where Ray does not say it."""
        return {name: place.kind for name, place in self._places.by_name.items() if place.gpus}

    def wants_more(self) -> bool:
        self._look()
        return self._line.wants_more(self._pool)

    def add(self, proposal: Proposal) -> None:
        self._unfinished[proposal.trial.name] = proposal
        need = self._need_of(proposal)
        placement = self._former(proposal, need)
        if placement is None:
            self._line.add(proposal, need, in_order=_confirms(proposal))
        else:
            self._pool.hold(placement)
            self._reclaimed.append((proposal, placement))

    def start(self) -> Proposal | None:
        found = self._reclaimed.popleft() if self._reclaimed else self._line.start_next(self._pool)
        if found is None and self._line and not self._held:
            # Tune, with nothing to run, gives back what has ended only when it has something again
            self._pool.forgive(placement for placement, _ in self._lingering)
            found = self._line.start_next(self._pool)
        self._report()
        if found is None:
            return None
        proposal, placement = found
        self._held[proposal.trial.name] = placement
        self._started_at[proposal.trial.name] = self._clock()
        return replace(proposal, place=self._places.reservation(placement).to_dict())

    def release(self, proposal: Proposal, *, elsewhere: bool = False) -> None:
        name = proposal.trial.name
        placement = self._held.pop(name)
        if not self._is_unplaced(name, Reservation.from_dict(proposal.place)):
            self._lingering.append((placement, self._clock()))
        del self._started_at[name]
        self._unfinished.pop(name, None)
        self._pool.release(placement)
        if elsewhere:
            self._avoided[name] = self._avoided.get(name, frozenset()) | set(placement.nodes)

    def is_lost(self, proposal: Proposal) -> bool:
        """Whether a node of its reservation is gone from Ray, or another job has taken what was free there."""
        self._look()
        alive = {place.ray_node.id for place in self._places.by_name.values()}
        reservation = Reservation.from_dict(proposal.place)
        return not reservation.ray_nodes <= alive or self._is_unplaced(proposal.trial.name, reservation)

    def _is_unplaced(self, name: str, reservation: Reservation) -> bool:
        now = self._clock()
        if now - self._started_at[name] < PLACING_S:
            return False
        if now - self._looked_at_unplaced >= PLACING_S:
            self._unplaced, self._looked_at_unplaced = self._look_at_unplaced(), now
        return any(each.bundles == reservation.bundles for each in self._unplaced)

    def unfinished(self) -> tuple[Proposal, ...]:
        """What waits and what runs. May be asked from any thread."""
        return tuple(self._unfinished.values())

    def has_other_place(self, proposal: Proposal) -> bool:
        """Whether a trial could ever run on other nodes than those that it has now."""
        others = set(self._pool.nodes) - set(self._held[proposal.trial.name].nodes)
        room = Pool({node: self._pool.nodes[node] for node in others})
        return bool(others) and room.never(replace(self._need(proposal.parameters), cpus=0.0)) is None

    def _need(self, parameters: Parameters) -> Need:
        """Who wants a node to itself gets the largest: on others it would be measured on less."""
        need = self._asked_need(parameters)
        return replace(need, cpus=self._pool.most_cpus) if need.cpus == WHOLE else need

    def _need_of(self, proposal: Proposal) -> Need:
        need = replace(self._need(proposal.parameters), avoid=self._avoided.get(proposal.trial.name, frozenset()))
        if _confirms(proposal) and proposal.node not in need.avoid and self._may_wait_for(proposal.node, need.gpus):
            return replace(need, avoid=frozenset(self._pool.nodes) - {proposal.node})
        return need

    def _may_wait_for(self, node: str | None, gpus: int) -> bool:
        """Whether a node comes free by the end of our own trials; what has just ended there is ours as well."""
        if node is None or self._pool.nodes.get(node, 0) < gpus:
            return False
        lingers = any(node in placement.nodes for placement, _ in self._lingering)
        return lingers or self._pool.can_be_cleared({node: gpus})

    def _former(self, proposal: Proposal, need: Need) -> Placement | None:
        """Where the trial was, if that was one node which still has its GPUs to give; who is to keep an order waits."""
        if proposal.node is None or proposal.node in need.avoid or not need.gpus or _confirms(proposal):
            return None
        room = {proposal.node: self._pool.free.get(proposal.node, 0)}
        return self._pool.find(need, room)

    def _look(self) -> None:
        if self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            self._places = self._look_at_nodes()
            self._places.update(self._pool)
            self._lingering = [each for each in self._lingering if self._may_linger(*each)]
            self._line.renew(self._need_of)
            self._give_up_hope()

    def _may_linger(self, placement: Placement, ended_at: float) -> bool:
        """Something that runs keeps Tune busy, which then gives back what it has; what is left is others'."""
        return self._pool.lingers(placement) and not (self._held and self._clock() - ended_at > LINGER_S)

    def _give_up_hope(self) -> None:
        """Nothing waits for ever: when nothing can run any more, somebody has to be told.

        Raises:
            EnvironmentFault: nothing has been able to run for too long.
        """
        waiting = self._line.waiting(self._pool)
        if self._held or not waiting or not all(self._pool.never(each.need) for each in waiting):
            self._hopeless_since = None
            return
        self._hopeless_since = self._clock() if self._hopeless_since is None else self._hopeless_since
        if self._clock() - self._hopeless_since > HOPE_S:
            raise EnvironmentFault(
                f"no trial has been able to run for {HOPE_S:.0f} s: {waiting[0].item.trial.name} {waiting[0].why}; "
                "bring the nodes back and resume the experiment"
            )

    def _report(self) -> None:
        waiting = {each.item.trial.name: each.why for each in self._line.waiting(self._pool)}
        if waiting != self._told:
            self._told = waiting
            self._tell(waiting)


def _confirms(proposal: Proposal) -> bool:
    """Whether it is one of those that compare only in their order, and each on the node that it was meant for."""
    return proposal.trial.purpose == "confirm"
