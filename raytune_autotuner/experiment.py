"""One experiment: assemble Ray Tune, run it, end it in order. The only place where Tune meets the trial."""

from __future__ import annotations

import logging
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raytune_autotuner import __version__
from raytune_autotuner.actor import actor_class
from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.planning.space import Space
from raytune_autotuner.processes import owning_descendants, sweep
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import Failure, Parameters, TrialRecord, TrialState
from raytune_autotuner.results import Results, document, load_results, to_text, trials_csv
from raytune_autotuner.search import Proposer, RandomSource, make_scheduler, make_source
from raytune_autotuner.setup import Setup
from raytune_autotuner.storage import Storage
from raytune_autotuner.trial import utc_now

OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's smallest; nothing of ours is large, and the default takes a third of the memory."""
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the experiment folder is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours ends trials in order; Tune's kills them after 10 s
    "RAY_AIR_NEW_OUTPUT": "0",  # the new reporter prints a box even when it is told to be silent
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would be handed on to the engine: whatever else runs would starve it
}


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what."""

    results_path: Path | None = None
    dashboard: bool = False


def experiment_name(task_name: str) -> str:
    """Unique and sortable: the task's name and the time."""
    return f"{task_name}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"


def run(setup: Setup, options: Options) -> Results:
    """Run a whole experiment; its folder is complete when this returns, however it ended.

    The first interrupt (SIGINT, SIGTERM) ends running trials in order, the second ends at once.

    Raises:
        EnvironmentFault: the machine or the storage cannot do it.
    """
    started = time.monotonic()
    sweep()
    _write_preamble(setup)
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(_scratch(setup.folder.name))
            setup = replace(
                setup, site=stack.enter_context(setup.site.held(setup.folder.name, setup.folder.root.location()))
            )
            stack.enter_context(_ray(setup, folder, options))
            stack.enter_context(_orderly_stop(setup))  # after Ray, which installs handlers of its own
            setup = replace(setup, client_socket=stack.enter_context(setup.shared_client(folder / "client")))
            _check_resources(setup)
            _tune(setup)
    finally:
        _close_open_trials(setup)
        results = write_results(setup, options, time.monotonic() - started)
    return results


def _tune(setup: Setup) -> None:
    task = setup.task
    space = Space.of(task, setup.engine)
    proposer = Proposer(
        make_source(task, space),
        fallback=RandomSource(space, task.optimization.seed + 1) if space.dimensions else None,
        max_trials=task.optimization.max_iterations,
        total_rungs=len(setup.rungs),
        confirm_repeats=task.optimization.confirm.repeats,
        problem=_does_not_fit(setup),
        refuse=_refusing(setup),
        stop_requested=setup.folder.stop_requested,
    )
    tuner = tune.Tuner(
        actor_class(setup),
        tune_config=tune.TuneConfig(
            search_alg=proposer,
            scheduler=make_scheduler(task.optimization, len(setup.rungs)),
            num_samples=-1,
            max_concurrent_trials=_concurrency(setup),
            trial_name_creator=lambda trial: Proposal.from_config(trial.config).trial.name,
            trial_dirname_creator=lambda trial: Proposal.from_config(trial.config).trial.name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=setup.folder.root.location(),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()


def _concurrency(setup: Setup) -> int:
    """As many trials at once as the reservations allow, taking the smallest trial as the measure."""
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    need = setup.resources({})
    fits = min(int(have.get(name, 0) // amount) for name, amount in need.items())
    return max(1, min(fits, setup.task.optimization.max_concurrent_trials or fits))


def _check_resources(setup: Setup) -> None:
    """The baseline must fit; a search without it would prove nothing, and Ray would wait for ever."""
    if (reason := _does_not_fit(setup)({})) is not None:
        raise EnvironmentFault(f"the baseline cannot run here: {reason}")


def _does_not_fit(setup: Setup) -> Callable[[Parameters], str | None]:
    nodes = [dict(n["Resources"]) for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]

    def problem(parameters: Parameters) -> str | None:
        need = setup.resources(parameters)
        if any(all(node.get(name, 0) >= amount for name, amount in need.items()) for node in nodes):
            return None
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
        most = ", ".join(f"{max((n.get(name, 0) for n in nodes), default=0):g} {name}" for name in need)
        return f"needs {wanted} on one node, the largest has {most}"

    return problem


def _refusing(setup: Setup) -> Callable[[Proposal, str], None]:
    def refuse(proposal: Proposal, reason: str) -> None:
        setup.folder.save_record(
            TrialRecord(
                trial=proposal.trial,
                experiment=setup.folder.name,
                number=proposal.number,
                parameters=proposal.parameters,
                outcome="infeasible",
                started_at=utc_now(),
                total_rungs=len(setup.rungs),
                failure=Failure("no_fit", reason),
            )
        )

    return refuse


@contextmanager
def _scratch(experiment: str) -> Iterator[Path]:
    """A folder for what lives as long as the run; it and all that was started meanwhile go when this process does."""
    folder = Path(tempfile.mkdtemp(prefix="rta-"))  # short: the paths of the sockets in it have a limit
    with owning_descendants(f"{experiment}/run", folder):
        yield folder


@contextmanager
def _ray(setup: Setup, folder: Path, options: Options) -> Iterator[None]:
    """A Ray of our own that ends with us, or the cluster that we were submitted to."""
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                resources=setup.site.declared(),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=options.dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",  # works without any network
                _temp_dir=str(folder),
            )
        yield
    finally:
        ray.shutdown()


@contextmanager
def _orderly_stop(setup: Setup) -> Iterator[None]:
    """First signal: the stop file, which every trial looks for once a second. Second: out, at once.

    Leaving at once is safe because every process of ours ends with the one that started it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        if setup.folder.stop_requested():
            os._exit(130)
        setup.folder.request_stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_preamble(setup: Setup) -> None:
    root = setup.folder.root
    root.write("task.json", setup.task.model_dump_json(indent=1))
    root.write("environment.json", to_text(environment(setup)))


def environment(setup: Setup) -> dict[str, Any]:
    """What the experiment ran on; no secret and no user variable."""
    packages = ("ray", "genai-bench", "hyperopt", "optuna", "xllamacpp", "numpy", "scipy")
    return {
        "raytune_autotuner": __version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "packages": {name: version for name in packages if (version := _version(name))},
        "engine": setup.engine.name,
        "tokenizer": setup.tokenizer,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _close_open_trials(setup: Setup) -> None:
    """Write the end of trials whose worker could not: what they measured is kept."""
    sweep(setup.folder.name)
    for state in setup.folder.states():
        if state.outcome is None and setup.folder.record(state.trial.name) is None:
            setup.folder.save_record(_interrupted(setup, state))
            setup.folder.save_state(replace(state, phase="ended", outcome="stopped", updated_at=utc_now()))


def _interrupted(setup: Setup, state: TrialState) -> TrialRecord:
    return TrialRecord(
        trial=state.trial,
        experiment=setup.folder.name,
        number=state.number,
        parameters=state.parameters,
        outcome="stopped",
        started_at=state.started_at,
        rungs=setup.folder.rungs(state.trial.name),
        total_rungs=state.total_rungs,
        failure=Failure("interrupted", f"the worker ended in phase {state.phase}"),
        gpus=setup.gpus(state.parameters),
    )


def write_results(setup: Setup, options: Options, elapsed_s: float) -> Results:
    """Write results.json and trials.csv into the folder, and the results file where the user wants it."""
    results = load_results(setup.folder, setup.task)
    extra = {
        "elapsed_time": round(elapsed_s, 1),
        "folder": setup.folder.root.location(),
        "versions": environment(setup),
    }
    text = to_text(document(results, extra))
    setup.folder.root.write("results.json", text)
    setup.folder.root.write("trials.csv", trials_csv(results))
    path = options.results_path or Path("results") / f"{setup.task.task_name}_results.json"
    if results.records:  # a run that never began must not take the place of an earlier answer
        Storage(str(path.parent)).write(path.name, text)
    return results
