"""What an engine's log and exit code say of why it failed."""

from __future__ import annotations

import re
import signal

from raytune_autotuner.engines.engine import Engine, FailurePattern
from raytune_autotuner.records import Failure

REASON_LENGTH = 300
"""Characters of a log line that are kept as a failure's reason."""


def classify(engine: Engine, log_tail: str, exit_code: int | None) -> Failure:
    """What kind of failure the end of an engine's log tells; the first pattern of the file that matches decides."""
    for failure in engine.failures:
        if found := list(re.finditer(failure.pattern, log_tail, re.IGNORECASE)):
            return Failure(failure.kind, _line(log_tail, found[-1].start()), log_tail, failure.hint)
    return Failure("crash", _ending(exit_code), log_tail, _ending_hint(exit_code))


def pattern_of(engine: Engine, failure: Failure) -> FailurePattern | None:
    """The pattern by which a failure was told; ``None`` when it was not told by the engine's log."""
    return next(
        (p for p in engine.failures if p.kind == failure.kind and re.search(p.pattern, failure.reason, re.IGNORECASE)),
        None,
    )


def _line(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    line, _, _ = text[start:].partition("\n")
    return line.strip()[:REASON_LENGTH]


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "the engine failed"
    if exit_code >= 0:
        return f"the engine ended with exit code {exit_code}"
    try:
        return f"the engine was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"the engine was ended by signal {-exit_code}"


def _ending_hint(exit_code: int | None) -> str:
    return "nobody said so, but the kernel ends processes like this when memory runs out" if exit_code == -9 else ""
