"""The engine's own Prometheus metrics while a rung is measured."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from prometheus_client.parser import text_string_to_metric_families

from raytune_autotuner import loopback
from raytune_autotuner.engines.engine import Engine, MetricNames
from raytune_autotuner.records import Endpoint, EngineStats

INTERVAL_S = 1.0
SCRAPE_TIMEOUT_S = 5.0
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
                self._scrapes.append(values)
            if not over:
                self._over.wait(self._interval_s)


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
