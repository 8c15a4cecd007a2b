"""The report of an experiment, as a file."""

from __future__ import annotations

from pathlib import Path

import click

from raytune_autotuner.cli.options import OK, existing, exit_codes, storage_option
from raytune_autotuner.errors import SpecError


@click.command()
@click.argument("experiment", metavar="[EXPERIMENT]", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Its ending says what is written: .html (default: EXPERIMENT.html), .md for a pull request, .csv, .json.",
)
@click.option(
    "--png",
    "images",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the plots as PNG files into this folder.",
)
@storage_option
@exit_codes
def report(experiment: str | None, output: Path | None, images: Path | None, storage: str) -> int:
    """Write the report of an experiment: the answer first, then the evidence; by default of the one begun last.

    Works while it runs ("so far") and after any end. PNG files need a Chromium or Chrome on this machine.
    """
    from raytune_autotuner import overview, plots
    from raytune_autotuner import report as reports

    form = reports.form_of(output) if output else "html"
    folder = overview.find(existing(storage), experiment)
    found = reports.read(folder)
    target = output or Path(f"{folder.name}.html")
    _write(target, reports.FORMATS[form](found))
    click.echo(f"{target}")
    if images is not None:
        from raytune_autotuner.report.images import save

        for path in save(plots.figures(found.results, found.states).values(), images):
            click.echo(f"{path}")
    return OK


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError.single("--output", f"cannot be written: {error}", str(path)) from error
