"""Noise of one repetition of a study: the same configuration has the same luck whoever tries it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property

from raytune_autotuner.records import Parameters, Rung, config_hash
from tests.emulator.simulation.study import World

TAU = 2 * math.pi


@dataclass(frozen=True)
class Luck:
    world: World
    seed: int

    def slowness(self, parameters: Parameters, repeat: int, node: str, now_s: float) -> float:
        """How much longer everything takes in this start, on this node, at this time."""
        noise = self.world.profile.noise
        source = random.Random(f"{self.seed}/{config_hash(parameters)}/{repeat}")
        drift = noise.drift_cv * math.sin(self._phase + TAU * now_s / noise.drift_period_s)
        return math.exp(source.gauss(0.0, noise.run_cv)) * (1 + drift) * noise.nodes.get(node, 1.0)

    def reading(self, parameters: Parameters, repeat: int, rung: Rung) -> float:
        """What chance adds to the reading of a rung: the more, the fewer requests it has."""
        source = random.Random(f"{self.seed}/{config_hash(parameters)}/{repeat}/{rung.index}")
        shorter = math.sqrt(_requests(self.world.rungs[-1]) / _requests(rung))
        return math.exp(source.gauss(0.0, self.world.study.rung_cv * shorter))

    @cached_property
    def _phase(self) -> float:
        return random.Random(f"{self.seed}/drift").uniform(0.0, TAU)


def _requests(rung: Rung) -> int:
    return rung.repeats * sum(rung.requests(load.level) for load in rung.loads)
