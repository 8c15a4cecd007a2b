"""One experiment: assemble Ray Tune, run it, end it in order. The only place where Tune meets the trial."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ray import tune

from raytune_autotuner import lock, reuse, sessions, warm_start
from raytune_autotuner.actor import actor_class
from raytune_autotuner.earlier import Found
from raytune_autotuner.errors import EnvironmentFault, StorageFault
from raytune_autotuner.folder import COURSE, ExperimentFolder
from raytune_autotuner.gate import Course, ExperimentGate
from raytune_autotuner.history import settle, take_up
from raytune_autotuner.importance import importance
from raytune_autotuner.ledger import WAITING
from raytune_autotuner.packing import GpuNode
from raytune_autotuner.planning.plan import make_plan
from raytune_autotuner.planning.space import Space
from raytune_autotuner.processes import owning_descendants, sweep
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.queueing import PlacedQueue
from raytune_autotuner.ray_nodes import RayNodes, unplaced
from raytune_autotuner.ray_runtime import connected
from raytune_autotuner.records import Failure, Parameters, TrialId, TrialRecord, TrialState, config_hash
from raytune_autotuner.reservation import OME_GPU, RAY_GPU, Places, declared
from raytune_autotuner.results import Results, load_results
from raytune_autotuner.results_file import document, to_text, trials_csv
from raytune_autotuner.search import Lessons, Limits, Past, Proposer, RandomSource, make_scheduler, make_source
from raytune_autotuner.setup import Setup
from raytune_autotuner.site import Site
from raytune_autotuner.storage import Storage
from raytune_autotuner.telemetry import Telemetry
from raytune_autotuner.tracking import Desk, check, complete, open_desk
from raytune_autotuner.trial import run as run_trial
from raytune_autotuner.trial import seconds_since, utc_now
from raytune_autotuner.warm_start import First

logger = logging.getLogger(__name__)
TAKEN_OVER = 3
"""The exit code when somebody else has taken the experiment."""
UNHEARD = "each ends with its rung, or in ten minutes; a second signal leaves at once"
AT_ONCE = 10_000
"""More than there ever are: the queue decides. Without a number, Tune would begin one trial at a time."""


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what."""

    results_path: Path | None = None
    dashboard: bool = False
    resume: bool = False
    """Go on with the experiment in the folder; without it, an experiment of that name must not be there."""
    search_on: bool = False
    """Though nothing was left to gain when the search ended."""
    aside: bool = False
    """Keep the results in the folder only."""
    force: bool = False
    """Take the experiment from a holder that gave a sign of life lately, if it gives none any more."""
    earlier: Found = Found()  # noqa: RUF009 - a value
    """Experiments of before, whose best configurations are tried first."""
    reuse: bool = False
    """Take over what they have measured where it must come out the same."""
    about: Mapping[str, Any] | None = None
    """Of an experiment without a search: what it measures, and what for."""


def experiment_name(task_name: str) -> str:
    """Unique and sortable: the task's name and the time."""
    return f"{task_name}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"


def run(setup: Setup, options: Options, course: Course | None = None) -> Results:
    """Run an experiment, or go on with it; its folder is complete when this returns, however it ended.

    The first interrupt (SIGINT, SIGTERM) ends running trials in order, the second ends at once.

    Raises:
        EnvironmentFault: the machine or the storage cannot do it, or somebody else runs the experiment.
    """
    check(setup.task.tracking)
    sweep()
    _check_course(setup.folder, options)
    sessions.check(setup, resume=options.resume)  # before the lock of a dead holder goes, which says when it died
    with lock.hold(setup.folder.root, force=options.force, lost=_leave) as found:
        if options.search_on:
            setup.folder.save_search_end(None)
        if options.about is not None:
            setup.folder.root.write(COURSE, json.dumps(options.about))
        session = sessions.begin(setup, resume=options.resume, found=found)
        setup = replace(setup, folder=replace(setup.folder, session=session.number))
        desk = open_desk(setup.folder, setup.task)
        try:
            if options.reuse:
                reuse.take_over(setup, options.earlier)
            _run_trials(setup, options, take_up(setup.folder, found.beat_at if found else None), course, desk)
        except BaseException:
            with suppress(StorageFault):  # what went wrong first is to be told
                _conclude(setup, options, session, desk)
            raise
        return _conclude(setup, options, session, desk)


def _check_course(folder: ExperimentFolder, options: Options) -> None:
    root = folder.root
    if options.resume and options.about is not None and root.exists("task.json") and not root.exists(COURSE):
        what = "is an experiment with a search, which this would be mixed with; keep its results under another name"
        raise EnvironmentFault(f"{root.location()} {what}")


def run_one(setup: Setup, trial: TrialId, parameters: Parameters) -> TrialRecord:
    """Run one trial here, without a search and without Ray, owned and ended by signals as in ``run``.

    Raises:
        EnvironmentFault: the machine or the storage cannot do it, or somebody else runs the experiment.
    """
    sweep()
    with ExitStack() as stack:
        stack.enter_context(lock.hold(setup.folder.root, lost=_leave))
        setup.folder.root.delete("stop")  # of a trial before this one
        stack.enter_context(_orderly_stop(setup))  # left after the site, which is emptied in peace
        setup = replace(setup, site=stack.enter_context(_held(setup, [trial])))
        return run_trial(setup.trial(trial, 0, parameters))


def _held(setup: Setup, open: Collection[TrialId]) -> AbstractContextManager[Site]:
    return setup.site.held(setup.folder, open, partial(settle, setup.folder))


def _leave(reason: str) -> None:
    """Somebody else has the experiment now: be gone before anything is written. What we started ends with us."""
    sys.stderr.write(f"error: {reason}\n")
    sys.stderr.flush()
    os._exit(TAKEN_OVER)


def _run_trials(setup: Setup, options: Options, past: Past, course: Course | None, desk: Desk) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(_scratch(setup.folder.name))
        listen = stack.enter_context(_orderly_stop(setup))  # left after the site, which is emptied in peace
        held = _held(setup, [proposal.trial for proposal in past.open])
        setup = replace(setup, site=stack.enter_context(held))
        nodes = setup.site.gpu_nodes()
        stack.enter_context(connected(declared(nodes or ()), folder, dashboard=options.dashboard))
        listen()  # again: Ray has installed handlers of its own
        setup = replace(setup, client_socket=stack.enter_context(setup.shared_client(folder / "client")))
        queue = _queue(setup, nodes)
        gate = ExperimentGate(setup, queue, course)
        stack.enter_context(gate.purse.watched())
        lessons = _lessons(setup, past, warm_start.begin(setup, options.earlier))
        _tune(setup, past, lessons, gate, queue, _run_config(setup, folder, desk))
        gate.check()


def _conclude(setup: Setup, options: Options, session: sessions.Session, desk: Desk) -> Results:
    """The results first: whoever told us to end may not wait for a tracker that does not answer."""
    try:
        _close_open_trials(setup)
    finally:  # or its time would go on
        sessions.end(setup.folder, session)
    results = write_results(setup, options)
    complete(desk, setup.folder)
    return results


def _queue(setup: Setup, nodes: Sequence[GpuNode] | None) -> PlacedQueue:
    """Where trials wait for their GPUs.

    Raises:
        EnvironmentFault: the baseline can never run here, and a search without it would prove nothing.
    """
    resource = OME_GPU if nodes is not None else RAY_GPU
    ray_nodes = RayNodes(resource)
    places = Places.of(ray_nodes.read(wait=True), resource)
    for warning in places.check(nodes) if nodes is not None else ():
        logger.warning(warning)
    queue = PlacedQueue(
        lambda: Places.of(ray_nodes.read(), resource), setup.need, setup.folder.save_waiting, unplaced=unplaced
    )
    if (reason := queue.never({})) is not None:
        raise EnvironmentFault(f"the baseline cannot run here: {reason}")
    return queue


def _lessons(setup: Setup, past: Past, first: Sequence[First]) -> Lessons:
    """What the search begins with: what is known, and what is to be tried first of all that is not."""
    lessons = past.lessons()
    known = {config_hash(parameters) for parameters in (*(told for told, _ in lessons.told), *lessons.open)}
    new = tuple(each.parameters for each in first if config_hash(each.parameters) not in known)
    free = {config_hash(each.parameters): each.free for each in first}
    expects = roofline.expects if (roofline := setup.roofline) else None
    return replace(lessons, first=new, free=free, usual=setup.launch.usual(), expects=expects)


def _tune(
    setup: Setup, past: Past, lessons: Lessons, gate: ExperimentGate, queue: PlacedQueue, run_config: tune.RunConfig
) -> None:
    task = setup.task
    space = Space.of(task, setup.engine)
    source = make_source(task, space, lessons, setup.gpus)
    proposer = Proposer(
        source,
        fallback=RandomSource(space, task.optimization.seed + 1) if space.dimensions else None,
        limits=Limits(
            task.optimization.max_iterations,
            task.optimization.baseline_every,
            task.optimization.stop_after_hopeless_trials,
        ),
        gate=gate,
        past=past,
        queue=queue,
        course=gate.course,
    )
    tuner = tune.Tuner(
        actor_class(setup),
        tune_config=tune.TuneConfig(
            search_alg=proposer,
            scheduler=make_scheduler(task.optimization, len(setup.rungs), past.ended, source, proposer.is_void),
            num_samples=-1,
            max_concurrent_trials=task.optimization.max_concurrent_trials or AT_ONCE,
            trial_name_creator=lambda trial: Proposal.from_config(trial.config).trial.name,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=run_config,
    )
    tuner.fit()


def _run_config(setup: Setup, folder: Path, desk: Desk) -> tune.RunConfig:
    planned = make_plan(setup.task, setup.engine).trials
    return tune.RunConfig(
        name="tune",
        storage_path=str(folder),  # Tune's own state is not needed: the experiment folder is the truth
        stop=_Unheard(setup.folder),
        verbose=0,
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        callbacks=[Telemetry(setup.folder, setup.task.task_name, planned, setup.gpus, desk)],
    )


class _Unheard(tune.Stopper):
    """Lets Tune end the trials when they cannot hear of a stop; those that hear of it end in better order."""

    def __init__(self, folder: ExperimentFolder) -> None:
        self._folder = folder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._folder.stop_is_unheard


@contextmanager
def _scratch(experiment: str) -> Iterator[Path]:
    """A folder for what lives as long as the run; it and all that was started meanwhile go when this process does."""
    folder = Path(tempfile.mkdtemp(prefix="rta-"))  # short: the paths of the sockets in it have a limit
    with owning_descendants(f"{experiment}/run", folder):
        yield folder


@contextmanager
def _orderly_stop(setup: Setup) -> Iterator[Callable[[], object]]:
    """First signal: the stop file, which every trial looks for once a second. Second: out, at once.

    What it gives listens anew, where somebody else has come to listen instead. Where the file cannot be written, the
    search ends all the same and Tune ends the trials (see ``_Unheard``).
    Leaving at once is safe because every process of ours ends with the one that started it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    signals = count(1)

    def handle(number: int, frame: object) -> None:
        if next(signals) > 1:
            os._exit(130)
        try:
            setup.folder.request_stop()
        except StorageFault as fault:  # the search hears of it all the same
            sys.stderr.write(f"no trial elsewhere hears of the stop: {fault}; {UNHEARD}\n")

    def listen() -> dict[signal.Signals, Any]:
        return {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}

    before = listen()
    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close_open_trials(setup: Setup) -> None:
    """Write the end of trials whose worker could not: what they measured is kept."""
    sweep(setup.folder.name)
    for state in setup.folder.states():
        if state.outcome is None and setup.folder.record(state.trial.name) is None:
            setup.folder.save_record(_interrupted(setup, state))
            setup.folder.save_state(replace(state, phase="ended", outcome="stopped", updated_at=utc_now()))


def _interrupted(setup: Setup, state: TrialState) -> TrialRecord:
    """Its GPUs, if it had any yet, were held until now, when what was left of it has been removed."""
    held_s = seconds_since(state.updated_at) if state.phase not in WAITING else 0.0
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
        phases={**state.phases, "idle": state.phases.get("idle", 0.0) + held_s},
    )


def write_results(setup: Setup, options: Options) -> Results:
    """Write results.json and trials.csv into the folder, and the results file where the user wants it."""
    results = load_results(setup.folder, setup.task)
    extra = {
        "elapsed_time": round(sessions.elapsed_s(setup.folder), 1),
        "folder": setup.folder.root.location(),
        "versions": sessions.environment(setup),
        "importance": asdict(importance(results.records, setup.task.optimization.seed)),
    }
    text = to_text(document(results, extra))
    setup.folder.root.write("results.json", text)
    setup.folder.root.write("trials.csv", trials_csv(results))
    path = options.results_path or Path("results") / f"{setup.task.task_name}_results.json"
    if results.records and not options.aside:  # a run that never began must not take the place of an earlier answer
        Storage(str(path.parent)).write(path.name, text)
    return results
