"""Commands that look at experiments from anywhere, and end them: they need the storage, and the cluster only to ask."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from raytune_autotuner.cli.options import ENVIRONMENT, OK, address_option, existing, exit_codes, storage_option
from raytune_autotuner.errors import SpecError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from raytune_autotuner.deadline import Deadline
    from raytune_autotuner.folder import ExperimentFolder
    from raytune_autotuner.jobs import JobServer
    from raytune_autotuner.overview import Overview
    from raytune_autotuner.storage import Storage

LOOK_S = 2.0
"""How often it is looked whether an experiment is over."""
STOP_S = 300.0
JOB_STOP_S = 600.0
"""More than Ray gives a job that was told to stop (see ``submit.stop_wait_s``)."""
NOTE_LENGTH = 200

experiment_argument = click.argument("experiment", metavar="EXPERIMENT")


@click.command("list")
@storage_option
@address_option()
@exit_codes
def list_experiments(storage: str, address: str | None) -> int:
    """List the experiments in a storage, the last begun first.

    With --address also those that the cluster has a job of, and that have no folder yet.
    """
    from raytune_autotuner import display
    from raytune_autotuner.overview import names

    opened = existing(storage, address)
    there = names(opened)
    waiting = _without_folder(address, there) if address else {}
    found = [each for name in there if (each := _overview(opened, name))]
    display.console().print(display.experiments(sorted(found, key=lambda each: each.age_s or 0.0), waiting))
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

    opened = existing(storage, address)
    folder = _find(opened, experiment, address, watch)
    if folder is None:
        assert experiment
        assert address
        click.echo(f"{experiment} has no folder in {opened.location()} yet")
        _tell_jobs(address, experiment, why=True)
        return OK
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
@click.option("-f", "--follow", "follow", is_flag=True, help="Go on until the trial, or the experiment, is over.")
@exit_codes
def logs(experiment: str, trial: str | None, storage: str, address: str | None, follow: bool) -> int:
    """Print what an experiment says, or the logs of one of its TRIALs (its name or number).

    With --address it is the log of the experiment's job, else the course of its trials.
    """
    from raytune_autotuner import overview

    if address and not trial:
        return _job_log(address, experiment, follow)
    folder = overview.find(existing(storage, address), experiment)
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

    With --address its job is stopped when the time is over, or at once where it has not begun yet.
    """
    from raytune_autotuner import overview
    from raytune_autotuner.deadline import Deadline

    folder = _find(existing(storage, address), experiment, address)
    if folder is None or overview.is_over(folder):
        return _stop_unbegun(address, folder.name if folder else experiment, wait_s)
    folder.request_stop()
    if not wait_s:
        click.echo(f"{folder.name} was asked to stop")
        return OK
    click.echo(f"{folder.name} was asked to stop; waiting")
    if _until_over(folder, Deadline.after(wait_s)):
        click.echo(f"{folder.name} has ended; its results are in {folder.root.location()}")
        return OK
    return _stop_late(address, folder, wait_s)


def _find(storage: Storage, wanted: str | None, address: str | None, watch: bool = False) -> ExperimentFolder | None:
    """As ``overview.find``; ``None`` where only the cluster knows it, which ``watch`` waits for as long as that runs.

    A job of that very name goes before a folder whose name only begins so.
    """
    from raytune_autotuner import overview
    from raytune_autotuner.jobs import JobServer, alive

    if address and wanted:
        server = JobServer.connect(address)
        while not storage.exists(f"{wanted}/task.json") and (attempts := server.attempts(wanted)):
            if not watch or not alive(attempts):
                return None
            time.sleep(LOOK_S)
    return overview.find(storage, wanted)


def _overview(storage: Storage, name: str) -> Overview | None:
    from raytune_autotuner.folder import ExperimentFolder
    from raytune_autotuner.overview import UNREADABLE, Overview

    try:
        return Overview.of(ExperimentFolder(storage, name))
    except UNREADABLE as error:
        first = str(error).partition("\n")[0]
        click.echo(f"note: {name} is left out, as it cannot be read: {first[:NOTE_LENGTH]}", err=True)
        return None


def _without_folder(address: str, there: list[str]) -> dict[str, str]:
    """What the job server says of experiments that are not in the storage, the newest first; not if they have ended."""
    from raytune_autotuner.jobs import JobServer

    newest = JobServer.connect(address).newest()
    return {name: job.status.value.lower() for name, job in newest.items() if name not in there and _is_news(job)}


def _is_news(job: JobDetails) -> bool:
    """Of a job without a folder: what went well or was stopped lies elsewhere, or was removed."""
    return job.status.value not in ("SUCCEEDED", "STOPPED")


def _until_over(folder: ExperimentFolder, deadline: Deadline | None = None) -> bool:
    from raytune_autotuner import overview

    while not overview.is_over(folder):
        if deadline and deadline.expired:
            return False
        time.sleep(min(LOOK_S, deadline.remaining()) if deadline else LOOK_S)
    return True


def _stop_unbegun(address: str | None, experiment: str, wait_s: float) -> int:
    """Of an experiment that nobody runs: its job may wait for its turn, or be about to begin."""
    from raytune_autotuner.jobs import JobServer, alive

    server = JobServer.connect(address) if address else None
    if server is None or not alive(server.attempts(experiment)):
        click.echo(f"{experiment} is not running")
        return OK
    return _stop_jobs(server, experiment, JOB_STOP_S if wait_s else None)


def _stop_late(address: str | None, folder: ExperimentFolder, waited_s: float) -> int:
    from raytune_autotuner.jobs import JobServer

    late = f"{folder.name} has not ended in {waited_s:.0f} s"
    if address is None:
        click.echo(f"{late}; with --address its job would be stopped", err=True)
        return ENVIRONMENT
    click.echo(late, err=True)
    return _stop_jobs(JobServer.connect(address), folder.name, JOB_STOP_S)


def _stop_jobs(server: JobServer, experiment: str, wait_s: float | None) -> int:
    """Stop what there is of jobs that have not ended, and wait for their end; ``None`` only asks."""
    from raytune_autotuner.jobs import alive, until_ended

    ids = [str(job.submission_id) for job in alive(server.attempts(experiment))]
    for submission_id in ids:
        server.stop(submission_id)
    if wait_s is None:
        click.echo(f"the job of {experiment} was asked to stop")
        return OK
    stopped = bool(ids) and all(until_ended(server, each, wait_s) for each in ids)
    click.echo(f"the job of {experiment} was stopped" if stopped else f"no job of {experiment} could be stopped")
    return OK if stopped else ENVIRONMENT


def _tell_jobs(address: str, experiment: str, why: bool = False) -> None:
    from raytune_autotuner.jobs import JobServer

    server = JobServer.connect(address)
    for job in server.attempts(experiment):
        click.echo(f"Job {job.submission_id}: {job.status.value}  {server.page(str(job.submission_id))}")
        if why and job.message:
            click.echo(f"  {job.message}")


def _job_log(address: str, experiment: str, follow: bool) -> int:
    from raytune_autotuner.job_log import follow as follow_log
    from raytune_autotuner.jobs import JobServer

    server = JobServer.connect(address)
    attempts = server.attempts(experiment)
    if not attempts:
        raise SpecError.single("", f"has no job of an experiment {experiment!r}", address)
    submission_id = str(attempts[0].submission_id)
    if follow:
        follow_log(server, submission_id, _echo)
    else:
        _echo(server.log(submission_id))
    return OK


def _course(folder: ExperimentFolder, follow: bool) -> None:
    """What each trial does, a line at each change; the lines that are past in any case."""
    from raytune_autotuner import display

    with display.progress(folder, 0, display.console(), board=False):
        if follow:
            _until_over(folder)


def _trial_logs(folder: ExperimentFolder, trial: str, follow: bool) -> None:
    from raytune_autotuner import overview
    from raytune_autotuner.trial_logs import Tail

    tail = Tail(folder, trial)
    while True:
        alone = follow and overview.is_over(folder)  # asked first: whoever ends the experiment ends the trial before
        ended = tail.is_over()
        for text in tail.news():
            _echo(text)
        if ended or not follow:
            return
        if alone:
            click.echo(f"nobody runs {folder.name} any more, and {trial} has not ended", err=True)
            return
        time.sleep(LOOK_S)


def _echo(text: str) -> None:
    click.echo(text, nl=False)
