"""The benchmark client: its parts, and the genuine genai-bench against a server that behaves as told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from raytune_autotuner.benchmarks import Answered, genai_fork
from raytune_autotuner.benchmarks.genai_cli import (
    GenaiCli,
    Target,
    argv,
    ignore_eos,
    keep,
    plain,
    request_parameters,
    secrets_of,
)
from raytune_autotuner.benchmarks.genai_fork import Order
from raytune_autotuner.benchmarks.genai_live import LiveRequests, so_far
from raytune_autotuner.benchmarks.genai_output import parse_result
from raytune_autotuner.benchmarks.genai_server import Command, GenaiServer, answers, connect, environment
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError, TrialInfeasible
from raytune_autotuner.metrics import merge
from raytune_autotuner.records import Endpoint, Load, Metrics, Rung
from raytune_autotuner.task import spec
from tests.fakes import tiny_tokenizer
from tests.fakes.openai_server import Behaviour, FakeServer

LOAD = Load("D(20,10)", 2)
PACE = {"ttft_s": 0.05, "tpot_s": 0.01}
KEY = 'sk-planted/"key"-0123456789'
PLANTED = {
    name: f"planted-{name.lower()}-value"
    for name in (
        "HF_TOKEN",
        "OPENAI_API_KEY",
        "MODEL_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "AZURE_AD_TOKEN",
    )
}
SAMPLES = Path(__file__).parent / "data" / "genai"


def rung(*loads: Load, requests: int = 8, repeats: int = 1) -> Rung:
    return Rung(0, loads or (LOAD,), requests, 1, repeats)


def eventually(condition: Callable[[], bool], timeout_s: float = 30) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# ---- Pure parts ----


def target(**changes: Any) -> Target:
    values = {"url": "http://127.0.0.1:1/", "model_name": "m", "tokenizer": "/t", "api_backend": "vllm"}
    return Target(**{**values, **changes})


def options(arguments: list[str]) -> dict[str, str]:
    assert arguments[0] == "benchmark"
    return dict(zip(arguments[1::2], arguments[2::2], strict=True))


def test_arguments_name_one_load(tmp_path: Path) -> None:
    """Every option without which genai-bench would ask or run its own defaults is given, and no key."""
    given = options(argv(spec.Benchmark(), target(), LOAD, Rung(0, (LOAD,), 50, 3), tmp_path))
    assert given == {
        "--api-backend": "vllm",
        "--api-key": "none",
        "--api-base": "http://127.0.0.1:1",
        "--api-model-name": "m",
        "--model-tokenizer": "/t",
        "--model": "m",
        "--task": "text-to-text",
        "--num-concurrency": "2",
        "--batch-size": "1",
        "--max-time-per-run": "3",
        "--max-requests-per-run": "50",
        "--traffic-scenario": "D(20,10)",
        "--metrics-time-unit": "s",
        "--experiment-base-dir": str(tmp_path),
        "--experiment-folder-name": "result",
        "--log-dir": str(tmp_path),
    }


def test_the_backend_comes_before_what_is_checked_against_it(tmp_path: Path) -> None:
    """genai-bench checks key and task against the backend, and scenario and data set against the task."""
    settings = spec.Benchmark(dataset=spec.Dataset(path="org/data"))
    order = argv(settings, target(), LOAD, rung(), tmp_path)[1::2]
    assert order.index("--api-backend") < order.index("--api-key")
    assert order.index("--api-backend") < order.index("--task")
    assert order.index("--task") < order.index("--dataset-path") < order.index("--traffic-scenario")


@pytest.mark.parametrize("task", ["text-to-embeddings", "text-to-rerank"])
def test_batches_are_sent_one_at_a_time(tmp_path: Path, task: Any) -> None:
    """A level of these tasks is a batch size; concurrency is 1."""
    given = options(argv(spec.Benchmark(task=task), target(), Load("E(64)", 16), rung(), tmp_path))
    assert (given["--batch-size"], given["--num-concurrency"]) == ("16", "1")


def test_all_settings_reach_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data set, prefix, engine and request parameters are passed on; files by their full path."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("prompt\nhello\n")
    settings = spec.Benchmark(
        dataset=spec.Dataset(path="prompts.csv", config="config.json", prompt_column="prompt", image_column="image"),
        prefix_len=5,
        prefix_ratio=0.5,
        additional_params={"temperature": "0.0", "ignore_eos": False},
    )
    given = options(argv(settings, target(server_engine="LlamaCPP"), Load("dataset", 1), rung(), tmp_path))
    assert given["--dataset-path"] == str(tmp_path / "prompts.csv")
    assert given["--dataset-config"] == "config.json"
    assert (given["--dataset-prompt-column"], given["--dataset-image-column"]) == ("prompt", "image")
    assert (given["--prefix-len"], given["--prefix-ratio"]) == ("5", "0.5")
    assert given["--server-engine"] == "LlamaCPP"
    assert given["--traffic-scenario"] == "dataset"
    assert json.loads(given["--additional-request-params"]) == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.0", 0.0),
        ("7", 7),
        ("-1e3", -1000.0),
        ("true", True),
        ("false", False),
        ("007", "007"),
        ("NaN", "NaN"),
        ("x1", "x1"),
        ("", ""),
        (3, 3),
        (None, None),
        (["1"], ["1"]),
    ],
)
def test_text_that_spells_a_number_becomes_one(value: object, expected: object) -> None:
    """Only whole texts that are numbers or truth values in JSON are converted."""
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


@pytest.mark.parametrize(
    ("value", "wish"), [({}, None), ({"ignore_eos": "false"}, False), ({"ignore_eos": True}, True)]
)
def test_the_end_of_sequence_wish_travels_apart(value: dict[str, Any], wish: bool | None) -> None:
    """ignore_eos is not among the parameters that genai-bench would ask about."""
    settings = spec.Benchmark(additional_params=value)
    assert ignore_eos(settings) is wish
    assert "ignore_eos" not in request_parameters(settings)


def test_the_environment_is_an_allow_list(tmp_path: Path) -> None:
    """The server sees no secret; a hub's token only when the tokenizer comes from there."""
    source = {**PLANTED, "PATH": "/bin", "LC_ALL": "C", "HOME": "/h", "PYTHONPATH": "/p", "RANDOM_THING": "1"}
    local = environment(str(tmp_path), source)
    assert not set(PLANTED) & set(local)
    assert "RANDOM_THING" not in local
    assert (local["PATH"], local["LC_ALL"], local["HF_HUB_OFFLINE"], local["ENABLE_UI"]) == ("/bin", "C", "1", "false")
    assert local["PYTHONPATH"].endswith(":/p")
    hub = environment("org/model", source)
    assert set(PLANTED) & set(hub) == {"HF_TOKEN"}
    assert "HF_HUB_OFFLINE" not in hub


def test_secrets_are_known_by_their_names() -> None:
    """The key and everything under a telling name is a secret, short values such as `false` are not."""
    variables = {"MY_TOKEN": "abcdefgh", "TOKENIZERS_PARALLELISM": "false", "HOME": "/home/someone"}
    assert secrets_of("k", variables) == ("k", "abcdefgh")
    assert secrets_of(None, {}) == ()


def test_what_is_kept_is_redacted_and_bounded(tmp_path: Path) -> None:
    """Logs, metadata, results and debug files are kept without secrets; plots are not; long logs lose their start."""
    scratch, kept = tmp_path / "scratch", tmp_path / "kept"
    (scratch / "result").mkdir(parents=True)
    for name in ("genai_bench.log", "result/experiment_metadata.json", "result/debug_for_run_x_1.json", "result/p.png"):
        (scratch / name).write_text("key=12345678")
    (scratch / "stdout.log").write_text("start" + "x" * 2_000_000 + "12345678")
    keep(scratch, kept, ["12345678"])
    names = {"genai_bench.log", "stdout.log", "experiment_metadata.json", "debug_for_run_x_1.json"}
    assert {path.name for path in kept.iterdir()} == names
    assert all("12345678" not in path.read_text() for path in kept.iterdir())
    text = (kept / "stdout.log").read_text()
    assert len(text) <= 1_000_000
    assert text.endswith("[redacted]")


def test_repeats_become_one_measurement() -> None:
    """Requests, errors and durations of repeats add up; throughput follows from all requests together."""
    first = parse_result(next((SAMPLES / "seconds").glob("*_time_*")))
    second = parse_result(next((SAMPLES / "half_errors").glob("*_time_*")))
    both = merge([first, second])
    assert (both.completed, both.errors) == (18, 10)
    assert both.duration_s == first.duration_s + second.duration_s
    assert both.samples.e2e_s == first.samples.e2e_s + second.samples.e2e_s
    assert both.error_codes == {"500": 10}
    assert both.values["error_ratio"] == pytest.approx(10 / 28)
    assert both.reported["requests_per_s"] == pytest.approx(
        (first.reported["requests_per_s"] + second.reported["requests_per_s"]) / 2
    )
    assert merge([first]) is first


# ---- What is changed in genai-bench, and the accept loop, without genai-bench ----


def test_the_key_reaches_only_the_request_headers() -> None:
    """The function that makes the headers gets the real key in place of the option's."""
    factory = SimpleNamespace(create_model_auth=lambda provider, **options: (provider, options))
    genai_fork.substitute_key(factory, "real")
    assert factory.create_model_auth("openai", api_key="none", x=1) == ("openai", {"api_key": "real", "x": 1})


def test_the_users_end_of_sequence_wish_is_sent() -> None:
    """Where genai-bench sends ignore_eos, the user's value goes; where it does not, neither do we."""

    class User:
        def send_request(self, stream: bool, endpoint: str, payload: dict[str, Any], parse: str) -> Any:
            return payload

    genai_fork.pin_ignore_eos(User, False)
    assert User().send_request(True, "/", {"ignore_eos": True, "a": 1}, "parse") == {"ignore_eos": False, "a": 1}
    assert User().send_request(True, "/", {"a": 1}, "parse") == {"a": 1}


def test_unusable_answers_are_recorded_as_errors() -> None:
    """What a request's task raises becomes a failed request of its user."""
    listeners: list[Callable[..., None]] = []
    events = SimpleNamespace(user_error=SimpleNamespace(add_listener=listeners.append))
    program = SimpleNamespace(Environment=lambda **options: SimpleNamespace(events=events, **options))
    genai_fork.count_unusable_answers(program, SimpleNamespace)
    assert program.Environment(user_classes=[1]).user_classes == [1]
    recorded: list[Any] = []
    user = SimpleNamespace(collect_metrics=lambda response, endpoint: recorded.append(response))
    for instance in (user, SimpleNamespace(user=user)):
        listeners[0](user_instance=instance, exception=ValueError("empty"), tb=None)
    assert [(r.status_code, r.error_message) for r in recorded] == [(-1, "unusable answer: empty")] * 2


def test_a_server_has_its_name_only_once_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds it there and connects is refused otherwise, and takes it for dead."""
    path, there = tmp_path / "s", []

    class Listener(socket.socket):
        def listen(self, *backlog: int) -> None:
            there.append(path.exists())
            super().listen(*backlog)

    monkeypatch.setattr(genai_fork.socket, "socket", Listener)
    server = genai_fork.Server(path)
    monkeypatch.undo()
    assert there == [False]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    server.listener.close()


def test_the_tokenizer_is_loaded_once() -> None:
    """genai-bench gets the loaded tokenizer for its name, and loads any other itself."""
    loads: list[str] = []

    def load(name: str) -> Any:
        loads.append(name)
        return SimpleNamespace(name=name, encode=lambda text: [])

    program = SimpleNamespace(validate_tokenizer=load)
    genai_fork.preload(program, "a")
    assert program.validate_tokenizer("a") is program.validate_tokenizer("a")
    assert program.validate_tokenizer("b").name == "b"
    assert loads == ["a", "b"]


@pytest.fixture
def accept_loop(tmp_path: Path) -> Iterator[tuple[Path, list[subprocess.Popen[bytes]]]]:
    """The real accept loop in a thread, whose children are programs named by the order instead of forks."""
    path = tmp_path / ("long-" * 30) / "genai.sock"
    path.parent.mkdir()
    server = genai_fork.Server(path)
    children: list[subprocess.Popen[bytes]] = []

    def spawn() -> int:
        children.append(subprocess.Popen(["sleep", durations.pop(0)], start_new_session=True))
        children[-1].returncode = 0  # reaped by the loop
        return children[-1].pid

    durations = ["0", "100", "0"]
    server.fork = spawn
    closing = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            server.serve()
        assert closing.is_set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield path, children
    closing.set()
    server.listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    server.listener.close()
    assert not thread.is_alive()


def order() -> Order:
    return Order((), "/", os.devnull)


def test_commands_are_run_and_killed(accept_loop: tuple[Path, list[subprocess.Popen[bytes]]]) -> None:
    """A command's exit code arrives; closing kills one that runs; the loop goes on to the next."""
    path, children = accept_loop
    assert answers(path)
    with Command(path, order(), Deadline.after(30)) as command:
        assert eventually(lambda: command.poll(0.1) == 0)
        assert command.poll() == 0
    running = Command(path, order(), Deadline.after(30))
    assert running.poll(0.05) is None
    running.close()
    running.close()
    assert running.poll() == -signal.SIGKILL
    assert not psutil.pid_exists(children[1].pid)
    with Command(path, order(), Deadline.after(30)) as command:
        assert eventually(lambda: command.poll(0.1) == 0)


def test_no_server_is_said_at_once(tmp_path: Path) -> None:
    """Neither a folder that is missing nor a socket that nobody listens on is waited for."""
    assert not answers(tmp_path / "gone" / "genai.sock")
    path = tmp_path / "genai.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert not answers(path)
    with pytest.raises(TransientError, match="no genai-bench server"):
        connect(path, Deadline.after(5))


def test_a_server_that_ends_is_an_error_with_its_log(tmp_path: Path) -> None:
    """A server that goes away while it loads is an infrastructure fault, told with what it last said."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server.log").write_text("no such tokenizer\n")
    path = tmp_path / "server" / "genai.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        closer = threading.Thread(target=lambda: listener.accept()[0].close())
        closer.start()
        with pytest.raises(TransientError, match="no such tokenizer"):
            connect(path, Deadline.after(30))
        closer.join()
        with pytest.raises(TransientError, match="does not answer"):
            connect(path, Deadline.after(0.1))


# ---- The genuine genai-bench ----


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture(scope="module")
def server(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenaiServer]:
    """One loaded server, started while the environment held secrets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        started = GenaiServer.start(str(tokenizer), tmp_path_factory.mktemp("genai") / "server")
    try:
        started.wait_ready(Deadline.after(200))
        yield started
    finally:
        started.close()
    assert not started.scratch.exists()
    assert list(started.scratch.parent.iterdir()) == []


class Bench:
    """A client and the server it loads."""

    def __init__(self, server: GenaiServer, tokenizer: Path, folder: Path) -> None:
        self.server, self.tokenizer, self.folder = server, tokenizer, folder

    def run(
        self,
        fake: FakeServer,
        planned: Rung | None = None,
        *,
        api_key: str | None = None,
        deadline_s: float = 120,
        check: Callable[..., Any] = lambda answered=None: None,
        **settings: Any,
    ) -> Metrics:
        client = GenaiCli(
            spec.Benchmark().model_copy(update=settings),
            model_name="fake",
            tokenizer=str(self.tokenizer),
            api_backend="vllm",
            server_engine=None,
            api_key=api_key,
            socket=self.server.socket,
        )
        client.prepare()
        try:
            endpoint = Endpoint(fake.url, "fake")
            return client.run(endpoint, planned or rung(), self.folder / "rung", Deadline.after(deadline_s), check)
        finally:
            client.close()
            # whatever happened, the command has ended, nothing of it is left, and the server goes on
            assert psutil.Process(self.server.pid).children() == []
            assert {path.name for path in self.server.scratch.iterdir()} == {"genai.sock"}


@pytest.fixture
def bench(server: GenaiServer, tokenizer: Path, tmp_path: Path) -> Bench:
    return Bench(server, tokenizer, tmp_path)


def test_a_rung_is_measured(bench: Bench) -> None:
    """Several loads and repeats: exact token counts, the fake's pace, and the raw output of each run kept."""
    loads = (LOAD, Load("U(10,20)/(5,10)", 1))
    with FakeServer(Behaviour(**PACE)).running() as fake:
        metrics = bench.run(fake, rung(*loads, requests=4, repeats=2), additional_params={"temperature": "0.5"})
    assert [each.load for each in metrics.loads] == list(loads)
    first = metrics.loads[0]
    assert set(first.samples.output_tokens) == {10}
    assert first.errors == 0
    assert first.values["ttft_mean_s"] >= PACE["ttft_s"]
    assert first.values["e2e_mean_s"] >= PACE["ttft_s"] + 9 * PACE["tpot_s"]
    assert metrics.traffic_s == pytest.approx(sum(each.duration_s for each in metrics.loads))
    assert metrics.client_overhead_s >= 0
    assert {body["temperature"] for body in fake.bodies} == {0.5}
    assert {body["ignore_eos"] for body in fake.bodies} == {True}
    kept = sorted(path.name for path in (bench.folder / "rung").iterdir())
    assert kept == [
        "0-D_20_10-2-repeat0",
        "0-D_20_10-2-repeat1",
        "1-U_10_20_5_10-1-repeat0",
        "1-U_10_20_5_10-1-repeat1",
    ]
    names = {path.name for path in (bench.folder / "rung" / kept[0]).iterdir()}
    assert {"experiment_metadata.json", "genai_bench.log", "stdout.log"} < names


def test_the_users_ignore_eos_is_honoured_without_a_question(bench: Bench) -> None:
    """genai-bench would ask on the terminal, and then overwrite the value."""
    with FakeServer(Behaviour(**PACE)).running() as fake:
        bench.run(fake, rung(requests=2), additional_params={"ignore_eos": False})
    assert {body["ignore_eos"] for body in fake.bodies} == {False}


def test_embeddings_are_measured_by_batch(bench: Bench) -> None:
    """A batch of four documents goes out at a time; there is nothing to measure per output token."""
    with FakeServer(Behaviour(**PACE)).running() as fake:
        metrics = bench.run(fake, rung(Load("E(20)", 4), requests=2), task="text-to-embeddings")
    assert {len(body["input"]) for body in fake.bodies} == {4}
    (load,) = metrics.loads
    assert (load.concurrency, load.load.level) == (1, 4)
    assert "tpot_mean_s" not in load.values


def test_failures_within_the_allowance_are_measured(bench: Bench) -> None:
    """Half of the requests fail and that is allowed: both halves are counted."""
    with FakeServer(Behaviour(**PACE, error_share=0.5)).running() as fake:
        (load,) = bench.run(fake, max_error_ratio=0.6).loads
    assert load.completed > 0
    assert abs(load.completed - load.errors) <= 2
    assert load.error_codes == {"500": load.errors}


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"error_share": 0.5}, ["requests failed, allowed are 2.0%", "HTTP 500", "fails as told"]),
        ({"error_share": 1.0, "error_code": 503}, ["HTTP 503", "fails as told"]),
        ({"empty": True}, ["no usable answer", "no content"]),
        ({"tokens": 1}, ["answers of a single token"]),
    ],
)
def test_too_many_failures_are_infeasible_with_the_reason(
    bench: Bench, behaviour: dict[str, Any], words: list[str]
) -> None:
    """Whatever way the answers are no good, the rung ends with the most frequent reason."""
    with FakeServer(Behaviour(**PACE, **behaviour)).running() as fake, pytest.raises(TrialInfeasible) as caught:
        bench.run(fake)
    assert caught.value.kind == "request_errors"
    assert all(word in caught.value.reason for word in words), caught.value.reason


def test_a_hanging_server_ends_at_the_deadline(bench: Bench) -> None:
    """genai-bench has no timeout of its own for a request: ours ends the rung."""
    with FakeServer(Behaviour(hang_after=3)).running() as fake, pytest.raises(TrialInfeasible) as caught:
        bench.run(fake, deadline_s=2)
    assert caught.value.kind == "timeout"
    assert (bench.folder / "rung" / "0-D_20_10-2" / "genai_bench.log").exists()


class EngineGone(Exception):
    """What a backend raises when its engine has died."""


def test_an_engine_that_dies_ends_the_rung(bench: Bench) -> None:
    """What check raises while the load runs comes out as it is."""
    with FakeServer(Behaviour(hang_after=0)).running() as fake:

        def check(answered: object = None) -> None:
            if fake.bodies:
                raise EngineGone

        with pytest.raises(EngineGone):
            bench.run(fake, check=check)


def test_a_dead_engine_explains_failed_requests(bench: Bench) -> None:
    """When all requests fail because the engine is gone, the engine's end is the reason, not the failures."""
    calls: list[int] = []

    def check(answered: object = None) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise EngineGone

    fake = FakeServer()
    fake.server_close()
    with pytest.raises(EngineGone):
        bench.run(fake, check=check)


def test_a_command_that_genai_bench_refuses_is_told(bench: Bench) -> None:
    """A task that genai-bench does not have ends with its own words, as a fault of the tool."""
    with FakeServer().running() as fake, pytest.raises(TransientError, match="text-to-video"):
        bench.run(fake, task="text-to-video")


def everything_below(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def spellings(secret: str) -> list[bytes]:
    return [secret.encode(), json.dumps(secret)[1:-1].encode(), json.dumps(json.dumps(secret)[1:-1])[1:-1].encode()]


@pytest.mark.parametrize("right", [True, False])
def test_no_secret_is_kept_or_shown(bench: Bench, right: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key nor a secret of the environment stands in a kept byte, an error, or a process's arguments
    and environment, also when the server repeats the key that it refuses."""
    used = KEY if right else KEY + "-wrong"
    seen: list[bytes] = []

    def look(answered: object = None) -> None:
        root = psutil.Process(bench.server.pid)
        for process in [root, *root.children(recursive=True), psutil.Process()]:
            seen.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
            if process.pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    seen.append(Path(f"/proc/{process.pid}/environ").read_bytes())

    told = ""
    with FakeServer(Behaviour(**PACE, api_key=KEY)).running() as fake:
        if right:
            (load,) = bench.run(fake, api_key=used, check=look).loads
            assert load.completed > 0
        else:
            with pytest.raises(TrialInfeasible, match="401") as caught:
                bench.run(fake, api_key=used, check=look)
            told = f"{caught.value} {caught.value.log_tail}"
    kept = everything_below(bench.folder)
    assert b"Options you provided" in kept
    assert len(seen) >= 5
    haystack = kept + b"\n".join(seen) + told.encode() + caplog.text.encode() + repr(Order((), "", "", used)).encode()
    for secret in (used, KEY, *PLANTED.values()):
        assert not [form for form in spellings(secret) if form in haystack]


def test_the_numbers_are_those_of_a_plain_run(bench: Bench) -> None:
    """The command run as anyone would: as many requests, the same token counts, the same latencies."""
    planned = rung(requests=8)
    # 0.45 s a request: two clients have finished 8 well before the second-wise poll that ends the run
    with FakeServer(Behaviour(ttft_s=0.18, tpot_s=0.03)).running() as fake:
        folder = bench.folder / "plain"
        folder.mkdir()
        plain_target = Target(fake.url, "fake", str(bench.tokenizer), "vllm")
        command = [str(Path(sys.executable).with_name("genai-bench"))]
        subprocess.run(
            [*command, *argv(spec.Benchmark(), plain_target, LOAD, planned, folder)],
            env=environment(str(bench.tokenizer), os.environ),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=200,
            check=True,
        )
        (ours,) = bench.run(fake, planned).loads
    theirs = parse_result(next((folder / "result").glob("*_time_*s.json")))
    assert ours.load == theirs.load
    assert abs(ours.completed - theirs.completed) <= LOAD.level
    assert ours.errors == theirs.errors == 0
    assert set(ours.samples.output_tokens) == set(theirs.samples.output_tokens) == {10}
    assert ours.values["input_tokens_mean"] == pytest.approx(theirs.values["input_tokens_mean"], abs=1)
    for name in ("ttft_p50_s", "tpot_p50_s", "e2e_p50_s", "e2e_mean_s", "output_tokens_per_s"):
        assert ours.values[name] == pytest.approx(theirs.values[name], rel=0.3), name


def test_a_command_dies_with_its_connection(server: GenaiServer, tokenizer: Path, tmp_path: Path) -> None:
    """A trial that is killed has no time for a goodbye: the end of its connection kills its command."""
    with FakeServer(Behaviour(hang_after=0)).running() as fake:
        arguments = argv(spec.Benchmark(), target(url=fake.url, tokenizer=str(tokenizer)), LOAD, rung(), tmp_path)
        order = Order(tuple(arguments), str(tmp_path), str(tmp_path / "out"))
        trial = subprocess.Popen(
            [sys.executable, "-c", TRIAL, str(server.socket), json.dumps([order.argv, order.folder, order.output])]
        )
        try:
            assert eventually(lambda: len(fake.bodies) > 0)
            (child,) = psutil.Process(server.pid).children()
            assert os.getpgid(child.pid) == child.pid
        finally:
            trial.kill()
            trial.wait()
        assert eventually(lambda: not child.is_running())


TRIAL = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from raytune_autotuner.benchmarks.genai_fork import Order
    from raytune_autotuner.benchmarks.genai_server import Command
    from raytune_autotuner.deadline import Deadline
    argv, folder, output = json.loads(sys.argv[2])
    command = Command(Path(sys.argv[1]), Order(tuple(argv), folder, output), Deadline.after(60))
    command.poll(1000)
""")

OWNER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from raytune_autotuner.task import spec
    from raytune_autotuner.benchmarks.genai_cli import GenaiCli
    from raytune_autotuner.deadline import Deadline
    from raytune_autotuner.records import Endpoint, Load, Rung
    tokenizer, url, folder = sys.argv[1:]
    RUNG = Rung(0, (Load("D(20,10)", 2),), 8, 1)
    client = GenaiCli(spec.Benchmark(), model_name="m", tokenizer=tokenizer, api_backend="vllm", server_engine=None)
    client.prepare()
    print(client._server.pid, client._server.scratch, flush=True)
    client.run(Endpoint(url, "m"), RUNG, Path(folder), Deadline.after(600), lambda answered=None: None)
""")


def test_everything_dies_with_its_owner(tokenizer: Path, tmp_path: Path) -> None:
    """A client without a shared server starts its own; SIGKILL to the client ends server and command, and removes
    their folder."""
    with FakeServer(Behaviour(hang_after=0)).running() as fake:
        command = [sys.executable, "-c", OWNER, str(tokenizer), fake.url, str(tmp_path / "rung")]
        environ = {**os.environ, "TMPDIR": str(tmp_path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as owner:
            try:
                assert owner.stdout is not None
                pid, scratch = owner.stdout.readline().split()
                assert eventually(lambda: len(fake.bodies) > 0, 200)
                root = psutil.Process(int(pid))
                processes = [root, *root.children(recursive=True)]
                assert len(processes) == 2
            finally:
                owner.kill()
        assert eventually(lambda: not any(process.is_running() for process in processes))
        assert eventually(lambda: not Path(scratch).exists())


def test_a_tokenizer_that_does_not_load_is_told(tmp_path: Path) -> None:
    """The owner of the server learns that it will never be ready, and why."""
    folder = tmp_path / "empty"
    folder.mkdir()
    started = GenaiServer.start(str(folder), tmp_path / "server")
    try:
        with pytest.raises(EnvironmentFault, match="instantiate the backend tokenizer"):
            started.wait_ready(Deadline.after(200))
    finally:
        started.close()


def test_a_server_that_has_gone_is_replaced(
    server: GenaiServer, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose shared server does not answer starts its own in a private folder, and ends it at close."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client = GenaiCli(
        spec.Benchmark(),
        model_name="m",
        tokenizer=str(tokenizer),
        api_backend="vllm",
        server_engine=None,
        socket=tmp_path / "gone" / "genai.sock",
    )
    client.prepare()
    client.prepare()
    try:
        (folder,) = filter(Path.is_dir, tmp_path.iterdir())
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        client.close()
        client.close()
    assert list(tmp_path.iterdir()) == []


def test_a_load_is_seen_while_it_runs_and_can_be_ended(bench: Bench) -> None:
    """Its requests come with their latencies and times as they end; a reason ends the client and marks the result."""
    seen: list[Answered] = []

    def enough(answered: Answered | None = None) -> str | None:
        if answered is not None:
            seen.append(answered)
        return "enough" if len(seen) > 1 else None

    with FakeServer(Behaviour(**PACE)).running() as fake:
        (load,) = bench.run(fake, rung(requests=100_000), check=enough).loads
    last = seen[-1]
    assert load.cut == "enough"
    assert load.completed >= len(last.samples.e2e_s) > len(seen[0].samples.e2e_s)
    assert last.samples.output_tokens == (10.0,) * len(last.ended_s)
    assert all(e2e > ttft >= PACE["ttft_s"] for e2e, ttft in zip(last.samples.e2e_s, last.samples.ttft_s, strict=True))
    assert list(last.ended_s) == sorted(last.ended_s)
    assert load.values["e2e_mean_s"] >= PACE["ttft_s"] + 9 * PACE["tpot_s"]
    assert (bench.folder / "rung" / "0-D_20_10-2" / "requests.jsonl").exists()


def test_what_is_seen_of_a_whole_load_is_what_its_result_says(bench: Bench) -> None:
    """The lines written as requests end hold the same numbers, and the client's own use of the CPU."""
    with FakeServer(Behaviour(ttft_s=0.18, tpot_s=0.03)).running() as fake:
        (load,) = bench.run(fake, rung(requests=12)).loads
    live = LiveRequests(bench.folder / "rung" / "0-D_20_10-2" / "requests.jsonl")
    answered = live.answered()
    assert answered is not None
    again = so_far(load.load, 2, answered)
    assert again.values == pytest.approx(load.values)
    assert again.samples == load.samples
    assert load.client_cpu is not None
    assert 0 < load.client_cpu < 1
    assert live.answered() == answered


def test_lines_are_read_as_they_grow(tmp_path: Path) -> None:
    """A line that is not whole yet waits; failed requests are counted apart; little time says nothing of the CPU."""
    path = tmp_path / "requests.jsonl"
    live = LiveRequests(path)
    assert live.answered() is None
    row = {"at": 5.0, "cpu": 1.0, "ttft": 0.1, "tpot": 0.0, "e2e": 1.0, "input": 3, "output": 0, "error": None}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row)[:10])
    first = live.answered()
    assert first is not None
    assert (len(first.ended_s), first.samples.tpot_s, first.errors, first.cpu) == (1, (None,), 0, None)
    failed = {**row, "at": 7.0, "cpu": 2.5, "ttft": None, "error": 500}
    path.write_text(json.dumps(row) + "\n" + json.dumps(failed) + "\n")
    second = live.answered()
    assert second is not None
    assert (len(second.ended_s), second.errors, second.cpu, second.span_s) == (1, 1, 0.75, 1.0)
