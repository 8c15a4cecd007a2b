"""One trial: what it was, what it measured, why it failed, and its log as it grows."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from raytune_autotuner import redaction
from raytune_autotuner.backends.ome import MANIFEST
from raytune_autotuner.export import applied
from raytune_autotuner.metrics import METRICS
from raytune_autotuner.plots import trial_figures
from raytune_autotuner.records import RungRecord, TrialRecord, from_json
from raytune_autotuner.storage import Storage
from raytune_autotuner.web import logs, tables
from raytune_autotuner.web.figures import plots_answer
from raytune_autotuner.web.library import Unknown
from raytune_autotuner.web.pages import Here
from raytune_autotuner.web.reader import Snapshot, Trial
from raytune_autotuner.web.templating import page

router = APIRouter(include_in_schema=False)
PHASES = ("queue", "deploy", "load", "warmup", "benchmark", "client", "idle", "teardown")
FIRST = ("output_tokens_per_s", "requests_per_s", "error_ratio")


@router.get("/experiments/{name}/trials/{trial}")
def trial_page(request: Request, site: Here, name: str, trial: str, log: str = "") -> HTMLResponse:
    folder = site.library.trial_folder(name, trial)
    seen = site.library.look(name)
    known = seen.trials.get(trial)
    if known is None:
        raise Unknown(f"experiment {name} has no trial {trial}")
    names = logs.names(folder)
    record = known.record
    return page(
        request,
        "trial.html",
        seen=seen,
        row=tables.row(trial, known, seen),
        record=record,
        state=known.state,
        rungs=[_rung(each) for each in _rungs(folder, record)],
        phases=_phases(known),
        argv=shlex.join(map(str, redaction.command_line(record.argv))) if record and record.argv else "",
        manifest=redaction.yaml_text(_manifest(site, name, folder, record) or ""),
        info=_info(record),
        environment=_environment(seen),
        logs=names,
        log=log if log in names else (names[0] if names else ""),
    )


def _manifest(site: Here, name: str, folder: Storage, record: TrialRecord | None) -> str | None:
    """As it was applied; of a trial that runs as well."""
    return applied(site.library.folder(name), record) if record else folder.read(MANIFEST)


def _rungs(folder: Storage, record: TrialRecord | None) -> Sequence[RungRecord]:
    if record is not None:
        return record.rungs
    texts = (folder.read(f"rungs/{each}") for each in folder.list("rungs") if each.endswith(".json"))
    return sorted((from_json(RungRecord, text) for text in texts if text), key=lambda rung: rung.rung)


def _rung(rung: RungRecord) -> dict[str, Any]:
    """A rung as a table: metrics by load."""
    named = {name for load in rung.metrics.loads for name in load.values}
    ordered = [*(n for n in FIRST if n in named), *(n for n in METRICS if n in named and n not in FIRST)]
    return {
        "number": rung.rung + 1,
        "score": rung.score,
        "wall_s": rung.wall_s,
        "loads": rung.metrics.loads,
        "metrics": ordered,
        "engine": dict(rung.engine.values) if rung.engine else {},
    }


def _phases(trial: Trial) -> list[tuple[str, float, float]]:
    """Phase, seconds, share of all."""
    known = trial.record or trial.state
    phases: Mapping[str, float] = known.phases if known else {}
    total = sum(phases.values())
    ordered = [*(p for p in PHASES if p in phases), *(p for p in phases if p not in PHASES)]
    return [(p, phases[p], phases[p] / total if total else 0.0) for p in ordered if phases[p] > 0]


def _info(record: TrialRecord | None) -> str:
    return json.dumps(redaction.hidden(dict(record.engine_info)), indent=1) if record and record.engine_info else ""


def _environment(seen: Snapshot) -> Mapping[str, Any]:
    shown: Mapping[str, Any] = redaction.hidden({"env": seen.task.runtime.env | seen.task.ome.env})
    return dict(shown["env"])


@router.get("/experiments/{name}/trials/{trial}/plots")
def plots(site: Here, name: str, trial: str, theme: str = "light") -> Response:
    site.library.trial_folder(name, trial)
    seen = site.library.look(name)
    record = seen.trials[trial].record if trial in seen.trials else None
    drawn = trial_figures(record, seen.task.optimization.slo, engine=seen.folder.engine_series(trial))
    return plots_answer(drawn, "dark" if theme == "dark" else "light")


@router.get("/experiments/{name}/trials/{trial}/log")
def log(site: Here, name: str, trial: str, file: str = "") -> Response:
    """As it grows; without a file, the first that there is, as soon as there is one."""
    folder = site.library.trial_folder(name, trial)
    if file and file not in logs.names(folder):
        raise Unknown(f"trial {trial} has no log {file!r}")

    async def events() -> AsyncIterator[str]:
        async for event in logs.follow(folder, file, site.live):
            yield event

    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
