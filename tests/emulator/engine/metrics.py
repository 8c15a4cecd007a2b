"""The engines' ``/metrics`` pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tests.emulator.engine.arguments import CommandLine
from tests.emulator.engine.model import Engine

BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)


def page(command: CommandLine, engine: Engine, counts: Mapping[str, float]) -> str:
    """The page; ``counts`` are those of the server."""
    ranks = engine.ranks
    running = sum(len(rank.running) + len(rank.prefilling) for rank in ranks)
    queued = sum(len(rank.waiting) for rank in ranks)
    usage = sum(rank.usage for rank in ranks) / len(ranks)
    retracted = sum(rank.retracted for rank in ranks)
    count: Counter[str] = Counter()
    count.update(counts)
    build = _sglang if command.engine.name == "sglang" else _vllm
    gauges, counters, histograms = build(running, queued, usage, retracted, count)
    label = f'{{model_name="{command.served_name}"}}'
    lines: list[str] = []
    for name, value in gauges.items():
        lines += [f"# TYPE {name} gauge", f"{name}{label} {value}"]
    for name, value in counters.items():
        lines += [f"# TYPE {name} counter", f"{name}_total{label} {value}"]
    for name, what in histograms.items():
        lines += _histogram(name, command.served_name, count, what)
    if command.engine.name == "vllm":
        lines += _cache_info(engine)
    return "\n".join(lines) + "\n"


Numbers = dict[str, float]


def _sglang(
    running: int, queued: int, usage: float, retracted: int, count: Counter[str]
) -> tuple[Numbers, Numbers, dict[str, str]]:
    hits = count["cached"] / count["prompt"] if count["prompt"] else 0.0
    gauges = {
        "sglang:num_running_reqs": running,
        "sglang:num_queue_reqs": queued,
        "sglang:token_usage": round(usage, 4),
        "sglang:cache_hit_rate": round(hits, 4),
    }
    counters: Numbers = {
        "sglang:prompt_tokens": count["prompt"],
        "sglang:generation_tokens": count["generated"],
        "sglang:cached_tokens": count["cached"],
        "sglang:num_requests": count["finished"],
        "sglang:num_retracted_requests": retracted,
    }
    return gauges, counters, {"sglang:time_to_first_token_seconds": "ttft", "sglang:e2e_request_latency_seconds": "e2e"}


def _vllm(
    running: int, queued: int, usage: float, retracted: int, count: Counter[str]
) -> tuple[Numbers, Numbers, dict[str, str]]:
    gauges = {
        "vllm:num_requests_running": running,
        "vllm:num_requests_waiting": queued,
        "vllm:kv_cache_usage_perc": round(usage, 4),
    }
    counters: Numbers = {
        "vllm:prompt_tokens": count["prompt"],
        "vllm:generation_tokens": count["generated"],
        "vllm:prefix_cache_queries": count["prompt"],
        "vllm:prefix_cache_hits": count["cached"],
        "vllm:num_preemptions": retracted,
        "vllm:request_success": count["finished"],
    }
    return gauges, counters, {"vllm:time_to_first_token_seconds": "ttft", "vllm:e2e_request_latency_seconds": "e2e"}


def _histogram(name: str, model: str, count: Counter[str], what: str) -> list[str]:
    lines = [f"# TYPE {name} histogram"]
    for bound in BUCKETS:
        lines.append(f'{name}_bucket{{le="{bound}",model_name="{model}"}} {count[f"{what} {bound}"]}')
    total = count[f"{what} count"]
    lines.append(f'{name}_bucket{{le="+Inf",model_name="{model}"}} {total}')
    lines += [
        f'{name}_sum{{model_name="{model}"}} {count[f"{what} sum"]}',
        f'{name}_count{{model_name="{model}"}} {total}',
    ]
    return lines


def observe(counts: Counter[str], what: str, seconds: float) -> None:
    """Put a value into a histogram's counts."""
    counts[f"{what} count"] += 1
    counts[f"{what} sum"] += seconds  # type: ignore[assignment]
    for bound in BUCKETS:
        counts[f"{what} {bound}"] += seconds <= bound


def _cache_info(engine: Engine) -> list[str]:
    values = engine.plan.settings.values
    labels = {
        "block_size": values["block_size"],
        "cache_dtype": values["kv_cache_dtype"],
        "enable_prefix_caching": bool(values["enable_prefix_caching"]),
        "gpu_memory_utilization": values["gpu_memory_utilization"],
        "num_gpu_blocks": engine.plan.capacity_tokens // int(values["block_size"] or 16),
        "num_gpu_blocks_override": values.get("num_gpu_blocks_override"),
        "prefix_caching_hash_algo": values.get("prefix_caching_hash_algo") or "sha256",
    }
    said = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return ["# TYPE vllm:cache_config_info gauge", f"vllm:cache_config_info{{{said}}} 1.0"]
