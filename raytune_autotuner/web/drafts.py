"""A task that somebody is writing: what is wrong with it so far, and what it would do."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.checks import load_document
from raytune_autotuner.planning.plan import Plan, make_plan
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.spec import Task
from raytune_autotuner.web.problems import Fault

SOURCE = "task"


@dataclass(frozen=True)
class Draft:
    text: str
    faults: tuple[Fault, ...]
    task: Task | None = None
    plan: Plan | None = None

    @property
    def is_valid(self) -> bool:
        return not self.faults


def check(text: str) -> Draft:
    """A task file's text; nothing that is wrong with it is raised."""
    try:
        task, engine = load_document(taskfile.parse(text, SOURCE))
        return Draft(text, (), task, make_plan(task, engine))
    except SpecError as error:
        return Draft(text, tuple(Fault.of(each) for each in error.problems))


def checked(text: str) -> Draft:
    """
    Raises:
        SpecError: lists everything that is wrong.
    """
    task, engine = load_document(taskfile.parse(text, SOURCE))
    return Draft(text, (), task, make_plan(task, engine))
