"""Optimizer moments stored in bfloat16 or 8 bits (`optimizer.moments_dtype`).

The update itself computes in float32, from moments that are converted before it and rounded after
it (Dettmers et al. 2021, "8-bit optimizers via block-wise quantization", fig. 1). Only the moments
of matrices and embeddings are stored in fewer bits; the others take hardly any memory.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import KeyPath, keystr, tree_map_with_path

from gpt2_jax.model.definition import is_info
from gpt2_jax.train.distributed.sharding import SHARDED, param_keys

LEVELS = 127  # of each sign


class Quantized(NamedTuple):
    """An array x in 8 bits: x = sign(c) scale (c / 127)^4.

    The fourth power spreads the levels over nine orders of magnitude: relative to the largest value
    of a row, 3e-9 is the smallest. Dettmers et al. look up similar levels in a table.

    Attributes:
      codes: c, int8, with the shape of x. scale: largest |x| along the last axis, (..., 1).
    """

    codes: jax.Array
    scale: jax.Array


class StoredState(NamedTuple):
    """The state of an optimizer whose large moments take fewer bits.

    Attributes:
      n_updates: number of updates. inner: the optimizer's state.
    """

    n_updates: jax.Array
    inner: optax.OptState


def with_stored_moments(
    plain: optax.GradientTransformation, dtype: str, infos: dict[str, Any]
) -> optax.GradientTransformation:
    """Returns an optimizer that stores its large moments in another dtype between updates.

    Args:
      dtype: `bfloat16` or `int8`. infos: tree of `ParamInfo` of the trainable parameters.
    """
    leaves = jax.tree_util.tree_leaves_with_path(infos, is_leaf=is_info)
    large = {param_keys(path) for path, info in leaves if info.role in SHARDED}

    def is_large(path: KeyPath, x: jax.Array) -> bool:
        keys = param_keys(path)
        return x.dtype == jnp.float32 and any(keys[i:] in large for i in range(len(keys)))

    def pack(state: optax.OptState, count: jax.Array) -> StoredState:
        store = to_bfloat16 if dtype == "bfloat16" else quantize

        def one(path: KeyPath, x: jax.Array) -> Any:
            if not is_large(path, x):
                return x
            return store(x, noise(x.shape, zlib.crc32(keystr(path).encode()), count))

        return StoredState(count, tree_map_with_path(one, state))

    def init(params: Any) -> StoredState:
        return pack(plain.init(params), jnp.int32(0))

    def update(updates: Any, state: StoredState, params: Any = None) -> tuple[Any, StoredState]:
        moments = jax.tree.map(to_float32, state.inner, is_leaf=_is_stored)
        updates, new = plain.update(updates, moments, params)
        return updates, pack(new, state.n_updates + 1)

    return optax.GradientTransformation(init, update)


def to_float32(x: Any) -> jax.Array:
    """Returns a stored array in float32; others as they are."""
    if not isinstance(x, Quantized):
        return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
    c = x.codes.astype(jnp.float32) / LEVELS
    return c * jnp.abs(c) * jnp.square(c) * x.scale


def quantize(x: jax.Array, noise: jax.Array) -> Quantized:
    """Returns x in 8 bits; what is not 0 stays different from 0, also as a divisor.

    Args:
      noise: uniform in [0, 1): added before rounding down, so that codes are right on average.
    """
    scale = jnp.abs(x).max(-1, keepdims=True)
    relative = jnp.abs(x) / jnp.where(scale == 0, 1.0, scale)
    code = jnp.floor(LEVELS * jnp.sqrt(jnp.sqrt(relative)) + noise)
    return Quantized((jnp.sign(x) * jnp.clip(code, 1, LEVELS)).astype(jnp.int8), scale)


def to_bfloat16(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns x in bfloat16, rounded up or down so that it is right on average."""
    bits = lax.bitcast_convert_type(x, jnp.uint32) + (noise * 2**16).astype(jnp.uint32)
    return lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


def noise(shape: tuple[int, ...], salt: int, count: jax.Array) -> jax.Array:
    """Returns numbers in [0, 1), a hash of each position, the salt and the number of updates.

    They do not depend on the mesh, and take less time than jax's random numbers.
    """
    h = count.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(salt)
    stride = 1
    for axis in reversed(range(len(shape))):
        h = h + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # lowbias32, a public-domain hash
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return ((h ^ (h >> 16)) >> 8).astype(jnp.float32) / 2**24


def _is_stored(x: Any) -> bool:
    return isinstance(x, Quantized)
