"""What an experiment found, as files: the results file, and a table of its trials."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from raytune_autotuner import pareto
from raytune_autotuner.ledger import charged
from raytune_autotuner.metrics import LATENCIES
from raytune_autotuner.objectives import over_loads
from raytune_autotuner.records import Outcome, Parameters, TrialRecord
from raytune_autotuner.results import Results


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
        "within_noise_of_recommended": [point.trial for point in results.tied],
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
