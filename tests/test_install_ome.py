"""``scripts/install-ome`` against a kubectl and a helm that only write down what they are asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "install-ome"
OME = [
    "inferenceservices",
    "benchmarkjobs",
    "basemodels",
    "clusterbasemodels",
    "servingruntimes",
    "clusterservingruntimes",
]
CRDS = [f"{name}.ome.io" for name in OME]
NEIGHBOURS = [
    "certificates.cert-manager.io",
    "scaledobjects.keda.sh",
    "leaderworkersets.leaderworkerset.x-k8s.io",
]
READ = ("version", "get", "wait")

FAKE = """#!{python}
import json, os, sys
from pathlib import Path

world = json.loads(Path({world!r}).read_text())
words = [word for word in sys.argv[1:] if not word.startswith("--request-timeout")]
stdin = sys.stdin.read() if "-" in words else ""
call = {{"tool": {tool!r}, "argv": words, "stdin": stdin}}
with Path({journal!r}).open("a") as journal:
    journal.write(json.dumps(call) + "\\n")
text = " ".join(words)
for pattern in world["failing"]:
    if pattern in text:
        print("the server says no", file=sys.stderr)
        sys.exit(1)
if "get crd" in text and not any(name in words for name in world["crds"]):
    sys.exit(1)
if ("get pvc" in text or "get namespace" in text) and not world["there"]:
    sys.exit(1)
if "version" in words and {tool!r} == "kubectl":
    print(json.dumps({{"clientVersion": {{"major": "1", "minor": "20"}}, "serverVersion": world["server"]}}, indent=2))
if {tool!r} == "helm" and "template" in words:
    print("apiVersion: apiextensions.k8s.io/v1\\nkind: CustomResourceDefinition")
"""


@dataclass
class Run:
    code: int
    out: str
    err: str
    calls: list[dict[str, Any]]

    def applied(self) -> list[dict[str, Any]]:
        manifests = [call["stdin"] for call in self.calls if "apply" in call["argv"]]
        return [document for text in manifests for document in yaml.safe_load_all(text)]

    def changing(self) -> list[str]:
        """The calls that are not questions, in order."""
        return [
            f"{call['tool']} {' '.join(call['argv'])}"
            for call in self.calls
            if not any(word in call["argv"] for word in READ)
        ]


@dataclass
class World:
    """What the fake cluster is like."""

    folder: Path
    crds: list[str] = field(default_factory=lambda: [*CRDS, *NEIGHBOURS])
    server: dict[str, str] = field(default_factory=lambda: {"major": "1", "minor": "32+"})
    there: bool = False
    failing: list[str] = field(default_factory=list)
    tools: tuple[str, ...] = ("kubectl", "helm")

    def run(self, *options: str) -> Run:
        bin_folder, journal, world = self.folder / "bin", self.folder / "journal", self.folder / "world.json"
        shutil.rmtree(bin_folder, ignore_errors=True)
        bin_folder.mkdir()
        journal.write_text("")
        known = {"crds": self.crds, "server": self.server, "there": self.there, "failing": self.failing}
        world.write_text(json.dumps(known))
        for name in ("bash", "cat", "dirname", "sed", "timeout", "env"):
            (bin_folder / name).symlink_to(str(shutil.which(name)))
        python = shutil.which("python3", path=os.defpath) or shutil.which("python3")
        for tool in self.tools:
            text = FAKE.format(python=f"{python} -IS", world=str(world), journal=str(journal), tool=tool)
            (bin_folder / tool).write_text(text)
            (bin_folder / tool).chmod(0o755)
        command = [str(SCRIPT), *options]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, env={"PATH": str(bin_folder)}
        )
        calls = [json.loads(line) for line in journal.read_text().splitlines()]
        return Run(done.returncode, done.stdout, done.stderr, calls)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_it_is_clean() -> None:
    """shellcheck has nothing to say."""
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_help_needs_nothing(world: World) -> None:
    """No cluster is asked, and every option is explained."""
    world.tools = ()
    run = world.run("--help")
    assert run.code == 0
    for option in ("--namespace", "--with-ome", "--dry-run", "--timeout", "--no-claim", "--storage-class"):
        assert option in run.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nonsense"], "unknown option --nonsense"),
        (["--namespace"], "--namespace needs a value"),
        (["--namespace", "Not_A_Name"], "not a name"),
        (["--namespace", "a/b;c"], "not a name"),
        (["--timeout", "soon"], "whole number"),
        (["--storage-class", "a b"], "no name"),
        (["--access-mode", "Any"], "ReadWriteMany, ReadWriteOnce"),
    ],
)
def test_a_wrong_option_is_explained(world: World, options: list[str], message: str) -> None:
    """With the help, and before anything is asked of the cluster."""
    run = world.run(*options)
    assert run.code == 2
    assert message in run.err
    assert run.calls == []


def test_it_makes_namespace_rights_and_claim(world: World) -> None:
    """What the shipped files say, and nothing else; OME itself is only looked at."""
    run = world.run()
    assert run.code == 0, run.err
    assert [d["kind"] for d in run.applied()] == [
        "Namespace",
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding",
        "PersistentVolumeClaim",
    ]
    shipped = [d for name in ("namespace", "rbac", "results-pvc") for d in documents(name)]
    assert run.applied() == shipped
    assert not any(call["tool"] == "helm" for call in run.calls)
    assert run.out.splitlines()[-1].startswith("ready:")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "configs" / "kubernetes" / f"{name}.yaml").read_text()))


def test_another_namespace_changes_that_and_nothing_else(world: World) -> None:
    """Also in the bindings, whose names keep two namespaces apart."""
    applied = {d["kind"]: d for d in world.run("--namespace", "team-a").applied()}
    assert applied["Namespace"]["metadata"]["name"] == "team-a"
    assert applied["ServiceAccount"]["metadata"] == {"name": "raytune-autotuner", "namespace": "team-a"}
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        assert [s["namespace"] for s in applied[kind]["subjects"]] == ["team-a"]
    assert applied["ClusterRoleBinding"]["metadata"]["name"] == "raytune-autotuner:team-a"
    assert applied["ClusterRole"]["metadata"]["name"] == "raytune-autotuner"
    assert applied["PersistentVolumeClaim"]["metadata"]["namespace"] == "team-a"
    assert [d["rules"] for d in (applied["Role"], applied["ClusterRole"])] == [
        d["rules"] for d in documents("rbac") if "rules" in d
    ]


def test_the_claim_can_be_of_another_kind(world: World) -> None:
    """Storage class and access mode are the cluster's matter."""
    applied = world.run("--storage-class", "fast.nfs", "--access-mode", "ReadWriteOnce").applied()
    assert applied[-1]["spec"]["storageClassName"] == "fast.nfs"
    assert applied[-1]["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_no_claim_is_made_when_none_is_wanted_or_one_is_there(world: World) -> None:
    """A claim's spec cannot be changed, so a second run leaves it as it is."""
    assert "PersistentVolumeClaim" not in [d["kind"] for d in world.run("--no-claim").applied()]
    world.there = True
    run = world.run("--storage-class", "other")
    assert run.code == 0
    assert "is there already" in run.out
    assert "PersistentVolumeClaim" not in [d["kind"] for d in run.applied()]


def test_a_dry_run_changes_nothing(world: World) -> None:
    """It asks, and says what it would do."""
    run = world.run("--dry-run", "--with-ome", "--ome-version", "0.1.5")
    assert run.code == 0, run.err
    assert run.changing() == []
    for said in ("kubectl apply: namespace autotuner", "--server-side", "ome-resources", "--version 0.1.5"):
        assert said in run.out


def test_ome_is_installed_in_order(world: World) -> None:
    """CRDs by server-side apply, established, then the controller; everything with a bound."""
    run = world.run("--with-ome", "--ome-version", "0.1.5", "--timeout", "30", "--context", "lab")
    assert run.code == 0, run.err
    steps = [f"{c['tool']} {' '.join(c['argv'])}" for c in run.calls]
    order = [
        "kubectl --context lab create namespace ome",
        "helm --kube-context lab template ome-crd oci://ghcr.io/moirai-internal/charts/ome-crd --namespace ome"
        " --include-crds --version 0.1.5",
        "kubectl --context lab apply --server-side --force-conflicts -f -",
        "kubectl --context lab wait --for=condition=Established --timeout=30s crd " + " ".join(CRDS),
        "helm --kube-context lab upgrade --install ome oci://ghcr.io/moirai-internal/charts/ome-resources"
        " --namespace ome --wait --timeout=30s --version 0.1.5",
        "kubectl --context lab --namespace ome wait --for=condition=Ready pod"
        " --selector=control-plane=ome-controller-manager --timeout=30s",
    ]
    places = [steps.index(step) for step in order]
    assert places == sorted(places)
    assert all("--context lab" in step or "--kube-context lab" in step for step in steps)


@pytest.mark.parametrize(
    ("broken", "options", "message"),
    [
        ({"tools": ("helm",)}, [], "kubectl is not installed"),
        ({"tools": ("kubectl",)}, ["--with-ome"], "helm is not installed"),
        ({"failing": ["version --output"]}, [], "the cluster does not answer: the server says no"),
        ({"server": {"major": "1", "minor": "26"}}, [], "Kubernetes 1.27 or newer; this is 1.26"),
        ({"server": {"git": "1"}}, [], "does not tell its version"),
        ({"crds": CRDS}, ["--with-ome"], "cert-manager 1.9 or newer"),
        ({"failing": ["apply -f -"]}, [], "cannot make namespace autotuner"),
        ({"failing": ["template"]}, ["--with-ome"], "cannot get the chart"),
        ({"failing": ["--server-side"]}, ["--with-ome"], "cannot install OME's CRDs"),
        ({"failing": ["upgrade"]}, ["--with-ome"], "cannot install OME"),
        ({"failing": ["condition=Established"]}, ["--with-ome"], "not established after"),
        ({"failing": ["condition=Established"]}, [], "established CRDs of OME"),
        ({"failing": ["control-plane"]}, [], "a ready controller of OME"),
        ({"crds": NEIGHBOURS}, [], "CRD inferenceservices.ome.io"),
    ],
)
def test_what_is_missing_is_named_with_what_mends_it(
    world: World, broken: dict[str, Any], options: list[str], message: str
) -> None:
    """And nothing is made when a prerequisite is missing."""
    for name, value in broken.items():
        setattr(world, name, value)
    run = world.run(*options)
    assert run.code == 3
    assert message in run.err
    if "Kubernetes 1.27" in message or "cert-manager" in message:
        assert run.changing() == []
        assert "mend:" in run.err


def test_what_is_optional_is_only_mentioned(world: World) -> None:
    """Without KEDA, LWS, cert-manager and helm OME may be there all the same."""
    world.crds, world.tools = CRDS, ("kubectl",)
    run = world.run()
    assert run.code == 0, run.err
    for name in ("KEDA", "LeaderWorkerSet", "cert-manager"):
        assert f"note     no {name}" in run.out


def test_it_can_be_repeated(world: World) -> None:
    """The second run does the same, and makes no namespace of OME's again."""
    world.there = True
    first, second = world.run("--with-ome"), world.run("--with-ome")
    assert first.code == second.code == 0
    assert first.calls == second.calls
    assert not any("create" in call["argv"] for call in second.calls)


def test_every_call_has_a_bound() -> None:
    """Nothing is called but through the functions that bound it."""
    lines = [
        line for line in SCRIPT.read_text().splitlines() if not line.lstrip().startswith(("#", "say", "bad", "||"))
    ]
    direct = [line for line in lines if line.lstrip().startswith(("kubectl ", "helm "))]
    assert direct == []
    assert "timeout --kill-after" in SCRIPT.read_text()
