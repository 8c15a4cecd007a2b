"""The stretches of time in which an experiment ran: the first one, and one more each time that it was resumed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib import metadata
from typing import Any

from raytune_autotuner import __version__
from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.folder import SESSIONS, ExperimentFolder, session_file
from raytune_autotuner.identity import changes, constant, identity
from raytune_autotuner.lock import Held
from raytune_autotuner.results_file import to_text
from raytune_autotuner.setup import Setup
from raytune_autotuner.trial import seconds_since, utc_now

PACKAGES = ("ray", "genai-bench", "hyperopt", "optuna", "xllamacpp", "numpy", "scipy")
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the driver of a submitted job, whose standard output is the job page's log."""


@dataclass(frozen=True)
class Session:
    number: int
    host: str
    version: str
    started_at: str
    ended_at: str | None = None
    """The last sign of life where it was not ended in order."""
    job: str | None = None
    """The Ray job that it was, if it was one."""


def begin(setup: Setup, *, resume: bool, found: Held | None) -> Session:
    """Write what is asked and on what it runs; of an experiment that goes on, check that it is still the same.

    Raises:
        EnvironmentFault: there is an experiment of that name already, or none to resume, or it has changed.
    """
    check(setup, resume=resume)
    root, earlier = setup.folder.root, load(setup.folder)
    root.delete("stop")
    root.delete("halt.json")
    _close(setup.folder, earlier, found)
    root.write("inputs.json", to_text(constant(setup)))
    root.write("identity.json", to_text(identity(setup)))
    root.write("environment.json", to_text(environment(setup)))
    root.write("task.json", setup.task.model_dump_json(indent=1))
    session = Session(len(earlier) + 1, platform.node(), __version__, utc_now(), job=_job())
    _write(setup.folder, session)
    return session


def check(setup: Setup, *, resume: bool) -> None:
    """As ``begin`` does, and writes nothing.

    Raises:
        EnvironmentFault: as of ``begin``.
    """
    root = setup.folder.root
    if root.exists("task.json") and not resume:
        raise EnvironmentFault(f"there is an experiment in {root.location()}: resume it, or choose another --name")
    if earlier := load(setup.folder):
        _check_version(earlier[-1])
        _check_unchanged(setup)


def _job() -> str | None:
    """The submission id of the Ray job that this process drives (as of Ray 2.60)."""
    try:
        return str(json.loads(os.environ[JOB_VARIABLE])["metadata"]["job_submission_id"])
    except (ValueError, LookupError, TypeError):
        return None


def end(folder: ExperimentFolder, session: Session) -> None:
    _write(folder, replace(session, ended_at=utc_now()))


def _close(folder: ExperimentFolder, earlier: Sequence[Session], found: Held | None) -> None:
    """End those that were not ended in order with their last sign of life, or the time since would count."""
    for session in earlier:
        if session.ended_at is not None:
            continue
        if found is not None and session is earlier[-1]:
            ended_at = found.beat_at.isoformat(timespec="milliseconds")
        else:  # the lock was given back all the same
            until = next((each.started_at for each in earlier if each.number == session.number + 1), utc_now())
            signs = [at for state in folder.states() if session.started_at <= (at := state.updated_at) < until]
            ended_at = max(signs, default=session.started_at)
        _write(folder, replace(session, ended_at=ended_at))


def load(folder: ExperimentFolder) -> list[Session]:
    texts = (folder.root.read(f"{SESSIONS}/{n}") for n in folder.root.list(SESSIONS) if n.endswith(".json"))
    return [Session(**json.loads(text)) for text in texts if text]


def elapsed_s(folder: ExperimentFolder) -> float:
    """How long the experiment has run, all its sessions together."""
    return sum(_length_s(session) for session in load(folder))


def _length_s(session: Session) -> float:
    if session.ended_at is None:
        return seconds_since(session.started_at)
    return (datetime.fromisoformat(session.ended_at) - datetime.fromisoformat(session.started_at)).total_seconds()


def _write(folder: ExperimentFolder, session: Session) -> None:
    folder.root.write(session_file(session.number), to_text(asdict(session)))


def _check_unchanged(setup: Setup) -> None:
    text = setup.folder.root.read("inputs.json")
    if said := "; ".join(changes(json.loads(text) if text else {}, constant(setup))):
        raise EnvironmentFault(
            f"experiment {setup.folder.name} cannot go on, because what it compares with has changed: {said}. "
            "Put it back, or begin a new experiment"
        )


def _check_version(session: Session) -> None:
    """Another patch version may go on, another one may measure differently."""
    if session.version.split(".")[:2] != __version__.split(".")[:2]:
        raise EnvironmentFault(
            f"the experiment was begun by version {session.version}, and this is {__version__}: "
            f"install raytune-autotuner {'.'.join(session.version.split('.')[:2])}.* to go on with it"
        )


def environment(setup: Setup) -> dict[str, Any]:
    """What the experiment runs on; no secret and no user variable."""
    return {
        "raytune_autotuner": __version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "engine": setup.engine.name,
        "tokenizer": setup.tokenizer,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
