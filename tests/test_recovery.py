"""What is an orphan, and that removing it touches nothing else."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from raytune_autotuner import recovery
from raytune_autotuner.anchor import STALE_S, Anchor, labels
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.kube import BENCHMARK_JOB, CONFIG_MAP, INFERENCE_SERVICE, POD, Kind, Unreachable
from raytune_autotuner.records import TrialId, TrialState
from raytune_autotuner.recovery import find_orphans, reap, reaping, remove, sweep
from raytune_autotuner.storage import Storage
from tests.fakes.cluster import FakeCluster, Manifest
from tests.waiting import until

NS = "autotuner"
TRIAL = TrialId("search", "0123456789ab")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "POLL_S", 0.0)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def soon() -> Deadline:
    return Deadline.after(5)


def make(cluster: FakeCluster, kind: Kind, name: str, experiment: str | None, namespace: str = NS) -> None:
    meta: Manifest = {"name": name, "namespace": namespace}
    if experiment is not None:
        meta["labels"] = labels(experiment, TRIAL)
    cluster.create(kind, {"metadata": meta})


def begin(cluster: FakeCluster, experiment: str, namespace: str = NS) -> Anchor:
    """An experiment with one of everything."""
    anchor = Anchor.create(cluster, namespace, experiment, f"holder-of-{experiment}")
    for kind in (INFERENCE_SERVICE, BENCHMARK_JOB, POD):
        make(cluster, kind, f"{experiment}-{kind.plural}", experiment, namespace)
    return anchor


def test_what_has_a_living_owner_is_no_orphan(cluster: FakeCluster) -> None:
    """Nor is what carries none of our labels, or another namespace's."""
    begin(cluster, "alive")
    make(cluster, POD, "foreign", None)
    begin(cluster, "elsewhere", "other")
    cluster.advance(STALE_S - 1)
    assert find_orphans(cluster, NS) == []


def test_an_experiment_whose_heart_stopped_is_found_whole(cluster: FakeCluster) -> None:
    """Every object of it with the reason and its age, the anchor last; the living one is left out."""
    begin(cluster, "dead")
    cluster.advance(STALE_S + 20)
    begin(cluster, "alive")
    found = find_orphans(cluster, NS)
    assert [(o.kind, o.experiment, o.age_s) for o in found] == [
        ("InferenceService", "dead", STALE_S + 20),
        ("BenchmarkJob", "dead", STALE_S + 20),
        ("Pod", "dead", STALE_S + 20),
        ("ConfigMap", "dead", STALE_S + 20),
    ]
    assert {o.reason for o in found} == {"its experiment's heartbeat stopped 140 s ago (holder holder-of-dead)"}


def test_an_object_without_an_anchor_is_an_orphan(cluster: FakeCluster) -> None:
    """Somebody removed the anchor, and left this."""
    make(cluster, INFERENCE_SERVICE, "svc", "gone")
    (orphan,) = find_orphans(cluster, NS)
    assert orphan.reason == "its experiment has no anchor"


def test_an_experiment_that_begins_while_we_look_is_no_orphan(cluster: FakeCluster) -> None:
    """Its anchor is there before its objects, and anchors are listed last."""
    listing = cluster.list

    def begun_meanwhile(kind: Kind, *args: object, **options: object) -> list[Manifest]:
        found = listing(kind, *args, **options)  # type: ignore[arg-type]
        if kind == INFERENCE_SERVICE:
            begin(cluster, "new")
        return found

    cluster.list = begun_meanwhile  # type: ignore[method-assign]
    assert find_orphans(cluster, NS) == []


def test_removing_orphans_leaves_nothing_of_them_and_all_of_the_others(cluster: FakeCluster) -> None:
    """Two dead experiments go, one without an anchor; the living one and what is not ours stay."""
    begin(cluster, "dead")
    make(cluster, INFERENCE_SERVICE, "svc", "gone")
    make(cluster, POD, "foreign", None)
    cluster.advance(STALE_S)
    alive = begin(cluster, "alive")
    orphans = find_orphans(cluster, NS)
    assert remove(cluster, orphans, soon()) == orphans
    assert cluster.objects(INFERENCE_SERVICE) == ["alive-inferenceservices"]
    assert cluster.objects(BENCHMARK_JOB) == ["alive-benchmarkjobs"]
    assert cluster.objects(POD) == ["alive-pods", "foreign"]
    assert cluster.objects(CONFIG_MAP) == [alive.name]
    assert find_orphans(cluster, NS) == []


def test_an_experiment_that_came_back_meanwhile_is_left_alone(cluster: FakeCluster) -> None:
    """Between finding and removing it was resumed."""
    begin(cluster, "exp")
    cluster.advance(STALE_S)
    orphans = find_orphans(cluster, NS)
    begin_again = Anchor.create(cluster, NS, "exp", "holder-of-exp")
    assert remove(cluster, orphans, soon()) == []
    begin_again.check()
    assert cluster.objects(INFERENCE_SERVICE) == ["exp-inferenceservices"]


def test_nobody_begins_under_the_name_of_what_is_being_removed(cluster: FakeCluster) -> None:
    """While gc is at it, it holds the anchor."""
    begin(cluster, "exp")
    cluster.advance(STALE_S)
    cluster.undying.add("exp-pods")
    with pytest.raises(TransientError, match=r"still in namespace autotuner after 0 s: Pod exp-pods$"):
        remove(cluster, find_orphans(cluster, NS), Deadline.after(0))
    with pytest.raises(EnvironmentFault, match="raytune-autotuner gc"):
        Anchor.create(cluster, NS, "exp", "holder-of-exp")


def test_removing_goes_on_where_it_was_given_up(cluster: FakeCluster) -> None:
    """The next gc does not have to wait until the one before is stale."""
    begin(cluster, "exp")
    cluster.advance(STALE_S)
    orphans = find_orphans(cluster, NS)
    cluster.undying.add("exp-pods")
    with pytest.raises(TransientError):
        remove(cluster, orphans, Deadline.after(0))
    cluster.undying.clear()
    cluster.delete(POD, "exp-pods", NS)
    (anchor,) = find_orphans(cluster, NS)
    assert anchor.reason == "its removal has begun"
    assert remove(cluster, orphans, soon()) == orphans
    assert cluster.objects(CONFIG_MAP) == []


def test_a_name_that_is_no_label_is_removed_as_well(cluster: FakeCluster) -> None:
    """The label's value leads to the same anchor as the name."""
    anchor = begin(cluster, "my-exp")
    odd = Anchor.create(cluster, NS, "My exp (2)", "someone")
    cluster.advance(STALE_S)
    remove(cluster, find_orphans(cluster, NS), soon())
    assert cluster.objects(CONFIG_MAP) == []
    assert anchor.name != odd.name


def test_sweeping_keeps_the_anchor_and_the_others(cluster: FakeCluster) -> None:
    """What an earlier run of this experiment has left goes, and it is told whose it was."""
    mine, other = begin(cluster, "mine"), begin(cluster, "other")
    assert sweep(mine, soon()) == {TRIAL.name}
    assert sweep(mine, soon()) == set()
    assert cluster.objects(CONFIG_MAP) == sorted([mine.name, other.name])
    assert cluster.objects(POD) == ["other-pods"]


def test_sweeping_goes_on_when_the_server_is_back(cluster: FakeCluster) -> None:
    """However long its own deadline lets it wait; what is told is that the server is away."""
    anchor = begin(cluster, "exp")
    away = Unreachable("connection refused")
    cluster.faults += [("list", POD, away), ("delete", BENCHMARK_JOB, away)]
    assert sweep(anchor, soon()) == {TRIAL.name}
    assert cluster.objects(POD) == []
    cluster.faults.append(("list", POD, away))
    with pytest.raises(Unreachable):
        sweep(anchor, Deadline.after(0))


def test_sweeping_spares_the_services_of_trials_that_go_on(cluster: FakeCluster) -> None:
    """With their pods; benchmarks are run anew."""
    anchor = begin(cluster, "exp")
    trial = TrialId("search", "ffffffffffff")
    for kind, name in ((INFERENCE_SERVICE, "kept"), (POD, "kept-pod"), (BENCHMARK_JOB, "job"), (POD, "job-pod")):
        owners = [{"kind": "Job", "name": "job", "uid": "of-a-job"}] if name == "job-pod" else []
        metadata = {"name": name, "namespace": NS, "labels": labels("exp", trial), "ownerReferences": owners}
        cluster.create(kind, {"metadata": metadata})
    assert sweep(anchor, soon(), [trial]) == {TRIAL.name, trial.name}
    assert cluster.objects(INFERENCE_SERVICE) + cluster.objects(POD) == ["kept", "kept-pod"]
    assert sweep(anchor, soon()) == {trial.name}


def test_a_pod_that_its_node_cannot_end_is_removed_by_force(cluster: FakeCluster) -> None:
    """But only long after its grace period."""
    anchor = begin(cluster, "exp")
    cluster.undying.add("exp-pods")
    cluster.delete(POD, "exp-pods", NS)
    cluster.advance(recovery.LINGER_S)
    with pytest.raises(TransientError, match="Pod exp-pods"):
        sweep(anchor, Deadline.after(0))
    cluster.advance(1)
    anchor.beat()
    sweep(anchor, soon())
    assert cluster.objects(POD) == []


def test_an_object_of_the_same_name_that_came_after_is_not_deleted(cluster: FakeCluster) -> None:
    """Only the very object that was seen is deleted, and the new one is looked at in its own right."""
    anchor = begin(cluster, "exp")
    deleting = cluster.delete
    swaps = ["exp-inferenceservices"]

    def swap_first(kind: Kind, name: str, namespace: str, **options: object) -> None:
        if name in swaps:
            swaps.remove(name)
            deleting(kind, name, namespace)
            make(cluster, kind, name, "another")
        deleting(kind, name, namespace, **options)  # type: ignore[arg-type]

    cluster.delete = swap_first  # type: ignore[method-assign,assignment]
    sweep(anchor, soon())
    assert cluster.objects(INFERENCE_SERVICE) == ["exp-inferenceservices"]


def test_sweeping_stops_when_the_anchor_is_lost(cluster: FakeCluster) -> None:
    """Whoever has it now decides."""
    anchor = begin(cluster, "exp")
    cluster.advance(STALE_S)
    Anchor.create(cluster, NS, "exp", "another")
    with pytest.raises(EnvironmentFault):
        anchor.beat()
    with pytest.raises(EnvironmentFault, match="lost"):
        sweep(anchor, soon())
    assert cluster.objects(INFERENCE_SERVICE) == ["exp-inferenceservices"]


STATE = TrialState(TRIAL, 0, {}, "benchmark", "", 0, 1, "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")


def folder_with(tmp_path: Path, phase: str) -> ExperimentFolder:
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    folder.save_state(replace(STATE, phase=phase))
    return folder


@pytest.mark.parametrize("phase", ["queue", "deploy", "benchmark", "teardown", "ended"])
def test_what_ended_trials_have_left_is_reaped(cluster: FakeCluster, tmp_path: Path, phase: str) -> None:
    """At the second look, so that a worker can tear down by itself; what waits, was reopened or runs keeps all."""
    anchor, folder = begin(cluster, "exp"), folder_with(tmp_path, phase)
    begin(cluster, "other")
    seen = reap(anchor, folder)
    assert len(cluster.objects(INFERENCE_SERVICE)) == 2
    reap(anchor, folder, seen)
    kept = ["other"] if phase in ("teardown", "ended") else ["exp", "other"]
    for kind in (INFERENCE_SERVICE, BENCHMARK_JOB, POD):
        assert cluster.objects(kind) == [f"{name}-{kind.plural}" for name in kept]


def test_a_trial_that_was_reopened_between_two_looks_keeps_its_service(cluster: FakeCluster, tmp_path: Path) -> None:
    """Its next worker may go on with it."""
    anchor, folder = begin(cluster, "exp"), folder_with(tmp_path, "ended")
    seen = reap(anchor, folder)
    folder.save_state(replace(STATE, phase="queue"))
    assert reap(anchor, folder, seen) == frozenset()
    assert cluster.objects(INFERENCE_SERVICE) == ["exp-inferenceservices"]


def test_reaping_outlives_whatever_goes_wrong(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look comes; after the body there is none."""
    monkeypatch.setattr(recovery, "REAP_S", 0.01)
    anchor, folder = begin(cluster, "exp"), folder_with(tmp_path, "ended")
    cluster.faults += [("list", POD, TransientError("away")), ("delete", POD, ValueError("a bug"))]
    with reaping(anchor, folder):
        until(lambda: cluster.objects(POD) == [])
    assert cluster.faults == []
    assert "reaper" not in {thread.name for thread in threading.enumerate()}
