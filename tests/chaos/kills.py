"""What is killed, how, and when; and what is done afterwards so that the experiment can go on."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import psutil

from raytune_autotuner.errors import StorageFault
from raytune_autotuner.history import QUEUED
from raytune_autotuner.records import TrialState
from tests.chaos.watch import Watch
from tests.chaos.world import END_S, NODES, World, ended, strike
from tests.waiting import until

Target = Literal["driver", "worker", "raylet", "head"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
SHARES: dict[Target, int] = {"driver": 35, "worker": 45, "raylet": 12, "head": 8}
"""Of the kills, in percent; each target dies of each signal once at least."""
MOMENTS = ("start", "deploy", "load", "benchmark", "benchmark", "teardown")
"""A phase that some trial is in; ``start``: while the driver starts, whatever it does then."""
WAIT_S = 10.0
"""How long a moment is waited for; then any moment will do."""
START_S = 600.0
DELAY_S = 0.6
START_DELAY_S = 10.0
"""Within it, a driver imports, connects, reads its past and begins its trials."""


@dataclass(frozen=True)
class Kill:
    """One of the plan."""

    target: Target
    signal: signal.Signals
    moment: str
    delay_s: float

    def __str__(self) -> str:
        return f"{self.signal.name} {self.target} ({self.moment} + {self.delay_s:.1f} s)"


@dataclass(frozen=True)
class Struck:
    """One that was carried out."""

    kill: Kill
    after_s: float
    """Since the first driver was started."""
    running: tuple[str, ...]
    """Trials by number, with their phase and rung."""
    resumed: bool
    """Whether it ended the driver."""
    took_s: float
    """Until everything that it needs was there again."""
    adopted: int
    """How many workers had gone on with another one's engine until then."""


def plan(kills: int, seed: int) -> list[Kill]:
    """The same for the same seed; at least eight kills."""
    rng = random.Random(seed)
    pairs = [(target, number) for target in SHARES for number in SIGNALS]
    targets = rng.choices(list(SHARES), list(SHARES.values()), k=kills - len(pairs))
    pairs += [(target, rng.choice(SIGNALS)) for target in targets]
    rng.shuffle(pairs)
    return [_kill(rng, target, number) for target, number in pairs]


def _kill(rng: random.Random, target: Target, number: signal.Signals) -> Kill:
    moment = rng.choice(MOMENTS if target == "driver" else MOMENTS[1:])
    return Kill(target, number, moment, rng.uniform(0, START_DELAY_S if moment == "start" else DELAY_S))


class Campaign:
    """Carries kills out one after the other; what is not theirs to end must go on meanwhile."""

    def __init__(
        self, world: World, seed: int, tell: Callable[[int, Struck], None] = lambda number, struck: None
    ) -> None:
        self.world = world
        self.watch = Watch(world)
        self.struck: list[Struck] = []
        self.rival: int | None = None
        """The exit code of a second driver, begun while the first one was alive."""
        self._tell = tell
        self._rng = random.Random(seed + 1)
        self._began = time.monotonic()

    def run(self, kills: Sequence[Kill]) -> None:
        """Begin the experiment, kill, and resume after each kill that ended the driver; then let it come to its end."""
        self.world.start_driver()
        until(lambda: self._over() or self._is_under_way(), START_S)
        self.rival = self.world.run_driver("--resume").wait(END_S)
        with self.world.held():
            for kill in kills:
                self.struck.append(self._carry_out(kill))
                self._tell(len(self.struck), self.struck[-1])
                self.watch.look()
        self._finish()

    def _carry_out(self, kill: Kill) -> Struck:
        self._await(kill)
        running, after_s = tuple(map(_short, self._running())), time.monotonic() - self._began
        begun = time.monotonic()
        ways = {"driver": self._driver, "worker": self._worker, "raylet": self._raylet, "head": self._head}
        resumed = ways[kill.target](kill.signal)
        return Struck(kill, after_s, running, resumed, time.monotonic() - begun, len(self.watch.adopted()))

    def _await(self, kill: Kill) -> None:
        if kill.moment == "start":
            time.sleep(kill.delay_s)
            return
        until(lambda: self._over() or self._is_under_way(), START_S)
        with suppress(AssertionError):
            until(lambda: self._over() or kill.moment in {state.phase for state in self._running()}, WAIT_S)
        time.sleep(kill.delay_s)

    def _is_under_way(self) -> bool:
        """Whether some trial has begun since the driver has."""
        return any(state.updated_at > self.world.started_at for state in self._running() if state.phase != QUEUED)

    def _over(self) -> bool:
        """Fails when all is done before all kills; a driver that gives up what was killed too often has a successor."""
        code = self.world.driver.poll()
        if code == 0 and self._running():
            self._resume()
            return False
        assert code is None, f"the driver ended with {code} after {len(self.struck)} kills:\n{self.world.driver_log()}"
        return False

    def _running(self) -> list[TrialState]:
        with suppress(StorageFault):
            return [state for state in self.world.experiment.states() if state.outcome is None]
        return []

    def _driver(self, number: signal.Signals) -> bool:
        self.world.driver.send_signal(number)
        self.world.await_driver()
        return self._resume()

    def _worker(self, number: signal.Signals) -> bool:
        if workers := self.world.workers():
            strike(self._rng.choice(workers), number)
        return False

    def _raylet(self, number: signal.Signals) -> bool:
        """The raylet is gone, and with it what it started; then its machine comes up again."""
        name = self._rng.choice(list(NODES))
        (raylet,) = self._named(name, "raylet/raylet")
        strike(raylet, number)
        self.world.restart_node(name)
        return False

    def _head(self, number: signal.Signals) -> bool:
        """Without it, nobody can go on; the cluster is made anew."""
        (gcs,) = self._named("head", "gcs_server")
        strike(gcs, number)
        self.world.ray.kill("head")
        self.world.await_driver()
        self.world.restart_cluster()
        return self._resume()

    def _named(self, node: str, word: str) -> list[psutil.Process]:
        return [each for each in self.world.ray.processes(node, word) if not ended(each)][:1]

    def _resume(self) -> bool:
        self.watch.look()
        self.world.start_driver()
        return True

    def _finish(self) -> None:
        """The last driver may have given up trials that were killed too often; another one takes them up."""
        for _ in range(3):
            code = self.world.driver.wait(20 * END_S)
            self.watch.look()
            assert code == 0, f"exit code {code}:\n{self.world.driver_log()}"
            if not self._running():
                return
            self.world.start_driver()
        raise AssertionError("trials are still open after three drivers that nobody disturbed")


def _short(state: TrialState) -> str:
    return f"{state.number}:{state.phase}" + (f"/{state.rung}" if state.rung else "")
