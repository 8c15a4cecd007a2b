"""The exceptions of the program.

::

    AutotunerError
    ├── SpecError          the user's input is wrong; nothing was started              exit 2
    ├── EnvironmentFault   this machine or cluster cannot run the task                 exit 3
    │   └── StorageFault   the experiment folder cannot be read or written             the experiment stops
    │       └── Damaged    a file in it is not what was written there                  told with its place
    ├── Superseded         another session has the experiment now                      the worker leaves
    ├── TrialInfeasible    this configuration cannot work (with a class and a reason)  recorded
    └── TransientError     infrastructure; a retry may help                            retried

Foreign exceptions are mapped to these in the module that owns the library they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FailureClass = Literal[
    "out_of_memory",
    "bad_flag",
    "unsupported",
    "crash",
    "not_ready",
    "not_applied",
    "request_errors",
    "timeout",
    "constraint",
    "no_fit",
    "pruned",
    "quality",
    "slo_lost",
    "saturated",
    "budget",
    "infrastructure",
    "interrupted",
]
FAILURE_CLASSES: tuple[str, ...] = get_args(FailureClass)


class AutotunerError(Exception):
    """Root of everything this program raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One fault in the user's input: where it is, what was found and what is valid."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


TASK = "task"
"""The source of faults in a task by whoever does not know its file."""


class SpecError(AutotunerError):
    """The user's input is wrong; carries every problem that was found, not only the first."""

    def __init__(self, problems: list[Problem], source: str = TASK) -> None:
        self.problems = problems
        self.source = source
        super().__init__("\n".join(f"{source}: {p}" for p in problems))

    @classmethod
    def single(cls, place: str, message: str, source: str = TASK) -> SpecError:
        return cls([Problem(place, message)], source)


class EnvironmentFault(AutotunerError):
    """Something the task needs is missing here (a package, a binary, a cluster); says how to get it."""


class StorageFault(EnvironmentFault):
    """The experiment folder cannot be read or written (full, read-only, gone): the end of all, no result of a trial."""


class Damaged(StorageFault):
    """A file of the experiment folder is not what this version wrote there."""

    @classmethod
    def at(cls, place: str, error: Exception) -> Damaged:
        return cls(
            f"{place} is damaged, or of another version: {' '.join(str(error).split())[:200]}. Put it back as it was; "
            "results.json may also be removed, since it is made anew, and so may a trial, whose results are lost then"
        )


class Superseded(AutotunerError):
    """The experiment goes on in another session: whoever is told this has nothing to write or to remove any more."""


class TrialInfeasible(AutotunerError):
    """This configuration cannot work. A result, not an accident: it is recorded and learnt from."""

    def __init__(self, kind: FailureClass, reason: str, log_tail: str = "", hint: str = "") -> None:
        self.kind: FailureClass = kind
        self.reason = reason
        self.log_tail = log_tail
        self.hint = hint
        super().__init__(f"{kind}: {reason}" + (f" ({hint})" if hint else ""))


class TransientError(AutotunerError):
    """The infrastructure failed, not the configuration; the same trial may work when tried again."""
