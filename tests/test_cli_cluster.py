"""The commands that look at experiments from anywhere and end them; no Ray runs here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raytune_autotuner import lock, sessions, trial_logs
from raytune_autotuner.cli import BAD_INPUT, ENVIRONMENT, OK, follow, main
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.overview import Overview
from raytune_autotuner.records import TrialId, config_hash
from raytune_autotuner.results import load_results
from raytune_autotuner.results_file import document, to_text
from raytune_autotuner.storage import Storage
from raytune_autotuner.trial import run as run_trial
from raytune_autotuner.trial_logs import Tail
from tests.fakes.job_server import FakeJobServer
from tests.fakes.trials import FakeSetup
from tests.test_experiment import fake_setup
from tests.waiting import until

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's client
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_S", 0.05)


@pytest.fixture
def server() -> Iterator[FakeJobServer]:
    with FakeJobServer().serving() as running:
        yield running


def setup_of(storage: Path, name: str) -> FakeSetup:
    return replace(fake_setup(storage), folder=ExperimentFolder(Storage(str(storage)), name))


def measure(setup: FakeSetup, number: int, **parameters: float | str) -> None:
    purpose = "search" if parameters else "baseline"
    run_trial(setup.trial(TrialId(purpose, config_hash(parameters)), number, parameters))  # type: ignore[arg-type]


def write_results(setup: FakeSetup) -> None:
    setup.folder.root.write("results.json", to_text(document(load_results(setup.folder, setup.task), {})))


@contextmanager
def running(storage: Path, name: str) -> Iterator[FakeSetup]:
    """An experiment with a baseline and one trial of the search, run by this process; ended in order."""
    setup = setup_of(storage, name)
    with lock.hold(setup.folder.root, lost=lambda reason: None):
        session = sessions.begin(setup, resume=False, found=None)
        measure(setup, 0)
        measure(setup, 1, speed=0.5, fault="")
        yield setup
        sessions.end(setup.folder, session)
        write_results(setup)


def done(storage: Path, name: str) -> FakeSetup:
    with running(storage, name) as setup:
        return setup


def killed(storage: Path, name: str) -> FakeSetup:
    """As after SIGKILL: nothing says that it ended."""
    setup = setup_of(storage, name)
    sessions.begin(setup, resume=False, found=None)
    measure(setup, 0)
    return setup


def invoke(storage: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--storage", str(storage)], catch_exceptions=False)


def during(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_list_tells_how_each_experiment_stands(tmp_path: Path) -> None:
    """One row each, the last begun first; files that are no experiments are not listed."""
    (tmp_path / "fake_results.json").write_text("{}")
    done(tmp_path, "first")
    killed(tmp_path, "second")
    with running(tmp_path, "third"):
        result = invoke(tmp_path, "list")
    assert result.exit_code == OK
    rows = [line.split()[:3] for line in result.output.splitlines()[1:]]
    assert rows == [["third", "running", "2"], ["second", "interrupted", "1"], ["first", "done", "2"]]
    assert "0.5" in next(line for line in result.output.splitlines() if line.startswith("first"))


def test_list_of_nothing(tmp_path: Path) -> None:
    """A storage without experiments."""
    assert invoke(tmp_path, "list").exit_code == OK


COMMANDS = (
    *(("list",), ("status",), ("logs", "exp"), ("stop", "exp"), ("report", "exp"), ("export", "exp")),
    *(("resume", "exp"), ("extend", "exp", "--trials", "1"), ("verify", "exp"), ("importance", "exp")),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_storage_that_is_not_there_is_bad_input(command: tuple[str, ...], tmp_path: Path) -> None:
    """Not an empty one; nor is a file one, or the home of nobody."""
    for place, said in (
        (tmp_path / "none", f"{tmp_path}/none: --storage: there is no such folder"),
        (Path(__file__), "is a file"),
        (Path("~nobody-of-this-name/x"), "home"),
        (Path("x" * 300), "too long"),
    ):
        result = invoke(place, *command)
        assert result.exit_code == BAD_INPUT
        assert said in result.stderr
    assert not any(tmp_path.iterdir())


def test_the_storage_that_nothing_was_run_in_yet_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, or as the environment says; likewise a prefix in an object store, which has no folders."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    assert runner.invoke(main, ["list"]).exit_code == OK
    assert runner.invoke(main, ["list"], env={"RAYTUNE_AUTOTUNER_STORAGE": str(tmp_path / "none")}).exit_code == OK
    assert runner.invoke(main, ["list", "--storage", "memory://none/yet"]).exit_code == OK


def test_a_storage_that_jobs_have_yet_to_make_is_empty(tmp_path: Path, server: FakeJobServer) -> None:
    """The cluster knows them."""
    server.job("exp-1", metadata={"experiment": "exp"}, status="PENDING")
    result = invoke(tmp_path / "none", "list", "--address", server.address)
    assert result.exit_code == OK
    assert "exp" in result.output


def test_status_of_a_running_experiment(tmp_path: Path) -> None:
    """Who runs it, the best so far, every trial."""
    with running(tmp_path, "exp"):
        output = invoke(tmp_path, "status", "exp").output
    assert "exp: running" in output
    assert "last sign of life" in output
    assert "Best so far: speed=0.5" in output
    assert "baseline" in output


def test_status_of_a_finished_experiment_is_its_answer(tmp_path: Path) -> None:
    """By the beginning of its name, or as the one that ran last."""
    done(tmp_path, "exp-20260101")
    for arguments in (("exp",), ()):
        output = invoke(tmp_path, "status", *arguments).output
        assert "Best in the search: speed=0.5" in output
        assert "results.json" in output


def test_status_of_a_killed_experiment(tmp_path: Path) -> None:
    """Interrupted, with what had been measured."""
    killed(tmp_path, "exp")
    output = invoke(tmp_path, "status").output
    assert "exp: interrupted" in output
    assert "1 of at most" in output


def test_an_experiment_that_was_stopped_is_not_done(tmp_path: Path) -> None:
    """Although it ended in order."""
    with running(tmp_path, "exp") as setup:
        setup.folder.request_stop()
    assert Overview.of(setup.folder).state == "interrupted"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("exp", ["may be any of", "exp-a", "exp-b"]), ("epx-a", ["did you mean `exp-a`?"]), ("x", ["there are: exp-a"])],
)
def test_an_experiment_that_is_not_named_clearly(wanted: str, words: list[str], tmp_path: Path) -> None:
    """Bad input, with those there are."""
    killed(tmp_path, "exp-a")
    killed(tmp_path, "exp-b")
    for command in ("status", "logs", "stop"):
        result = invoke(tmp_path, command, wanted)
        assert result.exit_code == BAD_INPUT
        assert all(word in result.stderr for word in words)


def test_status_where_there_is_no_experiment(tmp_path: Path) -> None:
    """Bad input, with the place."""
    result = invoke(tmp_path, "status")
    assert result.exit_code == BAD_INPUT
    assert str(tmp_path) in result.stderr


def test_status_is_watched_until_the_end(tmp_path: Path) -> None:
    """Then the answer is shown."""
    stack = ExitStack()
    setup = stack.enter_context(running(tmp_path, "exp"))
    results: list[Result] = []
    watching = during(lambda: results.append(invoke(tmp_path, "status", "exp", "--watch")))
    until(lambda: watching.is_alive())
    measure(setup, 2, speed=1.0, fault="")
    assert not results
    stack.close()
    watching.join()
    assert "Best in the search: speed=0.5" in results[0].output


def test_status_names_the_jobs(tmp_path: Path, server: FakeJobServer) -> None:
    """Each attempt, with its page."""
    killed(tmp_path, "exp")
    server.job("exp-1", metadata={"experiment": "exp"}, status="FAILED")
    output = invoke(tmp_path, "status", "exp", "--address", server.address).output
    assert f"Job exp-1: FAILED  {server.address}/#/jobs/exp-1" in output


def test_the_logs_of_a_trial(tmp_path: Path) -> None:
    """By its number, its name or the beginning of it; of the engine, then of the client of each rung."""
    setup = done(tmp_path, "exp")
    name = setup.folder.trial_names()[0]
    folder = tmp_path / "exp" / "trials" / name
    (folder / "engine.log").write_text("engine says\n")
    (folder / "rung-0" / "load").mkdir(parents=True, exist_ok=True)
    (folder / "rung-0" / "load" / "genai_bench.log").write_text("client says\n")
    for wanted in ("0", "#0", name, name[:12]):
        result = invoke(tmp_path, "logs", "exp", wanted)
        assert result.output.split("\n")[:4] == [
            "==> engine.log <==",
            "engine says",
            "==> rung-0/load/genai_bench.log <==",
            "client says",
        ]


def test_a_trial_that_is_not_there(tmp_path: Path) -> None:
    """Bad input, with those there are."""
    setup = done(tmp_path, "exp")
    result = invoke(tmp_path, "logs", "exp", "7")
    assert result.exit_code == BAD_INPUT
    assert all(name in result.stderr for name in setup.folder.trial_names())


def test_the_logs_of_a_trial_are_followed_to_its_end(tmp_path: Path) -> None:
    """What is added is told once."""
    setup = killed(tmp_path, "exp")
    (state,) = setup.folder.states()
    record = setup.folder.record(state.trial.name)
    assert record is not None
    setup.folder.delete_record(state.trial)  # it is running again
    log = tmp_path / "exp" / "trials" / state.trial.name / "engine.log"
    log.write_text("one\n")
    results: list[Result] = []
    with lock.hold(setup.folder.root, lost=lambda reason: None):
        following = during(lambda: results.append(invoke(tmp_path, "logs", "-f", "exp", "0")))
        with log.open("a") as file:
            file.write("two\n")
        assert not results
        setup.folder.save_record(record)
        following.join()
    assert results[0].output.splitlines() == ["==> engine.log <==", "one", "two"]


def test_the_logs_of_a_trial_that_nobody_runs_any_more_are_not_followed_for_ever(tmp_path: Path) -> None:
    """After SIGKILL of the driver no end of the trial is ever written."""
    setup = killed(tmp_path, "exp")
    (state,) = setup.folder.states()
    setup.folder.delete_record(state.trial)
    (tmp_path / "exp" / "trials" / state.trial.name / "engine.log").write_text("one\n")
    result = invoke(tmp_path, "logs", "-f", "exp", "0")
    assert result.exit_code == OK
    assert result.stdout.splitlines() == ["==> engine.log <==", "one"]
    assert "nobody runs exp any more" in result.stderr


def test_only_what_is_new_in_a_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts; a character that was cut in two is whole again."""
    monkeypatch.setattr(trial_logs, "PART_BYTES", 4)
    setup = killed(tmp_path, "exp")
    name = setup.folder.trial_names()[0]
    tail, log = Tail(setup.folder, name), tmp_path / "exp" / "trials" / name / "engine.log"
    log.write_bytes("one ü".encode()[:-1])
    assert "".join(tail.news()) == "==> engine.log <==\none "
    asked: list[int] = []

    def read_from(storage: Storage, path: str, start: int, limit: int) -> bytes:
        asked.append(start)
        return before(storage, path, start, limit)

    before = Storage.read_from
    monkeypatch.setattr(Storage, "read_from", read_from)
    log.write_bytes("one ü two".encode())
    os.utime(log, (1, 1))
    assert "".join(tail.news()) == "ü two"
    assert min(asked) == 5


def test_the_course_of_an_experiment_is_followed_to_its_end(tmp_path: Path) -> None:
    """Without an address: a line for each trial as it stands, then one for each change."""
    stack = ExitStack()
    setup = stack.enter_context(running(tmp_path, "exp"))
    results: list[Result] = []
    following = during(lambda: results.append(invoke(tmp_path, "logs", "-f", "exp")))
    measure(setup, 2, speed=3.0, fault="")
    stack.close()
    following.join()
    assert "#0 baseline" in results[0].output
    assert "speed=3.0" in results[0].output
    assert invoke(tmp_path, "logs", "exp").output.count("outcome completed") == 3


def test_the_log_of_the_job(tmp_path: Path, server: FakeJobServer) -> None:
    """With an address: of the newest attempt; it needs no storage."""
    server.job("exp-1", metadata={"experiment": "exp"}, start_time=1, log="old\n").end("FAILED", 3)
    server.job("exp-2", metadata={"experiment": "exp"}, start_time=2, log="new\n").end("SUCCEEDED", 0)
    for arguments in (("logs", "exp"), ("logs", "-f", "exp")):
        assert invoke(tmp_path, *arguments, "--address", server.address).output == "new\n"
    result = invoke(tmp_path, "logs", "other", "--address", server.address)
    assert result.exit_code == BAD_INPUT
    assert "no job" in result.stderr


def test_stop_of_what_does_not_run(tmp_path: Path) -> None:
    """Nothing to do; a finished experiment is not marked as interrupted."""
    setup = done(tmp_path, "exp")
    result = invoke(tmp_path, "stop", "exp")
    assert result.exit_code == OK
    assert "not running" in result.output
    assert not setup.folder.stop_requested()


def test_stop_asks_and_waits_for_the_end(tmp_path: Path) -> None:
    """Exit code 0 when it has ended."""
    stack = ExitStack()
    setup = stack.enter_context(running(tmp_path, "exp"))

    def obey() -> None:
        until(setup.folder.stop_requested)
        stack.close()

    runner = during(obey)
    result = invoke(tmp_path, "stop", "exp")
    runner.join()
    assert result.exit_code == OK
    assert "has ended" in result.output


def test_stop_may_only_ask(tmp_path: Path) -> None:
    """Without waiting."""
    with running(tmp_path, "exp") as setup:
        assert invoke(tmp_path, "stop", "exp", "--wait", "0").exit_code == OK
        assert setup.folder.stop_requested()


def test_stop_says_when_it_did_not_end(tmp_path: Path) -> None:
    """Exit code 3, and what else can be done."""
    with running(tmp_path, "exp"):
        result = invoke(tmp_path, "stop", "exp", "--wait", "0.1")
    assert result.exit_code == ENVIRONMENT
    assert "--address" in result.stderr


@pytest.mark.parametrize(("ends", "wanted"), [(True, OK), (False, ENVIRONMENT)])
def test_stop_ends_the_job_of_what_does_not_end_by_itself(
    ends: bool, wanted: int, tmp_path: Path, server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only jobs that run, and only those of the experiment."""
    monkeypatch.setattr(follow, "JOB_STOP_S", 10.0 if ends else 0.0)
    old = server.job("exp-1", metadata={"experiment": "exp"}, status="FAILED")
    job = server.job("exp-2", metadata={"experiment": "exp"})
    other = server.job("two-1", metadata={"experiment": "two"})

    def obey() -> None:
        until(lambda: job.stops)
        job.end("STOPPED")

    runner = during(obey) if ends else None
    with running(tmp_path, "exp"):
        result = invoke(tmp_path, "stop", "exp", "--wait", "0.1", "--address", server.address)
    if runner:
        runner.join()
    assert result.exit_code == wanted, result.output
    assert (old.stops, job.stops, other.stops) == (0, 1, 0)


def test_a_job_that_waits_is_known_and_can_be_stopped(tmp_path: Path, server: FakeJobServer) -> None:
    """Before there is a folder: not taken for one whose name only begins so, stopped at once, and not running then."""
    killed(tmp_path, "exp-old")
    job = server.job("exp-1", metadata={"experiment": "exp"}, status="PENDING", message="waits for resources")
    at = ("--address", server.address)
    told = invoke(tmp_path, "status", "exp", *at)
    assert (told.exit_code, "waits for resources" in told.output) == (OK, True)
    assert "Job exp-1: PENDING" in told.output
    assert invoke(tmp_path, "stop", "exp", "--wait", "0", *at).exit_code == OK
    assert job.stops == 1

    def obey() -> None:
        until(lambda: job.stops == 2)
        job.end("STOPPED")

    runner = during(obey)
    assert invoke(tmp_path, "stop", "exp", *at).exit_code == OK
    runner.join()
    again = invoke(tmp_path, "stop", "exp", *at)
    assert (again.exit_code, "not running" in again.output, job.stops) == (OK, True, 2)
    assert not ExperimentFolder(Storage(str(tmp_path)), "exp-old").stop_requested()


def test_a_job_that_is_to_resume_an_experiment_can_be_stopped_before_it_begins(
    tmp_path: Path, server: FakeJobServer
) -> None:
    """Its folder says that nobody runs it."""
    killed(tmp_path, "exp")
    job = server.job("exp-2", metadata={"experiment": "exp"}, status="PENDING")
    assert invoke(tmp_path, "stop", "exp", "--wait", "0", "--address", server.address).exit_code == OK
    assert job.stops == 1


def test_what_waits_is_watched_until_it_has_a_folder(tmp_path: Path, server: FakeJobServer) -> None:
    """Then it is shown like any other."""
    server.job("exp-1", metadata={"experiment": "exp"}, status="PENDING")
    results: list[Result] = []
    arguments = ("status", "exp", "--watch", "--address", server.address)
    watching = during(lambda: results.append(invoke(tmp_path, *arguments)))
    until(lambda: server.lists)
    assert not results
    done(tmp_path, "exp")
    watching.join()
    assert "Best in the search: speed=0.5" in results[0].output


def test_list_shows_jobs_that_have_no_folder(tmp_path: Path, server: FakeJobServer) -> None:
    """By metadata or command; not those that have a folder, have ended well, or are none of ours."""
    killed(tmp_path, "first")
    server.job("first-1", metadata={"experiment": "first"})
    server.job("second-1", metadata={"experiment": "second"}, status="PENDING")
    server.job("third-1", entrypoint="raytune-autotuner run task.yaml --name third", status="FAILED")
    server.job("fourth-1", metadata={"experiment": "fourth"}, status="SUCCEEDED")
    server.job("train-1", entrypoint="python train.py --name train")
    output = invoke(tmp_path, "list", "--address", server.address).output
    rows = [line.split()[:2] for line in output.splitlines()[1:]]
    assert rows == [["second", "pending"], ["third", "failed"], ["first", "interrupted"]]


def test_a_job_by_hand_is_found_by_its_command(tmp_path: Path, server: FakeJobServer) -> None:
    """Without metadata."""
    server.job("raysubmit_1", entrypoint="raytune-autotuner run t.yaml --storage /x --name exp --resume auto", log="hi")
    server.job("raysubmit_2", entrypoint="sh -c 'raytune-autotuner run t.yaml --name=exp-2'", log="other")
    assert invoke(tmp_path, "logs", "exp", "--address", server.address).output == "hi"
    assert invoke(tmp_path, "logs", "exp-2", "--address", server.address).output == "other"


@pytest.mark.parametrize(
    ("file", "text"), [("task.json", "{"), ("task.json", "[]"), ("sessions/0001.json", '{"new": 1}')]
)
def test_an_experiment_that_cannot_be_read_hides_no_other(file: str, text: str, tmp_path: Path) -> None:
    """It is left out with a note."""
    killed(tmp_path, "good")
    killed(tmp_path, "bad").folder.root.write(file, text)
    result = invoke(tmp_path, "list")
    assert result.exit_code == OK
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["good"]
    assert "note: bad is left out" in result.stderr
    if file.startswith("sessions"):
        assert "good: interrupted" in invoke(tmp_path, "status").output
