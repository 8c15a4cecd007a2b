"""The installed command, the genuine genai-bench and a real Ray against an engine that is ready at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.storage import Storage
from tests.fakes import tiny_tokenizer
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("whole")
ROOT = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).with_name("raytune-autotuner"))
KEY, OTHER_SECRET = "sk-planted-4711-secret", "hf_planted_0815_token"


def write_task(tmp_path: Path, *engine_flags: str, **changes: Any) -> Path:
    """A task over the fake engine: two values of its seconds per output token."""
    task: dict[str, Any] = {
        "task_name": "e2e",
        "backend": "local",
        "engine": "llamacpp",
        "model": {"name": "fake"},
        "runtime": {
            "command": [sys.executable, "-m", "tests.fakes.openai_server"],
            "args": list(engine_flags),
            "env": {"PYTHONPATH": str(ROOT)},
        },
        "parameters": {"pace": {"type": "choice", "values": [0.002, 0.004], "flag": "--tpot-s"}},
        "optimization": {
            "strategy": "random",
            "max_iterations": 2,
            "scheduler": {"type": "asha"},
            "confirm": {"repeats": 1},
        },
        "benchmark": {
            "model_tokenizer": str(tiny_tokenizer(tmp_path / "tokenizer")),
            "traffic_scenarios": ["D(20,10)"],
            "num_concurrency": [2],
            "max_time_per_iteration": 1,
            "warmup_requests": 1,
            "rungs": [{"max_requests": 4}, {"max_requests": 8}],
        },
        "resources": {"cpus": 1},
    }
    for path, value in changes.items():
        part, name = path.split("__")
        task[part][name] = value
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(task))
    return file


@contextmanager
def started(tmp_path: Path, *arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a folder of its own; always ended."""
    with (tmp_path / "stdout.txt").open("w") as stdout:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
        process = subprocess.Popen(
            [COMMAND, *arguments], cwd=tmp_path, env=environment, stdout=stdout, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def output(tmp_path: Path) -> str:
    return (tmp_path / "stdout.txt").read_text()


def ours(experiment: str) -> list[psutil.Process]:
    """Processes that carry the experiment's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            owner = process.environ().get("RAYTUNE_AUTOTUNER_OWNER", "")
        except psutil.Error:
            continue
        if owner.startswith(experiment):
            found.append(process)
    return found


def test_a_run_from_the_task_file_to_the_answer(tmp_path: Path) -> None:
    """Everything that is promised is written and printed, no secret is kept, nothing is left running."""
    task = write_task(tmp_path, "--tpot-s", "0.02", benchmark__api_key_env="PLANTED_KEY")
    flags = ("--storage", str(tmp_path / "store"), "--results", str(tmp_path / "r.json"), "--name", "e2e-secrets")
    with started(
        tmp_path, "run", str(task), *flags, PLANTED_KEY=KEY, FAKE_API_KEY=KEY, HF_TOKEN=OTHER_SECRET
    ) as process:
        code = process.wait(timeout=240)
    text = output(tmp_path)
    assert code == 0, text
    assert "Best in the search" in text
    assert "WIN" in text
    assert "confidence interval" in text
    assert "machine-seconds" in text
    assert "Traceback" not in text
    doc = json.loads((tmp_path / "r.json").read_text())
    purposes = [entry["purpose"] for entry in doc["all_results"]]
    assert purposes[0] == "baseline"
    assert purposes.count("search") == 2
    load = doc["best_result"]["metrics"]["loads"][0]
    assert load["output_tokens_per_s"] > 0
    assert load["errors"] == 0
    folder = tmp_path / "store" / "e2e-secrets"
    assert list(folder.glob("trials/*/rung-1/*/*_time_*s.json"))
    assert list(folder.glob("trials/*/engine.log"))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            kept = path.read_bytes()
            assert KEY.encode() not in kept, path
            assert OTHER_SECRET.encode() not in kept, path
    assert not ours("e2e-secrets")


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended just now
        return ""


def in_a_rung(folder: ExperimentFolder) -> bool:
    return any(s.phase == "benchmark" and s.outcome is None for s in folder.states())


def test_killing_the_driver_ends_engine_and_client(tmp_path: Path) -> None:
    """SIGKILL in the middle of a rung: within 10 seconds no process of ours is left."""
    task = write_task(tmp_path, "--hang-after", "3")
    folder = ExperimentFolder(Storage(str(tmp_path / "store")), "e2e-kill")
    scratch = Path(tempfile.mkdtemp(prefix="e2e-"))  # short: Ray's sockets are below it
    with started(
        tmp_path, "run", str(task), "--storage", str(tmp_path / "store"), "--name", "e2e-kill", TMPDIR=str(scratch)
    ) as process:
        until(lambda: in_a_rung(folder), seconds=120)
        before = ours("e2e-kill")
        ray_processes = psutil.Process(process.pid).children(recursive=True)
        names = {command_line(p) for p in before}
        assert any("openai_server" in name for name in names), names
        assert any("genai" in name for name in names), names
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: not ours("e2e-kill"), seconds=10)
        until(lambda: not any(map(alive, ray_processes)), seconds=10)
        until(lambda: not list(scratch.iterdir()))
    scratch.rmdir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_writes_the_results(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM in the middle of a rung: exit code 130, results of what was measured, nothing left."""
    task = write_task(
        tmp_path, "--tpot-s", "0.2", parameters__pace={"type": "choice", "values": [0.3], "flag": "--tpot-s"}
    )
    folder = ExperimentFolder(Storage(str(tmp_path / "store")), "e2e-int")
    flags = ("--storage", str(tmp_path / "store"), "--results", str(tmp_path / "r.json"), "--name", "e2e-int")
    with started(tmp_path, "run", str(task), *flags) as process:
        until(lambda: any(s.phase == "benchmark" and s.rung == 1 for s in folder.states()), seconds=120)
        process.send_signal(number)
        assert process.wait(timeout=60) == 130, output(tmp_path)
    doc = json.loads((tmp_path / "r.json").read_text())
    assert doc["interrupted"]
    interrupted = [entry for entry in doc["all_results"] if entry["failure"]]
    assert {entry["failure"]["kind"] for entry in interrupted} == {"interrupted"}
    assert any(len(entry["rungs"]) == 1 for entry in interrupted)
    assert not ours("e2e-int")


def test_a_single_trial_reports_a_failing_engine(tmp_path: Path) -> None:
    """Every request fails: infeasible, with the reason and exit code 1."""
    task = write_task(tmp_path, "--error-share", "1.0")
    flags = ("--storage", str(tmp_path / "store"), "--name", "e2e-trial")
    with started(tmp_path, "trial", str(task), "--params", '{"pace": 0.002}', *flags) as process:
        code = process.wait(timeout=120)
    assert code == 1, output(tmp_path)
    assert "request_errors" in output(tmp_path)
    (record,) = ExperimentFolder(Storage(str(tmp_path / "store")), "e2e-trial").records()
    assert record.parameters == {"pace": 0.002}
    assert not ours("e2e-trial")


def test_a_tokenizer_that_is_none_ends_before_any_engine_starts(tmp_path: Path) -> None:
    """Exit code 3 and the reason; no trial was begun."""
    (tmp_path / "empty").mkdir()
    task = write_task(tmp_path, benchmark__model_tokenizer=str(tmp_path / "empty"))
    with started(tmp_path, "run", str(task), "--storage", str(tmp_path / "store"), "--name", "e2e-tok") as process:
        code = process.wait(timeout=120)
    assert code == 3, output(tmp_path)
    assert "tokenizer" in output(tmp_path)
    assert ExperimentFolder(Storage(str(tmp_path / "store")), "e2e-tok").states() == []


LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_run_needs_no_network_but_loopback(tmp_path: Path) -> None:
    """In a network namespace of its own, with nothing but loopback."""
    isolated = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], check=False).returncode:
        pytest.skip("this machine lets nobody make a network namespace (unshare --map-root-user --net)")
    task = write_task(
        tmp_path,
        optimization__max_iterations=1,
        optimization__scheduler="none",
        optimization__confirm={"repeats": 0},
        benchmark__rungs=[{"max_requests": 4}],
    )
    result = subprocess.run(
        [*isolated, sys.executable, "-c", LOOPBACK_UP, COMMAND, "run", str(task), "--name", "e2e-net"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    doc = json.loads((tmp_path / "results" / "e2e_results.json").read_text())
    assert [entry["outcome"] for entry in doc["all_results"]] == ["completed", "completed"]
