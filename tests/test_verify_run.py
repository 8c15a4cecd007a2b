"""Export and verify, whole: the installed command, the genuine genai-bench and a real Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.storage import Storage
from tests.test_end_to_end import in_a_rung, ours, output, started, write_task
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("whole")


def done(tmp_path: Path, *arguments: str) -> str:
    """What a command printed that ended well."""
    with started(tmp_path, *arguments, "--storage", str(tmp_path / "store")) as process:
        code = process.wait(timeout=280)
    assert code == 0, output(tmp_path)
    return output(tmp_path)


def test_an_exported_command_wins_again_and_leaves_nothing(tmp_path: Path) -> None:
    """The script that export writes is deployed, measured against the baseline, and gone; also when it is killed."""
    task = write_task(tmp_path, "--tpot-s", "0.02")
    done(tmp_path, "run", str(task), "--name", "first")
    done(tmp_path, "export", "first", "-o", "winner.sh")
    assert "--tpot-s" in (tmp_path / "winner.sh").read_text()
    said = done(tmp_path, "verify", "winner.sh", "--name", "again")
    assert "WIN: +" in said
    assert "Traceback" not in said
    again = ExperimentFolder(Storage(str(tmp_path / "store")), "again")
    assert {r.trial.purpose for r in again.records()} == {"confirm"}
    assert {r.parameters.get("file") for r in again.records()} == {None, "winner.sh"}
    assert not ours("again")

    arguments = ("verify", "winner.sh", "--name", "killed", "--storage", str(tmp_path / "store"))
    with started(tmp_path, *arguments) as process:
        killed = ExperimentFolder(Storage(str(tmp_path / "store")), "killed")
        until(lambda: in_a_rung(killed), seconds=120)
        process.kill()
        process.wait()
        until(lambda: not ours("killed"), seconds=10)
