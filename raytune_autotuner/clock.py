"""Where the time of a trial goes."""

from __future__ import annotations

import time


class Clock:
    """Seconds spent per phase; entering a phase ends the one before."""

    def __init__(self, start: dict[str, float]) -> None:
        self.seconds = dict(start)
        self._phase = "idle"
        self._since = time.monotonic()

    def enter(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book ``seconds`` of a phase that is over under another one."""
        self.add(source, -seconds)
        self.add(target, seconds)

    def add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def rounded(self) -> dict[str, float]:
        return {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}
