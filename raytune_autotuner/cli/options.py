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
from typing import Any, TypeVar

import click
from rich.console import Console

from raytune_autotuner.errors import TASK, EnvironmentFault, SpecError, Superseded, TransientError

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
storage_option = click.option(
    "--storage",
    default="results",
    show_default=True,
    envvar="RAYTUNE_AUTOTUNER_STORAGE",
    show_envvar=True,
    help="Folder or URI that holds the experiment folders.",
)
name_option = click.option("--name", help="Name of the experiment; default: the task's name and the time.")
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
