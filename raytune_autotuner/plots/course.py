"""The experiment over time: how the best grew with what was spent, and who held which GPUs when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import plotly.graph_objects as go

from raytune_autotuner.ledger import WAITING
from raytune_autotuner.objectives import rank
from raytune_autotuner.plots.plot import Plot, table
from raytune_autotuner.plots.style import (
    CYCLE,
    ENDING_COLOURS,
    ENDING_SYMBOLS,
    GREEN,
    GREY,
    PHASE_COLOURS,
    described,
    figure,
    short,
    text,
)
from raytune_autotuner.plots.view import View, last_score, spent_h, when
from raytune_autotuner.records import Score, TrialRecord, eligible
from raytune_autotuner.summary import ENDINGS, ending, gain, shown

LEAST_SHARE = 1 / 1000
"""Of the whole time: what is shorter cannot be seen and is drawn with what follows."""
LEAST_LANE_PX, MOST_LANE_PX = 6, 30
UNKNOWN_NODE = "cluster"


@dataclass(frozen=True)
class _Point:
    record: TrialRecord
    spent_h: float
    """In all, when the trial had ended."""
    best: Score | None
    """Of the trials until then that were measured to the end and keep the SLO, without those refuted since then."""


def best_so_far(view: View) -> Plot | None:
    """The score of each trial and the best one until then, over what had been spent."""
    points = list(course(view))
    if not points:
        return None
    unit, best = view.unit, points[-1].best
    drawn = figure(*_trials(points), *_steps(points), xaxis={"title": {"text": f"{unit} spent"}, "rangemode": "tozero"})
    drawn.update_yaxes(title={"text": text(view.objective)})
    baseline = view.results.baseline
    if baseline and baseline.score:
        drawn.add_hline(baseline.score.value, line={"color": GREY, "dash": "dash", "width": 1.5})
        drawn.add_annotation(
            x=1,
            xref="paper",
            y=baseline.score.value,
            text="baseline",
            showarrow=False,
            yanchor="bottom",
            xanchor="right",
        )
    rows = [_row(point) for point in points]
    columns = ("trial", "ended as", f"{unit} so far", "score", "best so far")
    return Plot("best_so_far", "Best so far", _course_said(points, best, view), drawn, table(columns, rows))


def course(view: View) -> Iterator[_Point]:
    """The trials that compete, in the order in which they ended."""
    ended = view.ended_at()
    kept = [record for record in view.searched if (score := last_score(record)) and not score.violation]
    may_win = {record.trial.name for record in eligible(kept, view.results.ranking.refuted)}
    spent, best = 0.0, None
    for record in sorted(view.searched, key=lambda r: (ended[r.trial.name], r.number)):
        spent += spent_h(record)
        score = record.score if record.trial.name in may_win else None
        if score is not None and (best is None or rank(score) < rank(best)):
            best = score
        yield _Point(record, spent, best)


def _trials(points: Sequence[_Point]) -> Iterator[go.Scatter]:
    values = [p.record.rungs[-1].score.value for p in points if p.record.rungs]
    floor = min(values, default=0.0)
    for name in ENDINGS:
        chosen = [p for p in points if ending(p.record) == name]
        if chosen:
            yield go.Scatter(
                x=[p.spent_h for p in chosen],
                y=[p.record.rungs[-1].score.value if p.record.rungs else floor for p in chosen],
                text=[described(p.record) for p in chosen],
                hovertemplate="%{text}<extra></extra>",
                mode="markers",
                name=f"{name} ({len(chosen)})",
                marker={"color": ENDING_COLOURS[name], "symbol": ENDING_SYMBOLS[name], "size": 8},
            )


def _steps(points: Sequence[_Point]) -> Iterator[go.Scatter]:
    known = [p for p in points if p.best]
    if known:
        yield go.Scatter(
            x=[p.spent_h for p in known],
            y=[p.best.value for p in known if p.best],
            mode="lines",
            name="best so far",
            line={"shape": "hv", "color": GREEN, "width": 3},
            hovertemplate="best so far %{y:.4g}<extra></extra>",
        )


def _row(point: _Point) -> tuple[str | float | None, ...]:
    score = point.record.rungs[-1].score.value if point.record.rungs else None
    return (
        f"#{point.record.number}",
        ending(point.record),
        round(point.spent_h, 3),
        score,
        point.best.value if point.best else None,
    )


def _course_said(points: Sequence[_Point], best: Score | None, view: View) -> str:
    whole = f"{len(points)} trials cost {points[-1].spent_h:.3g} {view.unit}"
    if best is None:
        return f"{whole}; none was measured to the end and keeps the SLO."
    first = next(p for p in points if p.best is best)
    baseline = view.results.baseline
    better = gain(best, baseline.score) if baseline and baseline.score and baseline.score is not best else None
    over = f", {100 * better:+.0f} % against the baseline in the search" if better is not None else ""
    found = f"the best, {shown(best.value)} {best.unit or 'weighted'}{over}, was found by trial #{first.record.number}"
    return f"{whole}; {found} after {first.spent_h:.3g} of them. Marks on the bottom line have no score."


@dataclass(frozen=True)
class _Stay:
    """A trial on its GPUs."""

    number: int
    name: str
    parts: tuple[tuple[str, datetime, datetime], ...]
    """Phases with their begin and end."""
    gpus: int
    node: str
    ending: str
    lanes: tuple[range, ...] = ()
    """The rows that it takes, side by side as far as they were free so."""

    @property
    def begin(self) -> datetime:
        return self.parts[0][1]

    @property
    def end(self) -> datetime:
        return self.parts[-1][2]


def timeline(view: View) -> Plot | None:
    """Which trial held how many GPUs of which node when, by phase."""
    stays = sorted((s for s in _stays(view) if s.parts), key=lambda s: (s.begin, s.number))
    if not stays:
        return None
    placed, widths = _lanes(stays)
    lanes = sum(widths.values())
    whole = max(s.end for s in placed) - min(s.begin for s in placed)
    height = 130 + min(640, max(90, lanes * max(LEAST_LANE_PX, min(MOST_LANE_PX, 500 // lanes))))
    drawn = figure(*_bars(placed, whole), height=height, barmode="overlay", bargap=0)
    drawn.update_xaxes(type="date", title={"text": "UTC"})
    offsets = _offsets(widths)
    drawn.update_yaxes(
        tickvals=[offsets[node] + (width - 1) / 2 for node, width in widths.items()],
        ticktext=[f"{short(node)}<br>{width} {_things(view, width)}" for node, width in widths.items()],
        range=[lanes - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
    )
    for node in list(widths)[1:]:
        drawn.add_hline(offsets[node] - 0.5, line={"color": GREY, "width": 1})
    rows = [(f"#{s.number}", s.node, s.gpus, _clock(s.begin), _clock(s.end), s.ending, _phases(s)) for s in placed]
    columns = ("trial", "node", "GPUs", "from (UTC)", "to (UTC)", "ended as", "phases (s)")
    said = _timeline_said(view, placed, widths)
    return Plot("timeline", "GPU timeline", said, drawn, table(columns, rows), min_width=720)


def _stays(view: View) -> Iterator[_Stay]:
    for record in view.records:
        parts = tuple(_parts(record.phases, when(record.started_at)))
        yield _Stay(record.number, record.trial.name, parts, record.gpus, _node(record.node), ending(record))
    last = view.now or max((when(s.updated_at) for s in view.states), default=None)
    for state in view.running:
        done = tuple(_parts(state.phases, when(state.started_at)))
        since = done[-1][2] if done else when(state.started_at)
        goes_on = state.phase not in WAITING and last is not None and last > since
        now = ((state.phase, since, last),) if goes_on and last else ()
        yield _Stay(state.number, state.trial.name, (*done, *now), state.gpus, _node(state.node), "running")


def _node(node: str | None) -> str:
    return node or UNKNOWN_NODE


def _parts(phases: Mapping[str, float], begin: datetime) -> Iterator[tuple[str, datetime, datetime]]:
    """The phases in the order in which a trial goes through them; the clock of each was not kept."""
    known = list(PHASE_COLOURS)
    spent = sorted(phases.items(), key=lambda p: known.index(p[0]) if p[0] in known else len(known))
    for phase, seconds in spent:
        if phase not in WAITING and seconds > 0:
            end = begin + timedelta(seconds=seconds)
            yield phase, begin, end
            begin = end


def _lanes(stays: Sequence[_Stay]) -> tuple[list[_Stay], dict[str, int]]:
    """Each trial on the first lanes of its node that are free; and how many lanes each node needs."""
    free_at: dict[str, list[datetime]] = {}
    taken = []
    for stay in stays:
        ends, wide = free_at.setdefault(stay.node, []), max(1, stay.gpus)
        lanes = [lane for lane, end in enumerate(ends) if end <= stay.begin][:wide]
        new = range(len(ends), len(ends) + wide - len(lanes))
        ends.extend(stay.end for _ in new)
        for lane in lanes:
            ends[lane] = stay.end
        taken.append([*lanes, *new])
    widths = {node: len(free_at[node]) for node in sorted(free_at)}
    offsets = _offsets(widths)
    placed = (replace(s, lanes=tuple(_runs(lanes, offsets[s.node]))) for s, lanes in zip(stays, taken, strict=True))
    return list(placed), widths


def _runs(lanes: Sequence[int], offset: int) -> Iterator[range]:
    """Lanes in stretches of neighbours."""
    begin = 0
    for i in range(1, len(lanes) + 1):
        if i == len(lanes) or lanes[i] != lanes[i - 1] + 1:
            yield range(lanes[begin] + offset, lanes[i - 1] + offset + 1)
            begin = i


def _offsets(widths: dict[str, int]) -> dict[str, int]:
    found, total = {}, 0
    for node, width in widths.items():
        found[node], total = total, total + width
    return found


def _bars(stays: Sequence[_Stay], whole: timedelta) -> Iterator[go.Bar]:
    """A trace a phase, whose bars are as wide as the GPUs that were held."""
    least = whole * LEAST_SHARE
    drawn: dict[str, list[tuple[_Stay, range, datetime, datetime]]] = {}
    for stay in stays:
        for phase, begin, end in _visible(stay, least):
            drawn.setdefault(phase, []).extend((stay, lanes, begin, end) for lanes in stay.lanes)
    known = list(PHASE_COLOURS)
    for phase in sorted(drawn, key=lambda p: known.index(p) if p in known else len(known)):
        bars = drawn[phase]
        yield go.Bar(
            orientation="h",
            base=[begin for _, _, begin, _ in bars],
            x=[(end - begin).total_seconds() * 1000 for _, _, begin, end in bars],
            y=[(lanes[0] + lanes[-1]) / 2 for _, lanes, _, _ in bars],
            width=[len(lanes) - 0.15 for _, lanes, _, _ in bars],
            name=text(phase),
            marker={"color": PHASE_COLOURS.get(phase, CYCLE[4]), "line": {"width": 0}},
            text=[f"#{stay.number}" if phase == "benchmark" else "" for stay, _, _, _ in bars],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="both",
            textfont={"color": "#ffffff"},
            customdata=[_hover(stay, phase, begin, end) for stay, _, begin, end in bars],
            hovertemplate="%{customdata}<extra></extra>",
        )


def _visible(stay: _Stay, least: timedelta) -> Iterator[tuple[str, datetime, datetime]]:
    """The phases; what is too short to be seen is drawn with the next one, or the whole stay as one."""
    begin = stay.begin
    for phase, _, end in stay.parts:
        if end - begin >= least or (end == stay.end and begin == stay.begin):
            yield phase, begin, end
            begin = end


def _hover(stay: _Stay, phase: str, begin: datetime, end: datetime) -> str:
    seconds = (end - begin).total_seconds()
    where = f"{stay.gpus} GPUs on {text(stay.node)}"
    return f"<b>#{stay.number}</b> {stay.ending}<br>{text(phase)}: {seconds:.1f} s<br>{where}"


def _phases(stay: _Stay) -> str:
    return ", ".join(f"{phase} {(end - begin).total_seconds():.0f}" for phase, begin, end in stay.parts)


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _things(view: View, count: int) -> str:
    name = "GPU" if view.unit == "GPU-hours" else "at once"
    return name + "s" * (name == "GPU" and count != 1)


def _timeline_said(view: View, stays: Sequence[_Stay], widths: dict[str, int]) -> str:
    begin, end = min(s.begin for s in stays), max(s.end for s in stays)
    hours = (end - begin).total_seconds() / 3600
    held = sum(max(1, s.gpus) * (s.end - s.begin).total_seconds() for s in stays) / 3600
    share = held / (hours * sum(widths.values())) if hours else 1.0
    nodes = f" on {len(widths)} nodes" if len(widths) > 1 else ""
    width = sum(widths.values())
    return (
        f"{len(stays)} trials held up to {width} {_things(view, width)}{nodes} for {hours:.3g} hours, {share:.0%} "
        "of it in use. A bar is as high as the GPUs that a trial held; which GPUs of a node was not recorded. "
        "Phases are drawn in their usual order."
    )
