"""What a page needs beside the plots: plotly.js out of its Python package, and a few lines that start it."""

from __future__ import annotations

import json

from plotly.offline import get_plotlyjs

from raytune_autotuner.plots.plot import in_script
from raytune_autotuner.plots.style import TEMPLATES

START = """
(() => {
  const templates = TEMPLATES;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = {responsive: true, displayModeBar: "hover", displaylogo: false,
                  modeBarButtonsToRemove: ["lasso2d", "select2d"]};
  const areas = () => document.querySelectorAll(".plot-area[data-plot]");
  const theme = (printing) => templates[dark.matches && !printing ? "dark" : "light"];
  for (const area of areas()) {
    const figure = JSON.parse(document.querySelector(`script[data-of="${area.dataset.plot}"]`).textContent);
    figure.layout.template = theme(false);
    Plotly.newPlot(area, figure.data, figure.layout, config);
  }
  const restyle = (printing) => areas().forEach((area) => Plotly.relayout(area, {template: theme(printing)}));
  dark.addEventListener("change", () => restyle(false));
  addEventListener("beforeprint", () => restyle(true));
  addEventListener("afterprint", () => restyle(false));
})();
"""


def script() -> str:
    """The script that draws every ``Plot.to_div`` that comes before it, and keeps to the reader's light or dark."""
    return f"{get_plotlyjs()}\n{START.replace('TEMPLATES', _templates())}"


def _templates() -> str:
    return in_script(json.dumps({name: template.to_plotly_json() for name, template in TEMPLATES.items()}))
