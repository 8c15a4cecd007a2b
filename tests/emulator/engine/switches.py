"""What an emulated engine is told besides its command line, through its environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

VARIABLE = "EMULATED_ENGINE"


@dataclass(frozen=True)
class Switches:
    """The engine's surroundings, and faults that it is to show."""

    profile: str = "llama-3.1-8b-h100"
    """A name among the profiles, or a file."""
    scale: float = 1.0
    """Virtual seconds that pass in a second while serving …"""
    load_scale: float = 1.0
    """… and while starting."""
    seed: int = 0
    node: str = ""
    gpus: int | None = None
    """GPUs that it can see; ``None``: as many as it wants."""
    address: str = ""
    """What 0.0.0.0 means: a pod has an address of its own."""
    now_s: float = 0.0
    """The cluster's time."""
    crash_at_start: str = ""
    """The last line of the traceback with which it ends, before it is ready."""
    hang_at_start: bool = False
    crash_after_requests: int | None = None
    crash_message: str = "RuntimeError: CUDA error: an illegal memory access was encountered"
    hang_after_requests: int | None = None
    error_share: float = 0.0
    error_code: int = 500
    ignore_sigterm: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that the engine runs with whatever it was told, as one that clamps or ignores a flag does."""

    def environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}


def from_environment(environment: Mapping[str, str]) -> Switches:
    """Unknown names are refused, as a TypeError."""
    said = json.loads(environment.get(VARIABLE, "{}"))
    known = {each.name for each in fields(Switches)}
    if unknown := set(said) - known:
        raise TypeError(f"{VARIABLE}: unknown: {', '.join(sorted(unknown))}")
    return Switches(**said)
