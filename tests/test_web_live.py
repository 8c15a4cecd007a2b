"""What is read again, what is pushed, and the processes that are started."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raytune_autotuner.errors import SpecError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import RungRecord
from raytune_autotuner.storage import Storage
from raytune_autotuner.web.launching import FOLDER, PROCESS, Launcher, new_name
from raytune_autotuner.web.library import Library
from raytune_autotuner.web.live import ALL, Live, message
from raytune_autotuner.web.logs import Growing, follow
from raytune_autotuner.web.reader import Reader
from raytune_autotuner.web.settings import TOKEN_VARIABLE, Settings
from raytune_autotuner.web.site import Site
from raytune_autotuner.web.trial_pages import _rungs
from tests.example_experiment import Example, build
from tests.waiting import until
from tests.web_site import client


def small(tmp_path: Path, **more: object) -> ExperimentFolder:
    example = Example(name="small", trials=6, confirm=1, requests=4, **more)  # type: ignore[arg-type]
    return build(tmp_path, example)


def settle(folder: ExperimentFolder, reader: Reader) -> None:
    """Folders that were written long ago, as far as the reader can tell."""
    for path in (Path(folder.root.location()) / "trials").iterdir():
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    reader.look()


def test_nothing_is_read_again_that_has_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a thousand trials costs a look at their folders."""
    folder = small(tmp_path, running=1)
    reader = Reader(folder)
    settle(folder, reader)
    before = reader.look()
    asked: list[str] = []
    monkeypatch.setattr(ExperimentFolder, "record", lambda self, trial: asked.append(trial))
    assert reader.look() is before
    assert asked == []


def test_a_change_on_disk_is_seen_and_its_trial_alone_is_read(tmp_path: Path) -> None:
    """A trial that ends, one that begins, a stop request."""
    folder = small(tmp_path, running=2)
    reader = Reader(folder)
    settle(folder, reader)
    before = reader.look()
    running = next(trial for trial in before.trials.values() if trial.record is None)
    assert running.state is not None
    folder.save_state(replace(running.state, detail="something else"))
    after = reader.look()
    assert after.version != before.version
    assert after.trials[running.state.trial.name].state.detail == "something else"  # type: ignore[union-attr]
    assert after.state == "running"
    folder.request_stop()
    assert reader.look().state == "stopping"
    record = replace(before.records[0], trial=running.state.trial, number=running.state.number)
    folder.save_record(record)
    assert len(reader.look().records) == len(before.records) + 1
    folder.delete_record(record.trial)
    assert len(reader.look().records) == len(before.records)


def test_an_experiment_whose_process_is_dead_is_interrupted(tmp_path: Path) -> None:
    """Its lock may still be there."""
    folder = small(tmp_path, running=1)
    held = json.loads(folder.root.read("lock.json") or "")
    folder.root.write("lock.json", json.dumps({**held, "pid": 2**22 - 1, "started": "1"}))
    seen = Reader(folder).look()
    assert seen.state == "interrupted"
    assert seen.running == 0


async def _first(live: Live, name: str, since: str) -> str:
    async for version in live.changes(name, since):
        if version:
            return version
    return ""


def test_a_listener_hears_of_a_change_on_disk(tmp_path: Path) -> None:
    """Of one experiment and of the list; who listens for nothing new hears nothing; the end of the server ends it."""
    folder = small(tmp_path, running=1)
    site = Site.of(Settings(Storage(str(tmp_path))))

    async def listen() -> None:
        site.live.look_s = 0.05
        known = await asyncio.wait_for(_first(site.live, "small", "nothing"), 60)
        known_list = await asyncio.wait_for(_first(site.live, ALL, "nothing"), 60)
        waits = [
            asyncio.create_task(_first(site.live, "small", known)),
            asyncio.create_task(_first(site.live, ALL, known_list)),
        ]
        await asyncio.sleep(0.3)
        assert not any(wait.done() for wait in waits)
        folder.request_stop()
        assert all(await asyncio.wait_for(asyncio.gather(*waits), 60))
        again = await asyncio.wait_for(_first(site.live, "small", "nothing"), 60)
        last = asyncio.create_task(_first(site.live, "small", again))
        await asyncio.sleep(0.1)
        site.live.close()
        assert await asyncio.wait_for(last, 60) == ""

    asyncio.run(listen())


def test_listeners_hear_on_after_a_look_at_a_file_that_went(tmp_path: Path) -> None:
    """A lock is given back in the midst of a look; the next look sees what has become of it."""
    live = Live(Library(Storage(str(tmp_path))), version_of_all=lambda: looks())
    live.look_s = 0.01
    answers = iter([FileNotFoundError("lock.json"), "2"])

    def looks() -> str:
        answer = next(answers, "2")
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def first() -> str:
        return await asyncio.wait_for(anext(live.changes(ALL, "1")), 30)

    assert asyncio.run(first()) == "2"


def test_an_event_is_written_as_the_standard_has_it() -> None:
    """A line of data for each line of text."""
    assert message("log", "a\nb", "7") == "id: 7\nevent: log\ndata: a\ndata: b\n\n"


def test_a_log_is_told_in_whole_lines_without_secrets(tmp_path: Path) -> None:
    """A secret that was written in two pieces is one."""
    log = tmp_path / "engine.log"
    growing = Growing(Storage(str(tmp_path)), "engine.log")
    assert growing.news() == ""
    log.write_text("started\napi_key=se")
    assert growing.news() == "started\n"
    with log.open("a") as stream:
        stream.write("cret-1234 ok\nlast")
    assert growing.news() == "api_key=••• ok\n"
    assert growing.news() == ""
    assert growing.news(last=True) == "last"
    log.write_text("anew\n")
    assert growing.news() == "anew\n"


def test_a_large_log_is_told_from_near_its_end(tmp_path: Path) -> None:
    """Nobody waits for a gigabyte."""
    (tmp_path / "engine.log").write_text("x" * 99 + "\n" + ("y" * 99 + "\n") * 5000)
    assert len(Growing(Storage(str(tmp_path)), "engine.log").news()) <= 64 * 1024


@pytest.mark.parametrize("name", ["engine.log", ""])
def test_following_a_log_ends_with_the_trial(tmp_path: Path, name: str) -> None:
    """All that was said is told first; without a name, it is the first log that there is."""
    folder = small(tmp_path)
    trial = folder.root.sub(f"trials/{folder.trial_names()[0]}")
    site = Site.of(Settings(Storage(str(tmp_path))))

    async def events() -> list[str]:
        return [event async for event in follow(trial, name, site.live)]

    told = asyncio.run(events())
    assert "event: log" in told[0]
    assert "event: over" in told[-1]


PROGRAM = "import os, sys, time; print('begun', sys.argv[1:], dict(os.environ), flush=True); time.sleep({seconds})"


def launcher(tmp_path: Path, seconds: float) -> Launcher:
    program = (sys.executable, "-c", PROGRAM.format(seconds=seconds))
    return Launcher(Storage(str(tmp_path)), {"PATH": "/usr/bin", TOKEN_VARIABLE: "secret-token-of-the-server"}, program)


def test_a_start_is_a_process_of_its_own_with_its_words_kept(tmp_path: Path) -> None:
    """The same command as on a terminal; the server's token does not reach it; what failed can be put away."""
    starts = launcher(tmp_path, 0.0)
    starts.start("my-run", "task_name: x\n")
    assert (tmp_path / "my-run" / "launch" / "task.yaml").read_text() == "task_name: x\n"
    until(lambda: "begun" in starts.launches()[0].last_words and not starts.launches()[0].alive)
    (ended,) = starts.launches()
    assert "'run'" in ended.last_words
    assert f"'--name', 'my-run', '--storage', '{tmp_path}'" in ended.last_words
    assert "secret-token" not in ended.last_words
    with pytest.raises(SpecError, match="already"):
        starts.start("my-run", "")
    starts.dismiss("my-run")
    assert starts.launches() == []
    assert not (tmp_path / "my-run").exists()


def test_a_start_that_goes_on_is_found_by_the_next_server(tmp_path: Path) -> None:
    """It survives a restart, is listed as alive, and cannot be put away or started twice."""
    starts = launcher(tmp_path, 60.0)
    starts.start("my-run", "")
    try:
        another = launcher(tmp_path, 60.0)
        (found,) = another.launches()
        assert found.alive
        with pytest.raises(SpecError, match="did not fail"):
            another.dismiss("my-run")
        with pytest.raises(SpecError, match="already"):
            another.resume("my-run")
    finally:
        os.kill(json.loads((tmp_path / "my-run" / FOLDER / PROCESS).read_text())["pid"], signal.SIGKILL)
    until(lambda: not launcher(tmp_path, 0).launches()[0].alive)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "x" * 81, "a b"])
def test_a_bad_name_starts_nothing(tmp_path: Path, name: str) -> None:
    """Nothing is created anywhere."""
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(SpecError, match="valid"):
        launcher(inside, 0).start(name, "")
    assert list(tmp_path.rglob("*")) == [inside]


def test_names_are_unique(tmp_path: Path) -> None:
    """Two starts within a second."""
    storage = Storage(str(tmp_path))
    first = new_name("t", storage)
    storage.write(f"{first}/x", "")
    assert new_name("t", storage) != first


def test_names_of_experiments_are_looked_up_once(tmp_path: Path) -> None:
    """What is no experiment is asked for again: it may become one."""
    small(tmp_path)
    library = Library(Storage(str(tmp_path)))
    (tmp_path / "later").mkdir()
    assert library.names() == ["small"]
    (tmp_path / "later" / "task.json").write_text("{}")
    assert library.names() == ["later", "small"]


def test_a_running_trial_shows_the_rungs_that_it_has_finished(tmp_path: Path) -> None:
    """Read from its own files."""
    folder = small(tmp_path, running=1)
    done = next(record for record in folder.records() if record.rungs)
    open_trial = next(state.trial for state in folder.states() if state.outcome is None)
    folder.save_rung(open_trial, done.rungs[0])
    found = _rungs(folder.root.sub(f"trials/{open_trial.name}"), None)
    assert [type(rung) for rung in found] == [RungRecord]


def test_the_latest_experiments_are_read_when_the_server_starts(tmp_path: Path) -> None:
    """Before anybody asks; one that cannot be read keeps no other one from it."""
    settle(folder := small(tmp_path), Reader(folder))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "task.json").write_text("{")
    with client(tmp_path) as served:
        library = served.app.state.site.library  # type: ignore[attr-defined]
        until(lambda: "results" in vars(library.look("small")))


def test_looking_ahead_ends_in_silence_when_nothing_can_be_read(tmp_path: Path) -> None:
    """Pages say what is wrong."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "task.json").write_text("{")
    Site.of(Settings(Storage(str(tmp_path)))).read_latest()
