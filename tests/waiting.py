"""Waiting for a condition in a test, with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Return when the condition holds; fail when it does not within the bound."""
    assert happens(condition, seconds), f"not within {seconds} s"


def happens(condition: Callable[[], object], seconds: float) -> bool:
    """Whether the condition holds within the bound; returns as soon as it does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
