"""Throughput against latency: what one pays for the other, and which trials nothing beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from raytune_autotuner.metrics import METRICS
from raytune_autotuner.pareto import skyline
from raytune_autotuner.plots.plot import Plot, table
from raytune_autotuner.plots.style import BLUE, GOLD, GREEN, GREY, ORANGE, VERMILION, described, figure, text
from raytune_autotuner.plots.view import View, latency_metric, throughput, throughput_metric, worst
from raytune_autotuner.records import TrialRecord
from raytune_autotuner.summary import ending, shown

LABELLED = 12
WIDE = 20
"""Latencies that differ by more than this factor get a logarithmic axis."""
LATENCY_WORDS = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end-to-end latency"}


@dataclass(frozen=True)
class _Point:
    record: TrialRecord
    throughput: float
    latency_s: float
    held_up: bool
    """Whether it did so when it was measured again, if it was."""

    @property
    def broke_slo(self) -> bool:
        """As it was measured in the search."""
        return self.record.rungs[-1].score.violation > 0

    @property
    def is_out(self) -> bool:
        return not self.broke_slo and not self.held_up

    @property
    def keeps_slo(self) -> bool:
        return not self.broke_slo and self.held_up


def tradeoff(view: View) -> Plot | None:
    """Each trial by its throughput and its worst latency, with the Pareto front within the SLO, and its limits."""
    measured = [r for r in view.searched if r.rungs]
    names = throughput_metric(measured), latency_metric(view, measured)
    if names[0] is None or names[1] is None:
        return None
    points = list(_points(view, measured, names[0], names[1]))
    whole = [p for p in points if p.record.outcome == "completed"]
    if not points:
        return None
    front = _front(whole)
    drawn = figure(*_traces(points, front, view), height=440)
    _axes(drawn, points, names, view)
    _limits(drawn, view, names[0], names[1])
    rows = [_row(p, front) for p in sorted(points, key=lambda p: p.record.number)]
    unit = METRICS[names[0]].unit + ("/GPU" if view.per_gpu else "")
    columns = ("trial", "ended as", unit, f"{names[1]} (worst load)", "on the front", "keeps the SLO")
    said = _said(whole, front, view, unit, names[1])
    return Plot("tradeoff", "Throughput against latency", said, drawn, table(columns, rows))


def _points(view: View, records: Sequence[TrialRecord], rate: str, latency: str) -> Iterator[_Point]:
    for record in records:
        x, y = throughput(view, record, rate), worst(record, latency)
        if x is not None and y is not None:
            yield _Point(record, x, y, view.held_up(record))


def _front(whole: Sequence[_Point]) -> list[_Point]:
    """Of those that keep the SLO, whoever no other one beats in both: from the fastest to the highest throughput."""
    keeping = [point for point in whole if point.keeps_slo]
    return skyline(keeping, lambda point: (point.throughput, -point.latency_s))[::-1]


def _traces(points: Sequence[_Point], front: Sequence[_Point], view: View) -> Iterator[go.Scatter]:
    whole = [p for p in points if p.record.outcome == "completed"]
    early = [p for p in points if p.record.outcome != "completed"]
    yield _marks(early, "not measured to the end", GOLD, "circle-open", visible="legendonly")
    yield _marks([p for p in whole if p.broke_slo], "breaks the SLO", VERMILION, "x")
    yield _marks([p for p in whole if p.is_out], "did not hold up when measured again", VERMILION, "x-open")
    yield _marks([p for p in whole if p.keeps_slo], _kept_name(view), BLUE, "circle")
    if front:
        yield go.Scatter(
            x=[p.throughput for p in front],
            y=[p.latency_s for p in front],
            mode="lines+markers+text" if len(front) <= LABELLED else "lines+markers",
            line={"color": GREEN, "width": 2, "shape": "vh"},
            marker={"color": GREEN, "size": 10, "symbol": "diamond"},
            text=[f"#{p.record.number}" for p in front],
            textposition="top left",
            hovertext=[described(p.record) for p in front],
            hovertemplate="%{hovertext}<extra></extra>",
            name="Pareto front",
        )
    for name, record, colour, symbol in _named(view):
        yield _marks([p for p in points if p.record is record], name, colour, symbol, size=15)


def _kept_name(view: View) -> str:
    return "keeps the SLO" if view.results.task.optimization.slo else "trials"


def _named(view: View) -> Iterator[tuple[str, TrialRecord | None, str, str]]:
    yield "baseline", view.results.baseline, GREY, "square"
    yield "winner", view.results.winner, ORANGE, "star"


def _marks(points: Sequence[_Point], name: str, colour: str, symbol: str, **more: object) -> go.Scatter:
    size = more.pop("size", 8)
    return go.Scatter(
        x=[p.throughput for p in points],
        y=[p.latency_s for p in points],
        mode="markers",
        name=name,
        showlegend=bool(points),
        marker={"color": colour, "symbol": symbol, "size": size, "opacity": 0.85 if size == 8 else 1},
        text=[described(p.record) for p in points],
        hovertemplate="%{text}<extra></extra>",
        **more,
    )


def _axes(drawn: go.Figure, points: Sequence[_Point], names: tuple[str | None, str | None], view: View) -> None:
    rate, latency = str(names[0]), str(names[1])
    unit = METRICS[rate].unit + (" per GPU" if view.per_gpu else "")
    drawn.update_xaxes(title={"text": f"{rate.removesuffix('_per_s').replace('_', ' ')} per second ({unit}) →"})
    drawn.update_yaxes(title={"text": f"← {spoken(latency)} at the worst load (s)"})
    values = [p.latency_s for p in points if p.latency_s > 0]
    if values and max(values) > WIDE * min(values):
        drawn.update_yaxes(type="log", dtick=1)


def spoken(metric: str) -> str:
    """``ttft_p99_s`` as ``p99 time to first token``."""
    name, statistic, _ = metric.split("_")
    return f"{statistic} {LATENCY_WORDS[name]}"


def _limits(drawn: go.Figure, view: View, rate: str, latency: str) -> None:
    slo = view.results.task.optimization.slo
    line = {"color": VERMILION, "dash": "dash", "width": 1.5}
    if latency in slo:
        drawn.add_hline(slo[latency], line=line)
        y = slo[latency]
        note = {
            "x": 1,
            "xref": "paper",
            "xanchor": "right",
            "y": math.log10(y) if drawn.layout.yaxis.type == "log" else y,
        }
        drawn.add_annotation(**note, text=f"SLO {text(latency)} ≤ {y:g}", showarrow=False, yanchor="bottom")
    if rate in slo and not view.per_gpu:
        drawn.add_vline(slo[rate], line=line)


def _row(point: _Point, front: Sequence[_Point]) -> tuple[str | float, ...]:
    on_front = "yes" if point in front else ""
    keeps = "yes" if point.keeps_slo else "not when measured again" if point.is_out else "no"
    return (f"#{point.record.number}", ending(point.record), point.throughput, point.latency_s, on_front, keeps)


def _said(whole: Sequence[_Point], front: Sequence[_Point], view: View, unit: str, latency: str) -> str:
    if not whole:
        return "No trial was measured to the end, so there is no front yet; what was measured is behind the legend."
    if not front:
        held = "" if all(p.held_up for p in whole) else " and held up when measured again"
        return f"No trial that was measured to the end keeps the SLO{held}, so there is no front yet."
    ends = f"from {shown(front[0].throughput)} {unit} at {front[0].latency_s:.3g} s"
    ends += f" to {shown(front[-1].throughput)} {unit} at {front[-1].latency_s:.3g} s" if len(front) > 1 else ""
    broken, out = sum(p.broke_slo for p in whole), sum(p.is_out for p in whole)
    slo = f" {broken} of {len(whole)} break the SLO." if view.results.task.optimization.slo else ""
    slo += f" {out} of {len(whole)} did not hold up when measured again." if out else ""
    trials = f"{len(front)} trials are" if len(front) > 1 else "One trial is"
    return f"Right and low is better. {trials} beaten by no other in both: {ends} of {spoken(latency)}.{slo}"
