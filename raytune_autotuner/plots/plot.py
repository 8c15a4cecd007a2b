"""A plot: a figure, what one sees in it in words, and its numbers as a table for those who cannot see it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from raytune_autotuner.plots.style import TEMPLATES, Theme

SHOWN_ROWS = 200
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_html(self) -> str:
        """The first rows; all of them are in trials.csv."""
        left_out = len(self.rows) - SHOWN_ROWS
        note = f"<caption>{left_out} more rows are left out here</caption>" if left_out > 0 else ""
        head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        body = "".join(f"<tr>{_cells(row)}</tr>" for row in self.rows[:SHOWN_ROWS])
        return f"<table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Plot:
    """``figure`` has the light template; colours of its traces do for both."""

    name: str
    title: str
    caption: str
    """What one sees, also for those who do not: the text alternative."""
    figure: go.Figure
    table: Table
    min_width: int = 420
    """In pixels: where there is less room it is scrolled, since its texts would cover each other."""

    @property
    def height(self) -> int:
        return int(self.figure.layout.height)

    def to_json(self, theme: Theme = "light") -> str:
        """``data`` and ``layout`` for plotly.js; safe inside of a script element."""
        themed = go.Figure(self.figure).update_layout(template=TEMPLATES[theme])
        return in_script(str(themed.to_json()))

    def to_div(self) -> str:
        """The whole as HTML. ``script.scripts`` has to be on the page, once, after the last of them."""
        label = html.escape(f"{self.title}. {self.caption}")
        return "".join(
            (
                f'<figure class="plot" id="plot-{self.name}">',
                f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(self.title)}">',
                f'<div class="plot-area" data-plot="{self.name}" role="img" aria-label="{label}"',
                f' style="height:{self.height}px;min-width:{self.min_width}px"></div></div>',
                f'<script type="application/json" data-of="{self.name}">{self.to_json()}</script>',
                f"<figcaption>{html.escape(self.caption)}</figcaption>",
                "<details><summary>The numbers as a table</summary>",
                f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(self.title)}: numbers">',
                f"{self.table.to_html()}</div></details></figure>",
            )
        )


def width_of(titles: Sequence[str], columns: int) -> int:
    """What subplots side by side need for their titles, in pixels."""
    return min(columns, len(titles)) * (30 + 7 * max(map(len, titles)))


def in_script(text: str) -> str:
    """JSON that cannot end the script element around it."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def table(columns: Sequence[str], rows: Iterator[tuple[Cell, ...]] | Sequence[tuple[Cell, ...]]) -> Table:
    return Table(tuple(columns), tuple(rows))


def _cells(row: tuple[Cell, ...]) -> str:
    return "".join(f"<td>{html.escape(_said(cell))}</td>" for cell in row)


def _said(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
