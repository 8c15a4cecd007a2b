"""Whatever is wrong with a task file, the user reads where, what was found and what is valid."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from raytune_autotuner.cli import main
from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.checks import load_checked

HEAD = "task_name: t\nmodel: {name: m}\nbase_runtime: rt\n"
TOKENIZER = "model_tokenizer: org/model"
BENCHMARK = f"benchmark: {{{TOKENIZER}}}\n"
BASE = HEAD + BENCHMARK
LOCAL = f"task_name: t\nbackend: local\n{BENCHMARK}"


def parameters(*lines: str, more: str = "") -> str:
    return BASE + "parameters:\n" + "".join(f"  {line}\n" for line in lines) + more


def optimization(text: str) -> str:
    return f"{BASE}optimization: {{{text}}}\n"


def benchmark(text: str) -> str:
    return f"{HEAD}benchmark: {{{TOKENIZER}, {text}}}\n"


GOODPUT = "optimization: {objective: maximize_goodput, slo: {e2e_s: 1}}\n"
TP = "tp_size: {type: choice, values: [1, 2]}"

MALFORMED = {
    # The file as a whole.
    "empty": ("", "", ["empty", "init"]),
    "only a comment": ("# nothing\n", "", ["empty"]),
    "a list": ("- 1\n", "", ["a task is a mapping", "a list"]),
    "a text": ("hello\n", "", ["a task is a mapping", "the text `hello`"]),
    "broken YAML": ("task_name: [\n", "", ["not YAML", "line 2"]),
    "tab": ("task_name:\n\tx: 1\n", "", ["not YAML", "line 2"]),
    "duplicate key": (BASE + "task_name: u\n", "task_name (line 1)", ["given twice", "line 5"]),
    "nested duplicate": (parameters(TP, TP), "parameters.tp_size (line 6)", ["given twice", "line 7"]),
    "unknown alias": ("task_name: *x\n", "", ["undefined alias"]),
    "python tag": ("task_name: !!python/name:os.system x\n", "task_name (line 1)", ["tag python/name", "plain values"]),
    "two documents": (BASE + "---\na: 1\n", "", ["another document"]),
    "NUL": ('task_name: "a\\0"\n', "task_name (line 1)", ["character"]),
    "not finite": (
        optimization("slo: {ttft_p99_s: .inf}"),
        "optimization.slo.ttft_p99_s (line 5)",
        ["not a finite number"],
    ),
    "list as key": ("? [a]\n: 1\n", "", ["key of a mapping"]),
    "recursive": ("task_name: &a [*a]\n", "", ["nests deeper"]),
    # Names and types of fields.
    "missing name": ("model: {name: m}\nbase_runtime: rt\n" + BENCHMARK, "task_name", ["is missing", "llama-8b-chat"]),
    "missing model": ("task_name: t\nbase_runtime: rt\n" + BENCHMARK, "model", ["is missing"]),
    "misspelt field": (BASE + "paramters: {}\n", "paramters (line 5)", ["did you mean `parameters`", "task_name"]),
    "misspelt in section": (
        optimization("max_iteration: 4"),
        "optimization.max_iteration (line 5)",
        ["did you mean `max_iterations`", "timeout_per_iteration"],
    ),
    "task name": (
        BASE.replace("task_name: t", "task_name: My Task"),
        "task_name (line 1)",
        ["`My Task`", "small letters"],
    ),
    "long task name": (BASE.replace("task_name: t", f"task_name: {'a' * 41}"), "task_name (line 1)", ["at most 40"]),
    "number as text": (BASE.replace("name: m", "name: 3"), "model.name (line 2)", ["found `3`", "text", "in quotes"]),
    "empty budget": (optimization("budget: {}"), "optimization.budget (line 5)", ["sets no limit", "gpu_hours"]),
    "negative budget": (
        optimization("budget: {gpu_hours: -1}"),
        "optimization.budget.gpu_hours (line 5)",
        ["found `-1`", "more than 0"],
    ),
    "unknown unit of time": (
        optimization("budget: {wall_time: 8 hours}"),
        "optimization.budget.wall_time (line 5)",
        ["`8 hours` is no length of time", "8h"],
    ),
    "no length of time": (
        optimization("budget: {wall_time: [8]}"),
        "optimization.budget.wall_time (line 5)",
        ["a number"],
    ),
    "misspelt budget": (
        optimization("budget: {gpu_hour: 8}"),
        "optimization.budget.gpu_hour (line 5)",
        ["did you mean `gpu_hours`"],
    ),
    "money without a price": (
        optimization("budget: {cost: 8}"),
        "optimization.price_per_gpu_hour (line 5)",
        ["is missing", "a budget in money"],
    ),
    "text as number": (
        optimization('max_iterations: "4"'),
        "optimization.max_iterations (line 5)",
        ["a whole number", "without quotes"],
    ),
    "fraction": (
        optimization("max_iterations: 1.5"),
        "optimization.max_iterations (line 5)",
        ["`1.5`", "a whole number"],
    ),
    "boolean as number": (optimization("seed: true"), "optimization.seed (line 5)", ["`true`", "a whole number"]),
    "too small": (optimization("max_iterations: 0"), "optimization.max_iterations (line 5)", ["`0`", "at least 1"]),
    "too large": (optimization("confirm: {repeats: 99}"), "optimization.confirm.repeats (line 5)", ["at most 20"]),
    "not a list": (benchmark("num_concurrency: 4"), "benchmark.num_concurrency (line 4)", ["a list", "write [4]"]),
    "empty list": (benchmark("num_concurrency: []"), "benchmark.num_concurrency (line 4)", ["empty", "at least one"]),
    "zero in list": (benchmark("num_concurrency: [1, 0]"), "benchmark.num_concurrency[1] (line 4)", ["at least 1"]),
    "not a mapping": (BASE + "optimization: fast\n", "optimization (line 5)", ["the text `fast`", "a mapping"]),
    "null section": (BASE + "optimization:\n", "optimization (line 5)", ["`null`", "a mapping"]),
    "minutes": (
        benchmark("max_time_per_iteration: 0.5"),
        "benchmark.max_time_per_iteration (line 4)",
        ["a whole number"],
    ),
    "the key itself": (
        benchmark("api_key_env: sk-123-secret"),
        "benchmark.api_key_env (line 4)",
        ["NAME", "never the key"],
    ),
    # Choices by name.
    "strategy": (
        optimization("strategy: grid"),
        "optimization.strategy (line 5)",
        ["`grid`", "adaptive, grid_search, random, bayesian, optuna"],
    ),
    "scheduler": (
        optimization("scheduler: asha"),
        "optimization.scheduler (line 5)",
        ["a mapping or none", "{type: asha}"],
    ),
    "scheduler type": (
        optimization("scheduler: {type: ash}"),
        "optimization.scheduler.type (line 5)",
        ["valid is asha"],
    ),
    "backend": (BASE + "backend: k8s\n", "backend (line 5)", ["ome, local"]),
    "task": (benchmark("task: text-to-txt"), "benchmark.task (line 4)", ["text-to-text", "did you mean"]),
    "objective": (
        optimization("objective: maximise_throughput"),
        "optimization.objective (line 5)",
        ["did you mean `maximize_throughput`", "minimize_cost"],
    ),
    "metric in slo": (
        optimization("slo: {ttft_p98_s: 1}"),
        "optimization.slo.ttft_p98_s (line 5)",
        ["did you mean", "ttft_p99_s"],
    ),
    "limit": (optimization("slo: {ttft_p99_s: 0}"), "optimization.slo.ttft_p99_s (line 5)", ["more than 0"]),
    "metric in weights": (
        optimization("objective: weighted, weights: {speed: 1}"),
        "optimization.weights.speed (line 5)",
        ["no such metric", "output_tokens_per_s"],
    ),
    "weights missing": (optimization("objective: weighted"), "optimization.weights (line 5)", ["is missing"]),
    "weights unused": (
        optimization("weights: {ttft_mean_s: 1}"),
        "optimization.weights (line 5)",
        ["no effect", "weighted"],
    ),
    "objective in objectives": (
        optimization("objectives: [minimize_ttft, maximise_throughput]"),
        "optimization.objectives[1] (line 5)",
        ["did you mean `maximize_throughput`", "ttft_p99_s"],
    ),
    "objective twice": (
        optimization("objectives: [minimize_ttft, minimize_ttft]"),
        "optimization.objectives[1] (line 5)",
        ["given twice"],
    ),
    "one of many": (
        optimization("objectives: [minimize_ttft]"),
        "optimization.objectives (line 5)",
        ["two or more"],
    ),
    "one beside many": (
        optimization("objective: minimize_tpot, objectives: [minimize_ttft, requests_per_s]"),
        "optimization.objective (line 5)",
        ["no effect beside `objectives`"],
    ),
    "weight of none of many": (
        optimization("objectives: [minimize_ttft, requests_per_s], weights: {ttft_p99_s: 1}"),
        "optimization.weights.ttft_p99_s (line 5)",
        ["not among the objectives", "minimize_ttft, requests_per_s"],
    ),
    "weight of nothing": (
        optimization("objectives: [minimize_ttft, requests_per_s], weights: {minimize_ttft: 0}"),
        "optimization.weights.minimize_ttft (line 5)",
        ["more than 0"],
    ),
    "price for many": (
        optimization("objectives: [minimize_ttft, minimize_cost]"),
        "optimization.price_per_gpu_hour (line 5)",
        ["is missing", "minimize_cost"],
    ),
    "price missing": (
        optimization("objective: minimize_cost"),
        "optimization.price_per_gpu_hour (line 5)",
        ["is missing", "minimize_cost"],
    ),
    "engine": (BASE + "engine: sglan\n", "engine (line 5)", ["sglan", "llamacpp, sglang, vllm"]),
    "preset": (BASE + "presets: [memry]\n", "presets[0] (line 5)", ["did you mean `memory`", "scheduling"]),
    "preset twice": (BASE + "presets: [memory, memory]\n", "presets[1] (line 5)", ["twice"]),
    # Parameters.
    "list for a parameter": (parameters("tp_size: [1, 2]"), "parameters.tp_size (line 6)", ["a list", "{type: choice"]),
    "parameter type": (
        parameters("tp_size: {type: chioce, values: [1]}"),
        "parameters.tp_size.type (line 6)",
        ["did you mean `choice`", "choice, int, float, bool"],
    ),
    "no parameter type": (
        parameters("tp_size: {values: [1]}"),
        "parameters.tp_size.type (line 6)",
        ["is missing", "choice, int, float, bool"],
    ),
    "field of another type": (
        parameters("tp_size: {type: choice, low: 1, values: [1]}"),
        "parameters.tp_size.low (line 6)",
        ["no such field", "values"],
    ),
    "no values": (
        parameters("tp_size: {type: choice, values: []}"),
        "parameters.tp_size.values (line 6)",
        ["is empty"],
    ),
    "value is a list": (
        parameters("tp_size: {type: choice, values: [[1]]}"),
        "parameters.tp_size.values[0] (line 6)",
        ["a list", "text or a number or true or false"],
    ),
    "value twice": (
        parameters("tp_size: {type: choice, values: [1, 2, 1]}"),
        "parameters.tp_size.values (line 6)",
        ["1 is given twice"],
    ),
    "low above high": (
        parameters("tp_size: {type: int, low: 8, high: 1}"),
        "parameters.tp_size.high (line 6)",
        ["more than low, which is 8"],
    ),
    "log from zero": (
        parameters("tp_size: {type: int, low: 0, high: 8, log: true}"),
        "parameters.tp_size.low (line 6)",
        ["more than 0"],
    ),
    "step too wide": (
        parameters("tp_size: {type: int, low: 1, high: 4, step: 8}"),
        "parameters.tp_size.step (line 6)",
        ["whole range"],
    ),
    "step misses high": (
        parameters("mem_frac: {type: float, low: 0.5, high: 0.9, step: 0.3}"),
        "parameters.mem_frac.step (line 6)",
        ["write high as 0.8"],
    ),
    "step too fine": (
        parameters("mem_frac: {type: float, low: 0, high: 1, step: 1.0e-30}"),
        "parameters.mem_frac.step (line 6)",
        ["values"],
    ),
    "range too wide": (
        parameters("mem_frac: {type: float, low: -1.0e308, high: 1.0e308}"),
        "parameters.mem_frac.high (line 6)",
        ["too wide"],
    ),
    "grid of floats": (
        parameters("mem_frac: {type: float, low: 0.5, high: 0.9}", more="optimization: {strategy: grid_search}\n"),
        "parameters.mem_frac.step (line 6)",
        ["grid_search needs it"],
    ),
    "name with dashes": (
        parameters("tp-size: {type: choice, values: [1]}"),
        "parameters.tp-size (line 6)",
        ["write tp_size"],
    ),
    "unknown parameter": (
        parameters("tp_sise: {type: choice, values: [1]}"),
        "parameters.tp_sise (line 6)",
        ["did you mean `tp_size`", "mem_frac", "flag"],
    ),
    "flag of a known": (
        parameters("tp_size: {type: choice, values: [1], flag: --tp}"),
        "parameters.tp_size.flag (line 6)",
        ["knows this as tp_size"],
    ),
    "known flag by another name": (
        parameters("mine: {type: choice, values: [1], flag: --tp-size}"),
        "parameters.mine.flag (line 6)",
        ["knows this as tp_size"],
    ),
    "bad flag": (parameters("mine: {type: bool, flag: mine}"), "parameters.mine.flag (line 6)", ["right form"]),
    "alias twice": (
        parameters(TP, "tensor_parallel_size: {type: choice, values: [1]}"),
        "parameters.tensor_parallel_size (line 7)",
        ["same as tp_size"],
    ),
    "value of the wrong type": (
        parameters("tp_size: {type: choice, values: [1, two]}"),
        "parameters.tp_size.values[1] (line 6)",
        ["`two`", "a whole number"],
    ),
    "value not a choice": (
        parameters("schedule_policy: {type: choice, values: [lmp]}"),
        "parameters.schedule_policy.values[0] (line 6)",
        ["did you mean `lpm`", "fcfs"],
    ),
    "range for a choice": (
        parameters("schedule_policy: {type: float, low: 0, high: 1}"),
        "parameters.schedule_policy.type (line 6)",
        ["one of", "type: choice"],
    ),
    "bool for a number": (parameters("tp_size: {type: bool}"), "parameters.tp_size.type (line 6)", ["a whole number"]),
    "searched and fixed": (
        parameters(TP, more="extra_args: [--tp=4]\n"),
        "extra_args[0] (line 7)",
        ["searched as the parameter tp_size"],
    ),
    # Expressions.
    "constraint syntax": (parameters(TP, more="constraints: [tp_size =< 2]\n"), "constraints[0] (line 7)", ["column"]),
    "constraint call": (
        parameters(TP, more="constraints: [\"open('x')\"]\n"),
        "constraints[0] (line 7)",
        ["min() and max()"],
    ),
    "constraint name": (
        parameters(TP, more="constraints: [tp_sise <= 2]\n"),
        "constraints[0] (line 7)",
        ["did you mean `tp_size`"],
    ),
    "constraint types": (
        parameters(TP, more="constraints: [tp_size <= 'a']\n"),
        "constraints[0] (line 7)",
        ["no order"],
    ),
    "nothing feasible": (
        parameters(TP, more="constraints: [tp_size > 2]\n"),
        "constraints (line 7)",
        ["no configuration", "tp_size > 2"],
    ),
    "when name": (
        parameters("tp_size: {type: choice, values: [1], when: foo > 1}"),
        "parameters.tp_size.when (line 6)",
        ["`foo` is not searched", "tp_size"],
    ),
    "when itself": (
        parameters("tp_size: {type: choice, values: [1], when: tp_size > 1}"),
        "parameters.tp_size.when (line 6)",
        ["depends on itself"],
    ),
    "when in a circle": (
        parameters(
            "tp_size: {type: choice, values: [1], when: dp_size > 1}",
            "dp_size: {type: choice, values: [1], when: tp_size > 1}",
        ),
        "parameters.",
        ["depends on itself", "tp_size -> "],
    ),
    # Goodput.
    "goodput without limits": (
        optimization("objective: maximize_goodput, slo: {output_tokens_per_s: 5}"),
        "optimization.slo (line 5)",
        ["is missing", "ttft_s", "ttft_p99_s"],
    ),
    "attainment above all": (
        optimization("slo: {ttft_s: 1, slo_attainment: 1.5}"),
        "optimization.slo.slo_attainment (line 5)",
        ["at most 1"],
    ),
    "attainment of nothing": (
        optimization("slo: {slo_attainment: 0.5}"),
        "optimization.slo.slo_attainment (line 5)",
        ["needs a limit", "ttft_s, tpot_s, e2e_s"],
    ),
    "limit on a request in weights": (
        optimization("objective: weighted, weights: {ttft_s: 1}"),
        "optimization.weights.ttft_s (line 5)",
        ["no such metric"],
    ),
    "capacity of a fixed level": (
        benchmark("capacity: {max: 8}"),
        "benchmark.capacity (line 4)",
        ["no effect", "maximize_goodput"],
    ),
    "tolerance of a fixed level": (
        benchmark("rungs: [{tolerance: 0.5}]"),
        "benchmark.rungs[0].tolerance (line 4)",
        ["no effect"],
    ),
    "lowest above highest": (
        benchmark("capacity: {min: 9, max: 8}") + GOODPUT,
        "benchmark.capacity.max (line 4)",
        ["8 is less than the level with which the search begins, 9"],
    ),
    "levels of a searched rung": (
        benchmark("rungs: [{num_concurrency: [1]}]") + GOODPUT,
        "benchmark.rungs[0].num_concurrency (line 4)",
        ["no effect", "searches the level"],
    ),
    "goodput of batches": (
        benchmark("task: text-to-embeddings") + GOODPUT,
        "optimization.objective (line 5)",
        ["one request at a time"],
    ),
    "tolerance": (benchmark("capacity: {tolerance: 0}") + GOODPUT, "benchmark.capacity.tolerance (line 4)", ["0"]),
    # Backends.
    "no base runtime": ("task_name: t\nmodel: {name: m}\n" + BENCHMARK, "base_runtime", ["is missing", "ome"]),
    "runtime with ome": (BASE + "runtime: {args: [--x]}\n", "runtime (line 5)", ["backend local"]),
    "no engine": (LOCAL + "model: {name: m, path: x}\n", "engine", ["is missing", "llamacpp"]),
    "no model path": (LOCAL + "model: {name: m}\nengine: llamacpp\n", "model.path (line 4)", ["is missing"]),
    "base runtime with local": (
        LOCAL + "model: {name: m, path: x}\nengine: llamacpp\nbase_runtime: r\n",
        "base_runtime (line 6)",
        ["backend ome"],
    ),
    "no tokenizer": (HEAD, "benchmark.model_tokenizer", ["is missing"]),
    # The workload.
    "scenario": (
        benchmark('traffic_scenarios: ["X(1,2)"]'),
        "benchmark.traffic_scenarios[0] (line 4)",
        ["`X(1,2)`", "D(input,output)"],
    ),
    "scenario without quotes": (
        benchmark("traffic_scenarios: [D(100,100)]"),
        "benchmark.traffic_scenarios[0] (line 4)",
        ["needs quotes"],
    ),
    "scenario with blanks": (
        benchmark('traffic_scenarios: ["D(1, 2)"]'),
        "benchmark.traffic_scenarios[0] (line 4)",
        ["D(1,2), without blanks"],
    ),
    "one-token answers": (
        benchmark('traffic_scenarios: ["D(100,1)"]'),
        "benchmark.traffic_scenarios[0] (line 4)",
        ["one token"],
    ),
    "empty prompts": (
        benchmark('traffic_scenarios: ["D(0,100)"]'),
        "benchmark.traffic_scenarios[0] (line 4)",
        ["start at 1"],
    ),
    "scenario of another task": (
        benchmark('traffic_scenarios: ["E(64)"]'),
        "benchmark.traffic_scenarios[0] (line 4)",
        ["text-to-text does not take", "D(input,output)"],
    ),
    "scenario twice": (
        benchmark('traffic_scenarios: ["D(1,2)", "D(1,2)"]'),
        "benchmark.traffic_scenarios[1] (line 4)",
        ["twice"],
    ),
    "dataset without one": (
        benchmark("traffic_scenarios: [dataset]"),
        "benchmark.traffic_scenarios[0] (line 4)",
        ["benchmark.dataset"],
    ),
    "level twice": (benchmark("num_concurrency: [4, 4]"), "benchmark.num_concurrency[1] (line 4)", ["twice"]),
    "rerank backend": (
        benchmark("task: text-to-rerank, api_backend: openai") + "optimization: {objective: minimize_latency}\n",
        "benchmark.api_backend (line 4)",
        ["`openai`", "vllm, sglang"],
    ),
    "batch sizes": (
        benchmark("batch_sizes: [4]"),
        "benchmark.batch_sizes (line 4)",
        ["text-to-embeddings", "num_concurrency"],
    ),
    "concurrency": (
        benchmark("task: text-to-embeddings, num_concurrency: [4]"),
        "benchmark.num_concurrency (line 4)",
        ["batch_sizes"],
    ),
    "objective without output": (
        benchmark("task: text-to-rerank"),
        "optimization.objective",
        ["no output tokens", "minimize_latency"],
    ),
    "metric without output": (
        benchmark("task: text-to-rerank") + "optimization: {objective: minimize_latency, slo: {tpot_p95_s: 1}}\n",
        "optimization.slo.tpot_p95_s (line 5)",
        ["no output tokens"],
    ),
    "images without dataset": (benchmark("task: image-text-to-text"), "benchmark.dataset (line 4)", ["is missing"]),
    "images from a file": (
        benchmark("task: image-text-to-text, dataset: {path: task.yaml}"),
        "benchmark.dataset.path (line 4)",
        [".txt"],
    ),
    "dataset file": (benchmark("dataset: {path: ./none.txt}"), "benchmark.dataset.path (line 4)", ["no file"]),
    "dataset of nothing": (benchmark("dataset: {prompt_column: x}"), "benchmark.dataset (line 4)", ["path or config"]),
    "dataset config": (
        benchmark("dataset: {config: none.json}"),
        "benchmark.dataset.config (line 4)",
        ["cannot be read"],
    ),
    "dataset config form": (
        benchmark("dataset: {config: task.yaml}"),
        "benchmark.dataset.config (line 4)",
        ["is not JSON"],
    ),
    "dataset column": (
        benchmark("dataset: {path: data.csv}"),
        "benchmark.dataset.prompt_column (line 4)",
        ["is missing"],
    ),
    "both prefixes": (
        benchmark("prefix_len: 5, prefix_ratio: 0.5"),
        "benchmark.prefix_len (line 4)",
        ["exclude each other"],
    ),
    "prefix too long": (benchmark("prefix_len: 101"), "benchmark.prefix_len (line 4)", ["longer than prompts", "100"]),
    "prefix of normal": (
        benchmark('prefix_ratio: 0.5, traffic_scenarios: ["N(9,1)/(9,1)"]'),
        "benchmark.prefix_ratio (line 4)",
        ["D(input,output) only"],
    ),
    "prefix of embeddings": (
        benchmark("task: text-to-embeddings, prefix_len: 5"),
        "benchmark.prefix_len (line 4)",
        ["D, N and U"],
    ),
    "rung level": (
        benchmark("rungs: [{num_concurrency: [2]}]"),
        "benchmark.rungs[0].num_concurrency[0] (line 4)",
        ["not in the workload", "valid are 1"],
    ),
    "rung scenario": (
        benchmark('rungs: [{}, {traffic_scenarios: ["D(9,9)"]}]'),
        "benchmark.rungs[1].traffic_scenarios[0] (line 4)",
        ["valid are D(100,100)"],
    ),
    "dataset in a BenchmarkJob": (
        benchmark("dataset: {path: data.csv, prompt_column: a}") + "ome: {benchmark: benchmark_job}\n",
        "benchmark.dataset (line 4)",
        ["OME ignores", "--direct"],
    ),
    "ome on this machine": (
        LOCAL + "engine: llamacpp\nmodel: {name: m, path: m.gguf}\nome: {replicas: 2}\n",
        "ome",
        ["local"],
    ),
    "no command": (
        LOCAL + "engine: llamacpp\nmodel: {name: m}\nruntime: {command: []}\n",
        "runtime.command (line 6)",
        ["is empty"],
    ),
    "no name of a variable": (
        LOCAL + 'engine: llamacpp\nmodel: {name: m, path: m.gguf}\nruntime: {env: {A=B: "1"}}\n',
        "runtime.env.A=B (line 6)",
        ["`A=B`", "NAME: value"],
    ),
    "no rungs": (benchmark("rungs: []"), "benchmark.rungs (line 4)", ["is empty"]),
    "asha on one rung": (
        benchmark("rungs: [{}]") + "optimization: {scheduler: {type: asha}}\n",
        "benchmark.rungs (line 4)",
        ["two or more"],
    ),
}


def load(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> SpecError:
    monkeypatch.chdir(folder)
    (folder / "task.yaml").write_text(text)
    (folder / "data.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SpecError) as error:
        load_checked(Path("task.yaml"))
    return error.value


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed file gives the problem at its place, with what was found and what is valid."""
    text, place, words = MALFORMED[case]
    error = load(tmp_path, text, monkeypatch)
    at_place = [str(p) for p in error.problems if p.place.startswith(place)]
    assert any(all(word in problem for word in words) for problem in at_place), str(error)
    assert len(error.problems) <= 2, str(error)
    assert error.source == "task.yaml"
    result = CliRunner().invoke(main, ["validate", "task.yaml"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: task.yaml: ")
    assert "Traceback" not in result.output


def test_the_key_itself_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be a secret does not reach the terminal."""
    assert "123" not in str(load(tmp_path, benchmark("api_key_env: sk-123-secret"), monkeypatch))


def test_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of form and faults between parts are reported together, in the order of the file."""
    text = f"""
task_name: Bad Name
model: {{}}
base_runtime: rt
engine: sglang
parameters:
  tp_size: {{type: choice, values: [1, x]}}
  foo: {{type: bool}}
  page_size: {{type: int, low: 1, hihg: 4}}
  dp_size: {{type: int, low: 4, high: 2}}
presets: [nope]
extra_args: [--tp-size, "2"]
optimization:
  strategy: grid
  objective: fastest
  max_iterations: -1
  slo: {{nothing: 1}}
benchmark:
  {TOKENIZER}
  traffic_scenarios: ["E(5)", "D(1,1)"]
  num_concurrency: [2, 2]
  prefix_ratio: 2
"""
    error = load(tmp_path, text, monkeypatch)
    places = [problem.place for problem in error.problems]
    assert places == [
        "task_name (line 2)",
        "model.name (line 3)",
        "parameters.tp_size.values[1] (line 7)",
        "parameters.foo (line 8)",
        "parameters.page_size.high (line 9)",
        "parameters.page_size.hihg (line 9)",
        "parameters.dp_size.high (line 10)",
        "presets[0] (line 11)",
        "extra_args[0] (line 12)",
        "optimization.strategy (line 14)",
        "optimization.objective (line 15)",
        "optimization.max_iterations (line 16)",
        "optimization.slo.nothing (line 17)",
        "benchmark.traffic_scenarios[1] (line 20)",
        "benchmark.num_concurrency[1] (line 21)",
        "benchmark.prefix_ratio (line 22)",
    ]


def test_no_faults_of_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constraint on a parameter that is at fault is not called unknown, nor a missing model a missing path."""
    text = parameters("tp_size: {type: chioce}", more="constraints: [tp_size < 2]\n")
    assert len(load(tmp_path, text, monkeypatch).problems) == 1
    assert len(load(tmp_path, LOCAL + "engine: llamacpp\nmodel: 3\n", monkeypatch).problems) == 1
    budget = optimization("budget: {wall_time: 8 hours}")  # which sets no limit for that reason alone
    assert len(load(tmp_path, budget, monkeypatch).problems) == 1


JSON_FILES = {
    "empty": (b"", "empty"),
    "broken": (b'{"task_name": "t",}', "line 1, column"),
    "not UTF-8": (b'{"task_name": "\xff"}', "UTF-8"),
    "binary": (bytes(range(256)), "UTF-8"),
    "twice": (b'{\n"task_name": "a",\n\t"task_name": "b"}', "given twice, again in line 3"),
    "not a number": (b'{"model": NaN}', "finite"),
    "deep": (b"[" * 100_000, "deep"),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", "too long"),
    "lone surrogate": (b'{"task_name": "\\ud800"}', "character"),
    "too large": (b" " * 1_000_001, "larger than"),
}


@pytest.mark.parametrize("case", JSON_FILES)
def test_malformed_json(case: str, tmp_path: Path) -> None:
    """A file that is no JSON says so."""
    content, words = JSON_FILES[case]
    path = tmp_path / "task.json"
    path.write_bytes(content)
    with pytest.raises(SpecError) as error:
        load_checked(path)
    assert words in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    """A wrong name gives the name that is close; a folder is no file."""
    (tmp_path / "task.json").write_text("{}")
    with pytest.raises(SpecError, match=r"no such file \(did you mean `task\.json`\?\)"):
        load_checked(tmp_path / "tsk.json")
    with pytest.raises(SpecError, match="no such file"):
        load_checked(tmp_path / "absent" / "task.json")
    with pytest.raises(SpecError, match="cannot be read"):
        load_checked(tmp_path)


plain = st.none() | st.booleans() | st.integers(-5, 5) | st.text("abD(1,2)-_ .", max_size=8) | st.floats()
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "values", "low", "high", "when", "name", "tp_size", "x"]), inner)
    ),
    max_leaves=8,
)


BASE_DATA = {
    "task_name": "t",
    "model": {"name": "m"},
    "base_runtime": "r",
    "benchmark": {},
    "optimization": {},
    "parameters": {"tp_size": {"type": "choice", "values": [1, 2]}},
}
SECTIONS = "task_name model parameters optimization benchmark presets constraints runtime engine backend"
DEEPER = (
    *("parameters.tp_size", "parameters.tp_size.values", "parameters.tp_size.when", "benchmark.rungs"),
    *("benchmark.traffic_scenarios", "optimization.slo", "optimization.scheduler"),
)
WAYS = (*SECTIONS.split(), *DEEPER)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(WAYS), values, min_size=1, max_size=3))
def test_fuzz(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]) -> None:
    """Whatever stands in the file, the outcome is a task or a SpecError with at least one problem."""
    data = copy.deepcopy(BASE_DATA)
    for way, value in changes.items():
        *above, last = way.split(".")
        owner: object = data
        for step in above:
            owner = owner.get(step) if isinstance(owner, dict) else None
        if isinstance(owner, dict):
            owner[last] = value
    path = tmp_path_factory.mktemp("fuzz") / "task.json"
    path.write_text(json.dumps(data))
    problems = ["none"]
    try:
        load_checked(path)
    except SpecError as error:
        problems = [str(problem) for problem in error.problems]
    assert problems
