"""Commands that look at experiments from anywhere, and end them: they need the storage, and the cluster only to ask."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from raytune_autotuner.cli.options import ENVIRONMENT, OK, address_option, exit_codes, storage_option
from raytune_autotuner.errors import SpecError

if TYPE_CHECKING:
    from raytune_autotuner.deadline import Deadline
    from raytune_autotuner.folder import ExperimentFolder

LOOK_S = 2.0
"""How often it is looked whether an experiment is over."""
STOP_S = 300.0
JOB_STOP_S = 600.0
"""More than Ray gives a job that was told to stop (see ``submit.stop_wait_s``)."""

experiment_argument = click.argument("experiment", metavar="EXPERIMENT")


@click.command("list")
@storage_option
@exit_codes
def list_experiments(storage: str) -> int:
    """List the experiments in a storage, the last begun first."""
    from raytune_autotuner import display
    from raytune_autotuner.folder import ExperimentFolder
    from raytune_autotuner.overview import Overview, names
    from raytune_autotuner.storage import Storage

    opened = Storage(storage)
    found = [Overview.of(ExperimentFolder(opened, name)) for name in names(opened)]
    display.console().print(display.experiments(sorted(found, key=lambda each: each.age_s or 0.0)))
    return OK


@click.command()
@click.argument("experiment", metavar="[EXPERIMENT]", required=False)
@storage_option
@address_option()
@click.option("--watch", is_flag=True, help="Keep showing it until it is over.")
@exit_codes
def status(experiment: str | None, storage: str, address: str | None, watch: bool) -> int:
    """Show where an experiment stands, or its answer; by default the one that was begun last."""
    from raytune_autotuner import display, overview
    from raytune_autotuner.results import load_results
    from raytune_autotuner.storage import Storage

    folder = overview.find(Storage(storage), experiment)
    if address:
        _tell_jobs(address, folder.name)
    now = overview.Overview.of(folder)
    planned = overview.planned(folder)
    console = display.console()
    if watch and now.state == "running":
        with display.progress(folder, planned, console, elapsed_s=now.age_s or 0.0):
            _until_over(folder)
        now = overview.Overview.of(folder)
    if now.state == "done":
        results = load_results(folder, overview.read_task(folder))
        console.print(
            display.answer(
                results, folder.root.location(), folder.root.location("results.json"), overview.importances(folder)
            )
        )
    else:
        console.print(display.standing(now, folder.states(), planned))
    return OK


@click.command()
@experiment_argument
@click.argument("trial", required=False)
@storage_option
@address_option()
@click.option("-f", "--follow", "follow", is_flag=True, help="Go on until the experiment, or the trial, is over.")
@exit_codes
def logs(experiment: str, trial: str | None, storage: str, address: str | None, follow: bool) -> int:
    """Print what an experiment says, or the logs of one of its TRIALs (its name or number).

    With --address it is the log of the experiment's job, else the course of its trials.
    """
    from raytune_autotuner import overview
    from raytune_autotuner.storage import Storage

    if address and not trial:
        return _job_log(address, experiment, follow)
    folder = overview.find(Storage(storage), experiment)
    if trial:
        _trial_logs(folder, overview.find_trial(folder, trial), follow)
    else:
        _course(folder, follow)
    return OK


@click.command()
@experiment_argument
@storage_option
@address_option()
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=STOP_S,
    show_default=True,
    help="Seconds until it must be over; 0 only asks.",
)
@exit_codes
def stop(experiment: str, storage: str, address: str | None, wait_s: float) -> int:
    """End an experiment in order: no new trials, running ones torn down, results written.

    With --address its job is stopped when the time is over.
    """
    from raytune_autotuner import overview
    from raytune_autotuner.deadline import Deadline
    from raytune_autotuner.storage import Storage

    folder = overview.find(Storage(storage), experiment)
    if overview.is_over(folder):
        click.echo(f"{folder.name} is not running")
        return OK
    folder.request_stop()
    if not wait_s:
        click.echo(f"{folder.name} was asked to stop")
        return OK
    click.echo(f"{folder.name} was asked to stop; waiting")
    if _until_over(folder, Deadline.after(wait_s)):
        click.echo(f"{folder.name} has ended; its results are in {folder.root.location()}")
        return OK
    return _stop_job(address, folder, wait_s)


def _until_over(folder: ExperimentFolder, deadline: Deadline | None = None) -> bool:
    from raytune_autotuner import overview

    while not overview.is_over(folder):
        if deadline and deadline.expired:
            return False
        time.sleep(min(LOOK_S, deadline.remaining()) if deadline else LOOK_S)
    return True


def _stop_job(address: str | None, folder: ExperimentFolder, waited_s: float) -> int:
    from raytune_autotuner.jobs import JobServer, until_ended

    late = f"{folder.name} has not ended in {waited_s:.0f} s"
    if address is None:
        click.echo(f"{late}; with --address its job would be stopped", err=True)
        return ENVIRONMENT
    server = JobServer.connect(address)
    running = [job for job in server.attempts(folder.name) if not job.status.is_terminal()]
    for job in running:
        server.stop(str(job.submission_id))
    stopped = bool(running) and all(until_ended(server, str(job.submission_id), JOB_STOP_S) for job in running)
    click.echo(f"{late}; " + ("its job was stopped" if stopped else "no job of it could be stopped"), err=True)
    return OK if stopped else ENVIRONMENT


def _tell_jobs(address: str, experiment: str) -> None:
    from raytune_autotuner.jobs import JobServer

    server = JobServer.connect(address)
    for job in server.attempts(experiment):
        click.echo(f"Job {job.submission_id}: {job.status.value}  {server.page(str(job.submission_id))}")


def _job_log(address: str, experiment: str, follow: bool) -> int:
    from raytune_autotuner.job_log import follow as follow_log
    from raytune_autotuner.jobs import JobServer

    server = JobServer.connect(address)
    attempts = server.attempts(experiment)
    if not attempts:
        raise SpecError.single("", f"has no job of an experiment {experiment!r}", address)
    submission_id = str(attempts[0].submission_id)
    if follow:
        follow_log(server, submission_id, _echo, _leave)
    else:
        _echo(server.log(submission_id))
    return OK


def _leave() -> None:
    raise KeyboardInterrupt


def _course(folder: ExperimentFolder, follow: bool) -> None:
    """What each trial does, a line at each change; the lines that are past in any case."""
    from raytune_autotuner import display

    with display.progress(folder, 0, display.console(), board=False):
        if follow:
            _until_over(folder)


def _trial_logs(folder: ExperimentFolder, trial: str, follow: bool) -> None:
    from raytune_autotuner.trial_logs import Tail

    tail = Tail(folder, trial)
    while True:
        last_look = not follow or tail.is_over()
        for text in tail.news():
            _echo(text)
        if last_look:
            return
        time.sleep(LOOK_S)


def _echo(text: str) -> None:
    click.echo(text, nl=False)
