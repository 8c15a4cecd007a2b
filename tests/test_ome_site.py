"""From the task's section on OME to the values that the workers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner import ome_site, recovery
from raytune_autotuner.anchor import labels
from raytune_autotuner.backends.ome_runtime import parse_runtime
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import EnvironmentFault, SpecError, TransientError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.kube import INFERENCE_SERVICE
from raytune_autotuner.packing import Need
from raytune_autotuner.planning.plan import make_plan
from raytune_autotuner.records import TrialId
from raytune_autotuner.setup import Setup
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Task, parse_task
from tests.fakes.cluster import FakeCluster

ROOT = Path(__file__).parent.parent
SGLANG = load_engine("sglang")


def task(**ome: Any) -> Task:
    data = yaml.safe_load((ROOT / "configs" / "simple_task.json").read_text())
    return parse_task({**data, "ome": ome}, "task.yaml")


def runtime(**sections: Any) -> Any:
    raw = yaml.safe_load((ROOT / "configs" / "kubernetes" / "runtime.yaml").read_text())
    raw["spec"].update(sections)
    return parse_runtime(raw, "ClusterServingRuntime")


def section(*words: str, port: int = 8080) -> dict[str, Any]:
    ports = [{"containerPort": port}]
    return {"runner": {"name": "ome-container", "command": list(words[:3]), "args": list(words[3:]), "ports": ports}}


def test_the_settings_of_the_task_reach_the_services() -> None:
    """Node choice, image, environment, secrets by reference and deadlines, beside what the runtime says."""
    settings = ome_site._settings(
        task(
            node_selector={"pool": "h100"},
            image="my/sglang:1",
            env={"A": "1"},
            secret_env={"HF_TOKEN": {"secret": "hf", "key": "token"}},
            load_timeout_s=99,
        ),
        runtime(),
        SGLANG,
    )
    assert (settings.namespace, settings.model.name) == ("autotuner", "llama-3-2-1b-instruct")
    assert (settings.runtime.kind, settings.runtime.name) == ("ClusterServingRuntime", "llama-3-2-1b-instruct-rt")
    assert (settings.node_selector, settings.image, settings.env) == ({"pool": "h100"}, "my/sglang:1", {"A": "1"})
    assert (settings.secret_env["HF_TOKEN"].secret, settings.load_s, settings.port) == ("hf", 99, 8080)
    assert settings.sections == {}


def test_decoder_and_router_have_flags_of_their_own() -> None:
    """The decoder's parameters are merged into the runtime's flags, and its GPUs count."""
    decode = section("python3", "-m", "sglang.launch_server", "--tp-size", "1", "--port", "9000", port=9000)
    route = section("python3", "-m", "sglang_router.launch_router", "--policy", "random")
    disaggregated = task(
        replicas=2, decoder={"parameters": {"tp_size": 4}, "replicas": 3}, router={"args": ["--policy", "cache_aware"]}
    )
    settings = ome_site._settings(disaggregated, runtime(decoderConfig=decode, routerConfig=route), SGLANG)
    assert settings.decoder is not None
    argv = settings.decoder.argv
    assert argv[argv.index("--tp-size") + 1] == "4"
    assert argv[argv.index("--port") + 1] == "9000"
    assert not any("{" in word for word in argv)
    assert settings.router is not None
    assert settings.router.argv == ("python3", "-m", "sglang_router.launch_router", "--policy", "cache_aware")
    site = ome_site.Ome(disaggregated, settings)
    assert site.gpus(2) == 2 * 2 + 3 * 4
    assert site.need(2) == Need((2, 2, 4, 4, 4), 0.5)


@pytest.mark.parametrize("gpus", [None, 2])
def test_the_plan_counts_gpus_as_trials_do(gpus: int | None, tmp_path: Path) -> None:
    """Of all replicas and of the decoder from the beginning; with the runtime's flags as soon as it has been read."""
    disaggregated = task(replicas=2, decoder={"parameters": {"tp_size": 4}, "replicas": 3})
    resources = disaggregated.resources.model_copy(update={"gpus": gpus})
    disaggregated = disaggregated.model_copy(update={"resources": resources})
    decode = section("python3", "-m", "sglang.launch_server", "--pp-size", "2")
    settings = ome_site._settings(disaggregated, runtime(decoderConfig=decode), SGLANG)
    setup = Setup(
        disaggregated,
        SGLANG,
        ExperimentFolder(Storage(str(tmp_path)), "exp"),
        tokenizer="",
        site=ome_site.Ome(disaggregated, settings),
        runtime_args=("--tp-size", "8"),
    )
    before, read = make_plan(disaggregated, SGLANG), make_plan(disaggregated, SGLANG, gpus_of=setup.gpus)
    assert before.gpus == ((2 * 1 + 3 * 4, 2 * 2 + 3 * 4) if gpus is None else (16, 16))
    assert read.gpus == ((2 * 1 + 3 * 8, 2 * 8 + 3 * 8) if gpus is None else (28, 28))
    assert read.gpus[1] == setup.gpus({})
    noted = [note.partition(" were counted ")[0] for note in before.notes if "were counted" in note]
    assert noted == ["GPUs"] * (gpus is None) + ["GPUs of the decoder"]
    assert not any("the runtime" in note for note in read.notes)


@pytest.mark.parametrize("part", ["decoder", "router"])
def test_a_section_that_the_runtime_has_not_is_refused(part: str) -> None:
    """OME would not make one out of nothing."""
    with pytest.raises(SpecError, match=f"has no {part}"):
        ome_site._settings(task(**{part: {}}), runtime(), SGLANG)


@pytest.mark.parametrize(
    ("command", "engine"),
    [("sglang.launch_server", "sglang"), ("vllm.entrypoints.openai.api_server", "vllm"), ("my.server", "sglang")],
)
def test_the_engine_is_read_from_the_runtime(command: str, engine: str) -> None:
    """By its command; what is not known stays what was assumed."""
    raw = yaml.safe_load((ROOT / "configs" / "kubernetes" / "runtime.yaml").read_text())
    raw["spec"]["engineConfig"]["runner"]["command"][-1] = command
    assert ome_site._engine_of(parse_runtime(raw, "ClusterServingRuntime"), SGLANG).name == engine


def test_a_template_of_ones_own_is_checked_before_anything_starts(tmp_path: Path) -> None:
    """A typo in it names the variable."""
    template = tmp_path / "mine.yaml.j2"
    template.write_text("kind: {{ knid }}\n")
    with pytest.raises(SpecError, match="knid"):
        ome_site._settings(task(template=str(template)), runtime(), SGLANG)


def test_the_way_to_measure_is_the_tasks() -> None:
    """genai-bench beside the trial, or a BenchmarkJob of the trial's own service."""
    trial = TrialId("search", "abc")
    direct = ome_site.Ome(task(), ome_site._settings(task(), runtime(), SGLANG), "exp")
    assert direct.benchmark(trial) is None
    assert direct.notes() == ()
    job = task(benchmark="benchmark_job")
    silent = ome_site.Ome(job, ome_site._settings(job, runtime(), SGLANG), "exp").notes()
    assert any("additional_params" in note and "without effect" in note for note in silent)
    described = ome_site.needs(task(benchmark="benchmark_job"), 2)
    assert described.claim == "raytune-autotuner-results"
    assert (described.namespace, described.gpus, ome_site.needs(task(), 1).claim) == ("autotuner", 2, None)


def test_it_is_told_who_had_left_something_until_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is there of open trials at the beginning stays for them; whoever did not come for it still pays for it."""
    cluster, settings = FakeCluster(), ome_site._settings(task(), runtime(), SGLANG)
    monkeypatch.setattr(recovery, "POLL_S", 0.0)
    monkeypatch.setattr(ome_site, "connect", lambda task: cluster)
    goes_on, is_over = TrialId("search", "aaaaaaaaaaaa"), TrialId("search", "bbbbbbbbbbbb")
    for trial in (goes_on, is_over):
        meta = {"name": trial.name, "namespace": settings.namespace, "labels": labels("exp", trial)}
        cluster.create(INFERENCE_SERVICE, {"metadata": meta})
    told: list[str] = []
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    with ome_site.Ome(task(), settings).held(folder, [goes_on], told.append):
        assert (cluster.objects(INFERENCE_SERVICE), told) == ([goes_on.name], [])
    assert (cluster.objects(INFERENCE_SERVICE), told) == ([], [goes_on.name])


def test_another_machine_with_the_same_path_removes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is refused before it sweeps, though its folder and experiment have the same names."""
    cluster, settings = FakeCluster(), ome_site._settings(task(), runtime(), SGLANG)
    monkeypatch.setattr(recovery, "POLL_S", 0.0)
    monkeypatch.setattr(ome_site, "connect", lambda task: cluster)
    here, there = (ExperimentFolder(Storage(str(tmp_path / name)), "exp") for name in ("here", "there"))
    monkeypatch.setattr(Storage, "location", lambda storage, path="": "/data/exp")
    site = ome_site.Ome(task(), settings)
    refused = pytest.raises(EnvironmentFault, match="/data/exp gave a sign of life")
    with site.held(here, [], lambda trial: None):
        meta = {"name": "live", "namespace": settings.namespace, "labels": labels("exp", TrialId("search", "a"))}
        cluster.create(INFERENCE_SERVICE, {"metadata": meta})
        with refused, site.held(there, [], lambda trial: None):
            pass
        assert cluster.objects(INFERENCE_SERVICE) == ["live"]


def test_what_another_experiment_cannot_let_go_of_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """With its name: nobody could begin in that namespace else. What is ours and stays is an error."""
    cluster, settings = FakeCluster(), ome_site._settings(task(), runtime(), SGLANG)
    monkeypatch.setattr(recovery, "POLL_S", 0.0)
    monkeypatch.setattr(ome_site, "SWEEP_S", 0.0)
    monkeypatch.setattr(ome_site, "connect", lambda task: cluster)
    folder, trial = ExperimentFolder(Storage(str(tmp_path)), "exp"), TrialId("search", "aaaaaaaaaaaa")

    def leave(experiment: str, name: str) -> None:
        meta = {"name": name, "namespace": settings.namespace, "labels": labels(experiment, trial)}
        cluster.create(INFERENCE_SERVICE, {"metadata": meta})

    cluster.undying = {"stuck", "ours"}
    leave("broken", "stuck")
    leave("killed", "left")
    with ome_site.Ome(task(), settings).held(folder, [], lambda trial: None):
        assert cluster.objects(INFERENCE_SERVICE) == ["stuck"]
    assert "experiment broken has left" in caplog.text
    assert "InferenceService stuck" in caplog.text
    leave("exp", "ours")
    with (
        pytest.raises(TransientError, match="InferenceService ours"),
        ome_site.Ome(task(), settings).held(folder, [], lambda trial: None),
    ):
        pass
