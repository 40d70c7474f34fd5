"""The model over a cache of keys and values: columns of tokens after the ones already there."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.attention import Cache, Past, Span
from gpt2_jax.model.gpt2 import GPT2, Params
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
    step: jax.Array


class Bound(NamedTuple):
    """A model whose blocks stand one by one, and how many updates it was trained for.

    Its own stacks of blocks hold no values.
    """

    model: GPT2
    blocks: list[Block]
    step: jax.Array


def take_apart(structure: Structure, params: Params, step: int) -> Apart:
    """Returns the parameters after `step` updates layer by layer; a copy of the blocks'."""
    stacks = {segment.name: segment for segment in structure.segments}
    outside = {name: value for name, value in params.items() if name not in stacks}
    row_of = lambda stack, row: jax.tree.map(lambda x: x[row], stack)
    cut = jax.jit(lambda stack, n: tuple(row_of(stack, i) for i in range(n)), static_argnums=1)
    layers: list[Params] = []
    for name, segment in stacks.items():
        for row in cut(params[name], segment.rows):
            layers += [row] * segment.repeats
    return Apart(outside, tuple(layers), jnp.int32(step))


def bind_apart(structure: Structure, apart: Apart) -> Bound:
    """Returns the model with its blocks one by one; usable under a trace."""
    names = [segment.name for segment in structure.segments]
    stacks = {name: structure.shapes[name] for name in names}
    model = nnx.merge(structure.graphdef, {**apart.outside, **stacks})
    blocks = []
    for segment in structure.segments:
        graphdef, _ = nnx.split(getattr(model, segment.name))
        own = apart.layers[segment.start : segment.stop]
        blocks += [nnx.merge(graphdef, params) for params in own]
    return Bound(model, blocks, apart.step)


def empty_caches(cfg: FrozenConfigDict, batch: int, length: int) -> Caches:
    """Returns zeroed keys and values for `length` columns."""
    shape = (batch, cfg.n_head, length, cfg.n_embd // cfg.n_head)
    zeros = lambda: jnp.zeros(shape, cfg.dtype)
    return tuple((zeros(), zeros()) for _ in range(cfg.n_layer))


def decode(
    bound: Bound, tokens_BT: jax.Array, caches: Caches, start: jax.Array | int, padding_B: jax.Array
) -> tuple[jax.Array, Caches]:
    """Returns what the head reads of columns start .. start+T-1, (B, T, D), and the caches.

    Args:
      padding_B: how many columns on the left of each sequence are padding: no token attends to
        them, and positions count from the first column behind them.
    """
    columns_T = start + jnp.arange(tokens_BT.shape[1])
    columns_S = jnp.arange(caches[0][0].shape[2])
    mask_BTS = (columns_S <= columns_T[:, None]) & (columns_S >= padding_B[:, None, None])
    positions_BT = jnp.maximum(columns_T - padding_B[:, None], 0)
    model = bound.model
    context = model.context(positions_BT, None, bound.step)
    x_BTD = model.embed(tokens_BT, context)
    carry, new = model.begin(x_BTD), []
    for layer, (block, cache) in enumerate(zip(bound.blocks, caches, strict=True)):
        past = Past(cache, Span(start, mask_BTS))
        carry, left = model.pass_block(block, carry, context.at(layer, carry.values), past)
        assert left.cache is not None
        new.append(left.cache)
    return model.readout(carry), tuple(new)
