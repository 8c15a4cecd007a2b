"""Command lines: what an engine is started with, and what such a line says."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from itertools import zip_longest

from raytune_autotuner.engines import arguments
from raytune_autotuner.engines.arguments import Option
from raytune_autotuner.engines.engine import Engine, EngineParameter, Fixed
from raytune_autotuner.errors import SpecError
from raytune_autotuner.records import Parameters, ParameterValue
from raytune_autotuner.task import expressions

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
ALIKE, WORD_ALIKE = 0.85, 0.65
"""So much of its letters a slip keeps, and each of its words: `size` and `sise`, not `enable` and `disable`."""
BACKEND_FACTS = frozenset({"host", "port", "python"})


def build_argv(
    engine: Engine,
    *,
    command: Sequence[str] | None,
    runtime_args: Sequence[str],
    extra_args: Sequence[str],
    parameters: Parameters,
    raw_flags: Mapping[str, str],
    facts: Mapping[str, str],
) -> tuple[str, ...]:
    """Command and arguments in full; with no parameters these are the runtime's own, and what is ours to set.

    What is already there is replaced in place, whatever its spelling, and new options come last. ``facts`` fill the
    engine file's placeholders (``{model_path}``, ``{served_name}``); ``{python}``, ``{host}`` and ``{port}`` stay for
    the backend when they are not given. A fixed argument whose other facts are missing is left out. ``raw_flags``
    are the flags of parameters that the engine file does not know.

    Raises:
        SpecError: a parameter is neither known nor marked as a raw flag.
    """
    extra = arguments.split(extra_args)
    replaced = {flag for option in extra for flag in _all_flags(engine, option) if flag}
    options = (*(o for o in arguments.split(runtime_args) if not o.is_one_of(replaced)), *extra)
    for name, value in parameters.items():
        flags, replacement = _option(engine, name, value, raw_flags)
        options = arguments.put(options, flags, replacement)
    for fixed in engine.fixed:
        if (filled := _filled(fixed, facts)) is not None:
            options = arguments.put(options, {fixed.flag, *fixed.aliases}, filled)
    return tuple(fill(word, facts) for word in command or engine.command) + arguments.join(options)


def _all_flags(engine: Engine, option: Option) -> frozenset[str]:
    known = (parameter.flags for parameter in engine.parameters.values() if option.is_one_of(parameter.flags))
    return next(known, frozenset({option.flag}))


def _option(
    engine: Engine, name: str, value: ParameterValue, raw_flags: Mapping[str, str]
) -> tuple[frozenset[str], Option | None]:
    """The flags that a parameter may stand under, and the option that says its value."""
    known = engine.canonical(name)
    if known is None and name not in raw_flags:
        cure = f"mark it with `flag: --…` to use it as it is, or use {', '.join(engine.parameters)}"
        raise SpecError.single(f"parameters.{name}", f"unknown to {engine.name}; {cure}")
    if known is None:
        return frozenset({raw_flags[name]}), _said(raw_flags[name], None, value)
    parameter = engine.parameters[known]
    if parameter.type == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)
    return parameter.flags, _said(parameter.flag, parameter.off_flag, value)


def _said(flag: str, off_flag: str | None, value: ParameterValue) -> Option | None:
    if value is None or value is False:
        return Option(off_flag) if off_flag and value is False else None
    return Option(flag) if value is True else Option(flag, (str(value),))


def _filled(fixed: Fixed, facts: Mapping[str, str]) -> Option | None:
    if fixed.value is None:
        return Option(fixed.flag)
    if set(PLACEHOLDER.findall(fixed.value)) - set(facts) - BACKEND_FACTS:
        return None
    return Option(fixed.flag, (fill(fixed.value, facts),))


def fill(text: str, facts: Mapping[str, str]) -> str:
    """The text with the placeholders of known facts replaced."""
    return PLACEHOLDER.sub(lambda found: facts.get(found[1], found[0]), text)


def gpu_count(engine: Engine, parameters: Parameters, runtime_args: Sequence[str]) -> int:
    """The GPUs that one replica takes, from the parameters, else the runtime's own arguments, else the defaults.

    Raises:
        SpecError: the engine's formula has no whole-number value for these parameters.
    """
    values: dict[str, ParameterValue] = {name: p.default for name, p in engine.parameters.items()}
    values |= _values(engine, arguments.split(runtime_args))
    known = {engine.canonical(name): value for name, value in parameters.items()}
    values |= {name: value for name, value in known.items() if name and value is not None}
    try:
        count = float(expressions.parse(engine.gpus).evaluate(values))
    except (expressions.ExpressionError, ValueError) as error:
        raise SpecError.single("parameters", f"no number of GPUs: {error}", engine.name) from error
    if not count.is_integer() or count < 0:
        raise SpecError.single("parameters", f"{engine.gpus} is {count:g}, not a number of GPUs", engine.name)
    return int(count)


def spoken(engine: Engine, args: Sequence[str]) -> dict[str, Hashable]:
    """What a command line says, by parameter; by flag, with the words that follow, where none is known."""
    said: dict[str, Hashable] = {}
    for option in arguments.split(args):
        if known := dict(_values(engine, (option,))):
            said.update(known)
            continue
        flag = option.flag.replace("_", "-")
        before = said.get(flag, ())
        said[flag] = (*(before if isinstance(before, tuple) else ()), *option.values)
    return said


def misspelt(engine: Engine, args: Sequence[str]) -> dict[str, str]:
    """Flags that the engine file does not know, with the one of its own that was probably meant.

    Engines have more flags than their files, many of them alike (``--threads``, ``--threads-batch-draft``), so a slip
    is only what has the same words but for their letters.
    """
    known = frozenset(_known_flags(engine))
    slips: dict[str, str] = {}
    for flag in sorted({option.flag.replace("_", "-") for option in arguments.split(args)} - known):
        alike = sorted(each for each in known if _alike(flag, each))
        if close := get_close_matches(flag, alike, n=1, cutoff=ALIKE):
            slips[flag] = close[0]
    return slips


def _known_flags(engine: Engine) -> Iterator[str]:
    for parameter in engine.parameters.values():
        yield from parameter.flags
    for fixed in engine.fixed:
        yield from (fixed.flag, *fixed.aliases)
    yield from (word for word in (engine.chat_template_flag, *engine.cache_off) if word and word.startswith("-"))


def _alike(flag: str, other: str) -> bool:
    words = list(zip_longest(flag.lstrip("-").split("-"), other.lstrip("-").split("-"), fillvalue=""))
    long = flag.startswith("--") and other.startswith("--")  # of one or two letters each may be another flag
    return long and all(SequenceMatcher(None, *pair).ratio() >= WORD_ALIKE for pair in words)


def _values(engine: Engine, options: Iterable[Option]) -> Iterator[tuple[str, ParameterValue]]:
    """The parameters that stand in a command line."""
    for option in options:
        for name, parameter in engine.parameters.items():
            if option.is_one_of(parameter.flags):
                yield name, _value(parameter, option)


def _value(parameter: EngineParameter, option: Option) -> ParameterValue:
    if not option.values:
        return option.flag != parameter.off_flag
    word = option.values[0]
    try:
        return int(word) if parameter.type == "int" else float(word) if parameter.type == "float" else word
    except ValueError:
        return word  # a form of the engine's own, such as 8k
