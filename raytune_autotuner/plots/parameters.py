"""Which configurations were tried, and which of their parameters go with a good score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from raytune_autotuner.objectives import rank
from raytune_autotuner.plots.plot import Plot, table
from raytune_autotuner.plots.style import BLUE, GREY, ORANGE, PURPLE, TEAL, VERMILION, described, figure, short
from raytune_autotuner.plots.view import View, last_score
from raytune_autotuner.records import ParameterValue, TrialRecord
from raytune_autotuner.summary import ending

MOST_AXES = 14
MOST_LINES = 300
"""More cannot be told apart: the best are kept, and the others thinned out evenly."""
AXIS_PX = 120
FEW_VALUES = 8
"""So many different numbers are placed like words, at even distances."""
WIDE = 20
ABSENT = "not set"
JITTER = 0.012


@dataclass(frozen=True)
class Axis:
    """Where the values of a parameter are between 0 and 1."""

    name: str
    place: Callable[[ParameterValue], float]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class _Group:
    name: str
    colour: str
    width: float
    opacity: float
    dash: str
    records: tuple[TrialRecord, ...]


def parallel(view: View) -> Plot | None:
    """One line a trial, through its parameters to how good it was."""
    records = [r for r in view.searched if r.trial.purpose == "search"]
    axes = axes_of([r.parameters for r in records])[:MOST_AXES]
    if not axes or len(records) < 2:
        return None
    groups = [_thinned(group) for group in _groups(records)]
    drawn = figure(*(_lines(group, axes) for group in groups if group.records), *_labels(axes), height=460)
    drawn.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=[short(axis.name) for axis in axes],
        range=[-0.35, len(axes) - 0.55],
        ticklabeloverflow="allow",
        showgrid=True,
        zeroline=False,
    )
    drawn.update_yaxes(visible=False, range=[-0.06, 1.06])
    names = [axis.name for axis in axes]
    rows = [_row(r, names) for r in sorted(records, key=_best_first)]
    columns = ("trial", "ended as", *names, "score")
    said, width = _said(records, axes, groups), AXIS_PX * len(axes)
    return Plot("parallel", "Parameters of the trials", said, drawn, table(columns, rows), width)


def axes_of(configurations: Sequence[Mapping[str, ParameterValue]]) -> list[Axis]:
    """An axis for each parameter that differs between configurations, in the order in which they name them."""
    names = dict.fromkeys(name for each in configurations for name in each)
    columns = {name: [each.get(name) for each in configurations] for name in names}
    return [_axis(name, values) for name, values in columns.items() if len({_key(v) for v in values}) > 1]


def _key(value: ParameterValue) -> tuple[bool, ParameterValue]:
    return isinstance(value, bool), value  # True is not 1 here


def _axis(name: str, values: Sequence[ParameterValue]) -> Axis:
    numbers = sorted({float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)})
    others = {_key(v) for v in values if not isinstance(v, int | float) or isinstance(v, bool)}
    if others or len(numbers) <= FEW_VALUES:
        return _even(name, values)
    return _scaled(name, numbers)


def _even(name: str, values: Sequence[ParameterValue]) -> Axis:
    distinct = sorted({_key(v) for v in values}, key=_order)
    step = 1 / max(1, len(distinct) - 1)
    places = {key: i * step for i, key in enumerate(distinct)}
    thin = max(1, len(distinct) // 12)
    ticks = tuple((place, _word(key[1])) for i, (key, place) in enumerate(places.items()) if i % thin == 0)
    return Axis(name, lambda value: places[_key(value)], ticks)


def _order(key: tuple[bool, ParameterValue]) -> tuple[int, float, str]:
    value = key[1]
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, str):
        return (2, 0.0, value)
    return (1, float(value), str(key[0]))


def _word(value: ParameterValue) -> str:
    return ABSENT if value is None else short(value, 18)


def _scaled(name: str, numbers: Sequence[float]) -> Axis:
    low, high = numbers[0], numbers[-1]
    log = low > 0 and high / low > WIDE
    bend: Callable[[float], float] = math.log if log else float
    span = bend(high) - bend(low)

    def place(value: ParameterValue) -> float:
        assert isinstance(value, int | float)
        return (bend(float(value)) - bend(low)) / span

    marks = [low * (high / low) ** (i / 4) if log else low + (high - low) * i / 4 for i in range(5)]
    return Axis(name, place, tuple((place(mark), f"{mark:.3g}") for mark in marks))


def _best_first(record: TrialRecord) -> tuple[bool, tuple[float, float], int]:
    score = last_score(record)
    return (score is None, rank(score) if score else (0.0, 0.0), record.number)


def _groups(records: Sequence[TrialRecord]) -> list[_Group]:
    """From the least interesting to the best, which is drawn on top."""
    ordered = sorted(records, key=_best_first)
    scored = [r for r in ordered if (score := last_score(r)) and not score.violation]
    broken = tuple(r for r in ordered if (score := last_score(r)) and score.violation)
    unmeasured = [r for r in ordered if last_score(r) is None]
    lost = tuple(r for r in unmeasured if r.outcome in ("infeasible", "failed"))
    cut = tuple(r for r in unmeasured if r.outcome == "stopped")
    tenth, half = math.ceil(len(scored) / 10), math.ceil(len(scored) / 2)
    return [
        _Group("cut short", GREY, 1, 0.35, "dot", cut),
        _Group("infeasible or failed", VERMILION, 1, 0.5, "dot", lost),
        _Group("breaks the SLO", PURPLE, 1.5, 0.6, "dash", broken),
        _Group("worse half", TEAL, 1, 0.45, "solid", tuple(scored[half:])),
        _Group("better half", BLUE, 1.5, 0.7, "solid", tuple(scored[tenth:half])),
        _Group("best tenth", ORANGE, 3, 1.0, "solid", tuple(scored[:tenth])),
    ]


def _thinned(group: _Group) -> _Group:
    most = MOST_LINES // 5
    if len(group.records) <= most:
        return group
    kept = group.records[:: math.ceil(len(group.records) / most)]
    return _Group(
        f"{group.name} ({len(kept)} of {len(group.records)})",
        group.colour,
        group.width,
        group.opacity,
        group.dash,
        kept,
    )


def _lines(group: _Group, axes: Sequence[Axis]) -> go.Scatter:
    x: list[float | None] = []
    y: list[float | None] = []
    said: list[str] = []
    for record in group.records:
        shift = JITTER * ((record.number * 7) % 11 - 5) / 5
        x += [*range(len(axes)), None]
        y += [*(axis.place(record.parameters.get(axis.name)) + shift for axis in axes), None]
        said += [described(record)] * (len(axes) + 1)
    return go.Scatter(
        x=x,
        y=y,
        text=said,
        mode="lines+markers",
        name=group.name,
        opacity=group.opacity,
        line={"color": group.colour, "width": group.width, "dash": group.dash},
        marker={"size": 4, "color": group.colour},
        hovertemplate="%{text}<extra></extra>",
    )


def _labels(axes: Sequence[Axis]) -> Iterator[go.Scatter]:
    marks = [(i, place, text) for i, axis in enumerate(axes) for place, text in axis.ticks]
    yield go.Scatter(
        x=[i for i, _, _ in marks],
        y=[place for _, place, _ in marks],
        text=[f" {text}" for _, _, text in marks],
        mode="text",
        textposition="middle right",
        textfont={"size": 12},
        hoverinfo="skip",
        showlegend=False,
    )


def _row(record: TrialRecord, names: Sequence[str]) -> tuple[str | float | None, ...]:
    values = (_plain(record.parameters.get(name)) for name in names)
    score = last_score(record)
    return (f"#{record.number}", ending(record), *values, score.value if score else None)


def _plain(value: ParameterValue) -> str | float | None:
    return short(value) if isinstance(value, bool) else value


def _said(records: Sequence[TrialRecord], axes: Sequence[Axis], groups: Sequence[_Group]) -> str:
    best = groups[-1].records
    said = f"A line is one of {len(records)} trials, through its values of {len(axes)} parameters."
    common = [
        f"{axis.name} = {_word(best[0].parameters.get(axis.name))}"
        for axis in axes
        if len({_key(r.parameters.get(axis.name)) for r in best}) == 1
    ]
    if len(best) > 1 and common:
        return f"{said} The best tenth have in common: {', '.join(common)}. A click on the legend hides a group."
    return f"{said} A click on the legend hides a group."
