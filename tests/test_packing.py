"""Places for trials, and who is next: invariants against brute force, and what may not happen."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytune_autotuner.line import Line
from raytune_autotuner.packing import Need, Placement, Pool, fit, pods

NODES = {"a": 8, "b": 8, "c": 4}


def taken(pool: Pool, *sizes: int, **changes: object) -> Placement:
    placement = pool.take(Need(sizes, **changes))  # type: ignore[arg-type]
    assert placement is not None
    return placement


def started(line: Line[str], pool: Pool) -> list[str]:
    """All that start now, in turn."""
    return [item for item, _ in iter(lambda: line.start_next(pool), None)]


# Pool: where a trial goes


def test_takes_the_smallest_hole() -> None:
    """A narrow trial leaves the large holes for wide ones."""
    pool = Pool(NODES)
    assert taken(pool, 4).shares == (("c", 4),)
    assert taken(pool, 2).shares == (("a", 2),)
    assert taken(pool, 4).shares == (("a", 4),)
    assert taken(pool, 8).shares == (("b", 8),)
    assert pool.free == {"a": 2, "b": 0, "c": 0}


def test_all_pods_on_one_node_if_any_has_room() -> None:
    """Replicas stay together, even where a smaller hole would take each of them."""
    pool = Pool(NODES)
    assert taken(pool, 2, 2, 2).shares == (("a", 6),)


def test_pods_are_spread_over_the_fewest_nodes() -> None:
    """Where no node takes them all, few do, with the largest share first."""
    pool = Pool({"a": 8, "b": 4, "c": 4, "d": 2})
    assert taken(pool, 4, 2, 4).shares == (("a", 8), ("d", 2))


def test_a_pod_is_not_torn_apart() -> None:
    """Free GPUs on several nodes are of no use to one pod."""
    pool = Pool({"a": 4, "b": 4})
    assert pool.take(Need((8,))) is None
    assert pool.never(Need((8,))) == "needs 8 GPUs on one node, each of the 2 nodes has 4"
    assert pool.never(Need((4, 4))) is None


def test_what_can_never_fit_is_told_with_figures() -> None:
    """The reason names what is needed and what there is."""
    assert Pool(NODES).never(Need((16,))) == "needs 16 GPUs on one node, the largest have 8 (a), 8 (b), 4 (c)"
    assert (
        Pool(NODES).never(Need((8, 8, 8))) == "needs 24 GPUs in pods of 8, 8, 8, the largest have 8 (a), 8 (b), 4 (c)"
    )
    assert Pool({"a": 0, "b": 2}).never(Need((4,))) == "needs 4 GPUs on one node, the largest has 2 (b)"
    assert Pool({}).never(Need((1,))) == "needs 1 GPU on one node, no node has any"
    assert Pool({"a": 8}, cpus={"a": 2.0}).never(Need((1,), 4.0)) == (
        "needs 4 CPUs for its worker, the most on a node is 2"
    )


def test_workers_share_the_cpus_of_a_host() -> None:
    """Nodes of one host are limited together by its CPUs, and CPUs come back with the GPUs."""
    pool = Pool({"a": 8, "b": 8}, cpus={"host": 0.3}, hosts={"a": "host", "b": "host"})
    held = [taken(pool, 1, cpus=0.1) for _ in range(3)]
    need = Need((1,), 0.1)
    assert pool.take(need) is None
    assert pool.why(need) == "needs 0.1 CPUs for its worker; other trials have them"
    pool.release(held[1])
    assert pool.take(need) is not None


def test_a_trial_without_gpus_needs_only_cpus() -> None:
    """Its worker goes where CPUs are free, on a node without GPUs as well."""
    pool = Pool({"laptop": 0}, cpus={"laptop": 4.0})
    held = taken(pool, cpus=4.0)
    assert held == Placement((("laptop", 0),), 4.0)
    assert pool.take(Need((), 4.0)) is None
    assert str(Need((), 4.0)) == "4 CPUs"
    pool.release(held)
    assert pool.free == {"laptop": 0}


def test_a_retry_goes_to_another_node() -> None:
    """It waits for another node rather than take the one to avoid, but only if another could ever do."""
    pool = Pool({"a": 8, "b": 8, "c": 2})
    assert taken(pool, 8, avoid=frozenset("a")).shares == (("b", 8),)
    assert pool.take(Need((8,), avoid=frozenset("a"))) is None
    pool.lose("b")
    assert taken(pool, 8, avoid=frozenset("a")).shares == (("a", 8),)


def test_a_lost_node_is_out_and_its_trials_can_be_released() -> None:
    """Nothing is placed there, and giving back what was there changes nothing; it may come back."""
    pool = Pool({"a": 8, "b": 4})
    held = taken(pool, 8)
    pool.lose("a")
    assert pool.never(Need((8,))) is not None
    pool.release(held)
    assert pool.free == {"b": 4}
    pool.update({"a": 6, "b": 4})
    assert pool.free == {"a": 6, "b": 4}


def test_what_others_hold_is_not_free() -> None:
    """Another job's GPUs count as busy, not as gone."""
    pool = Pool({"a": 8, "b": 8})
    taken(pool, 2)
    pool.set_in_use({"a": 6, "b": 1})
    assert pool.free == {"a": 2, "b": 7}
    assert pool.never(Need((8,))) is None
    pool.set_in_use({"a": 8, "b": 0})
    assert pool.free == {"a": 0, "b": 8}
    pool.set_in_use({"a": 0, "b": 0})
    assert pool.free == {"a": 6, "b": 8}, "what Ray does not know yet is ours all the same"


def test_cpus_that_others_hold_are_not_free() -> None:
    """A worker goes where CPUs are left."""
    pool = Pool({"a": 8, "b": 8}, cpus={"a": 2.0, "b": 2.0})
    pool.set_in_use({}, {"a": 1.5})
    assert taken(pool, 1, cpus=2.0).home == "b"
    assert taken(pool, 1, cpus=0.5).home == "a"
    assert pool.take(Need((1,), 0.5)) is None


def test_releasing_twice_is_refused() -> None:
    """A release must belong to what was taken."""
    pool = Pool(NODES)
    held = taken(pool, 1)
    pool.release(held)
    with pytest.raises(ValueError, match="not held"):
        pool.release(held)


def test_a_placement_from_before_a_restart_can_be_held() -> None:
    """An adopted trial keeps exactly what it has."""
    pool = Pool(NODES)
    pool.hold(Placement((("b", 8),), 0.5))
    assert pool.free["b"] == 0
    assert pool.taken == {"b": 8}


def test_pods_of_replicas_and_of_engines_on_several_nodes() -> None:
    """Each replica has its pods; an engine over several nodes has equal ones."""
    assert pods(4, replicas=2) == (4, 4)
    assert pods(16, nodes=2) == (8, 8)
    assert pods(0, replicas=3) == ()
    with pytest.raises(ValueError, match="equal"):
        pods(9, nodes=2)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_finds_a_place_exactly_if_there_is_one_on_the_fewest_nodes(sizes: list[int], wanted: list[int]) -> None:
    """Against all ways to put pods on nodes."""
    room = {f"n{at}": size for at, size in enumerate(sizes)}
    fewest = min(map(len, ways(room, wanted)), default=None)
    shares = fit(wanted, room, lambda node, gpus: (room[node], node))
    assert (len(shares) if shares is not None else None) == fewest
    if shares is not None:
        assert sum(gpus for _, gpus in shares) == sum(wanted)
        assert all(gpus <= room[node] for node, gpus in shares)
        assert len({node for node, _ in shares}) == len(shares)


def ways(room: dict[str, int], wanted: list[int]) -> Iterator[set[str]]:
    for chosen in itertools.product(room, repeat=len(wanted)):
        loads = dict.fromkeys(room, 0)
        for node, gpus in zip(chosen, wanted, strict=True):
            loads[node] += gpus
        if all(loads[node] <= room[node] for node in room):
            yield set(chosen)


# Line: who is next


def test_wide_ones_first() -> None:
    """Among those that wait, the widest that fits starts first, and narrow ones fill what is left."""
    pool, line = Pool({"a": 8}), Line[str]()
    for item, gpus in (("one", 1), ("two", 2), ("four", 4), ("eight", 8)):
        line.add(item, Need((gpus,)))
    assert line.start_next(pool) == ("eight", Placement((("a", 8),)))
    assert started(line, pool) == []
    pool.release(Placement((("a", 8),)))
    assert started(line, pool) == ["four", "two", "one"]
    assert len(line) == 0


def test_the_oldest_of_equals_first() -> None:
    """Trials of one width start in the order in which they came."""
    pool, line = Pool({"a": 2}), Line[str]()
    for item in "xyz":
        line.add(item, Need((1,)))
    assert started(line, pool) == ["x", "y"]


def test_a_wide_one_waits_no_longer_than_for_those_that_ran_when_it_became_first() -> None:
    """Whatever narrow ones arrive, nothing new starts where it is going to be."""
    pool, line = Pool({"a": 8, "b": 8}), Line[str](patience=0)
    running = [taken(pool, 1) for _ in range(16)]
    line.add("wide", Need((8,)))
    assert line.start_next(pool) is None
    for at, ended in enumerate(running[:7]):  # those that began first, all on one node
        pool.release(ended)
        line.add(f"narrow {at}", Need((1,)))
        assert line.start_next(pool) is None
    pool.release(running[7])
    assert line.start_next(pool) == ("wide", Placement((("a", 8),)))


def test_a_place_is_cleared_only_after_it_was_overtaken_often() -> None:
    """Patience lets the narrow ones of the look-ahead pass; then it is its turn."""
    pool, line = Pool({"a": 8}), Line[str](patience=2)
    running = [taken(pool, 1) for _ in range(8)]
    line.add("wide", Need((8,)))
    passed = 0
    for at in range(8):
        pool.release(running[at])
        line.add(f"narrow {at}", Need((1,)))
        passed += len(started(line, pool))
    assert passed == 2
    assert "being cleared for it: a" in line.waiting(pool)[0].why


def test_what_the_first_leaves_over_is_used() -> None:
    """A node of 8 that is cleared for 4 takes narrow ones beside it."""
    pool, line = Pool({"a": 8}), Line[str](patience=0)
    held = taken(pool, 6)
    line.add("wide", Need((4,)))
    line.add("narrow", Need((2,)))
    line.add("too much", Need((2,)))
    line.add("also", Need((2,)))
    assert started(line, pool) == ["narrow"]
    pool.release(held)
    assert started(line, pool) == ["wide", "too much"]


def test_narrow_ones_do_not_starve_behind_wide_ones() -> None:
    """An endless stream of wide trials lets a narrow one in."""
    pool, line = Pool({"a": 8}), Line[str]()
    line.add("wide", Need((8,)))
    item, held = line.start_next(pool) or pytest.fail("nothing started")
    line.add("narrow", Need((1,)))
    for rounds in itertools.count():
        assert rounds < 20
        line.add("wide", Need((8,)))
        pool.release(held)
        item, held = line.start_next(pool) or pytest.fail("nothing started")
        if item == "narrow":
            break


def test_those_in_order_keep_their_order() -> None:
    """A narrow one does not overtake a wide one when both are to run in turn; others may."""
    pool, line = Pool({"a": 8}), Line[str]()
    held = taken(pool, 4)
    line.add("A", Need((8,)), in_order=True)
    line.add("B", Need((1,)), in_order=True)
    line.add("other", Need((2,)))
    assert started(line, pool) == ["other"]
    assert line.waiting(pool)[1].why == "waits for those before it"
    pool.release(held)
    pool.release(Placement((("a", 2),)))
    assert started(line, pool) == ["A"]


def test_more_is_wanted_while_there_is_room_that_nobody_who_waits_can_use() -> None:
    """Not when the place is full, kept for somebody, or enough wait already."""
    pool, line = Pool({"a": 8}), Line[str](look_ahead=2, patience=0)
    assert line.wants_more(pool)
    held = taken(pool, 7)
    assert line.wants_more(pool)
    line.add("wide", Need((8,)))
    assert started(line, pool) == []
    assert not line.wants_more(pool), "all of the node is being cleared"
    pool.update({"a": 8, "b": 4})
    assert started(line, pool) == []
    assert line.wants_more(pool)
    line.add("wide too", Need((8,)))
    assert not line.wants_more(pool), "two wait"
    pool.release(held)
    assert started(line, pool) == ["wide"]


def test_the_smallest_need_decides_what_is_room() -> None:
    """Where no trial takes less than 4 GPUs, 3 are no room."""
    pool = Pool({"a": 3})
    assert not Line[str](least=Need((4,))).wants_more(pool)
    assert Line[str](least=Need((3,))).wants_more(pool)


def test_says_for_what_each_one_waits() -> None:
    """In words and figures."""
    pool, line = Pool({"gpu-1": 8, "gpu-2": 8}), Line[str]()
    taken(pool, 8)
    taken(pool, 4)
    line.add("wide", Need((8,)))
    line.add("spread", Need((4, 4)))
    line.add("fits", Need((4,)))
    assert [(each.item, each.need, each.why) for each in line.waiting(pool)] == [
        ("wide", Need((8,)), "needs 8 GPUs on one node; the most free is 4 of 8 on gpu-2"),
        ("spread", Need((4, 4)), "needs 8 GPUs in pods of 4, 4; the most free is 4 of 8 on gpu-2, 0 of 8 on gpu-1"),
        ("fits", Need((4,)), "next in turn"),
    ]


def test_those_that_lost_their_only_node_are_taken_out() -> None:
    """They do not hold up the others, and are told apart with the reason."""
    pool, line = Pool({"a": 8, "b": 4}), Line[str](patience=0)
    held = taken(pool, 4)
    running = taken(pool, 1)
    line.add("wide", Need((8,)))
    line.add("narrow", Need((4,)))
    assert started(line, pool) == []
    pool.lose("a")
    pool.release(held)
    assert [(each.item, each.why) for each in line.hopeless(pool)] == [
        ("wide", "needs 8 GPUs on one node, the largest has 4 (b)")
    ]
    assert started(line, pool) == ["narrow"]
    assert line.hopeless(pool) == []
    pool.release(running)


def test_another_place_is_cleared_when_others_take_the_first() -> None:
    """A node that another job has filled is no place to wait for."""
    pool, line = Pool({"a": 8, "b": 8}), Line[str](patience=0)
    on_a, on_b = taken(pool, 8), taken(pool, 8)
    line.add("wide", Need((8,)))
    assert started(line, pool) == []
    assert line.waiting(pool)[0].why.endswith("being cleared for it: a")
    pool.release(on_a)
    pool.set_in_use({"a": 8, "b": 8})
    assert started(line, pool) == []
    assert line.waiting(pool)[0].why.endswith("being cleared for it: b")
    pool.release(on_b)
    assert line.start_next(pool) == ("wide", Placement((("b", 8),)))


def test_waits_for_others_where_there_is_nothing_else() -> None:
    """With all GPUs in other hands, it starts when those let go."""
    pool, line = Pool({"a": 8}), Line[str](patience=0)
    pool.set_in_use({"a": 8})
    line.add("wide", Need((8,)))
    assert started(line, pool) == []
    pool.set_in_use({})
    assert started(line, pool) == ["wide"]


@given(st.integers(0, 10**6), st.integers(0, 8), st.sampled_from([1, 2, 8]))
@settings(deadline=None, max_examples=60)
def test_every_trial_of_a_random_stream_starts_and_no_gpu_is_given_twice(seed: int, patience: int, ahead: int) -> None:
    """Whatever comes in whatever order: all start, each pod on a node with room, and everything comes back."""
    rng = random.Random(seed)
    pool = Pool({"a": 8, "b": 8, "c": 4}, cpus={"a": 2.0, "b": 2.0, "c": 1.0})
    needs = [Need(tuple(rng.choices((1, 2, 4), k=rng.randint(1, 4))), 0.25) for _ in range(60)]
    line = Line[int](look_ahead=ahead, patience=patience)
    running: list[tuple[float, int, Placement]] = []
    now, proposed, done = 0.0, 0, []
    while len(done) < len(needs):
        if (chosen := line.start_next(pool)) is not None:
            item, placement = chosen
            assert sum(gpus for _, gpus in placement.shares) == needs[item].gpus
            assert all(0 <= used <= pool.nodes[node] for node, used in pool.taken.items())
            heapq.heappush(running, (now + rng.expovariate(1.0), item, placement))
        elif proposed < len(needs) and line.wants_more(pool):
            line.add(proposed, needs[proposed])
            proposed += 1
        else:
            now, item, placement = heapq.heappop(running)  # fails when all wait for nothing
            pool.release(placement)
            done.append(item)
    assert pool.taken == {}
    assert sorted(done) == list(range(len(needs)))
