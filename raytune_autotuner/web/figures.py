"""Plots as an answer for plotly.js: drawn once for all who look at the same snapshot, each in turn."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pandas  # noqa: F401 - plotly takes it from sys.modules, also while another thread is still importing it
from starlette.responses import Response

from raytune_autotuner.plots import PLOTS, SLOW, Plot, Theme, figures
from raytune_autotuner.web.reader import Part, Snapshot


def plots_answer(drawn: Mapping[str, Plot], theme: Theme) -> Response:
    """By name: title, caption, height, figure, and the numbers as a table in HTML."""
    return Response(_text(drawn, theme), media_type="application/json")


def experiment_plots(seen: Snapshot, part: Part, theme: Theme) -> Response:
    """All that there are of an experiment; those that take seconds are a part by themselves."""
    with seen.drawing[part]:
        if (part, theme) not in seen.drawn:
            names = [name for name in PLOTS if (name in SLOW) == (part == "slow")]
            states = tuple(trial.state for trial in seen.trials.values() if trial.state)
            seen.drawn[part, theme] = _text(figures(seen.results, states, names), theme)
    return Response(seen.drawn[part, theme], media_type="application/json")


def _text(drawn: Mapping[str, Plot], theme: Theme) -> str:
    parts = (
        f'{json.dumps(name)}: {{{_fields(plot)}, "figure": {plot.to_json(theme)}}}' for name, plot in drawn.items()
    )
    return "{" + ", ".join(parts) + "}"


def _fields(plot: Plot) -> str:
    fields = {"title": plot.title, "caption": plot.caption, "height": plot.height}
    fields |= {"min_width": plot.min_width, "table": plot.table.to_html()}
    return json.dumps(fields)[1:-1]
