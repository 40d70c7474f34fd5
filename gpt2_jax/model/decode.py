"""The model over a cache of keys and values: columns of tokens after the ones already there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.attention import Cache, Span
from gpt2_jax.model.gpt2 import GPT2, Params
from gpt2_jax.model.parts import Context
from gpt2_jax.model.residual import Block
from gpt2_jax.model.structure import Structure

Caches = tuple[Cache, ...]  # one a layer


class Apart(NamedTuple):
    """Parameters with the blocks' cut out of their stack.

    A scan over stacked blocks copies each one's matrices out of the stack for every token: 27 in
    place of 17 ms a token at 124M on two cores.
    """

    outside: Params
    layers: tuple[Params, ...]


def take_apart(params: Params, n_layer: int) -> Apart:
    """Returns the parameters layer by layer; a copy of the blocks'."""
    outside = {name: value for name, value in params.items() if name != "blocks"}
    layer_of = lambda stack, layer: jax.tree.map(lambda x: x[layer], stack)
    cut = jax.jit(lambda stack: tuple(layer_of(stack, layer) for layer in range(n_layer)))
    return Apart(outside, cut(params["blocks"]))


def bind_apart(structure: Structure, apart: Apart) -> tuple[GPT2, list[Block]]:
    """Returns the model without values in its own blocks, and its blocks one by one."""
    model = nnx.merge(structure.graphdef, {**apart.outside, "blocks": structure.shapes["blocks"]})
    graphdef, _ = nnx.split(model.blocks)
    return model, [nnx.merge(graphdef, params) for params in apart.layers]


def empty_caches(cfg: FrozenConfigDict, batch: int, length: int) -> Caches:
    """Returns zeroed keys and values for `length` columns."""
    shape = (batch, cfg.n_head, length, cfg.n_embd // cfg.n_head)
    zeros = lambda: jnp.zeros(shape, cfg.dtype)
    return tuple((zeros(), zeros()) for _ in range(cfg.n_layer))


def decode(
    model: GPT2,
    blocks: Sequence[Block],
    tokens_BT: jax.Array,
    caches: Caches,
    start: jax.Array | int,
    padding_B: jax.Array,
) -> tuple[jax.Array, Caches]:
    """Returns the final stream (B, T, D) of tokens in columns start .. start+T-1, and the caches.

    Args:
      model, blocks: of `bind_apart`.
      padding_B: how many columns on the left of each sequence are padding: no token attends to
        them, and positions count from the first column behind them.
    """
    columns_T = start + jnp.arange(tokens_BT.shape[1])
    columns_S = jnp.arange(caches[0][0].shape[2])
    mask_BTS = (columns_S <= columns_T[:, None]) & (columns_S >= padding_B[:, None, None])
    x_BTD = model.embed(tokens_BT, jnp.maximum(columns_T - padding_B[:, None], 0))
    new = []
    for layer, (block, cache) in enumerate(zip(blocks, caches, strict=True)):
        x_BTD, cache = block.decode(x_BTD, Context(layer), cache, Span(start, mask_BTS))
        new.append(cache)
    return x_BTD, tuple(new)
