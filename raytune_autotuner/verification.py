"""Measure an exported configuration against the baseline again: exactly what the file says, in turn.

An experiment without a search: only confirming runs, of the baseline and of the file, until the verdict stands.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from raytune_autotuner import experiment, export
from raytune_autotuner.backends.ome_runtime import GPU
from raytune_autotuner.confirmation import Confirmation
from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.experiment import Options
from raytune_autotuner.export import PREFIX
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.kube import INFERENCE_SERVICE
from raytune_autotuner.records import Parameters, TrialRecord, config_hash
from raytune_autotuner.results import BudgetUse, with_budget
from raytune_autotuner.search import Nodes, Wanted
from raytune_autotuner.setup import Given, Setup
from raytune_autotuner.task.spec import Task
from raytune_autotuner.verdict import Verdict

BASELINE: Parameters = {}
HASH_DIGITS = 12
VARIABLE = re.compile(r'"\$\{([A-Za-z_][A-Za-z0-9_]*)(:[-?][^}"]*)?\}"')
FILLED_IN = {"HOST": "{host}", "PORT": "{port}", "PYTHON": "{python}"}
"""By the backend."""


@dataclass(frozen=True)
class Exported:
    """An exported file, read back."""

    parameters: Parameters
    """Stands for the file in the records: what it says may not be what a search has ever proposed."""
    given: Given
    about: Mapping[str, str]
    """Where it comes from (see ``export.provenance``), without the prefix."""
    replicas: int | None = None
    """Of the service."""


def read(path: Path, environment: Mapping[str, str]) -> Exported:
    """What a file says that ``export`` wrote, or that somebody changed since.

    ``environment`` has the secrets that a script names.

    Raises:
        SpecError: it is neither an InferenceService nor such a script.
        EnvironmentFault: the script names a variable that is not set.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError.single("", f"cannot be read: {error}", str(path)) from error
    return _parsed(text, str(path), path.name, environment)


def exported(folder: ExperimentFolder, environment: Mapping[str, str]) -> Exported:
    """What ``export`` writes of an experiment, read back; raises what it and ``read`` raise."""
    text = export.export(folder)
    return _parsed(
        text, f"export of {folder.name}", f"{folder.name}.{'sh' if text.startswith('#!') else 'yaml'}", environment
    )


def _parsed(text: str, source: str, name: str, environment: Mapping[str, str]) -> Exported:
    digest = hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
    parameters: Parameters = {"file": name, "sha256": digest}
    if text.startswith("#!"):
        given, about = _script(text, source, environment)
        return Exported(parameters, given, about)
    return _service(text, source, parameters)


def _script(text: str, source: str, environment: Mapping[str, str]) -> tuple[Given, dict[str, str]]:
    lines = text.splitlines(keepends=True)
    head = list(takewhile(lambda line: line.startswith("#"), lines))
    notes = (line.removeprefix(f"# {PREFIX}").partition(": ") for line in head if line.startswith(f"# {PREFIX}"))
    about = {name: said.strip() for name, _, said in notes}
    words = deque(_words("".join(lines[len(head) :]), source, environment))
    env: dict[str, str] = {}
    while words and (command := words.popleft()) != "exec":
        name, is_set, value = words.popleft().partition("=") if command == "export" and words else ("", "", "")
        if not is_set:
            raise SpecError.single("", f"is not a script that export wrote: {command[:80]!r}", source)
        env[name] = value
    if not words:
        raise SpecError.single("", "starts nothing: there is no line `exec …`", source)
    return Given(argv=tuple(words), env=env), about


def _words(script: str, source: str, environment: Mapping[str, str]) -> list[str]:
    """The words of a script; what the backend fills in as its placeholder, other variables from the environment."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in FILLED_IN and name not in environment:
            raise EnvironmentFault(f"{source} names {name}, which is not set in the environment")
        return shlex.quote(FILLED_IN.get(name) or environment[name])

    try:
        return shlex.split(VARIABLE.sub(value, script))
    except ValueError as error:
        raise SpecError.single("", f"is no shell script: {error}", source) from error


def _service(text: str, source: str, parameters: Parameters) -> Exported:
    try:
        found = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise SpecError.single("", f"is not YAML: {error}", source) from error
    service: Any = found[0] if len(found) == 1 else None
    kind = (service.get("apiVersion"), service.get("kind")) if isinstance(service, dict) else None
    if kind != (INFERENCE_SERVICE.api_version, INFERENCE_SERVICE.kind):
        what = "one InferenceService, or a script that export wrote"
        raise SpecError.single("", f"is not what can be verified: {what}", source)
    engine = ((service.get("spec") or {}).get("engine")) or {}
    runner = engine.get("runner") or {}
    argv = (*(runner.get("command") or ()), *(runner.get("args") or ()))
    if not argv:
        raise SpecError.single("spec.engine.runner", "says no command line, so there is nothing to verify", source)
    replicas = engine.get("minReplicas", 1)
    if engine.get("maxReplicas", replicas) != replicas:
        cure = "what is scaled while it is measured cannot be compared; write the same for both"
        raise SpecError.single("spec.engine.maxReplicas", cure, source)
    annotations = service["metadata"].get("annotations") or {}
    about = {name.removeprefix(PREFIX): said for name, said in annotations.items() if name.startswith(PREFIX)}
    given = Given(argv=argv, gpus=_gpus(runner), manifest=service)
    return Exported(parameters, given, about, replicas)


def _gpus(runner: Mapping[str, Any]) -> int | None:
    resources = runner.get("resources") or {}
    said = (resources.get("limits") or resources.get("requests") or {}).get(GPU)
    return None if said is None else int(said)


def fitted(task: Task, exported: Exported, source: str) -> Task:
    """The experiment's task, for the verification of a file: its workload and objective, and nothing to search.

    Raises:
        SpecError: the file is for another backend, or nothing may be measured.
    """
    if (exported.given.manifest is None) != (task.backend == "local"):
        raise SpecError.single("", f"does not fit the experiment, whose backend is {task.backend}", source)
    if not task.optimization.confirm.repeats:
        raise SpecError.single("optimization.confirm.repeats", "is 0, so that nothing may be measured", "task")
    ome = task.ome.model_copy(update={"replicas": exported.replicas}) if exported.replicas else task.ome
    optimization = task.optimization.model_copy(update={"scheduler": "none"})
    nothing: dict[str, Any] = {"parameters": {}, "presets": (), "constraints": ()}
    return task.model_copy(update={**nothing, "optimization": optimization, "ome": ome})


def verify(setup: Setup, exported: Exported, options: Options) -> tuple[Verdict | None, BudgetUse | None]:
    """Run the experiment; no verdict when it was ended before anything could be said, by somebody or the budget.

    Nothing is left running when this returns, nor when the process is killed (see ``experiment.run``).

    Raises:
        SpecError: the file's command line does not tell how many GPUs it takes.
    """
    config = config_hash(exported.parameters)
    setup = replace(setup, given={config: exported.given})
    setup.gpus(exported.parameters)  # what is wrong with it is to be known before anything starts
    course = Duel(setup.task, exported.parameters)
    about = {"kind": "verify", "of": exported.about.get("experiment"), "file": dict(exported.parameters)}
    budget = experiment.run(setup, replace(options, about=about), course).budget
    return with_budget(course.verdict(setup.folder.records()), budget), budget


@dataclass(frozen=True)
class Duel:
    """Baseline and contender in turn, until the verdict stands."""

    task: Task
    contender: Parameters

    def wanted(self, records: Sequence[TrialRecord], nodes: Nodes) -> Iterator[Wanted]:
        pair = (config_hash(BASELINE), config_hash(self.contender))
        for ask in Confirmation(self.task).wanted(records, *pair, nodes(BASELINE, self.contender)):
            yield Wanted(self.contender if ask.side == "winner" else BASELINE, ask.node)

    def verdict(self, records: Sequence[TrialRecord]) -> Verdict | None:
        return Confirmation(self.task).verdict(records, config_hash(BASELINE), config_hash(self.contender))
