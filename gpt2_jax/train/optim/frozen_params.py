"""Trainable and frozen parameters as two trees: frozen ones have no gradients or moments.

Both trees have the structure of the model's parameters. The frozen tree has None for each trained
parameter, the trainable tree has None for each frozen one. If only some blocks of a stack are
frozen, each tree holds its rows of the stack. If nothing is frozen, the frozen tree is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gpt2_jax.config.sections import OptimizerConfig
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.train.optim.param_patterns import lr_factors


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["rows"])
@dataclass(frozen=True)
class Frozen:
    """The frozen part of one parameter.

    Attributes:
      values: the frozen rows, or the whole parameter if all of it is frozen.
      rows: for each row along the first axis, whether it is frozen; one entry for a parameter
        that is frozen or trained as a whole.
    """

    values: Any
    rows: tuple[bool, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the whole parameter is frozen."""
        return all(self.rows)


def frozen_rows(config: OptimizerConfig, model_def: ModelDef) -> Any | None:
    """Returns the frozen tree of a config, without values.

    Raises:
      UserError: as `lr_factors`.
    """

    def frozen(factor: np.ndarray) -> Frozen | None:
        rows = tuple((np.reshape(factor, -1) == 0).tolist())
        return Frozen(None, rows) if any(rows) else None

    tree = jax.tree.map(frozen, lr_factors(config, model_def))
    return tree if jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Frozen)) else None


def split(params: Any, frozen: Any | None) -> tuple[Any, Any | None]:
    """Returns the trainable tree and the frozen tree of all parameters.

    Args:
      frozen: a frozen tree; its values are ignored.
    """
    if frozen is None:
        return params, None

    def trainable(part: Frozen | None, x: Any) -> Any:
        if part is None or part.is_whole:
            return x if part is None else None
        return x[np.flatnonzero(np.invert(part.rows))]

    def kept(part: Frozen | None, x: Any) -> Frozen | None:
        if part is None or part.is_whole:
            return part and Frozen(x, part.rows)
        return Frozen(x[np.flatnonzero(part.rows)], part.rows)

    return _map(trainable, frozen, params), _map(kept, frozen, params)


def join(trainable: Any, frozen: Any | None) -> Any:
    """Returns all parameters as one tree."""
    if frozen is None:
        return trainable

    def whole(part: Frozen | None, x: Any) -> Any:
        if part is None or part.is_whole:
            return x if part is None else part.values
        runs = [(is_frozen, len(list(run))) for is_frozen, run in groupby(part.rows)]
        pieces = {
            is_frozen: iter(lax.split(rows, [n for kind, n in runs if kind == is_frozen]))
            for is_frozen, rows in ((True, part.values), (False, x))
        }
        return jnp.concatenate([next(pieces[is_frozen]) for is_frozen, _ in runs])

    return _map(whole, frozen, trainable)


def drop_frozen(tree: Any, frozen: Any | None) -> Any:
    """Replaces the values of wholly frozen parameters by None, in a tree of one value each."""
    if frozen is None:
        return tree
    return _map(lambda part, x: None if part is not None and part.is_whole else x, frozen, tree)


def _map(function: Any, frozen: Any, tree: Any) -> Any:
    is_leaf = lambda x: x is None or isinstance(x, Frozen)
    return jax.tree.map(function, frozen, tree, is_leaf=is_leaf)
