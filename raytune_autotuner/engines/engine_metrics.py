"""The engine's own Prometheus metrics while a rung is measured."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from prometheus_client.parser import text_string_to_metric_families

from raytune_autotuner import loopback
from raytune_autotuner.engines.engine import Engine, MetricNames
from raytune_autotuner.records import Endpoint, EngineSeries, EngineStats, Load

INTERVAL_S = 1.0
SCRAPE_TIMEOUT_S = 5.0
KEPT = 300
"""Looks that are kept of a rung, at even distances."""
FAILED_S = 1.0
"""How long work that has failed waits for the last scrape: its engine may hang."""

Samples = Mapping[str, Sequence[float]]
"""Values by metric, one for each set of labels."""


class EngineMetrics:
    """Scrapes once a second in a thread of its own, between entry and exit; never fails what it watches.

    An engine without metrics, or one that does not answer, only means that there are none.
    """

    def __init__(self, endpoint: Endpoint, engine: Engine, interval_s: float = INTERVAL_S) -> None:
        self._url = endpoint.metrics_url
        self._names = engine.metrics
        self._interval_s = interval_s
        self._scrapes: list[Mapping[str, float]] = []
        self._seconds: list[float] = []
        self._loads: list[tuple[float, str]] = []
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> EngineMetrics:
        if self._url and self._names:
            arguments = (self._url, self._names)
            self._thread = threading.Thread(target=self._watch, args=arguments, name="engine-metrics", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(2 * SCRAPE_TIMEOUT_S if kind is None else FAILED_S)

    def gauge(self, name: str) -> list[float]:
        """The values of a gauge so far, one for each look."""
        return [scrape[name] for scrape in list(self._scrapes) if name in scrape]

    def begin(self, load: Load) -> None:
        """Another load begins now."""
        self._loads.append((round(time.monotonic() - self._begun, 1), f"{load.scenario} at {load.level}"))

    def series(self) -> EngineSeries | None:
        """What was seen so far, over time; ``None`` when nothing was."""
        scrapes, seconds = list(self._scrapes), list(self._seconds)
        if not scrapes or self._names is None:
            return None
        kept = range(0, len(scrapes), math.ceil(len(scrapes) / KEPT))
        named = dict.fromkeys(name for scrape in scrapes for name in scrape)
        values = {
            name: _over_time([scrapes[i].get(name) for i in kept], name in self._names.counters) for name in named
        }
        return EngineSeries(tuple(seconds[i] for i in kept), values, tuple(self._loads))

    def stats(self) -> EngineStats | None:
        """What was seen so far; ``None`` when nothing was."""
        scrapes = list(self._scrapes)
        if not scrapes or self._names is None:
            return None
        return EngineStats(len(scrapes), summary(scrapes, self._names))

    def _watch(self, url: str, names: MetricNames) -> None:
        over = False
        while not over:
            over = self._over.is_set()  # asked first, so that the last scrape comes after the end
            answer = loopback.get(url, SCRAPE_TIMEOUT_S)
            values = pick(parse(answer.text), names) if answer is not None and answer.ok else {}
            if values:
                self._seconds.append(round(time.monotonic() - self._begun, 1))
                self._scrapes.append(values)
            if not over:
                self._over.wait(self._interval_s)


def _over_time(seen: Sequence[float | None], counter: bool) -> tuple[float | None, ...]:
    first = next((value for value in seen if value is not None), 0.0) if counter else 0.0
    return tuple(None if value is None else float(f"{value - first:.5g}") for value in seen)


def parse(text: str) -> Samples:
    """The samples in a page of Prometheus metrics; empty when it is none."""
    samples: dict[str, list[float]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name].append(sample.value)
    except (ValueError, KeyError, IndexError):
        return {}
    return samples


def labels(text: str, metric: str) -> Mapping[str, str] | None:
    """The labels of a metric that exists only for its labels."""
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == metric:
                    return dict(sample.labels)
    except (ValueError, KeyError, IndexError):
        pass
    return None


def pick(samples: Samples, names: MetricNames) -> Mapping[str, float]:
    """The values of one scrape by our names."""
    summed = {name: sum(found) for name, found in _found(samples, {**names.gauges, **names.counters})}
    averaged = {name: sum(found) / len(found) for name, found in _found(samples, names.ratios)}
    return {**summed, **averaged}


def _found(samples: Samples, names: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, Sequence[float]]]:
    for ours, theirs in names.items():
        for name in theirs:
            if name in samples:
                yield ours, samples[name]
                break


def summary(scrapes: Sequence[Mapping[str, float]], names: MetricNames) -> dict[str, float]:
    """Mean and maximum of gauges and ratios, the increase of counters."""
    values: dict[str, float] = {}
    for name in (*names.gauges, *names.ratios):
        if seen := [scrape[name] for scrape in scrapes if name in scrape]:
            values[f"{name}_mean"] = sum(seen) / len(seen)
            values[f"{name}_max"] = max(seen)
    for name in names.counters:
        if seen := [scrape[name] for scrape in scrapes if name in scrape]:
            values[name] = seen[-1] - seen[0]
    return values
