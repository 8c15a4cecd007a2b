"""Expressions are parsed, checked and evaluated, and never run."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.task.expressions import MAX_DEPTH, MAX_LENGTH, ExpressionError, parse

VALUES = {"tp_size": 2, "dp_size": 4, "frac": 0.5, "policy": "lpm", "dp": True, "off": False, "unset": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tp_size * dp_size <= 8", True),
        ("tp_size * dp_size", 8),
        ("dp_size / tp_size", 2.0),
        ("dp_size // 3 + dp_size % 3", 2),
        ("-tp_size + +1", -1),
        ("1 < tp_size < dp_size < 4", False),
        ("1 < tp_size <= 2 < dp_size", True),
        ("dp and tp_size > 1", True),
        ("off or tp_size == 3", False),
        ("not off", True),
        ('policy in ["lpm", "fcfs"]', True),
        ("policy not in ('lpm', 'fcfs')", False),
        ("policy == 'lpm'", True),
        ("policy", "lpm"),
        ("dp == true and off == False", True),
        ("unset == null", True),
        ("unset != null", False),
        ("min(tp_size, dp_size, 3) + max(tp_size, frac)", 4),
        ("(tp_size + 1) * 2", 6),
        ("tp_size if dp else dp_size", 2),
        ("tp_size if off else dp_size", 4),
        ("'a' < 'b'", True),
        ("  tp_size\n  >= 1 ", True),
        ("policy == 'two  spaces'", False),
    ],
)
def test_value(text: str, expected: object) -> None:
    """An expression has the value that it has in arithmetic."""
    result = parse(text).evaluate(VALUES)
    assert result == expected
    assert type(result) is type(expected)


def test_names_are_the_parameters() -> None:
    """Literals and functions are no names."""
    assert parse("max(a, b) > 1 and c in [true, null, d]").names == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("a ** 2", "column 1, at `a ** 2`: powers are not allowed"),
        ("1 + __import__('os').system('x')", "column 5, at `__import__('os').sys`: the only functions are min()"),
        ("a.b", "Attribute is not allowed"),
        ("1 < a[0]", "column 5"),
        ("lambda: 1", "Lambda is not allowed"),
        ("a = 2", "column 3, at `= 2`: write `==` to compare"),
        ("a && b", "write `and`"),
        ("a || b", "write `or`"),
        ("!a", "write `not`"),
        ("a is 1", "write `==`"),
        ("1 in a", "`in` needs a list"),
        ("[1, 2]", "a list is allowed only after `in`"),
        ("a in [[1]]", "a list is allowed only after `in`"),
        ("min", "`min` is a function"),
        ("min()", "with one value or more"),
        ("min(a, key=b)", "the only functions"),
        ("min(*a)", "Starred is not allowed"),
        ("~a", "operator"),
        ("a << 3", "operator"),
        ("1e999", "this value is not allowed"),
        ("b'x'", "this value is not allowed"),
        ("1j", "this value is not allowed"),
        ("(a", "column 1"),
        ("a <", "at the end"),
        ("'ä' == a.b", "column 8, at `a.b`"),
        ("a\0b", "this is not an expression"),
        ("-" * (MAX_DEPTH + 1) + "1", "nested more than"),
        ("(" * 240 + "1" + ")" * 240, "not an expression"),
        ("1 + " * MAX_LENGTH + "1", f"at most {MAX_LENGTH}"),
    ],
)
def test_refused(text: str, words: str) -> None:
    """What is not allowed is refused with its column and a list of what is."""
    with pytest.raises(ExpressionError) as error:
        parse(text)
    assert words in str(error.value)
    assert "allowed" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tp_size / (dp_size - 4)", "with dp_size=4, tp_size=2: division by zero"),
        ("policy < tp_size", "'lpm' and 2 have no order"),
        ("unset > 1", "None and 1 have no order"),
        ("policy * 2", "'lpm' is not a number"),
        ("min(policy, 2)", "'lpm' is not a number"),
        ("missing > 1", "no value for missing"),
        ("unset", "is null"),
        ("1e308 * 10 > 1", "not a finite number"),
        ("1" + "0" * 400 + " / 3.0", "no value with these numbers"),
    ],
)
def test_no_value(text: str, words: str) -> None:
    """An expression that has no value says so with the values it was given."""
    with pytest.raises(ExpressionError, match=r"has no value|null") as error:
        parse(text).evaluate(VALUES)
    assert words in str(error.value)


def test_travels() -> None:
    """An expression can be pickled, since it goes to workers."""
    assert pickle.loads(pickle.dumps(parse("a > 1"))).evaluate({"a": 2}) is True


WORDS = (
    "a b policy 1 2.5 0 'x' true null + - * / // % ** < <= == != = ( ) [ ] , and or not in is if else "
    'min max . : lambda { } ! & 1e308 \\ " é'
)
tokens = st.sampled_from(WORDS.split())


@given(st.lists(tokens, max_size=15).map(" ".join) | st.text(max_size=40))
def test_never_raises_anything_else(text: str) -> None:
    """Whatever the text, the outcome is a value or an ExpressionError."""
    try:
        result = parse(text).evaluate({"a": 3, "b": 0, "policy": "lpm"})
    except ExpressionError:
        return
    assert isinstance(result, bool | int | float | str)


@given(st.integers(-50, 50), st.integers(-50, 50), st.sampled_from(["+", "-", "*", "<", "<=", "=="]))
def test_agrees_with_arithmetic(a: int, b: int, op: str) -> None:
    """Numbers are computed as Python computes them."""
    expected = {"+": a + b, "-": a - b, "*": a * b, "<": a < b, "<=": a <= b, "==": a == b}[op]
    assert parse(f"a {op} b").evaluate({"a": a, "b": b}) == expected
