"""First guesses, and what is tried instead of one that does not work as it is.

A guess of an engine file is about some parameters; what the others are in it is chance, and how few GPUs can carry a
model it cannot know. So one that fails is not given up at once: it is tried with other values of what it says nothing
of, or, where memory or speed was short, on more GPUs, though fewer than the runtime and any guess that works.
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
SHORT_OF_MEMORY = ("out_of_memory", "pruned: cannot start")
"""What the causes of such failures begin with (see ``proposal.cause``); the second is arithmetic, mostly of memory."""
AS_ANOTHER = "pruned: must fail"
"""What begins the cause of one that was not run, since another one has failed; it names that one's failure."""
NOT_TO_BE_MENDED = ("quality", "no_fit")
"""What the guess is about makes the answers worse; it is too large already."""


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
                short = _is_short(trying.failure)
                if short and not self._are_heard(tried):
                    break
                near = self._larger(guess, tried) if short else self._other(guess, trying)
                if short and not near:
                    break  # what works so far may yet break the SLO
                if not near or self._left == 0 or len(guess.steps) > CHANGES:
                    self._guesses.remove(guess)
                    break
                self._left -= 1
                known = [c for c in near if config_hash(c) in tried]  # when the search goes on, the changes of before
                guess.steps.append(known[0] if known else likeliest(near))
                if not known:
                    return guess.latest
        return None

    def _are_heard(self, tried: Mapping[str, Trying]) -> bool:
        heard = (tried.get(config_hash(guess.latest)) for guess in self._guesses)
        return all(each is not None and not each.pending for each in heard)

    def _larger(self, guess: Guess, tried: Mapping[str, Trying]) -> list[Parameters]:
        """On the next number of GPUs, as long as no guess works on so few, nor the runtime."""
        latest = [each.latest for each in self._guesses]
        working = [each for each in latest if (one := tried.get(config_hash(each))) is not None and one.keeps]
        most = min(map(self._price, [*working, {}]))
        larger = [c for c in self._near(guess) if self._price(guess.latest) < self._price(c) < most]
        least = min(map(self._price, larger), default=0.0)
        return [c for c in larger if self._price(c) == least]

    def _other(self, guess: Guess, trying: Trying) -> list[Parameters]:
        """With another value of what it says nothing of, on no more GPUs."""
        cause = trying.failure or ""
        if cause.startswith(NOT_TO_BE_MENDED) or (cause.startswith(AS_ANOTHER) and len(guess.steps) > 1):
            return []
        near = (c for c in self._near(guess) if self._price(c) <= self._price(guess.latest))
        return [c for c in near if _differing(c, guess.latest) & guess.free]

    def _near(self, guess: Guess) -> list[Parameters]:
        """What differs in one parameter, has all that the guess has, and is no step of before."""
        before, nothing_drawn = {config_hash(each) for each in guess.steps}, np.random.default_rng(0)
        near = neighbours(self._space, guess.latest, 0, nothing_drawn)
        return [c for c in near if guess.latest.keys() <= c.keys() and config_hash(c) not in before]


def _is_short(failure: str | None) -> bool:
    """Of memory, or, when it did not fail, of speed."""
    if failure is None or failure.startswith(SHORT_OF_MEMORY):
        return True
    return failure.startswith(AS_ANOTHER) and f"({SHORT_OF_MEMORY[0]}:" in failure


def _differing(one: Parameters, other: Parameters) -> set[str]:
    """Parameters that both have; one that another one switches on or off is not what was changed."""
    return {name for name in one.keys() & other.keys() if one[name] != other[name]}
