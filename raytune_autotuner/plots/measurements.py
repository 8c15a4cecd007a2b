"""What was measured of a few trials, side by side: by concurrency, by percentile, and by the engine itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from raytune_autotuner.metrics import METRICS
from raytune_autotuner.plots.plot import Plot, table, width_of
from raytune_autotuner.plots.style import CYCLE, DASHES, GREY, TEMPLATES, VERMILION, figure, short, text, title_subplots
from raytune_autotuner.plots.tradeoff import LATENCY_WORDS
from raytune_autotuner.plots.view import PER_GPU, View
from raytune_autotuner.records import EngineSeries, LoadMetrics, RequestSamples, RungRecord, TrialRecord

FACETS = ("output_tokens_per_s", "ttft_p99_s", "tpot_p99_s", "e2e_p99_s", "input_tokens_per_s", "requests_per_s")
MOST_FACETS = 4
MOST_SERIES = 8
QUANTILES = (*range(1, 100), 99.5)
MOST_ENGINE_METRICS = 8
SUBPLOT_PX = 230


@dataclass(frozen=True)
class Series:
    """One rung of a trial, under the name that it has in the legend."""

    name: str
    rung: RungRecord
    gpus: int | None = None
    """What throughputs are divided by, where an objective is about each GPU."""


def of_contenders(view: View) -> list[Series]:
    """The last rung of baseline and winner."""
    return [Series(name, record.rungs[-1], _gpus(record)) for name, record in view.contenders()]


def of_trial(record: TrialRecord) -> list[Series]:
    """All rungs of one trial."""
    return [Series(f"rung {rung.rung + 1}", rung, _gpus(record)) for rung in record.rungs][-MOST_SERIES:]


def _gpus(record: TrialRecord) -> int | None:
    score = record.rungs[-1].score
    return None if PER_GPU.isdisjoint(score.values or (score.objective,)) else max(1, record.gpus)


def by_load(series: Sequence[Series], slo: dict[str, float]) -> Plot | None:
    """Throughput and latencies over the concurrency."""
    names = _facets(series)
    if not names:
        return None
    per_gpu = {name for name in names if METRICS[name].at_best and any(each.gpus for each in series)}
    titles = [_title(name, name in per_gpu) for name in names]
    drawn = _grid(titles)
    levels = sorted({load.load.level for each in series for load in each.rung.metrics.loads})
    for place, name in enumerate(names):
        row, column = place // 2 + 1, place % 2 + 1
        for trace in _curves(series, name, first=place == 0):
            drawn.add_trace(trace, row=row, col=column)
        drawn.update_xaxes(type="category", categoryorder="array", categoryarray=levels, row=row, col=column)
        drawn.update_yaxes(rangemode="tozero", row=row, col=column)
        if name in slo and name not in per_gpu:
            drawn.add_hline(slo[name], row=row, col=column, line={"color": VERMILION, "dash": "dash", "width": 1.5})
    drawn.update_xaxes(title={"text": "concurrency (or batch size)"}, row=(len(names) + 1) // 2)
    rows = [row for each in series for row in _load_rows(each, names)]
    named = (f"{name} per GPU" if name in per_gpu else name for name in names)
    columns = ("trial", "scenario", "level", "requests", "errors", *named)
    said = _loads_said(series, levels) + (" Throughputs are per GPU, as the score is." if per_gpu else "")
    return Plot("by_load", "By concurrency", said, drawn, table(columns, rows), width_of(titles, 2))


def _facets(series: Sequence[Series]) -> list[str]:
    loads = [load for each in series for load in each.rung.metrics.loads]
    measured = [name for name in FACETS if any(load.values.get(name, 0.0) > 0 for load in loads)]
    return measured[:MOST_FACETS]


def _title(name: str, per_gpu: bool) -> str:
    unit = METRICS[name].unit
    if per_gpu:
        return f"{name.removesuffix('_per_s').replace('_', ' ')} per GPU ({unit}/GPU)"
    return f"{name.removesuffix('_s').replace('_per', '/s').replace('_', ' ')} ({unit})"


def _value(series: Series, load: LoadMetrics, name: str) -> float | None:
    value = load.values.get(name)
    return value / series.gpus if value is not None and series.gpus and METRICS[name].at_best else value


def _grid(titles: Sequence[str], columns: int = 2) -> go.Figure:
    rows = -(-len(titles) // columns)
    drawn = make_subplots(
        rows=rows,
        cols=min(columns, len(titles)),
        subplot_titles=[text(title) for title in titles],
        vertical_spacing=0.32 / rows,
        horizontal_spacing=0.1,
    )
    title_subplots(drawn)
    base = figure(height=90 + SUBPLOT_PX * rows).layout
    drawn.update_layout(height=base.height, margin=base.margin, template=TEMPLATES["light"], hovermode="closest")
    drawn.update_layout(
        margin={"t": 70}, legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"}
    )
    return drawn


def _curves(series: Sequence[Series], metric: str, *, first: bool) -> Iterator[go.Scatter]:
    for i, each in enumerate(series):
        loads = each.rung.metrics.loads
        for j, scenario in enumerate(dict.fromkeys(load.load.scenario for load in loads)):
            chosen = [m for m in loads if m.load.scenario == scenario and metric in m.values]
            many = len({m.load.scenario for m in loads}) > 1
            yield go.Scatter(
                x=[m.load.level for m in chosen],
                y=[_value(each, m, metric) for m in chosen],
                mode="lines+markers",
                name=text(f"{each.name}, {scenario}" if many else each.name),
                legendgroup=f"{i}-{j}",
                showlegend=first,
                line={"color": CYCLE[i % len(CYCLE)], "dash": DASHES[j % len(DASHES)], "width": 2},
                marker={"size": 7, "symbol": i % 8},
                hovertemplate=f"{text(each.name)}, {short(scenario)}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
            )


def _load_rows(series: Series, names: Sequence[str]) -> Iterator[tuple[str | float | int | None, ...]]:
    for load in series.rung.metrics.loads:
        values = (_value(series, load, name) for name in names)
        yield (series.name, load.load.scenario, load.load.level, load.completed, load.errors, *values)


def _loads_said(series: Sequence[Series], levels: Sequence[int]) -> str:
    who = " and ".join(each.name for each in series[:3])
    at = f"at {len(levels)} levels from {levels[0]} to {levels[-1]}" if len(levels) > 1 else f"at level {levels[0]}"
    return f"What {who} measured {at}; a dashed red line is a limit of the SLO."


def percentiles(series: Sequence[Series], slo: dict[str, float]) -> Plot | None:
    """How latencies are distributed over the requests, at the heaviest load."""
    heaviest = [(each, _heaviest(each.rung)) for each in series if each.rung.metrics.loads]
    names = [name for name in LATENCY_WORDS if any(_column(load.samples, name).size for _, load in heaviest)]
    if not names:
        return None
    titles = [f"{LATENCY_WORDS[name]} (s)" for name in names]
    drawn = _grid(titles, columns=3)
    for place, name in enumerate(names):
        for i, (each, load) in enumerate(heaviest):
            drawn.add_trace(_quantiles(each, load, name, i, place == 0), row=1, col=place + 1)
        for limit, percentile in _limits(slo, name):
            x, y = [percentile], [limit]
            drawn.add_trace(_limit_mark(x, y, f"{name} p{percentile:g}"), row=1, col=place + 1)
        drawn.update_yaxes(rangemode="tozero", row=1, col=place + 1)
    drawn.update_xaxes(
        title={"text": "percentile of the requests"}, ticksuffix=" %", tick0=0, dtick=50, tickangle=0, range=(-6, 106)
    )
    rows = [row for each, load in heaviest for row in _percentile_rows(each, load, names)]
    columns = ("trial", "load", "latency (s)", "p50", "p90", "p95", "p99", "max", "requests")
    most = heaviest[0][1].load
    said = (
        f"So many per cent of the requests were answered within so long, at {most.scenario} and level {most.level}, "
        "the heaviest load. Lower is better; a red mark is a limit of the SLO at its percentile."
    )
    return Plot("percentiles", "Latency percentiles", said, drawn, table(columns, rows), width_of(titles, 3))


def _heaviest(rung: RungRecord) -> LoadMetrics:
    return max(rung.metrics.loads, key=lambda load: load.load.level)


def _column(samples: RequestSamples, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = {"ttft": samples.ttft_s, "tpot": samples.tpot_s, "e2e": samples.e2e_s}[name]
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _quantiles(series: Series, load: LoadMetrics, name: str, place: int, first: bool) -> go.Scatter:
    seconds = _column(load.samples, name)
    y = np.percentile(seconds, QUANTILES).tolist() if seconds.size else []
    return go.Scatter(
        x=list(QUANTILES[: len(y)]),
        y=y,
        mode="lines",
        name=text(series.name),
        legendgroup=str(place),
        showlegend=first,
        line={"color": CYCLE[place % len(CYCLE)], "dash": DASHES[place % len(DASHES)], "width": 2},
        hovertemplate=f"{text(series.name)}<br>p%{{x}}: %{{y:.4g}} s<extra></extra>",
    )


def _limits(slo: dict[str, float], name: str) -> Iterator[tuple[float, float]]:
    for metric, limit in slo.items():
        parts = metric.split("_")
        if parts[0] == name and parts[1].startswith("p"):
            yield limit, float(parts[1][1:])


def _limit_mark(x: list[float], y: list[float], what: str) -> go.Scatter:
    marker = {"color": VERMILION, "symbol": "line-ew-open", "size": 16, "line": {"width": 3}}
    return go.Scatter(
        x=x,
        y=y,
        mode="markers",
        marker=marker,
        showlegend=False,
        hovertemplate=f"SLO {what} ≤ %{{y:.4g}} s<extra></extra>",
    )


def _percentile_rows(
    series: Series, load: LoadMetrics, names: Sequence[str]
) -> Iterator[tuple[str | float | int | None, ...]]:
    for name in names:
        values = (load.values.get(f"{name}_{statistic}_s") for statistic in ("p50", "p90", "p95", "p99", "max"))
        where = f"{load.load.scenario} at {load.load.level}"
        yield (series.name, where, name, *values, int(_column(load.samples, name).size))


def engine_over_time(rungs: Mapping[int, EngineSeries]) -> Plot | None:
    """What the engine says of itself while the rungs of one trial were measured, by the second."""
    names = list(dict.fromkeys(name for each in rungs.values() for name in each.values))[:MOST_ENGINE_METRICS]
    if not names:
        return None
    titles = [name.replace("_", " ") for name in names]
    drawn = _grid(titles, columns=3)
    for place, name in enumerate(names):
        row, column = place // 3 + 1, place % 3 + 1
        for i, (rung, each) in enumerate(list(rungs.items())[-MOST_SERIES:]):
            drawn.add_trace(_engine_line(each, name, rung, i, place == 0), row=row, col=column)
            for begun, _ in each.loads if i + 1 == len(rungs) else ():
                drawn.add_vline(begun, row=row, col=column, line={"color": GREY, "dash": "dot", "width": 1})
    drawn.update_xaxes(ticksuffix=" s", rangemode="tozero")
    drawn.update_yaxes(rangemode="tozero")
    rows = [(f"rung {rung + 1}", *row) for rung, each in rungs.items() for row in _engine_rows(each, names)]
    said = "Seconds since the rung began; counters by what they grew. A dotted line is where a load of the last begins."
    columns = ("rung", "seconds", "load", *titles)
    return Plot("engine", "Engine metrics over time", said, drawn, table(columns, rows), width_of(titles, 3))


def _engine_line(series: EngineSeries, name: str, rung: int, place: int, first: bool) -> go.Scatter:
    return go.Scatter(
        x=list(series.seconds),
        y=list(series.values.get(name, ())),
        text=[text(_load_at(series, at)) for at in series.seconds],
        mode="lines+markers" if len(series.seconds) < 3 else "lines",
        name=f"rung {rung + 1}",
        legendgroup=str(place),
        showlegend=first,
        line={"color": CYCLE[place % len(CYCLE)], "dash": DASHES[place % len(DASHES)], "width": 2},
        hovertemplate=f"rung {rung + 1}, %{{text}}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
    )


def _load_at(series: EngineSeries, second: float) -> str:
    return next((load for begun, load in reversed(series.loads) if begun <= second), "")


def _engine_rows(series: EngineSeries, names: Sequence[str]) -> Iterator[tuple[str | float | None, ...]]:
    columns = [series.values.get(name, (None,) * len(series.seconds)) for name in names]
    for second, *values in zip(series.seconds, *columns, strict=True):
        yield (second, _load_at(series, second), *values)


def engine(series: Sequence[Series]) -> Plot | None:
    """What the engine says of itself while a rung was measured."""
    told = [each for each in series if each.rung.engine and each.rung.engine.values]
    names = _engine_names(told)
    if not names:
        return None
    titles = [name.replace("_", " ") for name in names]
    drawn = _grid(titles, columns=4)
    for place, name in enumerate(names):
        row, column = place // 4 + 1, place % 4 + 1
        for i, each in enumerate(told):
            drawn.add_trace(_engine_bar(each, name, i, place == 0), row=row, col=column)
    drawn.update_layout(barmode="group", bargap=0.3)
    drawn.update_xaxes(showticklabels=False)
    drawn.update_yaxes(rangemode="tozero")
    rows = [
        (each.name, name, _engine_value(each, name), _engine_value(each, name, "_max"))
        for each in told
        for name in names
    ]
    said = "Means of gauges over the rung, with the maximum at the tip of the line; counters by what they grew."
    columns = ("trial", "metric", "mean or increase", "maximum")
    return Plot("engine", "Engine metrics", said, drawn, table(columns, rows), width_of(titles, 4))


def _engine_names(series: Sequence[Series]) -> list[str]:
    values = dict.fromkeys(name for each in series if each.rung.engine for name in each.rung.engine.values)
    names = dict.fromkeys(name.removesuffix("_mean").removesuffix("_max") for name in values)
    return list(names)[:MOST_ENGINE_METRICS]


def _engine_value(series: Series, name: str, suffix: str = "_mean") -> float | None:
    values = series.rung.engine.values if series.rung.engine else {}
    return values.get(f"{name}{suffix}", values.get(name) if suffix == "_mean" else None)


def _engine_bar(series: Series, name: str, place: int, first: bool) -> go.Bar:
    mean, most = _engine_value(series, name), _engine_value(series, name, "_max")
    over = max(0.0, most - mean) if mean is not None and most is not None else 0.0
    return go.Bar(
        x=[text(series.name)],
        y=[mean],
        name=text(series.name),
        legendgroup=str(place),
        showlegend=first,
        marker={"color": CYCLE[place % len(CYCLE)]},
        error_y={
            "type": "data",
            "array": [over],
            "arrayminus": [0],
            "symmetric": False,
            "visible": over > 0,
            "color": "#7d8590",
        },
        hovertemplate=f"{text(series.name)}<br>%{{y:.4g}}<extra></extra>",
    )
