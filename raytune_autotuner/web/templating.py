"""The templates of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from raytune_autotuner import __version__, redaction
from raytune_autotuner.web.words import FILTERS

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters.update(FILTERS)
templates.filters["unsecret"] = redaction.text
templates.globals["app_version"] = __version__


def page(request: Request, template: str, code: int = 200, **values: Any) -> HTMLResponse:
    """A page from its template."""
    site = request.app.state.site
    known = {"request": request, "open_to_all": site.settings.open_to_all, "path": request.url.path}
    return HTMLResponse(templates.get_template(template).render(**known, **values), code)
