"""The small languages of a placement: depth expressions, scales, `attention | mlp` and `a+b`.

An expression is a string such as `(2*L)**0.25` or `minimum(t/(1000*l), 1)`. Its names are

  l  the block's number, from 1          L  the number of blocks
  s  the sublayer's number, from 1       S  the number of sublayers
  d  the width of the stream             t  steps done
  std  `model.init_std`

Nothing is executed: the text is parsed, checked against a list of what it may contain, and
evaluated over numbers or over traced arrays. Numbers are computed in float64, never as integers of
arbitrary length, so that `9**9**9**9` overflows instead of running forever.
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

INT32_MAX = 2**31 - 1
LONGEST_EXPRESSION = 200  # characters
DEEPEST = 64  # nested operations
NAMES = ("l", "L", "s", "S", "d", "t", "std")
# With the number of their arguments.
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
_WHOLE = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Pow)  # integers to integers


@dataclass(frozen=True)
class Expression:
    """An arithmetic expression over `NAMES`; made by `parse_expression`."""

    text: str

    @cached_property
    def tree(self) -> ast.expr:
        """Its syntax."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about Python that is refused anyway
            return ast.parse(self.text.strip(), mode="eval").body

    @cached_property
    def names(self) -> frozenset[str]:
        """The free names in it."""
        found = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        return frozenset(found & set(NAMES))

    @cached_property
    def constant(self) -> float | None:
        """Its value where it has no free names."""
        return None if self.names else float(self({}))

    def __call__(self, values: Mapping[str, Any], xp: ModuleType = np) -> Any:
        """Returns its value.

        Args:
          values: of the names in it: floats, or arrays of `xp`.
          xp: numpy or jax.numpy.
        """
        return _evaluate(self.tree, values, xp)


@cache
def parse_expression(text: str) -> Expression:
    """Returns the expression that a string spells.

    Raises:
      ValueError: saying what is wrong with it.
    """
    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"it has {len(text)} characters; the most is {LONGEST_EXPRESSION}")
    if "#" in text:  # Python would take what follows for a comment
        raise ValueError(f"{text!r} is not arithmetic")
    made = Expression(text)
    try:
        tree = made.tree
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # ValueError: a null character
        raise ValueError(f"{text!r} is not arithmetic") from None
    _check(tree)
    return made


@dataclass(frozen=True)
class Sizes:
    """The sizes that an expression may name."""

    n_layer: int
    n_embd: int
    init_std: float
    n_sublayers: int = 2  # per block

    def values(self, l: Any, index: int = 0) -> dict[str, Any]:
        """Returns the values of all names before the first step, floats where l is a number.

        Args:
          l: the block's number, from 1. index: of the sublayer in the block, from 0.
        """
        n = self.n_sublayers
        return {
            "l": 1.0 * l,
            "L": float(self.n_layer),
            "s": float(n) * l - float(n - 1) + index,
            "S": float(n * self.n_layer),
            "d": float(self.n_embd),
            "t": 0.0,
            "std": self.init_std,
        }


def _check(node: ast.expr, depth: int = 1) -> None:
    """Refuses all but arithmetic, comparisons, known names and known functions."""
    if depth > DEEPEST:
        raise ValueError(f"it nests more than {DEEPEST} operations")
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
                raise ValueError(f"{name} takes {FUNCTIONS[name]} argument(s), not {len(args)}")
            parts = args
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not allowed in an expression")
    for part in parts:
        _check(part, depth + 1)


def _evaluate(node: ast.expr, values: Mapping[str, Any], xp: ModuleType) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            # Small integers stay so for jax, whose powers of them are products.
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
            given = [_evaluate(arg, values, xp) for arg in args]
            if xp is np and name == "where" and np.isnan(given[0]):
                return float("nan")
            with np.errstate(all="ignore"):  # what has no value is found in the result
                value = getattr(xp, name)(*given)
            return float(value) if xp is np else value
    raise TypeError(ast.dump(node))


def _apply(op: ast.operator | ast.cmpop, left: Any, right: Any) -> Any:
    """Returns the operation's value; on two numbers in float64, NaN where there is none."""
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
    whole = type(left) is type(right) is int and isinstance(op, _WHOLE) and value.is_integer()
    return int(value) if whole and abs(value) <= INT32_MAX else value


LEARNED = ("learned_scalar", "learned_block", "learned_vector")


@dataclass(frozen=True)
class ScaleSpec:
    """A scale: the value of an expression, or a learned factor that starts from it.

    Attributes:
      kind: `constant`; `learned_scalar`, one number per sublayer; `learned_block`, one that all
        sublayers of a block share; `learned_vector`, one number per channel.
      first: the value, or the initial value.
    """

    kind: str
    first: Expression

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return self.kind == "constant" and self.first.constant == 1.0


@cache
def parse_scale(text: str) -> ScaleSpec:
    """Returns the scale that a string spells: an expression, or `learned_vector(EXPRESSION)`.

    Raises:
      ValueError: saying what is wrong with it.
    """
    name, bracket, rest = text.strip().partition("(")
    if name not in LEARNED:
        return ScaleSpec("constant", parse_expression(text))
    if not bracket or not rest.endswith(")"):
        raise ValueError(f"{text!r} lacks its initial value, as in {name}(1)")
    first = parse_expression(rest[:-1])
    if "t" in first.names:
        raise ValueError(f"{text!r} has an initial value in t, the step")
    return ScaleSpec(name, first)


def sides(text: str) -> tuple[str, str]:
    """Returns a value for attention and one for the MLP: `both`, or `attention's | the MLP's`.

    Raises:
      ValueError: for more than one bar.
    """
    parts = [part.strip() for part in text.split("|")]
    if len(parts) > 2:
        raise ValueError(f"{text!r} has more than one bar")
    return parts[0], parts[-1]


def words(text: str) -> tuple[str, ...]:
    """Returns the words of `a+b`; none for `none`."""
    found = (word.strip() for word in text.split("+"))
    return tuple(word for word in found if word not in ("none", ""))
