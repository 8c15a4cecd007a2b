"""The command line. Every command is a few lines: load, call, print, exit code.

Exit codes: 0 done, with an answer (also when the baseline stays the best), 1 it ran but nothing was feasible,
2 the input is wrong, 3 the environment lacks something, 130 interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from raytune_autotuner import __version__
from raytune_autotuner.errors import EnvironmentFault, SpecError, TransientError
from raytune_autotuner.planning.init_task import GOALS, Wish, write_task
from raytune_autotuner.records import Parameters

GC_S = 300.0
OK, NOTHING_FEASIBLE, BAD_INPUT, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 130

F = TypeVar("F", bound=Callable[..., int])


def _exit_codes(command: F) -> Callable[..., None]:
    """Turn our exceptions into a message on stderr and the documented exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        err = Console(stderr=True, soft_wrap=True, highlight=False)
        try:
            code = command(*args, **kwargs)
        except SpecError as error:
            for problem in error.problems:
                err.print(f"error: {error.source}: {problem}", markup=False)
            code = BAD_INPUT
        except (EnvironmentFault, TransientError) as error:
            err.print(f"error: {error}", markup=False)
            code = ENVIRONMENT
        except KeyboardInterrupt:
            err.print("interrupted", markup=False)
            code = INTERRUPTED
        raise SystemExit(code)

    return wrapped


_task = click.argument("task_file", metavar="TASK", type=click.Path(path_type=Path))
_overrides = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field, e.g. benchmark.repeats=3."
)
_storage = click.option(
    "--storage", default="results", show_default=True, help="Folder or URI that holds the experiment folders."
)

_measured = click.option(
    "--benchmark-job/--direct",
    "measured",
    default=None,
    callback=lambda _, __, job: None if job is None else f"ome.benchmark={'benchmark_job' if job else 'direct'}",
    help="OME: measure by a BenchmarkJob, or with genai-bench beside the trial (default: what the task says).",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="raytune-autotuner")
def main() -> None:
    """Find the launch parameters with which an LLM inference engine serves a given load best."""


@main.command()
@_task
@_overrides
@_exit_codes
def validate(task_file: Path, overrides: tuple[str, ...]) -> int:
    """Check a task file and show the plan: trials, rungs, time, cost. Starts nothing."""
    from raytune_autotuner import display
    from raytune_autotuner.planning.checks import load_checked
    from raytune_autotuner.planning.plan import make_plan, render

    task, engine = load_checked(task_file, overrides)
    display.console().print(render(make_plan(task, engine)))
    return OK


@main.command()
@_task
@_overrides
@_exit_codes
def doctor(task_file: Path, overrides: tuple[str, ...]) -> int:
    """Look at everything that an OME task needs of the cluster, and say what mends it. Creates nothing."""
    from raytune_autotuner import ome_site
    from raytune_autotuner.planning.checks import load_checked
    from raytune_autotuner.setup import least_gpus

    task, engine = load_checked(task_file, overrides)
    if task.backend != "ome":
        raise SpecError.single("backend", "doctor looks at a cluster, and this task runs on this machine")
    findings = ome_site.check_up(task, least_gpus(task, engine))
    for finding in findings:
        click.echo(ome_site.described(finding))
    return ENVIRONMENT if any(finding.level == "error" for finding in findings) else OK


@main.command()
@click.option("--namespace", required=True, help="Where experiments run.")
@click.option("--kubeconfig", help="Default: $KUBECONFIG, the pod's own, ~/.kube/config.")
@click.option("--context", help="Of the kubeconfig.")
@click.option("--yes", is_flag=True, help="Remove what is listed; without it nothing is touched.")
@_exit_codes
def gc(namespace: str, kubeconfig: str | None, context: str | None, yes: bool) -> int:
    """List, and with --yes remove, what experiments without a living owner have left in a namespace."""
    from raytune_autotuner import recovery
    from raytune_autotuner.deadline import Deadline
    from raytune_autotuner.kube import Cluster

    cluster = Cluster.connect(kubeconfig, context)
    orphans = recovery.find_orphans(cluster, namespace)
    for orphan in orphans:
        click.echo(f"{orphan.kind} {orphan.namespace}/{orphan.name}, {orphan.age_s:.0f} s old: {orphan.reason}")
    if not yes:
        click.echo(f"{len(orphans)} to remove; add --yes to do it" if orphans else "nothing to remove")
        return OK
    removed = recovery.remove(cluster, orphans, Deadline.after(GC_S))
    click.echo(f"{len(removed)} of {len(orphans)} removed")
    return OK


@main.command()
@_exit_codes
def schema() -> int:
    """Print the JSON Schema of the task file."""
    from raytune_autotuner.task.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
    return OK


@main.command()
@click.option("--model", required=True, help="The model's name.")
@click.option("--engine", required=True, help="An engine file's name: llamacpp, sglang, vllm.")
@click.option("--backend", type=click.Choice(["local", "ome"]), default="local", show_default=True)
@click.option("--goal", type=click.Choice(sorted(GOALS)), default="throughput", show_default=True)
@click.option("--name", help="The task's name; default: made from the model's.")
@click.option("--runtime", help="OME: the (Cluster)ServingRuntime in use today.")
@click.option("--model-path", help="Local engine: a file, a folder or package:NAME.")
@click.option("--tokenizer", help="A folder or a hub id.")
@click.option("--scenario", "scenarios", multiple=True, help="Traffic, e.g. 'D(100,100)'; repeatable.")
@click.option("--concurrency", type=click.IntRange(min=1), multiple=True, help="Level; repeatable.")
@click.option("--ttft-p99", type=float, help="Limit in seconds.")
@click.option("--tpot-p95", type=float, help="Limit in seconds.")
@_exit_codes
def init(scenarios: tuple[str, ...], concurrency: tuple[int, ...], **flags: Any) -> int:
    """Print a commented task file made from flags."""
    limits = {"ttft_p99_s": flags.pop("ttft_p99"), "tpot_p95_s": flags.pop("tpot_p95")}
    click.echo(write_task(Wish(**flags, scenarios=scenarios, concurrency=concurrency, **limits)), nl=False)
    return OK


@main.command()
@_task
@_overrides
@_storage
@_measured
@click.option("--results", "results_path", type=click.Path(path_type=Path), help="Where to write the results file.")
@click.option("--name", help="Name of the experiment; default: the task's name and the time.")
@click.option("--dashboard", is_flag=True, help="Start the Ray dashboard beside the experiment.")
@_exit_codes
def run(
    task_file: Path,
    overrides: tuple[str, ...],
    storage: str,
    measured: str | None,
    results_path: Path | None,
    name: str | None,
    dashboard: bool,
) -> int:
    """Run the search that a task file describes."""
    from raytune_autotuner import display, experiment
    from raytune_autotuner.planning.checks import load_checked
    from raytune_autotuner.planning.plan import make_plan, render
    from raytune_autotuner.setup import prepare
    from raytune_autotuner.storage import Storage

    task, engine = load_checked(task_file, (*overrides, *([measured] if measured else [])))
    plan = make_plan(task, engine)
    console = display.console()
    console.print(render(plan))
    setup = prepare(task, engine, Storage(storage), name or experiment.experiment_name(task.task_name))
    path = results_path or Path("results") / f"{task.task_name}_results.json"
    if path.is_dir():
        raise SpecError.single("--results", f"{path} is a folder; name a file", "run")
    with display.progress(setup.folder, plan.trials, console):
        results = experiment.run(setup, experiment.Options(path, dashboard))
    console.print(display.answer(results, setup.folder.root.location(), str(path)))
    if results.interrupted:
        return INTERRUPTED
    return OK if results.winner else NOTHING_FEASIBLE


@main.command()
@_task
@_overrides
@_storage
@click.option("--params", default="{}", metavar="JSON", help="The configuration; {} is the baseline.")
@click.option("--name", help="Name of the experiment folder; default: the task's name and the time.")
@_exit_codes
def trial(task_file: Path, overrides: tuple[str, ...], storage: str, params: str, name: str | None) -> int:
    """Run one configuration, without a search."""
    from raytune_autotuner import display, experiment
    from raytune_autotuner.planning.checks import check_parameters, load_checked
    from raytune_autotuner.records import TrialId, config_hash
    from raytune_autotuner.setup import prepare
    from raytune_autotuner.storage import Storage
    from raytune_autotuner.trial import run as run_trial

    task, engine = load_checked(task_file, overrides)
    parameters: Parameters = check_parameters(task, engine, params)
    setup = prepare(task, engine, Storage(storage), name or experiment.experiment_name(task.task_name))
    console = display.console()
    with display.progress(setup.folder, 1, console):
        record = run_trial(setup.trial(TrialId("single", config_hash(parameters)), 0, parameters))
    console.print(display.trial_answer(record, setup.folder.root.location()))
    return OK if record.outcome == "completed" else NOTHING_FEASIBLE
