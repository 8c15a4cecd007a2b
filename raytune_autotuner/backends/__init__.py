"""Where engines run. A backend starts one engine, watches it and always ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.records import Endpoint, Parameters, TrialId

Progress = Callable[[str, str], None]
"""Called as ``progress(phase, detail)`` (deploy, load …) about once a second while a start waits, news or not; what it
raises ends the start."""


@dataclass(frozen=True)
class Deployment:
    """One configuration, ready to be started."""

    experiment: str
    trial: TrialId
    engine: Engine
    parameters: Parameters
    argv: tuple[str, ...]
    """Command and arguments in full. ``{host}`` and ``{port}`` as whole arguments are the backend's to fill."""
    served_name: str
    gpus: int
    folder: Path
    """A local folder of the trial's own; the backend keeps its logs here."""
    env: Mapping[str, str] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    """OME: the InferenceService to deploy, in place of one that is made from the rest."""


class Backend(Protocol):
    """One engine's lifetime. An object serves one trial and is used from one thread.

    ``stop`` is called on every path, also when ``start`` raised or never ran.
    """

    def start(self, deployment: Deployment, deadline: Deadline, progress: Progress) -> Endpoint:
        """Start the engine and wait until it answers.

        Raises:
            TrialInfeasible: this configuration cannot start (class, reason, log tail).
            TransientError: the infrastructure failed; a fresh start may work.
            EnvironmentFault: the machine lacks something that no retry brings.
        """

    def check(self) -> None:
        """Raise what ``start`` would if the engine has ended or been lost since; cheap, called often."""

    def stop(self, deadline: Deadline) -> bool:
        """End the engine and wait until it holds nothing any more. Idempotent.

        Returns whether an earlier worker had left an engine, which held its GPUs until this one found it.

        Raises:
            TransientError: something is still there when the deadline is over.
        """
