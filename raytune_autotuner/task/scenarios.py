"""Traffic scenarios in genai-bench's notation, e.g. ``D(100,100)``.

The forms and which task takes which are genai-bench 0.0.5's (``genai_bench/scenarios``, ``genai_bench/sampling``).
Stricter here: what genai-bench accepts and then silently changes or drops is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["D", "N", "U", "E", "R", "I", "dataset"]
FORMS: dict[Kind, str] = {
    "D": "D(input,output)",
    "N": "N(mean,deviation)/(mean,deviation)",
    "U": "U(low,high)/(low,high) or U(input,output)",
    "E": "E(tokens)",
    "R": "R(document,query)",
    "I": "I(width,height) or I(width,height,images)",
    "dataset": "dataset",
}
TASK_FORMS: dict[str, tuple[Kind, ...]] = {
    "text-to-text": ("D", "N", "U", "dataset"),
    "image-text-to-text": ("I", "dataset"),
    "text-to-embeddings": ("E", "dataset"),
    "text-to-rerank": ("R", "dataset"),
}
DEFAULTS = {
    "text-to-text": "D(100,100)",
    "image-text-to-text": "I(512,512)",
    "text-to-embeddings": "E(512)",
    "text-to-rerank": "R(512,100)",
}
BATCHED = frozenset({"text-to-embeddings", "text-to-rerank"})
"""Tasks that genai-bench runs at levels of batch size, with one request at a time."""

PATTERN = re.compile(r"(?P<kind>[DNUERI])\((?P<first>\d{1,9}(?:,\d{1,9})*)\)(?:/\((?P<second>\d{1,9},\d{1,9})\))?")
SHAPES: dict[tuple[str, int, int], Kind] = {
    ("D", 2, 0): "D",
    ("N", 2, 2): "N",
    ("U", 2, 0): "U",
    ("U", 2, 2): "U",
    ("E", 1, 0): "E",
    ("R", 2, 0): "R",
    ("I", 2, 0): "I",
    ("I", 3, 0): "I",
}
"""How many numbers stand in each pair of parentheses."""

MIN_OUTPUT_TOKENS = 2
"""genai-bench drops an answer of one token as invalid, and fails when all are."""


@dataclass(frozen=True)
class Scenario:
    """What one request of the traffic looks like, on average."""

    text: str
    kind: Kind
    input_tokens: float | None
    """Per document for embeddings and rerank; ``None`` where the data decides."""
    output_tokens: float | None
    min_input_tokens: int | None = None
    """The shortest prompt to be expected, as genai-bench reckons it for shared prefixes."""


Numbers = tuple[int, ...]


def parse(text: str) -> Scenario:
    """The scenario that the text says.

    Raises:
        ValueError: it is none of the forms, or one that cannot be measured; says which are valid.
    """
    if text == "dataset":
        return Scenario(text, "dataset", None, None)
    match = PATTERN.fullmatch(text)
    first, second = (_numbers(match["first"]), _numbers(match["second"])) if match else ((), ())
    kind = SHAPES.get((match["kind"], len(first), len(second))) if match else None
    if kind is None:
        raise ValueError(f"`{text}` is not a scenario{_slip(text)}; valid are {', '.join(FORMS.values())}")
    scenario = READERS[kind](text, first, second)
    if scenario.output_tokens is not None and scenario.output_tokens < MIN_OUTPUT_TOKENS:
        raise ValueError(f"`{text}`: genai-bench drops answers of one token; ask for {MIN_OUTPUT_TOKENS} or more")
    return scenario


def _numbers(text: str | None) -> Numbers:
    return tuple(map(int, text.split(","))) if text else ()


def _slip(text: str) -> str:
    closed = re.sub(r"\s", "", text)
    if closed != text and PATTERN.fullmatch(closed):
        return f" (write {closed}, without blanks)"
    if text.count("(") != text.count(")"):
        return ' (in a YAML list in brackets it needs quotes: ["D(100,100)"])'
    return ""


def _positive(text: str, numbers: Numbers) -> None:
    if 0 in numbers:
        raise ValueError(f"`{text}` asks for nothing: sizes start at 1")


def _deterministic(text: str, first: Numbers, _: Numbers) -> Scenario:
    _positive(text, first)
    return Scenario(text, "D", first[0], first[1], first[0])


def _normal(text: str, first: Numbers, second: Numbers) -> Scenario:
    _positive(text, (first[0], second[0]))
    return Scenario(text, "N", first[0], second[0], max(1, first[0] - 3 * first[1]))


def _uniform(text: str, first: Numbers, second: Numbers) -> Scenario:
    (low, high), (shortest, longest) = (first, second) if second else ((1, first[0]), (1, first[1]))
    _positive(text, (low, high, shortest, longest))
    if low > high or shortest > longest:
        raise ValueError(f"`{text}` has a low end above its high end; write U(low,high)/(low,high)")
    if longest < MIN_OUTPUT_TOKENS:
        return Scenario(text, "U", (low + high) / 2, longest, low)
    return Scenario(text, "U", (low + high) / 2, max(MIN_OUTPUT_TOKENS, (shortest + longest) / 2), low)


def _embedding(text: str, first: Numbers, _: Numbers) -> Scenario:
    _positive(text, first)
    return Scenario(text, "E", first[0], None)


def _rerank(text: str, first: Numbers, _: Numbers) -> Scenario:
    _positive(text, first)
    return Scenario(text, "R", first[0] + first[1], None)


def _image(text: str, first: Numbers, _: Numbers) -> Scenario:
    _positive(text, first)
    return Scenario(text, "I", None, None)


READERS: dict[Kind, Callable[[str, Numbers, Numbers], Scenario]] = {
    "D": _deterministic,
    "N": _normal,
    "U": _uniform,
    "E": _embedding,
    "R": _rerank,
    "I": _image,
}
