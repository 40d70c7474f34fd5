"""Depth rules: checked arithmetic over a block's number, the depth, the width and the step.

A rule is a string such as `(2*L)**0.25` or `minimum(t/(1000*l), 1)`. Its names are

  l  the block's number, from 1          L  the number of blocks
  s  the sublayer's number, from 1       S  the number of sublayers, 2 L
  d  the width of the stream             t  updates done
  std  `model.init_std`

Nothing is executed: a rule is parsed, checked against a list of what it may contain, and evaluated
over numbers or over arrays that jax traces. Numbers are computed in float64, never as integers of
any length, so that `9**9**9**9` overflows instead of computing forever.
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

from gpt2_jax.model.placements.axes import LONGEST_RULE

INT32_MAX = 2**31 - 1
DEEPEST = 64  # operations inside each other
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
class Rule:
    """An arithmetic string over `NAMES`; made by `rule`."""

    text: str

    @cached_property
    def tree(self) -> ast.expr:
        """Its syntax."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about Python that no rule allows anyway
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
        """Returns the rule's value.

        Args:
          values: of the names in it: floats, or arrays of `xp`.
          xp: numpy or jax.numpy.
        """
        return _evaluate(self.tree, values, xp)


@cache
def rule(text: str) -> Rule:
    """Returns the rule that a string spells.

    Raises:
      ValueError: saying what in it cannot be.
    """
    if len(text) > LONGEST_RULE:
        raise ValueError(f"a rule of {len(text)} characters; the most is {LONGEST_RULE}")
    made = Rule(text)
    try:
        tree = made.tree
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # ValueError: a null character
        raise ValueError(f"{text!r} is no arithmetic") from None
    _check(tree)
    return made


def values_at(l: Any, n_layer: int, n_embd: int, init_std: float, which: int = 0) -> dict[str, Any]:
    """Returns the values of a rule's names before the first update, floats where l is a number.

    Args:
      l: the block's number, from 1. which: 0 for its attention, 1 for its MLP.
    """
    return {
        "l": 1.0 * l,
        "L": float(n_layer),
        "s": 2.0 * l - 1.0 + which,
        "S": float(2 * n_layer),
        "d": float(n_embd),
        "t": 0.0,
        "std": init_std,
    }


def _check(node: ast.expr, depth: int = 1) -> None:
    """Refuses all but arithmetic, comparisons, known names and known functions."""
    if depth > DEEPEST:
        raise ValueError(f"a rule with more than {DEEPEST} operations inside each other")
    parts: list[ast.expr]
    match node:
        case ast.Constant(value=bool()):
            raise ValueError(f"{node.value!r} has no place in a rule")
        case ast.Constant(value=int() | float()):
            parts = []
        case ast.Name(id=name):
            if name not in NAMES:
                raise ValueError(f"{name!r} is no name of a rule; there are {', '.join(NAMES)}")
            parts = []
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            parts = [left, right]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            parts = [operand]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            parts = [left, right]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in FUNCTIONS:
                raise ValueError(f"{name!r} is no function; there are {', '.join(FUNCTIONS)}")
            if len(args) != FUNCTIONS[name]:
                raise ValueError(f"{name} takes {FUNCTIONS[name]} argument(s), not {len(args)}")
            parts = args
        case _:
            raise ValueError(f"{ast.unparse(node)!r} has no place in a rule")
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
            with np.errstate(all="ignore"):  # a branch of `where` that is not taken, for example
                value = getattr(xp, name)(*[_evaluate(arg, values, xp) for arg in args])
            return float(value) if xp is np and np.ndim(value) == 0 else value
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
    whole = type(left) is type(right) is int and isinstance(op, _WHOLE) and value.is_integer()
    return int(value) if whole and abs(value) <= INT32_MAX else value


LEARNED = ("learned_scalar", "learned_block", "learned_vector")


@dataclass(frozen=True)
class ScaleSpec:
    """A factor: a rule's value, or a learned one that starts from it.

    Attributes:
      kind: `constant`; `learned_scalar`, one number a sublayer; `learned_block`, one that both
        sublayers of a block share; `learned_vector`, one number a channel.
      rule: the value, or the first value.
    """

    kind: str
    rule: Rule

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return self.kind == "constant" and self.rule.constant == 1.0


@cache
def scale(text: str) -> ScaleSpec:
    """Returns the scale that a string spells: a rule, or `learned_vector(RULE)` and its like.

    Raises:
      ValueError: saying what in it cannot be.
    """
    name, bracket, rest = text.strip().partition("(")
    if name not in LEARNED:
        return ScaleSpec("constant", rule(text))
    if not bracket or not rest.endswith(")"):
        raise ValueError(f"{text!r} lacks the value that it starts from, as in {name}(1)")
    first = rule(rest[:-1])
    if "t" in first.names:
        raise ValueError(f"{text!r} starts from a value in t, the step")
    return ScaleSpec(name, first)


def pair(text: str) -> tuple[str, str]:
    """Returns what a value means for attention and for the MLP: `both`, or `one | the other`.

    Raises:
      ValueError: for more than one bar.
    """
    parts = [part.strip() for part in text.split("|")]
    if len(parts) > 2:
        raise ValueError(f"{text!r} has more than one bar")
    return parts[0], parts[-1]
