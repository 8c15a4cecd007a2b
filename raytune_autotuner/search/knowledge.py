"""What is known of each configuration, and what a searcher is to learn of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from raytune_autotuner.objectives import scalar
from raytune_autotuner.records import Outcome, Parameters, TrialRecord, config_hash
from raytune_autotuner.search.source import WORST


@dataclass
class Known:
    """The last that was heard of a configuration; it runs, or waits to, while there is no outcome."""

    parameters: Parameters
    losses: list[float] = field(default_factory=list)
    """By rung; smaller is better."""
    violation: float = 0.0
    outcome: Outcome | None = None

    def hear(self, result: Mapping[str, Any]) -> None:
        """Take in a trial's report (see ``proposal.report``)."""
        self.outcome = result["outcome"]
        if result["raw_loss"] is not None and result["rungs_done"] > len(self.losses):
            self.losses.append(result["raw_loss"])
            self.violation = result["violation"]


class Knowledge:
    """All configurations of an experiment, whatever came of them, by their hash."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    @classmethod
    def of(cls, records: Iterable[TrialRecord]) -> Knowledge:
        """What trials that have ended left behind; runs of the same again add nothing to it."""
        knowledge = cls()
        for record in records:
            if not record.trial.again:
                known = knowledge.add(record.parameters)
                known.losses = [rung.score.loss for rung in record.rungs]
                known.violation = record.rungs[-1].score.violation if record.rungs else 0.0
                known.outcome = record.outcome
        return knowledge

    def add(self, parameters: Parameters) -> Known:
        """A configuration of which nothing is known yet."""
        self._known[config_hash(parameters)] = known = Known(parameters)
        return known

    def get(self, config: str) -> Known | None:
        return self._known.get(config)

    def __getitem__(self, config: str) -> Known:
        return self._known[config]

    def losses(self) -> list[tuple[Parameters, float]]:
        """What a source is to begin with: every configuration of which something was learnt, but the baseline."""
        baseline = config_hash({})
        found = ((k.parameters, self.told(k)) for config, k in self._known.items() if config != baseline)
        return [(parameters, loss) for parameters, loss in found if loss is not None]

    def told(self, known: Known) -> float | None:
        """What a source is to learn of a configuration, on the scale of whole benchmarks; ``None`` is nothing."""
        if known.outcome == "completed":
            return scalar(known.losses[-1], known.violation)
        if known.outcome == "stopped" and known.losses:
            return scalar(self._projected(known.losses), known.violation)
        return WORST if known.outcome == "infeasible" else None

    def _projected(self, losses: list[float]) -> float:
        """An early-stopped trial's loss as the last rung would show it, from the trials that went on.

        A rung with less traffic measures another quantity, so its value must not stand beside final ones; the
        median ratio between the two rungs, over the trials that have both, carries it over.
        """
        at = len(losses) - 1
        finals = (k.losses for k in self._known.values() if k.outcome == "completed" and len(k.losses) > at)
        ratios = [f[-1] / f[at] for f in finals if f[at]]
        return losses[at] * median(ratios) if ratios else losses[at]
