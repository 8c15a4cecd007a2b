"""Measures rungs by OME BenchmarkJobs, one object for each load.

OME v0.1.5 … v1.3 gives a BenchmarkJob no deadline, reports
neither an image that cannot be pulled nor a claim that is not bound, and says Completed when every request failed.
All of that is looked after here; results are read from the claim and parsed as those of any other genai-bench.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytune_autotuner.anchor import label_value, labels
from raytune_autotuner.backends.ome_manifest import SecretKey
from raytune_autotuner.benchmarks import Check
from raytune_autotuner.benchmarks.genai_cli import secrets_of, with_dropped
from raytune_autotuner.benchmarks.genai_output import (
    REDACTED,
    dropped_requests,
    failure_reason,
    find_result,
    parse_result,
    redact,
    too_many_failed,
)
from raytune_autotuner.benchmarks.ome_reader import Folder, read_folder
from raytune_autotuner.benchmarks.ome_run import JobRun, Limits, Place, pods_of
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, Problem, TransientError, TrialInfeasible
from raytune_autotuner.kube import BENCHMARK_JOB, POD, PVC, Cluster, Manifest, Rejected, Unreachable
from raytune_autotuner.metrics import merge
from raytune_autotuner.records import Endpoint, Load, LoadMetrics, Metrics, Rung, TrialId
from raytune_autotuner.render import render
from raytune_autotuner.task import spec

MINUTE_S = 60
CLIENT_S = 240.0
"""What genai-bench takes beyond its traffic: imports, tokenizer, plots, a spreadsheet."""
START_S = 600.0
"""From the object to the running pod: OME looks at it again every 60 s, and the image may have to be pulled."""
FETCH_S = 180.0
FETCHES = 3
REMOVAL_S = 60.0
RELIST_S = 2.0
LOG = "genai_bench.log"
LOG_LINES, TAIL_LINES = 20_000, 15
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
"""As OME gives it to the Job, so that the reader may follow to the same node."""
TOKENS = re.compile(r"\b(hf|ghp|sk)[_-][A-Za-z0-9_-]{16,}")
"""Secrets by reference are unknown here, but tokens have a look of their own."""

BLIND = (
    "a BenchmarkJob tells nothing of its requests while it runs: no load is ended early, when it has lost the SLO or "
    "the engine is saturated, and it is not seen whether the client was the limit"
)
TASKS = ("text-to-text",)
SCENARIOS = re.compile(r"N\(\d+,\d+\)/\(\d+,\d+\)|U\(\d+,\d+\)(/\(\d+,\d+\))?|D\(\d+,\d+\)")
"""What the webhook of OME takes and genai-bench understands."""


@dataclass(frozen=True)
class OmeJobSettings:
    """What all loads of one trial share. Values only, so it can travel to a worker."""

    benchmark: spec.Benchmark
    namespace: str
    experiment: str
    trial: TrialId
    service: str
    """The InferenceService's name."""
    image: str
    """genai-bench's, for ``podOverride.image``: OME's own default is not published."""
    claim: str
    owner: Mapping[str, Any]
    """The anchor's owner reference."""
    template: str
    """The text of ``benchmark_job.yaml.j2`` or of the user's own."""
    reader_image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, SecretKey] = field(default_factory=dict)
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    start_s: float = START_S

    @property
    def labels(self) -> dict[str, str]:
        return labels(self.experiment, self.trial)

    @property
    def root(self) -> str:
        """The experiment's folder in the claim."""
        return label_value(self.experiment)


def problems(settings: spec.Benchmark) -> list[Problem]:
    """What of a benchmark's settings a BenchmarkJob cannot do, or would silently do as something else."""
    if settings.task not in TASKS:
        return [_refused("task", f"OME's BenchmarkJob can measure {', '.join(TASKS)} only")]
    if settings.dataset:
        return [_refused("dataset", "OME ignores the dataset of a BenchmarkJob, and so would measure another workload")]
    unknown = [scenario for scenario in settings.scenarios if not SCENARIOS.fullmatch(scenario)]
    found = [_refused("traffic_scenarios", f"OME's BenchmarkJob refuses `{scenario}`") for scenario in unknown]
    missing = [name for name in ("prefix_len", "prefix_ratio") if getattr(settings, name) is not None]
    return found + [
        _refused(name, "a BenchmarkJob has no field for it, and it is part of the load") for name in missing
    ]


def _refused(name: str, why: str) -> Problem:
    return Problem(f"benchmark.{name}", f"{why}; use --direct, which runs genai-bench itself")


def notes(settings: spec.Benchmark) -> list[str]:
    """What a BenchmarkJob goes without, in words for plan, record and report."""
    silent = {
        "additional_params": "are set on the BenchmarkJob, but OME hands them to nobody: without effect",
        "model_name": "is without effect: OME sends `vllm-model`",
        "model_tokenizer": "is without effect: OME takes the tokenizer from the model's own folder",
        "api_backend": "is without effect: OME takes `openai`, or what the runtime's PROTOCOL_VERSION says",
        "api_key_env": "is without effect: OME sends the key `sample-key`",
    }
    said = []
    for name, why in silent.items():
        value = getattr(settings, name)
        if value:
            given = f" ({', '.join(value)})" if isinstance(value, dict) else ""
            said.append(f"benchmark.{name}{given} {why}")
    return [*said, BLIND]


def request_params(settings: spec.Benchmark) -> dict[str, str]:
    """The parameters as the object takes them: text by name."""
    given = settings.additional_params.items()
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given}


def allowed_s(rung: Rung) -> float:
    """How long the pod of one load may run; ``max_minutes`` is in minutes, as the object's own limit is."""
    return rung.max_minutes * MINUTE_S + CLIENT_S


class OmeJob:
    """Implements ``Benchmark``. The endpoint is not used: the pod finds the InferenceService by its name."""

    def __init__(self, cluster: Cluster, settings: OmeJobSettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._secrets = secrets_of(None, os.environ)
        self._open: set[str] | None = None
        """BenchmarkJobs of this trial that may be there; ``None`` until it is known."""

    def prepare(self) -> None:
        """Nothing: the pod starts by itself."""

    def run(self, endpoint: Endpoint, rung: Rung, folder: Path, deadline: Deadline, check: Check) -> Metrics:
        started = time.monotonic()
        folder.mkdir(parents=True)
        loads = []
        try:
            self._check_claim()
            for number, load in enumerate(rung.loads):
                kept = [folder / f"{number}-{load.level}-{repeat}" for repeat in range(rung.repeats)]
                loads.append(merge([self._measure(load, rung, each, deadline, check) for each in kept]))
        except Rejected as error:
            raise EnvironmentFault(
                f"the cluster refuses what a BenchmarkJob needs: {error}; raytune-autotuner doctor"
            ) from error
        traffic_s = sum(load.duration_s for load in loads)
        return Metrics(rung.index, tuple(loads), traffic_s, max(0.0, time.monotonic() - started - traffic_s))

    def close(self) -> None:
        try:
            if self._open:
                self._clear()
        except (Rejected, EnvironmentFault) as error:
            raise TransientError(f"BenchmarkJobs of the trial may be left: {error}") from error

    def _check_claim(self) -> None:
        claim, namespace = self._settings.claim, self._settings.namespace
        if self._cluster.get(PVC, claim, namespace) is None:
            raise EnvironmentFault(
                f"PersistentVolumeClaim {namespace}/{claim} does not exist, and OME would wait for it for ever; "
                f"scripts/install-ome --namespace {namespace} makes one"
            )

    def _measure(self, load: Load, rung: Rung, kept: Path, deadline: Deadline, check: Check) -> LoadMetrics:
        settings = self._settings
        kept.mkdir()
        self._clear()
        unique = uuid.uuid4().hex[:8]
        name = f"{settings.service}-{unique}"
        results = f"{settings.trial.name}-{kept.parent.name}-{kept.name}-{unique}"
        limits = Limits(settings.start_s, allowed_s(rung))
        run = JobRun(self._cluster, Place(settings.namespace, name, settings.claim), limits, deadline, check)
        with self._job(manifest(settings, name, load, rung, results)):
            try:
                state = run.until_ended()
            finally:
                self._keep_log(run, kept)
            self._fetch(f"{settings.root}/{results}", run.node, kept)
        return self._judged(load, kept, state, run)

    @contextmanager
    def _job(self, thing: Manifest) -> Iterator[None]:
        assert self._open is not None
        name = thing["metadata"]["name"]
        self._open.add(name)
        self._cluster.create(BENCHMARK_JOB, thing)
        try:
            yield
        finally:
            with suppress(TransientError):  # what has been measured counts; it is tried again before the next load
                self._remove(name)

    def _clear(self) -> None:
        """Remove what is left of this trial, also by an earlier process; it would load the engine as well."""
        if self._open is None:
            left = self._cluster.list(BENCHMARK_JOB, self._settings.namespace, self._settings.labels)
            self._open = {job["metadata"]["name"] for job in left}
        for name in sorted(self._open):
            self._remove(name)

    def _remove(self, name: str) -> None:
        """Delete a BenchmarkJob and wait until its pod is gone and sends nothing any more."""
        assert self._open is not None
        namespace, deadline = self._settings.namespace, Deadline.after(REMOVAL_S)
        self._cluster.delete(BENCHMARK_JOB, name, namespace)
        pods = {pod["metadata"]["uid"] for pod in self._cluster.list(POD, namespace, pods_of(name))}
        with self._cluster.watch(POD, namespace, pods_of(name)) as changes:
            while pods and not deadline.expired:
                # a pod that went between the list and the watch is not told of
                if (event := changes.wait(deadline.sooner(RELIST_S))) is None:
                    pods &= {pod["metadata"]["uid"] for pod in self._cluster.list(POD, namespace, pods_of(name))}
                elif event.type == "DELETED":
                    pods.discard(event.object["metadata"]["uid"])
        if pods:
            raise TransientError(f"the pod of BenchmarkJob {namespace}/{name} is still there after {REMOVAL_S:.0f} s")
        self._open.discard(name)

    def _keep_log(self, run: JobRun, kept: Path) -> None:
        if run.pod is None:
            return
        try:
            log = self._cluster.logs(self._settings.namespace, run.pod["metadata"]["name"], tail_lines=LOG_LINES)
        except Unreachable as error:
            log = f"(no log: {error})"
        self._write(kept / LOG, log)

    def _fetch(self, path: str, node: str | None, kept: Path) -> None:
        """Bring a load's files; what has been measured is worth it, whatever is left of the trial's time."""
        settings = self._settings
        folder = Folder(
            namespace=settings.namespace,
            claim=settings.claim,
            path=path,
            image=settings.reader_image or settings.image,
            owner=settings.owner,
            labels=settings.labels,
            tolerations=(GPU_TOLERATION, *settings.tolerations),
            node=node,
        )
        for attempt in range(1, FETCHES + 1):
            try:
                files = read_folder(self._cluster, folder, Deadline.after(FETCH_S))
                break
            except TransientError:
                if attempt == FETCHES:
                    raise
        for name, content in files.items():
            self._write(kept / name, content.decode(errors="replace"))

    def _write(self, path: Path, text: str) -> None:
        path.write_text(TOKENS.sub(REDACTED, redact(text, self._secrets)))

    def _judged(self, load: Load, kept: Path, state: str, run: JobRun) -> LoadMetrics:
        """The load's metrics.

        Raises:
            TrialInfeasible: too many requests failed, or none was finished.
            TransientError: there is no result.
        """
        log = (kept / LOG).read_text() if (kept / LOG).exists() else ""
        result = find_result(kept, load)
        if result is None:
            run.check()  # an engine that has gone explains more than what genai-bench says
            raise _failure(kept, log, f"{state} {run.message}".strip())
        measured = with_dropped(parse_result(result), dropped_requests(log))
        fault = too_many_failed(measured, self._settings.benchmark.max_error_ratio, kept, tail(log))
        if fault is not None:
            run.check()
            raise fault
        return measured


def manifest(settings: OmeJobSettings, name: str, load: Load, rung: Rung, results: str) -> Manifest:
    """The BenchmarkJob of one load, whose results go into the folder ``results`` of the experiment's in the claim.

    Raises:
        SpecError: the template is at fault.
    """
    return render(
        settings.template,
        {
            "name": name,
            "namespace": settings.namespace,
            "labels": settings.labels,
            "owner_references": [dict(settings.owner)],
            "service": settings.service,
            "task": settings.benchmark.task,
            "scenario": load.scenario,
            "concurrency": load.level,
            "max_minutes": rung.max_minutes,
            "max_requests": rung.max_requests,
            "request_params": request_params(settings.benchmark),
            "storage_uri": f"pvc://{settings.claim}/{settings.root}",
            "result_folder": results,
            "image": settings.image,
            "env": [*_env(settings.env), *_secret_env(settings.secret_env)],
            "resources": {name: dict(amounts) for name, amounts in settings.resources.items()},
            "node_selector": dict(settings.node_selector),
            "tolerations": [dict(each) for each in settings.tolerations],
        },
        source="benchmark_job template",
        kind=BENCHMARK_JOB,
    )


def _failure(kept: Path, log: str, state: str) -> TrialInfeasible | TransientError:
    """Why there is no result, from what genai-bench left."""
    if (reason := failure_reason(kept)) is not None:
        return TrialInfeasible("request_errors", reason, tail(log))
    if dropped := dropped_requests(log):
        reason = f"{dropped} answers of a single token, which genai-bench drops"
        return TrialInfeasible("request_errors", reason, tail(log))
    if "No request metrics collected" in log:
        return TrialInfeasible("timeout", "no request was finished in time", tail(log))
    return TransientError(f"the BenchmarkJob has left no result; OME says {state}:\n{tail(log)}")


def tail(log: str) -> str:
    return "\n".join(log.splitlines()[-TAIL_LINES:])


def _env(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _secret_env(references: Mapping[str, SecretKey]) -> list[dict[str, Any]]:
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": of.secret, "key": of.key}}}
        for name, of in references.items()
    ]
