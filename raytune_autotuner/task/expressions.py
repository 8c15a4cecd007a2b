"""Small arithmetic and comparison expressions over parameters, e.g. ``tp_size * dp_size <= 8``.

The text is parsed with ``ast.parse`` and walked against a list of what is allowed; it is never compiled
or run. What is left out on purpose: powers, calls other than ``min`` and ``max``, attributes, indices.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytune_autotuner.records import ParameterValue

MAX_LENGTH = 500
MAX_DEPTH = 40
ALLOWED = (
    "numbers, quoted text, true, false, null, names, + - * / // %, < <= > >= == !=, `in [a, b]`, `not in [a, b]`, "
    "and, or, not, `a if condition else b`, min(), max() and parentheses"
)
LITERALS: Mapping[str, ParameterValue] = {"true": True, "false": False, "null": None}

Operator = Callable[[Any, Any], Any]
ARITHMETIC: Mapping[type[ast.operator], Operator] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
EQUALITY: Mapping[type[ast.cmpop], Operator] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
ORDER: Mapping[type[ast.cmpop], Operator] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max}
SLIPS = {
    r"=[<>]": "write `<=` or `>=`",
    r"&&": "write `and` instead of `&&`",
    r"\|\|": "write `or` instead of `||`",
    r"!(?!=)": "write `not` instead of `!`",
    r"(?<![<>=!])=(?!=)": "write `==` to compare",
}
"""What people write instead, as patterns, and what to write."""
RESERVED = frozenset({*LITERALS, *FUNCTIONS, "True", "False", "None", "and", "or", "not", "in", "is", "if", "else"})
"""Words that cannot be names of parameters."""


class ExpressionError(ValueError):
    """The expression is not one, or has no value for these parameters; the text says where and why."""


@dataclass(frozen=True)
class Expression:
    """A checked expression. Equal when the text is."""

    text: str
    names: frozenset[str]
    tree: ast.expr = field(repr=False, compare=False)

    def evaluate(self, values: Mapping[str, ParameterValue]) -> bool | int | float | str:
        """The value of the expression.

        Raises:
            ExpressionError: a name has no value, the types do not fit, or the result is no finite number.
        """
        try:
            result: ParameterValue = _value(self.tree, values)
        except KeyError as error:
            raise ExpressionError(f"`{self.text}` has no value for {error.args[0]}") from error
        except (TypeError, ArithmeticError) as error:
            known = ", ".join(f"{name}={values[name]!r}" for name in sorted(self.names) if name in values)
            raise ExpressionError(f"`{self.text}` has no value with {known or 'these numbers'}: {error}") from error
        if result is None:
            raise ExpressionError(f"`{self.text}` is null")
        return result


def parse(text: str) -> Expression:
    """The expression that the text says.

    Raises:
        ExpressionError: names the column (from 1), what was found there and what is allowed.
    """
    line = re.sub(r"\s", " ", text).strip()
    if not line:
        raise ExpressionError(f"the expression is empty; allowed are {ALLOWED}")
    if len(line) > MAX_LENGTH:
        raise ExpressionError(f"the expression has {len(line)} characters; at most {MAX_LENGTH} are allowed")
    tree = _tree(line)
    return Expression(line, frozenset(_names(tree, line, MAX_DEPTH)), tree)


def _tree(line: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(line, mode="eval").body
    except SyntaxError as error:
        said = next((hint for slip, hint in SLIPS.items() if re.search(slip, line)), "this is not an expression")
        raise _fault(line, error.offset or len(line) + 1, said) from error  # 0 is the end
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"this is not an expression; allowed are {ALLOWED}") from error


def _fault(line: str, column: int, said: str) -> ExpressionError:
    rest = line[column - 1 : column + 19]
    found = f"at `{rest}`" if rest.strip() else "at the end"
    return ExpressionError(f"column {column}, {found}: {said}; allowed are {ALLOWED}")


def _refuse(node: ast.expr, line: str, said: str) -> ExpressionError:
    column = len(line.encode()[: node.col_offset].decode(errors="ignore")) + 1  # ast counts bytes
    return _fault(line, column, said)


def _names(node: ast.expr, line: str, depth: int) -> Iterator[str]:
    """The names in the tree, while everything that is not allowed is refused."""
    if depth == 0:
        raise _refuse(node, line, f"the expression is nested more than {MAX_DEPTH} deep")
    if isinstance(node, ast.Name):
        yield from () if node.id in LITERALS else (node.id,)
    for part in _parts(node, line):
        yield from _names(part, line, depth - 1)


def _parts(node: ast.expr, line: str) -> Sequence[ast.expr]:
    """The operands of a node that is allowed."""
    match node:
        case ast.Name(name) if name not in FUNCTIONS:
            return ()
        case ast.Constant(value) if _is_value(value):
            return ()
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            return (left, right)
        case ast.UnaryOp(op, operand) if type(op) in UNARY:
            return (operand,)
        case ast.BoolOp(_, operands):
            return operands
        case ast.IfExp(test, body, otherwise):
            return (test, body, otherwise)
        case ast.Compare(left, ops, others):
            return (left, *_compared(ops, others, line))
        case ast.Call(ast.Name(name), [_, *_] as arguments, []) if name in FUNCTIONS:
            return arguments
    raise _refuse(node, line, _what(node))


def _compared(ops: Sequence[ast.cmpop], others: Sequence[ast.expr], line: str) -> Iterator[ast.expr]:
    for op, other in zip(ops, others, strict=True):
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(other, ast.List | ast.Tuple):
                raise _refuse(other, line, "`in` needs a list in brackets, e.g. `in [1, 2]`")
            yield from other.elts
        elif type(op) in EQUALITY or type(op) in ORDER:
            yield other
        else:
            raise _refuse(other, line, "`is` is not allowed, write `==` to compare")


def _is_value(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)


def _what(node: ast.expr) -> str:
    match node:
        case ast.BinOp(_, ast.Pow(), _):
            return "powers are not allowed"
        case ast.BinOp() | ast.UnaryOp():
            return "this operator is not allowed"
        case ast.Call():
            return "the only functions are min() and max(), with one value or more"
        case ast.Name(name):
            return f"`{name}` is a function"
        case ast.Constant():
            return "this value is not allowed"
        case ast.List() | ast.Tuple():
            return "a list is allowed only after `in`"
    return f"{type(node).__name__} is not allowed"


def _value(node: ast.expr, values: Mapping[str, ParameterValue]) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return LITERALS[name] if name in LITERALS else values[name]
        case ast.BinOp(left, op, right):
            return _finite(ARITHMETIC[type(op)](_number(_value(left, values)), _number(_value(right, values))))
        case ast.UnaryOp(ast.Not(), operand):
            return not _value(operand, values)
        case ast.UnaryOp(op, operand):
            return UNARY[type(op)](_number(_value(operand, values)))
        case ast.BoolOp(op, operands):
            return _joined(isinstance(op, ast.Or), operands, values)
        case ast.IfExp(test, body, otherwise):
            return _value(body if _value(test, values) else otherwise, values)
        case ast.Compare(left, ops, others):
            return _holds(_value(left, values), ops, others, values)
        case ast.Call(ast.Name(name), arguments, _):
            return FUNCTIONS[name]([_number(_value(argument, values)) for argument in arguments])
    raise AssertionError(f"unchecked {node}")


def _joined(stop: bool, operands: Sequence[ast.expr], values: Mapping[str, ParameterValue]) -> Any:
    """``and`` and ``or`` as in Python: the first operand that decides, else the last."""
    result: Any = None
    for operand in operands:
        result = _value(operand, values)
        if bool(result) is stop:
            break
    return result


def _holds(
    left: Any, ops: Sequence[ast.cmpop], others: Sequence[ast.expr], values: Mapping[str, ParameterValue]
) -> bool:
    for op, other in zip(ops, others, strict=True):
        right: Any
        if isinstance(other, ast.List | ast.Tuple):
            right = [_value(element, values) for element in other.elts]
        else:
            right = _value(other, values)
        if not (EQUALITY.get(type(op)) or _ordered(op, left, right))(left, right):
            return False
        left = right
    return True


def _ordered(op: ast.cmpop, left: Any, right: Any) -> Operator:
    if isinstance(left, str) != isinstance(right, str) or left is None or right is None:
        raise TypeError(f"{left!r} and {right!r} have no order")
    return ORDER[type(op)]


def _number(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        raise TypeError(f"{value!r} is not a number")
    return value


def _finite(value: Any) -> Any:
    if not math.isfinite(value):
        raise OverflowError("the result is not a finite number")
    return value
