"""Commands about a task file and the cluster that it names; they start nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from raytune_autotuner.cli.options import ENVIRONMENT, OK, exit_codes, overrides_option, storage_option, task_argument
from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.init_task import GOALS, Wish, write_task

GC_S = 300.0


@click.command()
@task_argument
@overrides_option
@storage_option
@exit_codes
def validate(task_file: Path, overrides: tuple[str, ...], storage: str) -> int:
    """Check a task file and show the plan: trials, rungs, time, cost. Starts nothing.

    Times are those of earlier experiments in the storage, where there are any of the same model and engine; with OME
    so are the runtime's flags, by which GPUs are counted.
    """
    from raytune_autotuner import display
    from raytune_autotuner.earlier import recent
    from raytune_autotuner.planning.checks import load_checked
    from raytune_autotuner.planning.experience import experience
    from raytune_autotuner.planning.plan import make_plan, render
    from raytune_autotuner.storage import Storage

    task, engine = load_checked(task_file, overrides, here=True)
    found = recent(Storage(storage))
    display.console().print(render(make_plan(task, engine, experience(found, task, engine))))
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    return OK


@click.command()
@task_argument
@overrides_option
@exit_codes
def doctor(task_file: Path, overrides: tuple[str, ...]) -> int:
    """Look at everything that an OME task needs of the cluster, and say what mends it. Creates nothing."""
    from raytune_autotuner import ome_site
    from raytune_autotuner.planning.checks import load_checked
    from raytune_autotuner.setup import least_gpus

    task, engine = load_checked(task_file, overrides)
    if task.backend != "ome":
        message = "doctor looks at a cluster, and this task runs on this machine; `validate` looks at all that it names"
        raise SpecError.single("backend", message)
    findings = ome_site.check_up(task, least_gpus(task, engine))
    for finding in findings:
        click.echo(ome_site.described(finding))
    return ENVIRONMENT if any(finding.level == "error" for finding in findings) else OK


@click.command()
@click.option("--namespace", required=True, help="Where experiments run.")
@click.option("--kubeconfig", help="Default: $KUBECONFIG, the pod's own, ~/.kube/config.")
@click.option("--context", help="Of the kubeconfig.")
@click.option("--yes", is_flag=True, help="Remove what is listed; without it nothing is touched.")
@exit_codes
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


@click.command()
@exit_codes
def schema() -> int:
    """Print the JSON Schema of the task file."""
    from raytune_autotuner.task.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
    return OK


@click.command()
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
@exit_codes
def init(scenarios: tuple[str, ...], concurrency: tuple[int, ...], **flags: Any) -> int:
    """Print a commented task file made from flags."""
    limits = {"ttft_p99_s": flags.pop("ttft_p99"), "tpot_p95_s": flags.pop("tpot_p95")}
    click.echo(write_task(Wish(**flags, scenarios=scenarios, concurrency=concurrency, **limits)), nl=False)
    return OK
