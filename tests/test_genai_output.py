"""Reading what genai-bench wrote: real files of its runs, and what can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.benchmarks.genai_output import (
    RESULT_GLOB,
    dropped_requests,
    failure_reason,
    find_result,
    parse_result,
    redact,
    too_many_failed,
)
from raytune_autotuner.errors import TransientError
from raytune_autotuner.records import Load

SAMPLES = Path(__file__).parent / "data" / "genai"


def sample(name: str) -> Path:
    return next((SAMPLES / name).glob(RESULT_GLOB))


def test_a_result_in_seconds_is_read() -> None:
    """Eight requests at concurrency 4: our figures from the requests, genai-bench's own beside them."""
    metrics = parse_result(sample("seconds"))
    assert (metrics.load, metrics.concurrency) == (Load("D(100,100)", 4), 4)
    assert (metrics.completed, metrics.errors, metrics.error_codes) == (8, 0, {})
    assert len(metrics.samples.e2e_s) == 4  # the first wave does not count
    assert metrics.values["output_tokens_per_s"] == pytest.approx(4 * 100 / np.mean(metrics.samples.e2e_s))
    assert metrics.values["output_tokens_per_s"] == pytest.approx(38.46, abs=0.01)
    assert metrics.reported["output_tokens_per_s"] == pytest.approx(38.02, abs=0.01)


@pytest.mark.parametrize("name", ["seconds", "ms", "half_errors"])
def test_latencies_agree_with_the_tools_own(tmp_path: Path, name: str) -> None:
    """Over the same requests (no first wave left out), every statistic is the one that genai-bench reports."""
    metrics = parse_result(edited(tmp_path, lambda d: d["aggregated_metrics"].update(num_concurrency=100), name))
    ours = {key: value for key, value in metrics.values.items() if key.startswith(("ttft", "tpot", "e2e"))}
    assert len(ours) == 18
    assert {key: metrics.reported[key] for key in ours} == pytest.approx(ours)


def test_milliseconds_become_seconds() -> None:
    """A file in milliseconds gives latencies of a plausible size; its duration is in seconds in any case."""
    path = sample("ms")
    raw = json.loads(path.read_text())
    metrics = parse_result(path)
    last = raw["individual_request_metrics"][-1]
    assert metrics.samples.e2e_s[-1] * 1000 == pytest.approx(last["e2e_latency"])
    assert metrics.duration_s == raw["aggregated_metrics"]["run_duration"]


def test_failed_requests_are_counted_where_the_tool_says_zero() -> None:
    """Ten of twenty requests failed; genai-bench's own error rate of that run is 0."""
    metrics = parse_result(sample("half_errors"))
    assert (metrics.completed, metrics.errors, metrics.error_codes) == (10, 10, {"500": 10})
    assert metrics.values["error_ratio"] == 0.5
    assert metrics.reported["error_ratio"] == 0


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], object], source: str = "seconds") -> Path:
    data = json.loads(sample(source).read_text())
    edit(data)
    path = tmp_path / sample(source).name
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda data: data.pop("_time_unit"), "_time_unit"),
        (lambda data: data.update(_time_unit="min"), "_time_unit"),
        (lambda data: data.pop("individual_request_metrics"), "individual_request_metrics"),
        (lambda data: data["aggregated_metrics"].pop("run_duration"), "aggregated_metrics.run_duration"),
        (lambda data: data["aggregated_metrics"]["stats"]["ttft"].pop("p99"), "aggregated_metrics.stats.ttft.p99"),
        (lambda data: data["individual_request_metrics"][3].pop("ttft"), "individual_request_metrics.3.ttft"),
        (lambda data: data["individual_request_metrics"][3].update(e2e_latency=None), "e2e_latency is null"),
        (lambda data: data["individual_request_metrics"][3].update(e2e_latency=-1), "individual_request_metrics.3"),
        (lambda data: data["individual_request_metrics"][3].update(ttft=float("nan")), "individual_request_metrics.3"),
    ],
)
def test_a_faulty_result_names_file_and_field(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], field: str
) -> None:
    """A field that is missing or makes no sense is an error that says which one, in which file."""
    path = edited(tmp_path, edit)
    with pytest.raises(TransientError) as caught:
        parse_result(path)
    assert str(path) in str(caught.value)
    assert field in str(caught.value)


def test_a_missing_result_is_an_error(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(TransientError, match=r"nowhere\.json"):
        parse_result(tmp_path / "nowhere.json")


def test_batches_are_keyed_by_their_size(tmp_path: Path) -> None:
    """For tasks that iterate over batch sizes the level is the batch, and one request runs at a time."""

    def batch(data: dict[str, Any]) -> None:
        data["aggregated_metrics"].update(iteration_type="batch_size", batch_size=16, num_concurrency=1)
        for request in data["individual_request_metrics"]:
            request.update(num_output_tokens=0, tpot=0)

    metrics = parse_result(edited(tmp_path, batch))
    assert (metrics.load, metrics.concurrency) == (Load("D(100,100)", 16), 1)
    assert set(metrics.samples.tpot_s) == {None}
    assert "tpot_mean_s" not in metrics.values


def test_a_result_counts_only_once_it_is_complete(tmp_path: Path) -> None:
    """However much of the file is written, it is no result before its last byte."""
    whole = sample("half_errors").read_bytes()
    path = tmp_path / sample("half_errors").name
    load = Load("D(20,10)", 2)
    for size in (0, 1, 100, 8192, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert find_result(tmp_path, load) is None
    path.write_bytes(whole)
    assert find_result(tmp_path, load) == path
    assert find_result(tmp_path, Load("D(20,10)", 4)) is None
    assert find_result(tmp_path, Load("D(20,11)", 2)) is None


def test_the_reason_is_the_most_frequent_failure(tmp_path: Path) -> None:
    """The reason names the count, the HTTP code and the server's message."""
    reason = failure_reason(SAMPLES / "all_errors")
    assert reason is not None
    assert reason.startswith("8 of 9 requests: HTTP 400: ")
    assert "exceeds the available context size" in reason
    assert (failure_reason(SAMPLES / "half_errors") or "").startswith("10 of 20 requests: HTTP 500")
    assert failure_reason(SAMPLES / "seconds") is None
    assert failure_reason(tmp_path) is None


def test_a_reason_is_one_short_line(tmp_path: Path) -> None:
    """A page of HTML as an error message is cut and flattened."""
    page = "<html>\n" + "x" * 5000
    path = edited(
        tmp_path, lambda d: [r.update(error_message=page) for r in d["individual_request_metrics"]], "half_errors"
    )
    reason = failure_reason(path.parent) or ""
    assert len(reason) < 400
    assert "\n" not in reason


def test_dropped_answers_are_counted_in_the_log() -> None:
    """genai-bench mentions answers that it leaves out in its log only."""
    line = "WARNING - genai_bench.distributed.runner:handler - Dropping invalid metrics record due to …\n"
    assert dropped_requests("INFO x\n" + 3 * line) == 3
    assert dropped_requests("") == 0


PRINTABLE = st.characters(min_codepoint=33, max_codepoint=126)
SECRET = st.text(PRINTABLE, min_size=8, max_size=40).filter(lambda text: "redacted" not in text)


@given(SECRET, st.sampled_from(["", " ", '"', "é\n"]), st.integers(0, 3))
def test_a_secret_does_not_survive(secret: str, around: str, depth: int) -> None:
    """A secret is found however often the text was wrapped in JSON."""
    text = around + secret + around
    for _ in range(depth):
        text = json.dumps({"message": text})
    cleaned = redact(text, [secret, ""])
    for _ in range(depth):
        cleaned = json.loads(cleaned)["message"]
    assert secret not in cleaned.replace("[redacted]", "")
    assert "[redacted]" in cleaned


def test_redaction_prefers_the_longer_secret() -> None:
    """A secret that contains another is removed whole."""
    assert redact("key=abcdefgh-1234&x=abcdefgh", ["abcdefgh", "abcdefgh-1234"]) == "key=[redacted]&x=[redacted]"


def test_a_load_that_ran_out_of_time_is_no_measurement(tmp_path: Path) -> None:
    """Seven answers for four clients: the second wave, the first that counts, is not complete."""
    whole = parse_result(sample("seconds"))
    assert too_many_failed(whole, 0.0, tmp_path, "") is None
    short = replace(whole, completed=7)
    fault = too_many_failed(short, 0.0, tmp_path, "")
    assert fault is not None
    assert fault.kind == "timeout"
    assert "only 7 requests" in fault.reason
    assert "max_time_per_iteration" in fault.reason
