"""A report as a page, as Markdown and as JSON. Every text of tasks and logs is data in them."""

from __future__ import annotations

import html as html_text
import json
import re
from typing import Any

import jinja2

from raytune_autotuner import plots, resources
from raytune_autotuner.errors import SpecError
from raytune_autotuner.objectives import goal
from raytune_autotuner.report import answer, evidence
from raytune_autotuner.report.facts import Report
from raytune_autotuner.results import Results
from raytune_autotuner.results_file import document, to_text
from raytune_autotuner.summary import origin
from raytune_autotuner.task.spec import parse_task

FENCE = "```"


def html(report: Report) -> str:
    """One self-contained page: no network, plotly.js once."""
    drawn = plots.figures(report.results, report.states)
    return (
        _environment(autoescape=True)
        .get_template("report.html.j2")
        .render(**_facts(report), plots=drawn, script=plots.script() if drawn else "")
    )


def markdown(report: Report) -> str:
    """For a pull request: GitHub's Markdown, and no HTML but what folds the task."""
    environment = _environment(autoescape=False)
    environment.filters |= {"md": inline, "cell": cell, "fenced": fenced}
    drawn = plots.figures(report.results, report.states, ("best_so_far", "tradeoff", "importance"))
    shown = {"evidence": evidence.of_plots(drawn), "short_task": _short(report)}
    text = environment.get_template("report.md.j2").render(**_facts(report), **shown)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _short(report: Report) -> str:
    """The task without what it would be anyway; a text that is none as it is."""
    try:
        task = parse_task(json.loads(report.task_text), "task.json")
    except (SpecError, ValueError):
        return report.task_text
    return task.model_dump_json(indent=1, exclude_defaults=True)


def json_text(report: Report) -> str:
    """The results document (see ``results.document``)."""
    extra = {
        "elapsed_time": round(report.elapsed_s, 1),
        "folder": report.location,
        "state": report.state,
        "versions": dict(report.environment),
    }
    return to_text(document(report.results, extra))


def _facts(report: Report) -> dict[str, Any]:
    results = report.results
    best = results.recommended or results.closest
    return {
        "report": report,
        "results": results,
        "task": results.task,
        "objective": goal(results.task.optimization),
        "answer": answer.answer(report),
        "tiles": answer.tiles(report),
        "settings": evidence.settings(results),
        "side_by_side": evidence.side_by_side(results),
        "confirming": evidence.confirming(results),
        "failures": evidence.failures(results),
        "trials": evidence.trials(results),
        "spending": evidence.spending(results),
        "surroundings": evidence.surroundings(report),
        "caveats": evidence.caveats(results),
        "launch": evidence.launch(results),
        "best": best,
        "origin": origin(best) if best else "",
        "heading": _heading(results),
    }


def _heading(results: Results) -> str:
    if results.recommended is None:
        return "Closest to the SLO"
    return "Best configuration so far, not confirmed" if results.unconfirmed else "Recommended configuration"


def _environment(*, autoescape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.templates() / "report"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def inline(text: object) -> str:
    """Any text as one line of Markdown that shows it and does nothing else."""
    line = html_text.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~@])", r"\\\1", line)


def cell(text: object) -> str:
    """The same in a table, where it may be empty."""
    return inline(text) or " "


def fenced(text: str, language: str = "") -> str:
    """A block of code that its content cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(len(FENCE), longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
