"""What an experiment found, read from its folder alone: winner, verdict, ledger, tables.

Works while the experiment runs, after it, and after a crash; nothing here talks to a live object.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from raytune_autotuner import objectives, pareto
from raytune_autotuner.budget import Limits, hours
from raytune_autotuner.canary import NOT_COMPARED
from raytune_autotuner.confirmation import Confirmation
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import Ledger, Terms, charged, ledger
from raytune_autotuner.metrics import LATENCIES
from raytune_autotuner.objectives import over_loads, reachable
from raytune_autotuner.ranking import Ranking, drift_of, rank
from raytune_autotuner.records import BudgetState, Outcome, Parameters, SearchEnd, TrialRecord
from raytune_autotuner.summary import ending
from raytune_autotuner.task.spec import Task
from raytune_autotuner.verdict import Drift, Verdict


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

    @property
    def recommended(self) -> TrialRecord | None:
        """The winner after a WIN (or when there is nothing to compare with), else the baseline if it is no worse."""
        if self.verdict is None or self.verdict.kind == "WIN" or self.verdict.winner_anyway:
            return self.winner
        return self.baseline if self.baseline and self.baseline.outcome == "completed" else self.winner

    @property
    def unconfirmed(self) -> bool:
        """Whether the winner is only the best of a search yet: it was not compared with a baseline that works."""
        base = self.baseline
        return self.verdict is None and bool(base and base is not self.winner and base.outcome == "completed")

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

    @property
    def search(self) -> tuple[TrialRecord, ...]:
        return tuple(r for r in self.records if r.trial.purpose == "search")


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
    if not any(r.trial.purpose in ("baseline", "search") for r in records):  # nothing was searched: see `verification`
        baseline = next((r for r in records if not r.parameters), None)
        winner = next((r for r in records if r.parameters and r.outcome == "completed" and r.score), None)
        verdict = _verdict(task, records, baseline, winner)
    book = ledger(records, _terms(task, folder))
    budget = _budget(task, folder, book)
    if verdict is not None and budget is not None and budget.confirming:
        verdict = replace(verdict, reason=f"{verdict.reason}; {budget.confirming}")
    return Results(
        experiment=folder.name,
        task=task,
        records=records,
        baseline=baseline,
        winner=winner,
        closest=ordered[0] if ordered and winner is None else None,
        verdict=verdict,
        ranking=ranking,
        ledger=book,
        budget=budget,
        interrupted=folder.stop_requested(),
        ended_early=folder.search_end(),
    )


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


def document(results: Results, extra: dict[str, Any]) -> dict[str, Any]:
    """The results file: the keys that existing readers know, and what is new."""
    best, closer = results.winner, results.closer
    return {
        "task_name": results.task.task_name,
        "experiment": results.experiment,
        "total_experiments": len(results.records),
        "successful_experiments": sum(r.outcome == "completed" for r in results.records),
        "best_result": _entry(best) if best else None,
        "recommended": _entry(results.recommended) if results.recommended else None,
        "baseline": _entry(results.baseline) if results.baseline else None,
        "closest_to_slo": _entry(results.closest) if results.closest else None,
        "reachable_slo": results.reachable_slo,
        "came_closer": {"trial": closer.trial.name, "reason": results.closer_said} if closer else None,
        "caveats": list(results.caveats),
        "verdict": asdict(results.verdict) if results.verdict else None,
        "refuted": [{"trial": record.trial.name, "reason": why} for record, why in results.refuted],
        "drift": {
            "found": results.drift_found.significant,
            "taken_out": results.ranking.drift.significant,
            "reason": results.drift_found.words,
        },
        "ledger": asdict(results.ledger),
        "pareto": asdict(pareto.front(results.records, results.task.optimization)),
        "budget": asdict(results.budget) if results.budget else None,
        "interrupted": results.interrupted,
        "ended_early": asdict(results.ended_early) if results.ended_early else None,
        "seed": results.task.optimization.seed,
        "all_results": [_entry(r) for r in results.records],
        **extra,
    }


def _entry(record: TrialRecord) -> dict[str, Any]:
    last = record.rungs[-1] if record.rungs else None
    return {
        "experiment_id": record.number,
        "trial": record.trial.name,
        "purpose": record.trial.purpose,
        "parameters": dict(record.parameters),
        "status": STATUS[record.outcome],
        "outcome": record.outcome,
        "failure": asdict(record.failure) if record.failure else None,
        "objective_score": record.score.value if record.score else None,
        "score": asdict(record.score) if record.score else None,
        "metrics": _metrics(record) if last else {},
        "rungs": [{"rung": r.rung, "score": asdict(r.score), "wall_s": round(r.wall_s, 3)} for r in record.rungs],
        "knees": [asdict(knee) for knee in last.knees] if last else [],
        "phases": dict(record.phases),
        "charged": {phase: round(s, 1) for phase, s in charged(record).items()},
        "reused_from": asdict(record.reused_from) if record.reused_from else None,
        "gpus": record.gpus,
        "argv": list(record.argv),
        "engine_info": dict(record.engine_info),
        "differences": list(record.differences),
        "notes": list(record.notes),
        "started_at": record.started_at,
    }


STATUS: dict[Outcome, str] = {
    "completed": "success",
    "stopped": "stopped",
    "infeasible": "failed",
    "failed": "failed",
}


def _metrics(record: TrialRecord) -> dict[str, Any]:
    """The last rung, by load; per-request samples stay in the experiment folder."""
    rung = record.rungs[-1]
    return {
        "loads": [
            {
                "scenario": load.load.scenario,
                "level": load.load.level,
                "completed": load.completed,
                "errors": load.errors,
                "duration_s": load.duration_s,
                **load.values,
                "genai_bench": dict(load.reported),
            }
            for load in rung.metrics.loads
        ],
        "engine": dict(rung.engine.values) if rung.engine else {},
    }


def trials_csv(results: Results) -> str:
    """One row per trial; parameters as columns of their own."""
    names = sorted({name for r in results.records for name in r.parameters})
    columns = ["number", "trial", "purpose", "outcome", "reason", "rungs", "score", "unit", "slo_violation", "wall_s"]
    columns += ["gpus", "node", *MEASURED_COLUMNS]
    columns += ["knee", "breaks", "reused_from", "measured_at"]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*columns, *names])
    for record in results.records:
        writer.writerow([*_row(record), *(_cell(record.parameters, name) for name in names)])
    return out.getvalue()


def _row(record: TrialRecord) -> list[object]:
    score = record.score
    return [
        record.number,
        record.trial.name,
        record.trial.purpose,
        record.outcome,
        record.failure.kind if record.failure else "",
        len(record.rungs),
        score.value if score else "",
        score.unit if score else "",
        score.violation if score else "",
        round(record.wall_s, 1),
        record.gpus,
        record.node or "",
        *(_over_loads(record, name) for name in MEASURED_COLUMNS),
        *_knees(record),
        f"{record.reused_from.experiment}/{record.reused_from.trial}" if record.reused_from else "",
        record.reused_from.measured_at if record.reused_from else "",
    ]


MEASURED_COLUMNS = (
    "output_tokens_per_s",
    "requests_per_s",
    *(f"{latency}_{statistic}_s" for latency in LATENCIES for statistic in ("mean", "p50", "p95", "p99")),
)
"""Of the last rung that was measured, over all its loads as objectives see them."""


def _over_loads(record: TrialRecord, name: str) -> object:
    """Empty where it was not measured at each load."""
    loads = record.rungs[-1].metrics.loads if record.rungs else ()
    return over_loads(record.rungs[-1].metrics, name) if loads and all(name in m.values for m in loads) else ""


def _knees(record: TrialRecord) -> tuple[str, str]:
    """The level that keeps the SLO and the one that breaks it; one of each per scenario, where they were searched."""
    knees = record.rungs[-1].knees if record.rungs else ()
    sides = ([knee.level for knee in knees], [knee.breaks for knee in knees])
    kept, breaks = (";".join("" if level is None else str(level) for level in side) for side in sides)
    return kept, breaks


def _cell(parameters: Parameters, name: str) -> object:
    value = parameters.get(name)
    return "" if value is None else value


def to_text(doc: dict[str, Any]) -> str:
    return json.dumps(doc, indent=1, default=str) + "\n"
