"""The exhaustive table of a study: every configuration's row, computed once and kept."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from raytune_autotuner import metrics, objectives
from raytune_autotuner.objectives import OBJECTIVES
from raytune_autotuner.planning.space import MAX_CANDIDATES
from raytune_autotuner.records import Parameters, config_hash
from tests.emulator.engine import model
from tests.emulator.simulation import measuring, study
from tests.emulator.simulation.measuring import Fact, Row, measure
from tests.emulator.simulation.study import World

SLO_TOLERANCE = 0.03
"""What is this little over a limit counts as good: a search that sees noise cannot know better."""
CACHE = Path("results/simulation")


class Table:
    """Rows by configuration; those that nobody asked for yet are measured when they are."""

    def __init__(self, world: World, rows: Mapping[str, Row] | None = None) -> None:
        self.world = world
        self.rows = dict(rows or {})

    def __getitem__(self, parameters: Parameters) -> Row:
        name = config_hash(parameters)
        if name not in self.rows:
            self.rows[name] = measure(self.world, parameters)
        return self.rows[name]

    def loss(self, parameters: Parameters) -> float:
        """Of the last rung; infinite when it fails, or breaks the SLO by more than its noise can hide."""
        row = self[parameters]
        if not row.feasible or row.rungs[-1].slo > 1 + SLO_TOLERANCE:
            return float("inf")
        return self.sign * row.rungs[-1].value

    @cached_property
    def best(self) -> float:
        """The smallest loss of all that keep the SLO."""
        ends = (row.rungs[-1] for row in self.rows.values() if row.feasible)
        return min(self.sign * end.value for end in ends if end.slo <= 1)

    def is_near_best(self, parameters: Parameters, within: float = 0.03) -> bool:
        return self.loss(parameters) <= self.best + within * abs(self.best)

    @cached_property
    def key(self) -> str:
        """Changes with the study, its profile, and every line of code that a row depends on."""
        sources = [*sorted(Path(model.__file__).parent.glob("*.py"))]
        sources += [Path(module.__file__ or "") for module in (measuring, metrics, objectives, study)]
        asked = self.world.study.model_dump_json(include={"name", "profile", "task"})
        engine = self.world.engine.model_dump_json(include={"parameters", "gpus", "failures"})
        parts = [asked, engine, self.world.profile.model_dump_json(), *(code(path) for path in sources)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    @property
    def sign(self) -> int:
        return 1 if OBJECTIVES[self.world.task.optimization.objective].direction == "min" else -1


def code(path: Path) -> str:
    """What a file does, whatever its layout and comments, and wherever it imports from."""
    parsed = ast.parse(path.read_text())
    parsed.body = [part for part in parsed.body if not isinstance(part, ast.Import | ast.ImportFrom)]
    return ast.dump(parsed)


def exhaustive(world: World, cache: Path = CACHE) -> Table:
    """The table with the whole grid in it; computed in minutes, then read from the cache."""
    table = Table(world)
    path = cache / f"{world.study.name}-{table.key}.json.gz"
    if path.exists():
        table.rows = {name: _row(data) for name, data in json.loads(gzip.decompress(path.read_bytes())).items()}
        return table
    for parameters in ({}, *world.space.grid(MAX_CANDIDATES)[0]):
        table[parameters]
    cache.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    rows = {name: asdict(row) for name, row in table.rows.items()}
    fresh.write_bytes(gzip.compress(json.dumps(rows).encode(), mtime=0))
    fresh.replace(path)
    return table


def _row(data: dict[str, object]) -> Row:
    rungs = tuple(Fact(**fact) for fact in data.pop("rungs"))  # type: ignore[attr-defined]
    return Row(rungs=rungs, **data)  # type: ignore[arg-type]
