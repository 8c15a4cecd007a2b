"""Which parameters the score depends on, and how, with the uncertainty of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from raytune_autotuner.importance import Importances, Marginal, importance
from raytune_autotuner.plots.plot import Plot, table, width_of
from raytune_autotuner.plots.style import BLUE, GREY, TEAL, TEMPLATES, figure, short, title_subplots
from raytune_autotuner.plots.view import View
from raytune_autotuner.records import TrialRecord

SHOWN = 6
"""Parameters whose effect is drawn; the others move the score less still."""
COLUMNS = 3


@dataclass(frozen=True)
class _Trials:
    """What a forest was grown from; the same trials are the same, without a look at what they measured."""

    names: frozenset[tuple[str, str, str]]
    records: tuple[TrialRecord, ...] = field(compare=False)


@lru_cache(maxsize=4)
def _grown(trials: _Trials) -> Importances:
    return importance(trials.records)


_GROWING = Lock()
"""A forest takes seconds, so whoever asks for one that is being grown waits for it."""


def _of(view: View) -> Importances:
    records = tuple(r for r in view.records if r.trial.purpose == "search")
    with _GROWING:
        return _grown(_Trials(frozenset((r.experiment, r.trial.name, r.outcome) for r in records), records))


def importances(view: View) -> Plot | None:
    """A bar for each parameter, with its interval."""
    found = _of(view)
    if not found.parameters:
        return None
    ranked = found.parameters[::-1]  # the first bar is at the bottom
    bars = go.Bar(
        orientation="h",
        y=[short(each.parameter) for each in ranked],
        x=[each.importance for each in ranked],
        error_x=_spread([(each.importance, each.low, each.high) for each in ranked]),
        marker={"color": BLUE},
        hovertemplate="%{y}: %{x:.0%} of the variance<extra></extra>",
    )
    drawn = figure(bars, height=110 + 34 * len(ranked), showlegend=False)
    drawn.update_xaxes(title={"text": "share of the variance of the score"}, tickformat=".0%", rangemode="tozero")
    first = found.parameters[0]
    said = (
        f"{first.parameter} matters most: {first.importance:.0%} of the variance of the score, "
        f"90% interval {first.low:.0%} to {first.high:.0%}. From {found.trials} trials; the model explains "
        f"{found.explained:.0%} of what it has not seen."
    )
    rows = [(p.parameter, p.importance, p.low, p.high) for p in found.parameters]
    return Plot("importance", "What the score depends on", said, drawn, table(("parameter", *SHARE), rows))


SHARE = ("share of the variance", "low", "high")


def marginals(view: View) -> Plot | None:
    """How the score goes with each of the most important parameters, the others as they were."""
    found = _of(view)
    names = [each.parameter for each in found.parameters[:SHOWN]]
    if not names:
        return None
    lines = -(-len(names) // COLUMNS)
    titles = [short(name) for name in names]
    drawn = make_subplots(lines, min(COLUMNS, len(names)), subplot_titles=titles, shared_yaxes="all")
    for n, name in enumerate(names):
        drawn.add_trace(_line([m for m in found.marginals if m.parameter == name]), n // COLUMNS + 1, n % COLUMNS + 1)
    title_subplots(drawn)
    margin = {"l": 8, "r": 8, "t": 40, "b": 8}
    drawn.update_layout(height=80 + 230 * lines, margin=margin, showlegend=False, template=TEMPLATES["light"])
    drawn.update_xaxes(type="category", automargin=True)
    drawn.update_yaxes(title={"text": found.unit}, col=1)
    rows = [(m.parameter, short(m.value), m.mean, m.low, m.high, m.trials, m.infeasible) for m in found.marginals]
    columns = ("parameter", "value", found.unit or "score", "low", "high", "trials", "of these infeasible")
    said, width = _said(found), width_of(titles, COLUMNS)
    return Plot("marginals", "How the score goes with each parameter", said, drawn, table(columns, rows), width)


def _line(of_one: Sequence[Marginal]) -> go.Scatter:
    return go.Scatter(
        x=[short(m.value) for m in of_one],
        y=[m.mean for m in of_one],
        error_y=_spread([(m.mean, m.low, m.high) for m in of_one]),
        mode="lines+markers",
        line={"color": TEAL},
        customdata=[(m.trials, m.infeasible) for m in of_one],
        hovertemplate="%{x}: %{y:.4g}<br>%{customdata[0]} trials, %{customdata[1]} infeasible<extra></extra>",
    )


def _spread(intervals: Iterable[tuple[float, float, float]]) -> dict[str, object]:
    """The ends of intervals as plotly wants them: how far from the middle."""
    ends = [(max(0.0, high - middle), max(0.0, middle - low)) for middle, low, high in intervals]
    ups, downs = zip(*ends, strict=True)
    return {"type": "data", "symmetric": False, "array": ups, "arrayminus": downs, "color": GREY}


def _said(found: Importances) -> str:
    first = found.parameters[0].parameter
    of_one = [m for m in found.marginals if m.parameter == first]
    low, high = min(of_one, key=lambda m: m.mean), max(of_one, key=lambda m: m.mean)
    return (
        f"With the other parameters as they were in the trials, {first} moves the score from {low.mean:.4g} "
        f"({short(low.value)}) to {high.mean:.4g} {found.unit} ({short(high.value)}). Bars are 90% intervals."
    )
