"""What a task must be to its engine and its search space, and the way in that checks everything.

A rule is one function that yields faults. ``load_checked`` reports what is wrong with the file and what the
rules, here and in ``rules``, find about the rest of it, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from pathlib import Path

import numpy as np

from raytune_autotuner.engines.engine import Engine, EngineParameter, load_engine
from raytune_autotuner.errors import Problem, SpecError
from raytune_autotuner.planning.plan import make_plan, unpayable
from raytune_autotuner.planning.rules import HERE_RULES, TASK_RULES
from raytune_autotuner.planning.space import Rule, Space, count, grid_value
from raytune_autotuner.records import Parameters, ParameterValue
from raytune_autotuner.redaction import HIDDEN
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.expressions import ExpressionError
from raytune_autotuner.task.parameters import Boolean, Choice, FloatRange, IntRange, Parameter
from raytune_autotuner.task.spec import Reading, Task, read_task
from raytune_autotuner.task.taskfile import Document, Fault, Steps, meant

OME_ENGINE = "sglang"
"""Whose names are valid when an OME task leaves the engine to its runtime."""
MAX_TRIED = 300
"""Combinations of values with which an expression is tried."""


def load_checked(path: Path, overrides: Sequence[str] = (), here: bool = False) -> tuple[Task, Engine]:
    """The task in a file, with its engine, when nothing is wrong with it.

    ``here`` is for a task that this machine runs: what it names, such as the model, has to be on it.

    Raises:
        SpecError: lists everything that is wrong, with the lines.
    """
    return load_document(taskfile.override(taskfile.read(path), overrides), here)


def load_document(document: Document, here: bool = False) -> tuple[Task, Engine]:
    """As ``load_checked``, for text that is no file of the user's."""
    reading = read_task(document)
    engine, faults = _engine(reading)
    faults = [*reading.faults, *faults, *_findings(reading, engine, here), *_hidden(reading.document.data, ())]
    if faults or reading.task is None or engine is None:
        raise SpecError(reading.document.problems(faults), reading.document.source)
    return reading.task, engine


def check(task: Task, engine: Engine) -> list[Problem]:
    """What is wrong with a task whose parts are well-formed."""
    document = Document(None, "task")
    return document.problems(_findings(Reading(document, task, (), ()), engine))


def check_parameters(task: Task, engine: Engine, text: str) -> Parameters:
    """One configuration, given as a JSON mapping, by the engine's own names.

    Raises:
        SpecError: it is no mapping of known names to fitting values, or breaks a constraint of the task.
    """
    document = taskfile.parse(text, "--params", strict_json=True)
    if not isinstance(document.data, dict):
        raise SpecError.single(
            "", f'write a mapping, e.g. {{"tp_size": 2}}, not {taskfile.found(document.data)}', "--params"
        )
    faults: list[Fault] = []
    parameters: dict[str, ParameterValue] = {}
    for name, value in document.data.items():
        flagged = name in task.parameters and task.parameters[name].flag is not None
        known = engine.canonical(name)
        if isinstance(value, dict | list):
            faults.append(((name,), f"found {taskfile.found(value)}; valid is text, a number, true, false or null"))
        elif known is None and not flagged:
            faults.append(((name,), _unknown_parameter(name, engine)))
        elif known is not None and (message := _misfit(value, engine.parameters[known])):
            faults.append(((name,), message))
        parameters[known or name] = value
    if not faults and (broken := Space.of(task, engine).problem(parameters)):
        faults.append(((), broken))
    if faults:
        raise SpecError(document.problems(faults), "--params")
    return parameters


def _engine(reading: Reading) -> tuple[Engine | None, list[Fault]]:
    if reading.task is None or not reading.intact(("engine",), ("backend",)):
        return None, []
    name = reading.task.engine or (OME_ENGINE if reading.task.backend == "ome" else None)
    if name is None:
        return None, [(("engine",), "is missing; backend local needs it, e.g. llamacpp, sglang or vllm")]
    try:
        return load_engine(name), []
    except SpecError as error:
        said = [p.message if p.place == "engine" else f"in {error.source}: {p}" for p in error.problems]
        return None, [(("engine",), message) for message in said]


def _findings(reading: Reading, engine: Engine | None, here: bool = False) -> Iterator[Fault]:
    """What the rules find whose parts of the task are well-formed."""
    task = reading.task
    if task is None:
        return
    rules = {**TASK_RULES, **(HERE_RULES if here else {})}
    found = [f for rule, parts in rules.items() if reading.intact(*map(_way, parts)) for f in rule(task)]
    if engine is not None:
        named = [
            f for rule, parts in ENGINE_RULES.items() if reading.intact(*map(_way, parts)) for f in rule(task, engine)
        ]
        whole = not named and reading.intact(("parameters",), ("presets",), ("constraints",))
        found += named or ([*_feasible(task, engine), *_affordable(task, engine)] if whole else [])
    yield from (fault for fault in found if reading.intact(fault[0]))


def _hidden(value: object, steps: Steps) -> Iterator[Fault]:
    """Secrets that were left out where the task was copied from."""
    if isinstance(value, dict | list):
        for step, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _hidden(each, (*steps, step))
    elif isinstance(value, str) and HIDDEN in value:
        yield steps, f"`{HIDDEN}` stands for what was hidden when this was copied; write the value itself, or remove it"


def _way(part: str) -> Steps:
    return tuple(part.split("."))


def _grid(task: Task, engine: Engine) -> Iterator[Fault]:
    if task.optimization.strategy != "grid_search" or any(name not in engine.presets for name in task.presets):
        return
    own = {engine.canonical(name) for name in task.parameters}
    for name, parameter in task.parameters.items():
        if count(parameter) is None:
            yield ("parameters", name, "step"), "is missing; grid_search needs it to make values of a float range"
    for n, preset in enumerate(task.presets):
        for name, parameter in engine.presets[preset].parameters.items():
            if name not in own and count(parameter) is None:
                yield (
                    ("presets", n),
                    f"searches the float range {name}, of which grid_search needs a step; set it yourself",
                )


def _names(task: Task, engine: Engine) -> Iterator[Fault]:
    meanings: dict[str, str] = {}
    for name, parameter in task.parameters.items():
        at = ("parameters", name)
        known = engine.canonical(name)
        by_flag = engine.canonical(parameter.flag) if parameter.flag else None
        if known is None and parameter.flag is None:
            yield at, _unknown_parameter(name, engine)
        elif parameter.flag and (known or by_flag):
            yield (*at, "flag"), f"{engine.name} knows this as {known or by_flag}; use that name and leave the flag out"
        elif (other := meanings.setdefault(known or parameter.flag or name, name)) != name:
            yield at, f"means the same as {other}; keep one of the two"


def _unknown_parameter(name: str, engine: Engine) -> str:
    valid = ", ".join(engine.parameters)
    hint = meant(name, engine.parameters)
    return (
        f"{engine.name} has no such parameter{hint}; valid are {valid}; any other needs `flag: --…` to be used as it is"
    )


def _presets(task: Task, engine: Engine) -> Iterator[Fault]:
    for n, name in enumerate(task.presets):
        if name not in engine.presets:
            valid = ", ".join(engine.presets) or "none"
            yield (
                ("presets", n),
                f"{engine.name} has no preset `{name}`{meant(name, engine.presets)}; valid are {valid}",
            )
        elif name in task.presets[:n]:
            yield ("presets", n), f"`{name}` is given twice"


def _values(task: Task, engine: Engine) -> Iterator[Fault]:
    for name, parameter in task.parameters.items():
        known = engine.parameters.get(engine.canonical(name) or "")
        if known is None:
            continue
        at = ("parameters", name)
        if isinstance(parameter, Choice):
            for n, value in enumerate(parameter.values):
                if message := _misfit(value, known):
                    yield (*at, "values", n), message
        elif not _fits(parameter, known):
            suited = f"{{type: choice, values: [{', '.join(map(str, known.values))}]}}" if known.values else known.type
            yield (*at, "type"), f"found `{parameter.type}`, but {name} takes {_kind(known)}; write {suited}"


def _fits(parameter: Parameter, known: EngineParameter) -> bool:
    if isinstance(parameter, Boolean):
        return known.type == "bool"
    if known.type == "choice" and isinstance(parameter, IntRange):
        numbers = {value for value in known.values if isinstance(value, int)}
        return {grid_value(parameter, n) for n in range(min(count(parameter) or 0, len(numbers) + 1))} <= numbers
    return known.type in (("float", "str") if isinstance(parameter, FloatRange) else ("int", "float", "str"))


def _misfit(value: ParameterValue, known: EngineParameter) -> str | None:
    """Why an engine parameter cannot have a value; null and false always leave the flag out."""
    if value is None or value is False or known.takes(value):
        return None
    return (
        f"found {taskfile.found(value)}; {known.flag} takes {_kind(known)}{meant(str(value), map(str, known.values))}"
    )


def _kind(known: EngineParameter) -> str:
    kinds = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    return kinds.get(known.type) or f"one of {', '.join(map(str, known.values))}"


def _fixed_and_searched(task: Task, engine: Engine) -> Iterator[Fault]:
    searched = {engine.canonical(name) or p.flag: name for name, p in task.parameters.items()}
    for n, argument in enumerate(task.extra_args):
        flag = argument.partition("=")[0]
        name = searched.get(engine.canonical(flag) or flag) if flag.startswith("-") else None
        if name is not None:
            yield ("extra_args", n), f"{flag} is searched as the parameter {name}; remove one of the two"


def _expressions(task: Task, engine: Engine) -> Iterator[Fault]:
    """Names, circles and values of conditions and constraints."""
    presets = [engine.presets[name].parameters for name in task.presets if name in engine.presets]
    named = {name: p for source in (*presets, task.parameters) for name, p in source.items()}
    parameters = {engine.canonical(name) or name: p for name, p in named.items()}
    texts: dict[Steps, str] = {("parameters", name, "when"): p.when for name, p in task.parameters.items() if p.when}
    texts |= {("constraints", n): text for n, text in enumerate(task.constraints)}
    for at, text in texts.items():
        rule = Rule.of(text, engine)
        unknown = [name for name, of in rule.names.items() if of not in parameters]
        for name in unknown:
            valid = ", ".join(named) or "none"
            yield at, f"`{name}` is not searched{meant(name, named)}; valid are {valid}"
        if not unknown and (message := _no_value(rule, parameters)):
            yield at, message


def _no_value(rule: Rule, parameters: Mapping[str, Parameter]) -> str | None:
    """Why the expression has no value for some of the values that the parameters can have."""
    columns = [_examples(parameters[of]) for of in rule.names.values()]
    for row in islice(product(*columns), MAX_TRIED):
        try:
            rule.expression.evaluate(dict(zip(rule.names, row, strict=True)))
        except ExpressionError as error:
            return str(error)
    return None


def _examples(parameter: Parameter) -> list[ParameterValue]:
    """Values that show what an expression makes of the parameter; null never counts."""
    if isinstance(parameter, Choice):
        return [value for value in parameter.values if value is not None]
    return [False, True] if isinstance(parameter, Boolean) else [parameter.low, parameter.high]


def _circles(task: Task, engine: Engine) -> Iterator[Fault]:
    if any(name not in engine.presets for name in task.presets):
        return
    try:
        Space.of(task, engine)
    except SpecError as error:
        for problem in error.problems:
            yield tuple(problem.place.split(".")), problem.message


def _feasible(task: Task, engine: Engine) -> Iterator[Fault]:
    """Whether anything keeps the constraints."""
    space = Space.of(task, engine)
    if not space.constraints or not space.dimensions:
        return
    try:
        space.sample(np.random.default_rng(0))
    except SpecError as error:
        yield ("constraints",), error.problems[0].message


def _affordable(task: Task, engine: Engine) -> Iterator[Fault]:
    """Whether the budget pays at all for an answer, on a fast engine."""
    if task.optimization.budget is None:
        return
    with suppress(SpecError):  # whose own rule tells of it
        plan = make_plan(task, engine)
        yield from ((("optimization", "budget", place), message) for place, message in unpayable(plan))


EngineRule = Callable[[Task, Engine], Iterable[Fault]]
ENGINE_RULES: Mapping[EngineRule, tuple[str, ...]] = {
    _names: (),
    _presets: ("presets",),
    _values: (),
    _fixed_and_searched: ("extra_args",),
    _expressions: ("parameters", "presets", "constraints"),
    _grid: ("optimization.strategy", "presets"),
    _circles: ("parameters", "presets"),
}
