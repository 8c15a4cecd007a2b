"""A study: a task as a user writes it, on an emulated model and GPU, in a cluster of some nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from raytune_autotuner.engines.command import gpu_count
from raytune_autotuner.engines.engine import Engine, load_engine
from raytune_autotuner.planning.plan import ladder
from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, Rung, config_hash
from raytune_autotuner.task.spec import Asha, Task, parse_task
from tests.emulator.engine.arguments import parse
from tests.emulator.engine.profile import Part, Profile, load_profile
from tests.emulator.engine.settings import Values

STUDIES = Path(__file__).resolve().parents[1] / "studies"


class Costs(Part):
    """Seconds of a trial that are neither the engine's start nor traffic."""

    deploy_s: float = Field(45.0, ge=0, description="scheduling, pod, image, volumes")
    notice_s: float = Field(5.0, ge=0, description="from the engine's end until the trial knows of it")
    teardown_s: float = Field(15.0, ge=0, description="until the GPUs are free again")
    client_s: float = Field(2.0, ge=0, description="what the benchmark client adds to a load")


class Study(Part):
    """What a study file says."""

    name: str
    description: str
    profile: str
    task: dict[str, Any] = Field(description="a task file; `max_iterations` is the budget of this program's arms")
    nodes: dict[str, int] = Field(description="GPUs by node; names that the profile's noise knows run slower")
    at_once: int = Field(4, gt=0, description="trials, for every arm")
    costs: Costs = Costs()
    rung_cv: float = Field(
        0.01, ge=0, description="noise of the last rung; a shorter one has more, as its requests are fewer"
    )
    plain_trials: int = Field(200, gt=0, description="budget of the arms without a ladder, but of the grid")
    crashes: tuple[float, float] = Field(
        (0.0, 1.0), description="between which shares of the space fail, to be checked"
    )


@dataclass(frozen=True)
class World:
    """A study, brought together with all that it speaks of."""

    study: Study
    profile: Profile
    task: Task
    engine: Engine
    counts: dict[str, int] = field(default_factory=dict)
    """GPUs by configuration, once they were worked out."""

    @classmethod
    def of(cls, study: Study) -> World:
        task = parse_task(study.task, study.name)
        assert task.engine is not None
        return cls(study, load_profile(study.profile), task, load_engine(task.engine))

    @cached_property
    def space(self) -> Space:
        return Space.of(self.task, self.engine)

    @cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """The ladder; whoever has none runs its last rung alone."""
        asha = {"optimization": self.task.optimization.model_copy(update={"scheduler": Asha()})}
        return ladder(self.task.model_copy(update=asha))

    @cached_property
    def today(self) -> Values:
        """What the runtime's own flags say."""
        return parse(
            self.engine.name, ["--model-path" if self.engine.name == "sglang" else "--model", "m", *self.args]
        ).values

    @property
    def args(self) -> tuple[str, ...]:
        return self.task.runtime.args

    def values(self, parameters: Parameters) -> Values:
        """What an engine that is started with these parameters is told.

        ``null`` leaves a flag out, ``false`` too where there is no flag to turn it off.
        """
        off = {name for name, parameter in self.engine.parameters.items() if parameter.off_flag}
        said = {k: v for k, v in parameters.items() if v is not None and (v is not False or k in off)}
        kept = {k: v for k, v in self.today.items() if k not in parameters}
        return {**kept, **said}

    def gpus(self, parameters: Parameters) -> int:
        name = config_hash(parameters)
        if name not in self.counts:
            self.counts[name] = gpu_count(self.engine, parameters, self.args)
        return self.counts[name]


def load_study(name_or_path: str | Path) -> Study:
    """The study of this name among ``tests/emulator/studies``, or the one in a file."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = STUDIES / f"{name_or_path}.yaml"
    return Study.model_validate({"name": path.stem, **yaml.safe_load(path.read_text())})


def study_names() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))
