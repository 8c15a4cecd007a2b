"""Measures rungs with the genuine genai-bench, one forked command for each load.

A load has a command of its own, so that nothing of genai-bench's (plots, a spreadsheet, pauses between levels) lies
between two loads: the result is taken as soon as its file is complete, and the command is killed then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from raytune_autotuner.benchmarks import Answered, Check
from raytune_autotuner.benchmarks.genai_fork import REQUESTS, Order
from raytune_autotuner.benchmarks.genai_live import LiveRequests, so_far
from raytune_autotuner.benchmarks.genai_output import (
    DEBUG_GLOB,
    RESULT_GLOB,
    dropped_requests,
    failure_reason,
    find_result,
    parse_result,
    redact,
    too_many_failed,
)
from raytune_autotuner.benchmarks.genai_server import Command, GenaiServer, answers, log_tail
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import TransientError, TrialInfeasible
from raytune_autotuner.metrics import error_ratio, merge
from raytune_autotuner.records import Endpoint, Load, LoadMetrics, Metrics, Rung
from raytune_autotuner.task import spec

PLACEHOLDER_KEY = "none"
LOG, OUTPUT, RESULTS = "genai_bench.log", "stdout.log", "result"
KEPT_LOG_CHARACTERS = 1_000_000
POLL_S = 0.05
CHECK_EVERY_S = 1.0
CLIENT_GRACE_S = 120.0
"""What a command may take beyond the time its traffic may; the rung's own deadline holds as well."""

Ending = Literal["finished", "exited", "timeout", "cut"]


@dataclass(frozen=True)
class Target:
    """Where requests go and how genai-bench is to write them."""

    url: str
    model_name: str
    tokenizer: str
    api_backend: str
    server_engine: str | None = None


def argv(settings: spec.Benchmark, target: Target, load: Load, rung: Rung, folder: Path) -> list[str]:
    """The arguments of ``genai-bench`` for one load, with its output under ``folder``.

    Their order matters: genai-bench's checks of some look at those before. No key stands here, and nothing that
    makes it ask on the terminal.
    """
    batched = settings.batched
    options: dict[str, object] = {
        "api-backend": target.api_backend,
        "api-key": PLACEHOLDER_KEY,
        "api-base": target.url.rstrip("/"),
        "api-model-name": target.model_name,
        "model-tokenizer": target.tokenizer,
        "model": target.model_name,
        "task": settings.task,
        "num-concurrency": 1 if batched else load.level,
        "batch-size": load.level if batched else 1,
        "max-time-per-run": rung.max_minutes,
        "max-requests-per-run": rung.requests(1 if batched else load.level),
        **_dataset(settings.dataset),
        "traffic-scenario": load.scenario,
        "prefix-len": settings.prefix_len,
        "prefix-ratio": settings.prefix_ratio,
        "additional-request-params": json.dumps(parameters) if (parameters := request_parameters(settings)) else None,
        "server-engine": target.server_engine,
        "metrics-time-unit": "s",
        "experiment-base-dir": folder,
        "experiment-folder-name": RESULTS,
        "log-dir": folder,
    }
    given = ((f"--{name}", str(value)) for name, value in options.items() if value is not None)
    return ["benchmark", *chain.from_iterable(given)]


def _dataset(dataset: spec.Dataset | None) -> dict[str, object]:
    if dataset is None:
        return {}
    return {
        "dataset-path": dataset.path and _absolute(dataset.path),
        "dataset-config": dataset.config and _absolute(dataset.config),
        "dataset-prompt-column": dataset.prompt_column,
        "dataset-image-column": dataset.image_column,
    }


def _absolute(path: str) -> str:
    """A file's full path, because genai-bench runs in a folder of its own; a hub's name stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def request_parameters(settings: spec.Benchmark) -> dict[str, Any]:
    """What is merged into each request's body, but for ``ignore_eos``: genai-bench asks about that one.

    Text that reads as a number or a truth value becomes one: the BenchmarkJob of OME has text only, and tasks are
    written in its form.
    """
    return {name: plain(value) for name, value in settings.additional_params.items() if name != "ignore_eos"}


def ignore_eos(settings: spec.Benchmark) -> bool | None:
    """The user's wish for answers of the full length, if there is one."""
    value = settings.additional_params.get("ignore_eos")
    return None if value is None else bool(plain(value))


def plain(value: Any) -> Any:
    """The number or truth value that a text spells; anything else unchanged."""
    if isinstance(value, str) and re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|true|false", value):
        return json.loads(value)
    return value


def secrets_of(api_key: str | None, variables: Mapping[str, str]) -> tuple[str, ...]:
    """What must never be kept: the key, and what the environment holds under a name that says so."""
    telling = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL")
    held = [value for name, value in variables.items() if telling.search(name.upper()) and len(value) >= 8]
    return tuple(filter(None, (api_key, *held)))


class GenaiCli:
    """Implements ``Benchmark``. Connects to the server at ``socket`` if one answers there, else starts its own.

    ``api_key`` reaches nothing but the request headers. Values of secret-looking environment variables are removed
    from everything that is kept, as a second line of defence.
    """

    def __init__(
        self,
        settings: spec.Benchmark,
        *,
        model_name: str,
        tokenizer: str,
        api_backend: str,
        server_engine: str | None,
        api_key: str | None = None,
        socket: Path | None = None,
    ) -> None:
        self._settings = settings
        self._target = Target("", model_name, _absolute(tokenizer), api_backend, server_engine)
        self._api_key = api_key
        self._secrets = secrets_of(api_key, os.environ)
        self._socket = socket
        self._server: GenaiServer | None = None

    def prepare(self) -> None:
        if self._server is not None or (self._socket is not None and answers(self._socket)):
            return
        scratch = Path(tempfile.gettempdir()) / f"raytune-autotuner-{uuid.uuid4().hex}"
        self._server = GenaiServer.start(self._target.tokenizer, scratch)
        self._socket = self._server.socket

    def run(self, endpoint: Endpoint, rung: Rung, folder: Path, deadline: Deadline, check: Check) -> Metrics:
        started = time.monotonic()
        folder.mkdir(parents=True)
        self.prepare()
        target = replace(self._target, url=endpoint.url)
        loads = []
        for number, load in enumerate(rung.loads):
            repeats = []
            for repeat in range(rung.repeats):
                suffix = f"-repeat{repeat}" if rung.repeats > 1 else ""
                kept = folder / f"{number}-{_file_name(load)}{suffix}"
                wait = _Wait(deadline.sooner(rung.max_minutes * 60 + CLIENT_GRACE_S), check)
                repeats.append(self._measure(target, load, rung, kept, wait))
            loads.append(merge(repeats))
        traffic_s = sum(load.duration_s for load in loads)
        return Metrics(rung.index, tuple(loads), traffic_s, max(0.0, time.monotonic() - started - traffic_s))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def _measure(self, target: Target, load: Load, rung: Rung, kept: Path, wait: _Wait) -> LoadMetrics:
        assert self._socket is not None
        scratch = self._socket.parent / uuid.uuid4().hex
        _make_private(scratch)
        arguments = tuple(argv(self._settings, target, load, rung, scratch))
        order = Order(arguments, str(scratch), str(scratch / OUTPUT), self._api_key, ignore_eos(self._settings))
        wait.live = LiveRequests(scratch / REQUESTS)
        try:
            with Command(self._socket, order, wait.deadline) as command:
                ending = wait.until_ended(command, scratch / RESULTS, load)
            answered = wait.live.answered()
        finally:
            keep(scratch, kept, self._secrets)
            shutil.rmtree(scratch, ignore_errors=True)
        if ending == "cut" and answered is not None:
            return so_far(load, 1 if self._settings.batched else load.level, answered, wait.cut)
        result = find_result(kept, load)
        if result is None:
            wait.check()  # an engine that has gone explains more than what genai-bench says
            raise _failure(kept, rung, ending, wait.deadline)
        return replace(self._judged(parse_result(result), kept, wait), client_cpu=answered.cpu if answered else None)

    def _judged(self, measured: LoadMetrics, kept: Path, wait: _Wait) -> LoadMetrics:
        """The metrics with the answers that genai-bench dropped counted as errors.

        Raises:
            TrialInfeasible: too many requests failed.
        """
        metrics = with_dropped(measured, dropped_requests(_text(kept / LOG)))
        fault = too_many_failed(metrics, self._settings.max_error_ratio, kept, log_tail(kept / LOG))
        if fault is not None:
            wait.check()
            raise fault
        return metrics


@dataclass
class _Wait:
    """Waits for a command with the caller's check in between."""

    deadline: Deadline
    check: Check
    live: LiveRequests | None = None
    cut: str = ""
    """Why the check has ended the load."""
    checked_at: float = 0.0

    def until_ended(self, command: Command, results: Path, load: Load) -> Ending:
        """Wait until the load's result is complete, the check ends it, the command has ended, or the time is over."""
        while find_result(results, load) is None:
            if command.poll(POLL_S) is not None:
                return "exited"
            if self.deadline.expired:
                return "timeout"
            if time.monotonic() - self.checked_at >= CHECK_EVERY_S:
                if cut := self.check(self._answered()):
                    self.cut = cut
                    return "cut"
                self.checked_at = time.monotonic()
        return "finished"

    def _answered(self) -> Answered | None:
        return self.live.answered() if self.live else None


def _failure(kept: Path, rung: Rung, ending: Ending, deadline: Deadline) -> TrialInfeasible | TransientError:
    """Why there is no result, from what genai-bench left."""
    log, tail = _text(kept / LOG), log_tail(kept / OUTPUT)
    if ending == "timeout":
        return TrialInfeasible("timeout", f"the load did not end within {deadline.seconds:.0f} s", tail)
    if (reason := failure_reason(kept)) is not None:
        return TrialInfeasible("request_errors", reason, tail)
    if dropped := dropped_requests(log):
        return TrialInfeasible("request_errors", f"{dropped} answers of a single token, which genai-bench drops", tail)
    if "No request metrics collected" in log:
        return TrialInfeasible("timeout", f"no request was finished within {rung.max_minutes} min", tail)
    return TransientError(f"genai-bench ended without a result:\n{tail}")


def keep(scratch: Path, kept: Path, secrets: Iterable[str]) -> None:
    """Copy what is worth keeping of genai-bench's output, without secrets."""
    kept.mkdir(parents=True)
    names = (
        LOG,
        OUTPUT,
        REQUESTS,
        *(f"{RESULTS}/{glob}" for glob in ("experiment_metadata.json", RESULT_GLOB, DEBUG_GLOB)),
    )
    for path in chain.from_iterable(scratch.glob(name) for name in names):
        text = redact(_text(path), secrets)
        (kept / path.name).write_text(text[-KEPT_LOG_CHARACTERS:] if path.suffix == ".log" else text)


def with_dropped(metrics: LoadMetrics, dropped: int) -> LoadMetrics:
    """The metrics with that many more errors."""
    if not dropped:
        return metrics
    errors = metrics.errors + dropped
    codes = {**metrics.error_codes, "dropped": dropped}
    values = {**metrics.values, "error_ratio": error_ratio(errors, metrics.completed)}
    return replace(metrics, errors=errors, error_codes=codes, values=values)


def _file_name(load: Load) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", load.scenario).strip("_") + f"-{load.level}"


def _make_private(folder: Path) -> None:
    """Raises TransientError when the server's folder, and so the server, has gone."""
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise TransientError(f"the genai-bench server has gone: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
