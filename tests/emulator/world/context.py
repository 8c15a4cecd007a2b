"""What all parts of the world share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.emulator.api.store import Store
from tests.emulator.engine.switches import Switches
from tests.emulator.world.faults import Faults
from tests.emulator.world.loop import Loop


@dataclass
class Context:
    """The cluster's API, time, faults and folders. Durations in signatures are cluster seconds unless they say."""

    store: Store
    loop: Loop
    faults: Faults
    folder: Path
    time_scale: float
    """Cluster seconds that pass in a second, for all but serving …"""
    engine_scale: float
    """… and for serving."""
    profile: str
    profiles: Mapping[str, str] = field(default_factory=dict)
    """Profile by model name, where it is not ``profile``."""
    programs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pull_s: float = 8.0
    seed: int = 0
    _pod_addresses: Iterator[str] = field(default_factory=lambda: iter(()), repr=False)
    _starts: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def after(self, seconds: float, key: Hashable, work: Callable[[], None]) -> None:
        """Do this after so many cluster seconds."""
        self.loop.after(seconds / self.time_scale, key, work)

    def pod_address(self) -> str:
        """An address of this machine that nothing else in the cluster has."""
        return next(self._pod_addresses)

    def switches(self, model: str, node: str) -> Switches:
        """What a new engine is told; each start has its own luck."""
        return Switches(
            profile=self.profiles.get(model, self.profile),
            scale=self.engine_scale,
            load_scale=self.time_scale,
            seed=self.seed * 1_000_003 + next(self._starts),
            node=node,
        )
