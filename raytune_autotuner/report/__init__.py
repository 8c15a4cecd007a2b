"""The report of an experiment: the answer first, then the evidence; of one that runs, so far.

Everything comes from the experiment folder. A format is one function and one row of ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from raytune_autotuner.errors import SpecError
from raytune_autotuner.report.facts import Report, read
from raytune_autotuner.report.pages import html, json_text, markdown
from raytune_autotuner.results_file import trials_csv

__all__ = ["FORMATS", "Report", "form_of", "html", "json_text", "markdown", "read"]

FORMATS: Mapping[str, Callable[[Report], str]] = {
    "html": html,
    "md": markdown,
    "csv": lambda report: trials_csv(report.results),
    "json": json_text,
}


def form_of(path: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        SpecError: its ending is none of ours.
    """
    form = path.suffix.lstrip(".").lower()
    if form not in FORMATS:
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise SpecError.single("--output", f"{path.name!r} does not end in one of {endings}", "report")
    return form
