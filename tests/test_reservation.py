"""Reservations: what Ray's nodes are to the packer, what a placement is to Ray, and a real cluster of several nodes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
from ray._private import state

from raytune_autotuner import ray_nodes
from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.line import Line
from raytune_autotuner.packing import GpuNode, Need, Placement
from raytune_autotuner.ray_nodes import NODE_LABEL, NODE_VARIABLE, RayNode, RayNodes, unplaced
from raytune_autotuner.reservation import OME_GPU, RAY_GPU, Places, Reservation, declared
from tests.ray_cluster import Node, RayCluster, ray_cluster
from tests.waiting import until

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(900),  # a busy machine takes minutes to start a node of Ray
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def ray_node(name: str, gpus: int = 8, left: int | None = None, kubernetes: str | None = None) -> RayNode:
    total = {"CPU": 4.0, OME_GPU: float(gpus)}
    left_over = {"CPU": 4.0, OME_GPU: float(gpus if left is None else left)}
    return RayNode(f"{name}0123456789", "host", total, left_over, kubernetes)


HEAD = RayNode("head0123456789", "host", {}, {})
MIRRORED = [HEAD, ray_node("r1", kubernetes="gpu-1"), ray_node("r2", kubernetes="gpu-2")]
OURS = RayNode("r0", "laptop", {"CPU": 2.0, "ome_gpu:gpu-1": 8.0, "ome_gpu:gpu-2": 6.0}, {"CPU": 2.0})


# Values


def test_ray_nodes_are_known_by_their_kubernetes_nodes() -> None:
    """The pool has a node for each that has GPUs or CPUs, and none for a head without either."""
    assert Places.of(MIRRORED).pool().nodes == {"gpu-1": 8, "gpu-2": 8}


def test_a_node_without_a_name_is_known_by_host_and_id() -> None:
    """Several Ray nodes of one host stay apart."""
    assert Places.of([ray_node("aaaaaa"), ray_node("bbbbbb")]).pool().nodes == {"host/aaaaaa": 8, "host/bbbbbb": 8}


def test_a_placement_is_pinned_to_ray_and_kubernetes_node() -> None:
    """One bundle, with the worker's CPU."""
    made = Places.of(MIRRORED).reservation(Placement((("gpu-2", 4),), 0.5))
    assert made == Reservation(({"CPU": 0.5, OME_GPU: 4.0},), ({NODE_LABEL: "r20123456789"},), ("gpu-2",))
    assert made.node == "gpu-2"


def test_a_placement_on_several_nodes_has_a_bundle_for_each() -> None:
    """The worker is at the first, and no single node is named."""
    made = Places.of(MIRRORED).reservation(Placement((("gpu-2", 8), ("gpu-1", 4)), 0.5))
    assert made.bundles == ({"CPU": 0.5, OME_GPU: 8.0}, {OME_GPU: 4.0})
    assert made.selectors == ({NODE_LABEL: "r20123456789"}, {NODE_LABEL: "r10123456789"})
    assert (made.node, made.nodes) == (None, ("gpu-2", "gpu-1"))


def test_a_ray_of_our_own_has_one_resource_for_each_kubernetes_node() -> None:
    """What is free there is declared, becomes the pool, and is what a trial reserves; its CPUs are shared."""
    free = [GpuNode("gpu-1", 8, 8), GpuNode("gpu-2", 8, 6), GpuNode("full", 8, 0)]
    assert declared(free) == {"ome_gpu:gpu-1": 8.0, "ome_gpu:gpu-2": 6.0}
    places = Places.of([replace(OURS, left=OURS.total)])
    pool = places.pool()
    placement = pool.take(Need((6,), 1.5))
    assert placement is not None
    assert places.reservation(placement) == Reservation(({"CPU": 1.5, "ome_gpu:gpu-2": 6.0},), ({},), ("gpu-2",))
    assert pool.take(Need((1,), 1.0)) is None, "no CPU is left for another worker"
    assert pool.take(Need((), 0.5)) == Placement((("laptop/r0", 0),), 0.5)


def test_engines_on_ray_nodes_reserve_rays_own_gpus() -> None:
    """And a trial without GPUs the CPUs alone, as large as it says."""
    node = RayNode("r1", "box", {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0})
    places = Places.of([node], RAY_GPU)
    pool = places.pool()
    with_gpus = pool.take(Need((4,), 1.0))
    assert with_gpus is not None
    assert places.reservation(with_gpus).bundles == ({"CPU": 1.0, "GPU": 4.0},)
    assert pool.take(Need((), 16.0)) is None
    pool.release(with_gpus)
    whole = pool.take(Need((), 16.0))
    assert whole is not None
    assert places.reservation(whole) == Reservation(({"CPU": 16.0},), ({},), ())


def test_engines_on_ray_nodes_are_told_apart_by_their_machines() -> None:
    """By name, which stays the same when Ray is begun anew; several Ray nodes of one machine need none."""
    total = {"CPU": 16.0, "GPU": 8.0}
    head = RayNode("head00", "one", {}, {})
    one, other, same = (RayNode(f"{host}{n}", host, total, total) for n, host in enumerate(("one", "other", "other")))
    reserved = Places.of([head, one, other], RAY_GPU).reservation(Placement((("other", 4),), 1.0))
    assert (reserved.node, reserved.selectors) == ("other", ({NODE_LABEL: "other1"},))
    shared = Places.of([one, other, same], RAY_GPU)
    assert list(shared.by_name) == ["one", "other/other1", "other/other2"]
    assert shared.reservation(Placement((("other/other1", 4),), 1.0)).node is None
    named = Places.of([replace(one, kubernetes="gpu-1")], RAY_GPU)
    assert named.reservation(Placement((("gpu-1", 4),), 1.0)).node == "gpu-1"


def test_a_reservation_survives_json() -> None:
    """It travels in a trial's configuration."""
    made = Places.of(MIRRORED).reservation(Placement((("gpu-1", 8), ("gpu-2", 8)), 0.5))
    assert Reservation.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_equal_reservations_are_equal_requests() -> None:
    """Tune matches placement groups to trials by that, with the node."""
    places = Places.of(MIRRORED)
    first, second = (places.reservation(Placement(((node, 4),), 0.5)) for node in ("gpu-1", "gpu-2"))
    assert first.request() == Reservation.from_dict(first.to_dict()).request()
    assert first.request() != second.request()
    assert first.request().required_resources == {"CPU": 0.5, OME_GPU: 4.0}


def test_the_pool_follows_ray() -> None:
    """Nodes come and go, what others hold is not free, and a node that came back is the one it was."""
    pool = Places.of(MIRRORED).pool()
    ours = pool.take(Need((8,), 0.5))
    assert ours is not None
    Places.of([ray_node("r1", left=0, kubernetes="gpu-1"), ray_node("r2", left=5, kubernetes="gpu-2")]).update(pool)
    assert pool.free == {"gpu-1": 0, "gpu-2": 5}
    Places.of([ray_node("r2", kubernetes="gpu-2")]).update(pool)
    assert pool.free == {"gpu-2": 8}
    Places.of([ray_node("r3", kubernetes="gpu-1"), ray_node("r2", kubernetes="gpu-2")]).update(pool)
    assert pool.free == {"gpu-1": 0, "gpu-2": 8}, "a new worker pod on gpu-1, where our engine still runs"
    pool.release(ours)
    assert pool.free == {"gpu-1": 8, "gpu-2": 8}


def test_a_node_that_another_job_has_filled_is_not_chosen() -> None:
    """The trial goes to the one that is free."""
    places = Places.of([ray_node("r1", left=0, kubernetes="gpu-1"), ray_node("r2", kubernetes="gpu-2")])
    line: Line[str] = Line()
    line.add("wide", Need((8,), 0.5))
    assert line.start_next(places.pool()) == ("wide", Placement((("gpu-2", 8),), 0.5))


def test_declared_and_real_agree() -> None:
    """No warning where Ray has to give what Kubernetes has free, whatever runs already."""
    places = Places.of([ray_node("r1", left=2, kubernetes="gpu-1"), HEAD])
    assert places.check([GpuNode("gpu-1", 8, 2)]) == []


def test_warns_where_declared_and_real_differ() -> None:
    """With figures, in both directions."""
    nodes = [
        ray_node("r1", kubernetes="gpu-1"),
        ray_node("r2", 4, kubernetes="gpu-2"),
        ray_node("r3", kubernetes="gone"),
    ]
    assert Places.of(nodes).check([GpuNode("gpu-1", 8, 6), GpuNode("gpu-2", 8, 8), GpuNode("gpu-3", 8, 8)]) == [
        "Ray node gpu-1 declares 8 ome_gpu and has 8 to give, Kubernetes has 6 free of 8 there: trials will wait for "
        "GPUs",
        "Ray node gone declares 8 ome_gpu, Kubernetes has no such node with GPUs that pods may use",
        "Ray declares 4 ome_gpu on gpu-2, Kubernetes has 8 free of 8 there: the rest is not used",
        "Ray declares 0 ome_gpu on gpu-3, Kubernetes has 8 free of 8 there: the rest is not used",
    ]


def test_warns_of_nodes_that_do_not_say_where_they_are() -> None:
    """Nothing can be compared or pinned there."""
    assert Places.of([ray_node("aaaaaa")]).check([GpuNode("gpu-1", 8, 8)]) == [
        "Ray node host/aaaaaa declares 8 ome_gpu but not its Kubernetes node (RAYTUNE_AUTOTUNER_NODE): "
        "services are not pinned to it"
    ]


def test_two_ray_nodes_on_one_kubernetes_node_are_not_both_used() -> None:
    """Its GPUs would be given away twice."""
    places = Places.of([ray_node("r1", kubernetes="gpu-1"), ray_node("r2", kubernetes="gpu-1")])
    assert places.pool().nodes == {"gpu-1": 8}
    assert places.check([GpuNode("gpu-1", 8, 8)]) == [
        "two Ray nodes say that they are on gpu-1; one of them is not used"
    ]


@ray.remote(num_cpus=0, max_retries=0)
def _dies() -> None:
    os._exit(1)


# A real cluster: a head without CPUs and two nodes with GPUs, each a process of its own


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    nodes = [Node(name, resources={OME_GPU: 8}, env={NODE_VARIABLE: name}) for name in ("gpu-1", "gpu-2")]
    with ray_cluster(*nodes, token=False) as made:
        ray.init(address=made.gcs, log_to_driver=False, logging_level="ERROR")
        try:
            yield made
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def places(cluster: RayCluster) -> Places:
    return Places.of(RayNodes(OME_GPU).read(wait=True))


def test_each_node_says_where_it_is(places: Places) -> None:
    """By its environment; and the head has no place for a trial."""
    assert {name: place.node for name, place in places.by_name.items()} == {"gpu-1": "gpu-1", "gpu-2": "gpu-2"}
    assert places.pool().free == {"gpu-1": 8, "gpu-2": 8}


def test_a_node_that_does_not_answer_in_time_is_asked_again(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing waits for ever: it is used without a name until then, with one warning."""
    monkeypatch.setattr(ray_nodes, "AGAIN_S", 0.0)
    nodes = RayNodes(OME_GPU, patience_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(ray, "wait", lambda answers, **options: ([], answers))  # as if no worker had started yet
        for _ in range(2):
            assert [place.node for place in Places.of(nodes.read(wait=True)).by_name.values()] == [None, None]
    assert len([each for each in caplog.messages if "has not said" in each]) == 2  # one for each node
    nodes._patience_s = 60.0
    until(lambda: set(Places.of(nodes.read()).by_name) == {"gpu-1", "gpu-2"}, 60)


def test_a_node_whose_worker_died_before_it_answered_is_asked_again(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead worker says nothing of its node: without a name for ever, services would never be pinned to it."""
    monkeypatch.setattr(ray_nodes, "AGAIN_S", 0.0)
    nodes = RayNodes(OME_GPU)
    with monkeypatch.context() as patch:
        patch.setattr(ray_nodes, "_where", _dies)
        assert [place.node for place in Places.of(nodes.read(wait=True)).by_name.values()] == [None, None]
    until(lambda: set(Places.of(nodes.read()).by_name) == {"gpu-1", "gpu-2"}, 60)


def test_a_node_joins_when_it_has_said_where_it_is(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver does not wait for it meanwhile."""
    hidden = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get(OME_GPU))
    shown = ray.nodes
    nodes = RayNodes(OME_GPU)
    with monkeypatch.context() as patch:
        patch.setattr(ray, "nodes", lambda: [node for node in shown() if node["NodeID"] != hidden])
        pool = Places.of(nodes.read(wait=True)).pool()
    assert len(pool.nodes) == 1

    def free() -> dict[str, int]:
        places = Places.of(nodes.read())
        assert set(places.by_name) <= {"gpu-1", "gpu-2"}
        places.update(pool)
        return pool.free

    until(lambda: free() == {"gpu-1": 8, "gpu-2": 8}, 60)


def test_ray_puts_reservations_where_they_say(places: Places) -> None:
    """On one node each, though another has more room; and on two, the one of the worker first."""
    shares = [(("gpu-1", 2),), (("gpu-1", 2),), (("gpu-2", 2),), (("gpu-1", 4), ("gpu-2", 6))]
    wanted = [places.reservation(Placement(each, 0.5)) for each in shares]
    groups = [made.request().to_placement_group() for made in wanted]
    try:
        assert all(group.wait(60) for group in groups)
        for made, group in zip(wanted, groups, strict=True):
            told = ray.util.placement_group_table(group)["bundles_to_node_id"]
            assert [told[at] for at in range(len(made.selectors))] == [each[NODE_LABEL] for each in made.selectors]
    finally:
        for group in groups:
            ray.util.remove_placement_group(group)


def test_the_pool_sees_what_another_job_holds_and_says_what_waits(places: Places) -> None:
    """By node; a reservation that has no room is told in words, and is gone from them when it is withdrawn."""
    nodes = RayNodes(OME_GPU)
    until(lambda: set(Places.of(nodes.read(wait=True)).pool().free.values()) == {8})
    held = places.reservation(Placement((("gpu-2", 6),), 0.5)).request().to_placement_group()
    until(lambda: Places.of(nodes.read()).pool().free["gpu-2"] == 2)
    assert Places.of(nodes.read()).pool().free["gpu-1"] == 8
    waits = places.reservation(Placement((("gpu-2", 4),), 0.5)).request().to_placement_group()
    until(
        lambda: (
            list(map(str, unplaced())) == ["Ray has not placed 0.5 CPU and 4 ome_gpu yet: no node has that free now"]
        )
    )
    ray.util.remove_placement_group(waits)
    ray.util.remove_placement_group(held)
    until(lambda: not unplaced() and Places.of(nodes.read()).pool().free["gpu-2"] == 8)


def test_a_lost_node_is_out_and_what_was_to_go_there_can_never_go(cluster: RayCluster, places: Places) -> None:
    """Ray would wait for it for ever, in silence, so that it is told."""
    pool = places.pool()
    lost = places.reservation(Placement((("gpu-2", 4),), 0.5))
    cluster.kill("gpu-2")

    def nodes() -> set[str]:
        Places.of(RayNodes(OME_GPU).read(wait=True)).update(pool)
        return set(pool.nodes)

    until(lambda: nodes() == {"gpu-1"}, 60)
    group = lost.request().to_placement_group()
    until(
        lambda: (
            list(map(str, unplaced())) == ["Ray has not placed 0.5 CPU and 4 ome_gpu yet: no node could ever hold it"]
        )
    )
    ray.util.remove_placement_group(group)


def test_ray_that_does_not_answer_is_a_fault_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """In our words, with what to look at."""

    def broken() -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(state, "available_resources_per_node", broken)
    monkeypatch.setattr(ray, "nodes", broken)
    with pytest.raises(EnvironmentFault, match="Ray does not answer: no route"):
        RayNodes(OME_GPU).read()
