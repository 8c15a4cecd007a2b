"""The driver of an experiment that is going to be killed: ``python -m tests.chaos.driver ORDER [--resume [--force]]``.

All of it is the real thing but for the benchmark, which needs no client and has no noise: it holds the engine for a
while and works out its metrics from what the running engine says of itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from raytune_autotuner import experiment
from raytune_autotuner.benchmarks import Benchmark
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.experiment import Options
from raytune_autotuner.ome_site import Ome
from raytune_autotuner.processes import OwnedProcess
from raytune_autotuner.records import Endpoint, Metrics, Rung, TrialId
from raytune_autotuner.setup import Setup, prepare
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import parse_task
from tests.fakes.trials import sample_metrics
from tests.ome_cluster import MODEL, NAMESPACE, SERVED

TICK_S = 0.05
HOLD = "hold"
"""While a file of this name is beside the journal, no confirming run comes to its end, and so neither does all."""
REFUSED, INTERRUPTED = 3, 130


@dataclass(frozen=True)
class Order:
    """What a driver is to do; on disk as JSON."""

    kubeconfig: str
    storage: str
    name: str
    journal: str
    """The file in which every rung leaves a line when it begins and one when it ends."""
    tokenizer: str
    """A folder; nobody reads it."""
    rung_s: float

    def task(self) -> dict[str, Any]:
        """18 configurations; the best has tp_size 2 and the middle of the others."""
        return {
            "task_name": "chaos",
            "backend": "ome",
            "engine": "sglang",
            "model": {"name": MODEL},
            "base_runtime": "srt-llama",
            "ome": {"kubeconfig": self.kubeconfig, "namespace": NAMESPACE, "access": "service"},
            "parameters": {
                "tp_size": {"type": "choice", "values": [1, 2]},
                "mem_frac": {"type": "choice", "values": [0.78, 0.84, 0.9]},
                "max_running_requests": {"type": "choice", "values": [16, 48, 128]},
            },
            "optimization": {
                "strategy": "grid_search",
                "objective": "minimize_latency",
                "max_iterations": 18,
                "timeout_per_iteration": 600,
                "scheduler": {"type": "asha"},
                "confirm": {"repeats": 1},
            },
            "benchmark": {
                "model_name": SERVED,
                "model_tokenizer": self.tokenizer,
                "traffic_scenarios": ["D(10,10)"],
                "num_concurrency": [4],
                "warmup_requests": 0,
                "rungs": [{"max_requests": n} for n in (8, 16, 32)],
            },
        }


WINNER = {"tp_size": 2, "mem_frac": 0.84, "max_running_requests": 48}


def e2e_s(info: Mapping[str, Any]) -> float:
    """Seconds per request of an engine that says this of itself; all different."""
    server = info["server"]
    off = abs(server["mem_fraction_static"] - 0.84) * 4 + abs((server["max_running_requests"] or 256) - 48) / 100
    return float((1.0 + off) / server["tp_size"])


@dataclass
class Steady:
    """Holds the engine for ``rung_s`` and finds what it always finds."""

    trial: str
    owner: str
    journal: Path
    rung_s: float
    _client: OwnedProcess | None = None

    def prepare(self) -> None:
        """Start a process, as a benchmark client would."""
        log = self.journal.with_name("client.log")
        command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(3600)"]
        self._client = self._client or OwnedProcess(command, log=log, env=os.environ, owner=self.owner)

    def close(self) -> None:
        if self._client is not None:
            self._client.stop(0)
        self._client = None

    def run(
        self, endpoint: Endpoint, rung: Rung, folder: Path, deadline: Deadline, check: Callable[[], None]
    ) -> Metrics:
        folder.mkdir(parents=True)
        note(self.journal, what="begin", trial=self.trial, rung=rung.index, adopted=endpoint.adopted)
        limit = Deadline.after(self.rung_s)
        while not limit.expired or self._held():
            check()
            time.sleep(TICK_S)
        (folder / "raw").write_text(json.dumps(dict(endpoint.info)), encoding="utf-8")
        note(self.journal, what="end", trial=self.trial, rung=rung.index, adopted=endpoint.adopted)
        return sample_metrics(rung.index, e2e_s(endpoint.info))

    def _held(self) -> bool:
        return self.trial.startswith("confirm-") and self.journal.with_name(HOLD).exists()


def note(journal: Path, **facts: Any) -> None:
    """One line, written at once, so that those of several processes do not mix."""
    line = json.dumps({"at": time.time(), "pid": os.getpid(), **facts}) + "\n"
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class SteadySite(Ome):
    """The emulated cluster, with a benchmark of its own."""

    journal: Path = Path()
    rung_s: float = 0.0

    def benchmark(self, trial: TrialId) -> Benchmark:
        return Steady(trial.name, f"{self.experiment}/{trial.name}", self.journal, self.rung_s)


@dataclass(frozen=True)
class SteadySetup(Setup):
    """Needs no benchmark client."""

    @contextmanager
    def shared_client(self, scratch: Path) -> Iterator[Path | None]:
        yield None


def make_setup(order: Order) -> Setup:
    task = parse_task(order.task(), "chaos.yaml")
    setup = prepare(task, load_engine("sglang"), Storage(order.storage), order.name)
    assert isinstance(setup.site, Ome)
    site = SteadySite(**_values(setup.site), journal=Path(order.journal), rung_s=order.rung_s)
    return SteadySetup(**{**_values(setup), "site": site})


def _values(thing: Any) -> dict[str, Any]:
    return {field.name: getattr(thing, field.name) for field in fields(thing)}


def main(file: str, *flags: str) -> int:
    setup = make_setup(Order(**json.loads(Path(file).read_text(encoding="utf-8"))))
    options = Options(Path(file).with_name("answer.json"))
    options = replace(options, resume="--resume" in flags, force="--force" in flags)
    try:
        results = experiment.run(setup, options)
    except (EnvironmentFault, TransientError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    return INTERRUPTED if results.interrupted else 0


def to_json(order: Order) -> str:
    return json.dumps(asdict(order))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
