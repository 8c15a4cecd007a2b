"""What a request asks for on its way in: admission hooks and the options of a deletion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.emulator.api.kinds import Kind, Object


@dataclass
class Admission:
    """What an admission hook sees; a mutating one changes ``object`` in place."""

    kind: Kind
    operation: str
    """CREATE, UPDATE or DELETE."""
    object: Object
    old: Object | None
    subresource: str = ""
    dry_run: bool = False


Hook = Callable[[Admission], None]


@dataclass(frozen=True)
class Deletion:
    """The options of a DELETE."""

    grace_s: int | None = None
    propagation: str | None = None
    """Background, Foreground or Orphan; None: the default of the kind."""
    uid: str | None = None
    version: str | None = None
    dry_run: bool = False
