"""What is taken away from an experiment: the configuration to apply, and the report."""

from __future__ import annotations

from typing import Any

import yaml

from raytune_autotuner.storage import ExperimentFolder
from raytune_autotuner.web import redaction
from raytune_autotuner.web.reader import Snapshot


def recommended(folder: ExperimentFolder, seen: Snapshot) -> str:
    """The recommended configuration, with what speaks for it, as YAML."""
    results = seen.results
    best = results.recommended
    assert best is not None
    said: dict[str, Any] = {
        "experiment": seen.name,
        "trial": best.trial.name,
        "model": seen.task.model.name,
        "engine": seen.task.engine,
        "parameters": dict(best.parameters),
        "argv": redaction.command_line(best.argv),
        "gpus": best.gpus,
    }
    if results.verdict:
        verdict = results.verdict
        said["verdict"] = {"kind": verdict.kind, "gain": verdict.gain, "low": verdict.low, "high": verdict.high}
    return yaml.safe_dump(said, sort_keys=False)
