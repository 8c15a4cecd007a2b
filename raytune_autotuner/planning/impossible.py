"""How much of a search space is known not to start, or to have no place, before anything has been tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.foresight import Feasibility, Launch
from raytune_autotuner.foresight.facts import of_task
from raytune_autotuner.records import Parameters
from raytune_autotuner.task.spec import Task

EXAMPLES = 400
"""Configurations that are looked at."""


def notes(task: Task, engine: Engine, examples: Sequence[Parameters]) -> Iterator[str]:
    """In words, for ``examples`` that stand for the space; nothing where all of them may work."""
    raw_flags = {name: p.flag for name, p in task.parameters.items() if p.flag}
    launch = Launch(engine, task.runtime.args, task.extra_args, raw_flags)
    rules = Feasibility(launch, of_task(task), task.resources.gpus)
    some = _some(examples)
    if found := rules.count(some):
        yield f"{_share(found, some)} of the configurations cannot start and are not run ({_reasons(found, some)})"
    if task.backend == "local" and (unfit := rules.unfit({})) is not None:
        yield f"the runtime's own flags cannot start; {unfit.why}: {unfit.arithmetic}"


def without_place(examples: Sequence[Parameters], never: Callable[[Parameters], str | None]) -> Iterator[str]:
    """In words, how many no node of the cluster can ever hold; ``never`` says why of one, with figures."""
    some = _some(examples)
    if found := Counter(filter(None, map(never, some))):
        yield f"{_share(found, some)} of the configurations fit no node and are not run ({_reasons(found, some)})"


def _some(examples: Sequence[Parameters]) -> Sequence[Parameters]:
    return examples[:: 1 + len(examples) // EXAMPLES]


def _share(found: Counter[str], some: Sequence[Parameters]) -> str:
    return f"{found.total() / len(some):.0%}"


def _reasons(found: Counter[str], some: Sequence[Parameters]) -> str:
    return "; ".join(f"{count / len(some):.0%}: {why}" for why, count in found.most_common())
