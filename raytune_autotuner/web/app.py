"""The application: what is served, and how errors become answers."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response

from raytune_autotuner import __version__
from raytune_autotuner.errors import EnvironmentFault, SpecError, TransientError
from raytune_autotuner.web import actions, api, login, new_task, pages, trial_pages
from raytune_autotuner.web.launching import Launcher
from raytune_autotuner.web.library import Unknown
from raytune_autotuner.web.pages import error_page
from raytune_autotuner.web.problems import Fault, of_spec_error, problem
from raytune_autotuner.web.reader import Unreadable
from raytune_autotuner.web.security import Guard
from raytune_autotuner.web.settings import Settings
from raytune_autotuner.web.site import Site

FOLDER = Path(__file__).parent


def create_app(settings: Settings, launcher: Launcher | None = None) -> FastAPI:
    site = Site.of(settings, launcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=site.read_latest, name="read-latest", daemon=True).start()
        yield
        site.live.close()

    app = FastAPI(
        title="raytune-autotuner",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,  # a Location would be made of the Host header
        docs_url=None,  # those pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.site = site
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=3)
    app.add_middleware(Guard, settings=settings, sessions=site.sessions)
    app.mount("/static/plotly", StaticFiles(packages=[("plotly", "package_data")]), name="plotly")
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    for router in (pages.router, trial_pages.router, actions.router, new_task.router, login.router, api.router):
        app.include_router(router)
    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    async def spec(request: Request, error: Exception) -> Response:
        assert isinstance(error, SpecError)
        return of_spec_error(error) if wants_data(request) else error_page(request, 422, str(error))

    def plain(status: int) -> object:
        async def answer(request: Request, error: Exception) -> Response:
            return problem(status, str(error)) if wants_data(request) else error_page(request, status, str(error))

        return answer

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if wants_data(request):
            return problem(error.status_code, str(error.detail), headers=error.headers)
        return error_page(request, error.status_code, str(error.detail))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = [Fault(place=".".join(map(str, each["loc"])), message=each["msg"]) for each in error.errors()]
        if wants_data(request):
            return problem(422, "The request is not valid", faults)
        return error_page(request, 422, "\n".join(f"{fault.place}: {fault.message}" for fault in faults))

    app.add_exception_handler(SpecError, spec)
    for kind, status in ((Unknown, 404), (Unreadable, 409), (EnvironmentFault, 503), (TransientError, 503)):
        app.add_exception_handler(kind, plain(status))  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def wants_data(request: Request) -> bool:
    """Whether a program asks, and not a browser for a page."""
    return request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", "")
