"""The engine's own metrics: what is taken from a page of them, and from a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from raytune_autotuner.engines.engine import Engine, MetricNames, load_engine
from raytune_autotuner.engines.engine_metrics import KEPT, EngineMetrics, labels, parse, pick, summary
from raytune_autotuner.records import Endpoint, EngineStats, Load
from tests.waiting import until

PAGE = """\
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.7
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0"} 3
vllm:num_requests_waiting{engine="1"} 4
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0"} 10
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto"} 1
"""
NAMES = MetricNames(
    gauges={"queue_length": ("new:waiting", "vllm:num_requests_waiting")},
    ratios={"kv_cache_usage": ("vllm:kv_cache_usage_perc",)},
    counters={"preemptions": ("vllm:num_preemptions_total",), "missing": ("vllm:none",)},
)


class Pages(ThreadingHTTPServer):
    """Serves pages in turn, the last one for ever; an empty page is an error."""

    def __init__(self, *pages: str) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.pages = list(pages)
        self.served = 0

    @property
    def endpoint(self) -> Endpoint:
        url = f"http://127.0.0.1:{self.server_address[1]}"
        return Endpoint(url=url, model_name="m", metrics_url=f"{url}/metrics")

    @contextmanager
    def running(self) -> Iterator[Pages]:
        thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join(10)


class _Page(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        page = self.server.pages[min(self.server.served, len(self.server.pages) - 1)]
        self.server.served += 1
        self.send_response(200 if page else 500)
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def page(waiting: int, preempted: int) -> str:
    return f"vllm:num_requests_waiting {waiting}\nvllm:num_preemptions_total {preempted}\n"


@pytest.fixture
def engine() -> Engine:
    return load_engine("vllm").model_copy(update={"metrics": NAMES})


@pytest.fixture
def serve() -> Iterator[Pages]:
    with Pages(page(1, 5), page(3, 5), "", page(2, 9)).running() as pages:
        yield pages


def test_values_by_our_names() -> None:
    """Amounts are summed over the ranks, ratios averaged, older names found, missing ones left out."""
    assert pick(parse(PAGE), NAMES) == {"queue_length": 7.0, "preemptions": 10.0, "kv_cache_usage": pytest.approx(0.6)}


@pytest.mark.parametrize("text", ["", "<html>no metrics</html>", 'name{unclosed="1 2', "\x00"])
def test_a_page_of_something_else_has_no_values(text: str) -> None:
    """Garbage is no error."""
    assert pick(parse(text), NAMES) == {}
    assert labels(text, "name") is None


def test_labels_of_an_info_metric() -> None:
    """The configuration that an engine tells in labels; none when the metric is missing."""
    assert labels(PAGE, "vllm:cache_config_info") == {"block_size": "16", "cache_dtype": "auto"}
    assert labels(PAGE, "vllm:other") is None


def test_summary_over_a_rung() -> None:
    """Gauges have a mean and a maximum, counters an increase; a scrape may lack a name."""
    scrapes = [{"queue_length": 1.0, "preemptions": 5.0}, {"queue_length": 4.0}, {"preemptions": 7.0}]
    assert summary(scrapes, NAMES) == {"queue_length_mean": 2.5, "queue_length_max": 4.0, "preemptions": 2.0}


def test_scrapes_while_it_is_entered(serve: Pages, engine: Engine) -> None:
    """Every answer counts, a failing one in between does not harm, and a last one comes at the end."""
    with EngineMetrics(serve.endpoint, engine, interval_s=0.01) as metrics:
        until(lambda: serve.served >= 4)
    stats = metrics.stats()
    assert stats is not None
    assert stats.samples == serve.served - 1
    assert stats.values["queue_length_max"] == 3
    assert stats.values["preemptions"] == 4


def test_a_rung_shorter_than_the_interval(serve: Pages, engine: Engine) -> None:
    """There is a scrape at the beginning and one at the end, however short it is."""
    with EngineMetrics(serve.endpoint, engine, interval_s=600) as metrics:
        until(lambda: serve.served >= 1)
    assert metrics.stats() == EngineStats(2, {"queue_length_mean": 2.0, "queue_length_max": 3.0, "preemptions": 0.0})


def test_what_is_seen_is_kept_over_time(serve: Pages, engine: Engine) -> None:
    """Gauges as they are, counters by what they have grown, with the load that begins; a long rung is thinned out."""
    with EngineMetrics(serve.endpoint, engine, interval_s=0.001) as metrics:
        metrics.begin(Load("D(100,100)", 8))
        until(lambda: serve.served >= 2 * KEPT)
    series = metrics.series()
    assert series is not None
    assert KEPT / 2 <= len(series.seconds) <= KEPT
    assert list(series.seconds) == sorted(series.seconds)
    assert series.values["queue_length"][0] == 1
    assert (series.values["preemptions"][0], series.values["preemptions"][-1]) == (0, 4)
    assert all(len(values) == len(series.seconds) for values in series.values.values())
    assert series.loads == ((pytest.approx(0, abs=600), "D(100,100) at 8"),)


def test_nobody_there(engine: Engine) -> None:
    """An engine that does not answer, or has no metrics, gives none."""
    silent = Endpoint(url="http://127.0.0.1:1", model_name="m", metrics_url="http://127.0.0.1:1/metrics")
    without_names = engine.model_copy(update={"metrics": None})
    for endpoint, kind in ((silent, engine), (Endpoint("u", "m"), engine), (silent, without_names)):
        with EngineMetrics(endpoint, kind, interval_s=0.01) as metrics:
            pass
        assert metrics.stats() is None
        assert metrics.series() is None


def test_the_measured_work_may_fail(serve: Pages, engine: Engine) -> None:
    """An error inside passes through, and the thread ends."""
    metrics = EngineMetrics(serve.endpoint, engine, interval_s=0.01)
    with pytest.raises(ZeroDivisionError), metrics:
        raise ZeroDivisionError
    assert metrics._thread is not None
    assert not metrics._thread.is_alive()
