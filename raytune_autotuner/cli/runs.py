"""Commands that run trials in this process: a search, the rest of one, a single configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raytune_autotuner.cli.options import (
    ENVIRONMENT,
    INTERRUPTED,
    NOTHING_FEASIBLE,
    OK,
    existing,
    exit_codes,
    measured_option,
    name_option,
    overrides_option,
    resume_option,
    reuse_option,
    storage_option,
    task_argument,
)
from raytune_autotuner.errors import Problem, SpecError
from raytune_autotuner.records import Parameters

if TYPE_CHECKING:
    from raytune_autotuner.earlier import Found
    from raytune_autotuner.engines.engine import Engine
    from raytune_autotuner.experiment import Options
    from raytune_autotuner.folder import ExperimentFolder
    from raytune_autotuner.planning.plan import Plan
    from raytune_autotuner.results import Results
    from raytune_autotuner.setup import Setup
    from raytune_autotuner.task.spec import Task

results_option = click.option(
    "--results", "results_path", type=click.Path(path_type=Path), help="Where to write the results file."
)
dashboard_option = click.option("--dashboard", is_flag=True, help="Start the Ray dashboard beside the experiment.")
force_option = click.option(
    "--force", is_flag=True, help="Take the experiment over from a holder that gives no sign of life any more."
)


ended_is_ok_option = click.option(
    "--ended-is-ok",
    is_flag=True,
    help="Exit with 0 also when nothing was feasible or somebody stopped it: for runners that try again what fails.",
)


@dataclass(frozen=True)
class How:
    """How an experiment is to be run, as opposed to what and where."""

    results_path: Path | None
    dashboard: bool
    force: bool
    resume: bool
    ended_is_ok: bool
    reuse: bool = False
    search_on: bool = False


@click.command()
@task_argument
@overrides_option
@storage_option
@measured_option
@results_option
@name_option()
@resume_option
@reuse_option
@force_option
@dashboard_option
@ended_is_ok_option
@exit_codes
def run(
    task_file: Path,
    overrides: tuple[str, ...],
    storage: str,
    measured: str | None,
    name: str | None,
    resume: str | None,
    reuse: bool,
    results_path: Path | None,
    dashboard: bool,
    force: bool,
    ended_is_ok: bool,
) -> int:
    """Run the search that a task file describes."""
    from raytune_autotuner.planning.checks import load_checked
    from raytune_autotuner.submit import check_version, checked_resume, stop_note, storage_note

    check_version(os.environ)
    checked_resume(resume, name)
    for note in filter(None, (stop_note(os.environ), storage_note(os.environ, storage))):
        click.echo(note, err=True)
    task, engine = load_checked(task_file, (*overrides, *([measured] if measured else [])), here=True)
    how = How(results_path, dashboard, force, resume is not None, ended_is_ok, reuse)
    return _run(task, engine, storage, name, how)


@click.command()
@click.argument("experiment")
@storage_option
@results_option
@force_option
@dashboard_option
@ended_is_ok_option
@exit_codes
def resume(
    experiment: str, storage: str, results_path: Path | None, dashboard: bool, force: bool, ended_is_ok: bool
) -> int:
    """Go on with an experiment that was interrupted; what has been measured is kept."""
    from raytune_autotuner import overview
    from raytune_autotuner.planning.checks import load_document

    folder = overview.find(existing(storage), experiment)
    _refuse_course(folder)
    task, engine = load_document(overview.read_document(folder))
    return _run(task, engine, storage, folder.name, How(results_path, dashboard, force, True, ended_is_ok))


@click.command()
@click.argument("experiment")
@click.option("--trials", type=click.IntRange(min=1), required=True, help="How many more the search may propose.")
@overrides_option
@storage_option
@results_option
@reuse_option
@dashboard_option
@exit_codes
def extend(
    experiment: str,
    trials: int,
    overrides: tuple[str, ...],
    storage: str,
    results_path: Path | None,
    reuse: bool,
    dashboard: bool,
) -> int:
    """Search on in a finished experiment; everything that it has measured is known to the search.

    One that its budget has ended needs a larger one, e.g. --set optimization.budget.gpu_hours=40.
    """
    from raytune_autotuner import history, overview
    from raytune_autotuner.planning.checks import load_document
    from raytune_autotuner.task import taskfile

    folder = overview.find(existing(storage), experiment)
    _refuse_course(folder)
    more = f"optimization.max_iterations={history.searched(folder) + trials}"
    task, engine = load_document(taskfile.override(overview.read_document(folder), [*overrides, more]))
    how = How(results_path, dashboard, force=False, resume=True, ended_is_ok=False, reuse=reuse, search_on=True)
    return _run(task, engine, storage, folder.name, how)


def _refuse_course(folder: ExperimentFolder) -> None:
    from raytune_autotuner.folder import COURSE

    if folder.root.exists(COURSE):
        cure = "give `export --minimal` or `verify` again"
        raise SpecError.single("", f"has no search to go on with; {cure}", folder.name)


def _run(task: Task, engine: Engine, storage: str, name: str | None, how: How) -> int:
    from raytune_autotuner import display, experiment, overview
    from raytune_autotuner.earlier import recent
    from raytune_autotuner.planning.plan import render
    from raytune_autotuner.setup import prepare
    from raytune_autotuner.storage import Storage

    found = recent(Storage(storage), but=name or "")
    setup = prepare(task, engine, Storage(storage), name or experiment.experiment_name(task.task_name))
    plan = _planned(setup, found)
    console = display.console()
    console.print(render(plan))
    path = how.results_path or Path("results") / f"{task.task_name}_results.json"
    if path.is_dir():
        raise SpecError.single("--results", f"{path} is a folder; name a file", "run")
    goes_on = how.resume and setup.folder.root.exists("task.json")
    if not goes_on:
        _refuse_unpayable(setup)
    options = experiment.Options(
        path,
        how.dashboard,
        resume=goes_on,
        force=how.force,
        earlier=found,
        reuse=how.reuse,
        search_on=how.search_on,
    )
    for line in (*_of_cluster(setup), *_of_arithmetic(setup), *_of_earlier(setup, options)):
        console.print(line, markup=False, highlight=False)
    with display.progress(setup.folder, plan.trials, console):
        results = experiment.run(setup, options)
    said = overview.importances(setup.folder)
    console.print(display.answer(results, setup.folder.root.location(), str(path), said))
    return OK if how.ended_is_ok else _exit_code(results)


def _planned(setup: Setup, found: Found) -> Plan:
    """With the GPUs that the runtime's flags ask for, now that it has been read."""
    from raytune_autotuner.identity import identity
    from raytune_autotuner.planning.experience import experience
    from raytune_autotuner.planning.plan import make_plan

    before = experience(found, setup.task, setup.engine, identity(setup))
    return make_plan(setup.task, setup.engine, before, setup.gpus)


def _refuse_unpayable(setup: Setup) -> None:
    """With the GPUs of the runtime's flags, a budget may be too small that seemed to suffice without them."""
    from raytune_autotuner.planning.plan import make_plan, unpayable

    plan = make_plan(setup.task, setup.engine, gpus_of=setup.gpus)
    if problems := [Problem(f"optimization.budget.{place}", message) for place, message in unpayable(plan)]:
        raise SpecError(problems)


def _exit_code(results: Results) -> int:
    if results.interrupted:
        return INTERRUPTED
    end = results.ended_early
    failed = end is not None and end.cause == "identical_failures"
    if end is not None and failed and (results.winner or end.kind == "infrastructure"):
        return ENVIRONMENT  # what worked before does not any more, or none of it was the configurations' fault
    return OK if results.winner else NOTHING_FEASIBLE


def _of_cluster(setup: Setup) -> Iterator[str]:
    """What of the space the cluster can never hold, in words."""
    from raytune_autotuner.packing import Pool
    from raytune_autotuner.planning import impossible
    from raytune_autotuner.planning.plan import examples_of
    from raytune_autotuner.planning.space import Space

    if (nodes := setup.site.gpu_nodes()) is not None:
        pool = Pool({node.name: node.allocatable for node in nodes})
        examples, _ = examples_of(setup.task, Space.of(setup.task, setup.engine))
        yield from impossible.without_place(examples, lambda parameters: pool.never(setup.need(parameters)))


def _of_arithmetic(setup: Setup) -> Iterator[str]:
    """Whether the search knows beforehand how fast what should be, where an engine file tells how to reckon it."""
    from raytune_autotuner.foresight import obstacle

    if setup.engine.roofline is None or setup.task.optimization.strategy != "adaptive":
        return
    if (why := obstacle(setup.task, setup.engine, setup.known)) is None:
        yield "expected beforehand: what a roofline says of this model, these GPUs and this traffic"
    else:
        yield f"note: nothing is expected beforehand, so the search takes longer: {why}"


def _of_earlier(setup: Setup, options: Options) -> Iterator[str]:
    """What comes from elsewhere into this experiment, in words."""
    from raytune_autotuner import reuse, warm_start

    before = warm_start.load(setup.folder) if options.resume else None
    for first in warm_start.first_points(setup, options.earlier) if before is None else before:
        said = ", ".join(f"{name}={value}" for name, value in first.parameters.items())
        yield f"tried first: {said} ({first.why})"
    notes = reuse.matches(setup, options.earlier).notes if options.reuse else options.earlier.notes
    yield from (f"note: {note}" for note in notes)


@click.command()
@task_argument
@overrides_option
@storage_option
@click.option("--params", default="{}", metavar="JSON", help="The configuration; {} is the baseline.")
@name_option()
@exit_codes
def trial(task_file: Path, overrides: tuple[str, ...], storage: str, params: str, name: str | None) -> int:
    """Run one configuration, without a search."""
    from raytune_autotuner import display, experiment
    from raytune_autotuner.planning.checks import check_parameters, load_checked
    from raytune_autotuner.records import TrialId, config_hash
    from raytune_autotuner.setup import prepare
    from raytune_autotuner.storage import Storage

    task, engine = load_checked(task_file, overrides, here=True)
    parameters: Parameters = check_parameters(task, engine, params)
    setup = prepare(task, engine, Storage(storage), name or experiment.experiment_name(task.task_name))
    console = display.console()
    with display.progress(setup.folder, 1, console):
        record = experiment.run_one(setup, TrialId("single", config_hash(parameters)), parameters)
    console.print(display.trial_answer(record, setup.folder.root.location()))
    if record.failure is not None and record.failure.kind == "interrupted":
        return INTERRUPTED
    return OK if record.outcome == "completed" else NOTHING_FEASIBLE
