"""Inputs and outputs of a block other than the residual stream: masks, caches, dropout keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class CausalMask(NamedTuple):
    """Each token of a whole sequence attends to itself and to earlier tokens."""

    def allowed(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), True where query T may attend to key S."""
        return jnp.tril(jnp.ones((n_queries, n_keys), bool))

    def diagonal(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), nonzero where query T and key S are the same token."""
        return jnp.eye(n_queries, n_keys)


class PackedMask(NamedTuple):
    """Each token of packed documents attends to itself and to earlier tokens of its document.

    Attributes:
      documents_BT: a number per token, the same for all tokens of a document.
    """

    documents_BT: jax.Array

    def allowed(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (B, 1, T, S), True where query T may attend to key S."""
        same_BTS = self.documents_BT[:, :, None] == self.documents_BT[:, None, :]
        return (same_BTS & CausalMask().allowed(n_queries, n_keys))[:, None]

    def diagonal(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), nonzero where query T and key S are the same token."""
        return CausalMask().diagonal(n_queries, n_keys)


class CacheMask(NamedTuple):
    """Consecutive tokens attend to the columns of a key-value cache.

    Attributes:
      start: the column of the first token.
      mask_BTS: (B or 1, T, S), True where token T may attend to column S.
    """

    start: jax.Array | int
    mask_BTS: jax.Array

    def allowed(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (B or 1, 1, T, S), True where query T may attend to key S."""
        del n_queries, n_keys
        return self.mask_BTS[:, None]

    def diagonal(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), nonzero where query T and key S are the same token."""
        columns_T = self.start + jnp.arange(n_queries)
        return jnp.arange(n_keys) == columns_T[:, None]


Mask = CausalMask | PackedMask | CacheMask


def first_of_document(is_first_BT: jax.Array, index_T: jax.Array, first_B: jax.Array) -> jax.Array:
    """Returns the index of the first token of each token's document, (B, T).

    Args:
      is_first_BT: whether a token is the first of a document.
      index_T: the indices of the tokens. first_B: that of the first token of the open document;
        earlier tokens are padding.
    """
    begun_BT = jnp.where(is_first_BT, index_T, 0)
    return jnp.maximum(lax.cummax(begun_BT, axis=1), first_B[:, None])


class KVCache(NamedTuple):
    """Keys and values of one layer; S is the number of columns."""

    k_BHSK: jax.Array
    v_BHSK: jax.Array

    def write(self, k_BHTK: jax.Array, v_BHTK: jax.Array, start: jax.Array | int) -> KVCache:
        """Returns the cache with new columns, the first at `start`."""
        update = lambda old, new: lax.dynamic_update_slice_in_dim(old, new, start, axis=2)
        return KVCache(update(self.k_BHSK, k_BHTK), update(self.v_BHSK, v_BHTK))


class Context(NamedTuple):
    """Per-call inputs to a block.

    Attributes:
      positions: of the tokens in their sequences, (T) or (B, T).
      keys_B: a dropout key per sequence; None for no dropout.
      step: steps done, for scales that depend on it; None if unknown.
      layer: 0-based index of the block (may be traced).
      mask: which tokens each token attends to.
      cache: keys and values of this block; None for whole sequences.
      first_values: attention values of block 1, if later blocks use them.
      pos_emb: position vectors (T, D) or (B, T, D), if blocks add them.
      observe: called for each block with the stream before it, the stream after it and the
        `SublayerAux` of its sublayers; its results are collected. Sublayers then also return
        their input and output.
      ablated_layer: 0-based index of a block whose sublayers return 0.
    """

    positions: jax.Array
    keys_B: jax.Array | None = None
    step: jax.Array | int | None = None
    layer: jax.Array | int = 0
    mask: Mask = CausalMask()
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
        """Returns the context of one block, with its own dropout keys."""
        keys_B = self.keys_B
        if keys_B is not None:
            keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, layer)
        return self._replace(layer=layer, keys_B=keys_B, first_values=first_values, cache=cache)


class SublayerAux(NamedTuple):
    """Auxiliary outputs of a sublayer.

    Attributes:
      values: attention values (B, H, T, K), for later blocks that use those of block 1.
      cache: the updated cache, if the context has one.
      entropy: of the attention weights, in nats, mean over heads and tokens, if observed.
      largest_score: the largest attention score before the softmax, if observed.
      input, output: of the whole sublayer, (B, T, D), if observed.
    """

    values: jax.Array | None = None
    cache: KVCache | None = None
    entropy: jax.Array | None = None
    largest_score: jax.Array | None = None
    input: Any = None
    output: jax.Array | None = None
