"""Magnitude pruning: the smallest weights of each matrix are 0, and stay 0 in training.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3.
The mask is not stored: a weight that is 0 is pruned.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gpt2_jax.model.definition import ModelDef, is_info
from gpt2_jax.nn.param import BATCH_AXES, ParamInfo, Role


def pruned(model_def: ModelDef, params: Any, sparsity: float) -> Any:
    """Returns parameters in which a share of the weights of each matrix of the blocks is 0.

    Each matrix is pruned on its own: those of a stack, and q, k and v of a fused kernel.
    """

    def one(path: jax.tree_util.KeyPath, info: ParamInfo, x: jax.Array) -> jax.Array:
        if info.role != Role.MATRIX or model_def.stack_path(path) is None:
            return x
        stacked = (0,) if x.ndim > len(info.axes) else ()
        axes = (*stacked, *(i - len(info.axes) + x.ndim for i in _batch_axes(info)))
        inner = [axis for axis in range(x.ndim) if axis not in axes]
        rows = jnp.abs(x).transpose(*axes, *inner).reshape(*(x.shape[axis] for axis in axes), -1)
        n_pruned = round(sparsity * rows.shape[-1])
        if n_pruned == 0:
            return x
        largest = jnp.sort(rows)[..., n_pruned - 1]
        shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
        return jnp.where(jnp.abs(x) <= largest.reshape(shape), 0.0, x)

    return jax.tree_util.tree_map_with_path(one, model_def.infos, params, is_leaf=is_info)


def keep_pruned(infos: Any, before: Any, after: Any) -> Any:
    """Returns the parameters after an update, with the matrices' weights 0 where they were 0.

    Args:
      infos: tree of `ParamInfo` of the trainable parameters.
    """

    def one(info: ParamInfo, old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(old == 0, 0.0, new) if info.role == Role.MATRIX else new

    return jax.tree.map(one, infos, before, after, is_leaf=is_info)


def _batch_axes(info: ParamInfo) -> list[int]:
    return [i for i, name in enumerate(info.axes) if name in BATCH_AXES]
