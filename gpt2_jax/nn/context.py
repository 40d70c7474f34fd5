"""What a block receives besides the residual stream, and what it returns besides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Causal(NamedTuple):
    """A whole sequence, in which each token attends to itself and to those before it."""

    def mask(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), True where column T attends to column S."""
        return jnp.tril(jnp.ones((n_queries, n_keys), bool))

    def own(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), nonzero where a column is the token's own."""
        return jnp.eye(n_queries, n_keys)


class Columns(NamedTuple):
    """Consecutive columns of a cache, and what each of them attends to.

    Attributes:
      start: the first of them.
      mask_BTS: (B or 1, T, S), True where column T attends to cached column S.
    """

    start: jax.Array | int
    mask_BTS: jax.Array

    def mask(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (B or 1, 1, T, S), True where column T attends to column S."""
        del n_queries, n_keys
        return self.mask_BTS[:, None]

    def own(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), nonzero where a column is the token's own."""
        columns_T = self.start + jnp.arange(n_queries)
        return jnp.arange(n_keys) == columns_T[:, None]


View = Causal | Columns


class KVCache(NamedTuple):
    """Keys and values of all columns of one layer."""

    k_BHSK: jax.Array
    v_BHSK: jax.Array

    def write(self, k_BHTK: jax.Array, v_BHTK: jax.Array, start: jax.Array | int) -> KVCache:
        """Returns the cache with new columns from `start` on."""
        put = lambda old, new: lax.dynamic_update_slice_in_dim(old, new, start, axis=2)
        return KVCache(put(self.k_BHSK, k_BHTK), put(self.v_BHSK, v_BHTK))


class Context(NamedTuple):
    """Per-call inputs to a block.

    Attributes:
      positions: of the tokens in their sequences, (T) or (B, T).
      keys_B: a dropout key per sequence; None for no dropout.
      step: steps done, for what changes during training; None where unknown.
      layer: 0-based index of the block (may be traced).
      view: what each token attends to.
      cache: of this block's keys and values; None for whole sequences.
      first_values: attention's values of block 1, where later blocks use them.
      pos_emb: vectors of the positions, where blocks add them, (T, D) or (B, T, D).
      observe: called for each block with the stream before and after it and its sublayers' outputs;
        what it returns is collected. Sublayers then also return their input and output.
      ablated_layer: 0-based index of a block whose sublayers return 0.
    """

    positions: jax.Array
    keys_B: jax.Array | None = None
    step: jax.Array | int | None = None
    layer: jax.Array | int = 0
    view: View = Causal()
    cache: KVCache | None = None
    first_values: jax.Array | None = None
    pos_emb: jax.Array | None = None
    observe: Callable[[Any, Any, Any], Any] | None = None
    ablated_layer: jax.Array | int | None = None

    def at(
        self,
        layer: jax.Array | int,
        first_values: jax.Array | None,
        cache: KVCache | None = None,
    ) -> Context:
        """Returns the context of one block, with dropout keys of its own."""
        keys_B = self.keys_B
        if keys_B is not None:
            keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, layer)
        return self._replace(layer=layer, keys_B=keys_B, first_values=first_values, cache=cache)


class SublayerAux(NamedTuple):
    """What a sublayer returns besides its output.

    Attributes:
      values: of attention, (B, H, T, K), for blocks that use those of block 1.
      cache: of attention with the new columns, where there was one.
      entropy: of the attention weights, nats, mean over heads and tokens, if observed.
      largest_score: before the softmax, if observed.
      input, output: of the whole sublayer, (B, T, D), if observed.
    """

    values: jax.Array | None = None
    cache: KVCache | None = None
    entropy: jax.Array | None = None
    largest_score: jax.Array | None = None
    input: Any = None
    output: jax.Array | None = None
