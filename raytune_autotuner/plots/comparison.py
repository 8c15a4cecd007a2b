"""Several experiments in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from raytune_autotuner.objectives import goal
from raytune_autotuner.plots.course import course
from raytune_autotuner.plots.plot import Plot, table
from raytune_autotuner.plots.style import CYCLE, DASHES, figure, short, text
from raytune_autotuner.plots.view import View
from raytune_autotuner.results import Results
from raytune_autotuner.summary import shown


def best_so_far(experiments: Sequence[Results]) -> Plot | None:
    """How the best of each grew with what it had spent; ``None`` where their scores measure different things."""
    views = [View(results) for results in experiments]
    if len({goal(view.results.task.optimization) for view in views}) > 1 or len({view.unit for view in views}) > 1:
        return None
    rows = [(view, point.spent_h, point.best.value) for view in views for point in course(view) if point.best]
    if not rows:
        return None
    drawn = figure(*(_line(view, place, rows) for place, view in enumerate(views)))
    drawn.update_xaxes(title={"text": f"{views[0].unit} spent"}, rangemode="tozero")
    drawn.update_yaxes(title={"text": text(views[0].objective)})
    best = {view.results.experiment: f"came to {shown(value)}" for view, _, value in rows}
    named = (view.results.experiment for view in views)
    said = "; ".join(f"{name} {best.get(name, 'has nothing yet that keeps the SLO')}" for name in named)
    cells = [(view.results.experiment, spent, value) for view, spent, value in rows]
    columns = ("experiment", f"{views[0].unit} so far", "best so far")
    return Plot("best_so_far", "Best so far", f"{said}.", drawn, table(columns, cells))


def _line(view: View, place: int, rows: Sequence[tuple[View, float, float]]) -> go.Scatter:
    points = [(spent, value) for of, spent, value in rows if of is view]
    name = view.results.experiment
    return go.Scatter(
        x=[spent for spent, _ in points],
        y=[value for _, value in points],
        mode="lines+markers",
        name=text(name),
        line={"shape": "hv", "color": CYCLE[place % len(CYCLE)], "dash": DASHES[place % len(DASHES)], "width": 3},
        hovertemplate=f"{short(name)}<br>%{{x:.3g}}: %{{y:.4g}}<extra></extra>",
    )
