"""Searching for a whole Pareto front."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest

from raytune_autotuner import pareto
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.objectives import scalar
from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, Score, TrialId, TrialRecord, config_hash
from raytune_autotuner.search import WORST, Judge, Lessons, make_source
from raytune_autotuner.search.many import sampler
from raytune_autotuner.task.spec import Task, parse_task
from tests.test_pareto import measured

pytest.importorskip("optuna")
OBJECTIVES = ["output_tokens_per_s", "ttft_p99_s"]


def task(**optimization: Any) -> Task:
    data = {
        "task_name": "t",
        "backend": "local",
        "engine": "llamacpp",
        "model": {"name": "m", "path": "m.gguf"},
        "parameters": {n: {"type": "int", "low": 0, "high": 40, "flag": f"--{n}"} for n in ("a", "x1", "x2", "x3")},
        "optimization": {"strategy": "optuna", "objectives": OBJECTIVES, "max_iterations": 24, **optimization},
    }
    return parse_task(data, "task")


def space(of: Task) -> Space:
    return Space.of(of, load_engine("llamacpp"))


def values(parameters: Parameters) -> dict[str, float]:
    """More of ``a`` is more of both, up to 10; from there on only the latency rises."""
    a = parameters["a"]
    assert isinstance(a, int)
    return {"output_tokens_per_s": 10.0 + min(a, 10), "ttft_p99_s": 0.1 + 0.01 * a}


def report_of(parameters: Parameters) -> dict[str, Any]:
    return {"values": values(parameters), "violation": 0.0, "outcome": "completed"}


def searched(of: Task, trials: int = 24) -> list[Parameters]:
    source, seen = make_source(of, space(of)), []
    for n in range(trials):
        parameters = source.propose(f"p{n}")
        assert parameters is not None
        assert isinstance(source, Judge)
        source.hear(parameters, report_of(parameters))
        source.tell(f"p{n}", 0.5)
        seen.append(parameters)
    return seen


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_the_front_is_searched_more_than_the_rest(name: str) -> None:
    """A quarter of the space is on it; more than a third of what comes after the start is."""
    seen = searched(task(sampler=name), 40)
    later = [p["a"] for p in seen[20:]]
    assert sum(1 for a in later if isinstance(a, int) and a <= 10) > len(later) / 3


def test_every_objective_is_told_by_itself() -> None:
    """Not the one number that ASHA and the verdict go by."""
    of = task()
    source: Any = make_source(of, space(of))
    parameters = source.propose("p")
    source.hear(parameters, report_of(parameters))
    source.tell("p", 0.5)
    told = source._searcher._ot_study.trials[0].values
    found = values(parameters)
    assert told == [scalar(-found["output_tokens_per_s"], 0.0), scalar(found["ttft_p99_s"], 0.0)]


def test_what_cannot_work_is_the_worst_in_all() -> None:
    """Also where a rung was measured before it failed; and nothing is learnt from what the infrastructure lost."""
    of = task()
    source: Any = make_source(of, space(of))
    for key, loss in (("p", WORST), ("q", None)):
        parameters = source.propose(key)
        source.hear(parameters, report_of(parameters))
        source.tell(key, loss)
    failed, lost = source._searcher._ot_study.trials[:2]
    assert failed.values == [WORST, WORST]
    assert lost.values is None


def test_of_a_trial_that_was_cut_short_nothing_is_told() -> None:
    """Its short rung measured something else."""
    of = task()
    source: Any = make_source(of, space(of))
    parameters = source.propose("p")
    source.hear(parameters, report_of(parameters) | {"outcome": None})
    source.tell("p", 0.4)
    assert source._searcher._ot_study.trials[0].values is None


def test_it_goes_on_with_what_an_experiment_has_measured() -> None:
    """Each objective, from the records."""
    of = task()
    parameters = {"a": 3, "x1": 0, "x2": 0, "x3": 0}
    lessons = Lessons(told=((parameters, 0.4),), ended=(ended(parameters),))
    source: Any = make_source(of, space(of), lessons)
    assert source._searcher._ot_study.trials[0].values == [scalar(-13.0, 0.0), scalar(0.13, 0.0)]


def ended(parameters: Parameters) -> TrialRecord:
    found = values(parameters)
    record = measured(1, found["output_tokens_per_s"], found["ttft_p99_s"])
    trial = TrialId("search", config_hash(parameters))
    return replace(record, trial=trial, parameters=parameters)


def test_no_trial_is_stopped_early() -> None:
    """What one objective loses, another may win."""
    of = task()
    source = make_source(of, space(of))
    assert isinstance(source, Judge)
    assert source.goes_on({"a": 1})


def test_a_gaussian_process_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything starts."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="PyTorch"):
        sampler(task(sampler="gp"), ())


def test_the_recommended_one_is_on_the_front() -> None:
    """Whoever has the best weighted mean is beaten by nobody."""
    of = task()
    records = [ended({"a": a}) for a in range(20)]
    best = min(records, key=lambda r: score_of(r).loss)
    assert any(p.parameters == best.parameters for p in pareto.front(records, of.optimization).front)


def score_of(record: TrialRecord) -> Score:
    assert record.score is not None
    return record.score
