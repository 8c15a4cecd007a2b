"""Where experiments stand, read from a storage alone: works from anywhere, while they run and long after."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import TypeAdapter

from raytune_autotuner import lock, sessions
from raytune_autotuner.errors import SpecError, StorageFault
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.importance import Importances
from raytune_autotuner.importance import read as read_importances
from raytune_autotuner.lock import Held
from raytune_autotuner.planning.checks import load_document
from raytune_autotuner.planning.plan import make_plan
from raytune_autotuner.records import Parameters, Score
from raytune_autotuner.results import load_results
from raytune_autotuner.results_file import document
from raytune_autotuner.storage import Storage
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.spec import Task, parse_task
from raytune_autotuner.task.taskfile import Document

State = Literal["running", "interrupted", "done"]
UNREADABLE = (SpecError, StorageFault, ValueError, KeyError, TypeError, AttributeError)
"""What reading a folder may raise whose files are damaged, of another version, or out of reach."""


@dataclass(frozen=True)
class Overview:
    """One experiment in a line."""

    name: str
    state: State
    held: Held | None
    ended: int
    begun: int
    best: Score | None
    best_parameters: Parameters | None
    spent: float
    """By trials that have ended, in ``unit``."""
    unit: str
    started_at: datetime | None
    budget: str = ""
    """What of the budget was spent, for people; empty where there is none."""

    @classmethod
    def of(cls, folder: ExperimentFolder) -> Overview:
        held = lock.read(folder.root)
        ran = sessions.load(folder)
        alive = held is not None and held.is_alive
        closed = bool(ran) and ran[-1].ended_at is not None and not alive
        written = read_results(folder) if closed else {}
        said = written or document(load_results(folder, read_task(folder)), {})
        best = said["best_result"] or {}
        return cls(
            name=folder.name,
            state="running" if alive else "done" if written and _complete(said) else "interrupted",
            held=held,
            ended=said["total_experiments"],
            begun=len(folder.trial_names()) if alive else said["total_experiments"],
            best=TypeAdapter(Score).validate_python(best["score"]) if best else None,
            best_parameters=best.get("parameters"),
            spent=said["ledger"]["total"],
            unit=said["ledger"]["unit"],
            started_at=datetime.fromisoformat(ran[0].started_at) if ran else None,
            budget=(said.get("budget") or {}).get("said", ""),
        )

    @property
    def age_s(self) -> float | None:
        started = self.started_at
        return None if started is None else (datetime.now(timezone.utc) - started).total_seconds()


def names(storage: Storage) -> list[str]:
    """The experiments in a storage."""
    return [name for name in storage.list() if storage.exists(f"{name}/task.json")]


def find(storage: Storage, wanted: str | None) -> ExperimentFolder:
    """The experiment of this name, or the only one whose name begins so; without a name, the one that ran last.

    Raises:
        SpecError: there is none, or there are several (names them).
    """
    if wanted and storage.exists(f"{wanted}/task.json"):
        return ExperimentFolder(storage, wanted)
    there = names(storage)
    if not wanted:
        if there:
            return max((ExperimentFolder(storage, name) for name in there), key=_begun_at)
        raise SpecError.single("", "there is no experiment", storage.location())
    fitting = [name for name in there if name.startswith(wanted)]
    if len(fitting) == 1:
        return ExperimentFolder(storage, fitting[0])
    if fitting:
        raise SpecError.single("", f"{wanted!r} may be any of {', '.join(fitting)}", storage.location())
    message = f"there is no experiment {wanted!r}{taskfile.meant(wanted, there)}"
    raise SpecError.single("", f"{message}; there are: {', '.join(there) or 'none'}", storage.location())


def find_trial(folder: ExperimentFolder, wanted: str) -> str:
    """The trial of this name or number, or the only one whose name begins so.

    Raises:
        SpecError: there is none, or there are several (names them).
    """
    there = folder.trial_names()
    numbered = [s.trial.name for s in folder.states() if str(s.number) == wanted.lstrip("#")]
    fitting = [n for n in there if n == wanted] or numbered or [n for n in there if n.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    found = f"{wanted!r} may be any of {', '.join(fitting)}" if fitting else f"there is no trial {wanted!r}"
    raise SpecError.single("", f"{found}; there are: {', '.join(there) or 'none'}", folder.name)


def read_document(folder: ExperimentFolder) -> Document:
    """The task of an experiment, as text that can be checked."""
    return taskfile.parse(folder.root.read("task.json") or "", folder.root.location("task.json"), strict_json=True)


def read_task(folder: ExperimentFolder) -> Task:
    document = read_document(folder)
    return parse_task(document.data, document.source)


def read_results(folder: ExperimentFolder) -> dict[str, Any]:
    """What stands in the experiment's results file; empty when there is none."""
    return folder.document("results.json")


def planned(folder: ExperimentFolder) -> int:
    """How many trials there will be at most."""
    task = read_task(folder)
    try:
        return make_plan(*load_document(read_document(folder))).trials
    except SpecError:  # files that the task names are not on this machine
        return 1 + task.optimization.max_iterations + task.optimization.confirm.runs[1]


def importances(folder: ExperimentFolder) -> Importances | None:
    """What the results of an experiment that has ended say of its parameters."""
    said = read_results(folder)
    return read_importances(said) if said else None


def is_over(folder: ExperimentFolder) -> bool:
    """Whether nobody runs it any more."""
    held = lock.read(folder.root)
    return held is None or not held.is_alive


def _complete(said: dict[str, Any]) -> bool:
    """Whether results are those of an experiment that came to its end."""
    cut = [trial for trial in said["all_results"] if (trial["failure"] or {}).get("kind") == "interrupted"]
    return bool(said["all_results"]) and not cut and not said["interrupted"]


def _begun_at(folder: ExperimentFolder) -> str:
    """Of one that cannot be read, before all others."""
    try:
        ran = sessions.load(folder)
    except UNREADABLE:
        return ""
    return ran[-1].started_at if ran else ""
