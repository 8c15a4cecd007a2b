"""The text of a task that follows its data; what has not changed stays as it was written, with its comments."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from raytune_autotuner.errors import SpecError
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.taskfile import Steps

SOURCE = "task"
ONE_LINE = 10**6
FLOW_PARTS = 16
GONE = object()
"""In place of a value that is to be no more."""


def data_of(text: str) -> dict[str, Any] | None:
    """What a text says; ``None`` when it is no mapping in YAML."""
    if not text.strip():
        return {}
    try:
        data = taskfile.parse(text, SOURCE).data
    except SpecError:
        return None
    return data if isinstance(data, dict) else None


def rewritten(text: str, wanted: Mapping[str, Any]) -> str:
    """A text that says the data, as much as can be the one before; all of it is written anew where that fails."""
    before = data_of(text)
    if before is None or not before:
        return to_text(wanted)
    now = text
    try:
        for steps, value in _changes(before, wanted, ()):
            now = _changed(now, steps, value)
    except (ValueError, LookupError, SpecError):  # e.g. by an alias, whose value stands elsewhere
        return to_text(wanted)
    return now if _same(data_of(now), wanted) else to_text(wanted)


def to_text(data: Mapping[str, Any]) -> str:
    """A task's data as YAML, short lists and mappings on a line."""
    return str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


class _Dumper(yaml.SafeDumper):
    """Leaves of the tree on one line each."""


def _short(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    node = yaml.SafeDumper.represent_dict(dumper, value) if isinstance(value, dict) else dumper.represent_list(value)
    parts = value.values() if isinstance(value, dict) else value
    flow = len(value) <= FLOW_PARTS and not any(isinstance(part, dict) for part in parts)
    is_parameter = isinstance(value, dict) and "type" in value
    node.flow_style = is_parameter or (flow and isinstance(value, list))
    return node


_Dumper.add_representer(dict, _short)
_Dumper.add_representer(list, _short)


def _same(one: Any, other: Any) -> bool:
    """Of the same types too: ``1`` is not ``true``."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _changes(before: Any, wanted: Any, way: Steps) -> Iterator[tuple[Steps, Any]]:
    """The smallest values that differ."""
    if before and wanted and isinstance(before, dict) and isinstance(wanted, Mapping):
        for key in before:
            if key not in wanted:
                yield (*way, key), GONE
        for key, value in wanted.items():
            yield from _changes(before.get(key, GONE), value, (*way, key))
    elif isinstance(before, list) and isinstance(wanted, list) and len(before) == len(wanted):
        for n, (old, new) in enumerate(zip(before, wanted, strict=True)):
            yield from _changes(old, new, (*way, n))
    elif before is GONE or not _same(before, wanted):
        yield way, wanted


def _changed(text: str, steps: Steps, value: Any) -> str:
    """The text with one value changed, added or removed.

    Raises:
        ValueError, LookupError: the text is of a kind in which that cannot be done.
    """
    node = taskfile.compose(text, SOURCE)
    for step in steps[:-1]:
        node = _part(node, step)[1]
    if isinstance(steps[-1], str) and not _has(node, steps[-1]):
        return _added(text, node, steps[-1], value)
    if value is GONE:
        return _removed(text, node, steps[-1])
    key, part = _part(node, steps[-1])
    start, said = part.start_mark.index, _inline(value)
    if isinstance(part, yaml.SequenceNode) and not part.flow_style and value and isinstance(value, list):
        said = f"\n{' ' * part.start_mark.column}".join(f"- {_inline(each)}" for each in value)
    elif key is not None:
        start, said = text.index(":", key.end_mark.index) + 1, f" {said}"
    return text[:start] + said + text[_end(text, part) :]


def _part(node: yaml.Node, step: str | int) -> tuple[yaml.Node | None, yaml.Node]:
    """The key, where there is one, and the value."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        return None, node.value[step]
    if not isinstance(node, yaml.MappingNode):
        raise LookupError(step)
    return [(key, value) for key, value in node.value if key.value == step][0]  # noqa: RUF015  (a LookupError)


def _has(node: yaml.Node, key: str) -> bool:
    return isinstance(node, yaml.MappingNode) and any(each.value == key for each, _ in node.value)


def _end(text: str, node: yaml.Node) -> int:
    """Where the last thing of a node ends; YAML counts the comments and blank lines after it in."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return max(_end(text, each) for each in last) if isinstance(last, tuple) else _end(text, last)
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip())


def _inline(value: Any) -> str:
    said = yaml.safe_dump(value, default_flow_style=True, width=ONE_LINE, sort_keys=False, allow_unicode=True)
    said = said.removesuffix("...\n").strip()
    try:
        fits = "\n" not in said and _same(taskfile.parse(said, SOURCE).data, value)
    except SpecError:
        fits = False
    return said if fits else json.dumps(value, ensure_ascii=False)  # PyYAML writes by the rules of YAML 1.1


def _added(text: str, node: yaml.Node, key: str, value: Any) -> str:
    """At the end of its mapping."""
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise LookupError(key)
    end = _end(text, node) if not node.flow_style else _end(text, node.value[-1][1])
    if node.flow_style:
        return f"{text[:end]}, {_inline(key)}: {_inline(value)}{text[end:]}"
    end = text.find("\n", end) if "\n" in text[end:] else len(text)
    lines = textwrap.indent(to_text({key: value}), " " * node.start_mark.column).rstrip()
    return f"{text[:end]}\n{lines}{text[end:] or chr(10)}"


def _removed(text: str, node: yaml.Node, step: str | int) -> str:
    """With the rest of its last line; comments above it stay."""
    at = [key.value for key, _ in node.value].index(step)
    key, value = node.value[at]
    start, end = key.start_mark.index, max(_end(text, key), _end(text, value))
    if not node.flow_style:  # type: ignore[attr-defined]
        return text[: text.rfind("\n", 0, start) + 1] + text[end:].partition("\n")[2]
    if at + 1 < len(node.value):
        return text[:start] + text[node.value[at + 1][0].start_mark.index :]
    return text[: _end(text, node.value[at - 1][1])] + text[end:]
