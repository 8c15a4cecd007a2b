"""``init`` writes task files that are valid as they are."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner.engines.engine import engine_names
from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.checks import load_checked
from raytune_autotuner.planning.init_task import GOALS, Wish, write_task

OME = {"backend": "ome", "runtime": "rt", "tokenizer": "org/model"}
LOCAL = {"backend": "local", "model_path": "/models/m"}


@pytest.mark.parametrize(("engine", "goal", "place"), list(product(engine_names(), GOALS, (OME, LOCAL))))
def test_every_combination_is_valid(engine: str, goal: str, place: dict[str, Any], tmp_path: Path) -> None:
    """Whatever engine, goal and backend are asked for, the file loads, searches something and says the goal."""
    path = tmp_path / "task.yaml"
    path.write_text(write_task(Wish("org/Some Model-8B: x", engine=engine, goal=goal, **place)))
    task, loaded = load_checked(path)
    assert (task.engine, loaded.name, task.backend) == (engine, engine, place["backend"])
    assert task.optimization.objective == GOALS[goal][0]
    assert task.optimization.slo == dict(GOALS[goal][1])
    assert task.task_name == "some-model-8b-x"
    assert len(task.parameters) >= 4
    assert not any(loaded.parameters[name].lossy for name in task.parameters)


def test_goodput_is_searched_under_limits_on_single_requests(tmp_path: Path) -> None:
    """Its limits are examples, and said to be; what was asked takes their place."""
    path = tmp_path / "task.yaml"
    path.write_text(text := write_task(Wish("m", engine="sglang", goal="goodput", **OME)))
    assert load_checked(path)[0].optimization.objective == "maximize_goodput"
    assert "These are examples" in text
    path.write_text(text := write_task(Wish("m", engine="sglang", goal="goodput", ttft_p99_s=0.5, **OME)))
    assert load_checked(path)[0].optimization.slo == {"ttft_p99_s": 0.5}
    assert "These are examples" not in text


def test_everything_that_was_said_is_in_it(tmp_path: Path) -> None:
    """Flags arrive in the file, next to comments that explain them."""
    text = write_task(
        Wish("m", engine="llamacpp", backend="local", goal="tpot", name="mine", model_path="on", tokenizer="a b: c",
             scenarios=("D(5,6)", "U(1,9)/(2,9)"), concurrency=(2, 3), ttft_p99_s=0.5, tpot_p95_s=0.1)
    )  # fmt: skip
    (tmp_path / "task.yaml").write_text(text)
    task, _ = load_checked(tmp_path / "task.yaml")
    assert (task.task_name, task.model.path, task.benchmark.model_tokenizer) == ("mine", "on", "a b: c")
    assert task.benchmark.traffic_scenarios == ("D(5,6)", "U(1,9)/(2,9)")
    assert task.benchmark.num_concurrency == (2, 3)
    assert task.optimization.slo == {"ttft_p99_s": 0.5, "tpot_p95_s": 0.1}
    assert text.count("#") > len(task.parameters)
    assert yaml.safe_load(text)["model"]["path"] == "on", "other YAML readers must understand it as well"


def test_a_model_comes_with_llamacpp() -> None:
    """The engine of the demo needs no model path."""
    assert "package:" in write_task(Wish("gemma", engine="llamacpp", backend="local"))


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, ["--runtime: is missing", "--tokenizer: is missing"]),
        ({"backend": "local"}, ["--model-path: is missing"]),
        ({"backend": "k8s"}, ["--backend", "ome, local"]),
        ({"goal": "throughputs", **OME}, ["--goal", "did you mean `throughput`", "goodput"]),
        ({"engine": "tgi", **OME}, ["valid are llamacpp, sglang, vllm"]),
        ({"name": "Not A Name", **OME}, ["task_name", "small letters"]),
        ({"scenarios": ("X",), **OME}, ["traffic_scenarios[0]", "D(input,output)"]),
        ({"ttft_p99_s": -1.0, **OME}, ["ttft_p99_s", "more than 0"]),
    ],
)
def test_what_is_missing_or_wrong(wish: dict[str, Any], words: list[str]) -> None:
    """A flag that is missing or wrong is named, with what is valid."""
    with pytest.raises(SpecError) as error:
        write_task(Wish("m", **wish))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("model", "name"),
    [("meta-llama/Llama-3.1-8B", "llama-3-1-8b"), ("7B", "b"), ("!!!", "task"), ("x" * 50, "x" * 40)],
)
def test_the_name_comes_from_the_model(model: str, name: str) -> None:
    """Without a name the task is called after its model."""
    assert f"task_name: {name}\n" in write_task(Wish(model, **OME))
