"""What an engine keeps from one request to the next, and how it is told to forget."""

from __future__ import annotations

import time

import requests

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.engine import CacheReset

PAUSE_S = 0.25
BUSY = (400, 409, 423, 425, 429, 503)
"""SGLang answers 400 while a request is in flight: those of a client that has just ended are still being given up."""


def reset(url: str, way: CacheReset, api_key: str | None, deadline: Deadline) -> str | None:
    """Empty the engine's caches; why they may not be empty, in words, when that cannot be had."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with requests.Session() as session:
        session.trust_env = False
        while True:
            said, again = _ask(session, f"{url.rstrip('/')}{way.path}", way.method, headers, deadline)
            if said is None:
                return None
            if not again or deadline.expired:
                return f"{way.method} {way.path}: {said}" + (f" ({way.hint})" if way.hint and not again else "")
            time.sleep(PAUSE_S)


def _ask(
    session: requests.Session, url: str, method: str, headers: dict[str, str], deadline: Deadline
) -> tuple[str | None, bool]:
    """What is wrong, and whether it may be right a moment later."""
    try:
        answer = session.request(method, url, headers=headers, timeout=max(0.1, deadline.remaining()))
    except requests.RequestException as error:
        return type(error).__name__, True
    return (None, False) if answer.ok else (f"HTTP {answer.status_code}", answer.status_code in BUSY)
