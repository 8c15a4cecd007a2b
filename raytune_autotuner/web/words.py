"""Values as people read them, for the templates."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

from markupsafe import Markup

from raytune_autotuner.ledger import Ledger
from raytune_autotuner.metrics import METRICS
from raytune_autotuner.objectives import facts_of, goal, measured
from raytune_autotuner.planning.plan import duration
from raytune_autotuner.records import ParameterValue, Score
from raytune_autotuner.results import Results
from raytune_autotuner.summary import shown
from raytune_autotuner.verdict import Verdict

UNITS = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))
TITLES = {
    "output_tokens_per_s": "Output tokens/s",
    "input_tokens_per_s": "Input tokens/s",
    "total_tokens_per_s": "Tokens/s",
    "requests_per_s": "Requests/s",
    "goodput_requests_per_s": "Goodput requests/s",
    "goodput_tokens_per_s": "Goodput tokens/s",
    "slo_attainment": "SLO attainment",
    "error_ratio": "Errors",
    "output_tokens_mean": "Output tokens",
    "input_tokens_mean": "Input tokens",
}
STATISTICS = {"mean": "mean", "max": "max"}


def number(value: float | None) -> str:
    """Three figures at least; thousands apart."""
    if value is None:
        return "–"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else shown(value)


def seconds(value: float | None) -> str:
    """A latency: ``12.3 ms`` or ``1.23 s``."""
    if value is None:
        return "–"
    return f"{value * 1000:.3g} ms" if abs(value) < 0.9995 else f"{value:.3g} s"


def metric(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    if name == "error_ratio":
        return percent(value, sign=False)
    return seconds(value) if METRICS[name].unit == "s" else number(value)


def metric_title(name: str) -> str:
    """``ttft_p99_s`` as ``TTFT p99``."""
    if name in TITLES:
        return TITLES[name]
    latency, _, statistic = name.removesuffix("_s").partition("_")
    return f"{latency.upper()} {statistic}"


def score(value: Score | None, said_once: str = "") -> str:
    """With its unit, unless that is what is said once for all."""
    if value is None:
        return "–"
    if value.unit == "s":
        return seconds(value.value)
    unit = score_unit(value)
    return number(value.value) if unit == said_once else f"{number(value.value)} {unit}".rstrip()


def score_unit(value: Score | None) -> str:
    """What stands behind each value; empty of a time, whose unit goes with how long it is."""
    if value is None or value.unit == "s":
        return ""
    return value.unit or ("weighted" if value.values else "")


def breakable(text: str) -> Markup:
    """A name or a path that may go on in the next line after a ``_`` or a ``/``, but not with a single letter."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/])(?=[\w{]{2})", text))


def percent(value: float | None, sign: bool = True) -> str:
    if value is None:
        return "–"
    return f"{100 * value:+.1f} %" if sign else f"{100 * value:.3g} %"


def gained(verdict: Verdict, over: str = "") -> str:
    return verdict.gained(over, percent)


def interval(verdict: Verdict) -> str:
    return verdict.interval(percent)


def parameter(value: ParameterValue) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def spend(ledger: Ledger) -> str:
    return spent(ledger.total, ledger.unit)


def spent(total: float, unit: str) -> str:
    """GPU-seconds as people pay for them."""
    what = unit.partition("-")[0]
    if total < 90:
        return f"{total:.0f} {what}-s"
    return f"{total / 60:.0f} {what}-min" if total < 5400 else f"{total / 3600:.1f} {what}-h"


def ago(moment: datetime | None) -> str:
    if moment is None:
        return "–"
    return f"{age((datetime.now(timezone.utc) - moment).total_seconds())} ago"


def moment(text: str) -> str:
    """Of a record, as ``2026-11-20 08:06 UTC``."""
    at = datetime.fromisoformat(text)
    return f"{at.astimezone(timezone.utc) if at.tzinfo else at:%Y-%m-%d %H:%M} UTC"


def age(value: float | None) -> str:
    """In the largest unit that it fills."""
    if value is None:
        return "–"
    for size, unit in UNITS:
        if value >= size:
            count = int(value // size)
            return f"{count} {unit}{'s' * (count != 1)}"
    return "0 seconds"


def values(found: Score | None) -> str:
    """Of many objectives, the value of each."""
    return (
        ", ".join(f"{measured(name)} {_valued(name, value)}" for name, value in found.values.items()) if found else ""
    )


def _valued(name: str, value: float) -> str:
    unit = facts_of(name)[1]
    return seconds(value) if unit == "s" else f"{number(value)} {unit}".rstrip()


def best_said(results: Results) -> str:
    return results.best_said(score)


FILTERS: dict[str, Any] = {
    "number": number,
    "seconds": seconds,
    "metric": metric,
    "metric_title": metric_title,
    "score": score,
    "percent": percent,
    "gained": gained,
    "interval": interval,
    "parameter": parameter,
    "spend": spend,
    "spent": spent,
    "ago": ago,
    "age": age,
    "moment": moment,
    "duration": duration,
    "objective": goal,
    "values": values,
    "best_said": best_said,
    "breakable": breakable,
}
