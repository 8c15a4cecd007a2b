"""How every plot looks: colours that work for the colour-blind, on light and on dark paper, and short texts."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Literal

import plotly.graph_objects as go

from raytune_autotuner.records import TrialRecord
from raytune_autotuner.summary import ending, origin, shown

Theme = Literal["light", "dark"]

BLUE, ORANGE, GREEN, VERMILION = "#2f7ed8", "#c2740a", "#12926b", "#d6532b"
PURPLE, TEAL, GOLD, GREY = "#a865b5", "#2a8fa3", "#a88600", "#7d8590"
DUSK = "#c0567e"
"""Each stands out from white and from near black by 3:1 at least; a shape or a dash tells them apart as well."""

ENDING_COLOURS: Mapping[str, str] = {
    "completed": BLUE,
    "stopped early": GOLD,
    "infeasible": VERMILION,
    "failed": PURPLE,
    "out of budget": DUSK,
    "interrupted": GREY,
    "running": TEAL,
}
ENDING_SYMBOLS: Mapping[str, str] = {
    "completed": "circle",
    "stopped early": "circle-open",
    "infeasible": "x",
    "failed": "cross",
    "out of budget": "square-open",
    "interrupted": "diamond-open",
    "running": "triangle-right",
}
PHASE_COLOURS: Mapping[str, str] = {
    "deploy": GOLD,
    "pull": DUSK,
    "load": ORANGE,
    "warmup": TEAL,
    "client": PURPLE,
    "benchmark": BLUE,
    "idle": GREY,
    "teardown": GREEN,
}
"""In the order in which a trial goes through them."""
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, TEAL, GOLD, GREY)
DASHES = ("solid", "dash", "dot", "dashdot")
SHOWN_PARAMETERS = 12
LEAST_TEXT_PX = 9
"""What does not fit into its bar at this size is left out, not made smaller: it is in the table."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


def _template(ink: str, muted: str, grid: str, paper: str) -> go.layout.Template:
    axis: dict[str, Any] = {"gridcolor": grid, "linecolor": grid, "zerolinecolor": grid, "tickfont": {"color": muted}}
    axis |= {"title": {"font": {"color": muted, "size": 13}}, "automargin": True}
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(CYCLE),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": paper, "bordercolor": grid, "font": {"color": ink}, "align": "left"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": muted, "activecolor": ink},
            "legend": {"font": {"color": ink}, "bgcolor": "rgba(0,0,0,0)"},
            "annotationdefaults": {"font": {"color": muted}},
        }
    )


TEMPLATES: Mapping[Theme, go.layout.Template] = {
    "light": _template("#1f2328", "#59636e", "#e3e6ea", "#ffffff"),
    "dark": _template("#e6edf3", "#9ba4ae", "#30363d", "#1c2128"),
}


def figure(*traces: Any, height: int = 380, **layout: Any) -> go.Figure:
    """A figure with the legend above it; the width is that of the page."""
    settings: dict[str, Any] = {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 40, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left"},
        "hovermode": "closest",
        "uniformtext": {"minsize": LEAST_TEXT_PX, "mode": "hide"},
        "template": TEMPLATES["light"],
    }
    return go.Figure(list(traces), layout={**settings, **layout})


def title_subplots(drawn: go.Figure) -> None:
    """Plotly's own size is that of a headline."""
    drawn.update_annotations(font={"size": 13})


def text(value: object) -> str:
    """Any text as data: plotly reads what it shows as a small HTML."""
    return html.escape(str(value), quote=False)


def short(value: object, limit: int = 28) -> str:
    """A value on an axis or in a list."""
    if isinstance(value, bool):
        return "on" if value else "off"
    said = f"{value:.4g}" if isinstance(value, float) else "—" if value is None else str(value)
    return text(said if len(said) <= limit else said[: limit - 1] + "…")


def described(record: TrialRecord) -> str:
    """What appears at the mouse over a trial."""
    ended = ", ".join(filter(None, (ending(record), text(origin(record)))))
    lines = [f"<b>#{record.number}</b> {text(record.trial.purpose)}, {ended}"]
    given = [f"{short(name)} = {short(value)}" for name, value in record.parameters.items()]
    lines += given[:SHOWN_PARAMETERS] or ["the runtime's own flags"]
    lines += ["…"] if len(given) > SHOWN_PARAMETERS else []
    if record.rungs:
        score = record.rungs[-1].score
        lines.append(f"{shown(score.value)} {text(score.unit)} at rung {len(record.rungs)} of {record.total_rungs}")
        lines += [f"breaks the SLO: {text(score.worst)}"] if score.violation else []
    if record.failure:
        lines.append(f"{record.failure.kind}: {short(_first_line(record.failure.reason), 100)}")
    return "<br>".join(lines)


def _first_line(reason: str) -> str:
    return reason.strip().splitlines()[0] if reason.strip() else ""
