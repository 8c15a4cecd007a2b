"""Whole experiments on a real Ray, with fake trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner import __version__, experiment, history, sessions
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import EnvironmentFault, StorageFault
from raytune_autotuner.experiment import Options
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import held_s
from raytune_autotuner.lock import LOCK, Holder
from raytune_autotuner.records import TrialId, TrialRecord, TrialState
from raytune_autotuner.results import Results
from raytune_autotuner.setup import Setup
from raytune_autotuner.site import Local
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import parse_task
from raytune_autotuner.trial import Trial
from tests.fakes.trials import FakeSetup, trial_id
from tests.waiting import until

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def fake_setup(tmp_path: Path, **changes: Any) -> FakeSetup:
    """Six speeds (0.5 is the best), a fault by parameter, the baseline at 2 s per request."""
    data: dict[str, Any] = {
        "task_name": "fake",
        "backend": "local",
        "engine": "llamacpp",
        "model": {"name": "m", "path": "m.gguf"},
        "parameters": {
            "speed": {"type": "choice", "values": [0.5, 1.0, 1.5, 3.0, 4.0, 5.0], "flag": "--speed"},
            "fault": {"type": "choice", "values": [""], "flag": "--fault"},
        },
        "optimization": {
            "strategy": "grid_search",
            "objective": "minimize_latency",
            "max_iterations": 6,
            "scheduler": {"type": "asha"},
            "confirm": {"repeats": 2},
        },
        "benchmark": {"traffic_scenarios": ["D(10,10)"], "rungs": [{"max_requests": 4}, {"max_requests": 8}]},
        "resources": {"cpus": 1},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = data
        for parent in parents:
            at = at[parent]
        at[last] = value
    task = parse_task(data, "task.yaml")
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    site = Local(task.resources.cpus)
    return FakeSetup(task, load_engine("llamacpp"), folder, tokenizer="", site=site, facts={"served_name": "m"})


def run(tmp_path: Path, **changes: Any) -> Results:
    return experiment.run(fake_setup(tmp_path, **changes), Options(tmp_path / "out" / "r.json"))


def test_an_experiment_finds_the_best_and_confirms_it(tmp_path: Path) -> None:
    """Baseline, search under ASHA, confirmation; all of it in the folder and in the results file."""
    results = run(tmp_path)
    assert results.winner is not None
    assert results.winner.parameters == {"speed": 0.5, "fault": ""}
    assert results.verdict is not None
    assert results.verdict.kind == "WIN"
    assert results.verdict.gain == pytest.approx(3.0, rel=0.01)
    purposes = [r.trial.purpose for r in results.records]
    assert purposes[0] == "baseline"
    assert purposes.count("search") == 6
    assert purposes.count("confirm") == 4
    assert {r.outcome for r in results.search} <= {"completed", "stopped"}
    assert any(r.outcome == "stopped" and len(r.rungs) == 1 for r in results.search)
    doc = json.loads((tmp_path / "out" / "r.json").read_text())
    assert doc["total_experiments"] == 11
    assert doc["verdict"]["kind"] == "WIN"
    for name in ("task.json", "environment.json", "results.json", "trials.csv"):
        assert (tmp_path / "exp" / name).stat().st_size > 0


def test_the_next_best_is_confirmed_when_the_best_breaks_the_slo_on_being_measured_again(tmp_path: Path) -> None:
    """At once: the runs of the first one that had not begun are not made; later it is told why it is out."""
    results = run(
        tmp_path,
        parameters__speed={"type": "choice", "values": [0.5, 1.0, 1.5], "flag": "--speed"},
        parameters__fault={"type": "choice", "values": ["", "again:slow"], "flag": "--fault"},
        constraints=['(speed < 1) == (fault == "again:slow")'],
        optimization__slo={"e2e_mean_s": 2.2},
        optimization__max_concurrent_trials=1,
        optimization__scheduler="none",
    )
    assert results.winner is not None
    assert results.winner.parameters == {"speed": 1.0, "fault": ""}
    assert results.verdict is not None
    assert (results.verdict.kind, results.verdict.winner_runs) == ("WIN", 2)
    ((out, why),) = results.refuted
    assert out.parameters == {"speed": 0.5, "fault": "again:slow"}
    assert "broke the SLO" in why
    again = [r.parameters.get("speed") for r in results.records if r.trial.purpose == "confirm"]
    assert again == [None, 0.5, None, 1.0, 1.0, None]


def test_failures_are_results_and_the_experiment_goes_on(tmp_path: Path) -> None:
    """Half of the space fails in one way or another; the rest is measured."""
    results = run(
        tmp_path,
        parameters__speed={"type": "choice", "values": [1.0], "flag": "--speed"},
        parameters__fault={
            "type": "choice",
            "values": ["", "start:out_of_memory", "rung0:bug", "rung1:crash", "start:always_transient"],
            "flag": "--fault",
        },
    )
    kinds = {str(r.parameters["fault"]): (r.outcome, r.failure.kind if r.failure else None) for r in results.search}
    assert kinds == {
        "": ("completed", None),
        "start:out_of_memory": ("infeasible", "out_of_memory"),
        "rung0:bug": ("failed", "infrastructure"),
        "rung1:crash": ("infeasible", "crash"),
        "start:always_transient": ("failed", "infrastructure"),
    }
    crashed = next(r for r in results.search if r.parameters["fault"] == "rung1:crash")
    assert len(crashed.rungs) == 1
    assert results.winner is not None


def test_a_configuration_that_no_node_can_hold_is_refused_not_waited_for(tmp_path: Path) -> None:
    """Ray would wait for ever without a word."""
    with pytest.raises(EnvironmentFault, match="the most on a node is"):
        run(tmp_path, resources__cpus=10_000)


def test_failures_alike_end_the_search(tmp_path: Path) -> None:
    """Nothing but the baseline starts: after five of a dozen no other is tried, and the results say why."""
    speeds = [round(0.5 + n / 10, 1) for n in range(12)]
    results = run(
        tmp_path,
        parameters__speed={"type": "choice", "values": speeds, "flag": "--speed"},
        parameters__fault={"type": "choice", "values": ["start:not_ready"], "flag": "--fault"},
        optimization__max_iterations=12,
        optimization__max_concurrent_trials=1,
    )
    assert results.ended_early is not None
    assert (results.ended_early.cause, results.ended_early.kind) == ("identical_failures", "not_ready")
    assert 5 <= len(results.search) < 12
    assert results.winner is results.baseline
    assert json.loads((tmp_path / "out" / "r.json").read_text())["ended_early"]["count"] >= 5


def test_a_search_with_nothing_left_to_gain_ends_and_stays_so(tmp_path: Path) -> None:
    """The winner is confirmed; taken up again, no other trial begins, but when it is to search on."""
    changes: dict[str, Any] = {
        "parameters__speed": {"type": "choice", "values": [0.5, 3.0], "flag": "--speed"},
        "parameters__of_no_use": {"type": "int", "low": 1, "high": 10, "flag": "--of-no-use"},
        "optimization__strategy": "adaptive",
        "optimization__stop_after_hopeless_trials": 1,
        "optimization__max_concurrent_trials": 2,
    }
    results = run(tmp_path, **changes, optimization__max_iterations=18)
    assert results.ended_early is not None
    assert results.ended_early.cause == "settled"
    assert results.verdict is not None
    assert (results.verdict.kind, results.verdict.gain) == ("WIN", pytest.approx(3.0, rel=0.01))
    assert len(results.search) < 18
    again = Options(tmp_path / "out" / "r.json", resume=True)
    same = experiment.run(fake_setup(tmp_path, **changes, optimization__max_iterations=18), again)
    assert [r.trial.name for r in same.records] == [r.trial.name for r in results.records]
    assert same.ended_early == results.ended_early
    more = experiment.run(
        fake_setup(tmp_path, **changes, optimization__max_iterations=18), replace(again, search_on=True)
    )
    assert len(more.search) > len(same.search)


def test_a_stop_request_ends_the_experiment_in_order(tmp_path: Path) -> None:
    """As Ctrl-C does: results are written, every trial has an outcome."""
    setup = fake_setup(tmp_path, optimization__strategy="random", optimization__max_iterations=6)

    def stop_after_the_baseline() -> None:
        until(lambda: len(setup.folder.records()) >= 1)
        setup.folder.request_stop()

    watcher = threading.Thread(target=stop_after_the_baseline)
    watcher.start()
    results = experiment.run(setup, Options(tmp_path / "r.json"))
    watcher.join()
    assert results.interrupted
    assert len(results.records) < 11
    assert all(state.outcome for state in setup.folder.states())
    assert json.loads((tmp_path / "r.json").read_text())["interrupted"]


SCRIPT = """
import sys
from pathlib import Path
from raytune_autotuner import __version__, experiment, history, sessions
from raytune_autotuner.experiment import Options
from tests.test_experiment import fake_setup
setup = fake_setup(Path(sys.argv[1]), parameters__fault={"type": "choice", "values": ["rung1:hang"], "flag": "--fault"})
results = experiment.run(setup, Options(Path(sys.argv[1]) / "r.json"))
sys.exit(130 if results.interrupted else 0)
"""


def test_a_signal_to_the_driver_ends_it_in_order(tmp_path: Path) -> None:
    """SIGINT while trials hang in a rung: torn down, recorded, exit code 130."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env={**os.environ, "PYTHONPATH": "."})
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    try:
        until(lambda: any(s.phase == "benchmark" and s.rung == 1 and s.number > 0 for s in folder.states()), seconds=90)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
    assert all(state.outcome for state in folder.states())
    stopped = [r for r in folder.records() if r.failure and r.failure.kind == "interrupted"]
    assert any(len(r.rungs) == 1 for r in stopped)
    assert json.loads((tmp_path / "r.json").read_text())["interrupted"]


UNWRITTEN = """
import sys
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.storage import Storage
write = Storage.write
def full(storage, path, text):
    if path == "stop":
        raise StorageFault("No space left on device")
    write(storage, path, text)
Storage.write = full
"""


def test_a_stop_that_cannot_be_written_ends_the_search_all_the_same(tmp_path: Path) -> None:
    """Tune ends the trials that cannot hear of it, and the user is told what a second signal does."""
    process = subprocess.Popen(
        [sys.executable, "-c", UNWRITTEN + SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": ".", "TUNE_FORCE_TRIAL_CLEANUP_S": "1"},
        stderr=subprocess.PIPE,
    )
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    try:
        until(lambda: any(s.phase == "benchmark" and s.rung == 1 and s.number > 0 for s in folder.states()), seconds=90)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert b"No space left on device" in said
    assert b"a second signal leaves at once" in said
    assert all(state.outcome for state in folder.states())
    assert json.loads((tmp_path / "r.json").read_text())["interrupted"]


@dataclass(frozen=True)
class Watched(Local):
    """Notes what is held, and by whom."""

    journal: list[str] = field(default_factory=list)

    @contextmanager
    def held(
        self, folder: ExperimentFolder, open: Collection[TrialId], ended: Callable[[str], None]
    ) -> Iterator[Watched]:
        there = folder.root.exists("lock.json")
        self.journal.append(f"{folder.name} held{' under its lock' if there else ''}, spares {len(open)}")
        yield replace(self, cpus=7.0)
        self.journal.append("given back")


@dataclass(frozen=True)
class Interrupted(Local):
    """Its user is impatient while it is emptied."""

    journal: list[str] = field(default_factory=list)

    @contextmanager
    def held(
        self, folder: ExperimentFolder, open: Collection[TrialId], ended: Callable[[str], None]
    ) -> Iterator[Interrupted]:
        try:
            yield self
        finally:
            signal.raise_signal(signal.SIGINT)
            self.journal.append("emptied")


def test_a_signal_does_not_break_off_the_emptying_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run that ended by a fault has left there is removed; that fault is told, not the interrupt."""
    setup = replace(fake_setup(tmp_path), site=(site := Interrupted()))

    def broken(*args: Any, **more: Any) -> None:
        raise EnvironmentFault("no Ray")

    monkeypatch.setattr(experiment, "connected", broken)
    with pytest.raises(EnvironmentFault, match="no Ray"):
        experiment.run(setup, Options(tmp_path / "r.json"))
    monkeypatch.setattr(experiment, "run_trial", broken)
    with pytest.raises(EnvironmentFault, match="no Ray"):
        experiment.run_one(setup, trial_id({}), {})
    assert site.journal == ["emptied"] * 2


@dataclass(frozen=True)
class Single(FakeSetup):
    """Notes at which site a trial is made."""

    def trial(self, *args: Any, **more: Any) -> Trial:
        assert isinstance(self.site, Watched)
        self.site.journal.append(f"a trial with {self.site.cpus:g} CPUs")
        return super().trial(*args, **more)


def test_a_single_trial_is_owned_as_an_experiment_is(tmp_path: Path) -> None:
    """Under the lock, at the site as its own, and nothing is held afterwards; an old stop does not end it."""
    fake = fake_setup(tmp_path)
    setup = Single(**{each.name: getattr(fake, each.name) for each in fields(fake)} | {"site": (site := Watched())})
    setup.folder.request_stop()
    record = experiment.run_one(setup, trial_id({"speed": 0.5}), {"speed": 0.5})
    assert record.outcome == "completed"
    assert site.journal == ["exp held under its lock, spares 1", "a trial with 7 CPUs", "given back"]
    assert not (tmp_path / "exp" / "lock.json").exists()


SINGLE = """
import sys
from pathlib import Path
from raytune_autotuner import experiment
from tests.fakes.trials import trial_id
from tests.test_experiment import fake_setup
parameters = {"fault": "rung1:hang"}
record = experiment.run_one(fake_setup(Path(sys.argv[1])), trial_id(parameters), parameters)
sys.exit(record.outcome)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_single_trial_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """Its engine is stopped and its end is written, as in a search."""
    process = subprocess.Popen(
        [sys.executable, "-c", SINGLE, str(tmp_path)], env={**os.environ, "PYTHONPATH": "."}, stderr=subprocess.PIPE
    )
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    try:
        until(lambda: any(s.phase == "benchmark" and s.rung == 1 for s in folder.states()), seconds=90)
        process.send_signal(number)
        assert b"stopped" in process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    (record,) = folder.records()
    assert record.failure is not None
    assert (record.failure.kind, len(record.rungs)) == ("interrupted", 1)


def test_an_experiment_goes_on_after_the_driver_was_killed(tmp_path: Path) -> None:
    """SIGKILL in a rung: what had ended stands as it was, the rungs are kept, and the rest is run."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env={**os.environ, "PYTHONPATH": "."})
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    try:
        until(lambda: folder.records() and any(s.rung == 1 and s.number > 0 for s in folder.states()), seconds=90)
    finally:
        process.kill()
        process.wait()
    ended = {r.trial.name: mtime(folder, f"trials/{r.trial.name}/record.json") for r in folder.records()}
    cut_short = [s for s in folder.states() if s.trial.name not in ended and s.rung == 1]
    first_rungs = {s.trial.name: mtime(folder, f"trials/{s.trial.name}/rungs/0.json") for s in cut_short}
    assert "baseline" in " ".join(ended)
    assert cut_short
    setup = replace(fake_setup(tmp_path, parameters__fault=NO_FAULT), trial_timeout_s=3.0)  # those that hang go on
    results = experiment.run(setup, Options(tmp_path / "r.json", resume=True))
    assert {name: mtime(folder, f"trials/{name}/record.json") for name in ended} == ended
    assert {name: mtime(folder, f"trials/{name}/rungs/0.json") for name in first_rungs} == first_rungs
    for state in cut_short:
        record = folder.record(state.trial.name)
        assert record is not None
        assert (record.outcome, record.number) == ("completed", state.number)
        assert record.phases["benchmark"] >= state.phases.get("benchmark", 0.0)
    assert results.winner is not None
    assert len([r for r in results.records if r.trial.purpose == "search"]) >= 6
    assert len(list((tmp_path / "exp" / "sessions").iterdir())) == 2
    assert not (tmp_path / "exp" / "lock.json").exists()


def open_session(setup: FakeSetup, started_at: datetime, number: int = 1) -> sessions.Session:
    session = sessions.Session(number, "tuner-0", __version__, at(started_at))
    sessions._write(setup.folder, session)
    return session


def at(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def test_a_session_that_was_not_closed_ends_with_the_last_sign_of_its_trials(tmp_path: Path) -> None:
    """Where its lock was given back, nothing else tells; the night since counts for nothing."""
    setup, hour = fake_setup(tmp_path), timedelta(hours=1)
    began = datetime.now(timezone.utc) - 12 * hour
    for number in (1, 2, 3):
        open_session(setup, began + (number - 1) * 2 * hour, number)
    for number, seen in ((1, began + hour), (3, began + 4 * hour), (2, began + 5 * hour)):
        parameters = {"speed": float(number)}
        state = TrialState(trial_id(parameters), number, parameters, "load", "", 0, 1, at(began), at(seen))
        setup.folder.save_state(state)
    sessions.begin(setup, resume=True, found=None)
    ended = [session.ended_at for session in sessions.load(setup.folder)]
    assert ended == [at(began + hour), at(began + 2 * hour), at(began + 5 * hour), None]


def test_a_session_ends_though_its_trials_cannot_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt, or a file that cannot be read: its time is over."""
    setup = fake_setup(tmp_path)
    session = open_session(setup, datetime.now(timezone.utc))

    def interrupted(setup: Setup) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "_close_open_trials", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment._conclude(setup, Options(), session, Late(tmp_path))
    assert [each.ended_at is not None for each in sessions.load(setup.folder)] == [True]


@dataclass
class Late:
    """A tracker's desk that notes what comes to it before the results are written, and what after."""

    results: Path
    journal: list[str] = field(default_factory=list)
    serves = True

    def add(self, record: TrialRecord) -> None:
        self.note("add")

    def close(self) -> None:
        self.note("close")

    def note(self, what: str) -> None:
        self.journal.append(f"{what} {'after' if self.results.exists() else 'before'} the results")


def test_the_results_wait_for_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears of trials while they run, and is waited for when the results are there."""
    desk = Late(tmp_path / "out" / "r.json")
    monkeypatch.setattr(experiment, "open_desk", lambda folder, task: desk)
    run(tmp_path, optimization__max_iterations=1, optimization__confirm__repeats=0)
    assert desk.journal[0] == "add before the results"
    assert [each for each in desk.journal if "close" in each] == ["close after the results"]


@pytest.mark.parametrize(("phase", "charged_s"), [("queue", 0), ("schedule", 0), ("load", 100)])
def test_who_waits_when_the_session_ends_has_held_nothing(tmp_path: Path, phase: str, charged_s: float) -> None:
    """Its GPUs are charged until it is closed, from when it has any."""
    setup = fake_setup(tmp_path)
    since = at(datetime.now(timezone.utc) - timedelta(seconds=100))
    state = TrialState(trial_id({}), 1, {}, phase, "", 0, 1, since, since, phases={"pull": 5.0})
    setup.folder.save_state(state)
    experiment._close_open_trials(setup)
    record = setup.folder.record(state.trial.name)
    assert record is not None
    assert held_s(record) == pytest.approx(5.0 + charged_s, abs=5)


def test_a_finished_experiment_is_extended(tmp_path: Path) -> None:
    """More trials with all that is known; a better winner is confirmed in runs of its own."""
    few = {"optimization__max_iterations": 2, "optimization__strategy": "random", "optimization__confirm__repeats": 1}
    first = experiment.run(fake_setup(tmp_path, **few), Options(tmp_path / "r.json"))
    setup = fake_setup(tmp_path, **{**few, "optimization__max_iterations": 6})
    before = {r.trial.name: mtime(setup.folder, f"trials/{r.trial.name}/record.json") for r in first.records}
    results = experiment.run(setup, Options(tmp_path / "r.json", resume=True))
    assert history.searched(setup.folder) == 6
    assert {name: mtime(setup.folder, f"trials/{name}/record.json") for name in before} == before
    assert results.winner is not None
    assert results.winner.parameters["speed"] == 0.5
    assert results.verdict is not None
    assert results.verdict.kind == "WIN"


NO_FAULT = {"type": "choice", "values": [""], "flag": "--fault"}


def mtime(folder: ExperimentFolder, path: str) -> object:
    return folder.root.modified(path)


def test_a_trial_whose_worker_is_killed_is_begun_again(tmp_path: Path) -> None:
    """While the driver lives on; the trial keeps its name, and the experiment ends as if nothing had been."""
    setup = fake_setup(
        tmp_path,
        optimization__max_iterations=1,
        optimization__confirm__repeats=0,
        parameters__fault={"type": "choice", "values": ["rung1:killed_once"], "flag": "--fault"},
    )
    results = experiment.run(setup, Options(tmp_path / "r.json"))
    (record,) = results.search
    assert (record.outcome, len(record.rungs)) == ("completed", 2)


def test_an_experiment_that_is_there_is_not_begun_again(tmp_path: Path) -> None:
    """A second run under its name would mix two experiments."""
    setup = fake_setup(tmp_path)
    setup.folder.root.write("task.json", "{}")
    with pytest.raises(EnvironmentFault, match="resume it, or choose another --name"):
        experiment.run(setup, Options(tmp_path / "r.json"))


def test_an_experiment_does_not_go_on_with_another_engine(tmp_path: Path) -> None:
    """What it compares with has changed, so the old results say nothing about the new ones."""
    setup = fake_setup(tmp_path)
    sessions.begin(setup, resume=False, found=None)
    changed = replace(setup, runtime_args=("--other", "1"))
    with pytest.raises(EnvironmentFault, match=r"runtime_args was \[\] and is \['--other', '1'\]"):
        experiment.run(changed, Options(tmp_path / "r.json", resume=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"benchmark__num_concurrency": [3]}, r"workload\.num_concurrency was \[.*\] and is \[3\]"),
        ({"benchmark__rungs": [{"max_requests": 7}]}, r"workload\.ladder was "),
        ({"benchmark__additional_params": {"top_k": 3}}, r"workload\.additional_params\.top_k was None and is 3"),
        ({"optimization__objective": "maximize_throughput"}, r"score\.objective was .* and is maximize_throughput"),
        ({"optimization__slo": {"ttft_p99_s": 9.0}}, r"score\.slo\.ttft_p99_s was None and is 9\.0"),
        ({"extra_args": ["--other"]}, r"extra_args was \[\] and is \['--other'\]"),
        ({"runtime": {"env": {"A": "1"}}}, r"runtime\.environment\.A was None and is 1"),
        ({"model__name": "another"}, r"model\.name was .* and is another"),
        ({"resources__gpus": 2}, r"resources\.gpus was None and is 2"),
    ],
)
def test_an_experiment_does_not_go_on_with_another_question(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """What decides a measurement or its score stays, and nothing is written before that is known."""
    setup = fake_setup(tmp_path)
    sessions.begin(setup, resume=False, found=None)
    dead = replace(Holder.me(), started="1")
    setup.folder.root.write(LOCK, json.dumps(asdict(dead)))
    before = {path: path.read_bytes() for path in (tmp_path / "exp").rglob("*") if path.is_file()}
    with pytest.raises(EnvironmentFault, match=f"what it compares with has changed: .*{said}"):
        experiment.run(fake_setup(tmp_path, **changes), Options(tmp_path / "r.json", resume=True))
    assert {path: path.read_bytes() for path in (tmp_path / "exp").rglob("*") if path.is_file()} == before


def test_what_limits_or_steers_the_search_may_change(tmp_path: Path) -> None:
    """Trials are known by their configuration, so the space may change as well."""
    sessions.begin(fake_setup(tmp_path), resume=False, found=None)
    changed = fake_setup(
        tmp_path,
        optimization__max_iterations=50,
        optimization__seed=7,
        optimization__strategy="random",
        optimization__timeout_per_iteration=77,
        optimization__max_concurrent_trials=1,
        optimization__confirm={"repeats": 1},
        optimization__budget={"gpu_hours": 3},
        optimization__scheduler={"type": "asha", "reduction_factor": 3},
        parameters__speed={"type": "choice", "values": [1.0, 9.0], "flag": "--speed"},
        constraints=["speed < 9"],
        description="longer",
    )
    assert sessions.begin(changed, resume=True, found=None).number == 2


def test_an_experiment_of_before_this_was_written_down_goes_on(tmp_path: Path) -> None:
    """What is not known of it cannot have changed; from then on it is known."""
    sessions.begin(fake_setup(tmp_path), resume=False, found=None)
    inputs = {"engine": "llamacpp", "command": None, "runtime_args": [], "served_name": "m"}
    (tmp_path / "exp" / "inputs.json").write_text(json.dumps(inputs))
    other = fake_setup(tmp_path, benchmark__num_concurrency=[3])
    assert sessions.begin(other, resume=True, found=None).number == 2
    with pytest.raises(EnvironmentFault, match="has changed"):
        sessions.begin(fake_setup(tmp_path), resume=True, found=None)


def test_a_dataset_is_what_is_in_its_file(tmp_path: Path) -> None:
    """Wherever it lies; another text under the same name is another workload."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prompts.txt").write_text("a\nb\n")
    setups = [
        fake_setup(tmp_path, benchmark__traffic_scenarios=["dataset"], benchmark__dataset={"path": str(path)})
        for path in (tmp_path / "here" / "prompts.txt", tmp_path / "there" / "prompts.txt")
    ]
    sessions.begin(setups[0], resume=False, found=None)
    sessions.begin(setups[1], resume=True, found=None)
    (tmp_path / "there" / "prompts.txt").write_text("c\n")
    with pytest.raises(EnvironmentFault, match=r"workload\.dataset\.path was prompts\.txt \(sha256"):
        sessions.begin(setups[1], resume=True, found=None)


@pytest.mark.parametrize(("version", "goes_on"), [("0.0.1", False), ("{minor}.99", True)])
def test_an_upgrade_of_the_patch_version_goes_on(tmp_path: Path, version: str, goes_on: bool) -> None:
    """Another minor version may measure differently."""
    setup = fake_setup(tmp_path)
    began = sessions.begin(setup, resume=False, found=None)
    minor = ".".join(__version__.split(".")[:2])
    sessions.end(setup.folder, replace(began, version=version.format(minor=minor)))
    if goes_on:
        assert sessions.begin(setup, resume=True, found=None).number == 2
    else:
        with pytest.raises(EnvironmentFault, match="was begun by version"):
            sessions.begin(setup, resume=True, found=None)


def test_a_full_disk_ends_the_experiment_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search stops instead of failing every trial; with room again, it goes on."""
    fault = {"type": "choice", "values": ["rung1:disk_full"], "flag": "--fault"}
    # one at a time: the baseline has ended when the disk is full
    changes = {"optimization__confirm__repeats": 0, "optimization__max_concurrent_trials": 1}
    full = fake_setup(tmp_path, parameters__fault=fault, **changes)
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "probe", no_space)
        with pytest.raises(StorageFault, match="No space left"):
            experiment.run(full, Options(tmp_path / "r.json"))
    before = {record.trial.name for record in full.folder.records() if record.outcome == "completed"}
    assert len(before) == 1
    assert not [record for record in full.folder.records() if record.outcome == "failed"]
    setup = fake_setup(tmp_path, parameters__fault=NO_FAULT, **changes)
    results = experiment.run(setup, Options(tmp_path / "r.json", resume=True))
    assert results.winner is not None
    lost = [record for record in results.records if record.outcome not in ("completed", "stopped")]
    # the trial that goes on with its fault loses its worker each time, and nothing but that
    assert [(r.outcome, r.failure.kind) for r in lost if r.failure] == [("failed", "infrastructure")]
    assert {record.trial.name for record in results.records if record.outcome == "completed"} > before


def no_space(storage: Storage) -> None:
    raise StorageFault("No space left on device")
