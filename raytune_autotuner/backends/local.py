"""Engines as processes on this machine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from raytune_autotuner import loopback
from raytune_autotuner.backends import Deployment, Progress
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.engines.engine_metrics import labels
from raytune_autotuner.engines.failures import classify
from raytune_autotuner.errors import TransientError, TrialInfeasible
from raytune_autotuner.processes import OwnedProcess
from raytune_autotuner.records import Endpoint, Failure

HOST = "127.0.0.1"
LOG = "engine.log"
PORT_ATTEMPTS = 3
HEALTH_INTERVAL_S = 0.1
REQUEST_TIMEOUT_S = 5.0
GRACE_S = 5.0
CLASSIFIED_BYTES = 262_144
"""The end of the log that is searched for the reason of a failure: one traceback for each of many ranks."""
SECRET = re.compile(r"api_key|secret|password|_token$", re.IGNORECASE)
"""Names of what must not get into a record."""
KEPT_CHARACTERS = 8_192
"""The end of the log that goes into a record."""


class LocalBackend:
    """Runs the engine on a free loopback port, with all that descends from it ended by ``stop``."""

    def __init__(self) -> None:
        self._process: OwnedProcess | None = None
        self._deployment: Deployment | None = None
        self._log_start = 0

    def start(self, deployment: Deployment, deadline: Deadline, progress: Progress) -> Endpoint:
        """See ``Backend.start``. An engine that finds its port taken is started again on another one."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.stop(deadline)
            try:
                return self._start(deployment, deadline, progress)
            except TransientError:
                if attempt == PORT_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def check(self) -> None:
        """See ``Backend.check``."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise self._ended(code)

    def stop(self, deadline: Deadline) -> bool:
        """See ``Backend.stop``. Processes end with the worker that started them, so there is never anything left."""
        if self._process is not None:
            self._process.stop(min(GRACE_S, deadline.remaining()))
        return False

    def _start(self, deployment: Deployment, deadline: Deadline, progress: Progress) -> Endpoint:
        url, argv = _placed(deployment.argv)
        log = deployment.folder / LOG
        self._deployment = deployment
        self._log_start = log.stat().st_size if log.exists() else 0
        self._process = OwnedProcess(
            argv,
            log=log,
            env=environment(os.environ, deployment.env),
            owner=f"{deployment.experiment}/{deployment.trial.name}",
        )
        self._await_health(self._process, url + deployment.engine.health, deadline, progress)
        metrics = deployment.engine.metrics
        return Endpoint(
            url=url,
            model_name=deployment.served_name,
            info=read_info(url, deployment.engine),
            argv=argv,
            metrics_url=url + metrics.path if metrics else None,
        )

    def _await_health(self, process: OwnedProcess, url: str, deadline: Deadline, progress: Progress) -> None:
        progress("load", waiting := f"process {process.pid}, waiting for {url}")
        while (code := process.wait(min(HEALTH_INTERVAL_S, deadline.remaining()))) is None:
            progress("load", waiting)
            if deadline.expired:
                reason = f"the engine did not get ready within {deadline.seconds:.0f} s"
                raise TrialInfeasible("not_ready", reason, self._tail()[-KEPT_CHARACTERS:])
            answer = loopback.get(url, min(REQUEST_TIMEOUT_S, deadline.remaining() or HEALTH_INTERVAL_S))
            if answer is not None and answer.status_code == 200:
                return
        raise self._ended(code)

    def _ended(self, code: int) -> TrialInfeasible | TransientError:
        assert self._deployment is not None
        tail = self._tail()
        failure: Failure = classify(self._deployment.engine, tail, code)
        if failure.kind == "infrastructure":
            return TransientError(f"{failure.reason} ({failure.hint})")
        return TrialInfeasible(failure.kind, failure.reason, tail[-KEPT_CHARACTERS:], failure.hint)

    def _tail(self) -> str:
        """The end of what this start of the engine has written to its log."""
        assert self._deployment is not None
        return _read_end(self._deployment.folder / LOG, self._log_start)


def _placed(argv: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """A URL for the engine to be, and its argv with what only this machine knows filled in."""
    port = loopback.free_port(HOST)
    facts = {"{host}": HOST, "{port}": str(port), "{python}": sys.executable}
    return f"http://{HOST}:{port}", tuple(facts.get(word, word) for word in argv)


def _read_end(path: Path, start: int) -> str:
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(start, size - CLASSIFIED_BYTES))
        return log.read().decode("utf-8", "replace")


def environment(ours: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: the user's, without what Ray put in for its workers, and what the task says.

    CUDA_VISIBLE_DEVICES stays: Ray names the GPUs there that it assigned to the trial. OMP_NUM_THREADS goes when
    Ray set it, since Ray counts the cores that the worker reserved, and that makes it 1 for an actor which reserves
    none and then slows the engine down; the raylet's own environment tells whether it was the user.
    """
    kept = {name: value for name, value in ours.items() if not name.startswith("RAY_")}
    if kept.get("PYTHONBREAKPOINT", "").startswith("ray."):
        del kept["PYTHONBREAKPOINT"]
    raylet = ours.get("RAY_RAYLET_PID")
    if raylet is not None and "OMP_NUM_THREADS" not in _environment_of(raylet):
        kept.pop("OMP_NUM_THREADS", None)
    # unbuffered, or the last words of an engine that is killed are lost
    return {"PYTHONUNBUFFERED": "1", **kept, **wanted}


def _environment_of(pid: str) -> Mapping[str, str]:
    try:
        return psutil.Process(int(pid)).environ()
    except (psutil.Error, ValueError):
        return {}


def read_info(url: str, engine: Engine) -> dict[str, Any]:
    """What the server tells of its own configuration, by the keys of the engine file; what it hides is left out."""
    info = {key: said for key, paths in engine.info.items() if (said := _first_json(url, paths)) is not None}
    if engine.metrics and engine.metrics.info:
        answer = loopback.get(url + engine.metrics.path, REQUEST_TIMEOUT_S)
        text = answer.text if answer is not None and answer.ok else ""
        found = {key: labels(text, metric) for key, metric in engine.metrics.info.items()}
        info |= {key: said for key, said in found.items() if said is not None}
    return info


def _first_json(url: str, paths: tuple[str, ...]) -> Any:
    for path in paths:
        answer = loopback.get(url + path, REQUEST_TIMEOUT_S)
        if answer is not None and answer.ok:
            try:
                return without_secrets(answer.json())
            except ValueError:
                continue
    return None


def without_secrets(said: Any) -> Any:
    """What a server tells, without keys and passwords: SGLang tells the API key that it was started with."""
    if isinstance(said, Mapping):
        return {key: without_secrets(value) for key, value in said.items() if not SECRET.search(str(key))}
    return [without_secrets(value) for value in said] if isinstance(said, list) else said
