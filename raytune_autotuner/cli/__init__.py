"""The command line. Every command is a few lines: load, call, print, exit code (see ``options``)."""

from __future__ import annotations

import click

from raytune_autotuner import __version__
from raytune_autotuner.cli import cluster, follow, report, runs, serve, tasks, winner
from raytune_autotuner.cli.options import BAD_INPUT, ENVIRONMENT, INTERRUPTED, NOTHING_FEASIBLE, OK

__all__ = ["BAD_INPUT", "ENVIRONMENT", "INTERRUPTED", "NOTHING_FEASIBLE", "OK", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="raytune-autotuner")
def main() -> None:
    """Find the launch parameters with which an LLM inference engine serves a given load best."""


for _command in (
    *(runs.run, runs.resume, runs.extend, runs.trial),
    *(cluster.submit, follow.list_experiments, follow.status, follow.logs, follow.stop),
    *(report.report,),
    *(winner.export, winner.verify, winner.importance),
    *(tasks.init, tasks.validate, tasks.schema, tasks.doctor, tasks.gc, serve.serve),
):
    main.add_command(_command)
