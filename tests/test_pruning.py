"""What must fail because something better has: directions of the engine files, evidence, and what makes it void."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import FailureClass, SpecError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.foresight import Case, Ended, Launch, Pruner
from raytune_autotuner.records import Failure, Parameters, TrialId, TrialRecord, config_hash
from raytune_autotuner.storage import Storage

SGLANG, VLLM, LLAMACPP = (load_engine(name) for name in ("sglang", "vllm", "llamacpp"))
LAUNCH = Launch(SGLANG)
SMALL_POOL = "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
NO_KERNEL = "ValueError: this attention backend is not supported with this model"


def failed(parameters: Parameters, reason: str, kind: FailureClass = "out_of_memory", **more: Any) -> Case:
    fields = {"started": False, **more}
    name = f"search-{config_hash(parameters)}"
    return Case(name, parameters, "infeasible", Failure(kind, reason, hint="what to do"), **fields)


def worked(parameters: Parameters) -> Case:
    return Case(f"search-{config_hash(parameters)}", parameters, "completed", rungs=2)


def refused(cases: Sequence[Case], parameters: Parameters, launch: Launch = LAUNCH) -> bool:
    return Pruner(launch, cases).problem(parameters) is not None


def test_more_of_what_ran_out_of_memory_is_not_tried() -> None:
    """OOM at fraction x, tp t and chunk c: what has no less of all, and no more tp, must fail; the evidence is told."""
    oom = failed({"mem_frac": 0.85, "tp_size": 2, "chunked_prefill_size": 4096}, OOM, started=True)
    failure = Pruner(LAUNCH, [oom]).problem({"mem_frac": 0.9, "tp_size": 1, "chunked_prefill_size": 4096})
    assert failure is not None
    assert failure.kind == "pruned"
    assert failure.reason == (
        f"must fail as {oom.trial} did (out_of_memory: {OOM}): mem_frac 0.9 > 0.85, tp_size 1 < 2, all else alike"
    )
    assert failure.hint == "what to do"
    for better in ({"mem_frac": 0.8}, {"tp_size": 4}, {"chunked_prefill_size": 2048}, {"quantization": "fp8"}):
        assert not refused([oom], {"mem_frac": 0.9, "tp_size": 1, "chunked_prefill_size": 8192, **better})


@pytest.mark.parametrize(
    ("nodes", "kinds", "refused"),
    [
        (["small"], {"small": "A10", "small-2": "A10"}, True),
        (["small"], {"small": "A10", "large": "H100"}, False),
        (["small", None], {"small": "A10", "large": "H100"}, False),  # on which it was is not known
        (["small", "large"], {"small": "A10", "large": "H100"}, True),
    ],
)
def test_what_ran_out_of_memory_on_one_kind_of_gpu_is_tried_on_another(
    nodes: list[str | None], kinds: dict[str, str], refused: bool
) -> None:
    """Until it has failed on each; a flag that the engine does not know fails everywhere."""
    cases = [failed({"mem_frac": 0.8 + n / 100}, OOM, node=node) for n, node in enumerate(nodes)]
    assert (Pruner(LAUNCH, cases, kinds).problem({"mem_frac": 0.9}) is not None) is refused
    flag = failed({"mem_frac": 0.9, "quantization": "x"}, "unrecognized arguments: --quantization", "bad_flag")
    assert Pruner(LAUNCH, [flag], kinds).problem({"mem_frac": 0.9, "quantization": "x"}) is not None


def test_two_kinds_of_missing_memory_go_in_two_directions() -> None:
    """A pool too small for the weights fails at any smaller fraction, whatever the chunks are that come later."""
    small = failed({"mem_frac": 0.7, "tp_size": 2, "chunked_prefill_size": 8192}, SMALL_POOL)
    assert refused([small], {"mem_frac": 0.6, "tp_size": 1, "chunked_prefill_size": 1024})
    assert not refused([small], {"mem_frac": 0.8, "tp_size": 2, "chunked_prefill_size": 8192})


def test_no_limit_is_more_than_any() -> None:
    """SGLang's -1 turns chunking off."""
    oom = failed({"mem_frac": 0.85, "chunked_prefill_size": 8192}, OOM, started=True)
    assert refused([oom], {"mem_frac": 0.85, "chunked_prefill_size": -1})
    assert not refused([failed({"mem_frac": 0.85, "chunked_prefill_size": -1}, OOM)], {"mem_frac": 0.85})


def test_what_the_engine_derives_is_not_compared() -> None:
    """Left out, SGLang makes the fraction from the chunk, so a larger chunk comes with a smaller fraction."""
    oom = failed({"chunked_prefill_size": 4096}, OOM, started=True)
    assert not refused([oom], {"chunked_prefill_size": 8192})
    known = Launch(SGLANG, ("--mem-fraction-static", "0.85"))
    assert refused([oom], {"chunked_prefill_size": 8192}, known)
    assert refused([oom], {"chunked_prefill_size": 8192, "mem_frac": 0.9}, known)


def test_the_runtimes_own_flags_are_what_is_left_out() -> None:
    """The baseline's failure speaks of configurations that say its values themselves."""
    launch = Launch(SGLANG, ("--tp", "2", "--mem-frac=0.9"))
    assert refused([failed({}, OOM, started=True)], {"tp_size": 1}, launch)
    assert not refused([failed({}, OOM, started=True)], {"tp_size": 4}, launch)


def test_a_start_does_not_fail_because_of_what_comes_later() -> None:
    """A refused combination is refused whatever the scheduler would have done, unless the message speaks of that."""
    bad = {"attention_backend": "triton", "num_continuous_decode_steps": 1, "page_size": 32}
    other = {**bad, "num_continuous_decode_steps": 8}
    (failure,) = (Pruner(LAUNCH, [failed(bad, NO_KERNEL, "unsupported")]).problem(other),)
    assert failure is not None
    assert "it differs in nothing that counts" in failure.reason
    assert not refused([failed(bad, NO_KERNEL, "unsupported")], {**other, "page_size": 16})
    assert not refused([failed(bad, NO_KERNEL, "unsupported", started=True)], other)
    told = "ValueError: --num-continuous-decode-steps is not supported here"
    assert not refused([failed(bad, told, "unsupported")], other)


def test_a_flag_that_is_refused_is_refused_with_all_others() -> None:
    """What argparse says decides alone; another value may do."""
    said = "launch_server.py: error: argument --schedule-policy: invalid choice: 'hrrn' (choose from 'lpm', 'fcfs')"
    case = failed({"schedule_policy": "hrrn", "tp_size": 1}, said, "bad_flag")
    assert refused([case], {"schedule_policy": "hrrn", "tp_size": 4, "mem_frac": 0.7})
    assert not refused([case], {"schedule_policy": "lpm", "tp_size": 1})
    raw = Launch(SGLANG, raw_flags={"new": "--brand-new"})
    unknown = failed({"new": 1}, "launch_server.py: error: unrecognized arguments: --brand-new 1", "bad_flag")
    assert refused([unknown], {"new": 1, "tp_size": 2}, raw)
    assert not refused([unknown], {"new": None, "tp_size": 2}, raw)


@pytest.mark.parametrize("kind", ["crash", "not_ready", "timeout", "request_errors"])
def test_what_may_be_chance_says_nothing_of_others(kind: FailureClass) -> None:
    """A crash without a known cause may not come again."""
    assert not refused([failed({"stream_interval": 1}, "it broke", kind)], {"stream_interval": 8})


def test_vllm_and_llamacpp_have_their_own_directions() -> None:
    """vLLM's KV cache grows with its share; heads that do not divide decide alone; llama.cpp has a context."""
    none_left = failed({"gpu_memory_utilization": 0.8}, "ValueError: No available memory for the cache blocks.")
    assert refused([none_left], {"gpu_memory_utilization": 0.7}, Launch(VLLM))
    assert not refused([none_left], {"gpu_memory_utilization": 0.9}, Launch(VLLM))
    heads = "ValueError: Total number of attention heads (14) must be divisible by tensor parallel size (4)."
    indivisible = failed({"tensor_parallel_size": 4}, heads, "unsupported")
    assert refused([indivisible], {"tensor_parallel_size": 4, "gpu_memory_utilization": 0.9}, Launch(VLLM))
    assert not refused([indivisible], {"tensor_parallel_size": 8}, Launch(VLLM))
    context = failed({"ctx_size": 8192}, "llama_init: failed to allocate buffer for kv cache")
    assert refused([context], {"ctx_size": 16384}, Launch(LLAMACPP))
    assert not refused([context], {"ctx_size": 0}, Launch(LLAMACPP))


def test_a_success_makes_the_evidence_void() -> None:
    """Where the rule says that it cannot work and it did, the rule does not hold."""
    oom = failed({"mem_frac": 0.85}, OOM, started=True)
    assert refused([oom, worked({"mem_frac": 0.8})], {"mem_frac": 0.95})
    assert not refused([oom, worked({"mem_frac": 0.9})], {"mem_frac": 0.95})
    further = Case("t", {"mem_frac": 0.9}, "stopped", rungs=1)
    assert not refused([oom, further], {"mem_frac": 0.95})


WORLD = {
    "mem_frac": (0.6, 0.7, 0.8, 0.9),
    "tp_size": (1, 2, 4),
    "chunked_prefill_size": (1024, 8192, -1),
    "quantization": (None, "fp8"),
    "schedule_policy": ("fcfs", "lpm"),
}
POINTS: list[Parameters] = [dict(zip(WORLD, row, strict=True)) for row in product(*WORLD.values())]


def outcome(p: Mapping[str, Any], weights_gb: float, activations_gb: float) -> Case:
    """A GPU of 48 GB: weights must fit into the static share, a step's activations into the rest."""
    on_one = weights_gb / p["tp_size"] * (0.5 if p["quantization"] else 1.0)
    chunk = 32768 if p["chunked_prefill_size"] < 0 else p["chunked_prefill_size"]
    if on_one > 48 * p["mem_frac"]:
        return failed(p, SMALL_POOL)
    if activations_gb * chunk / 8192 / p["tp_size"] > 48 * (1 - p["mem_frac"]):
        return failed(p, OOM, started=True, rungs=1)
    return worked(p)


@settings(deadline=None, max_examples=60)
@given(st.floats(5, 150), st.floats(0.2, 40), st.sets(st.integers(0, len(POINTS) - 1), max_size=25))
def test_nothing_that_works_is_pruned_where_the_rules_hold(weights: float, activations: float, seen: set[int]) -> None:
    """Whatever has been seen, in a world that is as the engine file says."""
    pruner = Pruner(LAUNCH, [outcome(POINTS[n], weights, activations) for n in seen])
    for point in POINTS:
        if outcome(point, weights, activations).outcome == "completed":
            assert pruner.problem(point) is None


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.integers(0, len(POINTS) - 1), st.sampled_from(["ok", SMALL_POOL, OOM]), max_size=25))
def test_pruning_is_never_applied_against_a_success(seen: dict[int, str]) -> None:
    """In any world: what stands as evidence covers nothing that worked, and what has worked is not refused."""
    cases = [worked(POINTS[n]) if said == "ok" else failed(POINTS[n], said) for n, said in seen.items()]
    pruner = Pruner(LAUNCH, cases)
    good = [case for case in cases if case.outcome == "completed"]
    for evidence in pruner.evidence:
        assert not any(evidence.covers(LAUNCH.values(case.parameters)) for case in good)
    assert all(pruner.problem(case.parameters) is None for case in good)


def test_half_of_what_must_fail_is_known_from_little() -> None:
    """In that world, a handful of failures says of most of the others that they are none the better."""
    cases = [outcome(point, 60, 6) for point in POINTS]
    bad = [case for case in cases if case.outcome == "infeasible"]
    pruner = Pruner(LAUNCH, cases[:: len(cases) // 20])
    found = [case for case in bad if pruner.problem(case.parameters)]
    assert len(found) > len(bad) / 2


@pytest.mark.parametrize("field", ["worse: {no_such: higher}", "only: [no_such]", "needs: [no_such]"])
def test_a_rule_over_an_unknown_parameter_is_told(tmp_path: Path, field: str) -> None:
    """An engine file of the user's is checked like those that are shipped."""
    content = yaml.safe_load(Path("templates/engines/llamacpp.yaml").read_text())
    content["failures"][0] |= yaml.safe_load(field)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SpecError, match="speaks of no_such, which is no parameter"):
        load_engine(str(tmp_path / "mine.yaml"))


def record(number: int, outcome: Any, kind: FailureClass | None = None) -> TrialRecord:
    failure = Failure(kind, "why") if kind else None
    trial = TrialId("search", f"{number:012}")
    phases = {"queue": 5.0, "deploy": 2.0, "load": 1.0} | ({} if kind else {"benchmark": 4.0})
    moment = "2026-01-01T00:00:00.000+00:00"
    return TrialRecord(trial, "exp", number, {}, outcome, moment, failure=failure, phases=phases, gpus=2)


def test_cases_are_read_as_trials_end(tmp_path: Path) -> None:
    """Once each, but for those that are begun again; the queue is over when a trial starts, so its end is no later."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    ended = Ended(folder)
    assert ended.cases() == ()
    folder.save_record(record(1, "infeasible", "out_of_memory"))
    folder.save_record(record(0, "completed"))
    folder.save_record(record(2, "failed", "infrastructure"))
    assert [(c.number, c.outcome, c.started) for c in ended.cases()] == [
        (0, "completed", True),
        (1, "infeasible", False),
        (2, "failed", False),
    ]
    assert (ended.cases()[0].gpu_s, ended.cases()[0].ended_at) == (14.0, "2026-01-01T00:00:07.000+00:00")
    folder.delete_record(record(2, "failed").trial)
    assert len(ended.cases()) == 2


def test_a_storage_elsewhere_is_not_looked_at_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file there is a request."""
    monkeypatch.setattr(Storage, "is_local", property(lambda self: False))
    now = [0.0]
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    ended = Ended(folder, clock=lambda: now[0])
    assert ended.cases() == ()
    folder.save_record(record(0, "completed"))
    assert ended.cases() == ()
    now[0] = 10.0
    assert len(ended.cases()) == 1
