"""What the search asks of whatever proposes configurations, and what that is given to begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, ParameterValue, TrialRecord

WORST = 2.0
"""What a source is told of a configuration that cannot work: the upper end of ``objectives.scalar``."""


Expects = Callable[[Parameters], tuple[float, float] | None]
"""Before anything was measured: the logarithms of a configuration's loss, up to a constant, and of its worst metric
relative to its limit; ``None`` of one that has none."""


@dataclass(frozen=True)
class Lessons:
    """What a source is to begin with."""

    told: tuple[tuple[Parameters, float], ...] = ()
    """Configurations with their loss, when the experiment goes on."""
    open: tuple[Parameters, ...] = ()
    """Those that are being measured, or wait to be told; that comes later, under their hash."""
    first: tuple[Parameters, ...] = ()
    """What is to be tried first, best guess first; may hold what is known already, or what is not in the space."""
    free: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The parameters of which one of these says nothing, by its hash."""
    usual: Mapping[str, tuple[ParameterValue, ...]] = field(default_factory=dict)
    """What parameters are in the baseline, which gives none of them, as far as it is known (see ``Usual``)."""
    expects: Expects | None = None
    """What arithmetic alone says of a configuration, where enough is known for that."""
    ended: tuple[TrialRecord, ...] = ()
    """All there is about ``told`` and the baseline, for a ``Judge``."""


NOTHING = Lessons()


def within(space: Space, configurations: Iterable[Parameters]) -> list[Parameters]:
    """Those that are in a space and keep its constraints."""
    return [c for c in configurations if space.point(c) is not None and space.problem(c) is None]


class Source(Protocol):
    """A stream of configurations that may learn from results (smaller is better, in [0, 2])."""

    def propose(self, key: str) -> Parameters | None:
        """The next configuration under a name of the caller's, or ``None`` when there are no more."""

    def tell(self, key: str, loss: float | None) -> None:
        """How ``key`` ended; ``None`` means that nothing was learnt."""


@runtime_checkable
class Judge(Source, Protocol):
    """A source that hears every report, and has a view of it."""

    def hear(self, parameters: Parameters, result: Mapping[str, Any]) -> None:
        """Take in a trial's report (see ``proposal.report``), the baseline's too; the same one may come twice."""

    def goes_on(self, parameters: Parameters) -> bool:
        """Whether a trial is worth its next rung."""

    def hopeless(self) -> str | None:
        """Why it expected nothing of what it proposed last, nor does of anything now; ``None`` where it does."""
