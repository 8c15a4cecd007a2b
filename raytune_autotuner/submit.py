"""Handing an experiment to a Ray cluster: the same command as here, as a job there."""

from __future__ import annotations

import math
import re
import shlex
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from raytune_autotuner import __version__
from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.shipping import TASK_FILE, Parcel, pack_package
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Task

if TYPE_CHECKING:
    from raytune_autotuner.jobs import Order

VERSION_VARIABLE = "RAYTUNE_AUTOTUNER_EXPECTED_VERSION"
STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_MARGIN_S = 120
"""For the driver, after the last trial is torn down: a minute for Ray's end and the results, then one for trackers
(``tracking.CLOSE_S``)."""
SWEEP_S = 300
"""For what a trial could not remove from the cluster, before the results (``ome_site.SWEEP_S``)."""
LOCAL_STOP_S = 30
CURE = "name a folder that all nodes share, or a URI"
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
NAME_LENGTH = 80


@dataclass(frozen=True)
class Experiment:
    """What is to be run, as opposed to where."""

    task: Task
    name: str
    storage: str
    arguments: tuple[str, ...] = ()
    """More of the command line of ``run``."""

    @property
    def command(self) -> tuple[str, ...]:
        return ("run", TASK_FILE, "--storage", self.storage, "--name", self.name, *self.arguments)


def checked_storage(storage: str) -> str:
    """
    Raises:
        SpecError: it would lie in a folder of the job that Ray removes.
    """
    if "://" in storage or Path(storage).is_absolute():
        return Storage(storage).uri
    message = f"{storage!r} would lie in the job's own folder, which Ray removes; {CURE}"
    raise SpecError.single("--storage", message, "submit")


def checked_name(name: str) -> str:
    """
    Raises:
        SpecError: no folder, object and URL can bear that name.
    """
    if NAME.fullmatch(name) and len(name) <= NAME_LENGTH:
        return name
    message = f"{name!r} is not valid: small letters, digits, dashes and dots, {NAME_LENGTH} at most"
    raise SpecError.single("--name", message, "submit")


@contextmanager
def ordered(experiment: Experiment, parcel: Parcel, ship_package: bool) -> Iterator[Order]:
    """The job of an experiment, with its files laid out in a temporary folder."""
    from raytune_autotuner.jobs import Order

    with TemporaryDirectory(prefix="raytune-autotuner-") as scratch:
        working_dir = Path(scratch) / "job"
        parcel.write(working_dir)
        modules = (_shipped_package(Path(scratch)),) if ship_package else ()
        program = ("python", "-m", __package__) if ship_package else ("raytune-autotuner",)
        yield Order(
            submission_id=f"{experiment.name}-{uuid.uuid4().hex[:6]}",  # Ray takes an id once only
            entrypoint=shlex.join((*program, *experiment.command)),
            working_dir=working_dir,
            py_modules=modules,
            env=environment(experiment.task),
            metadata={
                "job_name": experiment.name,
                "experiment": experiment.name,
                "task": experiment.task.task_name,
                "storage": experiment.storage,
                "raytune_autotuner": __version__,
            },
        )


def environment(task: Task) -> dict[str, str]:
    """Of the job; everyone who sees the dashboard sees it."""
    return {STOP_VARIABLE: str(stop_wait_s(task)), VERSION_VARIABLE: __version__}


def stop_wait_s(task: Task) -> int:
    """How long a job that was told to stop may take to end in order."""
    teardown = task.ome.teardown_timeout_s + SWEEP_S if task.backend == "ome" else LOCAL_STOP_S
    return math.ceil(teardown) + STOP_MARGIN_S


def check_version(env: Mapping[str, str]) -> None:
    """
    Raises:
        EnvironmentFault: this job was handed in by another version of this package.
    """
    expected = env.get(VERSION_VARIABLE, __version__)
    if expected != __version__:
        raise EnvironmentFault(
            f"this cluster has raytune-autotuner {__version__}, and {expected} handed the job in: install one of them "
            "on both sides, or submit with --ship-package"
        )


def checked_resume(resume: str | None, name: str | None) -> None:
    """
    Raises:
        SpecError: nobody could tell which experiment is meant.
    """
    if resume and not name:
        raise SpecError.single("--resume", "needs --name, the name of the experiment that may be there already", "run")


def in_job(env: Mapping[str, str]) -> bool:
    """Whether this process is the driver of a job of a Ray cluster."""
    return "job_submission_id" in env.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")


def stop_note(env: Mapping[str, str]) -> str | None:
    """What the driver of a job should tell about ``ray job stop``, if anything."""
    if not in_job(env) or STOP_VARIABLE in env:
        return None
    return (
        f"note: `ray job stop` would kill this job after 3 s; to let it end in order, hand it in with "
        f'--runtime-env-json \'{{"env_vars": {{"{STOP_VARIABLE}": "540"}}}}\''
    )


def storage_note(env: Mapping[str, str], storage: str) -> str | None:
    """What the driver of a job should tell about where its results go, if anything."""
    if not in_job(env) or "://" in storage or Path(storage).is_absolute():
        return None
    return f"note: --storage {storage} lies in the job's own folder, which Ray removes with the job; {CURE}"


def _shipped_package(scratch: Path) -> Path:
    pack_package().write(scratch)
    return scratch / __package__
