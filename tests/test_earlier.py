"""What a new experiment takes from earlier ones in its storage: times, first points, measurements."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner import earlier, experiment, history, reuse, warm_start
from raytune_autotuner.cli import runs
from raytune_autotuner.earlier import Found, age, recent
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import FailureClass, SpecError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.foresight import Launch, facts
from raytune_autotuner.identity import constant, engine_version, hardware, identity, unlike
from raytune_autotuner.measuring import in_words
from raytune_autotuner.planning.checks import check
from raytune_autotuner.planning.experience import experience
from raytune_autotuner.planning.plan import make_plan
from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Failure, Knee, Parameters, Reused, TrialId, config_hash
from raytune_autotuner.results import load_results
from raytune_autotuner.results_file import document, to_text
from raytune_autotuner.search.ports import Past
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Task, parse_task
from tests.fakes.trials import FakeSetup
from tests.test_feasibility import LLAMA_70B
from tests.test_results import record

PARAMETERS = {"threads": {"type": "choice", "values": [1, 2, 4]}, "parallel": {"type": "int", "low": 1, "high": 8}}


def task(name: str = "t", **changes: Any) -> Task:
    data: dict[str, Any] = {
        "task_name": name,
        "backend": "local",
        "engine": "llamacpp",
        "model": {"name": "gemma-270m", "path": "m.gguf"},
        "parameters": PARAMETERS,
        "optimization": {"objective": "minimize_latency"},
        "benchmark": {"traffic_scenarios": ["D(100,100)"], "rungs": [{"max_requests": 8}, {"max_requests": 40}]},
    }
    return parse_task({**data, **changes}, "task.yaml")


def setup(storage: Path, name: str = "new", of: Task | None = None, **changes: Any) -> FakeSetup:
    folder = ExperimentFolder(Storage(str(storage)), name)
    made = FakeSetup(of or task(), load_engine("llamacpp"), folder, tokenizer="", facts={"served_name": "m"})
    return replace(made, command=("/bin/sh",), **changes)


BEST = {"threads": 4, "parallel": 2}
SECOND = {"threads": 4, "parallel": 8}
DEAD = {"threads": 1, "parallel": 8}


def ended(storage: Path, name: str = "old", of: Task | None = None, **changes: Any) -> FakeSetup:
    """An experiment that is over: a baseline of 23 s, two trials, one that cannot work, and a confirming run."""
    made = setup(storage, name, of, **changes)
    records = [
        record(0, {}, 2.0, purpose="baseline"),
        record(1, SECOND, 1.5),
        record(2, BEST, 1.0),
        record(3, DEAD, 1.0, outcome="infeasible", rungs=0, failure=Failure("crash", "why")),
        record(4, BEST, 1.0, purpose="confirm", rungs=1, repeat=1),
    ]
    for each in records:
        made.folder.save_record(each)
    root = made.folder.root
    root.write("task.json", made.task.model_dump_json())
    root.write("inputs.json", json.dumps({"engine": "llamacpp"}))
    root.write("identity.json", json.dumps(identity(made)))
    root.write("results.json", to_text(document(load_results(made.folder, made.task), {})))
    return made


def test_what_has_ended_is_found_the_latest_first(tmp_path: Path) -> None:
    """Up to a number of them, and never the experiment itself."""
    for name in ("a", "b", "c", "new"):
        ended(tmp_path, name)
    found = recent(Storage(str(tmp_path)), but="new", limit=2)
    assert [each.name for each in found.experiments] == ["c", "b"]
    assert found.experiments[0].best(5) == [BEST, SECOND]
    assert recent(Storage(str(tmp_path / "nowhere"))) == Found()


def test_what_searched_nothing_takes_nobodys_place(tmp_path: Path) -> None:
    """Verifications and what is left of a winner's flags have nothing to learn from; those left unread are counted."""
    for name in ("a", "b", "c", "c-verify-1", "c-verify-2", "c-minimal"):
        made = ended(tmp_path, name)
        if "-" in name:
            made.folder.root.write(experiment.COURSE, "{}")
    found = recent(Storage(str(tmp_path)), but="new", limit=2)
    assert [each.name for each in found.experiments] == ["c", "b"]
    (note,) = found.notes
    assert note == "only the 2 experiments that ended last are read; others that are left unread: 1"
    assert reuse.matches(setup(tmp_path), found).notes[-1] == note
    assert recent(Storage(str(tmp_path)), limit=3).notes == ()


def test_experiments_that_nobody_asked_whether_they_ended_are_left_unread_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many more there may be."""
    monkeypatch.setattr(earlier, "NAMES", 2)
    for name in ("a-20260101-000000", "a-20260102-000000", "a-20260103-000000", "a-20260104-000000"):
        ended(tmp_path, name)
    found = recent(Storage(str(tmp_path)), limit=1)
    assert [each.name for each in found.experiments] == ["a-20260104-000000"]
    assert found.notes[0].endswith("left unread: up to 3")


@pytest.mark.parametrize("damage", ["task.json", "results.json", "identity.json", "inputs.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"all_results": 3}'])
def test_a_damaged_folder_is_left_out_with_a_note(damage: str, text: str, tmp_path: Path) -> None:
    """It fails nothing, and the others are read."""
    ended(tmp_path, "good")
    ended(tmp_path, "bad").folder.root.write(damage, text)
    found = recent(Storage(str(tmp_path)))
    assert "good" in [each.name for each in found.experiments]
    if "bad" not in [each.name for each in found.experiments]:
        (note,) = found.notes
        assert "the earlier experiment bad is left out" in note


def test_the_plan_goes_by_what_was_measured(tmp_path: Path) -> None:
    """Deployments and rungs of the same workload; only deployments of another one; nothing of another model."""
    ended(tmp_path)
    found, engine = recent(Storage(str(tmp_path))), load_engine("llamacpp")
    known = experience(found, task(), engine)
    assert known is not None
    assert (known.trials, known.rungs_s) == (3, ((10.0, 10.0), (20.0, 20.0)))
    assert "times are from 3 earlier trials of old" in next(known.said())
    plan = make_plan(task(), engine, known)
    assert plan.trial_s == (30.0, 30.0)
    other = task(benchmark={"traffic_scenarios": ["D(10,10)"], "model_tokenizer": "x"})
    partly = experience(found, other, engine)
    assert partly is not None
    assert partly.rungs_s == ()
    assert len([a for a in make_plan(other, engine, partly).assumptions if "earlier trials" in a]) == 1
    assert experience(found, task(model={"name": "other", "path": "m.gguf"}), engine) is None
    assert experience(Found(), task(), engine) is None


ON_OME: dict[str, Any] = {"backend": "ome", "engine": "sglang", "base_runtime": "rt", "ome": {"replicas": 2}}


def on_ome(of: Task, *args: str, gpus: str = "H100", image: str = "sglang:1") -> dict[str, Any]:
    return {"of": of, "engine": load_engine("sglang"), "runtime_args": args, "image": image, "hardware": (gpus,)}


def test_times_are_of_the_same_gpus_and_rather_of_the_same_version(tmp_path: Path) -> None:
    """Where both are known; and the plan says what they were measured on."""
    of = task(**ON_OME, parameters={})
    for name, gpus, image in (("b", "H100", "sglang:1"), ("c", "H100", "sglang:2"), ("d", "L40S", "sglang:1")):
        made = ended(tmp_path, name, **on_ome(of, gpus=gpus, image=image))
        made.folder.root.write("inputs.json", json.dumps({"engine": "sglang", "runtime_args": []}))
    found = recent(Storage(str(tmp_path)))

    def chosen(here: Any) -> str:
        known = experience(found, of, load_engine("sglang"), here)
        return known.experiment + known.where if known else ""

    assert chosen({"hardware": ["H100"], "engine version": "sglang:1"}) == "b, on H100, with sglang:1"
    assert chosen({"hardware": ["H100"], "engine version": "sglang:3"}).startswith("c, ")
    assert chosen({"hardware": ["A100"], "engine version": "sglang:1"}) == ""
    assert chosen({"hardware": None}) == chosen(None) == "d, on L40S, with sglang:1"
    known = experience(found, of, load_engine("sglang"))
    assert known is not None
    assert next(known.said()).endswith("old, on L40S, with sglang:1")


@pytest.mark.parametrize(
    ("changes", "gpus", "noted"),
    [
        ({}, (16, 16), "with the flags that the runtime had in old"),
        ({"ome": {"replicas": 3}}, (24, 24), "with the flags that the runtime had in old"),
        ({"base_runtime": "other"}, (2, 2), "without the flags of the runtime"),
    ],
)
def test_the_flags_of_a_runtime_are_known_from_before(
    changes: dict[str, Any], gpus: tuple[int, int], noted: str, tmp_path: Path
) -> None:
    """Of the same runtime, for the plan of a task that cannot read it now."""
    made = ended(tmp_path, **on_ome(task(**ON_OME), "--tp-size", "8"))
    made.folder.root.write("inputs.json", json.dumps(constant(made)))
    new, engine = task(**{**ON_OME, "parameters": {}, **changes}), load_engine("sglang")
    plan = make_plan(new, engine, experience(recent(Storage(str(tmp_path))), new, engine))
    assert plan.gpus == gpus
    assert any(noted in note for note in plan.notes)


def test_a_local_task_says_its_flags_itself(tmp_path: Path) -> None:
    """Those of an earlier one are not its own."""
    of = {"engine": "sglang", "parameters": {}}
    made = ended(tmp_path, **on_ome(task(**of), "--tp-size", "8"))
    made.folder.root.write("inputs.json", json.dumps(constant(made)))
    known = experience(recent(Storage(str(tmp_path))), task(**of), load_engine("sglang"))
    assert known is not None
    assert make_plan(task(**of), load_engine("sglang"), known).gpus == (1, 1)


def test_a_run_plans_with_the_flags_of_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what that costs, and does not begin where the budget does not even pay for one trial of that size."""
    budget = {"objective": "minimize_latency", "budget": {"gpu_hours": 1.0}, "max_iterations": 3}
    of = task(engine="sglang", parameters={"max_running_requests": PARAMETERS["parallel"]}, optimization=budget)
    engine, how = load_engine("sglang"), runs.How(None, dashboard=False, force=False, resume=False, ended_is_ok=False)
    made = setup(tmp_path, of=of, engine=engine, runtime_args=("--tp-size", "64"))
    monkeypatch.setattr("raytune_autotuner.setup.prepare", lambda *args: made)
    assert check(of, engine) == []
    with pytest.raises(SpecError, match=r"optimization\.budget\.gpu_hours: found 1 GPU-hours, and the baseline"):
        runs._run(of, engine, str(tmp_path), "new", how)
    assert re.search(r"GPUs per trial +64 ", capsys.readouterr().out)
    assert not made.folder.root.exists("task.json")


def test_the_search_begins_with_the_engine_and_with_the_best_of_before(tmp_path: Path) -> None:
    """Inside the space of the new task, each once; the same again when it is resumed."""
    ended(tmp_path)
    found = recent(Storage(str(tmp_path)))
    new = setup(tmp_path)
    points = warm_start.begin(new, found)
    assert [p.parameters["parallel"] for p in points] == [8, 2, 2, 8]
    assert [p.parameters for p in points][2:] == [BEST, SECOND]
    assert points[0].why.startswith("llamacpp: throughput")
    assert "number 1 of old" in points[2].why
    space = Space.of(new.task, new.engine)
    assert all(space.point(p.parameters) is not None for p in points)
    assert any(p.free for p in points)
    assert warm_start.begin(new, Found()) == points
    written = [{"parameters": p.parameters, "why": p.why} for p in points]  # by a version that knew no more
    new.folder.root.write(warm_start.FILE, json.dumps(written))
    assert warm_start.load(new.folder) == tuple(replace(p, free=()) for p in points)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimization": {"warm_start": False, "objective": "minimize_latency"}},
        {"optimization": {"strategy": "grid_search", "objective": "minimize_latency"}},
        {"parameters": {}},
    ],
)
def test_nothing_comes_first_where_nothing_should(changes: dict[str, Any], tmp_path: Path) -> None:
    """Switched off, a grid, or nothing to search."""
    ended(tmp_path)
    assert warm_start.first_points(setup(tmp_path, of=task(**changes)), recent(Storage(str(tmp_path)))) == ()


def test_half_of_the_search_is_the_strategy_s_own(tmp_path: Path) -> None:
    """Of four trials two are given: one by the engine, one by what was measured."""
    ended(tmp_path)
    few = setup(tmp_path, of=task(optimization={"objective": "minimize_latency", "max_iterations": 4}))
    points = warm_start.first_points(few, recent(Storage(str(tmp_path))))
    assert [p.why.partition(" ")[0] for p in points] == ["llamacpp:", "number"]


@pytest.mark.parametrize(
    ("changes", "how_far"),
    [
        ({}, 0.0),
        ({"optimization": {"objective": "maximize_throughput"}}, 2.0),
        ({"benchmark": {"traffic_scenarios": ["D(100,100)"], "num_concurrency": [1000]}}, 1.0),
        ({"benchmark": {"traffic_scenarios": ["dataset"], "dataset": {"path": "x.txt"}}}, 1.0),
    ],
)
def test_experiments_are_near_or_far(changes: dict[str, Any], how_far: float, tmp_path: Path) -> None:
    """A weighted sum over what decides which configuration is best."""
    ended(tmp_path)
    (old,) = recent(Storage(str(tmp_path))).experiments
    new = setup(tmp_path, of=task(**changes))
    assert warm_start.distance(new, identity(new), old) == pytest.approx(how_far)
    assert warm_start.distance(new, {}, replace(old, identity={})) == pytest.approx(how_far + 0.5 * (2 + 1))
    assert warm_start.distance(new, identity(new), replace(old, engine="vllm")) == float("inf")


def test_a_configuration_from_elsewhere_is_brought_into_the_space() -> None:
    """The nearest value; what it does not say is as usual, or in the middle where that is unknown; constraints hold."""
    engine = load_engine("llamacpp")
    space = Space.of(task(), engine)
    assert warm_start.projected(engine, space, {"threads": 3.6, "parallel": 99}, {}) == {"threads": 4, "parallel": 8}
    assert warm_start.projected(engine, space, {"threads": True}, {"parallel": (3,)}) == {
        "threads": 2,
        "parallel": 3,
    }
    assert warm_start.projected(engine, space, {"batch_size": 5}, {}) is None
    tight = Space.of(task(constraints=["threads * parallel <= 8"]), engine)
    assert warm_start.projected(engine, tight, {"threads": 4, "parallel": 8}, {}) is None


SGLANG = {
    "tp_size": {"type": "choice", "values": [4, 2, 1]},
    "chunked_prefill_size": {"type": "choice", "values": [1024, 4096, 16384]},
    "max_running_requests": {"type": "choice", "values": [None, 64, 256]},
    "enable_mixed_chunk": {"type": "bool"},
}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), {}),
        (("--chunked-prefill-size", "-1"), {"chunked_prefill_size": 16384}),
        (("--chunked-prefill-size", "5000"), {"chunked_prefill_size": 4096}),
        (
            ("--enable-mixed-chunk", "--max-running-requests", "300"),
            {"enable_mixed_chunk": True, "max_running_requests": 256},
        ),
    ],
)
def test_what_a_start_does_not_say_is_as_the_runtime_has_it_or_as_is_typical(
    args: tuple[str, ...], expected: Parameters
) -> None:
    """A flag that is left out stays so where the task allows it; no limit is the largest number."""
    engine = load_engine("sglang")
    known = engine.parameters["chunked_prefill_size"].model_copy(update={"typical": 900})
    engine = engine.model_copy(update={"parameters": {**engine.parameters, "chunked_prefill_size": known}})
    space = Space.of(task(engine="sglang", parameters=SGLANG), engine)
    found = warm_start.projected(engine, space, {"tp_size": 2}, Launch(engine, args).usual())
    usual = {"chunked_prefill_size": 1024, "max_running_requests": None, "enable_mixed_chunk": False}
    assert found == {"tp_size": 2, **usual, **expected}


def test_no_limit_is_more_than_any_number_but_none_itself() -> None:
    """In a range the highest; a number is not brought to the value that means no limit."""
    engine = load_engine("sglang")
    unlimited = Launch(engine, ("--chunked-prefill-size", "-1")).usual()

    def found(wanted: Parameters, **chunk: Any) -> Any:
        parameters = {"tp_size": {"type": "choice", "values": [1]}, "chunked_prefill_size": chunk}
        space = Space.of(task(engine="sglang", parameters=parameters), engine)
        projected = warm_start.projected(engine, space, {"tp_size": 1, **wanted}, unlimited)
        return projected and projected["chunked_prefill_size"]

    assert found({}, type="int", low=1024, high=8192, step=1024) == 8192
    assert found({}, type="choice", values=[-1, 16384]) == -1
    assert found({"chunked_prefill_size": 4096}, type="choice", values=[-1, 16384]) == 16384


def test_what_vllm_turns_on_itself_is_not_turned_off_by_a_start() -> None:
    """Of a switch with two flags, saying nothing is not the same as off."""
    engine = load_engine("vllm")
    switches = ["enable_prefix_caching", "enable_chunked_prefill", "async_scheduling"]
    searched = {"max_num_seqs": {"type": "int", "low": 1, "high": 9}, **{name: {"type": "bool"} for name in switches}}
    space = Space.of(task(engine="vllm", parameters=searched), engine)
    found = warm_start.projected(engine, space, {"max_num_seqs": 4}, Launch(engine).usual())
    assert found == {"max_num_seqs": 4, **dict.fromkeys(switches, True)}
    found = warm_start.projected(engine, space, {"max_num_seqs": 4}, Launch(engine, ("--no-async-scheduling",)).usual())
    assert found is not None
    assert (found["async_scheduling"], found["enable_prefix_caching"]) == (False, True)


STARTS = """
command: [serve]
gpus: "1"
health: /health
server_engine: vLLM
parameters:
  quantization: {flag: --quantization, type: choice, values: [fp8, awq, int8], help: h}
  size: {flag: --size, type: int, low: 1, high: 64, help: h}
description: d
starts:
  - {description: small, parameters: {quantization: [fp8, awq], size: 4}}
  - {description: as it is, parameters: {size: 16}}
"""


@pytest.mark.parametrize(
    ("values", "first"), [([None, "awq", "fp8"], "fp8"), ([None, "awq"], "awq"), ([None, "int8"], None)]
)
def test_of_several_values_of_a_start_the_first_that_is_searched_counts(
    values: list[str | None], first: str | None, tmp_path: Path
) -> None:
    """Where none of them is, the flag stays out; what equals the baseline is told by the search."""
    (tmp_path / "own.yaml").write_text(STARTS)
    engine = load_engine(own := str(tmp_path / "own.yaml"))
    parameters = {
        "quantization": {"type": "choice", "values": values},
        "size": {"type": "choice", "values": [4, 8, 16]},
    }
    points = warm_start.engine_points(engine, Space.of(task(engine=own, parameters=parameters), engine), {})
    assert [point.parameters for point in points] == [
        {"quantization": first, "size": 4},
        {"quantization": None, "size": 16},
    ]
    assert [point.free for point in points] == [(), ("quantization",)]


def test_a_start_that_arithmetic_speaks_against_is_not_tried(tmp_path: Path) -> None:
    """It is expected to be far behind the best of the space."""
    (tmp_path / "own.yaml").write_text(STARTS)
    engine = load_engine(own := str(tmp_path / "own.yaml"))
    parameters = {"size": {"type": "choice", "values": [4, 8, 16]}}
    space = Space.of(task(engine=own, parameters=parameters), engine)
    for slow, kept in ((16, 4), (4, 16)):
        points = warm_start.engine_points(engine, space, {}, lambda c, slow=slow: (float(c["size"] == slow), 0.0))
        assert [point.parameters["size"] for point in points] == [kept]


def test_a_slow_start_that_keeps_the_slo_is_tried_beside_fast_ones_that_break_it(tmp_path: Path) -> None:
    """Unless others are as fast and keep it; what cannot start is not tried."""
    (tmp_path / "own.yaml").write_text(STARTS)
    engine = load_engine(own := str(tmp_path / "own.yaml"))
    space = Space.of(task(engine=own, parameters={"size": {"type": "choice", "values": [4, 8, 16]}}), engine)

    def kept(of_4: tuple[float, float], of_8: tuple[float, float], of_16: tuple[float, float] | None) -> list[object]:
        told = {4: of_4, 8: of_8, 16: of_16}
        points = warm_start.engine_points(engine, space, {}, lambda c: told[int(str(c["size"]))])
        return [point.parameters["size"] for point in points]

    assert kept((0.0, 0.6), (0.1, 0.5), (1.0, -0.2)) == [4, 16]
    assert kept((0.0, 0.6), (0.1, -0.7), (1.0, -0.9)) == [4]
    assert kept((0.0, 0.6), (0.1, 0.5), None) == [4]


VLLM: dict[str, Any] = {"engine": load_engine("vllm")}
SERVED = {"engine": "vllm", "parameters": {"quantization": {"type": "choice", "values": [None, "fp8"]}}}
H100 = {**LLAMA_70B, "stored_bytes": 2.0, "gpu_gib": 79.6, **facts.of_product("H100 SXM")}


def test_a_search_is_told_what_arithmetic_expects(tmp_path: Path) -> None:
    """Of this model on these GPUs."""
    known = setup(tmp_path, of=task(**SERVED), known=H100, **VLLM)
    expects = experiment._lessons(known, Past(), ()).expects
    assert expects is not None
    plain, short = expects({"tensor_parallel_size": 8}), expects({"tensor_parallel_size": 8, "quantization": "fp8"})
    assert plain is not None
    assert short is not None
    assert short[0] < plain[0]
    assert expects({"tensor_parallel_size": 1}) is None
    assert list(runs._of_arithmetic(known)) == [
        "expected beforehand: what a roofline says of this model, these GPUs and this traffic"
    ]


def test_what_is_not_known_beforehand_is_named(tmp_path: Path) -> None:
    """With what can tell it; where the engine file has no say, nothing is said."""
    fewer = {name: value for name, value in H100.items() if name not in ("kv_heads", "gpu_gb_s")}
    unknown = setup(tmp_path, of=task(**SERVED), known=fewer, **VLLM)
    assert experiment._lessons(unknown, Past(), ()).expects is None
    (line,) = runs._of_arithmetic(unknown)
    assert "not known of the model and its GPUs are kv_heads, gpu_gb_s (model.facts, resources.gpu_name" in line
    sizes = {"traffic_scenarios": ["dataset"], "dataset": {"path": "prompts.txt"}}
    (line,) = runs._of_arithmetic(setup(tmp_path, "data", task(**SERVED, benchmark=sizes), known=H100, **VLLM))
    assert "the size of the requests is not known" in line
    assert list(runs._of_arithmetic(setup(tmp_path, "other"))) == []


def test_a_start_speaks_of_parameters_and_values_of_its_engine(tmp_path: Path) -> None:
    """Each of several values."""
    (tmp_path / "own.yaml").write_text(STARTS.replace("[fp8, awq]", "[fp8, fp4]").replace("{size: 16}", "{sise: 16}"))
    with pytest.raises(SpecError) as caught:
        load_engine(str(tmp_path / "own.yaml"))
    assert "starts: quantization: 'fp4' is not among the values" in str(caught.value)
    assert "starts: sise is no parameter of this engine" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("{size: 16}", "{size: []}", "starts: size: a list without a value"),
        ("{size: 16}", "{size: many}", "starts: size: 'many' is not of type int"),
        ("{size: 16}", "{size: [16, true]}", "starts: size: True is not of type int"),
        ("{size: 16}", "{size: 16.5}", "starts: size: 16.5 is not of type int"),
        ("high: 64", "high: 64, typical: few", "'few' is not of type int"),
        ("high: 64", "high: 64, default: true", "True is not of type int"),
        ("high: 64", "high: 64, default: 4, typical: 8", "leave one out"),
    ],
)
def test_what_a_file_says_of_values_is_of_the_parameters_type(old: str, new: str, fault: str, tmp_path: Path) -> None:
    """Of a start at least one; of what the engine chooses itself, either always or roughly."""
    (tmp_path / "own.yaml").write_text(STARTS.replace(old, new))
    with pytest.raises(SpecError) as caught:
        load_engine(str(tmp_path / "own.yaml"))
    assert fault in str(caught.value)


def test_measurements_are_taken_over_where_everything_is_equal(tmp_path: Path) -> None:
    """As records that cost nothing, say where they are from, and are none of the search's own trials; once."""
    ended(tmp_path)
    new, found = setup(tmp_path), recent(Storage(str(tmp_path)), but="new")
    assert reuse.take_over(new, found) == 3
    assert reuse.take_over(new, found) == 0
    records = new.folder.records()
    assert [r.trial.purpose for r in records] == ["search"] * 3
    assert {r.reused_from.trial for r in records if r.reused_from} == {
        f"search-{config_hash(p)}" for p in (BEST, SECOND, DEAD)
    }
    taken = next(r for r in records if r.parameters == BEST)
    assert (taken.experiment, taken.phases, taken.outcome) == ("new", {}, "completed")
    assert taken.reused_from is not None
    assert (taken.reused_from.experiment, taken.reused_from.held_s) == ("old", 23.0)
    book = load_results(new.folder, new.task).ledger
    assert (book.total, book.saved.reused) == (0.0, 23.0 + 23.0 + 3.0)
    past = history.take_up(new.folder, None)
    assert len(past.ended) == 3
    assert history.searched(new.folder) == 0
    assert len(past.lessons().told) == 3


def test_what_was_taken_over_is_scored_by_the_new_objective(tmp_path: Path) -> None:
    """And by its limits: it is the measurement that is taken over."""
    ended(tmp_path)
    strict = task(optimization={"objective": "minimize_latency", "slo": {"e2e_p99_s": 0.1}})
    new = setup(tmp_path, of=strict)
    reuse.take_over(new, recent(Storage(str(tmp_path)), but="new"))
    assert all(r.score.violation > 0 for r in new.folder.records() if r.score)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "other", "path": "m.gguf"}}, "model: name was gemma-270m and is other"),
        ({"benchmark": {"traffic_scenarios": ["D(9,9)"]}}, "workload: traffic_scenarios was"),
        ({"extra_args": ["--poll", "0"]}, "runtime: arguments was [] and is"),
    ],
)
def test_what_differs_is_told_and_nothing_is_taken_over(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    """In words, for each experiment that there is."""
    ended(tmp_path)
    new, found = setup(tmp_path, of=task(**changes)), recent(Storage(str(tmp_path)), but="new")
    found_matches = reuse.matches(new, found)
    assert found_matches.equal == ()
    (note,) = found_matches.notes
    assert note.startswith("nothing is taken over from old: ")
    assert said in note
    assert reuse.take_over(new, found) == 0
    assert reuse.matches(new, Found()).notes == ("there is no earlier experiment to take anything over from",)


def test_levels_that_were_searched_under_another_slo_are_another_workload(tmp_path: Path) -> None:
    """The SLO decides which level is measured; of given levels it only decides the score."""
    found = []
    for objective in ("maximize_goodput", "minimize_latency"):
        loose, tight = (
            setup(tmp_path, of=task(optimization={"objective": objective, "slo": {"ttft_p99_s": limit}}))
            for limit in (1.0, 0.2)
        )
        found.append("; ".join(unlike(identity(tight), identity(loose))))
    assert found == ['workload: slo was {"ttft_p99_s": 1.0} and is {"ttft_p99_s": 0.2}', ""]


def test_knees_and_notes_come_along(tmp_path: Path) -> None:
    """With the level that the new score holds for."""
    old = ended(tmp_path)
    measured = record(2, BEST, 1.0)
    last = replace(measured.rungs[-1], knees=(Knee("D(1,1)", 8, 10, ()),), notes=("the client was busy",))
    old.folder.save_record(replace(measured, rungs=(*measured.rungs[:-1], last)))
    new = setup(tmp_path)
    reuse.take_over(new, recent(Storage(str(tmp_path)), but="new"))
    taken = next(r for r in new.folder.records() if r.parameters == BEST)
    assert (taken.rungs[-1].knees, taken.rungs[-1].notes) == (last.knees, last.notes)
    assert taken.score is not None
    assert taken.score.at == in_words(last.knees)


@pytest.mark.parametrize(
    ("kind", "changes", "taken"),
    [
        ("quality", {}, True),
        ("quality", {"optimization": {"objective": "minimize_latency", "canary": "none"}}, False),
        ("not_ready", {"ome": {"load_timeout_s": 60}}, True),
        ("not_ready", {"ome": {"load_timeout_s": 61}}, False),
        ("timeout", {"ome": {"load_timeout_s": 61}}, False),
        ("crash", {"ome": {"load_timeout_s": 61}}, True),
    ],
)
def test_a_failure_that_the_task_does_not_know_any_more_is_not_taken_over(
    kind: FailureClass, changes: dict[str, Any], taken: bool, tmp_path: Path
) -> None:
    """By another quality canary, or within less time than there is now."""
    usual = {"backend": "ome", "ome": {"load_timeout_s": 60}} if "ome" in changes else {}
    there, here = task(**usual), task(**{**usual, **changes})
    known = {"image": "engine:1", "hardware": ("H100",)}
    old = ended(tmp_path, of=there, **known)
    old.folder.save_record(record(3, DEAD, 1.0, outcome="infeasible", rungs=0, failure=Failure(kind, "why")))
    new = setup(tmp_path, of=here, **known)
    reuse.take_over(new, recent(Storage(str(tmp_path)), but="new"))
    assert (f"search-{config_hash(DEAD)}" in new.folder.trial_names()) is taken
    assert f"search-{config_hash(BEST)}" in new.folder.trial_names()


def test_another_program_or_one_that_is_not_known_is_another_engine(tmp_path: Path) -> None:
    """Never across engine versions."""
    old = identity(setup(tmp_path))
    other = identity(replace(setup(tmp_path), command=("/bin/cat",)))
    assert any(each.startswith("engine version: was") for each in unlike(other, old))
    unknown = replace(setup(tmp_path), command=("/nowhere/server",))
    assert engine_version(unknown) is None
    assert "engine version is not known here" in list(unlike(identity(unknown), old))
    assert "engine version is not known there" in list(unlike(old, identity(unknown)))


@pytest.mark.parametrize(
    ("image", "known"),
    [
        ("lmsysorg/sglang:v0.5.5", True),
        ("host:5000/sglang", False),
        ("sglang:latest", False),
        ("sglang@sha256:abc", True),
        (None, False),
    ],
)
def test_an_image_is_a_version_when_its_name_stands_for_one_build(
    image: str | None, known: bool, tmp_path: Path
) -> None:
    """And GPUs are known when every node says which it has."""
    ome = parse_task(
        {"task_name": "t", "base_runtime": "r", "model": {"name": "m"}, "benchmark": {"model_tokenizer": "x"}}, "t"
    )
    made = replace(setup(tmp_path, of=ome), image=image, hardware=("H100", "H100"))
    assert (engine_version(made) is not None) is known
    assert hardware(made) == ["H100"]
    assert hardware(replace(made, hardware=("H100", ""))) is None
    assert hardware(replace(made, hardware=())) is None


def test_the_age_is_told_in_the_largest_unit() -> None:
    """Days, hours, minutes."""
    now = datetime.now(timezone.utc)
    spans = {"3 d": timedelta(days=3, hours=1), "5 h": timedelta(hours=5), "20 min": timedelta(minutes=20, seconds=5)}
    assert {age(now - span): said for said, span in spans.items()} == {said: said for said in spans}
    assert age(now) == "1 min"


def test_what_was_taken_over_counts_for_no_trial_of_the_search() -> None:
    """Its lesson does."""
    taken = replace(record(1, BEST, 1.0), reused_from=Reused("old", "search-x", "2026-01-01T00:00:00+00:00", 1.0))
    assert taken.trial == TrialId("search", config_hash(BEST))
    assert len(Past((taken,)).lessons().told) == 1
