"""A command line as a sequence of options: split, replace by flag, join."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

FLAG = re.compile(r"--?[A-Za-z]")


@dataclass(frozen=True)
class Option:
    """A flag with the values that follow it; the flag is empty for what stands before the first one."""

    flag: str
    values: tuple[str, ...] = ()
    joined: bool = False
    """Written as ``--flag=value``."""

    def is_one_of(self, flags: Collection[str]) -> bool:
        """Whether it is spelled like one of these; vLLM takes underscores for dashes."""
        return self.flag.replace("_", "-") in flags


def split(words: Iterable[str]) -> tuple[Option, ...]:
    """The options of a command line. A negative number is a value, not a flag."""
    options: list[Option] = []
    for word in words:
        if not FLAG.match(word):
            last = options.pop() if options and not options[-1].joined else Option("")
            options.append(Option(last.flag, (*last.values, word)))
        elif "=" in word:
            flag, value = word.split("=", 1)
            options.append(Option(flag, (value,), joined=True))
        else:
            options.append(Option(word))
    return tuple(options)


def put(options: Sequence[Option], flags: Collection[str], new: Option | None) -> tuple[Option, ...]:
    """The options with all that stand under these flags replaced by one, in place of the first; ``None`` removes."""
    at = next((i for i, option in enumerate(options) if option.is_one_of(flags)), None)
    if at is None:
        return (*options, *([new] if new else []))
    if new and options[at].joined and len(new.values) == 1:
        new = Option(new.flag, new.values, joined=True)
    rest = tuple(option for option in options[at:] if not option.is_one_of(flags))
    return (*options[:at], *([new] if new else []), *rest)


def join(options: Iterable[Option]) -> tuple[str, ...]:
    """The command line that ``split`` would take apart into these options."""
    words: list[str] = []
    for option in options:
        if option.joined:
            words.append(f"{option.flag}={option.values[0]}")
        else:
            words.extend([option.flag] if option.flag else [])
            words.extend(option.values)
    return tuple(words)
