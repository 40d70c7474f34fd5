"""Dropout and stochastic depth."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, keys_B: jax.Array | None, rate: float, site: str) -> jax.Array:
    """Zeroes entries of x (B, ...) with probability `rate` and scales the rest by 1/(1 - rate).

    The mask does not depend on how a batch is sharded, as each sequence has its own key.

    Args:
      keys_B: a key per sequence; None for no dropout.
      site: a name, folded into the keys.
    """
    if keys_B is None or rate == 0.0:
        return x
    tag = zlib.crc32(site.encode())

    def keep(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, tag), 1.0 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(keys_B), x / (1.0 - rate), 0).astype(x.dtype)


def drop_sequences(x: jax.Array, keys_B: jax.Array, rate: jax.Array, site: str) -> jax.Array:
    """Stochastic depth: dropout of whole sequences of x (B, ...) (Huang et al. 2016)."""
    tag = zlib.crc32(site.encode())
    keep = lambda key: jax.random.bernoulli(jax.random.fold_in(key, tag), 1.0 - rate)
    keep_B = jax.vmap(keep)(keys_B).reshape(-1, *[1] * (x.ndim - 1))
    p_keep = jnp.maximum(1.0 - rate, 1e-6)  # an expression in t may reach 1, which drops all
    return jnp.where(keep_B, x / p_keep, 0).astype(x.dtype)
