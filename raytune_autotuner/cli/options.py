"""What commands have in common: exit codes, and options that several take.

Exit codes: 0 done, with an answer (also when the baseline stays the best), 1 it ran but nothing was feasible,
2 the input is wrong, 3 the environment lacks something or keeps failing, 70 a fault of this program (as in sysexits.h),
130 interrupted.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console

from raytune_autotuner.errors import TASK, EnvironmentFault, SpecError, Superseded, TransientError
from raytune_autotuner.records import EXPERIMENT_NAME

if TYPE_CHECKING:
    from raytune_autotuner.storage import Storage

OK, NOTHING_FEASIBLE, BAD_INPUT, ENVIRONMENT, ACCIDENT, INTERRUPTED = 0, 1, 2, 3, 70, 130
CLICKS_OWN = (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError)
"""What click turns into a message and an exit code by itself; the last is a reader that has had enough."""

F = TypeVar("F", bound=Callable[..., int])
C = TypeVar("C", bound=Callable[..., None])


def exit_codes(command: F) -> Callable[..., None]:
    """Turn our exceptions into a message on stderr and the documented exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        err = Console(stderr=True, soft_wrap=True, highlight=False)
        try:
            code = command(*args, **kwargs)
        except SpecError as error:
            for problem in error.problems:
                err.print(f"error: {_source(error, kwargs)}: {problem}", markup=False)
            code = BAD_INPUT
        except (EnvironmentFault, TransientError, Superseded) as error:
            err.print(f"error: {error}", markup=False)
            code = ENVIRONMENT
        except KeyboardInterrupt:
            err.print("interrupted", markup=False)
            code = INTERRUPTED
        except CLICKS_OWN:
            raise
        except Exception:  # noqa: BLE001 - Python's own exit code for it is 1, which says that nothing was feasible
            traceback.print_exc()
            code = ACCIDENT
        raise SystemExit(code)

    return wrapped


def _source(error: SpecError, arguments: Mapping[str, Any]) -> str:
    """What is at fault: of a task whose file the error does not know, the file or the experiment that was given."""
    named = next(filter(None, map(arguments.get, ("task_file", "experiment", "file"))), None)
    return str(named) if error.source == TASK and named else error.source


task_argument = click.argument("task_file", metavar="TASK", type=click.Path(path_type=Path))
overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field, e.g. benchmark.repeats=3."
)


def _no_file(_: click.Context, __: click.Parameter, storage: str) -> str:
    try:
        if "://" not in storage and Path(storage).expanduser().is_file():
            raise click.BadParameter(f"{storage} is a file; name the folder that holds the experiment folders")
    except (OSError, RuntimeError) as error:  # a name that is too long, or the home of nobody
        raise click.BadParameter(f"{storage!r} is no folder: {error}") from error
    return storage


def existing(storage: str, address: str | None = None) -> Storage:
    """The storage of a command that looks into it; a folder that was named for that has to be there.

    The default one comes with the first experiment, and so may that of jobs which wait on the cluster at the address.

    Raises:
        SpecError: there is no such folder.
    """
    from raytune_autotuner.storage import Storage

    opened = Storage(storage)
    named = click.get_current_context().get_parameter_source("storage") is ParameterSource.COMMANDLINE
    if named and not address and opened.is_local and not opened.exists(""):
        message = "there is no such folder; name the one that was given when the experiment was run"
        raise SpecError.single("--storage", message, opened.location())
    return opened


storage_option = click.option(
    "--storage",
    default="results",
    callback=_no_file,
    show_default=True,
    envvar="RAYTUNE_AUTOTUNER_STORAGE",
    show_envvar=True,
    help="Folder or URI that holds the experiment folders.",
)


def _experiment_name(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    if name and not EXPERIMENT_NAME.fullmatch(name):
        valid = "letters, digits, dots, dashes and _ after a letter or digit, 120 at most"
        raise click.BadParameter(f"{name!r} cannot be the name of an experiment: {valid}")
    return name


def name_option(what: str = "Name of the experiment; default: the task's name and the time.") -> Callable[[C], C]:
    return click.option("--name", callback=_experiment_name, help=what)


resume_option = click.option(
    "--resume", type=click.Choice(["auto"]), help="auto: go on with the experiment of that --name if there is one."
)
reuse_option = click.option(
    "--reuse", is_flag=True, help="Take over what earlier experiments have measured, where everything is equal."
)
measured_option = click.option(
    "--benchmark-job/--direct",
    "measured",
    default=None,
    callback=lambda _, __, job: None if job is None else f"ome.benchmark={'benchmark_job' if job else 'direct'}",
    help="OME: measure by a BenchmarkJob, or with genai-bench beside the trial (default: what the task says).",
)
address_help = "The Ray dashboard, e.g. http://HEAD:8265."


def address_option(required: bool = False) -> Callable[[C], C]:
    return click.option(
        "--address", required=required, envvar="RAY_API_SERVER_ADDRESS", show_envvar=True, help=address_help
    )
