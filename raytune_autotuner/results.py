"""What an experiment found, read from its folder alone: winner, verdict, ledger, tables.

Works while the experiment runs, after it, and after a crash; nothing here talks to a live object.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raytune_autotuner import objectives, pareto
from raytune_autotuner.budget import Limits, hours
from raytune_autotuner.canary import NOT_COMPARED
from raytune_autotuner.confirmation import Confirmation
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import Ledger, Terms, ledger
from raytune_autotuner.objectives import reachable
from raytune_autotuner.ranking import Ranking, drift_of, rank
from raytune_autotuner.records import BudgetState, Parameters, Score, SearchEnd, TrialRecord
from raytune_autotuner.summary import ending, shown
from raytune_autotuner.task.spec import Task
from raytune_autotuner.verdict import Drift, Verdict

TIED = 3
"""So many that tie are named."""


@dataclass(frozen=True)
class BudgetUse:
    """What there was to spend, and what of it was spent."""

    gpu_s: float | None
    """GPU-seconds, or machine-seconds where there are no GPUs; a budget in money is one of these, too."""
    spent_s: float
    wall_s: float | None
    elapsed_s: float
    said: str
    """All this for people."""
    search: str | None = None
    """Why the search ended before its trials were used up, when the budget is why."""
    confirming: str | None = None
    """Why fewer confirming runs were made than the verdict wanted."""


@dataclass(frozen=True)
class Results:
    """``winner`` is the best feasible trial of the search, ``recommended`` what the verdict says to run.

    A winner that was confirmed stays so until a better one is: see ``_answer``.
    """

    experiment: str
    task: Task
    records: tuple[TrialRecord, ...]
    baseline: TrialRecord | None
    winner: TrialRecord | None
    closest: TrialRecord | None
    """When nothing keeps the SLO: the trial that comes closest to it, of those that were measured whole."""
    verdict: Verdict | None
    ranking: Ranking
    ledger: Ledger
    interrupted: bool
    ended_early: SearchEnd | None = None
    """Why the search did not use up its trials."""
    budget: BudgetUse | None = None
    ablation_of: str = ""
    """The experiment whose winner's flags were left out in turn (`export --minimal`), if this is that."""

    @property
    def recommended(self) -> TrialRecord | None:
        """The winner after a WIN (or when there is nothing to compare with), else the baseline if it is no worse."""
        if self.verdict is None or self.verdict.kind == "WIN" or self.verdict.winner_anyway:
            return self.winner
        return self.baseline if self.baseline and self.baseline.outcome == "completed" else self.winner

    @property
    def unconfirmed(self) -> bool:
        """Whether the winner is only the best of a search yet: it was not compared with a baseline that may work."""
        base = self.baseline
        return self.verdict is None and bool(base and base is not self.winner and base.outcome != "infeasible")

    @property
    def ablation_said(self) -> str:
        """Where an ablation's answer is."""
        command = f"raytune-autotuner export {shlex.quote(self.ablation_of)} --minimal"
        return f"This measured which changes of {self.ablation_of}'s winner are worth nothing. What is left: {command}"

    @property
    def tied(self) -> tuple[pareto.Point, ...]:
        """Other changes of the baseline that the noise does not tell from the recommended one, best first.

        Not known where drift was taken out of the ranking: then the values as they were measured do not compare.
        """
        best, optimization = self.recommended, self.task.optimization
        if best is None or not best.parameters or optimization.objectives or self.ranking.drift.significant:
            return ()
        ties = pareto.front(self.records, optimization).ties(best.trial.name)
        return tuple(point for point in ties if point.parameters)

    @property
    def tied_said(self) -> str:
        """The same in words, with what finds out more; empty without any."""
        best = self.recommended
        if best is None or not (tied := self.tied):
            return ""
        others = ", ".join(f"#{point.number} ({_unlike(point.parameters, best.parameters)})" for point in tied[:TIED])
        more = f" and {len(tied) - TIED} more" if len(tied) > TIED else ""
        command = f"raytune-autotuner export {shlex.quote(self.experiment)} --minimal"
        return (
            f"Within the noise of it: {others}{more}. Which of its changes are worth nothing is measured by {command}"
        )

    @property
    def reachable_slo(self) -> dict[str, float]:
        """When nothing keeps the SLO: the tightest one that the trial which comes closest would have kept."""
        if self.closest is None or not self.closest.rungs:
            return {}
        return reachable(self.closest.rungs[-1].metrics, self.task.optimization.slo)

    @property
    def closer(self) -> TrialRecord | None:
        """When nothing keeps the SLO: the trial that came closer than ``closest`` as far as it was measured."""
        slo = self.task.optimization.slo
        if self.winner is not None or not slo:
            return None
        ended = (record for record in self.search if record.outcome == "stopped" and record.rungs)
        found = (r for r in ended if r.rungs[-1].score.violation < _as_far(self.closest, r, slo))
        return min(found, key=lambda record: objectives.rank(record.rungs[-1].score), default=None)

    @property
    def near(self) -> tuple[str, ...]:
        """When nothing keeps the SLO: what is reachable, and who may reach more, in words."""
        limits = ", ".join(f"{name} {limit:.4g}" for name, limit in self.reachable_slo.items())
        return tuple(filter(None, (limits and f"The tightest SLO that it would keep: {limits}.", self.closer_said)))

    @property
    def closer_said(self) -> str:
        """How far ``closer`` came and what measures it whole, in words; empty without one."""
        if (record := self.closer) is None:
            return ""
        where = f"{'in' if record.rungs[-1].cut else 'after'} rung {len(record.rungs)} of {record.total_rungs}"
        came = f"came {'closer' if self.closest else 'closest'} as far as it was measured ({ending(record)} {where})"
        command = f"raytune-autotuner trial task.json --params {shlex.quote(json.dumps(dict(record.parameters)))}"
        reached = record.rungs[-1].score.worst or "it kept the SLO"
        return f"Trial #{record.number} {came}: {reached}. Measure it whole with `{command}`."

    @property
    def caveats(self) -> tuple[str, ...]:
        """What may have spoiled the measurements that the answer rests on."""
        sides = {record.trial.config for record in (self.baseline, self.winner) if record}
        rungs = (rung for record in self.records if record.trial.config in sides for rung in record.rungs)
        notes = (note for rung in rungs for note in rung.notes)
        return tuple(dict.fromkeys((*notes, *self._not_compared)))

    def notes(self, record: TrialRecord) -> tuple[str, ...]:
        """A trial's; of the winner's exam ``caveats`` tell, since a later run may have made up for it."""
        return tuple(n for n in record.notes if record is not self.winner or not n.startswith(NOT_COMPARED))

    @property
    def _not_compared(self) -> Iterator[str]:
        """What every run of the winner says of its exam, when none was compared with the baseline."""
        config = self.winner.trial.config if self.winner else None
        runs = [r for r in self.records if r.trial.config == config and r.rungs and r.reused_from is None]
        said = [next((note for note in run.notes if note.startswith(NOT_COMPARED)), None) for run in runs]
        if said and said[-1] and all(said):
            yield f"winner: {said[-1]}"

    @property
    def is_best(self) -> bool:
        """Whether nothing measured better in the search than the winner."""
        return self.winner is not None and self.winner in self.ranking.order[:1]

    @property
    def refuted(self) -> tuple[tuple[TrialRecord, str], ...]:
        """Trials that might have been the winner, and why they are out."""
        why = self.ranking.refuted
        return tuple((each, why[each.trial.config]) for each in self.ranking.better if each is not self.winner)

    @property
    def drift(self) -> str:
        """What is known of drift during the search, and what was made of it; empty without a search."""
        if not self.search:
            return ""
        if self.ranking.drift.significant:
            return f"{self.drift_found.words}; it is taken out of the ranking"
        said = f"{self.drift_found.words}; values are ranked as they were measured"
        late = ": only the confirming runs told it, and with a smaller optimization.baseline_every it is taken out"
        return said + late * self.drift_found.significant

    @property
    def drift_found(self) -> Drift:
        """What was taken out of the ranking; else what all runs of the baseline show, those that confirm as well."""
        taken_out = self.ranking.drift
        return taken_out if taken_out.significant else drift_of(self.records, self.task)

    def best_said(self, said: Callable[[Score], str] = lambda score: shown(score.value)) -> str:
        """What the winner's score has to be read with, for the runs that confirm it came to other values."""
        base = self.baseline
        if base is None or base is self.winner or base.score is None:
            return ""
        return f"{'in the search' if self.search else 'in the first run'}; baseline {said(base.score)}"

    @property
    def search(self) -> tuple[TrialRecord, ...]:
        return tuple(r for r in self.records if r.trial.purpose == "search")


def _unlike(parameters: Parameters, others: Parameters) -> str:
    """What is given in one configuration and not so in another, in words; then what only the other one gives."""
    given = [f"{name}={value}" for name, value in parameters.items() if others.get(name) != value]
    return ", ".join(given or [f"without {name}" for name in others if name not in parameters])


def _as_far(closest: TrialRecord | None, other: TrialRecord, slo: Mapping[str, float]) -> float:
    """The violation of the closest trial: in all, or if less, over what the other one had measured by its end."""
    if closest is None or not closest.rungs:
        return math.inf
    last = other.rungs[-1]
    same = next((rung.metrics for rung in closest.rungs if rung.rung == last.rung), closest.rungs[-1].metrics)
    ran = {each.load for each in last.metrics.loads}
    there = replace(same, loads=tuple(each for each in same.loads if each.load in ran) or same.loads)
    return min(objectives.violation(there, slo)[0], closest.rungs[-1].score.violation)


def load_results(folder: ExperimentFolder, task: Task) -> Results:
    """Everything known of an experiment so far."""
    return results_of(folder, task, folder.records())


def results_of(folder: ExperimentFolder, task: Task, found: Sequence[TrialRecord]) -> Results:
    """What follows from the records of the trials that have ended, in the order of proposal."""
    records = tuple(found)
    baseline = next((r for r in records if r.trial.purpose == "baseline"), None)
    ranking = rank(records, task)
    ordered = ranking.order
    winner, verdict = _answer(task, records, baseline, ranking)
    course = folder.course()
    ablation_of = str(course["of"]) if course.get("kind") == "minimal" else ""
    if not any(r.trial.purpose in ("baseline", "search") for r in records):  # nothing was searched
        baseline, winner, verdict = _aside(task, records, ablation_of)
    book = ledger(records, _terms(task, folder))
    budget = _budget(task, folder, book)
    return Results(
        experiment=folder.name,
        task=task,
        records=records,
        baseline=baseline,
        winner=winner,
        closest=ordered[0] if ordered and winner is None else None,
        verdict=with_budget(verdict, budget),
        ranking=ranking,
        ledger=book,
        budget=budget,
        interrupted=folder.stop_requested(),
        ended_early=folder.search_end(),
        ablation_of=ablation_of,
    )


def _aside(
    task: Task, records: Sequence[TrialRecord], ablation_of: str
) -> tuple[TrialRecord | None, TrialRecord | None, Verdict | None]:
    """Baseline, winner and verdict of what was measured in place of a search: of a verification the exported file is
    the winner, if it works; an ablation asks something else, and has none."""
    if ablation_of:
        return None, None, None
    baseline = next((record for record in records if not record.parameters), None)
    files = [record for record in records if record.parameters]
    winner = next((record for record in files if record.outcome == "completed" and record.score), None)
    return baseline, winner, _verdict(task, records, baseline, winner or next(iter(files), None))


def with_budget(verdict: Verdict | None, budget: BudgetUse | None) -> Verdict | None:
    """The verdict with what the budget did not pay for among its reasons."""
    if verdict is None or budget is None or not budget.confirming:
        return verdict
    return replace(verdict, reason=f"{verdict.reason}; {budget.confirming}")


def _budget(task: Task, folder: ExperimentFolder, book: Ledger) -> BudgetUse | None:
    limits = Limits.of(task.optimization)
    if limits is None:
        return None
    state = folder.budget() or BudgetState(0.0)
    parts = []
    if limits.gpu_s is not None:
        unit = book.unit.replace("seconds", "hours")
        of = f"{limits.said(limits.gpu_s, unit)} ({book.total / limits.gpu_s:.0%})"
        parts.append(f"{limits.said(book.total, unit)} of {of}")
    if limits.wall_s is not None:
        of = f"{hours(limits.wall_s)} hours ({state.elapsed_s / limits.wall_s:.0%})"
        parts.append(f"{hours(state.elapsed_s)} of {of}")
    said = ", ".join(parts)
    return BudgetUse(limits.gpu_s, book.total, limits.wall_s, state.elapsed_s, said, state.search, state.confirming)


def _answer(
    task: Task, records: Sequence[TrialRecord], baseline: TrialRecord | None, ranking: Ranking
) -> tuple[TrialRecord | None, Verdict | None]:
    """The winner and its verdict, or those of an earlier winner with a WIN while the present one has none.

    More trials may have made another one the best since then; what was proven is not given up for a hope. And while
    nobody was measured again in the place of those that were refuted, the answer is about them.
    """
    winner = ranking.winner
    verdict = _verdict(task, records, baseline, winner)
    if baseline is None or winner is None or (verdict is not None and verdict.kind == "WIN"):
        return winner, verdict
    config, proven = Confirmation(task).proven(records, baseline.trial.config) or ("", None)
    earlier = next((record for record in ranking.order if record.trial.config == config), None)
    if earlier is winner:
        return winner, proven
    if verdict is None:
        winner, verdict = _refuted(task, records, baseline, ranking) or (winner, None)
    if proven is None or earlier is None:
        return winner, verdict
    why = f"not proven ({verdict.reason})" if verdict else "not confirmed"
    said = f"{proven.reason}; {winner.trial.name} measured better in the search since then, but that is {why}"
    return earlier, replace(proven, reason=said)


def _refuted(
    task: Task, records: Sequence[TrialRecord], baseline: TrialRecord, ranking: Ranking
) -> tuple[TrialRecord, Verdict] | None:
    """The latest of those that were refuted, but had measured better than the winner; rather one that is to be run."""
    better = {record.trial.config: record for record in ranking.better}
    verdicts = Confirmation(task).verdicts(records, baseline.trial.config)
    found = [(better[config], verdict) for config, verdict in verdicts if config in better]
    return next((each for each in found if each[1].winner_anyway), found[0] if found else None)


def _verdict(
    task: Task, records: Sequence[TrialRecord], baseline: TrialRecord | None, winner: TrialRecord | None
) -> Verdict | None:
    """From the confirming runs alone: the search's own value of the winner is biased by having been chosen."""
    if baseline is None or winner is None or baseline.trial.config == winner.trial.config:
        return None
    return Confirmation(task).verdict(records, baseline.trial.config, winner.trial.config)


def _terms(task: Task, folder: ExperimentFolder) -> Terms:
    optimization = task.optimization
    load_s = task.ome.load_timeout_s if task.backend == "ome" else float("inf")
    return Terms(
        patience_s=min(optimization.timeout_per_iteration, load_s),
        price_per_gpu_hour=optimization.price_per_gpu_hour,
        repeated=folder.repeated(),
    )
