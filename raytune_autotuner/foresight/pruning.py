"""Configurations that must fail because a better one has failed already.

An engine file says of a failure which way a parameter makes it worse, and what plays no part in it
(``engines.engine.FailurePattern``). Whatever lies further that way than a configuration that has failed, and is equal
in all else that counts, is not tried. A trial that worked where the evidence says that it cannot makes it void. Where
nodes have GPUs of several kinds, what failed on one may work on another: then it must have failed on each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from raytune_autotuner.engines.engine import Engine, FailurePattern, Worse
from raytune_autotuner.engines.failures import pattern_of
from raytune_autotuner.errors import FailureClass
from raytune_autotuner.foresight.cases import Case
from raytune_autotuner.foresight.launch import Launch, Values
from raytune_autotuner.records import Failure, Parameters

REPEATABLE: frozenset[FailureClass] = frozenset({"out_of_memory", "bad_flag", "unsupported"})
"""Failures that come again with the same command line; others may have been chance."""
ON_ANY_GPU: frozenset[FailureClass] = frozenset({"bad_flag"})
"""Failures that do not depend on the GPU."""
FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
SHOWN = 120


@dataclass(frozen=True)
class Evidence:
    """A failure, and which configurations must share its fate."""

    case: Case
    failure: Failure
    values: Values
    worse: Mapping[str, Worse]
    only: frozenset[str] | None
    """The parameters that alone decide; ``None``: all but ``without_part``."""
    without_part: frozenset[str]
    unlimited: Mapping[str, float]

    def covers(self, values: Values) -> bool:
        """Whether a configuration is at least as bad in everything that counts."""
        return all(self._further(name, values.get(name)) for name in self.differing(values))

    def differing(self, values: Values) -> list[str]:
        """What counts and is not the same."""
        names = {name for name, _ in values.items() ^ self.values.items()} - self.without_part
        return sorted(names if self.only is None else names & self.only)

    def _further(self, name: str, value: object) -> bool:
        way = self.worse.get(name)
        size, at = self._size(name, value), self._size(name, self.values.get(name))
        if way is None or size is None or at is None:
            return False
        return size > at if way == "higher" else size < at

    def _size(self, name: str, value: object) -> float | None:
        """Amounts are above zero; what is not may mean anything (-1: no limit, 0: the engine's choice)."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if value == self.unlimited.get(name):
            return math.inf
        return float(value) if value > 0 else None


class Pruner:
    """What the trials of an experiment that have ended say of those to come.

    ``cases`` are all of them, in any order; those that were never started (pruned, no fit) say nothing. A simulation
    makes them itself: the trial's name and parameters, its outcome, whether the engine got ready, and the failure with
    the last line of the engine's log in ``reason``, by which its pattern in the engine file is found. ``kinds`` says
    which GPUs a node has, by its name, for all nodes that trials may go to.
    """

    def __init__(self, launch: Launch, cases: Iterable[Case], kinds: Mapping[str, str] | None = None) -> None:
        self._launch = launch
        self._cases = tuple(cases)
        self._kinds = kinds or {}

    def problem(self, parameters: Parameters) -> Failure | None:
        """Why a configuration must fail, with the evidence; ``None`` when nothing says so."""
        values = self._launch.values(parameters)
        covering = [evidence for evidence in self.evidence if evidence.covers(values)]
        if not self._on_every_kind(covering):
            covering = [evidence for evidence in covering if evidence.failure.kind in ON_ANY_GPU]
        return _refusal(covering[0], values) if covering else None

    def _on_every_kind(self, covering: Sequence[Evidence]) -> bool:
        kinds = set(self._kinds.values())
        return len(kinds) < 2 or kinds <= {self._kinds.get(evidence.case.node or "") for evidence in covering}

    @cached_property
    def evidence(self) -> tuple[Evidence, ...]:
        """Of all failures that no success contradicts."""
        return tuple(e for case in self._cases for e in self._evidence(case) if not self._contradicted(e))

    def _evidence(self, case: Case) -> Iterator[Evidence]:
        failure = case.failure
        if case.outcome != "infeasible" or failure is None:
            return
        engine = self._launch.engine
        values = self._launch.values(case.parameters)
        pattern = _holding(pattern_of(engine, failure), values)
        if failure.kind not in REPEATABLE and not (pattern and pattern.worse):
            return
        late = frozenset() if case.started else _late(engine, failure)
        yield Evidence(
            case=case,
            failure=failure,
            values=values,
            worse=pattern.worse if pattern else {},
            only=_only(engine, pattern, failure, values),
            without_part=late.union(pattern.without).difference(pattern.worse) if pattern else late,
            unlimited={name: p.unlimited for name, p in engine.parameters.items() if p.unlimited is not None},
        )

    def _contradicted(self, evidence: Evidence) -> bool:
        return any(
            _came_further(case, evidence.case) and evidence.covers(self._launch.values(case.parameters))
            for case in self._cases
        )


def _came_further(case: Case, than: Case) -> bool:
    return case.outcome == "completed" or case.rungs > than.rungs or (case.started and not than.started)


def _holding(pattern: FailurePattern | None, values: Values) -> FailurePattern | None:
    """The pattern, where what it needs is said."""
    said = pattern is not None and all(values.get(name) is not None for name in pattern.needs)
    return pattern if said else None


def _only(engine: Engine, pattern: FailurePattern | None, failure: Failure, values: Values) -> frozenset[str] | None:
    """The parameters that alone decide: those that the file names, or those whose flags the message names."""
    if pattern is None:
        return None
    if pattern.only != "named":
        return frozenset(pattern.only) or None
    flags = {flag.replace("_", "-") for flag in FLAG.findall(failure.reason)}
    known = {name for name, p in engine.parameters.items() if p.flags & flags}
    return frozenset(known | {name for name in values if name.replace("_", "-") in flags}) or None


def _late(engine: Engine, failure: Failure) -> frozenset[str]:
    """What has no part in a start, but for what the message speaks of."""
    words = set(re.split(r"[^A-Za-z0-9_]+", failure.reason.replace("-", "_")))
    spoken_of = words | {word.strip("_") for word in words}
    return frozenset(name for name, p in engine.parameters.items() if p.late and not p.spellings(name) & spoken_of)


def _refusal(evidence: Evidence, values: Values) -> Failure:
    """The evidence in words."""
    failure, trial = evidence.failure, evidence.case.trial
    said = failure.reason if len(failure.reason) <= SHOWN else failure.reason[: SHOWN - 1] + "…"
    further = [
        f"{name} {values[name]} {'>' if evidence.worse[name] == 'higher' else '<'} {evidence.values[name]}"
        for name in evidence.differing(values)
    ]
    compared = ", ".join(further) or "it differs in nothing that counts"
    return Failure(
        "pruned",
        f"must fail as {trial} did ({failure.kind}: {said}): {compared}" + (", all else alike" if further else ""),
        hint=failure.hint,
    )
