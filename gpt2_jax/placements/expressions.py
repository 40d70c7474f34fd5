"""The syntax of axis values: expressions, scales, `attention | cross | mlp` and `a+b`.

An expression is a string such as `(2*L)**0.25` or `minimum(t/(1000*l), 1)`. Its names are

  l  the block's number, from 1          L  the number of blocks
  s  the sublayer's number, from 1       S  the number of sublayers
  d  the width of the stream             t  steps done
  std  `model.init_std`                  P  the number of sublayers of the whole model
  M  the number of blocks of the decoder whose cross-attention reads this encoder, else 0

In a model of an encoder and a decoder, l, L, s and S are those of the one that the expression is
evaluated for.

Nothing is executed: the text is parsed, checked against a list of allowed syntax, and evaluated on
numbers or traced arrays. Numbers are computed in float64, never as integers of arbitrary length, so
`9**9**9**9` overflows instead of running forever.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np

from gpt2_jax.errors import counted
from gpt2_jax.placements.towers import SUBLAYERS, TowerShape

INT32_MAX = 2**31 - 1
LONGEST_EXPRESSION = 200  # characters
MAX_NESTING = 64  # operations
NAMES = ("l", "L", "s", "S", "d", "t", "M", "P", "std")
# Functions and the number of their arguments.
FUNCTIONS = {"minimum": 2, "maximum": 2, "sqrt": 1, "log": 1, "exp": 1, "floor": 1, "where": 3}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_INTEGRAL = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Pow)  # integers to integers


@dataclass(frozen=True)
class Expression:
    """An arithmetic expression in `NAMES`; created by `parse_expression`."""

    text: str

    @cached_property
    def tree(self) -> ast.expr:
        """Its syntax tree."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about syntax that is refused anyway
            return ast.parse(self.text.strip(), mode="eval").body

    @cached_property
    def names(self) -> frozenset[str]:
        """The names it depends on."""
        found = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        return frozenset(found & set(NAMES))

    @cached_property
    def constant(self) -> float | None:
        """Its value if it depends on no name, else None."""
        return None if self.names else float(self({}))

    def __call__(self, values: Mapping[str, Any], xp: ModuleType = np) -> Any:
        """Returns its value.

        Args:
          values: a float, or an array of `xp`, for each of its names.
          xp: numpy or jax.numpy.
        """
        return _evaluate(self.tree, values, xp)


@cache
def parse_expression(text: str) -> Expression:
    """Parses an expression.

    Raises:
      ValueError: if the text is not a valid expression.
    """
    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"it has {len(text)} characters; the limit is {LONGEST_EXPRESSION}")
    if "#" in text:  # would start a Python comment
        raise ValueError(f"{text!r} is not arithmetic")
    expression = Expression(text)
    try:
        tree = expression.tree
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # ValueError: a null character
        raise ValueError(f"{text!r} is not arithmetic") from None
    _check(tree)
    return expression


@dataclass(frozen=True)
class Sizes:
    """The sizes that expressions may use."""

    tower: TowerShape
    n_embd: int
    init_std: float

    def values(self, l: Any, index: int = 0) -> dict[str, Any]:
        """Returns the values of all names at step 0; floats unless l is traced.

        Args:
          l: the block's number, from 1. index: position of the sublayer in the block, from 0.
        """
        n = len(self.tower.sublayers)
        return {
            "l": 1.0 * l,
            "L": float(self.tower.n_layer),
            "s": float(n) * l - float(n - 1) + index,
            "S": float(self.tower.n_sublayers),
            "M": float(self.tower.n_reader_layers),
            "P": float(self.tower.n_model_sublayers),
            "d": float(self.n_embd),
            "t": 0.0,
            "std": self.init_std,
        }


def _check(node: ast.expr, depth: int = 1) -> None:
    """Refuses everything except arithmetic, comparisons, known names and known functions."""
    if depth > MAX_NESTING:
        raise ValueError(f"it nests more than {MAX_NESTING} operations")
    parts: list[ast.expr]
    match node:
        case ast.Constant(value=bool()):
            raise ValueError(f"{node.value!r} is not allowed in an expression")
        case ast.Constant(value=int() | float()):
            parts = []
        case ast.Name(id=name):
            if name not in NAMES:
                raise ValueError(f"{name!r} is not a known name; choose one of {', '.join(NAMES)}")
            parts = []
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            parts = [left, right]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            parts = [operand]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            parts = [left, right]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in FUNCTIONS:
                raise ValueError(
                    f"{name!r} is not a known function; choose one of {', '.join(FUNCTIONS)}"
                )
            if len(args) != FUNCTIONS[name]:
                raise ValueError(
                    f"{name} takes {counted(FUNCTIONS[name], 'argument')}, not {len(args)}"
                )
            parts = args
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not allowed in an expression")
    for part in parts:
        _check(part, depth + 1)


def _evaluate(node: ast.expr, values: Mapping[str, Any], xp: ModuleType) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            # Small integers stay integers for jax, which computes integer powers by multiplication.
            return value if xp is not np and abs(value) <= INT32_MAX else float(value)
        case ast.Name(id=name):
            return values[name]
        case (
            ast.BinOp(left=left, op=op, right=right)
            | ast.Compare(left=left, ops=[op], comparators=[right])
        ):
            return _apply(op, _evaluate(left, values, xp), _evaluate(right, values, xp))
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, values, xp)
        case ast.Call(func=ast.Name(id=name), args=args):
            evaluated = [_evaluate(arg, values, xp) for arg in args]
            if xp is np and name == "where" and np.isnan(evaluated[0]):
                return float("nan")
            with np.errstate(all="ignore"):  # callers check whether the result is finite
                value = getattr(xp, name)(*evaluated)
            return float(value) if xp is np else value
    raise TypeError(ast.dump(node))


def _apply(op: ast.operator | ast.cmpop, left: Any, right: Any) -> Any:
    """Returns the value of an operation; for two numbers in float64, NaN if it is undefined."""
    operation = _OPERATORS[type(op)]
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return operation(left, right)
    try:
        value = operation(float(left), float(right))
    except OverflowError:
        return float("inf")
    except ZeroDivisionError:
        return float("nan")
    if isinstance(value, complex):  # a root of a negative number
        return float("nan")
    if isinstance(op, ast.cmpop) and (np.isnan(left) or np.isnan(right)):
        return float("nan")
    integral = type(left) is type(right) is int and isinstance(op, _INTEGRAL)
    return int(value) if integral and value.is_integer() and abs(value) <= INT32_MAX else value


LEARNED = ("learned_scalar", "learned_block", "learned_vector")


@dataclass(frozen=True)
class ScaleSpec:
    """A factor: the value of an expression, or a learned parameter that starts at it.

    Attributes:
      kind: `constant`; `learned_scalar`, one number per sublayer; `learned_block`, one number per
        block, which its sublayers share; `learned_vector`, one number per channel.
      first: the value, or the initial value.
    """

    kind: str
    first: Expression

    @property
    def is_one(self) -> bool:
        """Whether it is the constant 1."""
        return self.kind == "constant" and self.first.constant == 1.0


@cache
def parse_scale(text: str) -> ScaleSpec:
    """Parses a scale: an expression, or a learned one such as `learned_vector(EXPRESSION)`.

    Raises:
      ValueError: if the text is not a valid scale.
    """
    name, bracket, rest = text.strip().partition("(")
    if name not in LEARNED:
        return ScaleSpec("constant", parse_expression(text))
    if not bracket or not rest.endswith(")"):
        raise ValueError(f"{text!r} lacks its initial value, as in {name}(1)")
    first = parse_expression(rest[:-1])
    if "t" in first.names:
        raise ValueError(f"{text!r}: the initial value must not depend on the step t")
    return ScaleSpec(name, first)


def sides(text: str, sublayers: tuple[str, ...] = SUBLAYERS) -> tuple[str, ...]:
    """Splits the values of a block's sublayers, in order.

    One value is for all sublayers. Two are `attention | mlp`; cross-attention takes the first.
    Three are `attention | cross | mlp`; without cross-attention, the second is dropped.

    Raises:
      ValueError: if there are more than two bars.
    """
    parts = [part.strip() for part in text.split("|")]
    if len(parts) > len(SUBLAYERS):
        raise ValueError(f"{text!r} has more than two bars")
    cross = parts[1] if len(parts) == len(SUBLAYERS) else parts[0]
    values = dict(zip(SUBLAYERS, (parts[0], cross, parts[-1]), strict=True))
    return tuple(values[name] for name in sublayers)


def names_cross(text: str) -> bool:
    """Returns whether a text has a separate value for cross-attention."""
    return text.count("|") == len(SUBLAYERS) - 1


def pair(text: str) -> tuple[str, str]:
    """Splits `first | second` into its two values; without a bar, both are the whole text.

    Raises:
      ValueError: if there is more than one bar.
    """
    parts = [part.strip() for part in text.split("|")]
    if len(parts) > 2:
        raise ValueError(f"{text!r} has more than one bar")
    return parts[0], parts[-1]


def words(text: str) -> tuple[str, ...]:
    """Splits `a+b` into its words; `none` has no words."""
    parts = (part.strip() for part in text.split("+"))
    return tuple(part for part in parts if part not in ("none", ""))
