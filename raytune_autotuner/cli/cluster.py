"""Handing an experiment to a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from raytune_autotuner.cli.options import (
    OK,
    address_option,
    exit_codes,
    measured_option,
    name_option,
    overrides_option,
    resume_option,
    reuse_option,
    storage_option,
    task_argument,
)

if TYPE_CHECKING:
    from raytune_autotuner.engines.engine import Engine
    from raytune_autotuner.jobs import JobServer
    from raytune_autotuner.submit import Experiment
    from raytune_autotuner.task.spec import Task


@click.command()
@task_argument
@address_option(required=True)
@overrides_option
@storage_option
@measured_option
@name_option()
@resume_option
@reuse_option
@click.option(
    "--shared",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="What lies in it is at the same path on the cluster, and is not shipped; repeatable.",
)
@click.option("--ship-package", is_flag=True, help="Ship this very package; its dependencies must be on the cluster.")
@click.option("--wait/--no-wait", default=True, help="Follow the log until the end (default), or leave.")
@exit_codes
def submit(
    task_file: Path,
    address: str,
    overrides: tuple[str, ...],
    storage: str,
    measured: str | None,
    name: str | None,
    resume: str | None,
    reuse: bool,
    shared: tuple[Path, ...],
    ship_package: bool,
    wait: bool,
) -> int:
    """Run the search that a task file describes as a job of a Ray cluster.

    Ctrl-C asks the experiment to end in order and goes on following it; a second one leaves it to itself.
    """
    from raytune_autotuner import submit
    from raytune_autotuner.experiment import experiment_name
    from raytune_autotuner.planning.checks import load_checked
    from raytune_autotuner.shipping import pack

    task, engine = load_checked(task_file, (*overrides, *([measured] if measured else [])))
    submit.checked_resume(resume, name)
    experiment = submit.Experiment(
        task=task,
        name=submit.checked_name(name) if name else experiment_name(task.task_name),
        storage=submit.checked_storage(storage),
        arguments=(*(("--resume", resume) if resume else ()), *(("--reuse",) if reuse else ())),
    )
    parcel = pack(task, shared)
    from raytune_autotuner.jobs import JobServer  # slow to import, and the task may be wrong

    server = JobServer.connect(address)
    _show_plan(task, engine, experiment)
    for note in parcel.notes:
        click.echo(f"note: {note}")
    with submit.ordered(experiment, parcel, ship_package) as order:
        server.submit(order)
    click.echo(f"Experiment {experiment.name} in {experiment.storage}, job {order.submission_id}")
    click.echo(f"Dashboard: {server.page(order.submission_id)}")
    return _follow(server, order.submission_id) if wait else OK


def _show_plan(task: Task, engine: Engine, experiment: Experiment) -> None:
    """With times of earlier experiments, where the storage can be read from here."""
    from raytune_autotuner import display
    from raytune_autotuner.earlier import recent
    from raytune_autotuner.planning.experience import experience
    from raytune_autotuner.planning.plan import make_plan, render
    from raytune_autotuner.storage import Storage

    found = recent(Storage(experiment.storage), but=experiment.name)
    display.console().print(render(make_plan(task, engine, experience(found, task, engine))))


def _follow(server: JobServer, submission_id: str) -> int:
    from raytune_autotuner.job_log import follow
    from raytune_autotuner.jobs import exit_code

    def say(text: str) -> None:
        click.echo(text, err=True)

    return exit_code(follow(server, submission_id, lambda text: click.echo(text, nl=False), say))
