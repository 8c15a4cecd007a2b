"""What is known of a model and its GPUs before anything is started, as numbers for the rules of the engine files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from raytune_autotuner import resources
from raytune_autotuner.task.spec import ModelFacts, ModelSpec, Resources, Task

GIB = 2**30
Facts = Mapping[str, float]
"""Those of ``engines.engine.FACTS`` and ``SPEEDS``; ``stored_bytes`` of a parameter in the checkpoint, and
``active_share``, which is what a token meets of a mixture's weights. What is not known is left out."""
SPEEDS = ("gpu_tflops", "gpu_gb_s", "link_gb_s", "gpu_fp8")
"""Of one GPU, as its data sheet says (``templates/gpus.yaml``); the last is 1 if it multiplies in FP8, else 0."""

UNEVEN = ("kv_lora_rank", "layers_block_type", "attn_layer_indices")
"""Signs in a model's config that its layers do not all keep keys and values for every token in the usual way."""
ROUNDED = 0.95
"""A size such as 8B may be rounded up."""
SMALLEST = 0.5
"""Bytes of a parameter, when nothing says how it is stored."""
STORED_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 2.0}
"""On a GPU; engines load 32 bits as 16."""
QUANTIZED_BYTES = {"fp8": 1.0, "fbgemm_fp8": 1.0, "int4": 0.5, "mxfp4": 0.5}
"""By what a model's config or OME calls its quantization."""
SIZES = {"T": 1e12, "B": 1e9, "M": 1e6}


def of_task(task: Task) -> dict[str, float]:
    """What the task says, and where it is silent the model's folder, if it lies on this machine."""
    return {**of_folder(task.model), **said(task.model.facts), **of_gpus(task.resources)}


def said(facts: ModelFacts) -> dict[str, float]:
    given = {name: getattr(facts, name) for name in ("layers", "heads", "kv_heads", "head_dim", "max_context")}
    if facts.parameters_b is not None:
        given["weights_gib"] = facts.parameters_b * 1e9 * facts.bytes_per_parameter / GIB
        given["stored_bytes"] = facts.bytes_per_parameter
        if facts.active_parameters_b is not None:
            given["active_share"] = facts.active_parameters_b / facts.parameters_b
    return {name: float(value) for name, value in given.items() if value is not None}


def of_gpus(said: Resources) -> dict[str, float]:
    size = {"gpu_gib": said.gpu_memory_gib} if said.gpu_memory_gib else {}
    return {**of_product(said.gpu_name or ""), **size}


def of_product(name: str) -> dict[str, float]:
    """What the data sheet says of a kind of GPU; nothing where it is not known."""
    plain = re.sub(r"[\s_-]+", " ", name)
    if re.search(r"\bMIG\b", plain, re.IGNORECASE):
        return {}  # a slice of one has its share of everything
    found = next((gpu for gpu in _data_sheets() if re.search(gpu["name"], plain, re.IGNORECASE)), None)
    if found is None:
        return {}
    numbers = (found["tflops"], found["gb_s"], found["link_gb_s"], found.get("fp8", False))
    return dict(zip(SPEEDS, map(float, numbers), strict=True))


@cache
def _data_sheets() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((resources.templates() / "gpus.yaml").read_text(encoding="utf-8"))
    return found


def of_folder(model: ModelSpec) -> dict[str, float]:
    """Of a model in Hugging Face's layout."""
    folder = Path(model.path).expanduser() if model.path else None
    if folder is None or not folder.is_dir():
        return {}
    config = _json(folder / "config.json")
    weights = _weights_bytes(folder)
    halved = 0.5 if _dtype(config) == "float32" else 1.0
    return {**of_config(config), **({"weights_gib": halved * weights / GIB} if weights else {})}


def _weights_bytes(folder: Path) -> float | None:
    """Of the checkpoint that engines load; some folders hold a second one beside it."""
    total = (_json(folder / "model.safetensors.index.json").get("metadata") or {}).get("total_size")
    single = folder / "model.safetensors"
    return float(total) if total else float(single.stat().st_size) if single.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def of_config(config: Mapping[str, Any]) -> dict[str, float]:
    """Of a model's config.json; of several models in one, the one that writes text."""
    text = config.get("text_config") or config
    heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    found = {
        "layers": text.get("num_hidden_layers"),
        "heads": heads,
        "max_context": text.get("max_position_embeddings"),
    }
    if not _is_uneven(text):
        found["kv_heads"] = text.get("num_key_value_heads") or heads
        found["head_dim"] = text.get("head_dim") or (hidden / heads if hidden and heads else None)
    experts = text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts")
    each = text.get("num_experts_per_tok")
    if isinstance(experts, int) and isinstance(each, int) and 0 < each <= experts:
        found["active_share"] = each / experts
    found["stored_bytes"] = _stored_bytes(config)
    return {name: float(v) for name, v in found.items() if isinstance(v, int | float) and v > 0}


def _is_uneven(text: Mapping[str, Any]) -> bool:
    # Qwen's models name a window that they do not use.
    windows = text.get("sliding_window") and text.get("use_sliding_window") is not False
    layers = text.get("layer_types")
    mixed = bool(layers) and (not isinstance(layers, list) or set(map(str, layers)) != {"full_attention"})
    return bool(windows) or mixed or any(text.get(sign) for sign in UNEVEN)


def _stored_bytes(config: Mapping[str, Any]) -> float | None:
    """Of one parameter; ``None`` where the config does not say it."""
    quantized = config.get("quantization_config")
    if not isinstance(quantized, Mapping):
        return STORED_BYTES.get(str(_dtype(config)))
    if isinstance(bits := quantized.get("bits") or quantized.get("w_bit"), int):
        return bits / 8
    return QUANTIZED_BYTES.get(str(quantized.get("quant_method")))


def _dtype(config: Mapping[str, Any]) -> str | None:
    said: str | None = config.get("torch_dtype") or config.get("dtype")
    return said


def of_base_model(spec: Mapping[str, Any]) -> dict[str, float]:
    """Of a (Cluster)BaseModel of OME, as its model agent fills it in."""
    config = spec.get("modelConfiguration") or {}
    size = re.fullmatch(r"([0-9.]+)([TBM])", str(spec.get("modelParameterSize") or ""))
    found = of_config(config)
    if size:
        named = spec.get("quantization")
        stored = QUANTIZED_BYTES.get(str(named)) if named else found.get("stored_bytes")
        found = {name: value for name, value in found.items() if name != "stored_bytes"}
        if stored is not None:
            found["stored_bytes"] = stored
        found["weights_gib"] = ROUNDED * float(size[1]) * SIZES[size[2]] * (stored or SMALLEST) / GIB
    return found


def of_nodes(labels: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """The largest GPU of any node, by the labels that NVIDIA's device plugin sets; its data sheet if all are alike."""
    told = [node.get("nvidia.com/gpu.memory", "") for node in labels.values()]
    sizes = [float(text) / 1024 for text in told if text.isdigit()]  # of MiB
    products = {node.get("nvidia.com/gpu.product", "") for node in labels.values()}
    size = {"gpu_gib": max(sizes)} if sizes and len(sizes) == len(told) else {}
    return {**(of_product(products.pop()) if len(products) == 1 else {}), **size}
