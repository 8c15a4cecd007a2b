"""Coming in with the token: it is sent once, in a form, and stays out of addresses and of the browser's reach."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from raytune_autotuner.web.security import COOKIE, SESSION_S, cookie, token_fits
from raytune_autotuner.web.site import the_site
from raytune_autotuner.web.templating import page

router = APIRouter(include_in_schema=False)


@router.get("/login")
def login_page(request: Request) -> HTMLResponse:
    return page(request, "login.html", wrong=False)


@router.post("/login")
def login(request: Request, token: Annotated[str, Form(max_length=1000)]) -> Response:
    site = the_site(request)
    if not token_fits(site.settings, token.strip()):
        return page(request, "login.html", 401, wrong=True)
    answer = RedirectResponse("/experiments", 303)
    answer.set_cookie(
        COOKIE,
        site.sessions.begin(time.time()),
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=site.settings.behind_tls,
    )
    return answer


@router.post("/logout")
def logout(request: Request) -> Response:
    site = the_site(request)
    site.sessions.end(cookie(request.headers))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=site.settings.behind_tls)
    return answer
