"""Experiment folders as a real search leaves them, made up in a moment: for looking at, and for tests of what looks.

An emulated SGLang on two nodes of eight GPUs: tensor parallelism trades GPUs for latency, a large memory fraction runs
out of memory, the scheduling policy matters a little. Everything goes through the real storage classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.lock import LOCK, Holder
from raytune_autotuner.metrics import steady, summarise
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import (
    EngineSeries,
    EngineStats,
    Failure,
    Load,
    LoadMetrics,
    Metrics,
    Parameters,
    RequestSamples,
    RungRecord,
    TrialId,
    TrialRecord,
    TrialState,
    config_hash,
)
from raytune_autotuner.results import load_results
from raytune_autotuner.results_file import document, to_text, trials_csv
from raytune_autotuner.sessions import Session
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Task, parse_task

BEGUN = datetime(2026, 11, 20, 8, 0, tzinfo=timezone.utc)
SCENARIO = "D(512,128)"
LEVELS = (1, 8, 32, 64)
NODES = ("gpu-node-a", "gpu-node-b")
GPUS_PER_NODE = 8
LOG_TAIL = """INFO  Load weight begin. avail mem=78.9 GB
INFO  Load weight end. type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=41.2 GB
INFO  KV Cache is allocated. #tokens: 402113
ERROR Capture cuda graph failed: CUDA out of memory. Tried to allocate 2.10 GiB"""


@dataclass(frozen=True)
class Example:
    """What the made-up experiment is like."""

    trials: int = 40
    """Of the search."""
    confirm: int = 3
    """Runs of winner and baseline each, at the end."""
    requests: int = 32
    """Per load; what a folder's size depends on."""
    running: int = 0
    """Trials that have begun and go on; the experiment is then held by this process."""
    seed: int = 0
    name: str = "llama-8b-chat-20261120-080000"
    task: dict[str, Any] = field(default_factory=dict)
    """What the task says otherwise, by section."""
    interrupted: bool = False
    out: bool = False
    """The best one breaks the SLO when it is measured again, and the next best takes its place."""


def task(**sections: Any) -> Task:
    """The task of the example, with sections of it replaced or added to."""
    data: dict[str, Any] = {
        "task_name": "llama-8b-chat",
        "description": "Chat traffic of the support assistant, measured in October.",
        "backend": "ome",
        "engine": "sglang",
        "model": {"name": "llama-3-1-8b-instruct", "namespace": "autotuner"},
        "base_runtime": "srt-llama-3-1-8b-instruct",
        "parameters": {
            "tp_size": {"type": "choice", "values": [1, 2, 4]},
            "mem_fraction_static": {"type": "float", "low": 0.7, "high": 0.95},
            "chunked_prefill_size": {"type": "choice", "values": [2048, 4096, 8192, 16384]},
            "schedule_policy": {"type": "choice", "values": ["lpm", "fcfs", "dfs-weight"]},
            "max_running_requests": {"type": "int", "low": 16, "high": 512, "log": True},
            "enable_mixed_chunk": {"type": "bool"},
        },
        "optimization": {
            "strategy": "bayesian",
            "objective": "maximize_throughput_per_gpu",
            "slo": {"ttft_p99_s": 1.0, "tpot_p99_s": 0.08},
            "max_iterations": 40,
            "scheduler": {"type": "asha"},
            "price_per_gpu_hour": 2.5,
        },
        "benchmark": {
            "traffic_scenarios": [SCENARIO],
            "num_concurrency": list(LEVELS),
            "model_tokenizer": "meta-llama/Llama-3.1-8B-Instruct",
        },
    }
    for name, section in sections.items():
        merged = isinstance(section, dict) and isinstance(data.get(name), dict)
        data[name] = {**data[name], **section} if merged else section
    return parse_task(data, "example")


def build(root: Path | str, example: Example | None = None) -> ExperimentFolder:
    """An experiment folder below ``root``; its task is in it."""
    example = example or Example()
    world = _World(example, task(**example.task))
    folder = ExperimentFolder(Storage(str(root)), example.name)
    records = world.records()
    for record in records:
        for rung in record.rungs:
            folder.save_engine_series(record.trial, rung.rung, engine_series(rung))
        folder.save_record(record)
        folder.save_state(world.ended(record))
    for state in world.open_trials(len(records)):
        folder.save_state(state)
    _write_logs(Path(folder.root.location()), records)
    _write_frame(folder, world)
    return folder


def engine_series(rung: RungRecord) -> EngineSeries:
    """The queue and the cache as they fill while each load runs."""
    ends = np.cumsum([load.duration_s + 1.0 for load in rung.metrics.loads])
    begins = (0.0, *map(float, ends[:-1]))
    loads = tuple((b, f"{m.load.scenario} at {m.load.level}") for b, m in zip(begins, rung.metrics.loads, strict=True))
    seconds = tuple(float(s) for s in np.linspace(0.0, float(ends[-1]), 60).round(1))
    usage = tuple(round(0.8 * (1 - math.exp(-s / 5)), 4) for s in seconds)
    tokens = tuple(round(900.0 * s) for s in seconds)
    queue = tuple(float(sum(3 for begun, _ in loads if begun <= s)) for s in seconds)
    values = {"queue_length": queue, "kv_cache_usage": usage, "generated_tokens": tuple(map(float, tokens))}
    return EngineSeries(seconds, values, loads)


def _write_logs(root: Path, records: list[TrialRecord]) -> None:
    for record in records[:60]:
        tail = record.failure.log_tail if record.failure else "INFO The server is fired up and ready to roll!"
        (root / "trials" / record.trial.name / "engine.log").write_text(tail + "\n", encoding="utf-8")


def _write_frame(folder: ExperimentFolder, world: _World) -> None:
    """What lies around the trials: task, environment, sessions, and a lock or results."""
    root, running = folder.root, bool(world.example.running)
    root.write("task.json", world.task.model_dump_json(indent=1))
    root.write("inputs.json", to_text({"engine": "sglang", "runtime_args": ["--tp-size", "1"]}))
    root.write("environment.json", to_text(ENVIRONMENT))
    ended = None if running else (world.now + timedelta(seconds=30)).isoformat()
    session = Session(1, "tuner-0", "0.1.0", world.begun.isoformat(), ended)
    root.write("sessions/0001.json", to_text(asdict(session)))
    if world.example.interrupted:
        root.write("stop", "")
    if running:
        folder.save_waiting({"search-0123456789ab": "4 GPUs on one node; gpu-node-b has 3 free"})
        root.write(LOCK, to_text(asdict(Holder.me())))
        return
    results = load_results(folder, world.task)
    elapsed_s = (world.now - world.begun).total_seconds()
    root.write("results.json", to_text(document(results, {"elapsed_time": elapsed_s, "versions": ENVIRONMENT})))
    root.write("trials.csv", trials_csv(results))


ENVIRONMENT = {
    "raytune_autotuner": "0.1.0",
    "python": "3.11.9",
    "host": "tuner-0",
    "machine": "x86_64",
    "system": "Linux-6.8.0-x86_64-with-glibc2.39",
    "cpus": 16,
    "load_average": [1.2, 0.9, 0.7],
    "packages": {"ray": "2.60.0", "genai-bench": "0.0.5", "hyperopt": "0.3.0", "numpy": "2.4.6", "scipy": "1.17.0"},
    "engine": "sglang",
    "tokenizer": "meta-llama/Llama-3.1-8B-Instruct",
}


class _World:
    """Time passes and GPUs are taken while trials are made."""

    def __init__(self, example: Example, task: Task) -> None:
        self.example = example
        self.task = task
        self.rng = np.random.default_rng(example.seed)
        self.begun = BEGUN
        if example.running:
            self.begun = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(minutes=3 * example.trials + 20)
        self.free_at = {node: [self.begun] * GPUS_PER_NODE for node in NODES}
        self.now = self.begun

    def records(self) -> list[TrialRecord]:
        made = [self._trial(TrialId("baseline", config_hash({})), 0, {})]
        for number in range(1, self.example.trials + 1):
            parameters = self._sample(number)
            made.append(self._trial(TrialId("search", config_hash(parameters)), number, parameters))
        return made + list(self._confirming(made))

    def ended(self, record: TrialRecord) -> TrialState:
        seconds = sum(s for phase, s in record.phases.items() if phase != "queue")
        at = datetime.fromisoformat(record.started_at) + timedelta(seconds=seconds)
        return replace(self._state(record, "ended", ""), outcome=record.outcome, updated_at=at.isoformat())

    def open_trials(self, ended: int) -> Iterator[TrialState]:
        """Trials in the midst of something, the last one still waiting."""
        steps = (("benchmark", ""), ("load", "waiting for /health_generate"), ("deploy", "pulling"), ("queue", ""))
        for i in range(self.example.running):
            phase, detail = steps[i % len(steps)]
            parameters = self._sample(ended + i)
            record = self._trial(TrialId("search", config_hash(parameters)), ended + i, parameters)
            phases = {"queue": 5.0} if phase == "queue" else {"queue": 5.0, "deploy": 20.0 + i}
            record = replace(record, rungs=record.rungs[: i % 2], score=None, phases=phases)
            yield self._state(record, phase, detail)

    def _state(self, record: TrialRecord, phase: str, detail: str) -> TrialState:
        return TrialState(
            trial=record.trial,
            number=record.number,
            parameters=record.parameters,
            phase=phase,
            detail=detail,
            rung=len(record.rungs),
            total_rungs=record.total_rungs,
            started_at=record.started_at,
            updated_at=record.started_at,
            score=record.rungs[-1].score if record.rungs else None,
            phases=record.phases,
            node=record.node,
            gpus=record.gpus,
        )

    def _sample(self, number: int) -> Parameters:
        rng, good = self.rng, number > 12 and self.rng.random() < 0.6
        return {
            "tp_size": int(rng.choice([1, 2] if good else [1, 2, 4])),
            "mem_fraction_static": round(float(rng.uniform(0.84, 0.91) if good else rng.uniform(0.7, 0.95)), 3),
            "chunked_prefill_size": int(rng.choice([4096, 8192] if good else [2048, 4096, 8192, 16384])),
            "schedule_policy": str(rng.choice(["lpm", "fcfs", "dfs-weight"])),
            "max_running_requests": int(2 ** rng.uniform(6 if good else 4, 9)),
            "enable_mixed_chunk": bool(rng.random() < 0.5),
        }

    def _trial(self, trial: TrialId, number: int, parameters: Parameters) -> TrialRecord:
        gpus = int(parameters.get("tp_size") or 1)
        node, started = self._place(gpus)
        failure, outcome, reached = self._fate(trial, number, parameters)
        first = 1 if trial.purpose == "confirm" else 0
        rungs = tuple(self._rung(index, parameters, gpus) for index in range(first, reached))
        total = 2 - first
        phases = self._phases(rungs, failure)
        held_s = sum(s for phase, s in phases.items() if phase != "queue")
        self._take(node, gpus, started, held_s)
        completed = len(rungs) == total
        return TrialRecord(
            trial=trial,
            experiment=self.example.name,
            number=number,
            parameters=parameters,
            outcome="completed" if completed else outcome,
            started_at=started.isoformat(),
            rungs=rungs,
            total_rungs=total,
            score=rungs[-1].score if completed else None,
            failure=failure,
            argv=("python3", "-m", "sglang.launch_server", *_flags(parameters)),
            gpus=gpus,
            phases=phases,
            engine_info={"version": "0.5.4", "tp_size": gpus},
            differences=("max_running_requests: asked 512, runs 384",) if number == 7 else (),
            node=node,
        )

    def _fate(self, trial: TrialId, number: int, parameters: Parameters) -> tuple[Failure | None, Any, int]:
        """Why it failed, its outcome, and up to which rung it came."""
        fraction, chunk = parameters.get("mem_fraction_static"), parameters.get("chunked_prefill_size")
        if trial.purpose != "search":
            return None, "completed", 2
        if float(fraction or 0) + float(chunk or 0) / 400_000 > 0.925:
            hint = "lower mem_fraction_static or the largest captured batch (cuda_graph_max_bs)"
            return Failure("out_of_memory", "CUDA out of memory", LOG_TAIL, hint), "infeasible", 0
        if number % 23 == 11:
            tail = "Traceback (most recent call last):\nAssertionError: mixed chunk needs chunked prefill"
            return Failure("unsupported", "AssertionError: mixed chunk needs chunked prefill", tail), "infeasible", 0
        if number % 29 == 17:
            return (
                Failure("request_errors", "7 % of the requests failed: HTTP 503", "503 queue is full"),
                "infeasible",
                1,
            )
        if number % 37 == 5:
            return Failure("infrastructure", "the node gpu-node-b was lost"), "failed", 0
        if self._capacity(parameters, 1) < 1500 * (0.9 + 0.4 * self.rng.random()):
            return None, "stopped", 1
        return None, "completed", 2

    def _capacity(self, parameters: Parameters, noise: float) -> float:
        """Output tokens/s of all its GPUs when saturated."""
        tp = int(parameters.get("tp_size") or 1)
        fraction = float(parameters.get("mem_fraction_static") or 0.82)
        chunk = math.log2(float(parameters.get("chunked_prefill_size") or 4096)) - 12.3
        batch = float(parameters.get("max_running_requests") or 48)
        policy = {"lpm": 1.05, "dfs-weight": 1.02}.get(str(parameters.get("schedule_policy")), 1.0)
        mixed = 1.04 if parameters.get("enable_mixed_chunk") else 1.0
        scale = {1: 1.0, 2: 1.86, 4: 3.2}[tp]
        return (
            2300 * scale * (0.4 + 0.7 * fraction) * math.exp(-0.06 * chunk**2) * batch / (batch + 40) * policy * mixed
        )

    def _rung(self, index: int, parameters: Parameters, gpus: int) -> RungRecord:
        levels = LEVELS if index else (max(LEVELS),)
        loads = tuple(self._load(level, parameters, self.example.requests * (1 + index)) for level in levels)
        traffic_s = sum(load.duration_s for load in loads)
        metrics = Metrics(index, loads, traffic_s=traffic_s, client_overhead_s=0.2)
        wanted = Context(gpus, self.task.optimization)
        usage = min(0.99, 0.3 + 0.01 * gpus + float(self.rng.normal(0.4, 0.05)))
        values = {
            "queue_length_mean": 3.1 * (index + 1) + float(self.rng.random()),
            "queue_length_max": 24.0,
            "kv_cache_usage_mean": usage,
            "kv_cache_usage_max": min(1.0, usage + 0.1),
            "cache_hit_rate_mean": 0.12,
            "cache_hit_rate_max": 0.2,
            "generated_tokens": 128.0 * sum(load.completed for load in loads),
        }
        return RungRecord(index, metrics, score(metrics, wanted), traffic_s + 2.0, EngineStats(30, values))

    def _load(self, level: int, parameters: Parameters, requests: int) -> LoadMetrics:
        tp = int(parameters.get("tp_size") or 1)
        capacity = self._capacity(parameters, 1) * float(self.rng.normal(1, 0.012))
        alone = 130.0 * {1: 1.0, 2: 1.6, 4: 2.3}[tp]
        rate = 1 / (1 / (alone * level) + 1 / capacity)
        requests = max(requests, 2 * level)
        tokens = 128.0
        e2e_mean = level * tokens / rate
        crowd = max(0.0, level - float(parameters.get("max_running_requests") or 48)) / 130
        ttft_mean = (0.05 + 0.004 * level + crowd) / (0.6 + 0.4 * tp)
        jitter = self.rng.lognormal(0, 0.25, requests)
        ttft = ttft_mean * jitter * (1 + 0.6 * self.rng.random(requests))
        tpot = np.maximum(0.002, (e2e_mean - ttft_mean) / (tokens - 1) * self.rng.normal(1, 0.05, requests))
        e2e = ttft + tpot * (tokens - 1)
        samples = RequestSamples(
            ttft_s=tuple(map(float, ttft.round(4))),
            tpot_s=tuple(map(float, tpot.round(5))),
            e2e_s=tuple(map(float, e2e.round(4))),
            input_tokens=(512.0,) * requests,
            output_tokens=(tokens,) * requests,
        )
        kept = steady(samples, level)
        return LoadMetrics(
            load=Load(SCENARIO, level),
            concurrency=level,
            completed=requests,
            errors=0,
            duration_s=float(sum(e2e) / level),
            values=summarise(kept, level, 0.0),
            samples=kept,
        )

    def _phases(self, rungs: tuple[RungRecord, ...], failure: Failure | None) -> dict[str, float]:
        jitter = float(self.rng.uniform(0.8, 1.3))
        phases = {"queue": round(8 * jitter, 3), "deploy": round(24 * jitter, 3), "load": round(55 * jitter, 3)}
        if rungs:
            phases["warmup"] = 4.0
            phases["benchmark"] = round(sum(rung.metrics.traffic_s for rung in rungs), 3)
            phases["client"] = round(0.4 * len(rungs), 3)
            phases["idle"] = 0.3
        return {**phases, "teardown": round(9 * jitter, 3)}

    def _place(self, gpus: int) -> tuple[str, datetime]:
        """The node that has so many GPUs first, and when."""
        ready = {node: sorted(times)[gpus - 1] for node, times in self.free_at.items()}
        node = min(ready, key=lambda name: ready[name])
        return node, ready[node] + timedelta(seconds=float(self.rng.uniform(0.5, 3)))

    def _take(self, node: str, gpus: int, started: datetime, held_s: float) -> None:
        until = started + timedelta(seconds=held_s)
        self.free_at[node] = [*([until] * gpus), *sorted(self.free_at[node])[gpus:]]
        self.now = max(self.now, until)

    def _confirming(self, made: list[TrialRecord]) -> Iterator[TrialRecord]:
        """The winner and the baseline again, in turn."""
        best = [r for r in made if r.trial.purpose == "search" and r.score and not r.score.violation]
        best.sort(key=lambda r: r.score.loss if r.score else 0.0)
        if not best:
            return
        number = len(made)
        if self.example.out:
            yield _broken(self._again(best.pop(0).parameters, 1, number))
            number += 1
        pairs = [best[0].parameters if (i + i // 2) % 2 else {} for i in range(2 * self.example.confirm)]
        yield from (self._again(parameters, i // 2 + 1, number + i) for i, parameters in enumerate(pairs))

    def _again(self, parameters: Parameters, repeat: int, number: int) -> TrialRecord:
        self.free_at = {node: [self.now] * GPUS_PER_NODE for node in NODES}
        return self._trial(TrialId("confirm", config_hash(parameters), repeat), number, parameters)


def _broken(record: TrialRecord) -> TrialRecord:
    """The same, but its last rung broke the SLO."""
    *before, last = record.rungs
    score = replace(last.score, violation=0.2, worst="ttft_p99_s 1.2, limit <= 1")
    return replace(record, rungs=(*before, replace(last, score=score)), score=score)


def _flags(parameters: Parameters) -> Iterator[str]:
    yield from ("--model-path", "/models/llama-3-1-8b-instruct", "--host", "0.0.0.0", "--port", "8080")
    for name, value in parameters.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif value not in (False, None):
            yield from (flag, str(value))
