"""Names, labels, and who holds an experiment's anchor."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner import anchor as module
from raytune_autotuner.anchor import (
    ATTEMPTS,
    HEARTBEAT,
    STALE_S,
    Anchor,
    anchor_name,
    label_value,
    labels,
    object_name,
    parse_time,
    server_time,
)
from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.kube import CONFIG_MAP, INFERENCE_SERVICE, Conflict, Rejected
from raytune_autotuner.records import TrialId
from tests.fakes.cluster import FakeCluster
from tests.waiting import until

NS = "autotuner"
TRIAL = TrialId("search", "0123456789ab", 2)
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def take(cluster: FakeCluster, holder: str = "storage-a", experiment: str = "exp") -> Anchor:
    return Anchor.create(cluster, NS, experiment, holder)


@given(st.text(min_size=1, max_size=80))
def test_any_experiment_name_makes_names_that_ome_takes(experiment: str) -> None:
    """At most 50 characters of the pattern that OME's webhook demands."""
    name = object_name(experiment, TRIAL)
    assert len(name) <= 50
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", anchor_name(experiment))


@given(st.text(min_size=1, max_size=80))
def test_any_experiment_name_makes_a_label(experiment: str) -> None:
    """The value is valid, and is the same when it is computed from itself."""
    value = label_value(experiment)
    assert len(value) <= 63
    assert LABEL.fullmatch(value)
    assert label_value(value) == value
    assert anchor_name(value) == anchor_name(experiment)


def test_the_last_20_characters_tell_trials_and_experiments_apart() -> None:
    """OME names a ConfigMap by the last 20 characters of the service's name."""
    trials = [TrialId(p, c, r) for p in ("baseline", "search", "confirm") for c in ("a" * 12, "b" * 12) for r in (0, 1)]
    tails = {object_name(e, t)[-20:] for e in ("exp-1", "exp-2") for t in trials}
    assert len(tails) == 2 * len(trials)


def test_names_that_look_alike_stay_apart() -> None:
    """Two experiments whose names become the same slug still differ."""
    assert label_value("My exp!") != label_value("my-exp?")
    assert anchor_name("My exp!") != anchor_name("my-exp?")


def test_labels_name_experiment_trial_and_configuration() -> None:
    """The three labels that everything is found by."""
    found = labels("exp", TRIAL)
    assert found["raytune-autotuner/experiment"] == "exp"
    assert found["raytune-autotuner/trial"] == "search-0123456789ab-2"
    assert found["raytune-autotuner/config"] == "0123456789ab"
    assert "raytune-autotuner/trial" not in labels("exp")


def test_what_the_anchor_owns_goes_with_it(cluster: FakeCluster) -> None:
    """Deleting the anchor removes the objects that carry its owner reference."""
    held = take(cluster)
    meta = {"name": "svc", "namespace": NS, "ownerReferences": [held.owner_reference()]}
    cluster.create(INFERENCE_SERVICE, {"metadata": meta})
    held.delete()
    held.delete()
    assert cluster.objects(INFERENCE_SERVICE) == cluster.objects(CONFIG_MAP) == []


def test_the_same_holder_takes_its_anchor_up_again(cluster: FakeCluster) -> None:
    """A resumed experiment goes on at once, with the same anchor, so that what it owned stays."""
    assert take(cluster).uid == take(cluster).uid


def test_a_living_anchor_is_not_given_away(cluster: FakeCluster) -> None:
    """Another experiment of the same name is refused, with who has it and what to do."""
    take(cluster)
    cluster.advance(STALE_S - 1)
    with pytest.raises(EnvironmentFault, match=r"storage-a gave a sign of life 119 s ago.*--name"):
        take(cluster, "storage-b")


def test_the_same_path_on_another_machine_is_another_holder(cluster: FakeCluster) -> None:
    """The experiment's id tells them apart; who sees the same folder by another path goes on at once."""
    first = Anchor.create(cluster, NS, "exp", "/data/exp", "id-1")
    with pytest.raises(EnvironmentFault, match=r"/data/exp gave a sign of life 0 s ago"):
        Anchor.create(cluster, NS, "exp", "/data/exp", "id-2")
    with pytest.raises(EnvironmentFault, match="sign of life"):
        take(cluster, "/data/exp")
    assert Anchor.create(cluster, NS, "exp", "/nfs/exp", "id-1").uid == first.uid
    cluster.advance(STALE_S)
    second = Anchor.create(cluster, NS, "exp", "/data/exp", "id-2")
    with pytest.raises(EnvironmentFault, match="has taken it over"):
        first.beat()
    first.delete()
    second.beat()


def test_an_anchor_of_before_there_were_ids_goes_on_by_its_path(cluster: FakeCluster) -> None:
    """At once where that is equal, else when it is stale; then it has the id."""
    take(cluster, "/data/exp")
    with pytest.raises(EnvironmentFault, match="sign of life"):
        Anchor.create(cluster, NS, "exp", "/nfs/exp", "id-1")
    Anchor.create(cluster, NS, "exp", "/data/exp", "id-1").beat()
    with pytest.raises(EnvironmentFault, match="sign of life"):
        Anchor.create(cluster, NS, "exp", "/data/exp", "id-2")
    other = take(cluster, "/data/other", "other")
    cluster.advance(STALE_S)
    assert Anchor.create(cluster, NS, "other", "/nfs/other", "id-3").uid == other.uid


def test_a_stale_anchor_is_taken_over_and_its_former_holder_notices(cluster: FakeCluster) -> None:
    """The one who was away too long learns it at its next heartbeat, and removes nothing any more."""
    first = take(cluster)
    cluster.advance(STALE_S)
    second = take(cluster, "storage-b")
    with pytest.raises(EnvironmentFault, match="storage-b has taken it over"):
        first.beat()
    with pytest.raises(EnvironmentFault, match="lost"):
        first.check()
    first.delete()
    second.beat()
    assert cluster.objects(CONFIG_MAP) == [anchor_name("exp")]


def test_a_heartbeat_keeps_the_anchor(cluster: FakeCluster) -> None:
    """Long after its creation the anchor is still its holder's, because it said so in time."""
    held = take(cluster)
    for _ in range(4):
        cluster.advance(STALE_S / 2)
        held.beat()
    with pytest.raises(EnvironmentFault):
        take(cluster, "storage-b")


def test_a_deleted_anchor_is_noticed(cluster: FakeCluster) -> None:
    """Also when somebody has made a new one of the same name since."""
    held = take(cluster)
    cluster.delete(CONFIG_MAP, held.name, NS)
    take(cluster)
    with pytest.raises(EnvironmentFault, match="has been deleted"):
        held.beat()


def test_an_anchor_that_is_being_deleted_is_not_taken(cluster: FakeCluster) -> None:
    """What is made under it would be removed with it."""
    held = take(cluster)
    cluster.undying.add(held.name)
    cluster.delete(CONFIG_MAP, held.name, NS)
    with pytest.raises(TransientError, match="just being removed"):
        take(cluster)


@pytest.mark.parametrize("fault", [Conflict("changed"), Rejected("gone", 404)])
def test_taking_a_contested_anchor_looks_again(cluster: FakeCluster, fault: Exception) -> None:
    """Somebody else's change in between is no error as long as the anchor is free."""
    take(cluster)
    cluster.faults.append(("update", CONFIG_MAP, fault))
    assert take(cluster).uid


def test_an_anchor_that_keeps_changing_is_given_up(cluster: FakeCluster) -> None:
    """After some attempts, with an error that says so."""
    take(cluster)
    cluster.faults += [("update", CONFIG_MAP, Conflict("changed"))] * ATTEMPTS
    with pytest.raises(TransientError, match="kept changing"):
        take(cluster)


def test_a_refusal_is_told_as_it_is(cluster: FakeCluster) -> None:
    """A missing right is not taken for a race."""
    take(cluster)
    cluster.denied.add(("update", "configmaps", "", "namespace"))
    with pytest.raises(Rejected, match="cannot update"):
        take(cluster)


def test_the_heartbeat_is_in_the_servers_time(cluster: FakeCluster) -> None:
    """So the clock of the machine does not matter, and nothing is kept of the question."""
    held = take(cluster)
    found = cluster.get(CONFIG_MAP, held.name, NS)
    assert found is not None
    assert parse_time(found["metadata"]["annotations"][HEARTBEAT]) == cluster.now == server_time(cluster, NS)
    assert cluster.objects(CONFIG_MAP) == [held.name]


def test_an_unreadable_heartbeat_is_a_stale_one(cluster: FakeCluster) -> None:
    """Somebody's edit does not lock the name for ever."""
    held = take(cluster)
    found = cluster.get(CONFIG_MAP, held.name, NS)
    assert found is not None
    found["metadata"]["annotations"][HEARTBEAT] = "yesterday"
    cluster.put(CONFIG_MAP, found)
    assert take(cluster, "storage-b").uid == held.uid


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_the_heart_beats_by_itself_until_the_end(cluster: FakeCluster) -> None:
    """What stops it is remembered until a beat gets through, and the object outlives the context."""
    held = take(cluster)
    with held:
        cluster.denied.add(("update", "configmaps", "", "namespace"))
        until(lambda: "cannot update" in held.problem)
        cluster.denied.clear()
        until(lambda: not held.problem)
        before = cluster.get(CONFIG_MAP, held.name, NS)
        until(lambda: cluster.get(CONFIG_MAP, held.name, NS) != before)
    assert cluster.objects(CONFIG_MAP) == [held.name]


@pytest.mark.usefixtures("quick")
def test_the_heart_beats_on_after_a_fault_that_nobody_thought_of(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heart that stopped unseen would let others remove what runs."""
    with take(cluster) as held:
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "get", lambda *_: {}["nobody"])
            until(lambda: "nobody" in held.problem)
        until(lambda: not held.problem)


@pytest.mark.usefixtures("quick")
def test_the_heart_stops_when_the_anchor_is_lost(cluster: FakeCluster) -> None:
    """And says why."""
    with take(cluster) as held:
        cluster.delete(CONFIG_MAP, held.name, NS)
        until(lambda: "has been deleted" in held.problem)
        with pytest.raises(EnvironmentFault):
            held.check()
