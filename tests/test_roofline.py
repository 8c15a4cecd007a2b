"""What is expected of a configuration before anything was measured, and where the numbers come from."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner import resources
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import SpecError
from raytune_autotuner.foresight import Launch, Roofline, facts
from raytune_autotuner.foresight.roofline import GPU, MODEL
from raytune_autotuner.records import Parameters
from raytune_autotuner.task.spec import parse_task
from tests.test_feasibility import LLAMA_70B

SGLANG, VLLM = Launch(load_engine("sglang")), Launch(load_engine("vllm"))
H100 = {"gpu_gib": 79.6, **facts.of_product("NVIDIA-H100-80GB-HBM3")}
LLAMA = {**LLAMA_70B, "stored_bytes": 2.0}


def roofline(launch: Launch = VLLM, *, known: dict[str, float] | None = None, **said: Any) -> Roofline | None:
    benchmark = {"traffic_scenarios": ["N(1000,200)/(300,50)"], "num_concurrency": [64], **said.pop("benchmark", {})}
    gpus = said.pop("gpus", None)
    optimization = {"objective": "maximize_throughput_per_gpu", **said}
    task = parse_task(
        {
            "task_name": "t",
            "engine": launch.engine.name,
            "model": {"name": "m"},
            "base_runtime": "r",
            "parameters": {"quantization": {"type": "choice", "values": [None, "fp8"]}},
            "optimization": optimization,
            "benchmark": benchmark,
            "resources": {"gpus": gpus},
        },
        "t",
    )
    return Roofline.of(task, launch, {**LLAMA, **H100} if known is None else known)


def expected(parameters: Parameters, launch: Launch = VLLM, **more: Any) -> tuple[float, float]:
    """Loss and strain, no logarithms."""
    found = roofline(launch, **more)
    assert found is not None
    both = found.expects(parameters)
    assert both is not None
    return math.exp(both[0]), math.exp(both[1])


def loss(parameters: Parameters, launch: Launch = VLLM, **more: Any) -> float:
    return expected(parameters, launch, **more)[0]


@pytest.mark.parametrize(
    ("name", "tflops", "gb_s", "link_gb_s", "fp8"),
    [
        ("NVIDIA-H100-80GB-HBM3", 989, 3350, 450, 1),
        ("NVIDIA-H100-PCIe", 756, 2000, 64, 1),
        ("NVIDIA-H100-NVL", 835, 3900, 300, 1),
        ("NVIDIA H200", 989, 4800, 450, 1),
        ("NVIDIA-H20", 148, 4000, 450, 1),
        ("NVIDIA-GH200-480GB", 989, 4000, 450, 1),
        ("NVIDIA-B200", 2250, 8000, 900, 1),
        ("NVIDIA-GB200", 2500, 8000, 900, 1),
        ("NVIDIA A100-SXM4-80GB", 312, 2039, 300, 0),
        ("NVIDIA-A100-SXM4-40GB", 312, 1555, 300, 0),
        ("NVIDIA A100 80GB PCIe", 312, 1935, 32, 0),
        ("NVIDIA-A100-PCIE-40GB", 312, 1555, 32, 0),
        ("NVIDIA-A10G", 70, 600, 32, 0),
        ("NVIDIA-A10", 125, 600, 32, 0),
        ("NVIDIA-L40S", 362, 864, 32, 1),
        ("NVIDIA-L40", 181, 864, 32, 1),
        ("NVIDIA-L4", 121, 300, 32, 1),
        ("NVIDIA H100 80GB PCIe", 756, 2000, 64, 1),
        ("NVIDIA-H20-3e", 148, 4800, 450, 1),
        ("A100 80GB SXM", 312, 2039, 300, 0),
        ("Tesla-V100-PCIE-32GB", 112, 900, 16, 0),
        ("Tesla-V100-SXM2-32GB", 125, 900, 150, 0),
        ("Tesla-T4", 65, 320, 16, 0),
        ("AMD_Instinct_MI300X_OAM", 1307, 5300, 448, 1),
    ],
)
def test_data_sheets_are_found_by_the_names_that_drivers_and_labels_have(
    name: str, tflops: float, gb_s: float, link_gb_s: float, fp8: float
) -> None:
    """The longer name of another kind is not taken for a shorter one."""
    assert facts.of_product(name) == {
        "gpu_tflops": tflops,
        "gpu_gb_s": gb_s,
        "link_gb_s": link_gb_s,
        "gpu_fp8": fp8,
    }


def test_a_gpu_that_nobody_knows_has_no_data_sheet() -> None:
    """Nor has one without a name, nor a slice of one."""
    assert facts.of_product("Some-Future-GPU") == facts.of_product("") == {}
    assert facts.of_product("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb") == {}


def test_every_data_sheet_is_reached() -> None:
    """None stands behind one that takes its names."""
    sheets = yaml.safe_load((resources.templates() / "gpus.yaml").read_text())
    for sheet in sheets:
        name = sheet["name"].partition("|")[0].replace(r"\b", "").replace(".*", " ")
        found = next(other for other in sheets if re.search(other["name"], name))
        assert found is sheet, name
        assert facts.of_product(name)["gpu_tflops"] == sheet["tflops"], name


def test_decoding_is_bound_by_what_is_read() -> None:
    """Few requests read the weights for themselves: 8 bits are read in half the time, on Hopper and before it."""
    for gpu in ("NVIDIA-H100-80GB-HBM3", "NVIDIA-A100-SXM4-80GB"):
        few = {
            "benchmark": {"num_concurrency": [1], "traffic_scenarios": ["D(10,1000)"]},
            "objective": "minimize_tpot",
            "known": {**LLAMA, "gpu_gib": 79.6, **facts.of_product(gpu)},
        }
        four = {"tensor_parallel_size": 4}
        assert 0.45 < loss({**four, "quantization": "fp8"}, **few) / loss(four, **few) < 0.75


def test_prompts_are_bound_by_products() -> None:
    """8 bits are multiplied faster where the GPU has products of them; 4 bits are not, whatever they save."""
    prompts: dict[str, Any] = {
        "benchmark": {"num_concurrency": [16], "traffic_scenarios": ["D(8000,2)"]},
        "objective": "maximize_requests",
    }
    old = {**LLAMA, "gpu_gib": 79.6, **facts.of_product("NVIDIA-A100-SXM4-80GB")}
    four = {"tensor_parallel_size": 4}
    assert loss({**four, "quantization": "fp8"}, **prompts) < 0.8 * loss(four, **prompts)
    assert loss({**four, "quantization": "fp8"}, **prompts, known=old) == pytest.approx(
        loss(four, **prompts, known=old), rel=0.05
    )
    assert loss({**four, "quantization": "awq_marlin"}, **prompts) > loss(four, **prompts)


def test_more_gpus_for_a_copy_are_faster_and_each_is_worth_less() -> None:
    """As links take their part; over PCIe more of it."""
    pcie = {**LLAMA, **H100, "link_gb_s": 32.0}
    four, eight = {"tensor_parallel_size": 4}, {"tensor_parallel_size": 8}
    assert loss(eight, objective="minimize_latency") < loss(four, objective="minimize_latency")
    assert loss(eight) > loss(four)
    assert loss(eight, known=pcie) / loss(four, known=pcie) > loss(eight) / loss(four)


def test_copies_share_the_requests() -> None:
    """Two of four GPUs serve more than one of four; per GPU less, as each reads the weights for half as many."""
    one, two = {"tensor_parallel_size": 4}, {"tensor_parallel_size": 4, "data_parallel_size": 2}
    assert loss(two, objective="maximize_throughput") < loss(one, objective="maximize_throughput")
    assert loss(two) > loss(one)


def test_the_kv_cache_bounds_the_batch() -> None:
    """Where little room is left, keys and values of half the size let twice as many decode."""
    tight = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.88, "max_model_len": 8192}
    long = {"benchmark": {"traffic_scenarios": ["D(6000,400)"], "num_concurrency": [64]}}
    assert loss({**tight, "kv_cache_dtype": "fp8"}, **long) < 0.7 * loss(tight, **long)
    found = roofline()
    assert found is not None
    assert found.expects({"tensor_parallel_size": 1}) is None


def test_attention_data_parallelism_holds_no_head_twice() -> None:
    """Four key-value heads on eight GPUs are there twice, unless two groups hold other requests each."""
    few_heads = {"known": {**LLAMA, **H100, "kv_heads": 4.0}, "benchmark": {"num_concurrency": [256]}}
    assert loss({"tp_size": 8, "attn_dp_size": 2}, SGLANG, **few_heads) < loss({"tp_size": 8}, SGLANG, **few_heads)


def test_a_mixture_computes_with_few_of_its_experts() -> None:
    """One request reads few of them, too; dozens read them all."""
    mixture = {**LLAMA, **H100, "active_share": 0.1}
    four = {"tp_size": 4}
    prompts = {"traffic_scenarios": ["D(4000,20)"]}
    assert loss(four, SGLANG, known=mixture, benchmark=prompts) < 0.5 * loss(four, SGLANG, benchmark=prompts)
    for clients, least, most in ((1, 0.2, 0.5), (64, 0.8, 1.0)):
        answers: dict[str, Any] = {
            "benchmark": {"traffic_scenarios": ["D(2,1000)"], "num_concurrency": [clients]},
            "objective": "minimize_tpot",
        }
        assert least < loss(four, SGLANG, known=mixture, **answers) / loss(four, SGLANG, **answers) < most


def test_the_worst_metric_counts_relative_to_its_limit() -> None:
    """Of all levels; a limit twice as high is half as far, and one on what is not estimated says nothing."""
    levels = {"benchmark": {"num_concurrency": [1, 256]}}
    tight, loose = ({"slo": {"tpot_p95_s": limit}, **levels} for limit in (0.02, 0.04))
    four = {"tensor_parallel_size": 4}
    assert expected(four, **tight)[1] == pytest.approx(2 * expected(four, **loose)[1])
    assert expected({"tensor_parallel_size": 8}, **tight)[1] < expected(four, **tight)[1]
    both = {"slo": {"tpot_p95_s": 0.02, "ttft_p95_s": 1e6}, **levels}
    assert expected(four, **both) == expected(four, **tight)
    assert expected(four, slo={"output_tokens_per_s": 100.0})[1] == 1.0
    assert expected(four)[1] == 1.0


@pytest.mark.parametrize("objective", ["minimize_latency", "minimize_ttft", "minimize_tpot", "maximize_requests"])
def test_more_bandwidth_products_and_links_never_make_it_worse(objective: str) -> None:
    """Of any objective."""
    known = {**LLAMA, **H100}
    for name in ("gpu_tflops", "gpu_gb_s", "link_gb_s"):
        better = {**known, name: 2 * known[name]}
        four = {"tensor_parallel_size": 4}
        assert loss(four, known=better, objective=objective) <= loss(four, objective=objective)


@pytest.mark.parametrize("unknown", [*MODEL, *GPU])
def test_nothing_is_expected_of_what_is_not_known(unknown: str) -> None:
    """Neither of a model nor of a GPU."""
    assert roofline(known={name: value for name, value in {**LLAMA, **H100}.items() if name != unknown}) is None


@pytest.mark.parametrize(
    "said",
    [
        {"benchmark": {"traffic_scenarios": ["D(10,10)", "dataset"], "dataset": {"path": "prompts.txt"}}},
        {
            "benchmark": {"task": "text-to-embeddings", "traffic_scenarios": ["E(1024)"]},
            "objective": "maximize_requests",
        },
        {"objective": "weighted", "weights": {"ttft_p95_s": 1.0}},
        {"objective": "maximize_goodput", "slo": {"ttft_s": 1.0}},
    ],
)
def test_nothing_is_expected_of_other_traffic_and_objectives(said: dict[str, Any]) -> None:
    """Where the data decide, where requests are batches, and where several metrics are weighed."""
    assert roofline(**said) is None


def test_an_engine_file_without_it_expects_nothing() -> None:
    """As llama.cpp's, which has no data sheet of its machine."""
    assert load_engine("llamacpp").roofline is None
    bare = Launch(VLLM.engine.model_copy(update={"roofline": None}))
    assert roofline(bare) is None


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_unknown_name_in_an_engine_file_is_refused(engine: str, tmp_path: Path) -> None:
    """With the place."""
    text = (resources.templates() / "engines" / f"{engine}.yaml").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace('\n  memory: "', '\n  memory: "no_such_thing * '))
    with pytest.raises(SpecError, match="roofline: no_such_thing is no parameter of this engine"):
        load_engine(str(file))


def test_what_the_engine_chooses_is_taken_as_typical() -> None:
    """A flag left out counts as its usual value, and one of the runtime as it stands there."""
    assert loss({"tensor_parallel_size": 4}) == loss({"tensor_parallel_size": 4, "gpu_memory_utilization": 0.92})
    runtime = Launch(load_engine("vllm"), ("--tensor-parallel-size", "8"))
    assert loss({}, runtime) == loss({"tensor_parallel_size": 8})


def test_a_config_tells_how_many_experts_work() -> None:
    """By any of the names that models have for it; a dense one says nothing."""
    mixtral = {"num_local_experts": 8, "num_experts_per_tok": 2}
    qwen = {"num_experts": 128, "num_experts_per_tok": 8}
    assert facts.of_config(mixtral)["active_share"] == 0.25
    odd: dict[str, Any]
    for odd in ({"num_experts": [64, 64]}, {"num_experts": "8"}, {"num_experts": 8, "num_experts_per_tok": [1]}):
        assert "active_share" not in facts.of_config({"num_experts_per_tok": 2, **odd})
    assert facts.of_config(qwen)["active_share"] == 0.0625
    assert "active_share" not in facts.of_config({"num_hidden_layers": 2})


def test_nodes_of_several_kinds_have_no_data_sheet() -> None:
    """What is fast on one may be slow on another; their memory is that of the largest."""
    h100 = {"nvidia.com/gpu.memory": "81559", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    l40s = {"nvidia.com/gpu.memory": "46068", "nvidia.com/gpu.product": "NVIDIA-L40S"}
    assert facts.of_nodes({"a": h100, "b": h100})["gpu_tflops"] == 989
    assert facts.of_nodes({"a": h100, "b": l40s}) == {"gpu_gib": pytest.approx(79.6, abs=0.1)}


def test_a_task_may_name_its_gpus_and_its_experts() -> None:
    """Where no cluster tells."""
    task = parse_task(
        {
            "task_name": "t",
            "backend": "local",
            "engine": "vllm",
            "model": {"name": "m", "facts": {"parameters_b": 47, "active_parameters_b": 13}},
            "resources": {"gpu_name": "H100 SXM", "gpu_memory_gib": 79},
        },
        "t",
    )
    found = facts.of_task(task)
    assert found["active_share"] == pytest.approx(13 / 47)
    assert (found["gpu_gib"], found["gpu_tflops"]) == (79, 989)


@pytest.mark.parametrize("parameters", [{"parameters_b": 13, "active_parameters_b": 47}, {"active_parameters_b": 13}])
def test_the_active_parameters_are_some_of_all(parameters: dict[str, float]) -> None:
    """More of them, or of how many is not said, is a mistake."""
    with pytest.raises(SpecError, match="active_parameters_b are some of parameters_b"):
        parse_task({"task_name": "t", "base_runtime": "r", "model": {"name": "m", "facts": parameters}}, "t")


def test_a_config_tells_how_its_weights_are_stored() -> None:
    """In the checkpoint; where it is silent, nothing is made up."""
    for config, stored in (
        ({"torch_dtype": "bfloat16"}, 2.0),
        ({"torch_dtype": "float32"}, 2.0),
        ({"torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}, 1.0),
        ({"torch_dtype": "float16", "quantization_config": {"quant_method": "awq", "bits": 4}}, 0.5),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, None),
        ({}, None),
    ):
        assert facts.of_config(config).get("stored_bytes") == stored
    assert facts.of_base_model({"modelParameterSize": "70B", "quantization": "fp8"})["stored_bytes"] == 1.0
    assert "stored_bytes" not in facts.of_base_model({"modelParameterSize": "70B"})
    odd = {"modelParameterSize": "70B", "quantization": "new", "modelConfiguration": {"torch_dtype": "bfloat16"}}
    assert "stored_bytes" not in facts.of_base_model(odd)
    awq = {"torch_dtype": "float16", "quantization_config": {"quant_method": "awq", "bits": 4}}
    four_bits = facts.of_base_model({"modelParameterSize": "70B", "modelConfiguration": awq})
    assert four_bits["stored_bytes"] == 0.5
    assert four_bits["weights_gib"] == pytest.approx(0.95 * 35e9 / 2**30)


def test_a_quantized_checkpoint_stays_as_it_is() -> None:
    """Naming its format again changes nothing, and four bits are no more products in the same time."""
    half, quarter = ({**LLAMA, **H100, "weights_gib": b * 65.2, "stored_bytes": b} for b in (1.0, 0.5))
    four = {"tensor_parallel_size": 4}
    assert loss({**four, "quantization": "fp8"}, known=half) == loss(four, known=half)
    assert loss({**four, "quantization": "awq_marlin"}, known=quarter) == loss(four, known=quarter)
    prompts: dict[str, Any] = {
        "benchmark": {"num_concurrency": [16], "traffic_scenarios": ["D(8000,2)"]},
        "objective": "maximize_requests",
    }
    assert loss(four, known=quarter, **prompts) > loss(four, **prompts) > loss(four, known=half, **prompts)


def test_what_cannot_start_is_not_expected_to() -> None:
    """By the engine file's rules: heads that do not divide."""
    found = roofline()
    assert found is not None
    assert found.expects({"tensor_parallel_size": 3}) is None
    assert found.expects({"tensor_parallel_size": 4}) is not None


@pytest.mark.parametrize(
    "flags",
    [("--max-num-batched-tokens", "8k"), ("--max-num-seqs", "auto"), ("--gpu-memory-utilization", "$(SHARE)")],
)
def test_flags_of_the_runtime_that_are_no_numbers_harm_nothing(flags: tuple[str, str]) -> None:
    """Nothing is expected of what is started with them."""
    found = roofline(Launch(load_engine("vllm"), flags))
    assert found is not None
    assert found.expects({"tensor_parallel_size": 4}) is None
    zero = roofline()
    assert zero is not None
    assert zero.expects({"tensor_parallel_size": 4, "max_num_batched_tokens": 0}) is None


def test_copies_without_a_request_serve_nothing() -> None:
    """One client keeps one of them busy."""
    one: dict[str, Any] = {"benchmark": {"num_concurrency": [1]}, "objective": "maximize_throughput"}
    four = {"tensor_parallel_size": 4}
    assert loss({**four, "data_parallel_size": 8}, **one) == pytest.approx(loss(four, **one))


def test_gpus_that_a_trial_gets_anyway_are_all_paid() -> None:
    """However many of them an engine uses."""
    four, eight = {"tensor_parallel_size": 4}, {"tensor_parallel_size": 8}
    assert loss(four) < loss(eight)
    assert loss(four, gpus=8) > loss(eight, gpus=8)


def test_experts_are_spread_over_data_parallel_ranks() -> None:
    """So a model that is larger than any GPU starts."""
    large: dict[str, Any] = {"known": {**LLAMA, **H100, "weights_gib": 400.0, "gpu_gib": 140.0, "active_share": 0.1}}
    spread = {"data_parallel_size": 8, "enable_expert_parallel": True}
    found = roofline(**large)
    assert found is not None
    assert found.expects(spread) is not None
    assert found.expects({**spread, "enable_expert_parallel": False}) is None


def test_stages_work_at_the_same_time_on_several_requests() -> None:
    """One alone gains nothing by them; many do."""
    small: dict[str, Any] = {"known": {**LLAMA, **H100, "weights_gib": 60.0}, "objective": "maximize_throughput"}
    one, four = {"tensor_parallel_size": 2}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 4}
    for clients, least, most in ((1, 0.9, 1.1), (64, 2.0, 4.5)):
        load = {"benchmark": {"traffic_scenarios": ["D(4000,50)"], "num_concurrency": [clients]}}
        assert least < loss(one, **small, **load) / loss(four, **small, **load) < most


def test_every_scenario_counts_alike() -> None:
    """Requests of long prompts are as good as those of long answers."""
    each = [{"traffic_scenarios": [text], "num_concurrency": [32]} for text in ("D(100,1000)", "D(8000,2)")]
    both = {"traffic_scenarios": ["D(100,1000)", "D(8000,2)"], "num_concurrency": [32]}
    four, wanted = {"tensor_parallel_size": 4}, "maximize_requests"
    apart = [1 / loss(four, objective=wanted, benchmark=one) for one in each]
    assert 1 / loss(four, objective=wanted, benchmark=both) == pytest.approx(sum(apart) / 2)


def test_one_client_waits_for_nobody_between_its_tokens() -> None:
    """Its own prompt comes before them."""
    one: dict[str, Any] = {"objective": "minimize_tpot"}
    four = {"tensor_parallel_size": 4}
    short, long = (
        loss(four, **one, benchmark={"num_concurrency": [1], "traffic_scenarios": [f"D({n},50)"]}) for n in (10, 4000)
    )
    assert long == pytest.approx(short, rel=0.05)
