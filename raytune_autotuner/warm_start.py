"""What is tried first: the engine's own starting points, then the best of the nearest earlier experiments.

How far an earlier experiment is from a new one is a weighted sum over what decides which configuration is best, each
part between 0 (the same) and 1 (as different as can be): the model, the workload (kind of task, tokens in and out,
clients), the hardware, the objective and the engine's version. Another engine has other parameters, so nothing is
learnt from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher

from raytune_autotuner.earlier import Earlier, Found, age
from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.foresight import Usual
from raytune_autotuner.identity import Identity, identity
from raytune_autotuner.planning.space import Space, coordinate, count, grid_value, is_ordered
from raytune_autotuner.records import Parameters, ParameterValue, config_hash
from raytune_autotuner.results_file import to_text
from raytune_autotuner.search.model.encoding import foreseen
from raytune_autotuner.search.source import Expects
from raytune_autotuner.setup import Setup
from raytune_autotuner.task import scenarios
from raytune_autotuner.task.parameters import Boolean, Choice, Parameter
from raytune_autotuner.task.spec import Benchmark

WEIGHTS = {"model": 3.0, "workload": 3.0, "hardware": 2.0, "objective": 2.0, "version": 1.0}
FARTHEST = 6.0
"""Of 11; nothing is taken from an experiment that is farther."""
UNKNOWN = 0.5
OCTAVES = 3.0
"""A number that is eight times another one is as different as can be."""
EARLIER_POINTS, OF_ONE = 4, 2
"""So many configurations come from earlier experiments, and from one of them."""
PRESET_POINTS = 4
BEHIND = 0.25
"""The engine file's general advice is not followed where it is expected to be this much behind, as a logarithm."""
SAFE = -0.5
"""Who is expected to be this far within the limits is not asked how far; a logarithm, too."""
FILE = "first.json"


@dataclass(frozen=True)
class First:
    """A configuration that is tried before the strategy has any say."""

    parameters: dict[str, ParameterValue]
    why: str
    free: tuple[str, ...] = ()
    """The parameters of which it says nothing: what they are here is as good as something else."""


def first_points(setup: Setup, found: Found) -> tuple[First, ...]:
    """What the search of a new experiment begins with; at most half of its trials.

    A grid is tried whole, or sampled evenly, and begins nowhere.
    """
    optimization, space = setup.task.optimization, Space.of(setup.task, setup.engine)
    if not optimization.warm_start or optimization.strategy == "grid_search" or not space.dimensions:
        return ()
    room = max(1, optimization.max_iterations // 2)
    usual, roofline = setup.launch.usual(), setup.roofline
    presets = engine_points(setup.engine, space, usual, roofline.expects if roofline else None)
    most = min(EARLIER_POINTS, max(room // 2, room - len(presets)))
    points = list(_new((*presets, *_earlier(setup, found, space, usual))))
    earlier = points[len(presets) :][:most]
    return (*presets[: max(0, room - len(earlier))], *earlier)


def begin(setup: Setup, found: Found) -> tuple[First, ...]:
    """As ``first_points``, and the same again when the experiment is resumed."""
    if (before := load(setup.folder)) is not None:
        return before
    points = first_points(setup, found)
    setup.folder.root.write(FILE, to_text([asdict(point) for point in points]))  # type: ignore[arg-type]
    return points


def load(folder: ExperimentFolder) -> tuple[First, ...] | None:
    text = folder.root.read(FILE)
    if text is None:
        return None
    return tuple(First(**{**point, "free": tuple(point.get("free", ()))}) for point in json.loads(text))


def _new(points: Iterable[First]) -> Iterator[First]:
    """Each once, without the baseline."""
    seen = {config_hash({})}
    for point in points:
        if (name := config_hash(point.parameters)) not in seen:
            seen.add(name)
            yield point


def engine_points(engine: Engine, space: Space, usual: Usual, expects: Expects | None = None) -> list[First]:
    """The engine file's own, but for those that arithmetic speaks against.

    What they do not say stays as it is in the baseline (``usual``).
    """
    points = list(_new(_starts(engine, space, usual)))
    if expects is not None and (others := foreseen(space, expects)):
        points = [point for point in points if not _is_outdone(expects(point.parameters), others)]
    return points[:PRESET_POINTS]


def _is_outdone(expected: tuple[float, float] | None, others: Iterable[tuple[float, float]]) -> bool:
    """Whether one is expected to be much faster and no nearer to a limit."""
    if expected is None:
        return True
    loss, strain = expected
    return any(other <= loss - BEHIND and near <= max(strain, SAFE) for other, near in others)


def _starts(engine: Engine, space: Space, usual: Usual) -> Iterator[First]:
    for start in engine.starts:
        wanted = {name: _first_of(space, name, values) for name, values in start.alternatives.items()}
        if (found := projected(engine, space, wanted, usual)) is not None:
            free = tuple(name for name in found if name not in wanted)
            yield First(dict(found), f"{engine.name}: {start.description}", free)


def _first_of(space: Space, name: str, values: Sequence[ParameterValue]) -> ParameterValue:
    """The first that the task searches; the first of all when it searches none of them."""
    parameter = space.parameters.get(name)
    return next((v for v in values if parameter is not None and coordinate(parameter, v) is not None), values[0])


def _earlier(setup: Setup, found: Found, space: Space, usual: Usual) -> Iterator[First]:
    mine = identity(setup)
    far = [(distance(setup, mine, earlier), earlier) for earlier in found.experiments]
    for how_far, earlier in sorted((pair for pair in far if pair[0] <= FARTHEST), key=lambda pair: pair[0]):
        for place, parameters in enumerate(earlier.best(OF_ONE), 1):
            if (point := projected(setup.engine, space, parameters, usual)) is not None:
                what = f"number {place} of {earlier.name}, {age(earlier.ended_at)} old, at distance {how_far:.1f}"
                yield First(dict(point), what)


def distance(setup: Setup, mine: Identity, earlier: Earlier) -> float:
    """See the top of this module; infinite for another engine."""
    task, other = setup.task, earlier.task
    if (earlier.engine or other.engine) != setup.engine.name:
        return math.inf
    parts = {
        "model": 1 - SequenceMatcher(None, task.model.name.lower(), other.model.name.lower()).ratio(),
        "workload": _workload(task.benchmark, other.benchmark),
        "hardware": _unlike(mine, earlier.identity, "hardware"),
        "objective": float(task.optimization.objective != other.optimization.objective),
        "version": _unlike(mine, earlier.identity, "engine version"),
    }
    return sum(WEIGHTS[name] * part for name, part in parts.items())


def _unlike(mine: Identity, other: Identity, topic: str) -> float:
    here, there = mine.get(topic), other.get(topic)
    return UNKNOWN if here is None or there is None else float(here != there)


def _workload(mine: Benchmark, other: Benchmark) -> float:
    if mine.task != other.task:
        return 1.0
    pairs = zip(_sizes(mine), _sizes(other), strict=True)
    parts = [UNKNOWN if None in pair else _apart(*pair) for pair in pairs]  # type: ignore[arg-type]
    return sum(parts) / len(parts)


def _sizes(benchmark: Benchmark) -> tuple[float | None, float | None, float]:
    """Tokens in and out of a request, on the mean of the scenarios, and the most clients."""
    parsed = [scenarios.parse(text) for text in benchmark.scenarios]
    inputs, outputs = [s.input_tokens for s in parsed], [s.output_tokens for s in parsed]
    return _mean(inputs), _mean(outputs), float(max(benchmark.levels))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _apart(one: float, other: float) -> float:
    return min(1.0, abs(math.log2((one + 1) / (other + 1))) / OCTAVES)


def projected(engine: Engine, space: Space, wanted: Parameters, usual: Usual) -> Parameters | None:
    """The configuration of a space that is nearest to one from elsewhere.

    What is not wanted stays as usual, else as it is typical of the engine, else in the middle. ``None`` when they have
    no parameter in common, or when it breaks a constraint.
    """
    if not wanted.keys() & space.parameters.keys():
        return None
    point = {}
    for name, parameter in space.parameters.items():
        known = engine.parameters.get(name)
        # None, where nobody says more, leaves the flag out if the task allows it.
        values = [*([wanted[name]] if name in wanted else ()), *usual.get(name, ()), known.typical if known else None]
        point[name] = _nearest(parameter, values, known.unlimited if known else None)
    found = space.configuration(point)
    return None if space.problem(found) else found


def _nearest(parameter: Parameter, values: Iterable[ParameterValue], unlimited: float | None) -> float | int:
    """Where the first of these values is that the parameter has, or has one that is near."""
    for value in values:
        if (at := _coordinate(parameter, value, unlimited)) is not None:
            return at
    if isinstance(parameter, Choice):
        return len(parameter.values) // 2 if is_ordered(parameter) else 0
    return 0 if isinstance(parameter, Boolean) else 0.5


def _coordinate(parameter: Parameter, value: ParameterValue, unlimited: float | None) -> float | int | None:
    if (found := coordinate(parameter, value)) is not None:
        return found
    if isinstance(value, bool) or not isinstance(value, int | float) or isinstance(parameter, Boolean):
        return None
    wanted = math.inf if value == unlimited else value
    if isinstance(parameter, Choice):
        numbers = [v for v in parameter.values if isinstance(v, int | float) and not isinstance(v, bool)]
        near = min((v for v in numbers if v != unlimited), key=lambda v: (abs(v - wanted), -v), default=None)
        return None if near is None else coordinate(parameter, near)
    inside = min(max(wanted, parameter.low), parameter.high)
    steps = count(parameter)
    index = None if steps is None else min(steps - 1, round((inside - parameter.low) / (parameter.step or 1)))
    return coordinate(parameter, inside if index is None else grid_value(parameter, index))
