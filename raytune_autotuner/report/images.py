"""Plots as PNG files, drawn by the Chromium (or Chrome) of this machine: plotly has no renderer of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.plots import Plot, script
from raytune_autotuner.processes import OwnedProcess

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "CHROME_PATH"
WIDTH = 1000
SCALE = 2
TIMEOUT_S = 90.0
PAGE = """<!doctype html><meta charset="utf-8"><title>plot</title>
<style>body{margin:12px;font:600 17px system-ui,sans-serif;color:#1f2328;background:#fff}figure{margin:0}
.plot-area{min-width:0!important}
details,figcaption,.modebar{display:none}</style><p style="margin:0 0 6px">%s</p>%s<script>%s</script>"""


def save(plots: Iterable[Plot], folder: Path) -> list[Path]:
    """Write each plot as ``<name>.png``, on white.

    Raises:
        EnvironmentFault: there is no browser here, it does not start, or it draws nothing.
        SpecError: the folder cannot be made.
    """
    browser = find_browser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError.single("--png", f"the folder cannot be made: {error}", str(folder)) from error
    return [_save(browser, plot, folder / f"{plot.name}.png") for plot in plots]


def find_browser() -> str:
    """Raises EnvironmentFault: there is none."""
    named = os.environ.get(VARIABLE)
    found = named or next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise EnvironmentFault(
            f"PNGs are drawn by Chromium or Chrome, and none of {', '.join(BROWSERS)} is here: install one, or name it "
            f"in {VARIABLE}. The HTML report needs none"
        )
    return found


def _save(browser: str, plot: Plot, target: Path) -> Path:
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="rta-png-") as scratch:
        page = Path(scratch) / "plot.html"
        page.write_text(PAGE % (plot.title, plot.to_div(), script()), encoding="utf-8")
        log = Path(scratch) / "browser.log"
        process = OwnedProcess(_argv(browser, page, plot.height, target), log=log, env=os.environ, owner="report/png")
        try:
            process.wait(TIMEOUT_S)
        finally:
            process.stop()
        if not target.exists():
            tail = log.read_text(encoding="utf-8", errors="replace")[-400:] if log.exists() else ""
            raise EnvironmentFault(f"{browser} did not draw {target.name} within {TIMEOUT_S:.0f} s: {tail}")
    return target


def _argv(browser: str, page: Path, height: int, target: Path) -> list[str]:
    return [
        browser,
        "--headless=new",
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={page.parent / 'profile'}",
        f"--window-size={WIDTH},{height + 60}",
        f"--force-device-scale-factor={SCALE}",
        "--virtual-time-budget=5000",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        f"--screenshot={target.resolve()}",
        page.as_uri(),
    ]
