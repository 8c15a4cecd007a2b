"""New configurations for a search, from its source, which learns here what comes of them.

A source (a grid, a random stream, a model, or one of Ray's own searchers) may repeat itself and knows neither budget
nor GPUs. What is known already it is told at once; what cannot run it learns as a failure, without a trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raytune_autotuner.proposal import Ending, report
from raytune_autotuner.records import Failure, Parameters, config_hash
from raytune_autotuner.search.knowledge import Knowledge
from raytune_autotuner.search.ports import Gate, Limits, Past
from raytune_autotuner.search.source import WORST, Judge, Source

REPEATS_IN_A_ROW = 20
"""So many known configurations in a row from a source, and fresh random ones are tried instead."""
FRESH_DRAWS = 500


@dataclass(frozen=True)
class _Drawn:
    """A configuration from a source, which is told under this key what comes of it."""

    source: Source
    key: str
    parameters: Parameters


class Stream:
    """See the top of this module. ``knowledge`` is shared with whoever runs what comes from here."""

    def __init__(
        self,
        source: Source,
        fallback: Source | None,
        *,
        limits: Limits,
        gate: Gate,
        knowledge: Knowledge,
        past: Past,
        refuse: Callable[[Parameters, Failure], None],
    ) -> None:
        """``fallback`` is drawn from when the source has nothing new; ``refuse`` hears what may not run, and why."""
        self._source = source
        self._fallback = fallback
        self._limits = limits
        self._gate = gate
        self._knowledge = knowledge
        self._refuse = refuse
        trials = [record.trial for record in past.ended] + [proposal.trial for proposal in past.open]
        self._behind = len(trials)
        taken_over = {record.trial for record in past.ended if record.reused_from}  # no trial of this search
        self._searched = len({t.config for t in trials if t.purpose == "search" and t not in taken_over})
        self._keys: dict[str, list[str]] = {}
        """Under which the source waits to hear of a configuration, by its hash."""
        self._held: _Drawn | None = None
        self._in_vain = 0
        """Trials in a row of which the source expected nothing."""
        self._repeats = 0
        self.unpaid = False
        """Whether something was not tried since the budget does not pay for it."""

    @property
    def is_held(self) -> bool:
        """Whether a configuration waits that the budget does not pay for as long as what runs may take all there is."""
        return self._held is not None

    @property
    def is_used_up(self) -> bool:
        """Whether there were as many trials as there may be."""
        return self._searched >= self._limits.max_trials

    def settled(self) -> str | None:
        """Why no trial is worth while any more: the source expected nothing of the last ones, and still does not."""
        patience = self._limits.patience
        if patience is None or self._in_vain < patience or not isinstance(self._source, Judge):
            return None
        why = self._source.hopeless()
        self._in_vain = self._in_vain if why else 0
        return f"{why}; so it was for the last {self._in_vain} trials" if why else None

    def next(self, *, is_busy: bool) -> Parameters | None:
        """One that is new, paid for and may run; ``None`` when one is held, and when there are no more.

        ``is_busy`` says that others run, or wait to.
        """
        parameters = self._next(is_busy)
        if parameters is not None and isinstance(self._source, Judge):
            self._in_vain = self._in_vain + 1 if self._source.hopeless() else 0
        return parameters

    def _next(self, is_busy: bool) -> Parameters | None:
        held, self._held = self._held, None
        if held is not None and self._is_paid(held, is_busy) and self._is_admitted(held):
            return held.parameters
        for source, draws in ((self._source, REPEATS_IN_A_ROW), (self._fallback, FRESH_DRAWS)):
            left = draws + self._behind  # a stream that begins anew repeats what it proposed before
            while source is not None and left > 0 and self._held is None and not self.is_used_up:
                key = f"p{self._searched}-{self._repeats}-{left}-{draws}"
                parameters = source.propose(key)
                if parameters is None:
                    break
                drawn = _Drawn(source, key, parameters)
                if self._is_new(drawn) and self._is_paid(drawn, is_busy) and self._is_admitted(drawn):
                    return parameters
                left -= 1
        return None

    def _is_new(self, drawn: _Drawn) -> bool:
        """Whether nothing is known of a proposal; else its source is told what is."""
        name, source = config_hash(drawn.parameters), drawn.source
        known = self._knowledge.get(name) or self._knowledge.get(config_hash(self._gate.same_as(drawn.parameters)))
        if known is None:
            return True
        name = config_hash(known.parameters)
        self._repeats += 1
        if source is self._source and self._repeats > self._behind:  # a stream that begins anew repeats itself
            self._gate.repeated(name)
        if known.outcome is None and source is self._source:
            self._keys.setdefault(name, []).append(drawn.key)
        else:
            source.tell(drawn.key, self._knowledge.told(known))
        return False

    def _is_paid(self, drawn: _Drawn, is_busy: bool) -> bool:
        """Whether the budget pays for it; while others run it is held, since they may take less than is feared."""
        if self._gate.affords(drawn.parameters):
            return True
        if is_busy:
            self._held = drawn
        else:
            self.unpaid = True
            drawn.source.tell(drawn.key, None)
        return False

    def _is_admitted(self, drawn: _Drawn) -> bool:
        """Whether it may run; if not, its source is told so."""
        self._knowledge.add(drawn.parameters)
        self._searched += 1
        if drawn.source is self._source:
            self._keys[config_hash(drawn.parameters)] = [drawn.key]
        failure = self._gate.problem(drawn.parameters)
        if failure is not None:
            self._refuse(drawn.parameters, failure)
        return failure is None

    def awaits(self, config: str) -> None:
        """Take it that a configuration runs again, of which the source is told under its hash."""
        self._keys[config] = [config]

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        """Pass on what a trial reports, to a source that wants to know."""
        if isinstance(self._source, Judge):
            self._source.hear(parameters, result)

    def refused(self, parameters: Parameters, failure: Failure) -> None:
        """Take in that a configuration does not run."""
        config = config_hash(parameters)
        self._knowledge[config].outcome = "infeasible"
        self.hear(parameters, report(None, 0, 1.0, ending=Ending("infeasible", failure)))
        self._tell(config, WORST)

    def ended(self, config: str) -> bool:
        """Tell the source how a configuration ended; not yet, where that takes trials that come to their end."""
        known = self._knowledge[config]
        if self._knowledge.is_too_early(known):
            return False
        self._tell(config, self._knowledge.told(known))
        return True

    def _tell(self, config: str, loss: float | None) -> None:
        for key in self._keys.pop(config, []):
            self._source.tell(key, loss)
