"""The task file is read as it was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.checks import check, check_parameters, load_checked
from raytune_autotuner.task import scenarios, taskfile
from raytune_autotuner.task.parameters import Choice, FloatRange
from raytune_autotuner.task.spec import Asha, Task, json_schema, load_task, parse_task

SIMPLE = Path(__file__).parent.parent / "configs" / "simple_task.json"
MINIMAL = {"task_name": "t", "model": {"name": "m"}}


def test_simple_task_is_accepted_unchanged() -> None:
    """The form in which tasks exist today loads as it is."""
    task, engine = load_checked(SIMPLE)
    assert engine.name == "sglang"
    assert task == load_task(SIMPLE)
    assert task.parameters["mem_frac"] == Choice(type="choice", values=(0.8, 0.9))
    assert task.benchmark.additional_params == {"temperature": "0.0"}
    assert task.benchmark.num_concurrency == (1, 4)


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    """The same task in YAML, or as JSON in a file of another name, is the same."""
    data = json.loads(SIMPLE.read_text())
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "task.txt").write_text(json.dumps(data))
    (tmp_path / "task.json").write_text("\ufeff" + json.dumps(data, indent="\t"), encoding="utf-8")
    tasks = [load_task(tmp_path / name) for name in ("task.yaml", "task.txt", "task.json")]
    assert tasks == [load_task(SIMPLE)] * 3


def test_a_task_is_read_back_from_its_own_json() -> None:
    """What is stored beside the results is the task."""
    task = load_task(SIMPLE)
    assert Task.model_validate_json(task.model_dump_json()) == task


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("2024-01-01", "2024-01-01"),
        ('"1"', "1"),
        ("=", "="),
        ("D(1,2)", "D(1,2)"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    """Only true and false are booleans; nothing becomes a date or a number to the base of 60."""
    read = taskfile.parse(f"a: {text}\n", "t").data["a"]
    assert read == value
    assert type(read) is type(value)


def test_keys_stay_text() -> None:
    """A key such as on or 1 is a name."""
    assert taskfile.parse("on: 1\n2: 3\ntrue: 4\n", "t").data == {"on": 1, "2": 3, "true": 4}


def test_merge_keys() -> None:
    """Anchors can be merged; what stands in the mapping itself wins, then the earlier part."""
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 3\nd: {<<: *a}\n"
    data = taskfile.parse(text, "t").data
    assert data["c"] == {"x": 3, "y": 1, "z": 2}
    assert data["d"] == {"x": 1, "y": 1}
    with pytest.raises(SpecError, match="merges mappings"):
        taskfile.parse("a: {<<: 3}\n", "t")


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text('aä\n"\\/', max_size=5), st.lists, max_leaves=5)
)
def test_json_values_are_kept(value: object) -> None:
    """JSON that holds nothing forbidden is read as json reads it."""
    text = json.dumps({"a": value})
    assert taskfile.parse(text, "t", strict_json=True).data == {"a": value}


def override(*settings: str) -> Task:
    return load_task(SIMPLE, settings)


def test_overrides() -> None:
    """Any field can be set, by its dotted path, with YAML's notation; later settings win."""
    task = override(
        "benchmark.model_tokenizer=/tmp/tok",
        "optimization.scheduler={type: asha, reduction_factor: 3}",
        "parameters.tp_size.values[1]=4",
        "parameters.mem_frac={type: float, low: 0.5, high: 0.9}",
        "benchmark.traffic_scenarios=['D(7,8)', D]",
        "benchmark.traffic_scenarios.1=N(480,240)/(300,150)",
        "optimization.slo.ttft_p99_s=0.5",
        "description=",
        "optimization.strategy=random",
        "model.namespace=null",
        "optimization.seed=1",
        "optimization.seed=2",
    )
    assert task.benchmark.model_tokenizer == "/tmp/tok"
    assert task.optimization.scheduler == Asha(reduction_factor=3)
    assert task.parameters["tp_size"] == Choice(type="choice", values=(1, 4))
    assert task.parameters["mem_frac"] == FloatRange(type="float", low=0.5, high=0.9)
    assert task.benchmark.traffic_scenarios == ("D(7,8)", "N(480,240)/(300,150)")
    assert task.optimization.slo == {"ttft_p99_s": 0.5}
    assert (task.description, task.model.namespace, task.optimization.seed) == ("", None, 2)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "benchmark.modl_tokenizer=x",
            "benchmark.modl_tokenizer (--set): there is no such field (did you mean `model_tok",
        ),
        ("optimization.max_iterations=many", "optimization.max_iterations (--set): found the text `many`"),
        ("optimization.objective=fastest", "optimization.objective (--set): found the text `fastest`; valid are"),
        ("optimization", "--set optimization: write PATH=VALUE"),
        ("=3", "write PATH=VALUE"),
        ("a..b=3", "write PATH=VALUE"),
        ("task_name.x=1", "task_name is the text `simple-tune`, which has no parts"),
        ("benchmark.num_concurrency[7]=1", "benchmark.num_concurrency is a list; valid are the indices 0 to 1"),
        ("benchmark.num_concurrency.x=1", "valid are the indices 0 to 1"),
        ("benchmark.num_concurrency=[1,", "the value cannot be read"),
        ("benchmark.num_concurrency=[!!set 1]", "[0]: the tag set is not allowed"),
        ("optimization.slo={ttft_p99_s: .nan}", "not a finite number"),
        ("optimization.seed=.inf", "not a finite number"),
    ],
)
def test_wrong_overrides(setting: str, words: str) -> None:
    """An override passes the same checks and is named as its source."""
    with pytest.raises(SpecError) as error:
        load_checked(SIMPLE, [setting])
    assert words in str(error.value)


def test_what_says_nothing_can_be_set_into() -> None:
    """A task as an experiment keeps it has every key, so one without a budget says `null` there."""
    document = taskfile.override(taskfile.parse("optimization: {budget: null}", "t"), ["optimization.budget.cost=3"])
    assert document.data == {"optimization": {"budget": {"cost": 3}}}


def test_overrides_need_a_mapping() -> None:
    """A document that is no mapping cannot be set into."""
    with pytest.raises(SpecError, match="has no parts"):
        taskfile.override(taskfile.parse("3", "t"), ["a=1"])


def test_parse_task_from_data() -> None:
    """Plain data is a task as well, and its problems have no lines."""
    assert parse_task(MINIMAL, "here").task_name == "t"
    with pytest.raises(SpecError, match=r"here: model\.name: is missing"):
        parse_task({"task_name": "t", "model": {}}, "here")


def test_check_names_places_without_lines() -> None:
    """A task that was made in a program is checked by the same rules."""
    task, engine = load_checked(SIMPLE)
    assert check(task, engine) == []
    worse = task.model_copy(update={"presets": ("nope",)})
    assert [problem.place for problem in check(worse, engine)] == ["presets[0]"]


def test_workload_defaults() -> None:
    """Without scenarios the task's usual one is used, or the dataset as it is; embeddings iterate over batch sizes."""
    benchmark = parse_task(MINIMAL, "t").benchmark
    assert (benchmark.scenarios, benchmark.levels, benchmark.batched) == (("D(100,100)",), (1,), False)
    with_data = parse_task({**MINIMAL, "benchmark": {"dataset": {"path": "a.txt"}}}, "t").benchmark
    assert with_data.scenarios == ("dataset",)
    embeddings = parse_task({**MINIMAL, "benchmark": {"task": "text-to-embeddings"}}, "t").benchmark
    assert (embeddings.scenarios, embeddings.levels) == (("E(512)",), (1, 8, 32))


def test_schema_describes_every_field() -> None:
    """The JSON Schema has a description for every field and is itself JSON."""
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"].startswith("https://json-schema.org/")
    sections = [schema, *schema["$defs"].values()]
    bare = [
        f"{section['title']}.{name}"
        for section in sections
        for name, field in section["properties"].items()
        if "description" not in field and "$ref" not in field and name not in ("type", "log")
    ]
    assert bare == []


def test_fields_that_a_task_may_have(tmp_path: Path) -> None:
    """Everything at once: ranges, flags, conditions, presets, rungs, weights, an engine of the user's own."""
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "description": "mine",
                "command": ["serve"],
                "gpus": "1",
                "health": "/health",
                "server_engine": "vLLM",
                "parameters": {
                    "speed": {"flag": "--speed", "type": "float", "help": "how fast"},
                    "mode": {"flag": "--mode", "type": "choice", "values": [1, 2, "auto"], "help": "which"},
                    "fast": {"flag": "--fast", "type": "bool", "help": "on or off"},
                },
            }
        )
    )
    path = tmp_path / "task.yaml"
    path.write_text(f"""
task_name: everything
backend: local
engine: {tmp_path}/mine.yaml
model: {{name: m, path: {tmp_path}}}
runtime: {{command: [serve], args: [--x, "1"], env: {{A: b}}}}
parameters:
  speed: {{type: float, low: 0.1, high: 10, log: true}}
  mode: {{type: int, low: 1, high: 2}}
  fast: {{type: bool, when: speed > 1 and mode == 1}}
  other: {{type: choice, values: [on, off, null, true], flag: --other}}
extra_args: [--seed, "1"]
constraints: ["speed * mode <= 15"]
optimization:
  strategy: bayesian
  objective: weighted
  weights: {{ttft_p99_s: 1, output_tokens_per_s: 2}}
  slo: {{error_ratio: 0.01}}
  scheduler: {{type: asha}}
benchmark:
  traffic_scenarios: ["U(50,100)/(40,80)", "U(100,100)", "N(480,240)/(300,150)", "D(2000,200)"]
  num_concurrency: [1, 8]
  prefix_len: 1
  rungs: [{{num_concurrency: [8], max_requests: 8}}, {{}}]
  api_key_env: MY_KEY
resources: {{cpus: 1.5, gpus: 0}}
""")
    task, engine = load_checked(path)
    assert engine.name == "mine"
    other = task.parameters["other"]
    assert isinstance(other, Choice)
    assert other.values == ("on", "off", None, True)


@pytest.mark.parametrize(
    ("text", "kind", "input_tokens", "output_tokens", "shortest"),
    [
        ("D(100,50)", "D", 100, 50, 100),
        ("N(480,240)/(300,150)", "N", 480, 300, 1),
        ("N(480,10)/(300,150)", "N", 480, 300, 450),
        ("U(50,100)/(40,80)", "U", 75, 60, 50),
        ("U(99,199)", "U", 50, 100, 1),
        ("E(64)", "E", 64, None, None),
        ("R(64,100)", "R", 164, None, None),
        ("I(512,512)", "I", None, None, None),
        ("I(512,512,3)", "I", None, None, None),
        ("dataset", "dataset", None, None, None),
    ],
)
def test_scenario(
    text: str, kind: str, input_tokens: float | None, output_tokens: float | None, shortest: int | None
) -> None:
    """Each form of genai-bench tells what a request looks like on average."""
    assert scenarios.parse(text) == scenarios.Scenario(text, kind, input_tokens, output_tokens, shortest)  # type: ignore[arg-type]


NO_SCENARIOS = [
    *("", "D", "D()", "D(1)", "D(1,2,3)", "D(1,2)/(3,4)", "D(1,2) ", "D(-1,2)", "D(9999999999,2)", "d(1,2)", "X(1,2)"),
    *("N(1,2)", "N(0,1)/(2,2)", "U(9,1)", "U(9,1)/(1,9)", "U(1,2)/(1,1)", "dataset2"),
    *("E(0)", "E(1,2)", "R(1,0)", "I(1)", "I(0,1)", "I(1,2,3,4)"),
]


@pytest.mark.parametrize("text", NO_SCENARIOS)
def test_no_scenario(text: str) -> None:
    """What genai-bench refuses, drops or changes is refused."""
    with pytest.raises(ValueError, match=r"scenario|asks for nothing|one token|low end"):
        scenarios.parse(text)


def test_check_parameters() -> None:
    """One configuration is read by any alias, and keeps its values."""
    task, engine = load_checked(SIMPLE, ["constraints=['tp_size <= 4']", "parameters.mine={type: bool, flag: --mine}"])
    text = '{"tp": 2, "mem_fraction_static": 0.7, "mine": true, "schedule_policy": null}'
    parameters = check_parameters(task, engine, text)
    assert parameters == {"tp_size": 2, "mem_frac": 0.7, "mine": True, "schedule_policy": None}
    for wrong, words in {
        "[]": "write a mapping",
        "{": "not JSON",
        '{"tp_sise": 1}': "did you mean `tp_size`",
        '{"tp_size": "two"}': "a whole number",
        '{"tp_size": [1]}': "found a list",
        '{"tp_size": 8}': "`tp_size <= 4` does not hold with tp_size=8",
    }.items():
        with pytest.raises(SpecError) as error:
            check_parameters(task, engine, wrong)
        assert words in str(error.value)
        assert error.value.source == "--params"
