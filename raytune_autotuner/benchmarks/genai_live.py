"""The requests of a load while it runs: genai-bench's process writes a line as each one ends (see ``genai_fork``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytune_autotuner.benchmarks import Answered
from raytune_autotuner.metrics import error_ratio, steady, summarise
from raytune_autotuner.records import Load, LoadMetrics, RequestSamples

MEASURABLE_S = 1.0
"""A shorter time says nothing about the client's use of the CPU."""


class LiveRequests:
    """Reads the lines of one load as they grow; only what is new is read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rows: list[Mapping[str, Any]] = []

    def answered(self) -> Answered | None:
        """All that has ended; ``None`` while nothing has."""
        self._read()
        if not self._rows:
            return None
        good = [row for row in self._rows if row["error"] is None]
        return Answered(
            samples=_samples(good),
            ended_s=tuple(row["at"] for row in good),
            errors=len(self._rows) - len(good),
            cpu=_cpu(self._rows),
        )

    def _read(self) -> None:
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                new = stream.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._rows += [json.loads(line) for line in whole.splitlines()]


def _samples(rows: list[Mapping[str, Any]]) -> RequestSamples:
    def column(name: str) -> tuple[float, ...]:
        return tuple(float(row[name] or 0.0) for row in rows)

    return RequestSamples(
        ttft_s=column("ttft"),
        tpot_s=tuple(row["tpot"] if row["output"] else None for row in rows),
        e2e_s=column("e2e"),
        input_tokens=column("input"),
        output_tokens=column("output"),
    )


def _cpu(rows: list[Mapping[str, Any]]) -> float | None:
    """Cores that the process used between the first and the last of these requests."""
    span_s = rows[-1]["at"] - rows[0]["at"]
    return float((rows[-1]["cpu"] - rows[0]["cpu"]) / span_s) if span_s >= MEASURABLE_S else None


def so_far(load: Load, concurrency: int, answered: Answered, reason: str = "") -> LoadMetrics:
    """The metrics of a load from what has been answered, as those of a whole one are made."""
    completed = len(answered.samples.e2e_s)
    samples = steady(answered.samples, concurrency)
    return LoadMetrics(
        load=load,
        concurrency=concurrency,
        completed=completed,
        errors=answered.errors,
        duration_s=answered.span_s,
        values=summarise(samples, concurrency, error_ratio(answered.errors, completed)),
        samples=samples,
        client_cpu=answered.cpu,
        cut=reason,
    )
