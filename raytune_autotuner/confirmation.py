"""The confirming runs of an experiment: which of its records they are, and what follows from them.

The best of the search is compared with the baseline. When it does not hold up (see ``refuted``), the next best one
takes its place: with the runs that are left, and with what is left of the error that the confidence allows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from raytune_autotuner.objectives import Context
from raytune_autotuner.records import TrialRecord, did_not_hold_up
from raytune_autotuner.task.spec import Task
from raytune_autotuner.verdict import Again, Ask, Measurement, Run, Settings, Verdict, decide, measured
from raytune_autotuner.verdict.judge import BOUNDLESS
from raytune_autotuner.verdict.runs import of

SPARE_RUNS = 4
"""So many runs may be lost to the infrastructure before the answer is given as it stands."""
BASELINE_FAILURES = 2
"""So often the baseline, which has worked before, is given the chance to fail when it is measured again."""


class Confirmation:
    """What the runs of winner and baseline say so far. Keeps what it has worked out of each run."""

    def __init__(self, task: Task) -> None:
        confirm = task.optimization.confirm
        self._task = task
        self._settings = Settings(confirm.confidence, max(1, confirm.repeats), confirm.max_repeats)
        self._known: dict[str, Run] = {}

    def wanted(
        self, records: Iterable[TrialRecord], baseline: str, winner: str, nodes: Sequence[str] = ()
    ) -> tuple[Ask, ...]:
        """The runs that are to come next; none when there is an answer, or none to be had.

        ``baseline`` and ``winner`` are hashes of configurations, ``nodes`` those on which the two compare.
        """
        records = list(records)
        made, settings = _of_pair(records, baseline, winner), self._left(records, baseline, winner)
        if settings is None or winner in refuted(records, baseline) or self._was_proven(records, baseline, winner):
            return ()
        enough = len(made) >= 2 * settings.looks[-1] + SPARE_RUNS
        if not self._task.optimization.confirm.repeats or enough:
            return ()
        if len(_failures(made, baseline)) >= BASELINE_FAILURES:
            return ()
        answer = decide(self._runs(made, baseline), replace(settings, nodes=tuple(nodes)))
        return answer.runs if isinstance(answer, Again) else ()

    def verdict(self, records: Iterable[TrialRecord], baseline: str, winner: str) -> Verdict | None:
        """What the runs say as things stand; ``None`` when there are none of one side."""
        records = list(records)
        made, settings = _of_pair(records, baseline, winner), self._left(records, baseline, winner) or self._settings
        runs, failures, failed = self._runs(made, baseline), _failures(made, winner), _failures(made, baseline)
        if len({run.side for run in runs}) < 2:
            out = refuted(made, baseline).get(winner, "")
            return _failed(runs, out, failed, settings.confidence) if out or failed else None
        answer = decide(runs, settings, final=True, failures=failures)
        assert isinstance(answer, Verdict)
        if failures or answer.kind == "WIN" or len(failed) < BASELINE_FAILURES:
            return answer
        return replace(answer, kind="UNSTABLE", reason=_unproven(failed), winner_anyway=True)

    def proven(self, records: Iterable[TrialRecord], baseline: str) -> tuple[str, Verdict] | None:
        """The configuration, by its hash, that was the last to be confirmed with a WIN."""
        verdicts = self.verdicts(records, baseline)
        return next((each for each in verdicts if each[1].kind == "WIN"), None)

    def verdicts(self, records: Iterable[TrialRecord], baseline: str) -> Iterator[tuple[str, Verdict]]:
        """All that were reached on a configuration, by its hash, the latest first."""
        records = list(records)
        others = [record for record in records if record.trial.purpose != "confirm"]
        left = _confirming(records)
        while config := next((r.trial.config for r in reversed(left) if r.trial.config != baseline), None):
            verdict = self.verdict([*others, *left], baseline, config)
            if verdict is not None:
                yield config, verdict
            left = left[: next(n for n, record in enumerate(left) if record.trial.config == config)]

    def _was_proven(self, records: Iterable[TrialRecord], baseline: str, winner: str) -> bool:
        """Whether it was before another one was measured again, which did not hold up."""
        if any(record.trial.config == winner for record in _of_pair(records, baseline, winner)):
            return False
        found = self.proven(records, baseline)
        return found is not None and found[0] == winner

    def _left(self, records: Iterable[TrialRecord], baseline: str, winner: str) -> Settings | None:
        """What those that were refuted in favour of this one left to it; ``None`` when that is too little.

        Together they make no more runs than one of them might, and share its error: of what there is of it each has
        spent what belongs to the looks that it may have passed. Who was found only after them begins anew.
        """
        records = list(records)
        confirming, out = _confirming(records), refuted(records, baseline)
        found = [r.number for r in records if r.trial.config == winner and r.trial.purpose != "confirm"]
        since = max(_last(confirming, {baseline, winner, *out}), min(found, default=-1))
        before = [r for r in confirming if since < r.number <= _last(confirming, {baseline, winner})]
        if not before:
            return self._settings
        looks = self._settings.looks
        left = looks[-1] - math.ceil(len(before) / 2)
        if left < looks[0]:
            return None
        error = 1 - self._settings.confidence
        for config in {r.trial.config for r in before} - {baseline}:
            passed = sum(r.trial.config == config and r.outcome == "completed" for r in before)
            error *= 1 - max((look for look in looks if look <= passed), default=0) / looks[-1]
        return replace(self._settings, max_repeats=left, confidence=1 - error)

    def _runs(self, made: Sequence[TrialRecord], baseline: str) -> list[Run]:
        return [self._run(record, baseline) for record in made if record.outcome == "completed"]

    def _run(self, record: TrialRecord, baseline: str) -> Run:
        name = record.trial.name
        if name not in self._known:
            optimization = self._task.optimization
            self._known[name] = measured(
                "baseline" if record.trial.config == baseline else "winner",
                Measurement(record.rungs[-1].metrics, Context(record.gpus, optimization)),
                optimization.seed + record.number,
                record.node,
                datetime.fromisoformat(record.started_at).timestamp(),
            )
        return self._known[name]


def _confirming(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return sorted((r for r in records if r.trial.purpose == "confirm"), key=lambda r: r.number)


def _of_pair(records: Iterable[TrialRecord], baseline: str, winner: str) -> list[TrialRecord]:
    """The pair's confirming runs since another winner was confirmed, if one was: only runs in turn compare."""
    confirming = _confirming(records)
    since = _last(confirming, {baseline, winner})
    return [record for record in confirming if record.number > since]


def _last(confirming: Iterable[TrialRecord], but: Collection[str]) -> int:
    """The number of the last run of a configuration that is none of these."""
    return max((record.number for record in confirming if record.trial.config not in but), default=-1)


def refuted(records: Iterable[TrialRecord], baseline: str) -> Mapping[str, str]:
    """Configurations that failed, or broke the SLO, when they were measured again, and why; the latest comes last."""
    found: dict[str, str] = {}
    for record in filter(did_not_hold_up, _confirming(records)):
        if record.trial.config != baseline:
            found.setdefault(record.trial.config, _why(record))
    return found


def _why(record: TrialRecord) -> str:
    if record.failure:
        return f"failed when it was measured again: {record.failure.kind}: {record.failure.reason}"
    return f"broke the SLO when it was measured again: {record.score.worst if record.score else ''}"


def _failures(made: Iterable[TrialRecord], config: str) -> list[str]:
    """Why runs of a configuration failed by its own fault."""
    return [
        f"{record.failure.kind}: {record.failure.reason}"
        for record in made
        if record.outcome == "infeasible" and record.trial.config == config and record.failure
    ]


def _failed(runs: Sequence[Run], winner: str, baseline: Sequence[str], confidence: float) -> Verdict:
    """When one side could not be measured again, so that there is nothing to compare; of each, why it is out."""
    reason = f"the winner {winner}" if winner else _unproven(baseline)
    counts = (len(of("baseline", runs)), len(of("winner", runs)))
    return Verdict("UNSTABLE", 0.0, -1.0, BOUNDLESS, confidence, 0.0, 0.0, "", *counts, reason, 0.0, not winner)


def _unproven(failures: Sequence[str]) -> str:
    return f"the baseline failed when it was measured again: {failures[0]}; no gain is proven"
