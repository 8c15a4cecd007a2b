"""Who may ask what: host names, tokens, the origin of changes, sizes, and what browsers are told not to do.

One piece of middleware before everything else, so that no page or answer can forget it.
"""

from __future__ import annotations

import hmac
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytune_autotuner.web.problems import problem
from raytune_autotuner.web.settings import Settings, host_names, is_address, is_loopback

MAX_BODY_BYTES = 1024 * 1024
COOKIE = "raytune_autotuner_session"
SESSION_S = 12 * 3600
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = ("/static/", "/login", "/healthz")
"""What is shown to everyone: nothing of it depends on any experiment."""
CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Plotly writes rules into the page; scripts stay ours alone
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class BodyTooLarge(HTTPException):
    """More was sent than any task is; of a kind that nobody on the way takes for a fault of the form."""


class Sessions:
    """Who has come in: what browsers keep in place of the token, until they sign out or the server ends."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def begin(self, now: float) -> str:
        for old in [value for value, until in [*self._until.items()] if until <= now]:
            self.end(old)
        value = secrets.token_urlsafe(32)
        self._until[value] = now + SESSION_S
        return value

    def fits(self, value: str, now: float) -> bool:
        return self._until.get(value, 0.0) > now

    def end(self, value: str) -> None:
        self._until.pop(value, None)


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, settings: Settings, sessions: Sessions) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions
        self._hosts = host_names(settings.host) | {name.lower() for name in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope, Headers(scope=scope))
        if refusal is not None:
            await refusal(scope, receive, with_headers(send, scope))
            return
        try:
            await self._app(scope, bounded(receive), with_headers(send, scope))
        except BodyTooLarge:
            await too_large()(scope, receive, with_headers(send, scope))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """What is answered instead, in the order in which it matters."""
        method, path = scope["method"], scope["path"]
        if not self._knows(headers.get("host", "")):
            return problem(421, "This server does not go by that name; start it with --allow-host NAME")
        if not _length_is_fine(headers):
            return too_large()
        if method not in SAFE_METHODS and not comes_from_here(headers):
            return problem(403, "A change must come from a page of this server")
        if self._settings.token is None or path.startswith(OPEN_PATHS) or self._has_token(headers):
            return None
        if method == "GET" and "text/html" in headers.get("accept", "") and not headers.get("hx-request"):
            return RedirectResponse("/login", 303)
        return problem(401, "A token is needed", headers={"WWW-Authenticate": "Bearer"})

    def _knows(self, host: str) -> bool:
        """Whether a Host header names this server: a page of another name, pointed here, must not reach it."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or (not is_loopback(self._settings.host) and is_address(name))

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and token_fits(self._settings, given.strip()):
            return True
        return self._sessions.fits(cookie(headers), time.time())


def comes_from_here(headers: Headers) -> bool:
    """Whether a request is not one that another site's page made a browser send.

    Browsers say so in ``Sec-Fetch-Site`` and ``Origin``, which no script can set. Programs send neither; they
    send no cookies of their own accord either, so there is nothing to forge.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return False
    return origin is None or urlsplit(origin).netloc == headers.get("host") != ""


def token_fits(settings: Settings, given: str) -> bool:
    return settings.token is not None and hmac.compare_digest(settings.token.encode(), given.encode())


def cookie(headers: Headers) -> str:
    try:
        return SimpleCookie(headers.get("cookie", ""))[COOKIE].value
    except (KeyError, CookieError):
        return ""


def _length_is_fine(headers: Headers) -> bool:
    length = headers.get("content-length", "0")
    return length.isdecimal() and int(length) <= MAX_BODY_BYTES


def bounded(receive: Receive) -> Receive:
    """Stops reading when more comes than was said, or than is taken."""
    taken = 0

    async def receive_some() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise BodyTooLarge(413, f"At most {MAX_BODY_BYTES} bytes are taken")
        return message

    return receive_some


def too_large() -> Response:
    return problem(413, f"At most {MAX_BODY_BYTES} bytes are taken")


def with_headers(send: Send, scope: Scope) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            lasting = scope["path"].startswith("/static/") and message["status"] == 200
            headers.setdefault("Cache-Control", "public, max-age=3600" if lasting else "no-store")
        await send(message)

    return send_more
