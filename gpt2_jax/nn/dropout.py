"""Dropout of entries and of whole sequences."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, keys_B: jax.Array | None, rate: float, site: str) -> jax.Array:
    """Zeroes entries of x (B, ...) with probability `rate` and scales the rest by 1/(1 - rate).

    Each sequence has a key, so that the mask does not depend on how a batch is sharded.

    Args:
      keys_B: a key for each sequence, or None to leave x as it is.
      site: a name that is folded into the keys.
    """
    if keys_B is None or rate == 0.0:
        return x
    tag = zlib.crc32(site.encode())

    def keep(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, tag), 1.0 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(keys_B), x / (1.0 - rate), 0).astype(x.dtype)


def drop_sequences(x: jax.Array, keys_B: jax.Array, rate: jax.Array, site: str) -> jax.Array:
    """Zeroes whole sequences of x (B, ...) with probability `rate`, scales the rest to match.

    Stochastic depth for one sublayer (Huang et al. 2016).
    """
    tag = zlib.crc32(site.encode())
    keep = lambda key: jax.random.bernoulli(jax.random.fold_in(key, tag), 1.0 - rate)
    keep_B = jax.vmap(keep)(keys_B).reshape(-1, *[1] * (x.ndim - 1))
    kept = jnp.maximum(1.0 - rate, 1e-6)  # an expression in t may reach 1: none is kept then
    return jnp.where(keep_B, x / kept, 0).astype(x.dtype)
