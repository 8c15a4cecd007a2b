"""The REST API: the same as the pages, for programs. ``/openapi.json`` describes it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from raytune_autotuner import redaction
from raytune_autotuner.records import EXPERIMENT_NAME, to_json
from raytune_autotuner.results_file import document, trials_csv
from raytune_autotuner.task.spec import json_schema
from raytune_autotuner.web import drafts, logs, tables
from raytune_autotuner.web.actions import resume_experiment, stop_experiment
from raytune_autotuner.web.launching import new_name
from raytune_autotuner.web.library import TRIAL_NAME, Unknown
from raytune_autotuner.web.live import ALL
from raytune_autotuner.web.models import (
    ExperimentAnswer,
    ExperimentDetail,
    Experiments,
    LogAnswer,
    PlanAnswer,
    Started,
    StartRequest,
    TaskText,
    TrialAnswer,
    Trials,
    Validation,
)
from raytune_autotuner.web.pages import Here, stream
from raytune_autotuner.web.problems import ProblemDetails

PROBLEM: dict[str, Any] = {"model": ProblemDetails}
router = APIRouter(
    prefix="/api/v1",
    responses=dict.fromkeys((401, 403, 404, 409, 413, 422, 503), PROBLEM),
)
Name = Annotated[str, Path(pattern=f"^{EXPERIMENT_NAME.pattern}$", max_length=120)]
TrialName = Annotated[str, Path(pattern=f"^{TRIAL_NAME.pattern}$", max_length=60)]
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "`changed` events, whose data is the new version"}
}


@router.get("/tasks/schema", tags=["tasks"])
def task_schema() -> dict[str, Any]:
    """The JSON Schema of the task file."""
    return json_schema()


@router.post("/tasks/validate", tags=["tasks"])
def validate(task: TaskText) -> Validation:
    """Everything that is wrong with a task, and its plan when nothing is. Starts nothing."""
    draft = drafts.check(task.text)
    plan = PlanAnswer.of(draft.plan) if draft.plan else None
    return Validation(valid=draft.is_valid, faults=list(draft.faults), plan=plan)


@router.post("/tasks/plan", tags=["tasks"])
def plan(task: TaskText) -> PlanAnswer:
    """The plan of a valid task; 422 with the faults of any other. Starts nothing."""
    draft = drafts.checked(task.text)
    assert draft.plan is not None
    return PlanAnswer.of(draft.plan)


@router.get("/experiments", tags=["experiments"])
def experiments(
    site: Here, state: Literal["running", "stopping", "interrupted", "done", "unreadable"] | None = None
) -> Experiments:
    """All experiments, the last begun first."""
    cards = (card for card in site.cards.all() if state is None or card.state == state)
    return Experiments(experiments=[ExperimentAnswer.of(card) for card in cards])


@router.post("/experiments", status_code=202, tags=["experiments"])
def start(site: Here, order: StartRequest) -> Started:
    """Start a task as a new experiment on the server's machine."""
    draft = drafts.checked(order.text)
    assert draft.task is not None
    name = order.name or new_name(draft.task.task_name, site.settings.storage)
    site.launcher.start(name, order.text)
    return Started(name=name)


@router.get("/experiments/{name}", tags=["experiments"])
def experiment(site: Here, name: Name) -> ExperimentDetail:
    """An experiment with its answer so far."""
    return ExperimentDetail.of(site.library.look(name))


@router.get("/experiments/{name}/results", tags=["experiments"])
def results(site: Here, name: Name) -> dict[str, Any]:
    """What ``results.json`` says, worked out now."""
    found: dict[str, Any] = json.loads(json.dumps(document(site.library.look(name).results, {}), default=str))
    shown: dict[str, Any] = redaction.hidden(found)
    return shown


@router.get("/experiments/{name}/trials.csv", tags=["trials"], response_class=Response)
def csv(site: Here, name: Name) -> Response:
    """One row per trial."""
    return Response(trials_csv(site.library.look(name).results), media_type="text/csv")


@router.post("/experiments/{name}/stop", status_code=202, tags=["experiments"])
def stop(site: Here, name: Name) -> ExperimentDetail:
    """Ask an experiment to end in order: no new trials, running ones torn down, results written."""
    return ExperimentDetail.of(stop_experiment(site, name))


@router.post("/experiments/{name}/resume", status_code=202, tags=["experiments"])
def resume(site: Here, name: Name) -> Started:
    """Go on with an experiment that was interrupted, on the server's machine."""
    resume_experiment(site, name)
    return Started(name=name)


@router.get("/experiments/{name}/trials", tags=["trials"])
def trials(
    site: Here,
    name: Name,
    q: Annotated[str, Query(max_length=200)] = "",
    standing: Annotated[str, Query(max_length=40)] = "",
    purpose: Annotated[str, Query(max_length=40)] = "",
    sort: Annotated[str, Query(max_length=100, description="number, score, metric:NAME, parameter:NAME …")] = "number",
    order: Literal["asc", "desc"] = "asc",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=tables.LARGEST_PAGE)] = tables.PAGE_SIZE,
) -> Trials:
    """A page of the trials of an experiment."""
    wanted = tables.Query(q, standing, purpose, sort, order == "desc", page, size)
    found = tables.page(tables.rows(site.library.look(name)), wanted)
    return Trials(
        trials=[TrialAnswer.of(row) for row in found.rows], total=found.total, page=found.page, pages=found.pages
    )


@router.get("/experiments/{name}/trials/{trial}", tags=["trials"])
def trial(site: Here, name: Name, trial: TrialName) -> dict[str, Any]:
    """The record of a trial that has ended, or the state of one that runs."""
    seen = site.library.look(name)
    known = seen.trials.get(trial)
    found = (known.record or known.state) if known else None
    if found is None:
        raise Unknown(f"experiment {name} has no trial {trial}")
    shown: dict[str, Any] = redaction.hidden(json.loads(to_json(found)))
    return shown


@router.get("/experiments/{name}/trials/{trial}/log", tags=["trials"])
def log(
    site: Here, name: Name, trial: TrialName, file: Annotated[str, Query(max_length=200)] = "engine.log"
) -> LogAnswer:
    """The end of a log of a trial."""
    folder = site.library.trial_folder(name, trial)
    files = logs.names(folder)
    text = logs.Growing(folder, file).news(last=True) if file in files else ""
    return LogAnswer(file=file, files=files, text=text)


@router.get("/events", tags=["events"], response_class=StreamingResponse, responses=EVENTS)
def events(request: Request, site: Here, since: Annotated[str, Query(max_length=100)] = "") -> StreamingResponse:
    """Says when anything about the list of experiments has changed (server-sent events)."""
    return stream(site, ALL, request.headers.get("last-event-id", since))


@router.get("/experiments/{name}/events", tags=["events"], response_class=StreamingResponse, responses=EVENTS)
def experiment_events(
    request: Request, site: Here, name: Name, since: Annotated[str, Query(max_length=100)] = ""
) -> StreamingResponse:
    """Says when anything about an experiment has changed (server-sent events)."""
    site.library.folder(name)
    return stream(site, name, request.headers.get("last-event-id", since))
