"""The manifest that runs the web front end in a cluster: no name misspelt, and what it promises holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from raytune_autotuner.cli import main
from raytune_autotuner.kube import BASE_MODEL, CLUSTER_BASE_MODEL, CLUSTER_SERVING_RUNTIME, SERVING_RUNTIME
from tests.test_kuberay import misspelt

ROOT = Path(__file__).parent.parent
FILE = ROOT / "configs" / "kuberay" / "web.yaml"
TYPES = {
    "ClusterRole": "V1ClusterRole",
    "ClusterRoleBinding": "V1ClusterRoleBinding",
    "Deployment": "V1Deployment",
    "Service": "V1Service",
}


def objects() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(FILE.read_text())}


def container() -> dict[str, Any]:
    found: dict[str, Any] = objects()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    return found


def test_no_name_is_misspelt() -> None:
    """By the official client's models."""
    found = objects()
    assert set(found) == set(TYPES)
    assert [name for kind, each in found.items() for name in misspelt(each, TYPES[kind])] == []


def test_its_command_line_is_valid_and_asks_for_a_token() -> None:
    """All addresses are listened on, so the token comes from a Secret, never from the file."""
    spec = container()
    program, command = spec["command"]
    assert program == "raytune-autotuner"
    answer = CliRunner().invoke(
        main, [command, *spec["args"], "--port=0"], env={"RAYTUNE_AUTOTUNER_WEB_TOKEN": "short"}
    )
    assert answer.exit_code == 2  # understood, and the token refused
    assert "less than 16 characters" in answer.stderr
    tokens = [entry for entry in spec["env"] if "TOKEN" in entry["name"]]
    assert tokens
    assert all("value" not in entry and entry["valueFrom"]["secretKeyRef"] for entry in tokens)


def test_its_rights_are_those_that_it_uses() -> None:
    """It lists what there is to choose from; the rest is the trials' own role."""
    (rule,) = objects()["ClusterRole"]["rules"]
    kinds = (BASE_MODEL, CLUSTER_BASE_MODEL, SERVING_RUNTIME, CLUSTER_SERVING_RUNTIME)
    assert sorted(rule["resources"]) == sorted(kind.plural for kind in kinds)
    assert rule["apiGroups"] == [kinds[0].group]
    assert rule["verbs"] == ["list"]


def test_its_parts_fit_together() -> None:
    """Probes and Service reach the port; the claim and the account are made by the other files."""
    found, spec = objects(), container()
    ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
    assert f"--port={ports['http']}" in spec["args"]
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    pod = found["Deployment"]["spec"]["template"]["spec"]
    made = [
        (each["kind"], each["metadata"]["name"])
        for path in (ROOT / "configs" / "kubernetes").glob("*.yaml")
        for each in yaml.safe_load_all(path.read_text())
    ]
    assert ("ServiceAccount", pod["serviceAccountName"]) in made
    assert ("PersistentVolumeClaim", pod["volumes"][0]["persistentVolumeClaim"]["claimName"]) in made
    for probe in ("readinessProbe", "livenessProbe"):
        assert spec[probe]["httpGet"]["httpHeaders"] == [{"name": "Host", "value": "localhost"}]
