"""Handing an experiment to a Ray cluster: what travels, what the job is told, how it is followed. No Ray runs here."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from raytune_autotuner import __version__, job_log, ome_site, resources, shipping, submit, tracking
from raytune_autotuner.cli import BAD_INPUT, ENVIRONMENT, INTERRUPTED, NOTHING_FEASIBLE, OK, main
from raytune_autotuner.errors import EnvironmentFault, SpecError, TransientError
from raytune_autotuner.job_log import follow
from raytune_autotuner.jobs import JobServer, exit_code, stop_all, until_ended
from raytune_autotuner.planning.checks import load_checked
from raytune_autotuner.task.spec import Task, parse_task
from tests.fakes import tiny_tokenizer
from tests.fakes.job_server import FakeJobServer
from tests.waiting import until

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
KEY = "sk-planted-0815-secret"

pytestmark = [  # of Ray's client
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
]


def task(**parts: Any) -> Task:
    data: dict[str, Any] = {
        "task_name": "shipped",
        "backend": "local",
        "engine": "llamacpp",
        "model": {"name": "m", "path": "/models/m.gguf"},
        "benchmark": {"model_tokenizer": "org/tokenizer"},
        "optimization": {"strategy": "random", "max_iterations": 2},
        "parameters": {"threads": {"type": "choice", "values": [1, 2]}},
    }
    for name, value in parts.items():
        data[name] = {**data.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_task(data, "task.yaml")


def shipped(parcel: shipping.Parcel) -> dict[str, Any]:
    content = parcel.files[shipping.TASK_FILE]
    assert isinstance(content, str)
    loaded: dict[str, Any] = json.loads(content)
    return loaded


@pytest.mark.parametrize("name", ["simple_task.json", "local-gemma.yaml"])
def test_a_shipped_task_is_the_task(name: str, tmp_path: Path) -> None:
    """Written out and read again it says the same, overrides applied."""
    before, _ = load_checked(CONFIGS / name, ["optimization.max_iterations=3"])
    shipping.pack(before).write(tmp_path)
    after, _ = load_checked(tmp_path / shipping.TASK_FILE)
    assert after == before
    assert sorted(p.name for p in tmp_path.rglob("*")) == [shipping.TASK_FILE]


def test_files_that_a_task_names_travel_and_work_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine file, chat template, dataset, tokenizer: each at the path that the task then names."""
    home = tmp_path / "home"
    tokenizer = tiny_tokenizer(home / "model")
    (tokenizer / "model.safetensors").write_bytes(b"0" * 1000)
    (tokenizer / ".cache").mkdir()
    (tokenizer / ".cache" / "x.json").write_text("{}")
    (home / "mine.yaml").write_text((resources.templates() / "engines" / "llamacpp.yaml").read_text())
    (home / "chat.jinja").write_text("chat")
    (home / "prompts.txt").write_text("one\ntwo\n")
    monkeypatch.chdir(home)
    named = task(
        engine="mine.yaml",
        model={"chat_template": "chat.jinja"},
        benchmark={"model_tokenizer": "model", "dataset": {"path": str(home / "prompts.txt")}},
    )
    parcel = shipping.pack(named)
    away = tmp_path / "away"
    parcel.write(away)
    monkeypatch.chdir(away)
    data = shipped(parcel)
    paths = [
        data["engine"],
        data["model"]["chat_template"],
        data["benchmark"]["dataset"]["path"],
        data["benchmark"]["model_tokenizer"],
    ]
    assert all(not Path(path).is_absolute() and Path(path).exists() for path in paths)
    assert Path(data["benchmark"]["dataset"]["path"]).read_text() == "one\ntwo\n"
    there = sorted(p.name for p in Path(data["benchmark"]["model_tokenizer"]).iterdir())
    assert there == ["tokenizer.json", "tokenizer_config.json"]
    load_checked(away / shipping.TASK_FILE)


def test_a_template_of_services_travels(tmp_path: Path) -> None:
    """It is read on the cluster, by the driver."""
    (tmp_path / "service.j2").write_text("service")
    parcel = shipping.pack(task(backend="ome", ome={"template": str(tmp_path / "service.j2")}))
    assert parcel.files[shipped(parcel)["ome"]["template"]] == tmp_path / "service.j2"


def test_a_dataset_configuration_travels_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """genai-bench's own file names another one."""
    (tmp_path / "prompts.csv").write_text("prompt\nhello\n")
    config = {"source": {"type": "file", "path": str(tmp_path / "prompts.csv"), "file_format": "csv"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    parcel = shipping.pack(task(benchmark={"dataset": {"config": str(tmp_path / "config.json")}}))
    (tmp_path / "away").mkdir()
    parcel.write(tmp_path / "away")
    monkeypatch.chdir(tmp_path / "away")
    there = json.loads(Path(shipped(parcel)["benchmark"]["dataset"]["config"]).read_text())
    assert Path(there["source"]["path"]).read_text() == "prompt\nhello\n"


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ({"benchmark": {"model_tokenizer": "org/tokenizer"}}, ("benchmark", "model_tokenizer")),
        ({"model": {"chat_template": "gemma"}}, ("model", "chat_template")),
        ({"benchmark": {"dataset": {"path": "org/dataset"}}}, ("benchmark", "dataset", "path")),
        ({"engine": "vllm"}, ("engine",)),
    ],
)
def test_what_is_no_file_stays_as_it_is(parts: dict[str, Any], path: tuple[str, ...]) -> None:
    """Ids of a hub and names of what is shipped with the program."""
    parcel = shipping.pack(task(**parts))
    value: Any = parts
    there: Any = shipped(parcel)
    for step in path:
        value, there = value[step], there[step]
    assert there == value
    assert list(parcel.files) == [shipping.TASK_FILE]


def test_what_lies_in_a_shared_folder_is_not_shipped(tmp_path: Path) -> None:
    """The cluster has it at the same place."""
    (tmp_path / "prompts.txt").write_text("x")
    named = task(benchmark={"dataset": {"path": str(tmp_path / "prompts.txt")}})
    parcel = shipping.pack(named, [tmp_path])
    assert shipped(parcel)["benchmark"]["dataset"]["path"] == str(tmp_path / "prompts.txt")
    assert list(parcel.files) == [shipping.TASK_FILE]


def test_too_much_is_refused_with_the_biggest_files_and_the_cure(tmp_path: Path) -> None:
    """Before anything is uploaded."""
    for name, mib in (("big.json", 90), ("small.json", 20)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(mib * 1024**2)
    with pytest.raises(SpecError) as caught:
        shipping.pack(task(benchmark={"model_tokenizer": str(tmp_path)}))
    (problem,) = caught.value.problems
    assert problem.message.index("big.json (90.0 MiB)") < problem.message.index("small.json (20.0 MiB)")
    assert "110.0 MiB" in problem.message
    assert "--shared" in problem.message


def test_what_is_not_shipped_is_told() -> None:
    """Weights, credentials and keys: by name, never by value."""
    named = task(benchmark={"api_key_env": "MY_KEY"}, ome={"kubeconfig": "/home/me/config"})
    notes = "\n".join(shipping.pack(named).notes)
    for word in ("MY_KEY", "/home/me/config", "/models/m.gguf"):
        assert word in notes


def test_the_shipped_package_runs_without_the_checkout(tmp_path: Path) -> None:
    """With its templates, as if it were installed."""
    shipping.pack_package().write(tmp_path)
    command = [sys.executable, "-m", "raytune_autotuner", "validate", str(CONFIGS / "local-gemma.yaml")]
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == OK, ran.stderr
    where = "import raytune_autotuner as r; print(r.__file__, r.resources.templates())"
    said = subprocess.run(
        [sys.executable, "-c", f"import raytune_autotuner.resources; {where}"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert said.split() == [str(tmp_path / "raytune_autotuner" / name) for name in ("__init__.py", "templates")]


@pytest.mark.parametrize("storage", ["results", "./results", "../x"])
def test_a_relative_storage_is_refused(storage: str) -> None:
    """It would lie in the job's folder, which Ray removes."""
    with pytest.raises(SpecError, match="--storage"):
        submit.checked_storage(storage)


def test_a_storage_with_credentials_is_refused() -> None:
    """They would be in the job's metadata, for all to see."""
    with pytest.raises(SpecError):
        submit.checked_storage("s3://key:secret@bucket/folder")


@pytest.mark.parametrize("name", ["a/b", "../x", "A", "-a", "a" * 100, ""])
def test_a_name_that_nothing_can_bear_is_refused(name: str) -> None:
    """Folders, URLs and objects of Kubernetes are named by it."""
    with pytest.raises(SpecError, match="--name"):
        submit.checked_name(name)


def test_a_job_of_another_version_is_refused() -> None:
    """In the job, before anything starts; both versions are named."""
    submit.check_version({})
    submit.check_version({submit.VERSION_VARIABLE: __version__})
    with pytest.raises(EnvironmentFault, match=r"9\.9\.9") as caught:
        submit.check_version({submit.VERSION_VARIABLE: "9.9.9"})
    assert __version__ in str(caught.value)


def test_a_job_may_take_as_long_to_stop_as_a_teardown() -> None:
    """Whole seconds: Ray reads no others."""
    slow = parse_task(
        {
            "task_name": "t",
            "model": {"name": "m"},
            "base_runtime": "rt",
            "ome": {"teardown_timeout_s": 200.5},
        },
        "task.yaml",
    )
    assert int(submit.environment(slow)[submit.STOP_VARIABLE]) > 200 + ome_site.SWEEP_S + tracking.CLOSE_S
    assert int(submit.environment(task())[submit.STOP_VARIABLE]) > submit.LOCAL_STOP_S + tracking.CLOSE_S


def test_a_driver_tells_what_its_job_lacks() -> None:
    """Of a job by `ray job submit`; nothing outside of a job."""
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "x"}}'}
    assert submit.STOP_VARIABLE in str(submit.stop_note(job))
    assert submit.stop_note({**job, submit.STOP_VARIABLE: "60"}) is None
    assert submit.stop_note({}) is None
    assert "own folder" in str(submit.storage_note(job, "results"))
    assert submit.storage_note(job, "s3://b/x") is None
    assert submit.storage_note({}, "results") is None


@pytest.fixture
def server() -> Iterator[FakeJobServer]:
    with FakeJobServer().serving() as running:
        yield running


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def write_task(folder: Path, **benchmark: Any) -> str:
    file = folder / "task.yaml"
    named = task(benchmark=benchmark)
    file.write_text(yaml.safe_dump(json.loads(named.model_dump_json(exclude_unset=True))))
    return str(file)


def test_submit_hands_the_job_in_and_names_its_page(server: FakeJobServer, tmp_path: Path) -> None:
    """Metadata, environment, files; a new id for each attempt of the same experiment."""
    arguments = ("--address", server.address + "/", "--storage", "s3://bucket/tuning", "--name", "exp", "--no-wait")
    for _ in range(2):
        result = invoke("submit", write_task(tmp_path), *arguments, "--resume", "auto")
        assert result.exit_code == OK, result.output
    first, second = server.jobs.values()
    assert first.submission_id != second.submission_id
    assert f"{server.address}/#/jobs/{second.submission_id}" in result.output
    assert first.metadata == {
        "job_name": "exp",
        "experiment": "exp",
        "task": "shipped",
        "storage": "s3://bucket/tuning",
        "raytune_autotuner": __version__,
    }
    assert set(first.runtime_env["env_vars"]) == {submit.STOP_VARIABLE, submit.VERSION_VARIABLE}
    wanted = ["run", "task.json", "--storage", "s3://bucket/tuning", "--name", "exp", "--resume", "auto"]
    assert shlex.split(first.entrypoint) == ["raytune-autotuner", *wanted]
    (package,) = server.packages.values()  # the same files, uploaded once
    assert list(package) == ["task.json"]


def test_no_secret_is_handed_in(server: FakeJobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is named by its variable; its value is neither in the job nor in its files."""
    monkeypatch.setenv("MY_KEY", KEY)
    file = write_task(tmp_path, api_key_env="MY_KEY")
    result = invoke("submit", file, "--address", server.address, "--storage", "/nfs/x", "--no-wait")
    assert result.exit_code == OK
    assert "MY_KEY is not shipped" in result.output
    (job,) = server.jobs.values()
    said = json.dumps([job.entrypoint, job.runtime_env, job.metadata])
    files = b"".join(content for package in server.packages.values() for content in package.values())
    assert KEY not in said
    assert KEY.encode() not in files
    assert b"MY_KEY" in files


def test_the_package_travels_when_asked(server: FakeJobServer, tmp_path: Path) -> None:
    """And is then what the job runs."""
    arguments = ("--address", server.address, "--storage", "/nfs/x", "--no-wait", "--ship-package")
    result = invoke("submit", write_task(tmp_path), *arguments)
    assert result.exit_code == OK, result.output
    (job,) = server.jobs.values()
    assert job.entrypoint.startswith("python -m raytune_autotuner run ")
    (module,) = job.runtime_env["py_modules"]
    files = server.packages[module.removeprefix("gcs://")]
    assert "raytune_autotuner/templates/engines/llamacpp.yaml" in files
    assert "raytune_autotuner/cli/__init__.py" in files
    assert not any("__pycache__" in name for name in files)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--storage", "results"), "--storage"),
        (("--storage", "/x", "--name", "A B"), "--name"),
        (("--storage", "/x", "--resume", "auto"), "--name"),
        (("--storage", "/x", "--set", "optimization.max_iterations=none"), "max_iterations"),
        (("--storage", "/x", "--address", "head:8265"), "http://HEAD:8265"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_handed_in(
    arguments: tuple[str, ...], word: str, server: FakeJobServer, tmp_path: Path
) -> None:
    """With exit code 2, on stderr."""
    result = invoke("submit", write_task(tmp_path), "--address", server.address, "--no-wait", *arguments)
    assert result.exit_code == BAD_INPUT
    assert word in result.stderr
    assert not server.jobs


def test_an_address_where_nothing_answers_is_the_environments_fault(tmp_path: Path) -> None:
    """With the address, without a traceback."""
    arguments = ("--address", "http://127.0.0.1:9", "--storage", "/x", "--no-wait")
    result = invoke("submit", write_task(tmp_path), *arguments)
    assert result.exit_code == ENVIRONMENT
    assert "http://127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_wants_a_token_is_told_with_the_cure() -> None:
    """Ray's own words say which variables."""
    with FakeJobServer(token="t").serving() as server, pytest.raises(EnvironmentFault, match="RAY_AUTH_TOKEN"):
        JobServer.connect(server.address)


def test_the_address_that_is_given_is_the_one_that_is_asked(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's client would take the variables' one."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert JobServer.connect(server.address).attempts("none") == []
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:9"


def test_an_id_that_was_used_is_told_without_the_servers_traceback(server: FakeJobServer, tmp_path: Path) -> None:
    """Its last line says it."""
    server.job("exp-1")
    known = JobServer.connect(server.address)
    experiment = submit.Experiment(task(), "exp", "/x")
    with submit.ordered(experiment, shipping.pack(task()), False) as order:
        taken = type(order)(**{**order.__dict__, "submission_id": "exp-1"})
        with pytest.raises(EnvironmentFault, match="already exists") as caught:
            known.submit(taken)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        ("SUCCEEDED", 0, OK),
        ("FAILED", 1, NOTHING_FEASIBLE),
        ("FAILED", 2, BAD_INPUT),
        ("FAILED", 3, ENVIRONMENT),
        ("FAILED", 130, INTERRUPTED),
        ("STOPPED", None, INTERRUPTED),
    ],
)
def test_the_commands_exit_code_is_the_jobs(status: str, code: int | None, wanted: int, server: FakeJobServer) -> None:
    """As if it had run here."""
    server.job().end(status, code)
    assert exit_code(JobServer.connect(server.address).info("job-1")) == wanted


@pytest.mark.parametrize(
    ("code", "message", "word"),
    [
        (127, "", "--ship-package"),
        (None, "Failed to set up the runtime environment", "runtime environment"),
        (-9, "the driver was killed", "killed"),
    ],
)
def test_a_job_that_the_cluster_could_not_run_is_the_environments_fault(
    code: int | None, message: str, word: str, server: FakeJobServer
) -> None:
    """With what the cluster says, or what mends it."""
    server.job().end("FAILED", code, message)
    with pytest.raises(EnvironmentFault, match=word):
        exit_code(JobServer.connect(server.address).info("job-1"))


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "ASK_S", 0.1)
    monkeypatch.setattr(job_log, "RETRY_S", 0.01)


def during(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def never(text: str) -> None:
    raise AssertionError(f"nobody pressed Ctrl-C: {text}")


def test_the_log_is_handed_on_as_it_is_written(server: FakeJobServer) -> None:
    """Each line once, to the last."""
    job, written = server.job(log="one\n"), list[str]()

    def work() -> None:
        until(lambda: "one" in "".join(written))
        job.log += "two\n"
        until(lambda: "two" in "".join(written))
        job.log += "three\n"
        job.end("SUCCEEDED", 0)

    worker = during(work)
    ended = follow(JobServer.connect(server.address), "job-1", written.append, never)
    worker.join()
    assert "".join(written) == "one\ntwo\nthree\n"
    assert exit_code(ended) == OK


def test_a_connection_that_breaks_is_made_again_and_nothing_is_told_twice(server: FakeJobServer) -> None:
    """The server tells everything from the start."""
    server.drop_after = 6
    job, written = server.job(log="one two three\n"), list[str]()

    def work() -> None:
        until(lambda: "three" in "".join(written))
        job.end("SUCCEEDED", 0)

    worker = during(work)
    follow(JobServer.connect(server.address), "job-1", written.append, never)
    worker.join()
    assert "".join(written) == "one two three\n"
    assert len(written) > 1


def test_a_connection_that_hangs_does_not_hide_the_end(server: FakeJobServer) -> None:
    """The job's state is asked for as well, and the log then read whole."""
    server.silent = True
    server.job(log="all of it\n").end("FAILED", 1)
    written: list[str] = []
    ended = follow(JobServer.connect(server.address), "job-1", written.append, never)
    assert ended.driver_exit_code == 1
    assert written == ["all of it\n"]


def test_a_server_that_is_gone_is_given_up_after_a_while(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once: a head may be away for a moment."""
    monkeypatch.setattr(job_log, "LOST_S", 0.5)
    server.job()
    known = JobServer.connect(server.address)
    del server.jobs["job-1"]
    with pytest.raises(TransientError, match="may still run"):
        follow(known, "job-1", lambda text: None, never)


def test_the_first_interrupt_stops_the_job_and_goes_on_following(server: FakeJobServer, tmp_path: Path) -> None:
    """The exit code is that of an interrupted run."""

    def work() -> None:
        until(lambda: server.followers)
        (job,) = server.jobs.values()
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: job.stops)
        job.log += "ended in order\n"
        job.end("STOPPED")

    worker = during(work)
    result = invoke("submit", write_task(tmp_path), "--address", server.address, "--storage", "/x")
    worker.join()
    assert result.exit_code == INTERRUPTED
    assert "ended in order" in result.output


def test_the_second_interrupt_leaves(server: FakeJobServer) -> None:
    """The job goes on."""
    job, said = server.job(), list[str]()

    def work() -> None:
        until(lambda: server.followers)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: said)
        os.kill(os.getpid(), signal.SIGINT)

    worker = during(work)
    with pytest.raises(KeyboardInterrupt):
        follow(JobServer.connect(server.address), "job-1", lambda text: None, said.append)
    worker.join()
    assert job.status == "RUNNING"


def test_the_first_interrupt_leaves_where_nothing_is_to_be_stopped(server: FakeJobServer) -> None:
    """As for whoever only reads the log."""
    job = server.job()

    def work() -> None:
        until(lambda: server.followers)
        os.kill(os.getpid(), signal.SIGINT)

    worker = during(work)
    with pytest.raises(KeyboardInterrupt):
        follow(JobServer.connect(server.address), "job-1", lambda text: None)
    worker.join()
    assert job.stops == 0


def test_a_stop_that_the_server_does_not_take_is_sent_again(server: FakeJobServer) -> None:
    """Following goes on meanwhile, and it is said when the job was told."""
    server.refused_stops = 2
    job, said, written = server.job(), list[str](), list[str]()

    def work() -> None:
        until(lambda: server.followers)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: len(said) == 2)
        job.end("STOPPED")

    worker = during(work)
    follow(JobServer.connect(server.address), "job-1", written.append, said.append)
    worker.join()
    assert (job.stops, server.refused_stops) == (1, 0)
    assert said == ["stopping in order; Ctrl-C again leaves", "the job was told to stop, and ends by itself"]


def test_a_stop_that_is_never_taken_is_told_with_what_to_do(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody believes that the job ends who is not told so."""
    monkeypatch.setattr(job_log, "STOP_S", 0.0)
    server.refused_stops = 1000
    job, said, written = server.job(log="one\n"), list[str](), list[str]()

    def work() -> None:
        until(lambda: server.followers)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: len(said) == 2)
        job.log += "two\n"
        until(lambda: "two" in "".join(written))
        job.end("SUCCEEDED", 0)

    worker = during(work)
    follow(JobServer.connect(server.address), "job-1", written.append, said.append)
    worker.join()
    assert "could not be told to stop" in said[1]
    assert f"ray job stop --address {server.address} job-1" in said[1]


def test_whoever_leaves_before_the_job_was_told_is_warned(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that stops it."""
    monkeypatch.setattr(job_log, "RETRY_S", 60.0)
    server.refused_stops = 1
    said = list[str]()
    server.job()

    def work() -> None:
        until(lambda: server.followers)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: not server.refused_stops)
        os.kill(os.getpid(), signal.SIGINT)

    worker = during(work)
    with pytest.raises(KeyboardInterrupt):
        follow(JobServer.connect(server.address), "job-1", lambda text: None, said.append)
    worker.join()
    assert "may not have been told to stop" in said[1]
    assert "ray job stop" in said[1]


def test_waiting_for_the_end_of_a_job_is_bounded(server: FakeJobServer) -> None:
    """Whether it came is the answer."""
    job, known = server.job(), JobServer.connect(server.address)
    assert not until_ended(known, "job-1", 0.0)
    job.end("STOPPED")
    assert until_ended(known, "job-1", 0.0)


def test_all_jobs_of_a_cluster_that_goes_are_stopped(server: FakeJobServer) -> None:
    """Those that wait too; it is waited for their end, and not for ever."""
    running, waiting, over = server.job("a"), server.job("b", status="PENDING"), server.job("c", status="FAILED")

    def obey() -> None:
        until(lambda: running.stops and waiting.stops)
        running.end("STOPPED")
        waiting.end("STOPPED")

    worker = during(obey)
    stop_all(server.address, 60.0)
    worker.join()
    assert (running.stops, waiting.stops, over.stops) == (1, 1, 0)
    stubborn = server.job("d")
    stop_all(server.address, 0.0)
    assert stubborn.stops == 1
    server.refused_stops = 1
    other = server.job("e")
    stop_all(server.address, 0.0)
    assert stubborn.stops + other.stops == 2, "one could not be told, the other was"


def test_the_attempts_of_an_experiment_are_told_the_newest_first(server: FakeJobServer) -> None:
    """Other experiments' jobs are not."""
    for number, experiment in enumerate(["one", "two", "one"]):
        server.job(f"job-{number}", metadata={"experiment": experiment}, start_time=number + 1)
    attempts = JobServer.connect(server.address).attempts("one")
    assert [job.submission_id for job in attempts] == ["job-2", "job-0"]
