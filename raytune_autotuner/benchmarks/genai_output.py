"""Reads what genai-bench 0.0.5 wrote: one result file per load, and the reasons when there is none.

Everything is computed from its per-request data. Its own figures are kept beside ours under ``reported``, because
its throughput is quantised and about 9 % low and its error rate is always 0.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raytune_autotuner.errors import TransientError, TrialInfeasible
from raytune_autotuner.metrics import LATENCIES, error_ratio, steady, summarise
from raytune_autotuner.records import Load, LoadMetrics, RequestSamples

RESULT_GLOB = "*_time_*s.json"
DEBUG_GLOB = "debug_for_run_*.json"
SECONDS = {"s": 1.0, "ms": 0.001}
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
REDACTED = "[redacted]"
JSON_DEPTH = 3

Known = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


Validated = TypeVar("Validated", bound=_Part)


class _Statistics(_Part):
    mean: Figure | None
    p50: Figure | None
    p90: Figure | None
    p95: Figure | None
    p99: Figure | None
    max: Figure | None


class _Stats(_Part):
    ttft: _Statistics
    tpot: _Statistics
    e2e: _Statistics = Field(alias="e2e_latency")


class _Aggregated(_Part):
    scenario: str
    num_concurrency: int
    batch_size: int
    iteration_type: Literal["num_concurrency", "batch_size"]
    run_duration: Known
    mean_output_throughput_tokens_per_s: Figure
    mean_input_throughput_tokens_per_s: Figure
    mean_total_tokens_throughput_tokens_per_s: Figure
    requests_per_second: Figure
    error_rate: Figure
    stats: _Stats


class _Request(_Part):
    ttft: Known | None
    tpot: Known | None
    e2e_latency: Known | None
    num_input_tokens: Known | None
    num_output_tokens: Known | None
    error_code: int | None
    error_message: str | None

    @model_validator(mode="after")
    def complete(self) -> _Request:
        if self.error_code is None:
            for name in ("ttft", "e2e_latency", "num_input_tokens", "num_output_tokens"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} is null in a request without an error")
        return self


class _Requests(_Part):
    individual_request_metrics: tuple[_Request, ...]


class _Result(_Requests):
    aggregated_metrics: _Aggregated
    time_unit: Literal["s", "ms"] = Field(alias="_time_unit")


def parse_result(path: Path) -> LoadMetrics:
    """The metrics of one result file, in seconds whatever unit it was written in.

    A request with an error code is an error, whatever genai-bench's totals say.

    Raises:
        TransientError: the file is missing, cut off or lacks a field; names the file and the field.
    """
    result = _validated(_Result, path)
    aggregated = result.aggregated_metrics
    batched = aggregated.iteration_type == "batch_size"
    concurrency = 1 if batched else aggregated.num_concurrency
    failed = [request for request in result.individual_request_metrics if request.error_code is not None]
    answered = _samples(result)
    completed, samples = len(answered.e2e_s), steady(answered, concurrency)
    return LoadMetrics(
        load=Load(aggregated.scenario, aggregated.batch_size if batched else aggregated.num_concurrency),
        concurrency=concurrency,
        completed=completed,
        errors=len(failed),
        duration_s=aggregated.run_duration,
        values=summarise(samples, concurrency, error_ratio(len(failed), completed)),
        samples=samples,
        error_codes=dict(Counter(str(request.error_code) for request in failed)),
        reported=_reported(result),
    )


def find_result(folder: Path, load: Load) -> Path | None:
    """The finished result file of a load; genai-bench writes it in pieces, so that a file may be there too early."""
    for path in sorted(folder.glob(RESULT_GLOB)):
        try:
            aggregated = json.loads(path.read_bytes())["aggregated_metrics"]
        except (OSError, ValueError):
            continue
        if aggregated["scenario"] == load.scenario and aggregated[aggregated["iteration_type"]] == load.level:
            return path
    return None


def failure_reason(folder: Path) -> str | None:
    """The most frequent failure of the requests, in words; ``None`` when no file tells of one."""
    for path in (*sorted(folder.glob(DEBUG_GLOB)), *sorted(folder.glob(RESULT_GLOB))):
        requests = _validated(_Requests, path).individual_request_metrics
        failures = Counter((r.error_code, r.error_message) for r in requests if r.error_code is not None)
        for (code, message), count in failures.most_common(1):
            answer = f"HTTP {code}" if code is not None and code > 0 else "no usable answer"
            return f"{count} of {len(requests)} requests: {answer}: {_shortened(message or '')}"
    return None


def too_many_failed(metrics: LoadMetrics, allowed: float, folder: Path, tail: str) -> TrialInfeasible | None:
    """The verdict on a load in which more than the allowed share failed, or too few were answered to say anything."""
    if metrics.completed and metrics.values["error_ratio"] <= allowed:
        return too_few(metrics)
    share = f"{metrics.errors} of {metrics.errors + metrics.completed} requests failed, allowed are {allowed:.1%}"
    return TrialInfeasible("request_errors", f"{share}: {failure_reason(folder)}", tail)


def too_few(metrics: LoadMetrics) -> TrialInfeasible | None:
    """The verdict on a load whose time ran out before the second wave, the first that counts, was complete."""
    if metrics.completed + metrics.errors >= 2 * metrics.concurrency:
        return None
    reason = (
        f"only {metrics.completed} requests were answered in {metrics.duration_s:.0f} s, fewer than two for each of "
        f"{metrics.concurrency} clients; raise benchmark.max_time_per_iteration if it may be that slow"
    )
    return TrialInfeasible("timeout", reason)


def dropped_requests(log: str) -> int:
    """How many answers genai-bench left out of its results without counting an error: those of a single token."""
    return log.count("Dropping invalid metrics record")


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets, however they are escaped in it."""
    forms = {form for secret in secrets if secret for form in _spellings(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, REDACTED)
    return text


def _spellings(secret: str) -> Iterator[str]:
    """As it is, in a URL, in Python's quotes, and in JSON: a server's JSON answer stands in genai-bench's as text."""
    yield from (secret, quote(secret, safe=""), repr(secret)[1:-1])
    for _ in range(JSON_DEPTH):
        secret = json.dumps(secret)[1:-1]
        yield secret


def _validated(model: type[Validated], path: Path) -> Validated:
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TransientError(f"{path}: genai-bench did not write it: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(step) for step in fault["loc"]) or "the file"
        raise TransientError(f"{path}: {place}: {fault['msg']}") from error


def _samples(result: _Result) -> RequestSamples:
    unit_s = SECONDS[result.time_unit]
    completed = [request for request in result.individual_request_metrics if request.error_code is None]

    def column(name: str, factor: float = 1.0) -> tuple[float, ...]:
        return tuple(getattr(request, name) * factor for request in completed)

    return RequestSamples(
        ttft_s=column("ttft", unit_s),
        # Tasks without output tokens (embeddings) carry 0 for "there is none".
        tpot_s=tuple(r.tpot * unit_s if r.tpot is not None and r.num_output_tokens else None for r in completed),
        e2e_s=column("e2e_latency", unit_s),
        input_tokens=column("num_input_tokens"),
        output_tokens=column("num_output_tokens"),
    )


def _reported(result: _Result) -> dict[str, float]:
    """genai-bench's own figures by our names."""
    aggregated, unit_s = result.aggregated_metrics, SECONDS[result.time_unit]
    figures = {
        "output_tokens_per_s": aggregated.mean_output_throughput_tokens_per_s,
        "input_tokens_per_s": aggregated.mean_input_throughput_tokens_per_s,
        "total_tokens_per_s": aggregated.mean_total_tokens_throughput_tokens_per_s,
        "requests_per_s": aggregated.requests_per_second,
        "error_ratio": aggregated.error_rate,
    }
    for latency in LATENCIES:
        statistics = getattr(aggregated.stats, latency)
        for name in STATISTICS:
            if (value := getattr(statistics, name)) is not None:
                figures[f"{latency}_{name}_s"] = value * unit_s
    return figures


def _shortened(message: str, limit: int = 300) -> str:
    flat = re.sub(r"\s+", " ", message).strip()
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
