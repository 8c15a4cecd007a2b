"""The live view of an experiment in a terminal: the answer so far, progress, what it cost, its trials, what waits.

Drawn from the states of its trials alone, which are rewritten at each change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raytune_autotuner.ledger import charged
from raytune_autotuner.objectives import rank
from raytune_autotuner.records import Parameters, Score, TrialState, eligible, refuted_configs
from raytune_autotuner.summary import gain

SHOWN_TRIALS = 30
SHOWN_WAITING = 5
BAR_WIDTH = 48
AROUND_TABLE = 10
"""Lines of the view that are not trials."""
COLOURS = {"completed": "green", "stopped": "yellow", "infeasible": "red", "failed": "red"}


def board(
    states: Sequence[TrialState],
    planned: int,
    elapsed_s: float,
    waiting: Mapping[str, str] = {},
    height: int | None = None,
) -> RenderableType:
    """The whole view; at most as high as the terminal, where its height is given."""
    rows = SHOWN_TRIALS if height is None else max(3, min(SHOWN_TRIALS, height - AROUND_TABLE - len(waiting)))
    shown = list(waiting.items())[:SHOWN_WAITING]
    more = len(waiting) - len(shown)
    return Group(
        *_progress(states, planned, elapsed_s),
        *_so_far(states),
        *_spent(states),
        Text(""),
        _trials(_worth_a_row(states, rows), one_line=height is not None),
        *(Text(f"{trial} waits: {why}", style="dim") for trial, why in shown),
        *([Text(f"{more} more wait", style="dim")] if more > 0 else []),
    )


def parameters_text(parameters: Parameters) -> str:
    return ", ".join(f"{k}={v}" for k, v in parameters.items()) or "the runtime's own flags"


def score_text(score: Score) -> str:
    broken = f" breaks SLO: {score.worst}" if score.violation else ""
    return f"{score.value:.4g} {score.unit}" + (f" {score.at}" if score.at else broken)


def _progress(states: Sequence[TrialState], planned: int, elapsed_s: float) -> Iterator[RenderableType]:
    outcomes = Counter(state.outcome for state in states if state.outcome)
    ended, going = sum(outcomes.values()), len(states) - sum(outcomes.values())
    said = [f"{count} {outcome}" for outcome, count in outcomes.most_common()]
    said += [f"{going} open"] if going else []
    listed = f" ({', '.join(said)})" if said else ""
    yield Text(f"{ended} of at most {planned} trials ended, {elapsed_s:.0f} s{listed}", style="bold")
    if planned:
        bar = Table.grid()  # alone it does not end its line
        bar.add_row(ProgressBar(total=planned, completed=min(ended, planned), width=BAR_WIDTH))
        yield bar


def _so_far(states: Sequence[TrialState]) -> Iterator[Text]:
    """The best of the search against the baseline, and how far the confirming runs are."""
    whole = [s for s in states if s.outcome == "completed" and s.score and s.trial.purpose in ("baseline", "search")]
    baseline = next((s for s in whole if s.trial.purpose == "baseline"), None)
    kept = eligible([s for s in whole if s.score and not s.score.violation], refuted_configs(states))
    best = min(kept, key=lambda s: rank(s.score) if s.score else (0.0, 0.0), default=None)
    if best is not None and best.score is not None:
        better = gain(best.score, baseline.score) if baseline and baseline.score and baseline is not best else None
        over = f" ({better:+.0%} against the baseline in the search)" if better is not None else ""
        line = f"Best so far: {parameters_text(best.parameters)}  {score_text(best.score)}{over}, trial #{best.number}"
        yield Text(line, style="green")
    elif whole:
        yield Text("Nothing so far keeps the SLO.", style="yellow")
    runs = [s for s in states if s.trial.purpose == "confirm"]
    if runs:
        done = sum(s.outcome is not None for s in runs)
        yield Text(f"Confirming the answer: {done} of {len(runs)} runs begun have ended", style="cyan")


def _spent(states: Sequence[TrialState]) -> Iterator[Text]:
    by_phase: Counter[str] = Counter()
    for state in states:
        by_phase.update(charged(state))
    total = sum(by_phase.values())
    if total:
        unit = "GPU-hours" if any(state.gpus for state in states) else "machine-hours"
        phases = ", ".join(f"{phase} {seconds / total:.0%}" for phase, seconds in by_phase.most_common(5))
        yield Text(f"Spent so far: {total / 3600:.3g} {unit} ({phases})")


def _worth_a_row(states: Sequence[TrialState], rows: int) -> list[TrialState]:
    """What is open, and of the rest the last ones, in the order of proposal."""
    going = [state for state in states if state.outcome is None][-rows:]
    ended = [state for state in states if state.outcome is not None]
    left = rows - len(going)
    return sorted([*(ended[-left:] if left > 0 else []), *going], key=lambda state: state.number)


def _trials(states: Sequence[TrialState], *, one_line: bool) -> Table:
    """``one_line`` cuts parameters to what there is room for."""
    table = Table(box=None, pad_edge=False, expand=one_line)
    for column in ("#", "trial", "parameters", "phase", "rung", "score"):
        if column == "parameters" and one_line:
            table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1)
        else:
            table.add_column(column, no_wrap=column != "parameters", overflow="fold")
    for state in states:
        table.add_row(
            str(state.number),
            state.trial.purpose,
            Text(parameters_text(state.parameters)),
            Text(_phase(state), style=COLOURS.get(state.outcome or "", "cyan")),
            f"{state.rung}/{state.total_rungs}",
            Text(_short(state.score, cut=one_line) if state.score else ""),
        )
    return table


def _short(score: Score, *, cut: bool) -> str:
    """A broken SLO in a word, where there is one line only."""
    return f"{score.value:.4g} {score.unit} breaks SLO" if cut and score.violation else score_text(score)


def _phase(state: TrialState) -> str:
    return state.outcome or " ".join((state.phase, state.detail)).strip()
