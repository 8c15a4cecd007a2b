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

from tests.emulator.simulation import controller, judge, luck, plain, trials
from tests.emulator.simulation import study as studies
from tests.emulator.simulation.arms import ARMS, OURS
from tests.emulator.simulation.plain import PLAIN
from tests.emulator.simulation.study import World, load_study, study_names
from tests.emulator.simulation.table import CACHE, Table, code, exhaustive

SEEDS = 20


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
    return exhaustive(World.of(load_study(name)))


def repetition(name: str, arm: str, seed: int) -> Result:
    """One experiment; those without this program's code in them are kept, for nothing changes them."""
    found = table(name)
    kept = CACHE / "arms" / f"{name}-{arm}-{seed}-{_key(found)}.json" if arm in PLAIN else None
    if kept and kept.exists():
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
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(result)))
    return result


def _key(found: Table) -> str:
    modules = (controller, judge, luck, plain, studies, trials)
    parts = [found.key, found.world.study.model_dump_json(), *(code(Path(m.__file__ or "")) for m in modules)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def run(names: Sequence[str], chosen: Sequence[str], seeds: int, jobs: int) -> dict[tuple[str, str], list[Result]]:
    """All repetitions."""
    work = [(name, arm, seed) for name in names for arm in chosen for seed in range(seeds)]
    for name in names:
        table(name)  # before the processes part
    if jobs == 1:
        found = [repetition(*each) for each in work]
    else:
        with ProcessPoolExecutor(jobs) as pool:
            found = list(pool.map(repetition, *zip(*work, strict=True)))
    results: dict[tuple[str, str], list[Result]] = {}
    for (name, arm, _), result in zip(work, found, strict=True):
        results.setdefault((name, arm), []).append(result)
    return results


def hours(results: Sequence[Result]) -> str:
    """Median and quartiles; ``>`` where half of them were not through."""
    spent = [r.at_least for r in results]
    low, _, high = quantiles(spent, n=4) if len(spent) > 1 else spent * 3
    missed = sum(r.hours is None for r in results)
    mark = ">" if 2 * missed >= len(results) else ""
    return f"{mark}{median(spent):.1f} [{low:.1f}-{high:.1f}]" + (f" {missed} missed" if missed else "")


COLUMNS = f"{'GPU-hours to the best (quartiles)':36} {'/grid':>7} {'/plain':>7} {'lost':>6} {'regret':>7} {'trials':>6}"


def lines(results: Results) -> Iterator[str]:
    """One for each study and arm; this program's with their ratios to the grid and to the best plain searcher."""
    names = list(dict.fromkeys(arm for _, arm in results))
    yield f"{'':4}{'arm':12} {COLUMNS}"
    for name in dict.fromkeys(study for study, _ in results):
        yield f"{name}: {table(name).world.study.description}"
        middle = {arm: median(r.at_least for r in results[name, arm]) for arm in names}
        best = min((middle[arm] for arm in names if arm in PLAIN and arm != "grid"), default=None)
        for arm in names:
            ratios = [_ratio(middle[arm], other) if arm in OURS else "" for other in (middle.get("grid"), best)]
            found = results[name, arm]
            yield f"{'':4}{arm:12} {hours(found):36} {ratios[0]:>7} {ratios[1]:>7} {_rest(found)}"


def _ratio(ours: float, other: float | None) -> str:
    return "" if other is None else f"{ours / other:.1%}"


def _rest(found: Sequence[Result]) -> str:
    lost, regret = median(r.lost for r in found), median(r.regret for r in found)
    return f"{lost:6.1%} {regret:7.1%} {median(r.trials for r in found):6.0f}"


def main(words: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="scripts/bench_search", description=__doc__)
    parser.add_argument("--studies", nargs="+", default=study_names(), help="names, or files")
    parser.add_argument("--arms", nargs="+", default=["default", "unaware", *PLAIN], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    said = parser.parse_args(words)
    warnings.filterwarnings("ignore")
    logging.getLogger("ray").setLevel(logging.ERROR)
    begun = time.monotonic()
    results: dict[tuple[str, str], list[Result]] = {}
    for name in said.studies:
        results |= run([name], said.arms, said.seeds, said.jobs)
        sys.stderr.write(f"{name}: {said.seeds} seeds, {time.monotonic() - begun:.0f} s\n")
    sys.stdout.write("\n".join(lines(results)) + "\n")
