"""First guesses, and what is tried instead of one that does not work as it is.

A guess of an engine file is about some parameters; what the others are in it is chance, and how few GPUs can carry a
model it cannot know. So one that fails is not given up at once: it is tried with other values of what it says nothing
of, or, where memory or speed was short, on more GPUs, as long as these are fewer than the runtime uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, config_hash
from raytune_autotuner.search.model.beliefs import Trying
from raytune_autotuner.search.model.encoding import neighbours

CHANGES = 3
"""So often a guess is changed, at most."""
SHORT_OF_MEMORY = "out_of_memory"
"""What the cause of such a failure begins with (see ``proposal.cause``)."""


@dataclass
class Guess:
    """One of them, and what it was changed into."""

    steps: list[Parameters]
    free: frozenset[str]
    """The parameters of which it says nothing and whose values are no numbers."""

    @property
    def latest(self) -> Parameters:
        return self.steps[-1]


class Guesses:
    """All that may still be changed, ``most`` times in all; ``price`` is what a trial of a configuration takes."""

    def __init__(self, space: Space, price: Callable[[Parameters], float], guesses: Iterable[Guess], most: int) -> None:
        self._space, self._price, self._guesses, self._left = space, price, list(guesses), most

    def changed(
        self, tried: Mapping[str, Trying], likeliest: Callable[[list[Parameters]], Parameters]
    ) -> Parameters | None:
        """What nobody tried yet, in place of a guess that did not work; ``likeliest`` says which of some may well."""
        for guess in list(self._guesses):
            while (trying := tried.get(config_hash(guess.latest))) is not None and trying.missed:
                near = self._near(guess, trying) if self._left > 0 and len(guess.steps) <= CHANGES else []
                if not near:
                    self._guesses.remove(guess)
                    break
                self._left -= 1
                guess.steps.append(likeliest(near))
                if config_hash(guess.latest) not in tried:
                    return guess.latest
        return None

    def _near(self, guess: Guess, trying: Trying) -> list[Parameters]:
        """What comes next to a guess, in one parameter: no step of before."""
        before, last = {config_hash(each) for each in guess.steps}, guess.latest
        nothing_drawn = np.random.default_rng(0)
        near = [c for c in neighbours(self._space, last, 0, nothing_drawn) if config_hash(c) not in before]
        if trying.failure is not None and not trying.failure.startswith(SHORT_OF_MEMORY):
            return [c for c in near if any(c.get(name) != last.get(name) for name in guess.free)]
        larger = [c for c in near if self._price(last) < self._price(c) < self._price({})]
        least = min(map(self._price, larger), default=0.0)
        return [c for c in larger if self._price(c) == least]
