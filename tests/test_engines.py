"""Engines as data: the files, argv from parameters, GPU counts, failures, differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner.engines import arguments
from raytune_autotuner.engines.command import build_argv, fill, gpu_count, misspelt
from raytune_autotuner.engines.engine import Engine, engine_names, load_engine
from raytune_autotuner.engines.failures import classify
from raytune_autotuner.engines.server_info import differences
from raytune_autotuner.errors import FailureClass, SpecError
from raytune_autotuner.records import Parameters
from raytune_autotuner.task.parameters import Choice

SMALL: dict[str, Any] = {
    "description": "a small one",
    "command": ["{python}", "-m", "small"],
    "fixed": [
        {"flag": "--model", "aliases": ["-m"], "value": "{model_path}"},
        {"flag": "--port", "value": "{port}"},
        {"flag": "--metrics"},
    ],
    "parameters": {
        "tp_size": {"flag": "--tp-size", "aliases": ["tp", "-tp"], "type": "int", "default": 1, "help": "h"},
        "fraction": {"flag": "--fraction", "type": "float", "help": "h", "info": "server.fraction"},
        "cache": {"flag": "--cache", "off_flag": "--no-cache", "type": "bool", "help": "h", "info": "server.cache"},
        "eager": {"flag": "--eager", "type": "bool", "default": False, "help": "h"},
        "kind": {
            "flag": "--kind",
            "type": "choice",
            "values": ["auto", "on", 1],
            "help": "h",
            "info": "server.list.0.kind",
        },
    },
    "gpus": "tp_size * (2 if eager else 1)",
    "health": "/health",
    "failures": [
        {"pattern": "out of memory", "class": "out_of_memory", "hint": "less"},
        {"pattern": "error: unrecognized .*", "class": "bad_flag"},
    ],
    "presets": {"all": {"description": "d", "parameters": {"kind": {"type": "choice", "values": [None, "on"]}}}},
    "server_engine": "vLLM",
}


@pytest.fixture
def small() -> Engine:
    return Engine.model_validate({"name": "small", **SMALL})


def argv(
    engine: Engine,
    parameters: Parameters | None = None,
    runtime: str = "",
    extra: str = "",
    raw_flags: dict[str, str] | None = None,
    **facts: str,
) -> str:
    """The arguments alone, as one line."""
    built = build_argv(
        engine,
        command=["serve"],
        runtime_args=runtime.split(),
        extra_args=extra.split(),
        parameters=parameters or {},
        raw_flags=raw_flags or {},
        facts=facts,
    )
    return " ".join(built[1:])


def bare(engine: Engine) -> Engine:
    return engine.model_copy(update={"fixed": ()})


# --- files


@pytest.mark.parametrize("name", engine_names())
def test_shipped_engines_load(name: str) -> None:
    """Every shipped file is sound, and its presets, ranges and aliases fit its parameters."""
    engine = load_engine(name)
    assert engine.name == name
    assert {"parallelism", "memory", "scheduling", "quantization"} <= set(engine.presets)
    for known, parameter in engine.parameters.items():
        assert engine.canonical(parameter.flag) == known
        assert (parameter.low is None) == (parameter.high is None)
        assert parameter.low is None or parameter.high is None or parameter.low < parameter.high
        assert not parameter.log or (parameter.low or 0) > 0


def test_names_of_shipped_engines() -> None:
    """The three that the program is for."""
    assert engine_names() == ["llamacpp", "sglang", "vllm"]


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_rich_engine_files(engine: str) -> None:
    """The engines that matter have what matters."""
    assert len(load_engine(engine).parameters) >= 30


def test_unknown_engine_lists_those_there_are() -> None:
    """A wrong name is answered with the right ones."""
    with pytest.raises(SpecError, match="llamacpp, sglang, vllm"):
        load_engine("sglnag")


def test_engine_file_of_the_users(tmp_path: Path) -> None:
    """A path works as well as a name."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    assert load_engine(str(path)).name == "mine"


PARAMETER = {"flag": "--x", "type": "int", "help": "h"}
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"commnad": ["x"]}, "commnad"),
    ({"gpus": "tp_size *"}, "gpus"),
    ({"gpus": "tp_size * nodes"}, "nodes is no parameter"),
    ({"health": "health"}, "health"),
    ({"failures": [{"pattern": "(", "class": "crash"}]}, "not a regular expression"),
    ({"failures": [{"pattern": "x", "class": "boom"}]}, "failures.0.class"),
    ({"parameters": {"x": PARAMETER, "y": PARAMETER}, "gpus": "0", "presets": {}}, "x means both x and y"),
    ({"parameters": {"x": PARAMETER | {"type": "choice"}}, "gpus": "0", "presets": {}}, "values belong to type choice"),
    ({"parameters": {"x": PARAMETER | {"off_flag": "--no-x"}}, "gpus": "0", "presets": {}}, "off_flag belongs to"),
    ({"presets": {"p": {"description": "d", "parameters": {"z": {"type": "bool"}}}}}, "presets.p: z is no parameter"),
    (
        {"presets": {"p": {"description": "d", "parameters": {"kind": {"type": "choice", "values": ["off"]}}}}},
        "presets.p.kind: 'off' is not among the values",
    ),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_faulty_engine_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """A fault names the file and the place."""
    path = tmp_path / "faulty.yaml"
    path.write_text(yaml.safe_dump(SMALL | change))
    with pytest.raises(SpecError, match=r"faulty\.yaml") as fault:
        load_engine(str(path))
    assert message in str(fault.value)


@pytest.mark.parametrize("content", ["- a list", "a: b: c", ""])
def test_engine_file_that_is_none(tmp_path: Path, content: str) -> None:
    """Text of another form is refused by name."""
    path = tmp_path / "faulty.yml"
    path.write_text(content)
    with pytest.raises(SpecError, match=r"faulty\.yml"):
        load_engine(str(path))


def test_engine_file_that_is_missing(tmp_path: Path) -> None:
    """A path without a file is an error of the user's."""
    with pytest.raises(SpecError, match="cannot be read"):
        load_engine(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("engine", "names", "canonical"),
    [
        ("sglang", ["tp", "tp_size", "--tp", "--tensor-parallel-size", "tensor_parallel_size"], "tp_size"),
        ("sglang", ["mem_frac", "mem_fraction_static", "--mem-fraction-static"], "mem_frac"),
        ("vllm", ["tp", "tp_size", "-tp", "--tensor-parallel-size"], "tensor_parallel_size"),
        ("vllm", ["mem_frac", "--gpu-memory-utilization"], "gpu_memory_utilization"),
        ("llamacpp", ["threads", "-t", "--threads"], "threads"),
        ("llamacpp", ["np", "parallel", "--parallel"], "parallel"),
        ("sglang", ["", "--", "no_such_parameter"], None),
    ],
)
def test_names_that_people_use(engine: str, names: list[str], canonical: str | None) -> None:
    """Names, aliases and flags lead to the one name of the file."""
    assert {load_engine(engine).canonical(name) for name in names} == {canonical}


# --- argv


@pytest.mark.parametrize(
    "runtime",
    [
        "--kind on --fraction=0.9 -x -1 --list a b c --eager",
        'serve model --json {"a":-1} --empty= --joined=1 tail',
        "-m model -p 1 --kind on --kind auto",
    ],
)
def test_baseline_is_the_runtimes_own(small: Engine, runtime: str) -> None:
    """Without parameters and fixed arguments nothing changes, whatever the form."""
    assert argv(bare(small), runtime=runtime) == runtime


@pytest.mark.parametrize(
    ("parameters", "runtime", "expected"),
    [
        ({"tp_size": 4}, "--a 1 --tp-size 2 --b", "--a 1 --tp-size 4 --b"),
        ({"tp_size": 4}, "--tp 2 --b", "--tp-size 4 --b"),
        ({"tp": 4}, "-tp=2 --b", "--tp-size=4 --b"),
        ({"tp_size": 4.0}, "", "--tp-size 4"),
        ({"tp_size": 4}, "--tp 1 --b --tp-size 2", "--tp-size 4 --b"),
        ({"tp_size": None}, "--a --tp 2 --b", "--a --b"),
        ({"fraction": 0.85}, "--a", "--a --fraction 0.85"),
        ({"cache": True}, "--no-cache --a", "--cache --a"),
        ({"cache": False}, "--cache --a", "--no-cache --a"),
        ({"cache": None}, "--cache --a", "--a"),
        ({"eager": True}, "--a", "--a --eager"),
        ({"eager": False}, "--a --eager", "--a"),
        ({"eager": False}, "--a", "--a"),
        ({"kind": "on", "tp": 2}, "", "--kind on --tp-size 2"),
        ({"extra": 3, "fine": True, "gone": False}, "-z 1 --gone 2", "-z 3 --fine"),
    ],
)
def test_parameters_are_merged_by_flag(small: Engine, parameters: Parameters, runtime: str, expected: str) -> None:
    """Any spelling is replaced in place, new ones are appended, what is off is removed or said."""
    raw = {"extra": "-z", "fine": "--fine", "gone": "--gone"}
    assert argv(bare(small), parameters, runtime, raw_flags=raw) == expected


def test_unknown_parameter_is_refused(small: Engine) -> None:
    """A parameter without a flag is an error that lists what is known."""
    with pytest.raises(SpecError, match=r"parameters\.nonsense.*tp_size"):
        argv(small, {"nonsense": 1})


def test_fixed_arguments_are_set_once(small: Engine) -> None:
    """They replace the runtime's in place, and what has no fact leaves the runtime's own."""
    assert argv(small, runtime="-m old --a --port 1", model_path="new") == "--model new --a --port {port} --metrics"
    assert argv(small, runtime="-m old --metrics", port="80") == "-m old --metrics --port 80"


def test_extra_arguments_come_after_the_runtimes_own(small: Engine) -> None:
    """They replace the runtime's, may repeat a flag, and parameters win over them."""
    built = argv(bare(small), {"fraction": 0.5}, "--tp 1 --a 1 --b", "--tp-size 2 --a 2 --a 3 --fraction 0.1")
    assert built == "--b --tp-size 2 --a 2 --a 3 --fraction 0.5"


def test_command(small: Engine) -> None:
    """The engine file's, with what is known filled in, or the task's."""

    def command(given: list[str] | None, **facts: str) -> tuple[str, ...]:
        return build_argv(
            bare(small), command=given, runtime_args=(), extra_args=(), parameters={}, raw_flags={}, facts=facts
        )

    assert command(None) == ("{python}", "-m", "small")
    assert command(None, python="py") == ("py", "-m", "small")
    assert command(["other", "serve"]) == ("other", "serve")


def test_user_values_are_no_templates(small: Engine) -> None:
    """Braces in what the user wrote are data."""
    assert argv(small, {"kind": "{model_path}"}, model_path="m").startswith("--kind {model_path}")
    assert fill("{a}{b}", {"a": "{b}", "b": "1"}) == "{b}1"


def test_underscores_in_flags_are_dashes(small: Engine) -> None:
    """vLLM takes both, so both are the same option."""
    assert argv(bare(small), {"tp_size": 4}, "--tp_size 2") == "--tp-size 4"


def test_words_before_the_first_flag_stay() -> None:
    """Positional words are kept where they are."""
    options = arguments.split(["serve", "model", "--a", "1"])
    assert options[0] == arguments.Option("", ("serve", "model"))
    assert arguments.join(options) == ("serve", "model", "--a", "1")


# --- GPUs


@pytest.mark.parametrize(
    ("engine", "parameters", "runtime", "gpus"),
    [
        ("sglang", {}, "", 1),
        ("sglang", {"tp": 4, "pp_size": 2}, "", 8),
        ("sglang", {"dp_size": 2}, "--tp 2", 4),
        ("sglang", {"dp_size": 2, "enable_dp_attention": True}, "--tp=2", 2),
        ("sglang", {"dp_size": 2}, "--tp 2 --enable-dp-attention", 2),
        ("sglang", {"tp_size": 2}, "--tp 8", 2),
        ("sglang", {"tp_size": None}, "--tp 8", 8),
        ("vllm", {"data_parallel_size": 2}, "-tp 2", 4),
        ("llamacpp", {"threads": 2}, "", 0),
    ],
)
def test_gpu_count(engine: str, parameters: Parameters, runtime: str, gpus: int) -> None:
    """From the parameters, else the runtime's arguments, else the defaults."""
    assert gpu_count(load_engine(engine), parameters, runtime.split()) == gpus


@pytest.mark.parametrize("tp_size", ["two", 1.5, -1])
def test_gpu_count_without_a_number(small: Engine, tp_size: float | str) -> None:
    """What gives no number of GPUs is an error of the user's."""
    with pytest.raises(SpecError, match=r"number|GPUs"):
        gpu_count(small, {"tp_size": tp_size}, ())


def test_runtime_value_in_the_engines_own_form(small: Engine) -> None:
    """A value that is no number is kept as text, and is an error only where a number is needed."""
    with pytest.raises(SpecError, match="8k"):
        gpu_count(small, {}, ["--tp-size", "8k"])
    assert gpu_count(small, {}, ["--fraction", "0.5", "--no-cache", "--kind", "on"]) == 1


# --- failures

LOGS: list[tuple[str, str, FailureClass]] = [
    ("sglang", "launch_server.py: error: unrecognized arguments: --nonsense", "bad_flag"),
    ("sglang", "launch_server.py: error: argument --schedule-policy: invalid choice: 'x'", "bad_flag"),
    ("sglang", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "out_of_memory"),
    (
        "sglang",
        "ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.5.",
        "out_of_memory",
    ),
    ("sglang", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out_of_memory"),
    (
        "sglang",
        "Exception: Capture cuda graph failed: CUDA out of memory.\nPossible solutions:\n1. set",
        "out_of_memory",
    ),
    ("sglang", "AssertionError: tp_size must be divisible by attn_dp_size * attn_cp_size", "unsupported"),
    ("sglang", "NotImplementedError: this combination", "unsupported"),
    (
        "sglang",
        "[Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use",
        "infrastructure",
    ),
    ("sglang", "Segmentation fault", "crash"),
    ("vllm", "api_server.py: error: unrecognized arguments: --nonsense", "bad_flag"),
    ("vllm", "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", "bad_flag"),
    (
        "vllm",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "out_of_memory",
    ),
    (
        "vllm",
        "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (8.1 GiB).",
        "out_of_memory",
    ),
    (
        "vllm",
        "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory",
        "out_of_memory",
    ),
    (
        "vllm",
        "torch.OutOfMemoryError: CUDA out of memory.\nRuntimeError: Engine core initialization failed.",
        "out_of_memory",
    ),
    (
        "vllm",
        "ValueError: Total number of attention heads (14) must be divisible by tensor parallel size (4).",
        "unsupported",
    ),
    ("vllm", "RuntimeError: Engine core initialization failed. See root cause above.", "crash"),
    ("vllm", "OSError: m is not a local folder and is not a valid model identifier listed on", "crash"),
    ("llamacpp", "llama-server: error: unrecognized arguments: --nonsense", "bad_flag"),
    ("llamacpp", 'error while handling argument "-t": stoi', "bad_flag"),
    ("llamacpp", "E llama_init_from_model: quantized V cache requires flash_attn to be enabled", "unsupported"),
    ("llamacpp", "E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 17", "out_of_memory"),
    ("llamacpp", "E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1", "infrastructure"),
    ("llamacpp", "E gguf_init_from_file: failed to open GGUF file '/none' (No such file or directory)", "crash"),
]


@pytest.mark.parametrize(("engine", "log", "kind"), LOGS, ids=[f"{engine}-{log[:40]}" for engine, log, _ in LOGS])
def test_failures_of_shipped_engines(engine: str, log: str, kind: FailureClass) -> None:
    """The engines' own words, in the middle of a log, are classified."""
    failure = classify(load_engine(engine), f"INFO starting\n  {log}\nINFO bye\n", 1)
    assert failure.kind == kind
    assert failure.log_tail.startswith("INFO starting")


def test_reason_is_the_last_line_that_matches(small: Engine) -> None:
    """The line is the reason, without what surrounds it."""
    failure = classify(small, "first: Out of memory\nnoise\n  second: out of memory  \nend", 1)
    assert (failure.reason, failure.hint) == ("second: out of memory", "less")


def test_first_pattern_decides(small: Engine) -> None:
    """The order of the file is the order of importance."""
    assert classify(small, "error: unrecognized arguments\nout of memory", 2).kind == "out_of_memory"


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1, "exit code 1"), (0, "exit code 0"), (-11, "SIGSEGV"), (-9, "SIGKILL"), (-99, "signal 99"), (None, "failed")],
)
def test_silent_end_is_a_crash(small: Engine, code: int | None, reason: str) -> None:
    """Without a word in the log the exit code is the reason; SIGKILL hints at memory."""
    failure = classify(small, "nothing to see", code)
    assert failure.kind == "crash"
    assert reason in failure.reason
    assert ("memory" in failure.hint) == (code == -9)


# --- differences


@pytest.mark.parametrize(
    ("parameters", "said", "different"),
    [
        ({"fraction": 0.85}, {"fraction": 0.85}, False),
        ({"fraction": 0.85}, {"fraction": "0.85000001"}, False),
        ({"fraction": 0.85}, {"fraction": 0.8}, True),
        ({"cache": True}, {"cache": "True"}, False),
        ({"cache": True}, {"cache": False}, True),
        ({"cache": False}, {"cache": "off"}, False),
        ({"kind": "On"}, {"list": [{"kind": "on"}]}, False),
        ({"kind": "on"}, {"list": [{"kind": "off"}]}, True),
        ({"kind": "on"}, {"list": []}, False),
        ({"kind": "on"}, {"list": "text"}, False),
        ({"kind": "auto"}, {"list": [{"kind": "off"}]}, False),
        ({"fraction": None}, {"fraction": 0.8}, False),
        ({"fraction": 0.8}, {"fraction": None}, False),
        ({"tp_size": 2}, {"tp_size": 1}, False),
        ({"raw": 2}, {"raw": 1}, False),
    ],
)
def test_differences(small: Engine, parameters: Parameters, said: dict[str, Any], different: bool) -> None:
    """Only what the server contradicts is told; forms of the same value are the same."""
    assert bool(differences(small, parameters, {"server": said})) is different


def test_difference_in_words(small: Engine) -> None:
    """It says what was asked and what runs."""
    told = differences(small, {"fraction": 0.85}, {"server": {"fraction": 0.8}})
    assert told == ("fraction: asked for 0.85, the server says 0.8",)


def test_presets_are_parameters_of_a_task(small: Engine) -> None:
    """A preset holds what a task file would."""
    assert small.presets["all"].parameters["kind"] == Choice(type="choice", values=(None, "on"))


@pytest.mark.parametrize(
    ("engine", "args", "meant"),
    [
        ("llamacpp", ["--thread", "2", "--ctx-sise=512"], {"--thread": "--threads", "--ctx-sise": "--ctx-size"}),
        ("vllm", ["--max-num-seq", "8"], {"--max-num-seq": "--max-num-seqs"}),
        ("vllm", ["--gpu_memory_utilisation", "0.9"], {"--gpu-memory-utilisation": "--gpu-memory-utilization"}),
        ("vllm", ["--served-model-nam", "m"], {"--served-model-nam": "--served-model-name"}),
        # known in any spelling, or a flag of the engine's own that is much like one in its file
        (
            "llamacpp",
            ["-t", "2", "--no-cont-batching", "--ctx_size", "8", "--model", "m", "--chat-template-file", "f"],
            {},
        ),
        (
            "llamacpp",
            ["--threads-batch-draft", "2", "--cache-type-k-draft", "f16", "--props", "-td", "1", "--jinja"],
            {},
        ),
        (
            "vllm",
            ["--data-parallel-size-local", "1", "--disable-chunked-prefill", "--max-num-partial-prefills", "2"],
            {},
        ),
        ("sglang", ["--tokenizer-path", "p", "--cuda-graph-bs", "1", "--grammar-backend", "none", "--nnodes", "1"], {}),
    ],
)
def test_flags_that_look_misspelt(engine: str, args: list[str], meant: dict[str, str]) -> None:
    """A slip of letters is found; what the engine may well know beside its file is left alone."""
    assert misspelt(load_engine(engine), args) == meant
