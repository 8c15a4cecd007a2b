"""The files that a user applies, on an emulated Kubernetes API: valid, and with rights that are enough and no more."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner import kube
from raytune_autotuner.anchor import CLOCK, HEARTBEAT, Anchor, Taken, labels, server_time
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.doctor import Finding, Needs, examine
from raytune_autotuner.kube import BENCHMARK_JOB, CONFIG_MAP, INFERENCE_SERVICE, Cluster, Kind
from raytune_autotuner.records import TrialId
from raytune_autotuner.recovery import find_orphans, remove
from tests.emulator.api import ApiServer, ome_crds

CONFIGS = Path(__file__).parent.parent / "configs" / "kubernetes"
FILES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
OTHERS = [name for name in FILES if name != "namespace.yaml"]
NS = "autotuner"
ACCOUNT = "raytune-autotuner"
NEEDS = Needs(NS, "llama-3-2-1b-instruct", "llama-3-2-1b-instruct-rt", claim="raytune-autotuner-results")
TRIAL = TrialId("search", "0123456789ab")
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "n1"},
    "status": {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": [{"type": "Ready", "status": "True"}]},
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CONFIGS / name).read_text()))


RBAC_GROUP = "rbac.authorization.k8s.io"
KINDS = {kind.kind: kind for kind in kube.KINDS} | {
    name: Kind(RBAC_GROUP, "v1", f"{name.lower()}s", name, namespaced=not name.startswith("Cluster"))
    for name in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
}


@pytest.fixture(scope="module")
def crds() -> Path:
    folder = ome_crds()
    if folder is None:
        pytest.skip("OME's CRDs are not here; set RAYTUNE_AUTOTUNER_OME_CRDS")
    return folder


@pytest.fixture(scope="module")
def server(crds: Path) -> Iterator[ApiServer]:
    with ApiServer(crds) as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The administrator, who has applied everything; and it works."""
    folder = tmp_path_factory.mktemp("admin")
    for cluster in connected(server.kubeconfig(folder / "kubeconfig", plain=True)):
        for document in (NODE, *documents("namespace.yaml"), *(d for name in OTHERS for d in documents(name))):
            cluster.create(KINDS[document["kind"]], document)
        model = {"status": {"state": "Ready", "nodesReady": ["n1"]}}
        server.store.patch("clusterbasemodels.ome.io", NEEDS.model, model, subresource="status")
        claim = {"status": {"phase": "Bound"}}
        server.store.patch("persistentvolumeclaims", str(NEEDS.claim), claim, namespace=NS, subresource="status")
        yield cluster


@pytest.fixture(scope="module")
def user(server: ApiServer, admin: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The service account."""
    folder = tmp_path_factory.mktemp("user")
    yield from connected(server.kubeconfig(folder / "kubeconfig", server.token(ACCOUNT, NS), plain=True))


def connected(kubeconfig: Path) -> Iterator[Cluster]:
    cluster = Cluster.connect(str(kubeconfig))
    cluster.patience_s = 1.0
    yield cluster
    cluster.close()


def try_out(cluster: Cluster, document: dict[str, Any]) -> dict[str, Any]:
    """Create it once more, without keeping it; with strict field validation."""
    again = copy.deepcopy(document)
    again["metadata"]["name"] += "-again"
    return cluster.create(KINDS[again["kind"]], again, dry_run=True)


def faults(cluster: Cluster) -> list[Finding]:
    return [finding for finding in examine(cluster, NEEDS) if finding.level != "ok"]


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_is_valid(admin: Cluster, name: str) -> None:
    """For the schemas of Kubernetes and of OME; an unknown field would be refused."""
    for document in documents(name):
        assert try_out(admin, document)["metadata"]["creationTimestamp"]


def test_a_typo_in_a_shipped_file_would_be_found(admin: Cluster) -> None:
    """The test above can fail."""
    (runtime,) = documents("runtime.yaml")
    runtime["spec"]["engineConfig"]["runner"]["imagee"] = "x"
    with pytest.raises(kube.Rejected, match="imagee"):
        try_out(admin, runtime)


def test_the_shipped_rights_are_enough_for_the_doctor(user: Cluster) -> None:
    """And everything that it looks at is well."""
    assert faults(user) == []


def test_the_shipped_rights_are_enough_for_owners_and_gc(user: Cluster) -> None:
    """An experiment's anchor, its heartbeat, objects of its own, finding and removing what is left."""
    with Anchor.create(user, NS, "exp", "me") as anchor:
        anchor.beat()
        for kind, extra in ((INFERENCE_SERVICE, SERVICE), (BENCHMARK_JOB, JOB)):
            meta = {
                "name": f"exp-{kind.kind.lower()}",
                "namespace": NS,
                "labels": labels("exp", TRIAL),
                "ownerReferences": [anchor.owner_reference()],
            }
            user.create(kind, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "spec": extra})
    assert find_orphans(user, NS) == []
    stop_heart(user, anchor)
    orphans = find_orphans(user, NS)
    assert [orphan.kind for orphan in orphans] == ["InferenceService", "BenchmarkJob", "ConfigMap"]
    assert remove(user, orphans, Deadline.after(20)) == orphans
    assert [user.list(kind, NS) for kind in (INFERENCE_SERVICE, BENCHMARK_JOB, CONFIG_MAP)] == [[], [], []]


SERVICE = {"engine": {"minReplicas": 1, "maxReplicas": 1}}
JOB = {
    "endpoint": {"inferenceService": {"name": "exp", "namespace": NS}},
    "task": "text-to-text",
    "maxTimePerIteration": 1,
    "maxRequestsPerIteration": 1,
    "outputLocation": {"storageUri": "pvc://claim/folder"},
}


def stop_heart(cluster: Cluster, anchor: Anchor) -> None:
    found = cluster.get(CONFIG_MAP, anchor.name, NS)
    assert found is not None
    found["metadata"]["annotations"][HEARTBEAT] = "2020-01-01T00:00:00Z"
    cluster.replace(CONFIG_MAP, found)


def test_the_servers_clock_is_read_without_a_trace(user: Cluster) -> None:
    """A dry run makes nothing."""
    assert server_time(user, NS).year > 2020
    assert user.get(CONFIG_MAP, CLOCK, NS) is None


def test_the_anchor_changes_hands_under_the_servers_lock(user: Cluster) -> None:
    """Of two who take a stale anchor one wins, and the other is told."""
    stop_heart(user, Anchor.create(user, NS, "exp", "dead"))
    won = Anchor.create(user, NS, "exp", "first")
    with pytest.raises(Taken, match="first gave a sign of life"):
        Anchor.create(user, NS, "exp", "second")
    won.delete()
    second = Anchor.create(user, NS, "exp", "second")
    assert second.uid != won.uid
    second.delete()


def rules() -> list[tuple[str, int]]:
    roles = [document for document in documents("rbac.yaml") if "rules" in document]
    return [(role["kind"], number) for role in roles for number in range(len(role["rules"]))]


@pytest.mark.parametrize(("kind", "number"), rules())
def test_removing_any_rule_makes_the_doctor_name_it(user: Cluster, admin: Cluster, kind: str, number: int) -> None:
    """Every resource of the rule, by the server's own evaluation."""
    role = admin.get(KINDS[kind], ACCOUNT, NS if kind == "Role" else None)
    assert role is not None
    everything = list(role["rules"])
    rule = role["rules"].pop(number)
    role = admin.replace(KINDS[kind], role)
    try:
        named = {finding.subject for finding in faults(user) if finding.level == "error"}
    finally:
        admin.replace(KINDS[kind], {**role, "rules": everything})
    group = "".join(f".{name}" for name in rule["apiGroups"] if name)
    assert {f"permission {resource}{group}" for resource in rule["resources"]} <= named
