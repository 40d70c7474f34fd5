"""Decoding: the model applied to new tokens, with a key-value cache for the earlier ones."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.beam import Beams
from gpt2_jax.model.block import Block
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.stack import Params, layers_of
from gpt2_jax.model.transformer import Transformer
from gpt2_jax.nn.context import CacheMask, KVCache

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
    stacks = model_def.spec.stacks
    shapes = {stack.name: model_def.shapes["blocks"][stack.name] for stack in stacks}
    filled = {**unstacked.outside, "blocks": {**unstacked.outside["blocks"], **shapes}}
    model = nnx.merge(model_def.graphdef, filled)
    blocks = []
    for stack in stacks:
        graphdef, _ = nnx.split(getattr(model.blocks, stack.name))
        layers = unstacked.layers[stack.start : stack.stop]
        blocks += [nnx.merge(graphdef, params) for params in layers]
    return UnstackedModel(model, blocks, unstacked.step)


def empty_caches(cfg: ModelConfig, batch: int, length: int) -> Caches:
    """Returns a cache of zeros with `length` columns for each layer."""
    shape = (batch, cfg.n_head, length, cfg.n_embd // cfg.n_head)
    zeros = lambda: jnp.zeros(shape, cfg.dtype)
    return tuple(KVCache(zeros(), zeros()) for _ in range(cfg.n_layer))


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
      first_B: the first column of each sequence, after padding at its left; no token attends to
        earlier columns, and positions count from it. With `document_mask`, that of the document
        that the sequence continues.
    """
    model = unstacked.model
    columns_T = start + jnp.arange(tokens_BT.shape[1])
    columns_S = jnp.arange(caches[0].k_BHSK.shape[2])
    first_BT = first_B[:, None]
    if model.cfg.document_mask:
        first_BT = model.first_of_document(tokens_BT, columns_T, first_B)
    mask_BTS = (columns_S <= columns_T[:, None]) & (columns_S >= first_BT[..., None])
    positions_BT = jnp.maximum(columns_T - first_BT, 0)
    mask = CacheMask(start, mask_BTS)
    x_BTD, new = decode_masked(unstacked, tokens_BT, caches, positions_BT, mask)
    return x_BTD, new, first_BT[:, -1]


def decode_masked(
    unstacked: UnstackedModel,
    tokens_BT: jax.Array,
    caches: Caches,
    positions_BT: jax.Array,
    mask: CacheMask,
) -> tuple[jax.Array, Caches]:
    """Applies the model to tokens in consecutive columns; returns the head's input and the caches.

    Args:
      positions_BT: of the tokens in their sequences.
      mask: the columns that each token attends to.
    """
    model = unstacked.model
    context = model.context(positions_BT, None, unstacked.step)._replace(mask=mask)
    carry, new = model.blocks.begin(model.embedding(tokens_BT, context)), []
    for layer, (block, cache) in enumerate(zip(unstacked.blocks, caches, strict=True)):
        block_context = context.at(layer, carry.first_values, cache)
        carry, auxes = model.blocks.apply(block, carry, block_context)
        new.append(next(aux.cache for aux in auxes if aux.cache is not None))
    return model.head_input(carry), tuple(new)


def decode_beams(
    unstacked: UnstackedModel, caches: Caches, beams: Beams, n_prompt: int, first_B: jax.Array
) -> tuple[jax.Array, Caches]:
    """Applies the model to the last tokens of hypotheses; returns logits (B, K, V) and the caches.

    The K hypotheses of a row are K tokens of one sequence: the token of slot k at step t is in
    column n_prompt + t K + k, and attends to the prompt, which they share, and to the columns of
    the slots that it descends from. So caches are never reordered, which would copy all of them.

    Args:
      caches: for B rows, with n_prompt + T K columns.
      n_prompt: number of columns of the prompts.
      first_B: the first column of each prompt, after padding at its left.
    """
    n_rows, n_beams = beams.tokens_BK.shape
    column = beams.column
    is_own_BKTK = beams.slots_BKT[..., None] == jnp.arange(n_beams)
    is_past_T = jnp.arange(beams.slots_BKT.shape[2]) <= column
    own_BKS = (is_own_BKTK & is_past_T[:, None]).reshape(n_rows, n_beams, -1)
    prompt_BS = jnp.arange(n_prompt) >= first_B[:, None]
    prompt_BKS = jnp.broadcast_to(prompt_BS[:, None], (n_rows, n_beams, n_prompt))
    mask_BKS = jnp.concatenate([prompt_BKS, own_BKS], -1)
    positions_BK = jnp.broadcast_to((n_prompt + column - first_B)[:, None], beams.tokens_BK.shape)
    mask = CacheMask(n_prompt + column * n_beams, mask_BKS)
    x_BKD, caches = decode_masked(unstacked, beams.tokens_BK, caches, positions_BK, mask)
    return unstacked.model.logits(x_BKD), caches
