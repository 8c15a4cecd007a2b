"""What a person sees in the terminal: progress while an experiment runs, its answer at the end.

Progress is read from the experiment folder: a live table in a terminal, one line per change elsewhere.
"""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raytune_autotuner import pareto
from raytune_autotuner.board import COLOURS, SHOWN_TRIALS, parameters_text, score_text
from raytune_autotuner.board import board as live_board
from raytune_autotuner.folder import ExperimentFolder, Kept
from raytune_autotuner.importance import Importances
from raytune_autotuner.ledger import Ledger, Savings, was_stopped_early
from raytune_autotuner.objectives import title
from raytune_autotuner.overview import Overview
from raytune_autotuner.pareto import Front
from raytune_autotuner.records import SearchEnd, TrialRecord, TrialState
from raytune_autotuner.results import BudgetUse, Results
from raytune_autotuner.summary import origin
from raytune_autotuner.verdict import Verdict

POLL_S, REMOTE_POLL_S = 0.5, 5.0
"""How often the folder is looked at; on an object store every file is a request."""
REST = 200
"""A look at many trials takes one part in so many of a CPU at most: they share the machine with Tune."""
JOIN_S = 10.0
LOG_LINES = 12
SHOWN_PARAMETERS = 5
LOG_WIDTH = 160
STATE_COLOURS = {"running": "cyan", "interrupted": "yellow", "done": "green"}


def console() -> Console:
    """Standard output; wide where no terminal says how wide it is, so that logs are not folded."""
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)


@contextmanager
def progress(
    folder: ExperimentFolder, planned: int, console: Console, *, elapsed_s: float = 0.0, board: bool = True
) -> Iterator[None]:
    """Show the experiment's progress while the body runs; ``board`` is a table, where there is a terminal for it."""
    over = threading.Event()
    begun = time.monotonic() - elapsed_s
    target = _live if board and console.is_terminal else _lines
    thread = threading.Thread(target=target, args=(folder, planned, console, over, begun), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(JOIN_S)


class _Course:
    """The trials of an experiment over time."""

    def __init__(self, folder: ExperimentFolder) -> None:
        self._kept = Kept(folder, folder.state, _is_over)
        self.pause_s = self._least_s = POLL_S if folder.root.is_local else REMOTE_POLL_S

    def states(self) -> list[TrialState]:
        """In the order of proposal."""
        begun_s = time.thread_time()
        self._kept.look()
        found = sorted((state for state in self._kept.trials.values() if state), key=lambda state: state.number)
        self.pause_s = max(self._least_s, REST * (time.thread_time() - begun_s))
        return found


def _is_over(state: TrialState | None) -> bool:
    return state is not None and state.outcome in ("completed", "infeasible")


def _live(folder: ExperimentFolder, planned: int, console: Console, over: threading.Event, begun: float) -> None:
    course = _Course(folder)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        while not over.wait(course.pause_s):
            elapsed_s, height = time.monotonic() - begun, console.size.height
            live.update(live_board(course.states(), planned, elapsed_s, folder.waiting(), height))


def _lines(folder: ExperimentFolder, planned: int, console: Console, over: threading.Event, begun: float) -> None:
    course = _Course(folder)
    seen: dict[str, tuple[str, str, int]] = {}
    told: dict[str, str] = {}
    while True:
        last_look = over.wait(course.pause_s)
        waiting = folder.waiting()
        for trial, why in waiting.items():
            if told.get(trial) != why:
                console.print(f"{trial} waits: {why}", markup=False, highlight=False, soft_wrap=True)
        told = waiting
        for state in course.states():
            now = (state.phase, state.detail, state.rung)
            if seen.get(state.trial.name) != now:
                seen[state.trial.name] = now
                line = f"{state.updated_at} {_state_line(state)}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        if last_look:
            return


def _state_line(state: TrialState) -> str:
    what = f"outcome {state.outcome}" if state.outcome else state.phase
    detail = f" ({state.detail})" if state.detail else ""
    score = f", {score_text(state.score)}" if state.score else ""
    return (
        f"#{state.number} {state.trial.purpose} [{parameters_text(state.parameters)}] "
        f"{what}{detail}, rung {state.rung}/{state.total_rungs}{score}"
    )


def experiments(overviews: Sequence[Overview], waiting: Mapping[str, str]) -> RenderableType:
    """One row an experiment; ``waiting`` are those that only have a job yet, with its state."""
    table = Table(box=None, pad_edge=False)
    for column in ("experiment", "state", "trials", "best score", "spent", "age"):
        table.add_column(column, no_wrap=column != "best score", overflow="fold")
    for name, state in waiting.items():
        table.add_row(name, Text(state, style="yellow"), "only a job, no folder", "", "", "")
    for each in overviews:
        trials = f"{each.ended} ended" + (f", {each.begun - each.ended} running" if each.begun > each.ended else "")
        standing = Text(each.state, style=STATE_COLOURS[each.state])
        score = Text(score_text(each.best) if each.best else "")
        table.add_row(each.name, standing, trials, score, f"{each.spent:.0f} {each.unit}", _age(each.age_s))
    return table


def standing(overview: Overview, states: Sequence[TrialState], planned: int) -> RenderableType:
    """Where an experiment stands that has no answer yet."""
    held = overview.held
    lines = [Text.assemble(overview.name, ": ", (overview.state, STATE_COLOURS[overview.state]))]
    if held is not None:
        lines.append(Text(f"{held.holder}, last sign of life {held.age_s:.0f} s ago"))
    if overview.budget:
        lines.append(Text(f"Of the budget: {overview.budget}"))
    return Group(*lines, live_board(states, planned, overview.age_s or 0.0))


def _age(seconds: float | None) -> str:
    """``95`` as ``1 min``, in the largest unit that it fills."""
    if seconds is None:
        return ""
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    return next((f"{seconds / size:.0f} {unit}" for size, unit in units if seconds >= size), "0 s")


def answer(
    results: Results, location: str, results_file: str, importances: Importances | None = None
) -> RenderableType:
    """The end of a run: trials, winner, gain, what it depends on, cost, and where everything is."""
    return Group(
        _trials(results),
        Text("Interrupted: this is what had been measured by then." if results.interrupted else ""),
        *_ended_early(results.ended_early),
        *_winner(results),
        *_front(pareto.front(results.records, results.task.optimization)),
        *(_importance_lines(importances) if importances else ()),
        Text(""),
        *_cost(results.ledger),
        *_budget(results.budget),
        Text(f"Experiment folder: {location}"),
        Text(f"Results: {results_file}"),
    )


def trial_answer(record: TrialRecord, location: str) -> RenderableType:
    """The end of a single trial."""
    lines = [
        Text(f"Outcome: {_outcome(record)}", style=f"bold {COLOURS[record.outcome]}"),
        Text(f"Score: {_last_score(record) or 'none'}"),
        Text("Seconds: " + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in record.phases.items())),
        Text(f"Command: {shlex.join(record.argv)}"),
        *(Text(f"Differs from what was asked: {difference}", style="yellow") for difference in record.differences),
    ]
    if record.failure:
        lines += [Text(t) for t in (record.failure.hint, record.failure.log_tail) if t]
    return Group(*lines, Text(f"Experiment folder: {location}"))


def _trials(results: Results) -> RenderableType:
    table = Table(title=f"{results.task.task_name}: {title(results.task.optimization)}", title_justify="left")
    for column in ("#", "trial", "parameters", "outcome", "rungs", "score", "seconds"):
        table.add_column(column, justify="right" if column in ("#", "seconds") else "left", overflow="fold")
    for record in results.records:
        table.add_row(
            str(record.number),
            record.trial.purpose,
            Text(parameters_text(record.parameters)),
            Text(_outcome(record), style=COLOURS[record.outcome]),
            f"{len(record.rungs)}/{record.total_rungs}",
            Text(_last_score(record)),
            f"{record.wall_s:.0f}",
        )
    return table


def _outcome(record: TrialRecord) -> str:
    if record.reused_from is not None:
        failure = f": {record.failure.kind}" if record.failure else ""
        return f"{record.outcome}{failure}, {origin(record)}"
    outcome = "stopped early" if was_stopped_early(record) else record.outcome
    if record.failure is None:
        return outcome
    first = record.failure.reason.splitlines()[0] if record.failure.reason else ""
    return f"{outcome}: {record.failure.kind} - {first[:100]}"


def _last_score(record: TrialRecord) -> str:
    if not record.rungs:
        return ""
    partial = "" if record.score else f" (rung {len(record.rungs)})"
    return score_text(record.rungs[-1].score) + partial


def _ended_early(end: SearchEnd | None) -> Iterator[Text]:
    if end is not None:
        yield Text(end.said, style="green" if end.cause == "settled" else "bold red")
        yield from (Text(f"  | {line}", style="dim") for line in end.log_tail.splitlines()[-LOG_LINES:])


def _winner(results: Results) -> Iterator[Text]:
    winner, best = results.winner, results.recommended
    if results.ablation_of:
        yield Text(results.ablation_said)
        return
    if winner is None and results.verdict is None:
        measured = any(record.rungs or record.outcome == "infeasible" for record in results.records)
        said = "No configuration is feasible." if measured else "Nothing has been measured."
        yield Text(said, style="bold red")
        if results.closest and results.closest.score:
            yield Text(
                f"Closest to the SLO: {parameters_text(results.closest.parameters)}; {results.closest.score.worst}"
            )
        yield from map(Text, results.near)
        return
    if winner is not None:
        title = "Best in the search" if results.is_best else "Winner"
        score = f"  {_last_score(winner)}" if results.search else ""  # of a file, the first of several runs says little
        yield Text(f"{title}: {parameters_text(winner.parameters)}{score}", style="bold green")
    yield from _gain(results)
    yield from (Text(f"  trial #{record.number} is out: it {why}", style="yellow") for record, why in results.refuted)
    yield from (Text(f"  caution: {caveat}", style="yellow") for caveat in results.caveats)
    if results.drift:
        yield Text(f"Drift: {results.drift}", style="yellow" if results.drift_found.significant else "dim")
    if best is not None:
        said = "Best so far, not confirmed" if results.unconfirmed else "Recommended"
        yield Text(f"{said}: {parameters_text(best.parameters)}", style="bold")
        yield Text(f"  {shlex.join(best.argv)}", no_wrap=False)
        yield from (Text(f"  {said}", style="dim") for said in (results.tied_said,) if said)
        yield from (Text(f"  differs from what was asked: {each}", style="yellow") for each in best.differences)
        yield from (Text(f"  note: {each}", style="yellow") for each in results.notes(best))


def verified(verdict: Verdict | None, budget: BudgetUse | None, location: str) -> RenderableType:
    """The end of a verification."""
    said = _said(verdict) if verdict else Text("Ended before anything could be said.", style="bold yellow")
    return Group(said, *_budget(budget), Text(f"Experiment folder: {location}"))


def importance(found: Importances) -> RenderableType:
    """Parameters by importance, and what the score is at each of their values."""
    table = Table(box=None, pad_edge=False)
    for column in ("parameter", "value", f"score ({found.unit})" if found.unit else "score", "trials", "cannot work"):
        table.add_column(column, justify="left" if column in ("parameter", "value") else "right")
    for m in found.marginals:
        score = f"{m.mean:.4g} ({m.low:.4g} to {m.high:.4g})"
        value = "left out" if m.value is None else str(m.value)
        table.add_row(m.parameter, Text(value), score, str(m.trials), str(m.infeasible or ""))
    return (
        Group(*_importance_lines(found, len(found.parameters)), Text(""), table)
        if found.marginals
        else Group(*_importance_lines(found))
    )


def _importance_lines(found: Importances, shown: int = SHOWN_PARAMETERS) -> Iterator[Text]:
    if found.reason:
        yield Text(f"What the score depends on: {found.reason}", style="dim")
        return
    parts = [f"{each.parameter} {each.importance:.0%} ({each.low:.0%} to {each.high:.0%})" for each in found.parameters]
    yield Text(f"What the score depends on, as shares of its variance: {', '.join(parts[:shown])}")
    yield Text(f"  from {found.trials} trials, which explain {found.explained:.0%} of what they were not told", "dim")


def _front(found: Front) -> Iterator[RenderableType]:
    """The configurations that nothing beats, when there is a choice between them."""
    if len(found.front) < 2:
        return
    yield Text("")
    table = Table(title="Pareto front, over all whole runs", title_justify="left", box=None, pad_edge=False)
    for axis in found.axes:
        table.add_column(f"{axis.name} ({axis.unit})" if axis.unit else axis.name, justify="right")
    for column in ("runs", "#", "parameters"):
        table.add_column(column, overflow="fold", justify="left" if column == "parameters" else "right")
    for point in found.front[:SHOWN_TRIALS]:
        values = (f"{value:.4g}" for value in point.values)
        table.add_row(*values, str(point.runs), str(point.number), Text(parameters_text(point.parameters)))
    yield table


def _said(verdict: Verdict) -> Text:
    numbers = (
        f"{verdict.gained(' over the baseline')}, {verdict.confidence:.0%} confidence interval "
        f"{verdict.interval()} ({verdict.winner:.4g} against {verdict.baseline:.4g} "
        f"{verdict.unit}, measured {verdict.winner_runs} and {verdict.baseline_runs} times in turn); "
    )
    return Text(f"{verdict.kind}: {numbers if verdict.compared else ''}{verdict.reason}.", style="bold")


def _gain(results: Results) -> Iterator[Text]:
    verdict, baseline, winner = results.verdict, results.baseline, results.winner
    if verdict is not None:
        yield _said(verdict)
    elif baseline is not None and baseline.outcome != "completed":
        why = f" ({baseline.failure.kind})" if baseline.failure else ""
        how = "do not work here" if baseline.outcome == "infeasible" else "were not measured to the end"
        yield Text(f"The runtime's own flags {how}{why}, so there is nothing to compare this with.")
    elif baseline is winner:
        yield Text("The baseline itself is the best configuration that was measured.")
    else:
        yield Text("Not confirmed: winner and baseline were not measured again, so no gain is claimed.")


def _cost(ledger: Ledger) -> Iterator[Text]:
    phases = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in ledger.by_phase.items())
    money = f", {ledger.cost:,.2f} in money" if ledger.cost is not None else ""
    yield Text(f"Spent: {ledger.total:.0f} {ledger.unit}{money} ({phases})")
    yield Text(f"Saved by early stopping: about {ledger.saved.early_stop:.0f} {ledger.unit}")
    others = [(seconds, what) for seconds, what in _savings(ledger.saved) if seconds]
    if others:
        said = ", ".join(f"{what} about {seconds:.0f}" for seconds, what in others)
        yield Text(f"Saved in other ways: {said} {ledger.unit}")
    if ledger.wasted:
        yield Text(f"Spent on configurations that cannot work: {ledger.wasted:.0f} {ledger.unit}")


def _budget(budget: BudgetUse | None) -> Iterator[Text]:
    if budget is not None:
        yield Text(f"Spent of the budget: {budget.said}")
        for part, why in (("The search", budget.search), ("Confirming", budget.confirming)):
            if why:
                yield Text(f"{part} was cut short: {why}", style="yellow")


def _savings(saved: Savings) -> Iterator[tuple[float, str]]:
    yield saved.duplicates, "configurations not measured twice"
    yield saved.refused, "trials refused before they ran"
    yield saved.fast_failure, "failures found before the timeout"
    yield saved.reused, "measurements taken over"
