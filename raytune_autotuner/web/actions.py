"""What the buttons of an experiment do, and what can be taken away from it."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from raytune_autotuner import report as reports
from raytune_autotuner.errors import SpecError
from raytune_autotuner.export import export
from raytune_autotuner.plots import Theme
from raytune_autotuner.web.downloads import archive
from raytune_autotuner.web.figures import experiment_plots
from raytune_autotuner.web.library import Unknown
from raytune_autotuner.web.pages import Here
from raytune_autotuner.web.reader import Part, Snapshot
from raytune_autotuner.web.site import Site

router = APIRouter(include_in_schema=False)
DOWNLOAD = "attachment; filename={}"


def stop_experiment(site: Site, name: str) -> Snapshot:
    """Ask an experiment to end in order.

    Raises:
        SpecError: it does not run.
    """
    seen = site.library.look(name)
    if not seen.is_running:
        raise SpecError.single("name", f"{name} is not running", "stop")
    site.library.folder(name).request_stop()
    return site.library.look(name)


def resume_experiment(site: Site, name: str) -> None:
    """Go on with an experiment.

    Raises:
        SpecError: it runs, or is done.
    """
    seen = site.library.look(name)
    if seen.is_running or seen.state == "done":
        raise SpecError.single("name", f"{name} is {seen.state}: there is nothing to resume", "resume")
    site.launcher.resume(name)


@router.post("/experiments/{name}/stop")
def stop(site: Here, name: str) -> Response:
    stop_experiment(site, name)
    return RedirectResponse(f"/experiments/{name}", 303)


@router.post("/experiments/{name}/resume")
def resume(site: Here, name: str) -> Response:
    resume_experiment(site, name)
    return RedirectResponse(f"/experiments/{name}", 303)


@router.post("/launches/{name}/dismiss")
def dismiss(site: Here, name: str) -> Response:
    site.library.checked(name)
    site.launcher.dismiss(name)
    return RedirectResponse("/experiments", 303)


@router.get("/experiments/{name}/plots")
def plots(site: Here, name: str, theme: Theme = "light", part: Part = "quick") -> Response:
    """The figures for plotly.js, by name; those that take seconds are asked for by themselves."""
    return experiment_plots(site.library.look(name), part, theme)


@router.get("/experiments/{name}/manifest")
def manifest(site: Here, name: str) -> Response:
    seen = site.library.look(name)
    if seen.results.recommended is None:
        raise Unknown(f"{name} has no configuration to recommend yet")
    ending = "sh" if seen.task.backend == "local" else "yaml"
    headers = {"Content-Disposition": DOWNLOAD.format(f"{name}.{ending}")}
    return Response(export(site.library.folder(name)), headers=headers, media_type="text/plain")


@router.get("/experiments/{name}/report")
def report(site: Here, name: str) -> Response:
    """As a file: its scripts are its own, which no page of this server may have."""
    headers = {"Content-Disposition": DOWNLOAD.format(f"{name}.html")}
    text = reports.FORMATS["html"](reports.read(site.library.folder(name)))
    return Response(text, headers=headers, media_type="text/html")


@router.get("/experiments/{name}/download")
def download(site: Here, name: str, request: Request) -> Response:
    folder = site.library.folder(name)

    def pieces() -> Iterator[bytes]:
        yield from archive(folder)

    headers = {"Content-Disposition": DOWNLOAD.format(f"{name}.zip")}
    return StreamingResponse(pieces(), headers=headers, media_type="application/zip")
