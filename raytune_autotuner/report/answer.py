"""The answer of an experiment in plain words, for those who read nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from raytune_autotuner.ledger import was_stopped_early
from raytune_autotuner.objectives import facts_of, measured
from raytune_autotuner.planning.plan import duration
from raytune_autotuner.records import Parameters, Score
from raytune_autotuner.report.facts import Report
from raytune_autotuner.results import Results
from raytune_autotuner.summary import gain, shown
from raytune_autotuner.verdict import Verdict

Tone = Literal["good", "neutral", "warn", "bad"]


@dataclass(frozen=True)
class Answer:
    badge: str
    tone: Tone
    headline: str
    explanation: str


@dataclass(frozen=True)
class Tile:
    """One number that matters, with what it is and what stands behind it."""

    label: str
    value: str
    note: str = ""


def answer(report: Report) -> Answer:
    """What to do, and how sure that is."""
    results = report.results
    found = _verdict(results, results.verdict) if results.verdict else _without_verdict(results)
    found = replace(found, explanation=" ".join((found.explanation, *_out(results), *_ended(results))))
    if report.state == "running":
        return Answer("SO FAR", "neutral", found.headline, f"The experiment is still running. {found.explanation}")
    if report.state == "interrupted":
        cut = "The experiment was cut short; this is what had been measured by then."
        return Answer(found.badge, found.tone, found.headline, f"{cut} {found.explanation}")
    return found


def _out(results: Results) -> Iterator[str]:
    for record, why in results.refuted:
        yield f"Trial #{record.number} is out: it {why}."


def _ended(results: Results) -> Iterator[str]:
    if results.ended_early is not None:
        yield results.ended_early.said


def _verdict(results: Results, verdict: Verdict) -> Answer:
    times = f"{verdict.winner_runs} and {verdict.baseline_runs} times in turn"
    measured = f"Both were measured again, {times}: {shown(verdict.winner)} against {shown(verdict.baseline)}"
    measured = f"{measured} {verdict.unit}" if verdict.compared else ""
    reason = f"{verdict.reason[:1].upper()}{verdict.reason[1:]}."
    why = f"{measured}. {reason}" if measured else reason
    if verdict.kind == "WIN":
        why = " ".join(filter(None, (why, results.tied_said)))
        return Answer("WIN", "good", f"Change the configuration: {_gained(verdict)}.", why)
    if verdict.winner_anyway:
        headline = "Run the winner, its gain unproven: the baseline did not hold up when measured again."
        return Answer(verdict.kind, "warn", headline, why)
    if verdict.kind == "TIE":
        return Answer("TIE", "neutral", "Keep the baseline: nothing was found to be better beyond the noise.", why)
    return Answer("UNSTABLE", "warn", "Keep the baseline: that the winner is better did not hold up.", why)


def _gained(verdict: Verdict) -> str:
    gained = verdict.gained(" over the baseline", "{:+.0%}".format)
    return gained if verdict.low > 0 else f"it keeps the SLO ({gained})"


def _without_verdict(results: Results) -> Answer:
    winner, baseline = results.winner, results.baseline
    if results.ablation_of:
        return Answer("ABLATION", "neutral", "What can be left out of a winner.", results.ablation_said)
    if winner is None:
        return _nothing_feasible(results)
    if baseline is winner:
        return Answer(
            "BASELINE",
            "neutral",
            "Keep the baseline: it is the best configuration that was measured.",
            "No trial of the search was measured to the end with a better score.",
        )
    if baseline and baseline.outcome == "infeasible":
        kind = f" ({baseline.failure.kind})" if baseline.failure else ""
        return Answer(
            "NO BASELINE",
            "warn",
            f"The best is trial #{winner.number}; the runtime's own flags do not work here{kind}.",
            "There is nothing to compare it with: no gain is claimed.",
        )
    better = gain(winner.score, baseline.score) if baseline and baseline.score and winner.score else None
    over = f" ({better:+.0%} against the baseline in the search)" if better is not None else ""
    return Answer(
        "NOT CONFIRMED",
        "warn",
        f"The best so far is trial #{winner.number}{over}.",
        "Winner and baseline were not measured again, and the best of a search is partly luck: no gain is claimed.",
    )


def _nothing_feasible(results: Results) -> Answer:
    if not any(record.rungs or record.outcome == "infeasible" for record in results.records):
        return Answer("NO ANSWER", "neutral", "Nothing has been measured.", "No trial has come to a result.")
    headline, why = "No configuration works.", "No trial was measured to the end; see what failed and why."
    if results.closest and results.closest.score:
        headline = "No configuration keeps the SLO."
        why = f"Trial #{results.closest.number} comes closest: {results.closest.score.worst}."
    return Answer("NOTHING FEASIBLE", "bad", headline, " ".join((why, *results.near)))


def tiles(report: Report) -> list[Tile]:
    """The numbers at the top: gain, score, cost, effort."""
    return [*_gain_tiles(report.results), _cost_tile(report.results), _trials_tile(report), _time_tile(report)]


def _gain_tiles(results: Results) -> list[Tile]:
    verdict, best = results.verdict, results.winner
    found = []
    if verdict and verdict.compared:
        interval = f"{verdict.confidence:.0%} interval {verdict.interval()}"
        found.append(Tile("gain over the baseline", verdict.gained(), interval))
    if best and best.score:
        note = "; ".join(filter(None, (results.best_said(), each_of(best.score))))
        found.append(Tile(f"best score, {best.score.unit or 'weighted'}", shown(best.score.value), note))
    return found


def each_of(score: Score) -> str:
    """Of many objectives, the value of each."""
    found = ((measured(name), value, facts_of(name)[1]) for name, value in score.values.items())
    return ", ".join(f"{name} {shown(value)} {unit}".rstrip() for name, value, unit in found)


def _cost_tile(results: Results) -> Tile:
    book = results.ledger
    hours = f"{book.total / 3600:.3g}"
    price = results.task.optimization.price_per_gpu_hour
    money = f"costs {book.cost:,.2f} at {price:g} per GPU-hour" if book.cost is not None else ""
    lost = f"{book.wasted / book.total:.0%} lost to failures" if book.total else ""
    return Tile(book.unit.replace("-seconds", "-hours"), hours, ", ".join(filter(None, (money, lost))))


def _trials_tile(report: Report) -> Tile:
    records = report.results.records
    counts = {
        "stopped early": sum(map(was_stopped_early, records)),
        "could not work": sum(r.outcome == "infeasible" for r in records),
        "lost to the infrastructure": sum(r.outcome == "failed" for r in records),
        "taken over from earlier experiments": sum(r.reused_from is not None for r in records),
    }
    note = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
    whole = f"{len(records)} of {report.planned}" if report.state == "running" else str(len(records))
    return Tile("trials ended" if report.state == "running" else "trials", whole, note)


def _time_tile(report: Report) -> Tile:
    count = len(report.sessions)
    return Tile("running time", duration(report.elapsed_s), f"in {count} sessions" if count > 1 else "")


def changes(parameters: Parameters) -> list[tuple[str, str]]:
    """What a configuration sets, by the engine's names."""
    return [(name, said(value)) for name, value in parameters.items() if value is not None]


def said(value: object) -> str:
    return (
        "on"
        if value is True
        else "off"
        if value is False
        else f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
    )
