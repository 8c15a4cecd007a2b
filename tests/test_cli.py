"""The commands, as a user types them, that start nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raytune_autotuner.cli import BAD_INPUT, ENVIRONMENT, OK, main
from raytune_autotuner.planning.checks import load_checked

ROOT = Path(__file__).parent.parent


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_validate_shows_how_much_of_the_grid_is_planned() -> None:
    """Four of the sixteen points, two loads each, and what it may take."""
    result = invoke("validate", str(ROOT / "configs" / "simple_task.json"))
    assert result.exit_code == OK
    assert "4 of 16 grid points" in result.output
    assert "GPU-hours" in result.output


@pytest.mark.parametrize("name", ["simple_task.json", "local-gemma.yaml"])
def test_every_shipped_task_is_valid(name: str) -> None:
    """What we ship works."""
    assert invoke("validate", str(ROOT / "configs" / name)).exit_code == OK


def test_validate_tells_every_error_with_its_place(tmp_path: Path) -> None:
    """On stderr, with exit code 2, without a traceback."""
    task = tmp_path / "task.yaml"
    task.write_text("task_name: Bad Name\nmodel: {name: m}\noptimization: {stratgy: x}\n")
    result = invoke("validate", str(task))
    assert result.exit_code == BAD_INPUT
    assert "task_name (line 1)" in result.stderr
    assert "did you mean `strategy`" in result.stderr
    assert "Traceback" not in result.output


LOCAL = "task_name: t\nbackend: local\nengine: llamacpp\nmodel: {name: m, path: sub/m.gguf}\n"


def test_a_model_that_is_not_on_this_machine_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key, its line and the path, which begins where the command is given, as in a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks" / "sub").mkdir(parents=True)
    (tmp_path / "tasks" / "sub" / "m.gguf").touch()  # beside the task file: not where a run looks
    (tmp_path / "tasks" / "task.yaml").write_text(LOCAL)
    for command in ("validate", "run", "trial"):
        result = invoke(command, "tasks/task.yaml")
        assert result.exit_code == BAD_INPUT
        assert f"tasks/task.yaml: model.path (line 4): there is no `{tmp_path}/sub/m.gguf`" in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["tasks"]
    (tmp_path / "tasks" / "sub").rename(tmp_path / "sub")
    assert invoke("validate", "tasks/task.yaml").exit_code == OK


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.path=~nobody-of-this-name/m.gguf", ["model.path", "~nobody-of-this-name/m.gguf"]),
        (f"model.path={'m' * 300}", ["model.path", "there is no"]),
        ("model.path=", ["model.path", "is empty"]),
        ("model.chat_template=gema", ["model.chat_template", "'gema' is no file", "gemma"]),
        (f"model.chat_template={'m' * 300}", ["model.chat_template", "is no file"]),
        (f"benchmark.dataset={{path: /{'m' * 300}.txt}}", ["benchmark.dataset.path", "there is no file"]),
        ("benchmark.model_tokenizer=./tokens", ["benchmark.model_tokenizer", "there is no", "/tokens`", "hub id"]),
        ("benchmark.model_tokenizer=", ["benchmark.model_tokenizer", "is empty"]),
    ],
)
def test_what_a_task_names_has_to_be_on_this_machine(setting: str, words: list[str]) -> None:
    """Or it is bad input, whatever is wrong with the path."""
    result = invoke("validate", str(ROOT / "configs" / "local-gemma.yaml"), "--set", setting)
    assert result.exit_code == BAD_INPUT
    assert all(word in result.stderr for word in words)


def test_a_flag_that_looks_misspelt_is_told_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever flags are handed on as they are; an engine knows more of them than its file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.gguf").touch()
    flags = 'runtime: {args: [--thread, "2", --jinja]}\nextra_args: [--paralel=2]\n'
    (tmp_path / "task.yaml").write_text(f"{LOCAL}{flags}parameters: {{mine: {{type: bool, flag: --kv-unifid}}}}\n")
    result = invoke("validate", "task.yaml")
    assert result.exit_code == OK
    assert "note: runtime.args: --thread: did you mean --threads?" in result.output
    assert "note: extra_args: --paralel: did you mean --parallel?" in result.output
    assert "note: parameters.mine.flag: --kv-unifid: did you mean --kv-unified?" in result.output
    assert "--jinja" not in result.output


def test_a_cluster_is_not_looked_at_for_a_task_of_this_machine(tmp_path: Path) -> None:
    """The file is named, and what looks at such a task."""
    task = ROOT / "configs" / "local-gemma.yaml"
    result = invoke("doctor", str(task))
    assert result.exit_code == BAD_INPUT
    assert f"error: {task}: backend: doctor" in result.stderr
    assert "`validate`" in result.stderr


def test_an_override_is_checked_like_the_file() -> None:
    """A wrong value on the command line is as wrong as in the file."""
    task = str(ROOT / "configs" / "local-gemma.yaml")
    good = invoke("validate", task, "--set", "optimization.max_iterations=3")
    assert good.exit_code == OK
    assert "3 of" in good.output
    bad = invoke("validate", task, "--set", "optimization.max_iterations=none")
    assert bad.exit_code == BAD_INPUT
    assert "max_iterations" in bad.stderr


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    """With its name."""
    result = invoke("run", str(tmp_path / "none.yaml"))
    assert result.exit_code == BAD_INPUT
    assert "none.yaml" in result.stderr


def test_schema_prints_the_json_schema() -> None:
    """Of the task, with its fields described."""
    schema = json.loads(invoke("schema").output)
    assert {"task_name", "parameters", "optimization", "benchmark"} <= set(schema["properties"])


def test_init_prints_a_valid_task(tmp_path: Path) -> None:
    """With the limits that were asked for."""
    flags = ("--model", "m", "--engine", "llamacpp", "--model-path", "m.gguf", "--goal", "ttft", "--ttft-p99", "1.5")
    result = invoke("init", *flags)
    assert result.exit_code == OK
    (tmp_path / "task.yaml").write_text(result.output)
    task, engine = load_checked(tmp_path / "task.yaml")
    assert engine.name == "llamacpp"
    assert task.optimization.objective == "minimize_ttft"
    assert task.optimization.slo["ttft_p99_s"] == 1.5


def test_init_names_the_engine_flag() -> None:
    """With the engines there are."""
    result = invoke("init", "--model", "m", "--engine", "lamacpp", "--model-path", "m.gguf")
    assert result.exit_code == BAD_INPUT
    assert result.stderr.startswith("error: init: --engine: 'lamacpp' is unknown; valid are llamacpp, ")


@pytest.mark.parametrize("name", ["../other", "a/b", "A B", ".hidden", "a" * 121])
def test_a_name_that_is_no_folder_of_the_storage_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is created, there or elsewhere."""
    monkeypatch.chdir(tmp_path)
    task = str(ROOT / "configs" / "local-gemma.yaml")
    for command in (("run", task), ("trial", task), ("verify", "exp")):
        result = invoke(*command, "--name", name)
        assert result.exit_code == BAD_INPUT
        assert "'--name'" in result.stderr
    assert not any(tmp_path.iterdir())


def test_init_names_the_flag_that_is_missing() -> None:
    """Instead of writing half a task."""
    result = invoke("init", "--model", "m", "--engine", "sglang", "--backend", "ome")
    assert result.exit_code == BAD_INPUT
    assert "--runtime" in result.stderr


def test_the_parameters_of_a_single_trial_are_checked() -> None:
    """Unknown names, wrong values and broken constraints, before anything starts."""
    task = str(ROOT / "configs" / "local-gemma.yaml")
    for params, word in (
        ('{"thread": 2}', "thread"),
        ('{"ubatch_size": 512, "batch_size": 256}', "ubatch_size <= batch_size"),
        ("[1]", "mapping"),
        ("{", "JSON"),
    ):
        result = invoke("trial", task, "--params", params)
        assert result.exit_code == BAD_INPUT, params
        assert word in result.stderr


def test_a_key_variable_that_is_not_set_is_the_environments_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before anything is created."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    task = str(ROOT / "configs" / "local-gemma.yaml")
    storage = tmp_path / "results"
    result = invoke("run", task, "--set", "benchmark.api_key_env=NO_SUCH_KEY", "--storage", str(storage))
    assert result.exit_code == ENVIRONMENT
    assert "NO_SUCH_KEY" in result.stderr
    assert not storage.exists()


def test_help_names_every_command() -> None:
    """The way in."""
    output = invoke("--help").output
    for command in ("run", "trial", "validate", "schema", "init"):
        assert command in output
