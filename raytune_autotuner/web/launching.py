"""Experiments that are started from here: each a process of its own, the same command as on a terminal.

Such a process does not end with the server: hours of tuning must survive a restart of the web front end. What ends it
is the stop request in its folder (the page's button, ``raytune-autotuner stop``) or a signal; it holds the
experiment's lock with a heartbeat, so it can be found, and every engine it starts ends with it (see ``processes``).
What it says goes to ``launch/run.log`` in the experiment folder (on a remote storage: on the server's machine).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.processes import start_time
from raytune_autotuner.records import EXPERIMENT_NAME
from raytune_autotuner.storage import Storage
from raytune_autotuner.web.settings import TOKEN_VARIABLE

FOLDER = "launch"
TASK_FILE, LOG, PROCESS = "task.yaml", "run.log", "process.json"
LAST_WORDS = 2000
NAME_LENGTH = 80


@dataclass(frozen=True)
class Launch:
    """A process that was started for an experiment."""

    name: str
    alive: bool
    last_words: str
    """The end of what it said."""
    at: float
    """When, in seconds since the epoch."""


class Launcher:
    """May be used by several threads."""

    def __init__(self, storage: Storage, env: Mapping[str, str], program: tuple[str, ...] = ()) -> None:
        self._storage = storage
        self._env = {name: value for name, value in env.items() if name != TOKEN_VARIABLE}
        self._program = program or (sys.executable, "-m", "raytune_autotuner")

    @property
    def _root(self) -> Path:
        if self._storage.is_local:
            return Path(self._storage.location())
        return Path(tempfile.gettempdir()) / f"raytune-autotuner-launches-{os.getuid()}"

    def start(self, name: str, task: str) -> None:
        """Run a task file's text as a new experiment of this name.

        Raises:
            SpecError: the name is not valid, or taken.
            EnvironmentFault: the process cannot be started.
        """
        if not EXPERIMENT_NAME.fullmatch(name) or len(name) > NAME_LENGTH:
            message = f"{name!r} is not valid: letters, digits, dashes and dots, {NAME_LENGTH} at most"
            raise SpecError.single("name", message, "start")
        folder = self._root / name / FOLDER
        if self._storage.exists(name):
            raise SpecError.single("name", f"there is an experiment {name} already; choose another name", "start")
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise SpecError.single("name", f"{name} was started already", "start") from error
        except OSError as error:
            raise EnvironmentFault(f"cannot make {folder}: {error}") from error
        (folder / TASK_FILE).write_text(task, encoding="utf-8")
        self._launch(folder, "run", str(folder / TASK_FILE), "--name", name)

    def resume(self, name: str) -> None:
        """Go on with an experiment.

        Raises:
            SpecError: a process was started for it that has not ended.
            EnvironmentFault: the process cannot be started.
        """
        folder = self._root / name / FOLDER
        if _is_alive(folder):
            raise SpecError.single("name", f"{name} is being started already", "resume")
        folder.mkdir(parents=True, exist_ok=True)
        self._launch(folder, "resume", name)

    def _launch(self, folder: Path, *arguments: str) -> None:
        command = (*self._program, *arguments, "--storage", self._storage.location())
        command = (*command, "--results", str(folder / "results.json"))
        try:
            with (folder / LOG).open("ab") as log:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._env,
                    start_new_session=True,  # no signal that the server's terminal sends reaches it
                )
        except OSError as error:
            raise EnvironmentFault(f"cannot start {command[0]}: {error}") from error
        said = {"pid": child.pid, "started": start_time(child.pid), "at": datetime.now(timezone.utc).timestamp()}
        (folder / PROCESS).write_text(json.dumps(said), encoding="utf-8")
        threading.Thread(target=child.wait, daemon=True).start()  # or it would look alive when it has ended

    def launches(self) -> list[Launch]:
        """Those whose experiment has not begun: they are about to, or could not."""
        if not self._root.is_dir():
            return []
        folders = (path for path in self._root.iterdir() if EXPERIMENT_NAME.fullmatch(path.name))
        begun = self._storage.exists
        return [
            launch
            for folder in sorted(folders)
            if (folder / FOLDER / PROCESS).is_file() and not begun(f"{folder.name}/task.json")
            if (launch := self.launch(folder.name))
        ]

    def launch(self, name: str) -> Launch | None:
        """The process that was started last for an experiment; ``None`` when none was started here."""
        folder = self._root / name / FOLDER
        try:
            at = float(json.loads((folder / PROCESS).read_text(encoding="utf-8"))["at"])
        except (OSError, ValueError, KeyError):
            return None
        return Launch(name, _is_alive(folder), _end_of(folder / LOG), at)

    def dismiss(self, name: str) -> None:
        """Forget a start that came to nothing.

        Raises:
            SpecError: there is no such, or it goes on.
        """
        folder = self._root / name / FOLDER
        if self._storage.exists(f"{name}/task.json") or not (folder / PROCESS).is_file() or _is_alive(folder):
            raise SpecError.single("name", f"{name} did not fail to start", "dismiss")
        for file in (*folder.iterdir(),):
            file.unlink()
        folder.rmdir()
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def _is_alive(folder: Path) -> bool:
    try:
        said = json.loads((folder / PROCESS).read_text(encoding="utf-8"))
        return said["started"] is not None and start_time(int(said["pid"])) == said["started"]
    except (OSError, ValueError, KeyError):
        return False


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - LAST_WORDS))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def new_name(task_name: str, storage: Storage) -> str:
    """The task's name and the time, as the command line makes them; unique."""
    name = f"{task_name}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    return next(each for each in (name, *(f"{name}-{n}" for n in range(2, 100))) if not storage.exists(each))
