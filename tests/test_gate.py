"""What an experiment says to its search, from what its trials left in the folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import FailureClass
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.gate import Course, ExperimentGate
from raytune_autotuner.packing import GpuNode
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.queueing import PlacedQueue
from raytune_autotuner.records import Failure, Parameters, TrialId, TrialRecord, config_hash
from raytune_autotuner.setup import Setup
from raytune_autotuner.site import Local
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import parse_task
from raytune_autotuner.verification import Duel

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


@dataclass
class Nodes:
    """A queue over nodes with four GPUs, or with as many as they are said to have."""

    def never(self, parameters: Parameters) -> str | None:
        return "needs 8 GPUs on one node" if parameters.get("tp_size") == 8 else None

    sizes: dict[str, int] = field(default_factory=dict)

    def kinds(self) -> dict[str, str]:
        return {name: "H100" if name.startswith("h") else "A10" for name in self.sizes}

    def nodes_for(self, *configurations: Parameters) -> tuple[str, ...]:
        most = max(int(each.get("tp_size") or 2) for each in configurations)
        return tuple(name for name, gpus in self.sizes.items() if gpus >= most)


def make_setup(tmp_path: Path, **optimization: Any) -> Setup:
    data = {
        "task_name": "t",
        "backend": "local",
        "engine": "sglang",
        "model": {"name": "m", "path": "m"},
        "runtime": {"args": ["--tp", "2"]},
        "parameters": {
            "mem_frac": {"type": "choice", "values": [0.7, 0.8, 0.9]},
            "tp_size": {"type": "choice", "values": [1, 2, 4, 8]},
        },
        "optimization": optimization,
    }
    task = parse_task(data, "task")
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    return Setup(task, load_engine("sglang"), folder, "", runtime_args=task.runtime.args, facts={"served_name": "m"})


def make_gate(setup: Setup, course: Course | None = None, **sizes: int) -> ExperimentGate:
    return ExperimentGate(setup, cast(PlacedQueue, Nodes(sizes)), course)


def leave(
    setup: Setup,
    number: int,
    parameters: Parameters,
    kind: FailureClass | None,
    reason: str = "why",
    node: str | None = None,
) -> None:
    """As a trial does that has ended."""
    setup.folder.save_record(
        TrialRecord(
            trial=TrialId("search", config_hash(parameters)),
            experiment="exp",
            number=number,
            parameters=parameters,
            outcome="infeasible" if kind else "completed",
            started_at=f"2026-01-01T00:{number:02}:00+00:00",
            failure=Failure(kind, reason, "the log") if kind else None,
            phases={"benchmark": 1.0},
            engine_info={"server": {"mem_fraction_static": 0.9}},
            node=node,
        )
    )


def test_what_must_fail_is_refused_and_recorded(tmp_path: Path) -> None:
    """First what no node can hold, then what a trial has shown in the meantime; the evidence is in the record."""
    setup = make_setup(tmp_path)
    gate = make_gate(setup)
    unfit = gate.problem({"tp_size": 8})
    assert unfit is not None
    assert unfit.kind == "no_fit"
    assert gate.problem({"mem_frac": 0.9, "tp_size": 1}) is None
    leave(setup, 1, {"mem_frac": 0.8}, "out_of_memory", OOM)
    failure = gate.problem({"mem_frac": 0.9, "tp_size": 1})
    assert failure is not None
    assert "mem_frac 0.9 > 0.8, tp_size 1 < 2" in failure.reason
    proposal = Proposal(TrialId("search", "0123456789ab"), 2, {"mem_frac": 0.9, "tp_size": 1}, 0.0)
    gate.refuse(proposal, failure)
    record = setup.folder.record("search-0123456789ab")
    assert record is not None
    assert (record.outcome, record.failure) == ("infeasible", failure)
    leave(setup, 3, {"mem_frac": 0.9}, None)
    assert gate.problem({"mem_frac": 0.9, "tp_size": 1}) is None


class Mixed(Local):
    def gpu_nodes(self) -> Sequence[GpuNode]:  # type: ignore[override]
        return (GpuNode("a", 8, 8, "A10"), GpuNode("b", 8, 8, "H100"))


def test_what_failed_on_one_of_several_kinds_of_gpu_is_not_refused(tmp_path: Path) -> None:
    """Another trial may be given a larger one."""
    setup = replace(make_setup(tmp_path), site=Mixed())
    gate = make_gate(setup)
    leave(setup, 1, {"mem_frac": 0.8}, "out_of_memory", OOM)
    assert gate.problem({"mem_frac": 0.9}) is None


def test_what_comes_to_the_same_is_told(tmp_path: Path) -> None:
    """The baseline's own values, and those that were proposed before."""
    gate = make_gate(make_setup(tmp_path))
    assert gate.same_as({"tp_size": 2}) == {}
    assert gate.same_as({"mem_frac": 0.8, "tp_size": 2}) == {"mem_frac": 0.8, "tp_size": 2}
    assert gate.same_as({"mem_frac": 0.8}) == {"mem_frac": 0.8, "tp_size": 2}


def test_failures_alike_end_the_search_for_good(tmp_path: Path) -> None:
    """It is written into the folder; whoever takes the experiment up again begins to count anew."""
    setup = make_setup(tmp_path, stop_after_identical_failures=3)
    gate = make_gate(setup)
    for number in range(3):
        assert gate.enough() is None
        leave(setup, number, {"mem_frac": 0.7 + number / 10}, "not_ready")
    said = gate.enough()
    assert said is not None
    end = setup.folder.search_end()
    assert end is not None
    assert (end.reason, end.count, end.log_tail) == (said, 3, "the log")
    leave(setup, 4, {"tp_size": 1}, None)
    assert gate.enough() == said
    again = make_gate(setup)
    assert again.enough() is None
    assert setup.folder.search_end() is None


@pytest.mark.parametrize(
    ("now", "stands"),
    [
        ({}, True),
        ({"max_iterations": 30}, False),
        ({"stop_after_hopeless_trials": None}, False),
        ({"strategy": "random"}, False),
    ],
)
def test_a_search_that_settled_stays_so(now: dict[str, Any], stands: bool, tmp_path: Path) -> None:
    """Whoever takes the experiment up again gets no more trials, unless more or others are wanted than there were."""
    setup = make_setup(tmp_path)
    gate = make_gate(setup)
    gate.settled("nothing is left")
    assert gate.enough() == "nothing is left"
    again = make_setup(tmp_path, **now)
    assert make_gate(again).enough() == ("nothing is left" if stands else None)
    end = again.folder.search_end()
    assert (end is not None) is stands
    assert end is None or (end.cause, end.said) == ("settled", "Nothing is left to gain: nothing is left.")


def test_another_space_is_searched_although_the_last_one_settled(tmp_path: Path) -> None:
    """What was left out then may be better than all."""
    setup = make_setup(tmp_path)
    make_gate(setup).settled("nothing is left")
    parameters = {"tp_size": setup.task.parameters["tp_size"]}
    assert make_gate(replace(setup, task=setup.task.model_copy(update={"parameters": parameters}))).enough() is None


@pytest.mark.parametrize("value", ["null", "9"])
def test_the_limit_is_the_users(tmp_path: Path, value: str) -> None:
    """Off with null."""
    setup = make_setup(tmp_path, stop_after_identical_failures=None if value == "null" else 9)
    gate = make_gate(setup)
    for number in range(8):
        leave(setup, number, {"chunked_prefill_size": 1000 + number}, "not_ready")
    assert gate.enough() is None


def confirmed_on(gate: ExperimentGate, winner: Parameters) -> set[str | None]:
    """The nodes on which both sides are to run."""
    asked = gate.confirming(config_hash({}), config_hash(winner))
    sides = [{ask.node for ask in asked if ask.side == side} for side in ("baseline", "winner")]
    assert sides[0] == sides[1]
    return sides[0]


def test_a_winner_is_confirmed_where_it_and_the_baseline_can_run(tmp_path: Path) -> None:
    """Asked of each winner: the next best one may need less; where there is no such node, there is no choice."""
    setup = make_setup(tmp_path)
    for number, tp in enumerate((4, 8, 16)):
        leave(setup, number, {"tp_size": tp}, None, node="n3")
    gate = make_gate(setup, n1=4, n2=4, n3=8)
    assert confirmed_on(gate, {"tp_size": 8}) == {"n3"}
    assert confirmed_on(gate, {"tp_size": 4}) == {"n1", "n2"}
    assert confirmed_on(gate, {"tp_size": 16}) == {None}


def test_a_file_is_verified_where_it_and_the_baseline_can_run(tmp_path: Path) -> None:
    """As a winner is confirmed."""
    setup = make_setup(tmp_path)
    course = make_gate(setup, Duel(setup.task, {"tp_size": 8}), n1=4, n2=4, n3=8).course
    assert course is not None
    assert [wanted.node for wanted in course()] == ["n3"] * 4


class Several(Local):
    def gpu_nodes(self) -> Sequence[GpuNode]:  # type: ignore[override]
        kinds = {"a1": "A10", "h1": "H100", "h2": "H100", "z1": "A10", "z2": "A10"}
        return [GpuNode(name, 8, 8, kind) for name, kind in kinds.items()]


@pytest.mark.parametrize(
    ("found_on", "nodes"), [("h2", {"h1", "h2"}), ("z1", {"a1", "z1"}), (None, {"a1", "z1"}), ("gone", {"a1", "z1"})]
)
@pytest.mark.parametrize("site", [Several(), Local()])
def test_a_winner_is_confirmed_on_gpus_of_one_kind(
    tmp_path: Path, site: Local, found_on: str | None, nodes: set[str]
) -> None:
    """That on which it was found, where that is known; else that of most nodes. Kubernetes or Ray says which it is."""
    setup = replace(make_setup(tmp_path), site=site)
    leave(setup, 1, {"tp_size": 4}, None, node=found_on)
    gate = make_gate(setup, a1=8, h1=8, h2=8, z1=8, z2=8)
    assert confirmed_on(gate, {"tp_size": 4}) == nodes
