"""The pages about experiments: the list, one experiment, and the stream that tells of changes."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from raytune_autotuner import redaction
from raytune_autotuner.objectives import goal
from raytune_autotuner.plots import overlay
from raytune_autotuner.summary import gain
from raytune_autotuner.web import tables
from raytune_autotuner.web.cards import STATES, Card, workload
from raytune_autotuner.web.figures import plots_answer
from raytune_autotuner.web.live import ALL, message
from raytune_autotuner.web.reader import Snapshot
from raytune_autotuner.web.site import Site, overall_version, the_site
from raytune_autotuner.web.templating import page
from raytune_autotuner.web.words import score_unit

router = APIRouter(include_in_schema=False)
Here = Annotated[Site, Depends(the_site)]


def error_page(request: Request, status: int, detail: str) -> HTMLResponse:
    return page(request, "error.html", status, status=status, detail=detail)


@router.get("/")
def home() -> Response:
    return RedirectResponse("/experiments", 303)


@router.get("/healthz")
def healthz() -> Response:
    return Response("ok", media_type="text/plain")


@router.get("/experiments")
def experiments(request: Request, site: Here, q: str = "", state: str = "") -> HTMLResponse:
    cards = site.cards.all()
    shown = [card for card in cards if _card_fits(card, q, state)]
    return page(
        request,
        "experiments.html",
        cards=shown,
        total=len(cards),
        states=[(each, sum(card.state == each for card in cards)) for each in STATES],
        q=q,
        state=state,
        storage=site.settings.storage.location(),
        version=overall_version(site.cards, site.launcher),
        launches=site.launcher.launches(),
    )


def _card_fits(card: Card, text: str, state: str) -> bool:
    said = f"{card.name} {card.model} {card.engine} {card.objective}".lower()
    return (not state or card.state == state) and all(word in said for word in text.lower().split())


@router.get("/experiments/{name}")
def experiment(
    request: Request,
    site: Here,
    name: str,
    q: str = "",
    standing: str = "",
    purpose: str = "",
    sort: str = "number",
    order: str = "desc",
    number: Annotated[int, Query(alias="page", ge=1, le=10**6)] = 1,
) -> HTMLResponse:
    launch = site.launcher.launch(site.library.checked(name))
    if launch is not None and not site.settings.storage.exists(f"{name}/task.json"):
        return page(request, "launch.html", launch=launch, version=overall_version(site.cards, site.launcher))
    seen = site.library.look(name)
    rows = tables.rows(seen)
    wanted = tables.Query(q, standing, purpose, sort, order != "asc", number)
    return page(
        request,
        "experiment.html",
        seen=seen,
        results=seen.results,
        gain=_gain(seen),
        table=tables.page(rows, wanted),
        columns=_columns(rows),
        links=TableLinks(f"/experiments/{name}", wanted),
        standings=tables.STANDINGS,
        location=site.settings.storage.location(name),
        command=_command(seen),
        launch=launch,
        ray_address=site.settings.ray_address,
    )


def _command(seen: Snapshot) -> str:
    recommended = seen.results.recommended
    return shlex.join(map(str, redaction.command_line(recommended.argv))) if recommended else ""


def _gain(seen: Snapshot) -> float | None:
    baseline = seen.results.baseline
    if seen.best is None or baseline is None or baseline.score is None or baseline is seen.results.winner:
        return None
    return gain(seen.best, baseline.score)


def _columns(rows: Sequence[tables.Row]) -> Mapping[str, Any]:
    """Metrics and parameters that have a column each, and the unit of the scores."""
    metrics = [name for name in tables.METRICS if any(name in row.metrics for row in rows)]
    unit = next((score_unit(row.score) for row in rows if row.score), "")
    return {"metrics": metrics, "parameters": tables.parameter_columns(rows), "unit": unit}


class TableLinks:
    """Addresses of the same table in another order, or of another page of it."""

    def __init__(self, path: str, query: tables.Query) -> None:
        self._path, self._query = path, query

    def sort(self, key: str) -> str:
        """The order by a column; the other way round where it is in that order already."""
        query = self._query
        descending = not query.descending if query.sort == key else key in ("number", "score") or ":" not in key
        return self._to(sort=key, order="desc" if descending else "asc", page=1)

    def page(self, number: int) -> str:
        return self._to(page=number)

    def direction(self, key: str) -> str:
        """For ``aria-sort``."""
        if self._query.sort != key:
            return "none"
        return "descending" if self._query.descending else "ascending"

    def _to(self, **changes: Any) -> str:
        query = self._query
        values: dict[str, Any] = {
            "q": query.text,
            "standing": query.standing,
            "purpose": query.purpose,
            "sort": query.sort,
            "order": "desc" if query.descending else "asc",
            "page": query.page,
        }
        return f"{self._path}?{urlencode({k: v for k, v in (values | changes).items() if v not in ('', None)})}#trials"


@router.get("/live")
def live_list(request: Request, site: Here, since: str = "") -> Response:
    return stream(site, ALL, request.headers.get("last-event-id", since))


@router.get("/experiments/{name}/live")
def live_experiment(request: Request, site: Here, name: str, since: str = "") -> Response:
    site.library.folder(name)
    return stream(site, name, request.headers.get("last-event-id", since))


def stream(site: Site, name: str, since: str) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        async for version in site.live.changes(name, since):
            yield message("changed", version, version) if version else ": still there\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.get("/compare")
def compare(
    request: Request, site: Here, experiment: Annotated[list[str] | None, Query(max_length=8)] = None
) -> Response:
    """Several experiments side by side."""
    chosen = _chosen(site, experiment)
    if len(chosen) < 2:
        return page(request, "compare.html", chosen=chosen)
    names = sorted(
        {name for seen in chosen if seen.results.recommended for name in seen.results.recommended.parameters}
    )
    return page(
        request,
        "compare.html",
        chosen=chosen,
        workloads={workload(seen.task) for seen in chosen},
        goals={goal(seen.task.optimization) for seen in chosen},
        limits={tuple(sorted(seen.task.optimization.slo.items())) for seen in chosen},
        query=urlencode([("experiment", seen.name) for seen in chosen]),
        names=names,
        values={name: _values(chosen, name) for name in names},
    )


@router.get("/compare/plots")
def compare_plots(
    site: Here, experiment: Annotated[list[str] | None, Query(max_length=8)] = None, theme: str = "light"
) -> Response:
    drawn = overlay([seen.results for seen in _chosen(site, experiment)])
    return plots_answer(drawn, "dark" if theme == "dark" else "light")


def _chosen(site: Site, names: Sequence[str] | None) -> list[Snapshot]:
    return [site.library.look(name) for name in dict.fromkeys(names or ())]


def _values(chosen: Sequence[Snapshot], name: str) -> list[Any]:
    """Of the recommended configurations; empty where it leaves the parameter alone."""
    best = (seen.results.recommended for seen in chosen)
    return [record.parameters.get(name, "") if record else "–" for record in best]


@router.get("/api")
def api_page(request: Request) -> HTMLResponse:
    """The API in short; its description is at /openapi.json."""
    described = request.app.openapi()["paths"]
    calls = [
        (method.upper(), path, str(said.get("description") or said.get("summary") or "").replace("``", ""))
        for path, methods in described.items()
        for method, said in methods.items()
    ]
    return page(request, "api.html", calls=calls)
