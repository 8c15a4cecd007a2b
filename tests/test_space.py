"""The space maps a searcher's points to configurations, and back, and samples grids evenly."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.checks import load_checked
from raytune_autotuner.planning.space import MAX_CANDIDATES, MAX_SPREAD, Dimension, Space
from raytune_autotuner.task.parameters import Boolean, Choice, FloatRange, IntRange
from raytune_autotuner.task.spec import parse_task

ENGINE = load_engine("sglang")
SIMPLE = Path(__file__).parent.parent / "configs" / "simple_task.json"


def space(parameters: dict[str, Any], constraints: tuple[str, ...] = (), presets: tuple[str, ...] = ()) -> Space:
    data = {"task_name": "t", "model": {"name": "m"}, "parameters": parameters}
    return Space.of(parse_task({**data, "constraints": list(constraints), "presets": list(presets)}, "t"), ENGINE)


def choice(*values: Any, **more: Any) -> dict[str, Any]:
    return {"type": "choice", "values": list(values), **more}


def test_names_are_the_engines() -> None:
    """An alias becomes the engine's name, also in conditions and constraints; a raw flag keeps its own."""
    s = space(
        {
            "tp": choice(1, 2),
            "mem_fraction_static": choice(0.5, 0.6, when="tensor_parallel_size > 1"),
            "mine": choice(1, 2, flag="--mine"),
        },
        ("tp * mine < 4",),
    )
    assert list(s.parameters) == ["tp_size", "mem_frac", "mine"]
    assert s.configuration({"tp_size": 0, "mem_frac": 0, "mine": 0}) == {"tp_size": 1, "mine": 1}
    assert s.configuration({"tp_size": 1, "mem_frac": 1, "mine": 0}) == {"tp_size": 2, "mem_frac": 0.6, "mine": 1}
    assert s.problem({"tp_size": 2, "mine": 2}) == "the constraint `tp * mine < 4` does not hold with mine=2, tp=2"


def test_a_part_is_what_the_space_has_of_given_values() -> None:
    """Of several that come to the same, the first; without what depends on something that is not known."""
    s = space(
        {
            "tp_size": choice(1, 2),
            "page_size": choice(1, 16, when="tp_size > 1"),
            "enable_mixed_chunk": {"type": "bool"},
            "quantization": choice(None, "fp8"),
        }
    )
    given = {"page_size": (16,), "enable_mixed_chunk": (None, False), "quantization": (None, "fp8"), "dp_size": (4,)}
    rest = {"enable_mixed_chunk": False, "quantization": None}
    assert s.part({"tp_size": (2,), **given}) == {"tp_size": 2, "page_size": 16, **rest}
    assert s.part({"tp_size": (1,), **given}) == {"tp_size": 1, **rest}
    assert s.part({"tp_size": (4,), **given}) == rest
    assert s.part({"enable_mixed_chunk": (None,)}) == {}


def test_dimensions() -> None:
    """A choice is an index, a range a number in the unit interval; the size counts the values."""
    s = space(
        {
            "tp_size": choice(1, 2, 4),
            "enable_mixed_chunk": {"type": "bool"},
            "page_size": {"type": "int", "low": 1, "high": 9, "step": 2},
            "mem_frac": {"type": "float", "low": 0.5, "high": 0.9},
        }
    )
    assert s.dimensions == (
        Dimension("tp_size", "choice", 3),
        Dimension("enable_mixed_chunk", "choice", 2),
        Dimension("page_size", "unit", 5),
        Dimension("mem_frac", "unit", 0),
    )
    assert s.size() is None


def test_values_keep_their_types() -> None:
    """What the user wrote is what the engine gets: an int stays an int, null stays null."""
    values = (1, 1.0, "1", True, None)
    s = space({"mine": choice(*values, flag="--mine")})
    got = [s.configuration({"mine": n})["mine"] for n in range(5)]
    assert [(type(v), v) for v in got] == [(type(v), v) for v in values]
    assert [s.point({"mine": v}) for v in values] == [{"mine": n} for n in range(5)]


def test_own_parameters_win_over_presets() -> None:
    """A preset's parameters are searched as well, but the task's own values are kept."""
    s = space({"tp": choice(1)}, presets=("parallelism", "memory"))
    own = s.parameters["tp_size"]
    assert isinstance(own, Choice)
    assert own.values == (1,)
    assert {"dp_size", "mem_frac"} <= set(s.parameters)


def test_conditions_hang_on_each_other() -> None:
    """A parameter is left out with the one that its condition speaks of, whatever their order in the file."""
    s = space(
        {
            "page_size": choice(1, when="dp_size == 2"),
            "dp_size": choice(1, 2, when="tp_size == 2"),
            "tp_size": choice(1, 2),
        }
    )
    assert s.configuration({"page_size": 0, "dp_size": 1, "tp_size": 0}) == {"tp_size": 1}
    assert s.configuration({"page_size": 0, "dp_size": 1, "tp_size": 1}) == {"page_size": 1, "dp_size": 2, "tp_size": 2}
    assert s.grid(100)[0] == (
        {"tp_size": 1},
        {"dp_size": 1, "tp_size": 2},
        {"page_size": 1, "dp_size": 2, "tp_size": 2},
    )
    assert s.point({"tp_size": 1}) == {"page_size": 0, "dp_size": 0, "tp_size": 0}
    assert s.point({"tp_size": 1, "dp_size": 1}) is None
    assert s.point({"tp_size": 2}) is None


def test_a_circle_of_conditions_is_refused() -> None:
    """Two parameters that wait for each other have no order."""
    with pytest.raises(SpecError, match=r"parameters\.\w+\.when: depends on itself"):
        space({"tp_size": choice(1, when="dp_size > 1"), "dp_size": choice(1, when="tp_size > 1")})


def test_conditions_and_constraints_on_null() -> None:
    """A condition can ask for null; where null has no order it does not hold, and a constraint is skipped."""
    s = space(
        {
            "tp_size": choice(None, 2),
            "page_size": choice(1, when="tp_size == null"),
            "dp_size": choice(1, when="tp_size > 1"),
        },
        ("tp_size > 2",),
    )
    assert s.configuration({"tp_size": 0, "page_size": 0, "dp_size": 0}) == {"tp_size": None, "page_size": 1}
    assert s.configuration({"tp_size": 1, "page_size": 0, "dp_size": 0}) == {"tp_size": 2, "dp_size": 1}
    assert s.problem({"tp_size": None}) is None
    assert s.problem({}) is None
    assert s.problem({"tp_size": 2}) == "the constraint `tp_size > 2` does not hold with tp_size=2"
    assert "no order" in str(s.problem({"tp_size": "x"}))


def test_a_constraint_without_names() -> None:
    """A constraint that is never true says so."""
    assert space({"tp_size": choice(1)}, ("1 > 2",)).problem({}) == "the constraint `1 > 2` does not hold"


def test_the_simple_grid_is_sampled_evenly() -> None:
    """4 of the 16 points show every value of every parameter twice, and no two points agree in more than half."""
    s = Space.of(*load_checked(SIMPLE))
    points, total = s.grid(4)
    assert (s.size(), total, len(points)) == (16, 16, 4)
    for name in s.parameters:
        assert sorted(Counter(point[name] for point in points).values()) == [2, 2]
    agree = [sum(a[n] == b[n] for n in a) for i, a in enumerate(points) for b in points[:i]]
    assert max(agree) <= 2
    assert s.grid(4) == s.grid(4)


def test_a_whole_grid_is_in_order() -> None:
    """Within the limit every point is there once, in the order of the file."""
    s = space({"tp_size": choice(1, 2), "page_size": {"type": "int", "low": 1, "high": 3}})
    points, total = s.grid(6)
    assert total == 6
    assert [tuple(p.values()) for p in points] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]


def test_one_long_range_is_covered() -> None:
    """A range longer than the limit is seen in all its parts."""
    s = space({"page_size": {"type": "int", "low": 1, "high": 100}, "tp_size": choice(1, 2)})
    points, _ = s.grid(10)
    assert sorted((int(p["page_size"]) - 1) // 10 for p in points) == list(range(10))  # type: ignore[arg-type]
    assert Counter(p["tp_size"] for p in points) == {1: 5, 2: 5}


def test_constraints_thin_the_grid() -> None:
    """Points that break a constraint are neither counted nor chosen."""
    s = space({"tp_size": choice(1, 2, 4, 8), "dp_size": choice(1, 2, 4, 8)}, ("tp_size * dp_size == 8",))
    assert s.grid(2)[1] == 4
    assert all(p["tp_size"] * p["dp_size"] == 8 for p in s.grid(3)[0])  # type: ignore[operator]


def test_an_astronomic_grid_is_sampled() -> None:
    """A grid too large to be looked at is sampled, and its feasible size estimated."""
    ranges = {f"p{n}": {"type": "int", "low": 0, "high": 99, "flag": f"--p{n}"} for n in range(6)}
    s = space(ranges, ("p0 < 50",))
    points, total = s.grid(8)
    assert s.size() == 100**6
    assert len(points) == 8
    assert total == pytest.approx(100**6 / 2, rel=0.05)
    assert all(p["p0"] < 50 for p in points)  # type: ignore[operator]
    assert sorted(int(p["p1"]) * 8 // 100 for p in points) == list(range(8))  # type: ignore[arg-type]


def test_a_large_limit_is_filled_up() -> None:
    """More points than are placed one by one are still all different."""
    s = space({f"p{n}": {"type": "int", "low": 0, "high": 29, "flag": f"--p{n}"} for n in range(2)})
    points, total = s.grid(MAX_SPREAD + 100)
    assert total == 900
    assert len({tuple(p.values()) for p in points}) == MAX_SPREAD + 100


def test_a_continuous_grid_is_refused() -> None:
    """A grid over a continuous range has no points."""
    s = space({"mem_frac": {"type": "float", "low": 0.5, "high": 0.9}})
    with pytest.raises(SpecError, match="needs a step"):
        s.grid(4)


def test_sample_finds_a_needle() -> None:
    """Where chance does not find the one feasible point, the grid does."""
    wide = {"type": "int", "low": 1, "high": 140}
    s = space({"page_size": wide, "tp_size": wide}, ("page_size * tp_size == 19600",))
    assert s.size() == 19600 <= MAX_CANDIDATES
    assert s.sample(np.random.default_rng(1)) == {"page_size": 140, "tp_size": 140}


def test_sample_gives_up() -> None:
    """A space that nothing satisfies is an error that names the constraints."""
    s = space({"mem_frac": {"type": "float", "low": 0.5, "high": 0.9}}, ("mem_frac > 0.95",))
    with pytest.raises(SpecError, match=r"mem_frac > 0\.95"):
        s.sample(np.random.default_rng(0))


def test_sample_is_seeded() -> None:
    """The same seed draws the same configurations."""
    s = Space.of(*load_checked(SIMPLE))
    draws = [[s.sample(np.random.default_rng(seed)) for _ in range(3)] for seed in (1, 1)]
    assert draws[0] == draws[1]


def test_no_parameters() -> None:
    """A space without parameters has the one empty configuration."""
    s = space({})
    assert (s.dimensions, s.size(), s.grid(4), s.point({})) == ((), 1, (({},), 1), {})
    assert s.point({"tp_size": 1}) is None


def test_log_ranges_search_by_ratio() -> None:
    """The middle of a log range is the geometric one, and both ends are reached."""
    s = space(
        {
            "page_size": {"type": "int", "low": 1, "high": 1024, "log": True},
            "mem_frac": {"type": "float", "low": 0.01, "high": 1, "log": True},
            "dp_size": {"type": "int", "low": 2, "high": 10, "step": 4, "log": True},
        }
    )
    middle = s.configuration({"page_size": 0.5, "mem_frac": 0.5, "dp_size": 0.5})
    assert middle["mem_frac"] == 0.1
    assert 20 <= int(middle["page_size"] or 0) <= 40
    for at, expected in ((0.0, (1, 0.01, 2)), (1.0, (1024, 1.0, 10))):
        assert tuple(s.configuration(dict.fromkeys(s.parameters, at)).values()) == expected


ints = st.integers(-1000, 1000)


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    """A valid range, with or without step and log."""
    log = draw(st.booleans())
    low = draw(st.integers(1, 500) if log else ints)
    step, steps = draw(st.integers(1, 20)), draw(st.integers(1, 50))
    if draw(st.booleans()):
        return {"type": "int", "low": low, "high": low + step * steps, "step": step, "log": log}
    scale = draw(st.sampled_from([1, 0.1, 0.001, 1e6]))
    span = {"type": "float", "low": low * scale, "high": (low + step * steps) * scale, "log": log}
    return {**span, "step": step * scale} if draw(st.booleans()) else span


@settings(max_examples=200, deadline=None)
@given(ranges(), st.floats(0, 1))
def test_ranges(data: dict[str, Any], at: float) -> None:
    """Every point is a value inside the range and on its steps, and leads back to itself."""
    s = space({"mine": {**data, "flag": "--mine"}})
    parameter = s.parameters["mine"]
    assert isinstance(parameter, IntRange | FloatRange)
    value = s.configuration({"mine": at})["mine"]
    assert isinstance(value, int if data["type"] == "int" else float)
    assert parameter.low <= value <= parameter.high
    if parameter.step:
        steps = (value - parameter.low) / parameter.step
        assert math.isclose(steps, round(steps), abs_tol=1e-6)
    back = s.point({"mine": value})
    assert back is not None
    assert 0 <= back["mine"] <= 1
    assert s.configuration(back) == {"mine": value}
    assert s.configuration({"mine": 0.0})["mine"] == parameter.low
    assert s.configuration({"mine": 1.0})["mine"] == pytest.approx(parameter.high, rel=1e-9)
    assert s.point({"mine": parameter.high + 1}) is None
    assert s.point({"mine": "x"}) is None
    assert s.point({"mine": True}) is None


scalars = st.none() | st.booleans() | st.integers(0, 9) | st.floats(0, 9).map(lambda f: round(f, 2)) | st.text("ab")


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """A space with conditions and constraints between its parameters."""
    names = [f"p{n}" for n in range(draw(st.integers(1, 4)))]
    parameters: dict[str, Any] = {}
    for n, name in enumerate(names):
        kind = draw(st.sampled_from(["choice", "bool", "range"]))
        data = draw(ranges()) if kind == "range" else {"type": kind}
        if kind == "choice":
            data["values"] = draw(st.lists(scalars, min_size=1, max_size=4, unique_by=lambda v: (type(v), v)))
        if n and draw(st.booleans()):
            data["when"] = f"{draw(st.sampled_from(names[:n]))} != {draw(st.integers(0, 3))}"
        parameters[name] = {**data, "flag": f"--{name}"}
    constraints = [f"{draw(st.sampled_from(names))} != {draw(st.integers(0, 3))}"] if draw(st.booleans()) else []
    return space(parameters, tuple(constraints))


@settings(max_examples=150, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_any_space(s: Space, seed: int, limit: int) -> None:
    """Samples and grid points are feasible, of the right type, and lead back to themselves."""
    drawn: list[Any] = []
    try:
        drawn.append(s.sample(np.random.default_rng(seed)))
    except SpecError:
        assume(False)
    if s.size() is not None and s.size() <= MAX_CANDIDATES:  # type: ignore[operator]
        grid, total = s.grid(limit)
        assert len(grid) == min(limit, total)
        assert len({repr(sorted(c.items())) for c in grid}) == len(grid)
        drawn += grid
    for configuration in drawn:
        assert s.problem(configuration) is None
        point = s.point(configuration)
        assert point is not None
        assert s.configuration(point) == configuration
        for name, value in configuration.items():
            parameter = s.parameters[name]
            if isinstance(parameter, Choice):
                assert any(option == value and type(option) is type(value) for option in parameter.values)
            elif isinstance(parameter, Boolean):
                assert value in (True, False)
            else:
                assert isinstance(value, int | float)
                assert parameter.low <= value <= parameter.high
