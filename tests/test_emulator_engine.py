"""The emulated engine: its performance model, its command line, its HTTP interface, and how it fails."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from raytune_autotuner import loopback
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.engines.engine_metrics import parse as parse_metrics
from raytune_autotuner.engines.failures import classify
from raytune_autotuner.metrics import summarise
from tests.emulator.engine.arguments import parse
from tests.emulator.engine.measure import main as table
from tests.emulator.engine.model import EngineFailure, Load, Measured, lengths, start
from tests.emulator.engine.prefix import PrefixCache
from tests.emulator.engine.profile import Profile, load_profile, profile_names
from tests.emulator.engine.switches import Switches, from_environment
from tests.waiting import until

H100 = load_profile("llama-3.1-8b-h100")
BIG = load_profile("qwen2.5-72b-h100")
SMALL = load_profile("llama-3.2-1b-a10")
ROOT = Path(__file__).resolve().parents[1]
LOAD = Load("D(1000,200)", 64, 256)


def measure(
    profile: Profile = H100, engine: str = "sglang", load: Load = LOAD, seed: int = 0, **values: Any
) -> Measured:
    return start(profile, engine, values, seed=seed).measure(load)


def metrics(load: Load = LOAD, engine: str = "sglang", **values: Any) -> dict[str, float]:
    measured = measure(engine=engine, load=load, **values)
    assert measured.failure is None
    return summarise(measured.samples, load.concurrency, measured.errors)


# The performance model


@pytest.mark.parametrize("name", profile_names())
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_every_profile_serves_with_some_configuration(name: str, engine: str) -> None:
    """Each profile starts with enough GPUs and answers every request of a load with the right numbers of tokens."""
    tp = {"sglang": "tp_size", "vllm": "tensor_parallel_size"}[engine]
    measured = measure(load_profile(name), engine, Load("D(100,50)", 8, 32), **{tp: 4})
    assert len(measured.samples.e2e_s) == 32
    assert set(measured.samples.output_tokens) == {50.0}


def test_throughput_rises_with_concurrency_and_each_request_slows_down() -> None:
    """Batching pays: 64 requests at once give far more tokens a second than one, but each of them later."""
    one, many = metrics(Load("D(1000,200)", 1, 8)), metrics()
    assert many["output_tokens_per_s"] > 8 * one["output_tokens_per_s"]
    assert many["e2e_mean_s"] > one["e2e_mean_s"]


def test_a_single_request_is_bound_by_reading_the_weights() -> None:
    """At concurrency 1 the time per token is about the weights' bytes over the bandwidth that is reached."""
    tpot = metrics(Load("D(100,200)", 1, 8))["tpot_mean_s"]
    reading = 8.03e9 * 2 / (3350e9 * 0.78)
    assert reading < tpot < 1.3 * reading


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"tp_size": 2}, {}),
        ({"quantization": "fp8"}, {}),
        ({}, {"disable_cuda_graph": True}),
        ({}, {"disable_overlap_schedule": True}),
        ({}, {"attention_backend": "triton"}),
        ({}, {"max_running_requests": 8}),
        ({}, {"chunked_prefill_size": 512}),
        ({"kv_cache_dtype": "fp8_e4m3"}, {}),
        ({}, {"max_total_tokens": 8192}),
        ({"dp_size": 2}, {}),
        ({}, {"dtype": "float32"}),
    ],
)
def test_parameters_act_in_the_direction_that_they_act_on_gpus(better: dict[str, Any], worse: dict[str, Any]) -> None:
    """Each of these changes the throughput of a loaded engine clearly, and the right way."""
    assert metrics(**better)["output_tokens_per_s"] > 1.03 * metrics(**worse)["output_tokens_per_s"]


def test_mixing_prefill_into_decode_trades_latency_kinds() -> None:
    """Mixed chunks lower the time to the first token and raise the time of each."""
    plain, mixed = metrics(), metrics(enable_mixed_chunk=True)
    assert mixed["ttft_mean_s"] < plain["ttft_mean_s"]
    assert mixed["tpot_mean_s"] > plain["tpot_mean_s"]


def test_the_same_seed_gives_the_same_numbers_and_another_one_noise() -> None:
    """A measurement can be repeated exactly; another start of the same configuration differs a little."""
    first, again, other = measure(seed=1), measure(seed=1), measure(seed=2)
    assert first.samples == again.samples
    assert first.duration_s != other.duration_s
    assert first.duration_s == pytest.approx(other.duration_s, rel=0.1)


def test_a_slow_node_is_slower_by_its_factor() -> None:
    """The profile's factor for a node shows in all times."""
    usual = start(BIG, "sglang", {"tp_size": 4}, node="n1", seed=3).measure(LOAD)
    slow = start(BIG, "sglang", {"tp_size": 4}, node="slow", seed=3).measure(LOAD)
    assert slow.duration_s / usual.duration_s == pytest.approx(1.06, abs=0.05)


def test_drift_shows_over_hours() -> None:
    """Loads on one engine half a period apart differ by up to twice the amplitude of the drift."""
    engine = start(BIG, "sglang", {"tp_size": 8})
    durations = []
    for hour in range(8):
        for rank in engine.ranks:
            rank.clock.now_s = hour * 1800.0
        durations.append(engine.measure(LOAD).duration_s)
    assert 1.01 < max(durations) / min(durations) < 1.1


def test_a_small_kv_cache_sends_requests_back() -> None:
    """With little room kept for answers, a full KV cache retracts requests, and all are answered all the same."""
    measured = measure(max_total_tokens=16384, schedule_conservativeness=0.3)
    assert measured.retracted > 0
    assert len(measured.samples.e2e_s) == LOAD.requests
    assert set(measured.samples.output_tokens) == {200.0}


def test_arrivals_at_a_rate_queue_up_only_beyond_what_is_served() -> None:
    """An open loop below capacity keeps first tokens early; above it the queue grows."""
    calm = measure(load=Load("D(1000,200)", rate_per_s=5, requests=300)).samples
    storm = measure(load=Load("D(1000,200)", rate_per_s=60, requests=300)).samples
    assert max(calm.ttft_s) < 1.0 < max(storm.ttft_s)
    assert min(calm.ttft_s) > 0


def test_a_full_queue_refuses() -> None:
    """Requests beyond ``max_queued_requests`` are errors, the others are served."""
    measured = measure(max_queued_requests=10, max_running_requests=8)
    assert measured.errors > 0
    assert len(measured.samples.e2e_s) + measured.errors >= LOAD.requests


def test_a_load_ends_with_its_time() -> None:
    """A bound in seconds holds in virtual time, up to the step at hand."""
    measured = measure(load=Load("D(1000,200)", 64, 100_000, seconds=20.0))
    assert 20.0 <= measured.duration_s < 25.0


@pytest.mark.parametrize("scenario", ["N(480,240)/(300,150)", "U(50,100)/(20,40)", "U(100,100)", "D(7,3)"])
def test_scenarios_are_drawn_as_genai_bench_draws_them(scenario: str) -> None:
    """Lengths are positive and within what the notation says."""
    drawn = [lengths(scenario)(random.Random(seed)) for seed in range(200)]
    assert all(prompt >= 1 and output >= 1 for prompt, output in drawn)
    if scenario.startswith("U(50"):
        assert all(50 <= prompt <= 100 and 20 <= output <= 40 for prompt, output in drawn)


def test_what_is_no_scenario_is_refused() -> None:
    """A form that the model cannot draw is an error, not a guess."""
    with pytest.raises(ValueError, match="E\\(128\\)"):
        lengths("E(128)")


# Failures

FAILURES = [
    (H100, "sglang", {"mem_frac": 0.15}, "Not enough memory", "out_of_memory"),
    (H100, "sglang", {"mem_frac": 0.99}, "Capture cuda graph failed", "out_of_memory"),
    (BIG, "sglang", {"tp_size": 1}, "CUDA out of memory", "out_of_memory"),
    (BIG, "sglang", {"tp_size": 2}, "Not enough memory", "out_of_memory"),
    (H100, "sglang", {"tp_size": 3}, "32 is not divisible by 3", "unsupported"),
    (H100, "sglang", {"attention_backend": "fa4"}, "is not supported", "unsupported"),
    (H100, "vllm", {"gpu_memory_utilization": 0.1}, "No available memory for the cache blocks", "out_of_memory"),
    (H100, "vllm", {"gpu_memory_utilization": 0.3}, "larger than the available KV cache memory", "out_of_memory"),
    (H100, "vllm", {"gpu_memory_utilization": 0.999}, "CUDA out of memory", "out_of_memory"),
    (H100, "vllm", {"tensor_parallel_size": 3}, "must be divisible by", "unsupported"),
]


@pytest.mark.parametrize(("profile", "engine", "values", "said", "kind"), FAILURES)
def test_a_start_that_cannot_work_fails_with_the_engines_words(
    profile: Profile, engine: str, values: dict[str, Any], said: str, kind: str
) -> None:
    """Each region of failure ends the start with the message by which the engine file knows it."""
    with pytest.raises(EngineFailure, match=said) as caught:
        start(profile, engine, values)
    assert classify(load_engine(engine), caught.value.message, 1).kind == kind
    assert caught.value.out_of_memory == (kind == "out_of_memory")


def test_more_gpus_than_there_are_cannot_start() -> None:
    """A configuration over eight GPUs fails where the process sees four."""
    with pytest.raises(EngineFailure, match="invalid device ordinal"):
        start(H100, "sglang", {"tp_size": 8}, gpus=4)
    with pytest.raises(EngineFailure, match="World size"):
        start(H100, "vllm", {"tensor_parallel_size": 8}, gpus=4)


def test_large_chunks_beside_a_large_cache_run_out_of_memory_under_load() -> None:
    """Such a configuration starts, and breaks off as soon as a full chunk is computed; a short prompt is no harm."""
    values = {"mem_frac": 0.95}
    assert measure(load=Load("D(100,20)", 1, 5), **values).failure is None
    failure = measure(**values).failure
    assert failure is not None
    assert failure.out_of_memory


def test_a_region_of_a_profile_fails_at_the_request_it_names() -> None:
    """``after_requests`` of a failing region counts the requests of the engine."""
    values = {"tp_size": 4, "num_continuous_decode_steps": 8, "enable_mixed_chunk": True}
    measured = measure(BIG, load=Load("D(100,20)", 1, 50), **values)
    assert measured.failure is not None
    assert len(measured.samples.e2e_s) == 19


def test_a_typo_in_a_profile_is_refused(tmp_path: Path) -> None:
    """Unknown names and expressions that are none do not load."""
    text = (ROOT / "tests/emulator/profiles/llama-3.2-1b-a10.yaml").read_text()
    for wrong in (text + "typo: 1\n", text.replace("page_size >= 16", "page_size => 16")):
        file = tmp_path / "wrong.yaml"
        file.write_text(wrong)
        with pytest.raises(ValueError, match="validation error"):
            load_profile(file)


# The command line


@pytest.mark.parametrize(
    ("engine", "words", "name", "value"),
    [
        ("sglang", ["--tp", "4"], "tp_size", 4),
        ("sglang", ["--mem-frac=0.8"], "mem_frac", 0.8),
        ("sglang", ["--mem-fraction-stat", "0.7"], "mem_frac", 0.7),
        ("sglang", ["--enable-mixed-chunk"], "enable_mixed_chunk", True),
        ("sglang", ["--tp-size", "1", "--tensor-parallel-size", "2"], "tp_size", 2),
        ("sglang", [], "tp_size", None),
        ("vllm", ["--gpu_memory_utilization", "0.5"], "gpu_memory_utilization", 0.5),
        ("vllm", ["--no-enable-prefix-caching"], "enable_prefix_caching", False),
        ("vllm", ["-tp", "2"], "tensor_parallel_size", 2),
        ("vllm", ["--block-size", "32"], "block_size", 32),
    ],
)
def test_flags_are_those_of_the_engine(engine: str, words: list[str], name: str, value: object) -> None:
    """Aliases, abbreviations, joined values, off switches; the last one wins."""
    model = ["--model-path", "/m"] if engine == "sglang" else ["--model", "/m"]
    assert parse(engine, [*model, *words]).values[name] == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--no-such-flag"], "error: unrecognized arguments: --no-such-flag"),
        (["--schedule-policy", "x"], "error: argument --schedule-policy: invalid choice: 'x'"),
        (["--tp-size", "x"], "error: argument --tp-size"),
        (["--max-num-seqs", "8"], "unrecognized arguments: --max-num-seqs 8"),
    ],
)
def test_a_bad_flag_ends_with_argparses_words_and_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the engine file knows it for a bad flag."""
    with pytest.raises(SystemExit) as ended:
        parse("sglang", ["--model-path", "/m", *words])
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in printed
    assert classify(load_engine("sglang"), printed, 2).kind == "bad_flag"


def test_an_unknown_switch_is_refused() -> None:
    """A misspelt fault must not pass for none."""
    assert from_environment(Switches(scale=2.0).environment()).scale == 2.0
    with pytest.raises(TypeError, match="craash"):
        from_environment({"EMULATED_ENGINE": '{"craash": 1}'})


def test_the_prefix_cache_knows_prompts_up_to_its_size() -> None:
    """A repeated prompt hits, another one does not, and old ones are forgotten."""
    cache = PrefixCache(capacity_tokens=256)
    first, second = "a" * 1024, "b" * 1024
    assert cache.put(first) == 0
    assert cache.put(first) == 256
    assert cache.put(second) == 0
    assert cache.put(first) == 0
    cache.clear()
    assert cache.put(first) == 0


# The server


@dataclass
class Running:
    """An emulated engine as a process."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def complete(self, **body: Any) -> requests.Response:
        messages = [{"role": "user", "content": "Shall I compare thee to a summer's day?"}]
        given = {"messages": messages, "max_tokens": 20, "ignore_eos": True, **body}
        return requests.post(f"{self.url}/v1/chat/completions", json=given, timeout=30)


@contextmanager
def running(folder: Path, engine: str, *words: str, wait: bool = True, **switches: Any) -> Iterator[Running]:
    port = loopback.free_port("127.0.0.1")
    log = folder / "engine.log"
    model = ["--model-path", "/m"] if engine == "sglang" else ["--model", "/m"]
    argv = [sys.executable, "-m", "tests.emulator.engine", engine, *model, "--served-model-name", "llama"]
    told = Switches(profile="llama-3.2-1b-a10", load_scale=600, **switches).environment()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*argv, "--host", "127.0.0.1", "--port", str(port), *words],
            cwd=ROOT,
            env={**os.environ, **told},
            stdout=output,
            stderr=output,
        )
    found = Running(f"http://127.0.0.1:{port}", process, log)
    try:
        if wait:
            until(lambda: process.poll() is not None or loopback.get(f"{found.url}/health", 1.0))
        yield found
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def sglang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("sglang"), "sglang", "--enable-metrics", "--api-key", "secret") as found:
        yield found


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("vllm"), "vllm", "--max-num-seqs", "4", "--stream-interval", "5") as found:
        yield found


KEY = {"Authorization": "Bearer secret"}


def test_a_streamed_answer_has_the_tokens_that_were_asked_for(vllm: Running) -> None:
    """Chunks come one after the other, the last ones with the reason, the usage and the end."""
    body = {"stream": True, "stream_options": {"include_usage": True}}
    answer = vllm.complete(**body)
    assert answer.headers["Transfer-Encoding"] == "chunked"
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert chunks[-1]["usage"]["completion_tokens"] == 20
    words = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1]).split()
    assert len(words) == 20
    assert len(chunks) > 3
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


def test_equal_prompts_get_equal_answers(vllm: Running) -> None:
    """Streamed or not, greedy answers can be compared."""
    texts = [vllm.complete().json()["choices"][0]["message"]["content"] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0].split()) == 20


def test_an_answer_may_end_by_itself(vllm: Running) -> None:
    """Without ignore_eos the model stops before a large limit."""
    answer = vllm.complete(ignore_eos=False, max_tokens=2000).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 800


def test_completions_answer_as_well(vllm: Running) -> None:
    """The older route takes a prompt."""
    body = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True}
    answer = requests.post(f"{vllm.url}/v1/completions", json=body, timeout=30).json()
    assert len(answer["choices"][0]["text"].split()) == 3


def test_a_request_longer_than_the_context_is_refused(vllm: Running) -> None:
    """400 with the context length, as the engines do."""
    answer = vllm.complete(max_tokens=100_000)
    assert answer.status_code == 400
    assert "16384 tokens" in answer.json()["message"]


def test_sglang_wants_its_key_but_not_for_its_health(sglang: Running) -> None:
    """Only health and metrics are open."""
    assert requests.get(f"{sglang.url}/health_generate", timeout=10).status_code == 200
    assert requests.get(f"{sglang.url}/v1/models", timeout=10).status_code == 401
    models = requests.get(f"{sglang.url}/v1/models", headers=KEY, timeout=10).json()
    assert models["data"][0]["id"] == "llama"
    assert models["data"][0]["max_model_len"] == 16384


def test_sglang_tells_what_it_runs(sglang: Running) -> None:
    """The server's info has each parameter under the name that the engine file looks for, with the defaults."""
    info = requests.get(f"{sglang.url}/get_server_info", headers=KEY, timeout=10).json()
    assert info["mem_fraction_static"] == 0.85
    assert info["attention_backend"] == "flashinfer"
    assert info["enable_mixed_chunk"] is False
    assert info["max_total_num_tokens"] > 100_000
    path = requests.get(f"{sglang.url}/get_model_info", headers=KEY, timeout=10).json()["model_path"]
    assert path == "/m"


def test_vllm_tells_what_it_runs(vllm: Running) -> None:
    """Version, and the cache's configuration as the labels of a metric."""
    assert requests.get(f"{vllm.url}/version", timeout=10).json()["version"]
    assert 'block_size="16"' in requests.get(f"{vllm.url}/metrics", timeout=10).text


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_metrics_have_the_names_of_the_engine(engine: str, request: pytest.FixtureRequest) -> None:
    """Every metric that the engine file reads is there, but for speculative decoding."""
    server: Running = request.getfixturevalue(engine)
    there = parse_metrics(requests.get(f"{server.url}/metrics", timeout=10).text)
    names = load_engine(engine).metrics
    assert names is not None
    wanted = {**names.gauges, **names.ratios, **names.counters}
    assert {ours for ours, theirs in wanted.items() if not any(name in there for name in theirs)} <= {
        "spec_accept_length",
        "spec_draft_tokens",
        "spec_accepted_tokens",
    }


def test_a_repeated_prompt_hits_the_cache_until_it_is_flushed(sglang: Running) -> None:
    """The cached tokens of the metrics grow with a repetition, and not after a flush."""

    def cached() -> float:
        return parse_metrics(requests.get(f"{sglang.url}/metrics", timeout=10).text)["sglang:cached_tokens_total"][0]

    def ask() -> None:
        body = {"prompt": "rough winds do shake " * 100, "max_tokens": 2, "ignore_eos": True}
        requests.post(f"{sglang.url}/v1/completions", json=body, headers=KEY, timeout=30).raise_for_status()

    ask()
    before = cached()
    ask()
    repeated = cached()
    assert repeated > before
    assert requests.post(f"{sglang.url}/flush_cache", headers=KEY, timeout=10).status_code == 200
    ask()
    assert cached() == repeated


def test_a_client_that_leaves_frees_its_place(vllm: Running) -> None:
    """A cancelled stream does not run on: the engine is idle again."""

    def active() -> float:
        return parse_metrics(requests.get(f"{vllm.url}/metrics", timeout=10).text)["vllm:num_requests_running"][0]

    body = {"prompt": "x", "max_tokens": 10_000, "ignore_eos": True, "stream": True}
    with requests.post(f"{vllm.url}/v1/completions", json=body, stream=True, timeout=30) as answer:
        pieces = answer.iter_content(1)  # kept: the connection is closed with it
        next(pieces)
        until(lambda: active() == 1)
    until(lambda: active() == 0)


def test_out_of_memory_at_the_start_ends_as_sglang_does(tmp_path: Path) -> None:
    """SGLang prints the traceback and kills its own process tree, itself included; the log is classified."""
    with running(tmp_path, "sglang", "--mem-frac", "0.05") as engine:
        assert engine.process.wait(30) == -signal.SIGKILL
        log = engine.log.read_text()
    assert "Received sigquit from a child process" in log
    assert classify(load_engine("sglang"), log, -9).kind == "out_of_memory"


def test_vllm_exits_with_1(tmp_path: Path) -> None:
    """vLLM's server raises, and says that its core did not start."""
    with running(tmp_path, "vllm", "--gpu-memory-utilization", "0.02") as engine:
        assert engine.process.wait(30) == 1
        assert "Engine core initialization failed" in engine.log.read_text()


def test_out_of_memory_under_load_ends_the_engine(tmp_path: Path) -> None:
    """A prompt whose chunk does not fit brings the engine down in the middle of the request."""
    words = ["--mem-frac", "0.97", "--chunked-prefill-size", "8192", "--cuda-graph-max-bs", "8"]
    with running(tmp_path, "sglang", *words) as engine:
        with pytest.raises(requests.ConnectionError):
            engine.complete(messages=[{"role": "user", "content": "word " * 8000}])
        assert engine.process.wait(30) == -signal.SIGKILL
        assert classify(load_engine("sglang"), engine.log.read_text(), -9).kind == "out_of_memory"


@pytest.mark.parametrize(
    ("switches", "code"),
    [({"crash_at_start": "RuntimeError: NCCL error: x"}, -9), ({"crash_after_requests": 0}, -9)],
)
def test_told_to_crash_it_crashes(tmp_path: Path, switches: dict[str, Any], code: int) -> None:
    """At the start or at a request, with the engine's kind of end."""
    with running(tmp_path, "sglang", **switches) as engine:
        if engine.process.poll() is None:
            with pytest.raises(requests.ConnectionError):
                engine.complete()
        assert engine.process.wait(30) == code


def test_told_to_hang_it_hangs(tmp_path: Path) -> None:
    """From the request after those it was to answer, nothing answers any more, health included."""
    with running(tmp_path, "sglang", hang_after_requests=1) as engine:
        assert engine.complete().ok
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{engine.url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=0.5)
        assert loopback.get(f"{engine.url}/health", 0.5) is None
        assert engine.process.poll() is None


def test_told_to_fail_some_requests_it_fails_them(tmp_path: Path) -> None:
    """Every second request fails with the code that was said."""
    with running(tmp_path, "sglang", error_share=0.5, error_code=503) as engine:
        assert [engine.complete(max_tokens=1).status_code for _ in range(4)] == [200, 503, 200, 503]


def test_sigterm_ends_it_with_code_0(tmp_path: Path) -> None:
    """As the engines end when Kubernetes stops a pod."""
    with running(tmp_path, "sglang") as engine:
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(30) == 0


def test_what_it_measures_over_http_is_what_the_model_says(tmp_path: Path) -> None:
    """The virtual time that the server's own metrics tell is the pure model's, whatever the machine's pace."""
    with running(tmp_path, "sglang", "--enable-metrics", "--disable-radix-cache") as engine:
        text = "word " * 400
        for _ in range(4):
            body = {"prompt": text, "max_tokens": 50, "ignore_eos": True}
            requests.post(f"{engine.url}/v1/completions", json=body, timeout=30).raise_for_status()
        there = parse_metrics(requests.get(f"{engine.url}/metrics", timeout=10).text)
        served = there["sglang:e2e_request_latency_seconds_sum"][0] / 4
    measured = measure(SMALL, load=Load("D(500,50)", 1, 4))
    assert served == pytest.approx(sum(measured.samples.e2e_s) / 4, rel=0.15)


def test_the_table_of_a_profile_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """For who writes profiles: one line per level, or why it does not start."""
    table(["llama-3.1-8b-h100", "sglang", "tp_size=2"])
    assert len(capsys.readouterr().out.splitlines()) == 7
    table(["qwen2.5-72b-h100", "tp_size=1"])
    assert "out of memory" in capsys.readouterr().out
