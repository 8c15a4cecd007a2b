"""Plots as an answer for plotly.js."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from raytune_autotuner.plots import Plot, Theme


def plots_answer(drawn: Mapping[str, Plot], theme: Theme) -> Response:
    """By name: title, caption, height, figure, and the numbers as a table in HTML."""
    parts = (
        f'{json.dumps(name)}: {{{_fields(plot)}, "figure": {plot.to_json(theme)}}}' for name, plot in drawn.items()
    )
    return Response("{" + ", ".join(parts) + "}", media_type="application/json")


def _fields(plot: Plot) -> str:
    fields = {"title": plot.title, "caption": plot.caption, "height": plot.height, "table": plot.table.to_html()}
    return json.dumps(fields)[1:-1]
