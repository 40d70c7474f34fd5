"""Inputs and outputs of a block other than the residual stream: mask, caches, dropout keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from gpt2_jax.nn.masks import CAUSAL, Mask, SequenceMask


class KVCache(NamedTuple):
    """Keys and values of one layer; S is the number of columns."""

    k_BHSK: jax.Array
    v_BHSK: jax.Array

    def write(self, k_BHTK: jax.Array, v_BHTK: jax.Array, start: jax.Array | int) -> KVCache:
        """Returns the cache with new columns, the first at `start`."""
        update = lambda old, new: lax.dynamic_update_slice_in_dim(old, new, start, axis=2)
        return KVCache(update(self.k_BHSK, k_BHTK), update(self.v_BHSK, v_BHTK))


class Memory(NamedTuple):
    """What cross-attention reads: the output of another tower.

    Attributes:
      x_BSD: the output; None if each block's `Context.cross_cache` has its keys and values.
      mask: from the tokens of this tower to those of the other.
    """

    x_BSD: jax.Array | None
    mask: SequenceMask


class Context(NamedTuple):
    """Per-call inputs to a block.

    Attributes:
      positions: of the tokens in their sequences, (T) or (B, T).
      keys_B: a dropout key per sequence; None for no dropout.
      step: steps done, for scales that depend on it; None if unknown.
      layer: 0-based index of the block (may be traced).
      mask: which tokens each token attends to.
      cache: keys and values of this block; None for whole sequences.
      memory: what cross-attention reads; None without it.
      cross_cache: keys and values of `memory` for this block's cross-attention; None if it
        projects them itself.
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
    mask: Mask = CAUSAL
    cache: KVCache | None = None
    memory: Memory | None = None
    cross_cache: KVCache | None = None
    first_values: jax.Array | None = None
    pos_emb: jax.Array | None = None
    observe: Callable[[Any, Any, Any], Any] | None = None
    ablated_layer: jax.Array | int | None = None

    def at(
        self,
        layer: jax.Array | int,
        first_values: jax.Array | None,
        cache: KVCache | None = None,
        cross_cache: KVCache | None = None,
    ) -> Context:
        """Returns the context of one block, with its own dropout keys."""
        keys_B = self.keys_B
        if keys_B is not None:
            keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, layer)
        return self._replace(
            layer=layer,
            keys_B=keys_B,
            first_values=first_values,
            cache=cache,
            cross_cache=cross_cache,
        )


class SublayerAux(NamedTuple):
    """Auxiliary outputs of a sublayer.

    Attributes:
      values: attention values (B, H, T, K), for later blocks that use those of block 1.
      cache: the updated cache, if the context has one.
      entropy: of the attention weights, in nats, mean over heads and tokens that are not padding,
        if observed.
      largest_score: the largest attention score before the softmax, if observed.
      input, output: of the whole sublayer, (B, T, D), if observed.
    """

    values: jax.Array | None = None
    cache: KVCache | None = None
    entropy: jax.Array | None = None
    largest_score: jax.Array | None = None
    input: Any = None
    output: jax.Array | None = None
