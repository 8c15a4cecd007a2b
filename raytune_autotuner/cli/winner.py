"""Commands about the answer: write it out, measure it again, ask what it depends on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from raytune_autotuner.cli.follow import experiment_argument
from raytune_autotuner.cli.options import (
    INTERRUPTED,
    NOTHING_FEASIBLE,
    OK,
    existing,
    exit_codes,
    name_option,
    storage_option,
)
from raytune_autotuner.errors import SpecError

if TYPE_CHECKING:
    from raytune_autotuner.engines.engine import Engine
    from raytune_autotuner.export import Wish
    from raytune_autotuner.folder import ExperimentFolder
    from raytune_autotuner.task.spec import Task
    from raytune_autotuner.verdict import Verdict

UNSTABLE = NOTHING_FEASIBLE
BUDGET = "optimization.budget"

budget_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help=f"Another budget for what is measured, e.g. {BUDGET}.gpu_hours=40.",
)


@click.command()
@experiment_argument
@storage_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write; default: standard output.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["isvc", "runtime", "command"]),
    help="An InferenceService (default for OME), its ServingRuntime, or a launch script (default for a local engine).",
)
@click.option("--trial", help="A trial's name or number; default: the recommended one.")
@click.option("--name", help="Of the object; default: made from the task's.")
@click.option("--namespace", help="Of the object; default: that of the trials.")
@click.option("--replicas", type=click.IntRange(min=1), help="Engines behind the service; default: as measured.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Of a launch script.")
@click.option("--minimal", is_flag=True, help="Measure which of its flags can go without a loss, and leave those out.")
@click.option(
    "--margin",
    type=click.FloatRange(min=0.1, max=50),
    default=2.0,
    show_default=True,
    help="--minimal: per cent that may be lost.",
)
@budget_option
@exit_codes
def export(
    experiment: str,
    storage: str,
    output: Path | None,
    form: str | None,
    trial: str | None,
    name: str | None,
    namespace: str | None,
    replicas: int | None,
    port: int,
    minimal: bool,
    margin: float,
    overrides: tuple[str, ...],
) -> int:
    """Write the recommended configuration as something to apply, with where it comes from."""
    from raytune_autotuner import overview
    from raytune_autotuner.export import Wish
    from raytune_autotuner.export import export as export_text

    folder = overview.find(existing(storage), experiment)
    wish = Wish(form, trial, name, namespace, replicas, port)  # type: ignore[arg-type]  # one of the choices
    text = export_text(folder, wish)  # whatever cannot be written is to be known before anything is measured
    if minimal:
        if trial is not None:
            raise SpecError.single("--trial", "--minimal starts from the recommended configuration")
        measured = _minimal(folder, overrides, wish, margin / 100)
        if measured is None:
            return INTERRUPTED
        text = measured
    if output is None:
        click.echo(text, nl=False)
        return OK
    _write(output, text)
    click.echo(f"written to {output}")
    return OK


def _minimal(folder: ExperimentFolder, overrides: Sequence[str], wish: Wish, margin: float) -> str | None:
    """What is left of the winner; ``None`` when the measurements were interrupted, or the budget has ended them."""
    from raytune_autotuner import ablation, display
    from raytune_autotuner.minimal import described

    prepared = ablation.begin(folder, *_measured_again(folder, overrides), margin)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"at most {prepared.plan.runs} runs, in {prepared.setup.folder.root.location()}", markup=False)
    with display.progress(prepared.setup.folder, prepared.plan.runs, console, board=False):
        stand = ablation.run(prepared)
    for line in described(stand):
        console.print(line, markup=False)
    if not stand.is_over:
        how = f"with a larger budget (--set {BUDGET}.…) " if stand.unpaid else ""
        console.print(f"{stand.unpaid or 'interrupted'}; give the same command again {how}to go on", markup=False)
        return None
    return ablation.export_minimal(prepared, stand, wish)


def _measured_again(folder: ExperimentFolder, overrides: Sequence[str]) -> tuple[Task, Engine]:
    """The task of an experiment, with which the runs have to compare: nothing but its budget may be changed."""
    from raytune_autotuner import overview
    from raytune_autotuner.planning.checks import load_document
    from raytune_autotuner.task import taskfile

    for setting in overrides:
        path, _, _ = setting.partition("=")
        if not f"{path.strip()}.".startswith(f"{BUDGET}."):
            raise SpecError.single(f"--set {setting}", f"only {BUDGET} may be another one here", folder.name)
    return load_document(taskfile.override(overview.read_document(folder), overrides))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
        if text.startswith("#!"):
            path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise SpecError.single("--output", f"cannot be written: {error}", str(path)) from error


@click.command()
@click.argument("file", metavar="FILE_OR_EXPERIMENT")
@storage_option
@click.option("--of", "experiment", help="The experiment whose task and baseline count; default: what the file says.")
@name_option("Of this measurement; default: the experiment's name, `verify` and the time.")
@budget_option
@exit_codes
def verify(file: str, storage: str, experiment: str | None, name: str | None, overrides: tuple[str, ...]) -> int:
    """Deploy exactly what an exported FILE says, and measure it against the baseline again.

    Of an EXPERIMENT it is what export writes. Exits with 0 for WIN and TIE, with 1 for UNSTABLE.
    """
    from raytune_autotuner import display, overview, verification
    from raytune_autotuner.experiment import Options
    from raytune_autotuner.setup import prepare

    opened = existing(storage)
    exported = verification.read(Path(file), os.environ) if Path(file).is_file() else None
    if exported is None and Path(file).suffix in (".sh", ".yaml", ".yml"):  # and no name of an experiment
        raise SpecError.single("", "there is no such file", file)
    of = overview.find(opened, experiment or (exported.about.get("experiment") if exported else file))
    exported = exported or verification.exported(of, os.environ)
    task, engine = _measured_again(of, overrides)
    task = verification.fitted(task, exported, file)
    name = name or f"{of.name}-verify-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    setup = prepare(task, engine, opened, name)
    console = display.console()
    with display.progress(setup.folder, task.optimization.confirm.runs[1], console):
        verdict, budget = verification.verify(setup, exported, Options(aside=True))
    console.print(display.verified(verdict, budget, setup.folder.root.location()))
    return _code(verdict)


def _code(verdict: Verdict | None) -> int:
    if verdict is None:
        return INTERRUPTED
    return UNSTABLE if verdict.kind == "UNSTABLE" else OK


@click.command()
@experiment_argument
@storage_option
@exit_codes
def importance(experiment: str, storage: str) -> int:
    """Show which parameters the score depends on, and how, with the uncertainty."""
    from raytune_autotuner import display, overview
    from raytune_autotuner.importance import importance as found_importance

    folder = overview.find(existing(storage), experiment)
    display.console().print(display.importance(found_importance(folder.records())))
    return OK
