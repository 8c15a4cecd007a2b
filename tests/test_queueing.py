"""The queue: which proposal is given which GPUs, and what those that wait are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.packing import Need
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.queueing import HOPE_S, LINGER_S, PLACING_S, PlacedQueue
from raytune_autotuner.ray_nodes import RayNode, Unplaced
from raytune_autotuner.records import Parameters, TrialId, config_hash
from raytune_autotuner.reservation import Places, Reservation
from raytune_autotuner.site import Local


@dataclass
class Cluster:
    """Two Ray nodes of 8 GPUs each on Kubernetes nodes, a clock, and what waits."""

    gpus: dict[str, int] = field(default_factory=lambda: {"gpu-1": 8, "gpu-2": 8})
    taken: dict[str, int] = field(default_factory=dict)
    now_s: float = 0.0
    waiting: dict[str, str] = field(default_factory=dict)
    unplaced: list[Unplaced] = field(default_factory=list)

    def look(self) -> Places:
        nodes = []
        for name, gpus in self.gpus.items():
            total = {"CPU": 16.0, "ome_gpu": float(gpus)}
            left = {"CPU": 16.0, "ome_gpu": float(gpus - self.taken.get(name, 0))}
            nodes.append(RayNode(f"id-{name}", "host", total, left, name))
        return Places.of(nodes)

    def queue(self) -> PlacedQueue:
        return PlacedQueue(self.look, need, self.tell, lambda: self.now_s, lambda: list(self.unplaced))

    def tell(self, waiting: Any) -> None:
        self.waiting = dict(waiting)

    def later(self, queue: PlacedQueue, seconds: float = 2.0) -> None:
        self.now_s += seconds
        queue.wants_more()


def need(parameters: Parameters) -> Need:
    return Need((int(parameters.get("tp") or 1),), 0.5)


def proposal(tp: int, n: int = 0, purpose: Any = "search", node: str | None = None) -> Proposal:
    parameters: Parameters = {"tp": tp, "n": n}
    return Proposal(TrialId(purpose, config_hash(parameters)), n, parameters, 0.0, node)


def place(started: Proposal | None) -> Reservation:
    assert started is not None
    return Reservation.from_dict(started.place)


def test_a_proposal_starts_with_the_reservation_that_ray_is_to_hold() -> None:
    """GPUs and the worker's CPU on one node, which the service is pinned to."""
    queue = Cluster().queue()
    queue.add(proposal(4))
    found = place(queue.start())
    assert found.bundles == ({"CPU": 0.5, "ome_gpu": 4.0},)
    assert found.selectors == ({"ray.io/node-id": f"id-{found.node}"},)
    assert found.node in ("gpu-1", "gpu-2")
    assert len(queue) == 0


def test_what_does_not_fit_waits_and_says_for_what() -> None:
    """Until one of those that run has given its GPUs back."""
    cluster = Cluster()
    queue = cluster.queue()
    for n in range(2):
        queue.add(proposal(8, n))
    first, second = queue.start(), queue.start()
    queue.add(proposal(8, 2))
    assert queue.start() is None
    assert len(queue) == 1
    (why,) = cluster.waiting.values()
    assert "8 GPUs" in why
    assert "0 of 8" in why
    assert first is not None
    assert second is not None
    queue.release(first)
    assert place(queue.start()).node == place(first).node
    assert cluster.waiting == {}


def test_what_others_hold_is_not_given_away() -> None:
    """Another job of the same Ray cluster, seen within a second."""
    cluster = Cluster(taken={"gpu-1": 6})
    queue = cluster.queue()
    queue.add(proposal(4, 1))
    queue.add(proposal(4, 2))
    queue.add(proposal(4, 3))
    assert [place(queue.start()).node for _ in range(2)] == ["gpu-2"] * 2
    assert queue.start() is None
    cluster.taken = {"gpu-2": 8}  # ours
    cluster.later(queue)
    assert place(queue.start()).node == "gpu-1"


def test_what_can_never_fit_is_known_beforehand() -> None:
    """With figures."""
    queue = Cluster().queue()
    assert queue.never({"tp": 8}) is None
    assert "16 GPUs on one node" in str(queue.never({"tp": 16}))


def test_a_trial_goes_on_where_its_service_is() -> None:
    """If the GPUs are still free there; else anywhere."""
    queue = Cluster().queue()
    queue.add(proposal(1, 0))
    queue.add(proposal(4, 1, node="gpu-2"))
    queue.add(proposal(4, 2, node="gpu-1"))
    queue.add(proposal(8, 3, node="gpu-2"))
    started = [queue.start() for _ in range(4)]
    assert [s and (s.parameters["tp"], place(s).node) for s in started[:2]] == [(4, "gpu-2"), (4, "gpu-1")]
    assert started[2] is not None
    assert started[2].parameters["tp"] == 1
    assert started[3] is None


def test_a_trial_that_failed_on_a_node_goes_to_another() -> None:
    """Where there is one that could hold it."""
    cluster = Cluster({"gpu-1": 8, "gpu-2": 8, "small": 2})
    queue = cluster.queue()
    queue.add(proposal(8))
    first = queue.start()
    assert first is not None
    assert queue.has_other_place(first)
    queue.release(first, elsewhere=True)
    queue.add(first)
    second = queue.start()
    assert place(second).node != place(first).node
    alone = Cluster({"gpu-1": 8, "small": 2}).queue()
    alone.add(proposal(8))
    only = alone.start()
    assert only is not None
    assert not alone.has_other_place(only)


def test_confirming_runs_start_in_their_order() -> None:
    """Wide or narrow: a drift must not look like a gain."""
    cluster = Cluster({"gpu-1": 8})
    queue = cluster.queue()
    for n, tp in enumerate((2, 8, 2)):
        queue.add(proposal(tp, n, "confirm"))
    first = queue.start()
    assert first is not None
    assert first.number == 0
    assert queue.start() is None
    queue.release(first)
    second = queue.start()
    assert second is not None
    assert second.number == 1


def test_more_is_wanted_while_there_is_room() -> None:
    """And not when everything is taken."""
    queue = Cluster({"gpu-1": 8}).queue()
    assert queue.wants_more()
    queue.add(proposal(8))
    queue.start()
    assert not queue.wants_more()


def test_nothing_waits_for_ever_for_nodes_that_are_gone() -> None:
    """When nothing has been able to run for a while, the experiment ends and can be resumed."""
    cluster = Cluster()
    queue = cluster.queue()
    queue.add(proposal(8))
    cluster.gpus = {"gpu-1": 4}
    cluster.later(queue)
    assert queue.start() is None
    assert "8 GPUs on one node" in next(iter(cluster.waiting.values()))
    cluster.later(queue, HOPE_S - 1)
    cluster.gpus = {"gpu-1": 8}
    cluster.later(queue)
    cluster.gpus = {"gpu-1": 4}
    cluster.later(queue)
    with pytest.raises(EnvironmentFault, match="bring the nodes back and resume"):
        cluster.later(queue, HOPE_S + 1)


def test_the_nodes_that_can_hold_a_configuration_are_named() -> None:
    """To measure it on more than one."""
    queue = Cluster({"gpu-1": 8, "gpu-2": 8, "small": 2}).queue()
    assert queue.nodes_for({"tp": 4}) == ("gpu-1", "gpu-2")
    assert queue.nodes_for({"tp": 2}, {"tp": 8}) == ("gpu-1", "gpu-2")
    assert queue.nodes_for({"tp": 2}, {"tp": 1}) == ("gpu-1", "gpu-2", "small")
    assert queue.nodes_for({"tp": 2}, {"tp": 16}) == ()


def test_nodes_of_ray_on_which_engines_run_can_be_chosen_as_well() -> None:
    """A trial is given the one that it is wanted on, and knows it; Ray says which GPUs it has, if it can."""
    total = {"CPU": 9.0, "GPU": 8.0}
    nodes = [RayNode("1", "a", {**total, "accelerator_type:H100": 1.0}, total), RayNode("2", "b", total, total)]
    queue = PlacedQueue(lambda: Places.of(nodes, "GPU"), need)
    assert queue.kinds() == {"a": "H100", "b": ""}
    assert queue.nodes_for({"tp": 8}) == ("a", "b")
    confirming(queue, (8, "b"), (8, "a"))
    assert [place(queue.start()).node for _ in range(2)] == ["b", "a"]


def confirming(queue: PlacedQueue, *asked: tuple[int, str]) -> None:
    """The runs of these widths on these nodes, in this order."""
    for n, (tp, node) in enumerate(asked):
        queue.add(proposal(tp, n, "confirm", node))


def test_a_confirming_run_waits_for_its_node_though_another_is_free() -> None:
    """Where both can run there is one node, so they take turns on it."""
    cluster = Cluster({"large": 8, "small": 4})
    queue = cluster.queue()
    confirming(queue, (4, "large"), (8, "large"), (4, "large"))
    seen = []
    while (started := queue.start()) is not None:
        assert queue.start() is None
        seen.append((started.number, place(started).node))
        queue.release(started)
    assert seen == [(0, "large"), (1, "large"), (2, "large")]


def test_nodes_are_swapped_whoever_ends_first() -> None:
    """The winner ends early on its node and then waits for the other one, which the baseline has yet."""
    cluster = Cluster()
    queue = cluster.queue()
    confirming(queue, (8, "gpu-1"), (8, "gpu-2"), (8, "gpu-1"), (8, "gpu-2"))
    baseline, winner = queue.start(), queue.start()
    assert baseline is not None
    assert winner is not None
    queue.release(winner)
    assert queue.start() is None
    assert "the most free is 0 of 8 on gpu-1" in cluster.waiting[proposal(8, 2, "confirm").trial.name]
    queue.release(baseline)
    assert [place(queue.start()).node for _ in range(2)] == ["gpu-1", "gpu-2"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_confirming_run_does_not_wait_for_a_node_that_others_take_or_that_is_gone(gone: bool) -> None:
    """Only for the end of our own trials."""
    cluster = Cluster()
    queue = cluster.queue()
    confirming(queue, (4, "gpu-1"), (8, "gpu-1"))
    assert place(queue.start()).node == "gpu-1"
    assert queue.start() is None
    cluster.taken = {"gpu-1": 8}  # half of it is ours
    if gone:
        del cluster.gpus["gpu-1"]
    cluster.later(queue)
    assert place(queue.start()).node == "gpu-2"


def test_what_our_own_trial_has_just_left_is_waited_for() -> None:
    """Ray still counts it as taken, as if others had it."""
    cluster = Cluster()
    queue = cluster.queue()
    confirming(queue, (8, "gpu-1"), (2, "gpu-2"), (8, "gpu-1"), (4, "gpu-1"))
    first, second = queue.start(), queue.start()
    assert first is not None
    assert place(second).node == "gpu-2"
    cluster.taken = {"gpu-1": 8, "gpu-2": 2}
    cluster.later(queue)
    queue.release(first)
    third = queue.start()
    assert third is not None
    queue.release(third)
    cluster.later(queue)
    assert queue.start() is None
    cluster.taken = {"gpu-2": 2}
    cluster.later(queue)
    assert place(queue.start()).node == "gpu-1"


def test_a_reservation_on_a_node_that_is_gone_is_lost() -> None:
    """Ray would wait for that node for ever; a machine that comes up again is another node of Ray."""
    cluster = Cluster()
    queue = cluster.queue()
    for n in range(2):
        queue.add(proposal(8, n))
    started = [queue.start(), queue.start()]
    assert not any(queue.is_lost(each) for each in started if each)
    del cluster.gpus["gpu-1"]
    cluster.later(queue)
    assert [queue.is_lost(each) for each in started if each] == [place(each).node == "gpu-1" for each in started]


def test_a_reservation_that_is_bound_to_no_node_is_never_lost() -> None:
    """Where Ray has a single node, there is nothing to choose."""
    cluster = Cluster(gpus={"gpu-1": 8})
    queue = cluster.queue()
    queue.add(proposal(8))
    started = queue.start()
    assert started is not None
    assert not place(started).ray_nodes
    assert not queue.is_lost(started)


def test_a_reservation_that_another_job_was_faster_for_is_lost() -> None:
    """Ray would wait for it without a word; back in the line, it says for what, and may go elsewhere."""
    cluster = Cluster()
    queue = cluster.queue()
    queue.add(proposal(8))
    started = queue.start()
    assert started is not None
    cluster.taken = {str(place(started).node): 8}
    cluster.unplaced = [Unplaced(({"CPU": 0.5, "ome_gpu": 8.0},), "no node has that free now")]
    assert not queue.is_lost(started), "its worker may just be starting"
    cluster.later(queue, PLACING_S)
    assert queue.is_lost(started)
    queue.release(started)
    cluster.later(queue)
    queue.add(proposal(8))
    assert place(queue.start()).node != place(started).node


def test_what_the_last_trial_has_not_given_back_yet_is_waited_for_in_ray() -> None:
    """Tune gives it back when it is given another trial; only what others hold is waited for in the line."""
    cluster = Cluster({"gpu-1": 8})
    queue = cluster.queue()
    queue.add(proposal(8))
    started = queue.start()
    assert started is not None
    cluster.taken = {"gpu-1": 8}
    cluster.later(queue)
    queue.release(started)
    cluster.later(queue)
    queue.add(proposal(8, 1))
    second = queue.start()
    assert place(second).node == "gpu-1"
    assert second is not None
    queue.release(second)
    cluster.taken = {}
    cluster.later(queue)
    cluster.taken = {"gpu-1": 8}
    cluster.later(queue)
    queue.add(proposal(8, 2))
    assert queue.start() is None


def test_what_others_hold_is_not_taken_for_ours_for_ever() -> None:
    """What ended long ago, while something else ran, has been given back; so has what Ray never placed."""
    cluster = Cluster({"gpu-1": 8, "gpu-2": 4})
    queue = cluster.queue()
    queue.add(proposal(8, 0))
    first = queue.start()
    assert first is not None
    queue.release(first)
    cluster.taken = {"gpu-1": 8}  # by another job, at once
    queue.add(proposal(4, 1))
    cluster.later(queue)
    second = queue.start()
    assert second is not None
    assert place(second).node == "gpu-2"
    cluster.later(queue, LINGER_S + 1)
    cluster.unplaced = [Unplaced(place(second).bundles, "no node has that free now")]
    queue.release(second)
    cluster.taken = {"gpu-1": 8, "gpu-2": 4}
    cluster.later(queue)
    queue.add(proposal(8, 2))
    queue.add(proposal(4, 3))
    assert queue.start() is None


def test_the_cpus_of_the_last_trial_are_waited_for_in_ray() -> None:
    """Where engines need no GPU, a trial has the machine to itself."""
    left = {"CPU": 8.0}
    nodes = lambda: [RayNode("r", "host", {"CPU": 8.0}, dict(left))]  # noqa: E731
    seconds = [0.0]
    queue = PlacedQueue(lambda: Places.of(nodes(), "GPU"), lambda p: Local().need(0), clock=lambda: seconds[0])
    queue.add(proposal(1))
    started = queue.start()
    assert started is not None
    left["CPU"] = 0.0
    queue.release(started)
    seconds[0] += 2
    queue.wants_more()
    queue.add(proposal(1, 1))
    assert queue.start() is not None


def test_a_reservation_that_ray_has_placed_is_not_lost() -> None:
    """However long its worker takes to start, and whatever others wait for."""
    cluster = Cluster(unplaced=[Unplaced(({"CPU": 1.0, "ome_gpu": 8.0},), "no node has that free now")])
    queue = cluster.queue()
    queue.add(proposal(8))
    started = queue.start()
    assert started is not None
    cluster.later(queue, 100 * PLACING_S)
    assert not queue.is_lost(started)


def test_a_trial_that_wants_a_node_to_itself_gets_a_whole_one() -> None:
    """As many CPUs as a Ray node declares, however many the driver's own machine has; a second one waits."""
    nodes = [RayNode(name, name, {"CPU": cpus}, {"CPU": cpus}) for name, cpus in (("head", 0.0), ("worker", 8.0))]
    queue = PlacedQueue(lambda: Places.of(nodes, "GPU"), lambda parameters: Local().need(0))
    assert queue.never({}) is None
    queue.add(proposal(1, 0))
    queue.add(proposal(1, 1))
    assert place(queue.start()).bundles == ({"CPU": 8.0},)
    assert queue.start() is None
    assert queue.wants_more() is False
