"""The tables of a report: the two configurations side by side, confirming runs, failures, trials, spending."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raytune_autotuner.errors import FAILURE_CLASSES
from raytune_autotuner.metrics import METRICS
from raytune_autotuner.objectives import over_loads, rank
from raytune_autotuner.plots import Plot, cost
from raytune_autotuner.records import LoadMetrics, TrialRecord
from raytune_autotuner.report.answer import said
from raytune_autotuner.report.facts import Report
from raytune_autotuner.results import Results
from raytune_autotuner.summary import ending, origin, shown

Rows = list[tuple[str, ...]]
COMPARED = ("output_tokens_per_s", "requests_per_s", "ttft_p99_s", "tpot_p99_s", "e2e_p99_s")
TAIL_LINES, TAIL_CHARS = 14, 2000
SHOWN_TRIALS = 100


@dataclass(frozen=True)
class Grid:
    """A table in words."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left_out: int = 0


@dataclass(frozen=True)
class FailureGroup:
    """Trials that failed in the same way, with what proves it of one of them."""

    kind: str
    trials: tuple[TrialRecord, ...]
    reason: str
    hint: str
    log_tail: str

    @property
    def numbers(self) -> str:
        listed = ", ".join(f"#{record.number}" for record in self.trials[:8])
        return listed + (f" and {len(self.trials) - 8} more" if len(self.trials) > 8 else "")


def of_plots(drawn: Mapping[str, Plot]) -> dict[str, Grid]:
    """By title, what of the plots' tables says the same where nothing can be drawn."""
    found = {
        "Best so far": _improvements(drawn["best_so_far"]) if "best_so_far" in drawn else None,
        "Front of throughput against latency": _front(drawn["tradeoff"]) if "tradeoff" in drawn else None,
        "What the score depends on": _weights(drawn["importance"]) if "importance" in drawn else None,
    }
    return {title: grid for title, grid in found.items() if grid and grid.rows}


def _improvements(plot: Plot) -> Grid:
    """The trials that were the best when they ended."""
    (trial, _, spent, _, best), rows, last = plot.table.columns, [], None
    for name, _, so_far, _, value in plot.table.rows:
        if value is not None and value != last:
            rows.append((str(name), f"{so_far:.3g}", shown(float(value))))
        last = value
    return Grid((trial, spent, best), rows)


def _front(plot: Plot) -> Grid:
    trial, _, rate, latency, *_ = plot.table.columns
    rows = [(str(row[0]), f"{row[2]:.4g}", f"{row[3]:.4g}") for row in plot.table.rows if row[4] == "yes"]
    return Grid((trial, rate, f"{latency}, s"), rows)


def _weights(plot: Plot) -> Grid:
    rows = [(str(name), f"{share:.0%}", f"{low:.0%} to {high:.0%}") for name, share, low, high in plot.table.rows]
    return Grid(("parameter", "share of the variance", "90% interval"), rows)


def side_by_side(results: Results) -> Grid | None:
    """What baseline and winner measured at the end of the search, with the limits of the SLO."""
    pair = [r for r in (results.baseline, results.winner or results.closest) if r is not None and r.rungs]
    if len({r.trial.name for r in pair}) < 2:
        return None
    slo = results.task.optimization.slo
    names = [*dict.fromkeys((*COMPARED, *(name for name in slo if name in METRICS)))]
    rows = [row for name in names if (row := _compared(name, pair, slo.get(name)))]
    other = "winner" if results.winner else "closest to the SLO"
    columns = ("metric", f"baseline (#{pair[0].number})", f"{other} (#{pair[1].number})", "change", "SLO")
    return Grid(columns, rows)


def _compared(name: str, pair: Sequence[TrialRecord], limit: float | None) -> tuple[str, ...] | None:
    values = [_value(record.rungs[-1].metrics.loads, record, name) for record in pair]
    if any(value is None for value in values):
        return None
    base, new = (float(value or 0.0) for value in values)
    change = f"{new / base - 1:+.0%}" if base else ""
    sign = "≤" if METRICS[name].direction == "min" else "≥"
    return (f"{name} ({METRICS[name].unit})", shown(base), shown(new), change, f"{sign} {limit:g}" if limit else "")


def _value(loads: Sequence[LoadMetrics], record: TrialRecord, name: str) -> float | None:
    """A latency at its worst load, as an SLO sees it; a throughput as the objectives do."""
    if not loads or any(name not in load.values for load in loads):
        return None
    if METRICS[name].direction == "min":
        return max(load.values[name] for load in loads)
    return over_loads(record.rungs[-1].metrics, name)


def settings(results: Results) -> Grid | None:
    """What the recommended configuration sets."""
    best = results.recommended or results.closest
    if best is None or not best.parameters:
        return None
    others = {name for r in results.search for name in r.parameters}
    tried = {name: {said(r.parameters.get(name)) for r in results.search if name in r.parameters} for name in others}
    rows = [(name, said(value), _tried(tried.get(name, set()))) for name, value in best.parameters.items()]
    return Grid(("parameter", "value", "tried in the search"), rows)


def _tried(values: set[str]) -> str:
    try:
        numbers = sorted(values, key=float)
    except ValueError:
        numbers = sorted(values)
    return ", ".join(numbers) if len(numbers) <= 6 else f"{len(numbers)} values from {numbers[0]} to {numbers[-1]}"


def confirming(results: Results) -> Grid | None:
    """The confirming runs, those of finalists that are out too, in the order in which they were made."""
    runs = sorted((r for r in results.records if r.trial.purpose == "confirm"), key=lambda r: (r.started_at, r.number))
    base = results.baseline.trial.config if results.baseline else ""
    rows = [
        (
            f"#{run.number}",
            _side(run, base, results),
            run.node or "",
            run.started_at[:19].replace("T", " "),
            f"{shown(run.score.value)} {run.score.unit}" if run.score else _why(run),
            "" if run.score is None else run.score.worst or "kept",
        )
        for run in runs
    ]
    return Grid(("run", "side", "node", "begun (UTC)", "score", "SLO"), rows) if rows else None


def _side(run: TrialRecord, base: str, results: Results) -> str:
    if run.trial.config == base:
        return "baseline"
    if results.winner is None or run.trial.config == results.winner.trial.config:
        return "winner"
    first = next((r.number for r in results.records if r.trial.config == run.trial.config), run.number)
    return f"#{first}, out" if run.trial.config in results.ranking.refuted else f"#{first}, earlier"


def _why(record: TrialRecord) -> str:
    if record.failure is None:
        return ending(record)
    return f"{record.failure.kind}: {first_line(record.failure.reason)}"


def first_line(text: str) -> str:
    return text.strip().splitlines()[0][:160] if text.strip() else ""


def failures(results: Results) -> list[FailureGroup]:
    """What failed or was cut short, by class, the most frequent first; interruptions are neither."""
    kinds: dict[str, list[TrialRecord]] = {}
    for record in results.records:
        if record.failure and record.failure.kind in FAILURE_CLASSES and record.failure.kind != "interrupted":
            kinds.setdefault(record.failure.kind, []).append(record)
    return [_group(kind, found) for kind, found in sorted(kinds.items(), key=lambda kind: -len(kind[1]))]


def _group(kind: str, records: list[TrialRecord]) -> FailureGroup:
    telling = max((r.failure for r in records if r.failure), key=lambda f: (bool(f.log_tail), bool(f.hint)))
    tail = "\n".join(telling.log_tail.strip().splitlines()[-TAIL_LINES:])[-TAIL_CHARS:]
    return FailureGroup(kind, tuple(records), first_line(telling.reason), telling.hint, tail)


def trials(results: Results) -> Grid:
    """The trials, the best first; what did not come to a score at the end."""
    ordered = sorted(results.records, key=_order)
    names = list(dict.fromkeys(name for r in ordered for name in r.parameters))
    rows = [_trial(record, names) for record in ordered[:SHOWN_TRIALS]]
    columns = ("#", "purpose", "ended as", "score", "SLO", *names, "GPUs", "seconds")
    return Grid(columns, rows, max(0, len(ordered) - SHOWN_TRIALS))


def _order(record: TrialRecord) -> tuple[bool, bool, tuple[float, float], int]:
    score = record.score
    confirms = record.trial.purpose == "confirm"
    return (confirms, score is None, rank(score) if score else (0.0, 0.0), record.number)


def _trial(record: TrialRecord, names: Sequence[str]) -> tuple[str, ...]:
    score = record.rungs[-1].score if record.rungs else None
    partial = f" (rung {len(record.rungs)} of {record.total_rungs})" if score and not record.score else ""
    values = (said(record.parameters[name]) if name in record.parameters else "" for name in names)
    return (
        f"#{record.number}",
        record.trial.purpose,
        _ended(record),
        f"{shown(score.value)}{partial}" if score else "",
        "" if score is None else "broken" if score.violation else "kept",
        *values,
        str(record.gpus),
        f"{record.wall_s:.0f}",
    )


def _ended(record: TrialRecord) -> str:
    how = f"{ending(record)}: {record.failure.kind}" if record.failure else ending(record)
    return ", ".join(filter(None, (how, origin(record))))


def spending(results: Results) -> Grid:
    """By phase, in the unit of the ledger's plot."""
    book = results.ledger
    (scale, unit), total = cost.scaled(book), book.total or 1.0
    rows = [(phase, shown(spent / scale), f"{spent / total:.0%}") for phase, spent in cost.by_phase(book)]
    return Grid(("phase", unit, "share"), [*rows, ("total", shown(book.total / scale), "")])


def surroundings(report: Report) -> Rows:
    """What it ran on, and what of the answer has a caveat."""
    env = dict(report.environment)
    packages = env.pop("packages", {}) or {}
    rows = [(str(name), str(value)) for name, value in env.items() if name != "load_average"]
    rows += [(f"package {name}", str(version)) for name, version in packages.items()]
    rows += [(f"engine: {name}", str(value)) for name, value in _engine(report.results)]
    rows += [("drift", report.results.drift)] if report.results.drift else []
    return [*rows, *((f"session {s.number}", _session(s.host, s.started_at, s.ended_at)) for s in report.sessions)]


def _session(host: str, started_at: str, ended_at: str | None) -> str:
    until = f"until {ended_at[:19].replace('T', ' ')}" if ended_at else "not ended"
    return f"on {host} from {started_at[:19].replace('T', ' ')} {until} (UTC)"


def _engine(results: Results) -> Iterator[tuple[str, object]]:
    best = results.recommended or results.baseline
    for name, value in (best.engine_info if best else {}).items():
        if isinstance(value, str | int | float) and len(str(value)) <= 120:
            yield name, value


def caveats(results: Results) -> list[str]:
    """Where something else ran than was asked, what had no effect, and what may have spoiled the answer."""
    best = results.recommended or results.closest
    if best is None:
        return []
    other = (f"the server runs something else than was asked: {d}" for d in best.differences)
    return [*other, *dict.fromkeys((*results.notes(best), *results.caveats))]


def launch(results: Results) -> str:
    """The command line of the recommended configuration."""
    best = results.recommended or results.closest
    return shlex.join(best.argv) if best else ""
