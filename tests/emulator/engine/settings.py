"""An engine's parameters in words of its own, to the terms of the performance model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.emulator.engine.profile import Profile, Scalar

Values = Mapping[str, Scalar]
"""Parameters by the names of the engine file; ``None`` where nothing was said."""

KV_BYTES = {"fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "mxfp8": 1.0, "nvfp4": 0.5}
WEIGHT_BYTES = {"float": 4.0, "float32": 4.0}
SGLANG: Values = {
    "tp_size": 1,
    "pp_size": 1,
    "dp_size": 1,
    "mem_frac": 0.88,
    "chunked_prefill_size": 8192,
    "max_prefill_tokens": 16384,
    "schedule_policy": "fcfs",
    "schedule_conservativeness": 1.0,
    "num_continuous_decode_steps": 1,
    "stream_interval": 1,
    "cuda_graph_max_bs": 256,
    "page_size": 1,
    "kv_cache_dtype": "auto",
    "attention_backend": "fa3",
    "dtype": "auto",
}
VLLM: Values = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "gpu_memory_utilization": 0.92,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "scheduling_policy": "fcfs",
    "enable_prefix_caching": True,
    "enable_chunked_prefill": True,
    "async_scheduling": True,
    "stream_interval": 1,
    "block_size": 16,
    "kv_cache_dtype": "auto",
    "max_cudagraph_capture_size": 512,
    "attention_backend": "FLASH_ATTN",
    "optimization_level": 2,
    "performance_mode": "balanced",
    "dtype": "auto",
}
DEFAULTS: Mapping[str, Values] = {"sglang": SGLANG, "vllm": VLLM}
"""What the engines choose on a large GPU; a profile's own defaults go before."""


@dataclass(frozen=True)
class Settings:
    """A configuration as the performance model understands it, for either engine."""

    engine: str
    values: Values
    """All parameters, with the defaults filled in."""
    tp: int
    pp: int
    dp: int
    memory_fraction: float
    max_running: int
    max_queued: int | None
    max_total_tokens: int | None
    context_length: int
    step_tokens: int
    """Prompt tokens (vLLM: all tokens) in one step."""
    chunked: bool
    mixed: bool
    policy: str
    reserve: float
    """Share of a request's remaining answer for which room is kept when it is admitted."""
    graph_batch: int
    """The largest batch captured as a CUDA graph; 0 without any."""
    compiled: bool
    overlap: bool
    steps_per_round: int
    stream_interval: int
    prefix_cache: bool
    quantization: str | None
    weight_bytes: float
    kv_bytes: float
    draft_tokens: int


def settings(profile: Profile, engine: str, values: Values) -> Settings:
    """The configuration that these parameters mean; ``engine`` is ``sglang`` or ``vllm``."""
    said = {name: value for name, value in values.items() if value is not None}
    full = {**DEFAULTS[engine], **profile.defaults.get(engine, {}), **said}  # type: ignore[call-overload]
    return (_sglang if engine == "sglang" else _vllm)(profile, full)


def _sglang(profile: Profile, v: Mapping[str, Any]) -> Settings:
    chunk = int(v["chunked_prefill_size"])
    prefill = int(v["max_prefill_tokens"])
    steps = int(v.get("speculative_num_steps") or 0) if v.get("speculative_algorithm") else 0
    return Settings(
        engine="sglang",
        values=v,
        tp=int(v["tp_size"]),
        pp=int(v["pp_size"]),
        dp=1 if v.get("enable_dp_attention") else int(v["dp_size"]),
        memory_fraction=float(v["mem_frac"]),
        max_running=max(1, int(v.get("max_running_requests") or 2048) // int(v["dp_size"])),
        max_queued=_whole(v.get("max_queued_requests")),
        max_total_tokens=_whole(v.get("max_total_tokens")),
        context_length=int(v.get("context_length") or profile.model.context_length),
        step_tokens=min(chunk, prefill) if chunk > 0 else prefill,
        chunked=chunk > 0,
        mixed=bool(v.get("enable_mixed_chunk")),
        policy=str(v["schedule_policy"]),
        reserve=min(1.0, 0.7 * float(v["schedule_conservativeness"])),
        graph_batch=0 if v.get("disable_cuda_graph") else int(v["cuda_graph_max_bs"]),
        compiled=bool(v.get("enable_torch_compile")),
        overlap=not v.get("disable_overlap_schedule"),
        steps_per_round=int(v["num_continuous_decode_steps"]),
        stream_interval=int(v["stream_interval"]),
        prefix_cache=not v.get("disable_radix_cache"),
        quantization=_text(v.get("quantization")),
        weight_bytes=_weight_bytes(profile, v),
        kv_bytes=KV_BYTES.get(str(v["kv_cache_dtype"]), 2.0),
        draft_tokens=steps,
    )


def _vllm(profile: Profile, v: Mapping[str, Any]) -> Settings:
    eager = bool(v.get("enforce_eager"))
    draft = json.loads(str(v.get("speculative_config") or "{}"))
    blocks = v.get("num_gpu_blocks_override")
    return Settings(
        engine="vllm",
        values=v,
        tp=int(v["tensor_parallel_size"]),
        pp=int(v["pipeline_parallel_size"]),
        dp=int(v["data_parallel_size"]),
        memory_fraction=float(v["gpu_memory_utilization"]),
        max_running=int(v["max_num_seqs"]),
        max_queued=None,
        max_total_tokens=int(blocks) * int(v["block_size"]) if blocks else None,
        context_length=int(v.get("max_model_len") or profile.model.context_length),
        step_tokens=int(v["max_num_batched_tokens"]),
        chunked=bool(v["enable_chunked_prefill"]),
        mixed=True,
        policy=str(v["scheduling_policy"]),
        reserve=0.0,
        graph_batch=0 if eager else int(v["max_cudagraph_capture_size"]),
        compiled=not eager and int(v["optimization_level"]) > 0,
        overlap=bool(v["async_scheduling"]),
        steps_per_round=1,
        stream_interval=int(v["stream_interval"]),
        prefix_cache=bool(v["enable_prefix_caching"]),
        quantization=_text(v.get("quantization")),
        weight_bytes=_weight_bytes(profile, v),
        kv_bytes=KV_BYTES.get(str(v["kv_cache_dtype"]), 2.0),
        draft_tokens=int(draft.get("num_speculative_tokens", 0)),
    )


def _weight_bytes(profile: Profile, v: Mapping[str, Any]) -> float:
    quantization = _text(v.get("quantization"))
    if quantization in profile.quantizations:
        return profile.quantizations[quantization].bytes_per_parameter
    return WEIGHT_BYTES.get(str(v["dtype"]), profile.model.bytes_per_parameter)


def _whole(value: Scalar) -> int | None:
    return int(value) if value is not None else None


def _text(value: Scalar) -> str | None:
    return str(value) if value else None
