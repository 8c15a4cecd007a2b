"""The text of a task file: JSON or YAML into plain data, with the place of every value.

YAML is read by the rules of YAML 1.2, where only ``true`` and ``false`` are booleans: ``on``, ``off``, ``yes`` and
``no`` are names of choices, ``1e3`` is a number and ``1:30`` is text.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

from raytune_autotuner.errors import Problem, SpecError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 100_000
"""Entries after aliases are followed, so that a small file cannot become a large task."""

Steps = tuple[str | int, ...]
"""The way to a value in the file: keys of mappings and indices of lists."""

Fault = tuple[Steps, str]
"""The way to what is wrong, and what was found and is valid."""


@dataclass(frozen=True)
class Document:
    """What a file says, before anything is known about its meaning."""

    data: Any
    source: str
    lines: Mapping[Steps, int] = field(default_factory=dict)
    """The line by the way to the value; 0 when it came from ``--set``."""

    def problems(self, faults: Iterable[Fault]) -> list[Problem]:
        """The faults in the order of the file, each with its place as the user would write it."""
        ordered = sorted(dict.fromkeys(faults), key=lambda fault: self._line(fault[0]) or 0)
        return [Problem(self._place(steps), message) for steps, message in ordered]

    def _line(self, steps: Steps) -> int | None:
        """The line of the value or, when it is missing, of what should hold it."""
        return next((self.lines[steps[:n]] for n in range(len(steps), 0, -1) if steps[:n] in self.lines), None)

    def _place(self, steps: Steps) -> str:
        line = self._line(steps)
        return dotted(steps) + ("" if line is None else f" (line {line})" if line else " (--set)")


def dotted(steps: Steps) -> str:
    """``("a", 0, "b")`` as ``a[0].b``."""
    return "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps).removeprefix(".")


class _Loader(yaml.SafeLoader):
    """Composes nodes only; the tags of plain scalars follow YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


TAG = "tag:yaml.org,2002:"
STR, NULL, BOOL, INT, FLOAT = (TAG + kind for kind in ("str", "null", "bool", "int", "float"))
MERGE, MAP, SEQ = TAG + "merge", TAG + "map", TAG + "seq"
PLAIN = (
    (BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    (NULL, r"~|null|Null|NULL|", ("~", "n", "N", "")),
    (MERGE, r"<<", "<"),
)
"""What a plain scalar is: tag, pattern, first characters."""
for _tag, _pattern, _first in PLAIN:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
SCALARS: Mapping[str, Callable[[str], Any]] = {
    STR: str,
    NULL: lambda text: None,
    BOOL: lambda text: text.lower() == "true",
    INT: lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    FLOAT: lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


def read(path: Path) -> Document:
    """The document in a file; a name that ends in ``.json`` must be JSON.

    Raises:
        SpecError: there is no such text file, or it is neither JSON nor YAML.
    """
    source = str(path)
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except FileNotFoundError as error:
        raise SpecError.single("", f"there is no such file{_meant_file(path)}", source) from error
    except OSError as error:
        raise SpecError.single("", f"the file cannot be read: {error.strerror}", source) from error
    if raw is None:
        raise SpecError.single("", f"the file is larger than {MAX_BYTES} bytes, which no task is", source)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError.single("", f"this is not a text file in UTF-8 (byte {error.start})", source) from error
    return parse(text, source, strict_json=path.suffix.lower() == ".json")


def parse(text: str, source: str, strict_json: bool = False) -> Document:
    """The document that the text says.

    Raises:
        SpecError: the text is no JSON or YAML, gives a key twice, or holds what no task can hold.
    """
    builder = _Builder(source)
    if strict_json:
        data = _json(text, source)
        with suppress(SpecError):  # the nodes give only the lines here; JSON may be indented by tabs, YAML not
            builder.build(compose(text.replace("\t", " "), source), ())
    else:
        data = builder.build(compose(text, source), ())
    document = Document(data, source, builder.lines)
    faults = [*builder.faults, *_unfit(document.data, ())]
    if faults:
        raise SpecError(document.problems(faults), source)
    return document


def override(document: Document, settings: Sequence[str]) -> Document:
    """The document with ``path=value`` settings applied in order; later ones win.

    A value in brackets, braces or quotes is read as YAML, any other as one plain YAML scalar.

    Raises:
        SpecError: a setting has no ``=``, or its path leads through a value that has no parts.
    """
    data, lines, problems = copy.deepcopy(document.data), dict(document.lines), []
    for setting in settings:
        try:
            steps = _set(data, setting)
        except _SettingError as error:
            problems.append(Problem(f"--set {setting}", str(error)))
            continue
        lines = {k: v for k, v in lines.items() if k[: len(steps)] != steps} | {steps: 0}
    if problems:
        raise SpecError(problems, document.source)
    return replace(document, data=data, lines=lines)


class _SettingError(ValueError):
    """What is wrong with one setting."""


def _set(data: Any, setting: str) -> Steps:
    path, equals, text = setting.partition("=")
    steps: Steps = tuple(
        int(s) if s.isdigit() else s for s in path.strip().replace("[", ".").replace("]", "").split(".")
    )
    if not equals or "" in steps:
        raise _SettingError("write PATH=VALUE, e.g. benchmark.model_tokenizer=/models/tokenizer")
    value = _setting_value(text)
    way: Steps = ()
    for n, step in enumerate(steps, 1):
        step = str(step) if isinstance(data, dict) else step
        part = _part(data, step, way)
        way = (*way, step)
        if n == len(steps):
            data[step] = value
        data = part
    return way


def _part(data: Any, step: str | int, above: Steps) -> Any:
    """The part of a mapping or list; a key that is absent, or says nothing (``null``), becomes an empty mapping."""
    if isinstance(data, list):
        if isinstance(step, int) and step < len(data):
            return data[step]
        raise _SettingError(f"{dotted(above)} is a list; valid are the indices 0 to {len(data) - 1}")
    if isinstance(data, dict):
        if data.get(step) is None:
            data[step] = {}
        return data[step]
    raise _SettingError(f"{dotted(above)} is {found(data)}, which has no parts")


def _setting_value(text: str) -> Any:
    text = text.strip()
    builder = _Builder("")
    try:
        value = builder.build(compose(text, "") if text[:1] in tuple("[{'\"") else _plain(text), ())
    except SpecError as error:
        raise _SettingError(f"the value cannot be read: {error.problems[0].message}") from error
    faults = [*builder.faults, *_unfit(value, ())]
    for steps, message in faults:
        raise _SettingError(f"{dotted(steps)}: {message}" if steps else message)
    return value


def _plain(text: str) -> yaml.ScalarNode:
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False)) if text else STR  # type: ignore[no-untyped-call]
    return yaml.ScalarNode(tag, text)


def holds(data: Any, steps: Steps) -> bool:
    """Whether there is a value at the end of the way."""
    owner = at(data, steps[:-1])
    return not steps or (isinstance(owner, dict) and steps[-1] in owner) or at(owner, steps[-1:]) is not None


def at(data: Any, steps: Steps) -> Any:
    """The value at the end of the way; ``None`` where there is none."""
    for step in steps:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def found(value: Any) -> str:
    """A value in words, for ``found ...``."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return f"the text `{value if len(value) <= 60 else value[:57] + '...'}`"
    return f"`{json.dumps(value)}`"


def meant(name: str, valid: Iterable[str]) -> str:
    """`` (did you mean ...?)`` when a valid name is close, else nothing."""
    spelled = {v.lower(): v for v in valid}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f" (did you mean `{spelled[close[0]]}`?)" if close else ""


def _json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"this is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise SpecError.single("", "the file is empty" if not text.strip() else message, source) from error
    except (RecursionError, ValueError) as error:
        raise SpecError.single(
            "", "this is not a task: nested too deep, or a number that is too long", source
        ) from error


def compose(text: str, source: str) -> yaml.Node:
    """The nodes of a text, with their places in it; raises what ``parse`` does."""
    try:
        loader = _Loader(text)
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise SpecError.single("", f"this is not YAML: {error.problem or error.context}{where}", source) from error
    except yaml.YAMLError as error:
        raise SpecError.single(
            "", "this is not a text file: it has characters that cannot be printed", source
        ) from error
    except RecursionError as error:
        raise SpecError.single("", "the file is nested too deep", source) from error
    if node is None:
        raise SpecError.single("", "the file is empty; `raytune-autotuner init` writes a task to start from", source)
    return node


class _Builder:
    """Makes plain data from YAML nodes and notes the lines; everything that is wrong is collected."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.lines: dict[Steps, int] = {}
        self.faults: list[Fault] = []
        self._left = MAX_NODES

    def build(self, node: yaml.Node, steps: Steps) -> Any:
        if node.start_mark:
            self.lines.setdefault(steps, node.start_mark.line + 1)
        self._left -= 1
        if self._left < 0 or len(steps) > MAX_DEPTH:
            raise SpecError.single(
                "", f"this holds more than {MAX_NODES} values or nests deeper than {MAX_DEPTH}", self._source
            )
        if isinstance(node, yaml.MappingNode) and node.tag == MAP:
            return self._mapping(node, steps)
        if isinstance(node, yaml.SequenceNode) and node.tag == SEQ:
            return [self.build(item, (*steps, n)) for n, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in SCALARS:
            return self._scalar(node, steps)
        self.faults.append((steps, f"the tag {node.tag.removeprefix(TAG)} is not allowed; write plain values"))
        return None

    def _mapping(self, node: yaml.MappingNode, steps: Steps) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            inner = (*steps, key.value if isinstance(key, yaml.ScalarNode) else "?")
            if not isinstance(key, yaml.ScalarNode):
                self.faults.append((steps, "a key of a mapping must be plain text"))
            elif key.tag == MERGE:
                merged = {**self._merged(value, steps), **merged}
            elif key.value in own:
                self.faults.append((inner, f"is given twice, again in line {key.start_mark.line + 1}"))
            else:
                if key.start_mark:
                    self.lines[inner] = key.start_mark.line + 1
                own[key.value] = self.build(value, inner)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, steps: Steps) -> dict[str, Any]:
        value = self.build(node, steps)
        parts: list[Any] = value if isinstance(value, list) else [value]
        for part in parts:
            if not isinstance(part, dict):
                self.faults.append((steps, "`<<` merges mappings only"))
                return {}
        return {k: v for part in reversed(parts) for k, v in part.items()}  # earlier ones win

    def _scalar(self, node: yaml.ScalarNode, steps: Steps) -> Any:
        try:
            return SCALARS[node.tag](node.value)
        except ValueError:
            self.faults.append((steps, f"`{node.value[:40]}` is not a value of its type"))
            return None


def _unfit(value: Any, steps: Steps) -> Iterator[Fault]:
    """What neither a manifest, a command line nor a record can carry."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unfit_text(key, steps)
            yield from _unfit(item, (*steps, key))
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from _unfit(item, (*steps, n))
    elif isinstance(value, float) and not math.isfinite(value):
        yield steps, f"found {value}, which is not a finite number"
    elif isinstance(value, str):
        yield from _unfit_text(value, steps)


def _unfit_text(text: str, steps: Steps) -> Iterator[Fault]:
    if re.search("[\0\ud800-\udfff]", text):
        yield steps, "the text holds a character that no command line can carry"


def _meant_file(path: Path) -> str:
    folder = path.parent
    return meant(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else ""
