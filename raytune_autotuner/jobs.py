"""Jobs of a Ray cluster: hand in, ask, stop (``job_log`` follows one). The only modules that use Ray's job client."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, SpecError

logger = logging.getLogger(__name__)
REQUEST_S = 60.0
RETRY_S = 1.0
OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that Ray's client puts above the address that it is given."""
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that tell what they do."""
PROGRAMS = ("raytune-autotuner", "raytune_autotuner")
NAMED = re.compile(r"""(?<!\S)--name[=\s]\s*['"]?([^\s'"]+)""")
NOT_FOUND, NOT_EXECUTABLE = 127, 126
STOPPED_CODE = 130
OUR_CODES = frozenset({0, 1, 2, 3, 70, STOPPED_CODE})
"""See ``cli.options``."""


@dataclass(frozen=True)
class Order:
    """A job to be handed in."""

    submission_id: str
    entrypoint: str
    working_dir: Path
    py_modules: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Visible to everyone who sees the dashboard: no secrets."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def runtime_env(self) -> dict[str, Any]:
        modules = {"py_modules": [str(module) for module in self.py_modules]} if self.py_modules else {}
        return {"working_dir": str(self.working_dir), "env_vars": dict(self.env), **modules}


class _Client(JobSubmissionClient):
    """Ray's, which would wait for an answer for ever."""

    def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
        return super()._do_request(method, endpoint, **{"timeout": REQUEST_S, **more})


@dataclass(frozen=True)
class JobServer:
    """The job server at the address of a cluster's dashboard."""

    address: str
    client: JobSubmissionClient

    @classmethod
    def connect(cls, address: str) -> JobServer:
        """
        Raises:
            SpecError: that is no address of a dashboard.
            EnvironmentFault: nothing answers there, or it wants a token.
        """
        if not address.startswith(("http://", "https://")):
            message = f"{address!r} is not a dashboard's address; write it as http://HEAD:8265"
            raise SpecError.single("--address", message, "cluster")
        address = address.rstrip("/")
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _faults(address), _without(OVERRIDES):
            return cls(address, _Client(address))

    def page(self, submission_id: str) -> str:
        """The job's page in the dashboard."""
        return f"{self.address}/#/jobs/{submission_id}"

    def submit(self, order: Order) -> None:
        with _faults(self.address):
            self.client.submit_job(
                entrypoint=order.entrypoint,
                submission_id=order.submission_id,
                runtime_env=order.runtime_env(),
                metadata=dict(order.metadata),
            )

    def info(self, submission_id: str) -> JobDetails:
        with _faults(self.address):
            return self.client.get_job_info(submission_id)

    def log(self, submission_id: str) -> str:
        with _faults(self.address):
            return self.client.get_job_logs(submission_id)

    def stop(self, submission_id: str) -> None:
        """Ask it to end; Ray kills it when RAY_JOB_STOP_WAIT_TIME_S of its environment are over."""
        with _faults(self.address):
            self.client.stop_job(submission_id)

    def attempts(self, experiment: str) -> list[JobDetails]:
        """The jobs of an experiment, the newest first."""
        return [job for job in self.jobs() if experiment_of(job) == experiment]

    def newest(self) -> dict[str, JobDetails]:
        """Of each experiment that there is a job of the newest one, the newest of all first."""
        named = [(name, job) for job in self.jobs() if (name := experiment_of(job))]
        return {name: next(job for each, job in named if each == name) for name, _ in named}

    def jobs(self) -> list[JobDetails]:
        """All that were handed in, the newest first."""
        with _faults(self.address):
            jobs = self.client.list_jobs()
        return sorted((job for job in jobs if job.submission_id), key=lambda job: -(job.start_time or 0))


def experiment_of(job: JobDetails) -> str | None:
    """By what was said of the job when it was handed in, else by the ``--name`` in a command of ours."""
    if said := (job.metadata or {}).get("experiment"):
        return said
    entrypoint = job.entrypoint or ""
    found = NAMED.search(entrypoint) if any(program in entrypoint for program in PROGRAMS) else None
    return found.group(1) if found else None


def alive(jobs: Iterable[JobDetails]) -> list[JobDetails]:
    """Those that have not ended, begun or not."""
    return [job for job in jobs if not job.status.is_terminal()]


def until_ended(server: JobServer, submission_id: str, seconds: float) -> bool:
    """Wait for a job's end; whether it came."""
    deadline = Deadline.after(seconds)
    while not server.info(submission_id).status.is_terminal():
        if deadline.expired:
            return False
        time.sleep(RETRY_S)
    return True


def stop_all(address: str, seconds: float) -> None:
    """Stop every job of a cluster that is about to go, and wait for their end: Ray would kill them without a word."""
    server, deadline = JobServer.connect(address), Deadline.after(seconds)
    ids = [str(job.submission_id) for job in alive(server.jobs())]
    for submission_id in ids:
        try:
            server.stop(submission_id)
        except EnvironmentFault as fault:  # the others are to be told all the same
            logger.warning("job %s could not be told to stop: %s", submission_id, fault)
    for submission_id in ids:
        until_ended(server, submission_id, deadline.remaining())


def exit_code(job: JobDetails) -> int:
    """What the command would have returned here.

    Raises:
        EnvironmentFault: the cluster could not run it, or somebody killed it; says why.
    """
    if job.status == JobStatus.STOPPED:
        return STOPPED_CODE
    if job.driver_exit_code in OUR_CODES:
        return int(job.driver_exit_code)
    if job.driver_exit_code in (NOT_FOUND, NOT_EXECUTABLE):
        raise EnvironmentFault(
            "the cluster does not find the program: its image needs raytune-autotuner, and `ray start` a PATH "
            "that has it (activate its environment first); or submit with --ship-package"
        )
    raise EnvironmentFault(f"the job ended with {job.status.value}: {job.message}")


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextlib.contextmanager
def _faults(address: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, RayError, requests.RequestException) as error:
        raise EnvironmentFault(f"the Ray cluster at {address}: {_in_short(str(error))}") from error


def _in_short(text: str) -> str:
    """Without the server's traceback, whose last line says what is wrong."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if any("Traceback" in line for line in lines) else text.strip()
