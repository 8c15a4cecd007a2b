"""Configurations that are the same to the engine, by their command lines and by what servers say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.foresight import Case, Equals, Launch
from raytune_autotuner.records import Parameters

SGLANG = load_engine("sglang")
RUNTIME = ("--tp", "2", "--mem-frac=0.85", "--enable-mixed-chunk")


def equals(*cases: Case, args: tuple[str, ...] = RUNTIME) -> Equals:
    found = Equals(Launch(SGLANG, args))
    found.add({})
    found.learn(cases)
    return found


def measured(parameters: Parameters, **said: Any) -> Case:
    return Case("t", parameters, "completed", rungs=1, info={"server": said})


@pytest.mark.parametrize(
    "parameters",
    [
        {"tp_size": 2},
        {"mem_frac": 0.85, "tp_size": 2.0},
        {"enable_mixed_chunk": True, "schedule_policy": "fcfs"},
        {"stream_interval": 1, "kv_cache_dtype": "auto", "chunked_prefill_size": None},
        {"disable_radix_cache": False},
    ],
)
def test_what_says_the_same_as_the_runtimes_own_flags_is_the_baseline(parameters: Parameters) -> None:
    """Or the engine's documented default, or leaves out what nobody said."""
    assert equals().same_as(parameters) == {}


@pytest.mark.parametrize(
    "parameters", [{"tp_size": 1}, {"mem_frac": None}, {"enable_mixed_chunk": False}, {"page_size": 1}]
)
def test_what_says_something_else_is_not(parameters: Parameters) -> None:
    """Also where a flag of the runtime is taken away, or its default is the engine's to choose."""
    assert equals().same_as(parameters) == parameters


def test_the_first_of_those_that_are_equal_stands_for_all() -> None:
    """Whatever the order in which its parameters are named."""
    known = equals()
    known.add({"tp_size": 4, "stream_interval": 1})
    assert known.same_as({"stream_interval": None, "tp_size": 4}) == {"tp_size": 4, "stream_interval": 1}


def test_a_flag_that_was_ignored_makes_two_equal() -> None:
    """The server says another backend than it was told: with that one, all else being equal, nothing would change."""
    asked = {"attention_backend": "fa3", "page_size": 16}
    known = equals(measured(asked, attention_backend="triton", page_size=16))
    assert known.same_as({"attention_backend": "triton", "page_size": 16}) == asked
    assert known.same_as({"attention_backend": "triton", "page_size": 32}) != asked
    assert known.same_as({"attention_backend": "flashinfer", "page_size": 16}) != asked


def test_between_two_that_were_cut_to_one_limit_all_are_equal() -> None:
    """One alone may have been halved instead; beyond them nothing is known."""
    one, two = measured({"max_running_requests": 512}, max_running_requests=256), {"max_running_requests": 2048}
    assert equals(one).same_as({"max_running_requests": 256}) == {"max_running_requests": 256}
    known = equals(one, measured(two, max_running_requests=256))
    assert known.same_as({"max_running_requests": 1024}) == {"max_running_requests": 512}
    for other in (256, 4096):
        assert known.same_as({"max_running_requests": other}) == {"max_running_requests": other}
    assert known.same_as({"max_running_requests": 1024, "tp_size": 4})["max_running_requests"] == 1024


def test_what_the_engine_chose_is_known_where_its_reports_can_be_trusted() -> None:
    """That is when it has repeated what it was told; a report of something made from it would not."""
    baseline = measured({}, chunked_prefill_size=8192)
    honest = measured({"chunked_prefill_size": 2048}, chunked_prefill_size=2048)
    halving = measured({"chunked_prefill_size": 4096}, chunked_prefill_size=2048)
    asked = {"chunked_prefill_size": 8192}
    assert equals(baseline).same_as(asked) == asked
    assert equals(baseline, honest).same_as(asked) == {}
    assert equals(baseline, honest, halving).same_as(asked) == asked


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "tp_size": st.sampled_from([1, 2, 4]),
        "mem_frac": st.sampled_from([None, 0.8, 0.85]),
        "schedule_policy": st.sampled_from(["fcfs", "lpm"]),
        "enable_mixed_chunk": st.booleans(),
    },
)


@given(st.lists(VALUES, max_size=8), VALUES)
def test_only_what_has_the_same_command_line_is_equal(before: list[Parameters], asked: Parameters) -> None:
    """As long as no server has said anything."""
    known = equals()
    for parameters in before:
        known.add(parameters)
    found = known.same_as(asked)
    assert known.launch.values(found) == known.launch.values(asked)
    assert found == asked or found in [{}, *before]


def test_what_a_start_without_parameters_comes_to() -> None:
    """By the command line, else by the engine file; a flag that is left out is its default, where it has one."""
    raw = {name: f"--{name}" for name in ("mine", "yours", "on", "list")} | {"under": "--un_der"}
    args = (
        "--block-size",
        "32",
        "-O",
        "3",
        "--kv-cache-dtype",
        "auto",
        "--yours=7",
        "--on",
        "--list",
        "a",
        "b",
        "--un_der",
        "x",
    )
    found = Launch(load_engine("vllm"), args, ("--async_scheduling",), raw).usual()
    expected = {
        "block_size": (32,),
        "optimization_level": (3,),
        "kv_cache_dtype": ("auto", None),
        "async_scheduling": (True,),
        "enforce_eager": (None, False),
        "tensor_parallel_size": (None, 1),
        "enable_prefix_caching": (None, None),
        "max_num_seqs": (None, None),
        "mine": (None, False),
        "yours": ("7", 7, 7.0),
        "on": (True,),
        "list": (),
        "under": ("x",),
    }
    assert {name: found[name] for name in expected} == expected
