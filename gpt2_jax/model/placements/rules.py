"""Depth rules: checked arithmetic over a block's number, the depth, the width and the step.

A rule is a string such as `(2*L)**0.25` or `minimum(t/(1000*l), 1)`. Its names are

  l  the block's number, from 1          L  the number of blocks
  s  the sublayer's number, from 1       S  the number of sublayers, 2 L
  d  the width of the stream             t  updates done
  std  `model.init_std`

Nothing is executed: a rule is parsed, held against a list of what it may contain, and evaluated
over numbers or over arrays that jax traces.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np

NAMES = ("l", "L", "s", "S", "d", "t", "std")
FUNCTIONS = ("minimum", "maximum", "sqrt", "log", "exp", "floor", "where")
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


@dataclass(frozen=True)
class Rule:
    """An arithmetic string over `NAMES`; made by `rule`."""

    text: str

    @cached_property
    def tree(self) -> ast.expr:
        """Its syntax."""
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
    made = Rule(text)
    try:
        tree = made.tree
    except SyntaxError:
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


def _check(node: ast.expr) -> None:
    """Refuses all but arithmetic, comparisons, known names and known functions."""
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
            parts = args
        case _:
            raise ValueError(f"{ast.unparse(node)!r} has no place in a rule")
    for part in parts:
        _check(part)


def _evaluate(node: ast.expr, values: Mapping[str, Any], xp: ModuleType) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            sides = _evaluate(left, values, xp), _evaluate(right, values, xp)
            return _OPERATORS[type(op)](*sides)
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, values, xp)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            sides = _evaluate(left, values, xp), _evaluate(right, values, xp)
            return _OPERATORS[type(op)](*sides)
        case ast.Call(func=ast.Name(id=name), args=args):
            return getattr(xp, name)(*[_evaluate(arg, values, xp) for arg in args])
    raise TypeError(ast.dump(node))


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
