"""The REST API, and its description held against it by a fuzzer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from raytune_autotuner.planning.init_task import write_task
from raytune_autotuner.storage import Storage
from raytune_autotuner.web.app import create_app
from raytune_autotuner.web.new_task import STARTS
from raytune_autotuner.web.settings import Settings
from tests.web_site import DONE, RUNNING, STOPPED, Starts, client, fill

EXAMPLES = int(os.environ.get("RAYTUNE_AUTOTUNER_FUZZ_EXAMPLES", "6"))
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of tests that change nothing."""
    return fill(tmp_path_factory.mktemp("storage"))


def test_experiments_are_listed_and_looked_at(folder: Path) -> None:
    """State, progress, score, spend; the answer so far; results as the file has them."""
    asked = client(folder)
    listed = {each["name"]: each for each in asked.get("/api/v1/experiments").json()["experiments"]}
    assert {name: each["state"] for name, each in listed.items()} == {
        DONE: "done",
        RUNNING: "running",
        STOPPED: "interrupted",
    }
    assert listed[DONE]["best"]["keeps_slo"]
    assert [e["name"] for e in asked.get("/api/v1/experiments?state=done").json()["experiments"]] == [DONE]
    detail = asked.get(f"/api/v1/experiments/{DONE}").json()
    assert detail["verdict"]["kind"] == "WIN"
    assert detail["ledger"]["total"] > 0
    running = asked.get(f"/api/v1/experiments/{RUNNING}").json()
    assert running["trials_running"] == 3
    assert running["waiting"]
    results = asked.get(f"/api/v1/experiments/{DONE}/results").json()
    assert len(results["all_results"]) == detail["trials_ended"]
    csv = asked.get(f"/api/v1/experiments/{DONE}/trials.csv").text
    assert len(csv.splitlines()) == detail["trials_ended"] + 1


def test_trials_come_in_pages(folder: Path) -> None:
    """Each once, in the order that was asked for."""
    asked = client(folder)
    path = f"/api/v1/experiments/{DONE}/trials"
    first = asked.get(f"{path}?size=7").json()
    assert len(first["trials"]) == 7
    pages = [asked.get(f"{path}?size=7&page={n + 1}").json()["trials"] for n in range(first["pages"])]
    every = [trial["name"] for page in pages for trial in page]
    assert len(every) == len(set(every)) == first["total"]
    one = asked.get(f"{path}/{every[3]}").json()
    assert one["number"] == 3
    said = asked.get(f"{path}/{every[3]}/log").json()
    assert said["files"] == ["engine.log"]
    assert said["text"]


def test_a_fault_of_a_task_has_its_place(tmp_path: Path) -> None:
    """With the line; a valid task has a plan."""
    asked = client(tmp_path)
    text = write_task(STARTS["local"])
    good = asked.post("/api/v1/tasks/validate", json={"text": text}).json()
    assert good["valid"]
    assert good["plan"]["trials"] == asked.post("/api/v1/tasks/plan", json={"text": text}).json()["trials"]
    bad = text.replace("max_iterations: 20", "max_iterations: 0")
    answer = asked.post("/api/v1/tasks/validate", json={"text": bad}).json()
    (fault,) = answer["faults"]
    assert fault["place"] == "optimization.max_iterations"
    assert bad.splitlines()[fault["line"] - 1].strip().startswith("max_iterations")
    refused = asked.post("/api/v1/tasks/plan", json={"text": bad})
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["faults"] == [fault]
    assert asked.get("/api/v1/tasks/schema").json()["properties"]["optimization"]


def test_experiments_are_started_stopped_and_resumed(tmp_path: Path) -> None:
    """By programs as by people."""
    starts = Starts(Storage(str(fill(tmp_path))))
    asked = client(tmp_path, starts)
    text = write_task(STARTS["local"])
    assert asked.post("/api/v1/experiments", json={"text": text, "name": "mine"}).status_code == 202
    assert asked.post("/api/v1/experiments", json={"text": "task_name: x"}).status_code == 422
    assert asked.post(f"/api/v1/experiments/{STOPPED}/resume").json() == {"name": STOPPED}
    assert starts.started == [("mine", text), (STOPPED, "resume")]
    assert asked.post(f"/api/v1/experiments/{RUNNING}/stop").json()["state"] == "stopping"
    assert asked.post(f"/api/v1/experiments/{DONE}/stop").status_code == 422


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/experiments/nope", 404),
        ("/api/v1/experiments/.hidden", 422),
        (f"/api/v1/experiments/{DONE}/trials/search-000000000000", 404),
        (f"/api/v1/experiments/{DONE}/trials/..%2f..", 404),
        (f"/api/v1/experiments/{DONE}/trials/nothing", 422),
        (f"/api/v1/experiments/{DONE}/trials?size=0", 422),
        (f"/api/v1/experiments/{DONE}/trials?page=x", 422),
        ("/api/v1/nothing", 404),
    ],
)
def test_errors_are_problem_details(folder: Path, path: str, status: int) -> None:
    """For every kind of error, with the same fields."""
    answer = client(folder).get(path, headers={"accept": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= set(answer.json())


def _snapshot(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in found if not path.name.startswith(".clock")}


def _fuzz(folder: Path, headers: dict[str, str]) -> list[int]:
    """The statuses of what the fuzzer asked, of every call that ends."""
    storage = Storage(str(folder))
    app = create_app(Settings(storage, token=TOKEN), Starts(storage))
    schema: Any = schemathesis.openapi.from_dict(app.openapi())
    statuses: list[int] = []
    asked = TestClient(app, base_url="http://127.0.0.1:8378", raise_server_exceptions=False)
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/events"):
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            sent = case.as_transport_kwargs(base_url="http://127.0.0.1:8378")
            sent["headers"] = {**dict(sent.get("headers") or {}), **headers}
            sent.pop("cookies", None)
            answer = asked.request(**sent)
            statuses.append(answer.status_code)
            assert answer.status_code < 500, (sent, answer.text)

        ask()
    return statuses


def test_no_call_that_its_description_allows_makes_the_server_fail(tmp_path: Path) -> None:
    """Whatever a fuzzer makes of names, numbers and texts."""
    statuses = _fuzz(fill(tmp_path), {"Authorization": f"Bearer {TOKEN}"})
    assert 200 in statuses


def test_a_fuzzer_without_the_token_learns_and_changes_nothing(tmp_path: Path) -> None:
    """Every call is refused, and every file is as before."""
    fill(tmp_path)
    before = _snapshot(tmp_path)
    assert set(_fuzz(tmp_path, {})) <= {401, 413, 421}
    assert _snapshot(tmp_path) == before
