"""Failures that repeat themselves: more trials would teach nothing, and somebody has to mend something first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raytune_autotuner.errors import FailureClass
from raytune_autotuner.foresight.cases import Case
from raytune_autotuner.records import Failure, SearchEnd

FEW = 3
"""So many are enough when the baseline fails as well, of a kind that no parameter of the search explains."""
NOT_BY_PARAMETERS: frozenset[FailureClass] = frozenset({"crash", "bad_flag", "not_applied", "infrastructure"})
NOT_RUN: frozenset[FailureClass] = frozenset({"pruned", "no_fit", "constraint", "interrupted"})
"""Of trials that say nothing about the next one: they were not run, or somebody ended them."""
CHANCE = 0.01
"""Failures in a row that are no less likely than this, by the share of trials that failed before, are the search's
own: it looks where little works."""
CHANGING = re.compile(r"[\w.:/-]*\d[\w.:/-]*")
"""Words with digits in them: names of trials and pods, sizes, addresses, times."""


@dataclass(frozen=True)
class Streak:
    """The trials that ended last, as long as they failed alike."""

    failing: tuple[Case, ...]
    before: tuple[Case, ...]

    @property
    def failure(self) -> Failure:
        """The last of them."""
        failure = self.failing[-1].failure
        assert failure is not None
        return failure

    @property
    def has_worked(self) -> bool:
        """Whether anything did before."""
        return any(case.outcome in ("completed", "stopped") for case in self.before)


def streak(cases: Iterable[Case]) -> Streak | None:
    """Of the trials that were run; ``None`` when the last one did not fail."""
    ran = sorted((c for c in cases if not (c.failure and c.failure.kind in NOT_RUN)), key=lambda case: case.ended_at)
    if not ran or (last := _likeness(ran[-1])) is None:
        return None
    begin = next((n for n in range(len(ran), 0, -1) if _likeness(ran[n - 1]) != last), 0)
    return Streak(tuple(ran[begin:]), tuple(ran[:begin]))


def _likeness(case: Case) -> tuple[str, str] | None:
    if case.failure is None or case.outcome not in ("infeasible", "failed"):
        return None
    return case.failure.kind, CHANGING.sub("#", case.failure.reason)


def search_end(cases: Sequence[Case], limit: int | None) -> SearchEnd | None:
    """Why a search is to end after these; ``None`` when it may go on, as it always may without a limit."""
    found = streak(cases) if limit is not None else None
    if found is None or limit is None or not _is_telling(found, limit):
        return None
    failure, count = found.failure, len(found.failing)
    said = f"{failure.kind}: {failure.reason.splitlines()[0] if failure.reason else 'no reason given'}"
    works = "others worked before" if found.has_worked else "nothing has worked so far"
    hint = f"; {failure.hint}" if failure.hint else ""
    reason = (
        f"{count} trials in a row failed alike ({said}), the last {found.failing[-1].trial}; {works}{hint}. Mend it "
        "and resume the experiment, or set optimization.stop_after_identical_failures to null to search on regardless"
    )
    return SearchEnd("identical_failures", reason, failure.kind, count, failure.log_tail)


def _is_telling(found: Streak, limit: int) -> bool:
    kind, count = found.failure.kind, len(found.failing)
    if kind == "infrastructure":
        return count >= limit
    if not found.has_worked:
        baseline_too = any(not case.parameters for case in found.failing)
        return count >= (min(limit, FEW) if baseline_too and kind in NOT_BY_PARAMETERS else limit)
    failed = sum(case.outcome in ("infeasible", "failed") for case in found.before)
    share = (failed + 1) / (len(found.before) + 2)
    return count >= limit and share**count < CHANCE
