"""What is known of each configuration, and what a searcher is to learn of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from raytune_autotuner.objectives import scalar
from raytune_autotuner.proposal import reports
from raytune_autotuner.records import Outcome, Parameters, TrialRecord, config_hash
from raytune_autotuner.search.source import WORST


@dataclass
class Known:
    """The last that was heard of a configuration; it runs, or waits to, while there is no outcome."""

    parameters: Parameters
    losses: dict[int, float] = field(default_factory=dict)
    """By how many rungs were done, as a resumed trial tells only of those to come; smaller is better."""
    violation: float = 0.0
    outcome: Outcome | None = None

    def hear(self, result: Mapping[str, Any]) -> None:
        """Take in a trial's report (see ``proposal.report``)."""
        self.outcome = result["outcome"]
        if result["raw_loss"] is not None:
            self.losses[result["rungs_done"]] = result["raw_loss"]
            self.violation = result["violation"]

    def recall(self, record: TrialRecord) -> None:
        """Take in what a trial that has ended had told."""
        for result in reports(record):
            self.hear(result)


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
                knowledge.add(record.parameters).recall(record)
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

    def untold(self) -> list[Parameters]:
        """Configurations of which something will be learnt when others have come to their end."""
        return [k.parameters for k in self._known.values() if k.parameters and self.is_too_early(k)]

    def told(self, known: Known) -> float | None:
        """What a source is to learn of a configuration, on the scale of whole benchmarks; ``None`` is nothing."""
        if known.outcome == "completed":
            return scalar(_last(known.losses), known.violation)
        if known.outcome == "stopped" and known.losses and (ratios := self._ratios(known)):
            return scalar(_last(known.losses) * median(ratios), known.violation)
        return WORST if known.outcome == "infeasible" else None

    def is_too_early(self, known: Known) -> bool:
        """Whether what a configuration showed cannot be told yet, as no other trial has shown what it is worth."""
        return known.outcome == "stopped" and bool(known.losses) and not self._ratios(known)

    def _ratios(self, known: Known) -> list[float]:
        """The last rung's loss relative to that of the rung where a trial was stopped, of all trials that have both.

        A rung with less traffic measures another quantity, so its value must not stand beside final ones; the median
        of these carries it over.
        """
        at = max(known.losses)
        finals = (k.losses for k in self._known.values() if k.outcome == "completed")
        return [_last(final) / final[at] for final in finals if final.get(at)]


def _last(losses: Mapping[int, float]) -> float:
    return losses[max(losses)]
