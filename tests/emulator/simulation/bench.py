"""``scripts/bench_search``: how many GPU-hours each way of searching takes, over studies and seeds."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median, quantiles

from raytune_autotuner import resources, search, warm_start
from raytune_autotuner.foresight import facts, roofline
from tests.emulator.simulation import arms, controller, judge, known, luck, plain, trials
from tests.emulator.simulation import study as studies
from tests.emulator.simulation.arms import ARMS, OURS
from tests.emulator.simulation.plain import PLAIN
from tests.emulator.simulation.study import World, load_study, study_names
from tests.emulator.simulation.table import CACHE, Table, code, exhaustive

SEEDS = 20
FIRST_SEED = 100
"""Those of the table; whatever was chosen by trying it on the studies was tried with smaller ones."""

DEFAULT_ARMS = ["default", "cold", "unknown", "unaware", *PLAIN]


@dataclass(frozen=True)
class Result:
    """One repetition."""

    hours: float | None
    """GPU-hours to the best; ``None`` when it was not found for good within the budget …"""
    spent: float
    """… which took so many in all."""
    lost: float
    """Share spent on configurations that cannot work."""
    regret: float
    trials: int

    @property
    def at_least(self) -> float:
        return self.spent if self.hours is None else self.hours


Results = Mapping[tuple[str, str], Sequence[Result]]
"""By study and arm."""


@cache
def table(name: str) -> Table:
    found = exhaustive(World.of(load_study(name)))
    low, high = found.world.study.crashes
    assert low <= crashing(found) <= high, f"{crashing(found):.1%} of {name} fail"
    return found


def crashing(found: Table) -> float:
    """The share of the space that cannot work."""
    rows = found.rows.values()
    return sum(not row.feasible for row in rows) / len(rows)


def repetition(name: str, arm: str, seed: int) -> Result:
    """One experiment, kept under the hash of all that it depends on, so that a bench that was cut short goes on."""
    found = table(name)
    kept = CACHE / "arms" / f"{found.world.study.name}-{arm}-{seed}-{_key(name, arm)}.json"
    if kept.exists():
        return Result(**json.loads(kept.read_text()))
    history = ARMS[arm](found, seed)
    hours = judge.gpu_hours_to_best(history, found)
    result = Result(
        None if math.isinf(hours) else hours,
        history.gpu_s / 3600,
        judge.lost_share(history),
        judge.regret(history, found),
        len(history.ended),
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(result)))
    fresh.replace(kept)
    return result


@cache
def _key(name: str, arm: str) -> str:
    """The plain arms have none of this program's search in them, so no change to it makes them run again."""
    found = table(name)
    files = [Path(module.__file__ or "") for module in (controller, judge, luck, plain, studies, trials)]
    if arm in OURS:
        files += [
            Path(arms.__file__ or ""),
            *(Path(module.__file__ or "") for module in (facts, known, roofline, warm_start)),
            *sorted(Path(search.__file__ or "").parent.rglob("*.py")),
        ]
    engine = found.world.engine.model_dump_json(include={"starts", "roofline"}) if arm in OURS else ""
    sheets = (resources.templates() / "gpus.yaml").read_text() if arm in OURS else ""
    parts = [found.key, found.world.study.model_dump_json(), engine, sheets, *map(code, files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def run(name: str, chosen: Sequence[str], seeds: Sequence[int], jobs: int) -> dict[tuple[str, str], list[Result]]:
    """All repetitions of a study."""
    work = [(name, arm, seed) for arm in chosen for seed in seeds]
    table(name)  # before the processes part
    if jobs == 1:
        found = [repetition(*each) for each in work]
    else:
        with ProcessPoolExecutor(jobs) as pool:
            found = list(pool.map(repetition, *zip(*work, strict=True)))
    results: dict[tuple[str, str], list[Result]] = {}
    for (_, arm, _), result in zip(work, found, strict=True):
        results.setdefault((name, arm), []).append(result)
    return results


def middle(results: Sequence[Result]) -> float:
    """The median of the GPU-hours; infinite when half of the repetitions did not get there."""
    return median(math.inf if r.hours is None else r.hours for r in results)


def hours(results: Sequence[Result]) -> str:
    """Median (what was spent, after ``>``, when half of them missed) and quartiles of what was spent until then."""
    spent, found = [r.at_least for r in results], middle(results)
    low, _, high = quantiles(spent, n=4) if len(spent) > 1 else spent * 3
    missed = sum(r.hours is None for r in results)
    shown = f">{median(spent):.1f}" if math.isinf(found) else f"{found:.1f}"
    return f"{shown} [{low:.1f}-{high:.1f}]" + (f" {missed} missed" if missed else "")


REST = f"{'lost':>6} {'regret':>7} {'trials':>6} {'in all':>7}"
COLUMNS = f"{'GPU-hours to the best (quartiles)':36} {'/grid':>7} {'/plain':>7} {REST}"


def lines(results: Results) -> Iterator[str]:
    """One for each study and arm; this program's with their ratios to the grid and to the best plain searcher."""
    names = list(dict.fromkeys(arm for _, arm in results))
    for name in dict.fromkeys(study for study, _ in results):
        found = table(name)
        yield f"{name}: {found.world.study.description} ({len(found.rows) - 1} points, {crashing(found):.0%} fail)"
        medians = {arm: middle(results[name, arm]) for arm in names if (name, arm) in results}
        best = min((medians[arm] for arm in names if arm in PLAIN and arm != "grid" and arm in medians), default=None)
        for arm in medians:
            ratios = [_ratio(medians[arm], other) if arm in OURS else "" for other in (medians.get("grid"), best)]
            row = results[name, arm]
            yield f"{'':4}{arm:12} {hours(row):36} {ratios[0]:>7} {ratios[1]:>7} {_rest(row)}"


def _ratio(ours: float, other: float | None) -> str:
    return "" if other is None or math.isinf(ours + other) else f"{ours / other:.1%}"


def _rest(found: Sequence[Result]) -> str:
    lost, regret = median(r.lost for r in found), median(r.regret for r in found)
    trials, spent = median(r.trials for r in found), median(r.spent for r in found)
    return f"{lost:6.1%} {regret:7.1%} {trials:6.0f} {spent:7.1f}"


def main(words: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="scripts/bench_search", description=__doc__)
    parser.add_argument("--studies", nargs="+", default=study_names(), help="names, or files")
    parser.add_argument("--arms", nargs="+", default=DEFAULT_ARMS, choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    said = parser.parse_args(words)
    warnings.filterwarnings("ignore")
    logging.getLogger("ray").setLevel(logging.ERROR)
    begun, seeds = time.monotonic(), range(said.first_seed, said.first_seed + said.seeds)
    sys.stdout.write(
        f"seeds {seeds[0]} to {seeds[-1]}; what was chosen by trial was tried with those below {FIRST_SEED}\n"
    )
    sys.stdout.write(f"{'':4}{'arm':12} {COLUMNS}\n")
    for name in said.studies:
        sys.stdout.write("\n".join(lines(run(name, said.arms, seeds, said.jobs))) + "\n")
        sys.stdout.flush()
        sys.stderr.write(f"{name}: {time.monotonic() - begun:.0f} s\n")
