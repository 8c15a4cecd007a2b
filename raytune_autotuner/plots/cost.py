"""What the tuning itself cost: where the GPU-hours went, what of it was lost, and what was not spent."""

from __future__ import annotations

from dataclasses import asdict

import plotly.graph_objects as go

from raytune_autotuner.ledger import Ledger
from raytune_autotuner.plots.plot import Plot, table
from raytune_autotuner.plots.style import CYCLE, GREEN, PHASE_COLOURS, VERMILION, figure, text
from raytune_autotuner.plots.view import View

SAVINGS = {
    "early_stop": "stopping early",
    "duplicates": "not measuring twice",
    "refused": "refusing what must fail",
    "fast_failure": "seeing failures before the timeout",
    "reused": "reusing earlier measurements",
}
SPENT, LOST, SAVED = "spent", "of that lost", "not spent"


def ledger(view: View) -> Plot | None:
    """What was spent by phase, what of it taught nothing that could be served, and what early ends saved."""
    book = view.results.ledger
    if not book.total:
        return None
    scale, unit = scaled(book)
    entries = [(SPENT, phase, value, _colour(phase)) for phase, value in by_phase(book)]
    entries += [(LOST, "on infeasible and failed trials", book.wasted, VERMILION)]
    entries += [(SAVED, f"by {name}", value, GREEN) for name, value in savings(view)]
    drawn = figure(
        *(
            go.Bar(
                orientation="h",
                y=[row],
                x=[value / scale],
                name=text(name),
                marker={"color": colour},
                hovertemplate=f"{text(name)}: %{{x:.4g}} {unit}<extra></extra>",
                showlegend=row == SPENT,
                text=[text(name)] if row != SPENT else None,
                textposition="auto",
            )
            for row, name, value, colour in entries
            if value > 0
        ),
        height=260,
        barmode="stack",
        bargap=0.35,
    )
    drawn.update_xaxes(title={"text": unit})
    drawn.update_layout(legend={"traceorder": "normal"})
    drawn.update_yaxes(categoryorder="array", categoryarray=[SAVED, LOST, SPENT])
    rows = [(row, name, value / scale, f"{value / book.total:.1%}") for row, name, value, _ in entries]
    return Plot("ledger", "Ledger", _said(view, scale, unit), drawn, table(("what", "for", unit, "share"), rows))


def by_phase(book: Ledger) -> list[tuple[str, float]]:
    """What was spent, in the order in which a trial goes through its phases."""
    known = list(PHASE_COLOURS)
    return sorted(book.by_phase.items(), key=lambda p: known.index(p[0]) if p[0] in known else len(known))


def scaled(book: Ledger) -> tuple[int, str]:
    """In which unit a ledger is shown, and how many of its own make one."""
    return (3600, book.unit.replace("-seconds", "-hours")) if book.total >= 3600 else (1, book.unit)


def _colour(phase: str) -> str:
    return PHASE_COLOURS.get(phase, CYCLE[sum(map(ord, phase)) % len(CYCLE)])


def savings(view: View) -> list[tuple[str, float]]:
    """What was not spent, by what saved it."""
    saved = asdict(view.results.ledger.saved)
    return [(SAVINGS.get(name, name.replace("_", " ")), value) for name, value in saved.items() if value > 0]


def _said(view: View, scale: int, unit: str) -> str:
    book = view.results.ledger
    measuring = book.by_phase.get("benchmark", 0.0) / book.total
    said = f"{book.total / scale:.3g} {unit} were spent, {measuring:.0%} of them on traffic that was measured"
    said += f", {book.wasted / book.total:.0%} on infeasible and failed trials" if book.wasted else ""
    saved = sum(value for _, value in savings(view))
    return f"{said}." + (
        f" About {saved / scale:.3g} were not spent thanks to what is listed as such." if saved else ""
    )
