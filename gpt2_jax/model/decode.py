"""Decoding: the model applied to new tokens, with a key-value cache for the earlier ones."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.block import Block
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.stack import Carry, Params, layers_of
from gpt2_jax.model.transformer import Transformer
from gpt2_jax.nn.context import CacheMask, Context, KVCache

Caches = tuple[KVCache, ...]  # one per layer


class UnstackedParams(NamedTuple):
    """Parameters with a tree per layer instead of stacks, and their training step."""

    outside: Params
    layers: tuple[Params, ...]
    step: jax.Array


class UnstackedModel(NamedTuple):
    """A model with a module per block, and the training step of its parameters.

    The stacks of blocks in `model` hold shapes instead of values.
    """

    model: Transformer
    blocks: list[Block]
    step: jax.Array


def unstack_params(model_def: ModelDef, params: Params, step: int) -> UnstackedParams:
    """Returns the parameters after `step` steps with one tree per layer; copies the blocks."""
    stacks = model_def.spec.stacks
    blocks = {
        name: value
        for name, value in params["blocks"].items()
        if name not in {stack.name for stack in stacks}
    }
    layers = layers_of(stacks, params["blocks"])
    return UnstackedParams({**params, "blocks": blocks}, layers, jnp.int32(step))


def bind_unstacked(model_def: ModelDef, unstacked: UnstackedParams) -> UnstackedModel:
    """Returns the model with a module per block; usable under a trace."""
    stacks, restored = model_def.spec.stacks, model_def.restored
    stored = {stack.name: model_def.shapes["blocks"][stack.name] for stack in stacks}
    shapes, outside = jax.eval_shape(restored, stored), restored(unstacked.outside)
    filled = {**outside, "blocks": {**outside["blocks"], **shapes}}
    model = nnx.merge(model_def.graphdef, filled)
    blocks = []
    for stack in stacks:
        graphdef, _ = nnx.split(getattr(model.blocks, stack.name))
        layers = unstacked.layers[stack.start : stack.stop]
        blocks += [nnx.merge(graphdef, restored(params)) for params in layers]
    return UnstackedModel(model, blocks, unstacked.step)


def empty_caches(cfg: ModelConfig, batch: int, length: int) -> Caches:
    """Returns a cache of zeros with `length` columns for each layer."""
    shape = (batch, cfg.n_head, length, cfg.n_embd // cfg.n_head)
    zeros = lambda: jnp.zeros(shape, cfg.dtype)
    return tuple(KVCache(zeros(), zeros()) for _ in range(cfg.n_layer))


def first_caches(unstacked: UnstackedModel, batch: int, length: int) -> Caches:
    """Returns caches for `length` tokens, after the columns of the model's prompt if it has one."""
    model, prompt = unstacked.model, unstacked.model.prompt
    if prompt is None:
        return empty_caches(model.cfg, batch, length)
    caches = empty_caches(model.cfg, batch, prompt.length + length)
    context = prompt.context(model.context(jnp.arange(prompt.length), None, unstacked.step))
    mask_TS = jnp.arange(prompt.length + length) <= jnp.arange(prompt.length)[:, None]
    context = context._replace(mask=CacheMask(0, mask_TS[None]))
    return _apply_blocks(unstacked, prompt.stream(batch, model.cfg.dtype), context, caches)[1]


def decode(
    unstacked: UnstackedModel,
    tokens_BT: jax.Array,
    caches: Caches,
    start: jax.Array | int,
    first_B: jax.Array,
) -> tuple[jax.Array, Caches, jax.Array]:
    """Applies the model to tokens in columns start .. start+T-1.

    Returns the head's input (B, T, D), the caches, and the `first_B` of the next call.

    Args:
      caches: from `first_caches`, or an earlier call.
      start: the column of the first token, without those of a prompt.
      first_B: the first column of each sequence, after padding at its left; no token attends to
        earlier columns, and positions count from it. With `document_mask`, that of the document
        that the sequence continues.
    """
    model = unstacked.model
    n_prompt = 0 if model.prompt is None else model.prompt.length
    columns_T = start + jnp.arange(tokens_BT.shape[1])
    columns_S = jnp.arange(caches[0].k_BHSK.shape[2] - n_prompt)
    first_BT = first_B[:, None]
    if model.cfg.document_mask:
        first_BT = model.first_of_document(tokens_BT, columns_T, first_B)
    mask_BTS = (columns_S <= columns_T[:, None]) & (columns_S >= first_BT[..., None])
    positions_BT = jnp.maximum(columns_T - first_BT, 0)
    context = model.context(positions_BT, None, unstacked.step)
    mask_BTS = jnp.pad(mask_BTS, ((0, 0), (0, 0), (n_prompt, 0)), constant_values=True)
    context = context._replace(mask=CacheMask(start + n_prompt, mask_BTS))
    carry, new_caches = _apply_blocks(
        unstacked, model.embedding(tokens_BT, context), context, caches
    )
    return model.head_input(carry), new_caches, first_BT[:, -1]


def _apply_blocks(
    unstacked: UnstackedModel, x_BTD: jax.Array, context: Context, caches: Caches
) -> tuple[Carry, Caches]:
    model, new = unstacked.model, []
    carry = model.blocks.begin(x_BTD)
    for layer, (block, cache) in enumerate(zip(unstacked.blocks, caches, strict=True)):
        block_context = context.at(layer, carry.first_values, cache)
        carry, auxes = model.blocks.apply(block, carry, block_context)
        new.append(next(aux.cache for aux in auxes if aux.cache is not None))
    return carry, tuple(new)
