"""What cannot start by plain arithmetic, and where the numbers come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner import ome_site, resources
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import SpecError, TransientError
from raytune_autotuner.foresight import Feasibility, Launch, facts
from raytune_autotuner.kube import NODE, Kind
from raytune_autotuner.packing import Need, Pool
from raytune_autotuner.planning import impossible
from raytune_autotuner.planning.checks import load_document
from raytune_autotuner.planning.plan import make_plan
from raytune_autotuner.records import Parameters
from raytune_autotuner.task.spec import Task, parse_task
from raytune_autotuner.task.taskfile import Document

SGLANG, VLLM = Launch(load_engine("sglang")), Launch(load_engine("vllm"))
LLAMA_70B = {
    "weights_gib": 140e9 / 2**30,
    "layers": 80.0,
    "heads": 64.0,
    "kv_heads": 8.0,
    "head_dim": 128.0,
    "max_context": 131072.0,
}
H100 = {"gpu_gib": 79.6}


def unfit(launch: Launch, parameters: Parameters, **known: float) -> str | None:
    found = Feasibility(launch, {**LLAMA_70B, **H100, **known}).problem(parameters)
    assert found is None or found.kind == "pruned"
    return None if found is None else found.reason


def test_weights_that_are_larger_than_the_memory_are_not_tried() -> None:
    """70 billion parameters of 16 bits on one GPU, or on two of which only the half may be used; with the numbers."""
    reason = unfit(SGLANG, {"tp_size": 1})
    assert reason is not None
    assert reason == (
        "cannot start; the weights are larger than the GPU's memory: 130.4 GiB > 79.6 GiB; "
        "`own_weights_gib <= gpu_gib` does not hold with "
        "cpu_offload_gb=0, gpu_gib=79.6, own_weights_gib=130.4, pp_size=1, tp_size=1, weights_gib=130.4"
    )
    assert "65.2 GiB > 55.7 GiB" in (unfit(SGLANG, {"tp_size": 2, "mem_frac": 0.7}) or "")
    assert unfit(SGLANG, {"tp_size": 2}) is None
    assert unfit(VLLM, {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5})


@pytest.mark.parametrize("shrinks", [{"quantization": "fp8"}, {"cpu_offload_gb": 60}, {"pp_size": 2}])
def test_what_may_shrink_them_is_tried(shrinks: dict[str, Any]) -> None:
    """Only what surely cannot start is refused."""
    assert unfit(SGLANG, {"tp_size": 1, **shrinks}) is None


def test_heads_and_layers_must_divide() -> None:
    """A model of 14 heads on 4 GPUs; groups of attention data parallelism split them again."""
    assert "attention heads" in (unfit(SGLANG, {"tp_size": 4}, heads=14, kv_heads=2) or "")
    assert "attention heads" in (unfit(VLLM, {"tensor_parallel_size": 4}, heads=14, kv_heads=2) or "")
    assert unfit(SGLANG, {"tp_size": 4, "dp_size": 2, "enable_dp_attention": True}, heads=14) is None
    assert "TP group" in (unfit(SGLANG, {"tp_size": 4, "attn_dp_size": 8}) or "")
    assert "TP group" in (unfit(SGLANG, {"tp_size": 4, "dp_size": 8, "enable_dp_attention": True}) or "")
    assert "key-value heads" in (unfit(SGLANG, {"tp_size": 4}, heads=24, kv_heads=6) or "")
    assert unfit(SGLANG, {"tp_size": 4}, kv_heads=2) is None
    assert "pipeline stages" in (unfit(SGLANG, {"tp_size": 4, "pp_size": 4}, layers=2) or "")


def test_vllm_needs_room_for_one_longest_request() -> None:
    """40 GiB of keys and values for 131072 tokens, a quarter of it on each of four GPUs; less in eight bits."""
    four = {"tensor_parallel_size": 4, "gpu_memory_utilization": 0.5}
    assert "KV cache of one longest request" in (unfit(VLLM, four) or "")
    for smaller in ({"max_model_len": 8192}, {"kv_cache_dtype": "fp8"}, {"num_gpu_blocks_override": 100}):
        assert unfit(VLLM, {**four, **smaller}) is None
    spread = {"data_parallel_size": 8, "enable_expert_parallel": True, "max_model_len": 8192}
    assert unfit(VLLM, {"data_parallel_size": 8, "max_model_len": 8192})
    assert unfit(VLLM, spread) is None


@pytest.mark.parametrize("unknown", ["weights_gib", "gpu_gib"])
def test_the_unknown_refuses_nothing(unknown: str) -> None:
    """Neither the model's size nor the GPU's may be known."""
    known = {name: value for name, value in {**LLAMA_70B, **H100}.items() if name != unknown}
    assert Feasibility(SGLANG, known).problem({"tp_size": 1}) is None
    assert Feasibility(SGLANG).problem({"tp_size": 3}) is None


def test_a_fixed_number_of_gpus_is_a_limit() -> None:
    """`resources.gpus` gives every trial so many."""
    rules = Feasibility(SGLANG, {}, 4)
    found = rules.problem({"tp_size": 8})
    assert found is not None
    assert "8 > 4 (resources.gpus)" in found.reason
    assert rules.problem({"tp_size": 4}) is None
    assert Feasibility(replace(SGLANG, extra_args=("--dp-size", "2")), {}, 4).problem({"tp_size": 4}) is not None


CONFIG = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def model_task(**model: Any) -> dict[str, Any]:
    return {
        "task_name": "t",
        "backend": "local",
        "engine": "sglang",
        "model": {"name": "m", **model},
        "parameters": {"tp_size": {"type": "choice", "values": [1, 2, 3, 4]}},
        "optimization": {"strategy": "grid_search"},
        "resources": {"gpu_memory_gib": 24},
    }


def write_model(folder: Path, config: dict[str, Any], size: int | None = 16 * 2**30) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if size:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}}))


def test_a_model_folder_tells_its_size_and_shape(tmp_path: Path) -> None:
    """The checkpoint's index counts, not a second copy beside it; what the task says goes before."""
    write_model(tmp_path / "m", CONFIG)
    (tmp_path / "m" / "consolidated.safetensors").write_bytes(b"x" * 1000)
    found = facts.of_task(parse_task(model_task(path=str(tmp_path / "m"), facts={"layers": 30}), "task"))
    shape = {"layers": 30, "heads": 32, "kv_heads": 8, "head_dim": 128, "max_context": 8192}
    assert found == {**shape, "weights_gib": 16.0, "stored_bytes": 2.0, "gpu_gib": 24.0}


def test_what_a_model_folder_does_not_tell_is_not_guessed(tmp_path: Path) -> None:
    """Sliding windows keep less; a single file counts itself; 32 bits are loaded as 16; broken files tell nothing."""
    windows = {"text_config": {**CONFIG, "sliding_window": 1024}, "torch_dtype": "float32"}
    write_model(tmp_path / "m", windows, None)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x" * 2**20)
    task = parse_task(model_task(path=str(tmp_path / "m")), "task")
    assert facts.of_task(task) == {
        "layers": 32,
        "heads": 32,
        "max_context": 8192,
        "weights_gib": 2**20 / 2 / 2**30,
        "stored_bytes": 2.0,
        "gpu_gib": 24,
    }
    (tmp_path / "m" / "config.json").write_text("[]")
    (tmp_path / "m" / "model.safetensors").unlink()
    assert facts.of_task(task) == {"gpu_gib": 24}
    (tmp_path / "m" / "config.json").write_text("{")
    assert facts.of_task(task) == {"gpu_gib": 24}
    assert facts.of_folder(parse_task(model_task(path="m.gguf"), "task").model) == {}


@pytest.mark.parametrize(
    ("more", "even"),
    [
        ({"sliding_window": 131072, "use_sliding_window": False}, True),
        ({"sliding_window": None}, True),
        ({"layer_types": ["full_attention", "full_attention"]}, True),
        ({"sliding_window": 4096}, False),
        ({"sliding_window": 4096, "use_sliding_window": True}, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"kv_lora_rank": 512}, False),
    ],
)
def test_windows_that_are_not_used_change_nothing(more: dict[str, Any], even: bool) -> None:
    """Where layers keep keys and values in ways of their own, how many is not told."""
    assert ("kv_heads" in facts.of_config({**CONFIG, **more})) is even


def test_a_base_model_of_ome_tells_its_size() -> None:
    """Rounded names are taken for a little less, an unknown format for the smallest."""
    spec = {"modelParameterSize": "70B", "modelConfiguration": {**CONFIG, "num_hidden_layers": 80}}
    found = facts.of_base_model(spec)
    assert (found["layers"], round(found["weights_gib"])) == (80, 124)
    assert round(facts.of_base_model({**spec, "quantization": "fp8"})["weights_gib"]) == 62
    assert round(facts.of_base_model({"modelParameterSize": "70B"})["weights_gib"]) == 31
    assert facts.of_base_model({"modelParameterSize": "large"}) == {}


def test_nodes_tell_their_gpus_when_all_do() -> None:
    """The largest counts, since a trial may get there."""
    labels = {"a": {"nvidia.com/gpu.memory": "81559"}, "b": {"nvidia.com/gpu.memory": "46068"}}
    assert facts.of_nodes(labels) == {"gpu_gib": pytest.approx(79.65, abs=0.01)}
    assert facts.of_nodes({**labels, "c": {}}) == {}
    assert facts.of_nodes({}) == {}


def checked(data: dict[str, Any]) -> Task:
    return load_document(Document(data, "task"))[0]


def test_the_plan_says_how_much_of_the_space_cannot_start() -> None:
    """And why, before anything is started; also that the runtime's own flags are among it."""
    data = model_task(path="m", facts={"parameters_b": 24, "heads": 32})
    notes = make_plan(checked(data), load_engine("sglang")).notes
    assert [note for note in notes if "cannot start" in note] == [
        "50% of the configurations cannot start and are not run (25%: the weights are larger than the GPU's memory; "
        "25%: tensor parallelism does not split the attention heads evenly)",
        *(note for note in notes if note.startswith("the runtime's own flags cannot start; the weights are larger")),
    ]
    assert len([note for note in notes if note.startswith("the runtime's own flags")]) == 1
    silent = make_plan(checked(model_task(path="m")), load_engine("sglang")).notes
    assert not any("cannot start" in note for note in silent)


def test_what_fits_no_node_is_told_before_anything_is_queued() -> None:
    """With figures, and nothing where all of it fits."""
    examples = [{"tp_size": tp} for tp in (1, 2, 4, 16)]
    never = Pool({"a": 8, "b": 8}).never
    assert list(impossible.without_place(examples, lambda p: never(Need((int(str(p["tp_size"])),))))) == [
        "25% of the configurations fit no node and are not run (25%: needs 16 GPUs on one node, "
        "each of the 2 nodes has 8)"
    ]
    assert list(impossible.without_place(examples, lambda p: None)) == []
    assert list(impossible.without_place([], never)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        ({"why": "w", "must": "bread <= 1"}, "fits: bread is neither a parameter of this engine nor one of"),
        ({"why": "w", "must": "tp_size <"}, "column"),
        ({"why": "w", "need": "tp_size"}, "write either must, or need and have"),
        ({"why": "w"}, "write either must, or need and have"),
    ],
)
def test_a_rule_that_is_none_is_told(tmp_path: Path, fit: dict[str, str], said: str) -> None:
    """Engine files of users are checked like those that are shipped."""
    content = yaml.safe_load((resources.templates() / "engines" / "sglang.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**content, "fits": [fit]}))
    with pytest.raises(SpecError, match=said):
        load_engine(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    "field", [{"heads": 0}, {"parameters_b": "many"}, {"bytes_per_parameter": 9}, {"colour": "red"}]
)
def test_malformed_facts_are_told(field: dict[str, Any]) -> None:
    """With their place in the file."""
    with pytest.raises(SpecError, match=f"model.facts.{next(iter(field))}"):
        checked(model_task(path="m", facts=field))


class Told:
    """A cluster with one base model and two nodes, of which one has GPUs."""

    def __init__(self, readable: bool = True) -> None:
        self._readable = readable

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> dict[str, Any]:
        if not self._readable:
            raise TransientError("the API server is away")
        return {"spec": {"modelParameterSize": "8B", "quantization": "fp8", "modelConfiguration": CONFIG}}

    def list(self, kind: Kind, namespace: str | None = None, labels: object = None) -> list[dict[str, Any]]:
        if kind is not NODE:
            return []
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        gpus = {"nvidia.com/gpu": "8"}
        return [
            {
                "metadata": {"name": "gpu", "labels": {"nvidia.com/gpu.memory": "81920"}},
                "status": {**ready, "allocatable": gpus},
            },
            {"metadata": {"name": "cpu"}, "status": ready},
        ]


def test_a_cluster_tells_of_model_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes without GPUs have no say; what cannot be read is not known."""
    task = parse_task({"task_name": "t", "model": {"name": "m"}, "base_runtime": "r"}, "task")
    monkeypatch.setattr(ome_site, "connect", lambda task: Told())
    found = ome_site.known_facts(task)
    assert (found["gpu_gib"], found["heads"], round(found["weights_gib"], 1)) == (80.0, 32, 7.1)
    monkeypatch.setattr(ome_site, "connect", lambda task: Told(readable=False))
    assert ome_site.known_facts(task) == {"gpu_gib": 80.0}
