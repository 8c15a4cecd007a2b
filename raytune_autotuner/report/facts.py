"""What a report is made from: an experiment's folder, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from raytune_autotuner import export, overview, redaction, sessions
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import TrialRecord, TrialState
from raytune_autotuner.results import Results, results_of


@dataclass(frozen=True)
class Report:
    """Everything that a report says, before it is put into words; nothing of it is secret, for reports travel."""

    results: Results
    states: tuple[TrialState, ...]
    state: overview.State
    planned: int
    """Trials, at most."""
    task_text: str
    """As it was asked, in JSON."""
    environment: Mapping[str, Any]
    sessions: tuple[sessions.Session, ...]
    elapsed_s: float
    manifest: str
    """Of the recommended trial, as it was applied; empty when there is none."""
    location: str
    written_at: datetime

    @property
    def is_final(self) -> bool:
        return self.state == "done"


def read(folder: ExperimentFolder) -> Report:
    """The facts of an experiment as they are now.

    Raises:
        SpecError: its task cannot be read.
        StorageFault: the folder cannot be read.
    """
    task = overview.read_task(folder)
    task = task.model_copy(update={"description": redaction.text(task.description)})
    results = results_of(folder, task, [_shown(record) for record in folder.records()])
    best = results.recommended
    return Report(
        results=results,
        states=tuple(folder.states()),
        state=overview.Overview.of(folder).state,
        planned=overview.planned(folder),
        task_text=redaction.json_text(folder.root.read("task.json") or ""),
        environment=redaction.hidden(json.loads(folder.root.read("environment.json") or "{}")),
        sessions=tuple(sessions.load(folder)),
        elapsed_s=sessions.elapsed_s(folder),
        manifest=redaction.yaml_text((best and export.applied(folder, best)) or ""),
        location=folder.root.location(),
        written_at=datetime.now(timezone.utc),
    )


def _shown(record: TrialRecord) -> TrialRecord:
    """Without its secrets."""
    failure = record.failure
    if failure is not None:
        failure = replace(failure, reason=redaction.text(failure.reason), log_tail=redaction.text(failure.log_tail))
    return replace(
        record,
        parameters=redaction.hidden(record.parameters),
        argv=tuple(redaction.command_line(record.argv)),
        engine_info=redaction.hidden(record.engine_info),
        differences=tuple(map(redaction.text, record.differences)),
        notes=tuple(map(redaction.text, record.notes)),
        failure=failure,
    )
