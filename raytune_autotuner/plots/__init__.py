"""Plots of an experiment, for the web UI and for the report: pure functions from results to Plotly figures.

``figures`` draws all that there is something to see in. A plot is one function and one row of ``PLOTS``. ``script``
is what a page needs to show ``Plot.to_div``; no network anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from raytune_autotuner.plots import comparison, cost, course, influence, measurements, parameters, tradeoff
from raytune_autotuner.plots.page import script
from raytune_autotuner.plots.plot import Plot, Table
from raytune_autotuner.plots.style import Theme
from raytune_autotuner.plots.view import View
from raytune_autotuner.records import EngineSeries, TrialRecord, TrialState
from raytune_autotuner.results import Results

__all__ = [
    "PLOTS",
    "SLOW",
    "TRIAL_PLOTS",
    "Plot",
    "Table",
    "Theme",
    "View",
    "figures",
    "overlay",
    "script",
    "trial_figures",
]


def _slo(view: View) -> dict[str, float]:
    return view.results.task.optimization.slo


PLOTS: Mapping[str, Callable[[View], Plot | None]] = {
    "best_so_far": course.best_so_far,
    "tradeoff": tradeoff.tradeoff,
    "importance": influence.importances,
    "marginals": influence.marginals,
    "parallel": parameters.parallel,
    "by_load": lambda view: measurements.by_load(measurements.of_contenders(view), _slo(view)),
    "percentiles": lambda view: measurements.percentiles(measurements.of_contenders(view), _slo(view)),
    "engine": lambda view: measurements.engine(measurements.of_contenders(view)),
    "timeline": course.timeline,
    "ledger": cost.ledger,
}
"""In the order of a page. Each answers ``None`` when there is nothing to see yet."""
SLOW = ("importance", "marginals")
"""Those that take seconds."""

TRIAL_PLOTS: Mapping[str, Callable[[TrialRecord, dict[str, float]], Plot | None]] = {
    "by_load": lambda record, slo: measurements.by_load(measurements.of_trial(record), slo),
    "percentiles": lambda record, slo: measurements.percentiles(measurements.of_trial(record), slo),
    "engine": lambda record, slo: measurements.engine(measurements.of_trial(record)),
}


def figures(
    results: Results,
    states: Iterable[TrialState] = (),
    names: Iterable[str] = PLOTS,
    now: datetime | None = None,
) -> dict[str, Plot]:
    """The plots of these names that there is something to see in.

    ``states`` are those of the folder, for what still runs; ``now`` is where their bars end.
    """
    view = View(results, tuple(states), now)
    drawn = {name: PLOTS[name](view) for name in names}
    return {name: plot for name, plot in drawn.items() if plot is not None}


def overlay(experiments: Sequence[Results]) -> dict[str, Plot]:
    """The plots of several experiments in one."""
    plot = comparison.best_so_far(experiments)
    return {plot.name: plot} if plot else {}


def trial_figures(
    record: TrialRecord | None,
    slo: Mapping[str, float],
    names: Iterable[str] = TRIAL_PLOTS,
    engine: Mapping[int, EngineSeries] | None = None,
) -> dict[str, Plot]:
    """The plots of one trial; ``slo`` are the limits of its task.

    ``engine`` is what its engine said over time, by rung: all that there is of a trial without a record, and in place
    of the means of one that has a record.
    """
    drawn = {name: TRIAL_PLOTS[name](record, dict(slo)) for name in names} if record else {}
    over_time = measurements.engine_over_time(engine or {})
    return {name: plot for name, plot in (drawn | ({"engine": over_time} if over_time else {})).items() if plot}
