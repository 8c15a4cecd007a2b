"""What is read again of an experiment's trials, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raytune_autotuner.errors import StorageFault
from raytune_autotuner.folder import ExperimentFolder, Kept
from raytune_autotuner.storage import Storage

LONG_AGO = 1_700_000_000


class Reads:
    """Loads a trial's word, and remembers who was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = ExperimentFolder(Storage(str(folder)), "exp")
        self.asked: list[str] = []
        self.fails = False

    def load(self, name: str) -> str:
        if self.fails:
            raise OSError("not now")
        self.asked.append(name)
        return self.folder.root.read(f"trials/{name}/word") or ""

    def write(self, name: str, word: str, at: int = LONG_AGO) -> None:
        self.folder.root.write(f"trials/{name}/word", word)
        os.utime(Path(self.folder.root.location()) / "trials" / name, (at, at))

    def looked(self, kept: Kept[str]) -> tuple[bool, list[str]]:
        self.asked.clear()
        return kept.look(), sorted(self.asked)


@pytest.fixture
def reads(tmp_path: Path) -> Reads:
    found = Reads(tmp_path)
    found.write("a", "runs")
    found.write("b", "stopped")
    return found


@pytest.fixture
def kept(reads: Reads) -> Kept[str]:
    return Kept(reads.folder, reads.load, lambda word: word == "completed")


def test_a_trial_is_read_again_only_where_its_folder_was_written(reads: Reads, kept: Kept[str]) -> None:
    """Whatever its state: most of a large experiment's trials were stopped early, and may yet go on."""
    assert reads.looked(kept) == (True, ["a", "b"])
    assert reads.looked(kept) == (False, [])
    reads.write("b", "completed", LONG_AGO + 60)
    assert reads.looked(kept) == (True, ["b"])
    assert kept.trials == {"a": "runs", "b": "completed"}


def test_a_young_folder_is_read_once_more(reads: Reads, kept: Kept[str]) -> None:
    """It may have been written again within the same tick of its clock."""
    reads.folder.root.write("trials/a/word", "new")
    assert reads.looked(kept) == (True, ["a", "b"])
    assert reads.looked(kept) == (False, ["a"])


def test_what_could_not_be_read_is_read_at_the_next_look(reads: Reads, kept: Kept[str]) -> None:
    """A storage may fail at any time."""
    reads.fails = True
    with pytest.raises(OSError, match="not now"):
        kept.look()
    reads.fails = False
    assert reads.looked(kept) == (True, ["a", "b"])


def test_on_an_object_store_what_is_not_over_is_read_each_time(
    reads: Reads, kept: Kept[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folders have no times."""
    reads.write("b", "completed")
    monkeypatch.setattr(Storage, "stamps", lambda self, path="": dict.fromkeys(self.list(path)))
    assert reads.looked(kept) == (True, ["a", "b"])
    assert reads.looked(kept) == (False, ["a"])
    kept.forget()
    assert reads.looked(kept) == (False, ["a", "b"])


def test_an_experiment_has_an_id_of_its_own(tmp_path: Path) -> None:
    """Made once, kept in the folder, and another one in any other folder."""
    one, other = (ExperimentFolder(Storage(str(tmp_path / name)), "exp") for name in "ab")
    assert one.own_id() == ExperimentFolder(Storage(str(tmp_path / "a")), "exp").own_id() != other.own_id()


def test_who_requests_a_stop_that_cannot_be_written_keeps_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it can be written, it is this process that knows of it."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", full)
        with pytest.raises(StorageFault):
            folder.request_stop()
        assert (folder.stop_requested(), folder.stop_is_unheard) == (True, True)
    folder.request_stop()
    assert (folder.stop_requested(), folder.stop_is_unheard) == (True, False)


def full(storage: Storage, path: str, text: str) -> None:
    raise StorageFault("No space left on device")
