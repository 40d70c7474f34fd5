"""Decoding: the model applied to new tokens, with a key-value cache for the earlier ones."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.data.batch import Tokens
from gpt2_jax.model.beam import Beams
from gpt2_jax.model.block import Block
from gpt2_jax.model.definition import ModelDef, at_path, tower_path
from gpt2_jax.model.encoder_decoder import EncoderDecoder
from gpt2_jax.model.stack import Carry, Params, layers_of
from gpt2_jax.model.transformer import Transformer
from gpt2_jax.nn.context import Context, KVCache, Memory
from gpt2_jax.nn.masks import CacheMask, SequenceMask

Caches = tuple[KVCache, ...]  # one per layer


class UnstackedParams(NamedTuple):
    """Parameters with a tree per layer of the last tower, and their training step."""

    outside: Params
    layers: tuple[Params, ...]
    step: jax.Array


class UnstackedModel(NamedTuple):
    """A model whose last tower has a module per block, and the training step of its parameters.

    Attributes:
      model: the last tower; its stacks of blocks hold shapes instead of values.
      whole: the encoder-decoder that it is part of; None if it is the whole model.
    """

    model: Transformer
    blocks: list[Block]
    step: jax.Array
    whole: EncoderDecoder | None = None


def unstack_params(model_def: ModelDef, params: Params, step: int) -> UnstackedParams:
    """Returns the parameters after `step` steps, the last tower's with one tree per layer.

    Copies its blocks.
    """
    stacks, path = model_def.spec.stacks, tower_path(model_def.spec)
    tower = at_path(params, path)
    names = {stack.name for stack in stacks}
    blocks = {name: value for name, value in tower["blocks"].items() if name not in names}
    outside = _with_tower(params, path, {**tower, "blocks": blocks})
    return UnstackedParams(outside, layers_of(stacks, tower["blocks"]), jnp.int32(step))


def bind_unstacked(model_def: ModelDef, unstacked: UnstackedParams) -> UnstackedModel:
    """Returns the model with a module per block; usable under a trace."""
    stacks, path = model_def.spec.stacks, tower_path(model_def.spec)
    restored = model_def.restored
    outside = restored(unstacked.outside)
    tower, shapes = (at_path(tree, path) for tree in (outside, model_def.shapes))
    stored = {stack.name: shapes["blocks"][stack.name] for stack in stacks}
    of_stacks = jax.eval_shape(restored, stored)
    filled = {**tower, "blocks": {**tower["blocks"], **of_stacks}}
    whole = nnx.merge(model_def.graphdef, _with_tower(outside, path, filled))
    model, blocks = at_path(whole, path, getattr), []
    if isinstance(whole, EncoderDecoder):
        whole.link()
    for stack in stacks:
        graphdef, _ = nnx.split(getattr(model.blocks, stack.name))
        layers = unstacked.layers[stack.start : stack.stop]
        blocks += [nnx.merge(graphdef, restored(params)) for params in layers]
    return UnstackedModel(model, blocks, unstacked.step, whole if path else None)


def _with_tower(params: Params, path: tuple[str, ...], tower: Params) -> Params:
    return {**params, path[0]: tower} if path else tower


def empty_caches(cfg: ModelConfig, batch: int, length: int) -> Caches:
    """Returns a cache of zeros with `length` columns for each layer."""
    shape = (batch, cfg.n_head, length, cfg.n_embd // cfg.n_head)
    zeros = lambda: jnp.zeros(shape, cfg.dtype)
    return tuple(KVCache(zeros(), zeros()) for _ in range(cfg.n_layer))


def first_caches(unstacked: UnstackedModel, batch: int, length: int) -> Caches:
    """Returns caches for `length` tokens, after the columns of prompt tuning if there are any."""
    model, prompt = unstacked.model, unstacked.model.prompt
    if prompt is None:
        return empty_caches(model.cfg, batch, length)
    caches = empty_caches(model.cfg, batch, prompt.length + length)
    context = prompt.context(model.context(jnp.arange(prompt.length), None, unstacked.step))
    mask_TS = jnp.arange(prompt.length + length) <= jnp.arange(prompt.length)[:, None]
    context = context._replace(mask=CacheMask(0, mask_TS[None]))
    return _apply_blocks(unstacked, prompt.stream(batch, model.cfg.dtype), context, caches)[1]


def n_learned(model: Transformer) -> int:
    """Returns the number of columns of prompt tuning, which come first in the caches."""
    return 0 if model.prompt is None else model.prompt.length


def decode(
    unstacked: UnstackedModel,
    tokens_BT: jax.Array,
    caches: Caches,
    start: jax.Array | int,
    first_B: jax.Array,
    source: SourceCaches | None = None,
) -> tuple[jax.Array, Caches, jax.Array]:
    """Applies the model to tokens in columns start .. start+T-1.

    Returns the head's input (B, T, D), the caches, and the `first_B` of the next call.

    Args:
      caches: from `first_caches`, or an earlier call.
      start: the column of the first token, without those of prompt tuning.
      source: what cross-attention reads, as returned by `read_source`.
      first_B: the first column of each sequence, after padding at its left; no token attends to
        earlier columns, and positions count from it. With `document_mask`, that of the document
        that the sequence continues.
    """
    model = unstacked.model
    columns_T = start + jnp.arange(tokens_BT.shape[1])
    columns_S = jnp.arange(caches[0].k_BHSK.shape[2] - n_learned(model))
    first_BT = first_B[:, None]
    if model.cfg.document_mask:
        first_BT = model.first_of_document(tokens_BT, columns_T, first_B)
    mask_BTS = (columns_S <= columns_T[:, None]) & (columns_S >= first_BT[..., None])
    positions_BT = jnp.maximum(columns_T - first_BT, 0)
    mask = CacheMask(start, mask_BTS)
    x_BTD, new = decode_masked(unstacked, tokens_BT, caches, positions_BT, mask, source)
    return x_BTD, new, first_BT[:, -1]


def decode_masked(
    unstacked: UnstackedModel,
    tokens_BT: jax.Array,
    caches: Caches,
    positions_BT: jax.Array,
    mask: CacheMask,
    source: SourceCaches | None = None,
) -> tuple[jax.Array, Caches]:
    """Applies the model to tokens in consecutive columns; returns the head's input and the caches.

    Args:
      positions_BT: of the tokens in their sequences.
      mask: the columns that each token attends to, without those of prompt tuning.
      source: as in `decode`.
    """
    model = unstacked.model
    memory = source and Memory(None, source.mask(tokens_BT))
    if (n := n_learned(model)) > 0:
        columns = jnp.pad(mask.mask_BTS, ((0, 0), (0, 0), (n, 0)), constant_values=True)
        mask = CacheMask(mask.start + n, columns)
    context = model.context(positions_BT, None, unstacked.step)
    context = context._replace(mask=mask, memory=memory)
    x_BTD = model.embedding(tokens_BT, context)
    carry, caches = _apply_blocks(unstacked, x_BTD, context, caches, source)
    return model.head_input(carry), caches


def _apply_blocks(
    unstacked: UnstackedModel,
    x_BTD: jax.Array,
    context: Context,
    caches: Caches,
    source: SourceCaches | None = None,
) -> tuple[Carry, Caches]:
    """Returns the carry after the last block, and the caches with the new columns."""
    model, new = unstacked.model, []
    carry = model.blocks.begin(x_BTD)
    cross = source.layers if source else (None,) * len(caches)
    for layer, (block, *own) in enumerate(zip(unstacked.blocks, caches, cross, strict=True)):
        block_context = context.at(layer, carry.first_values, *own)
        carry, auxes = model.blocks.apply(block, carry, block_context)
        new.append(next(aux.cache for aux in auxes if aux.cache is not None))
    return carry, tuple(new)


def decode_beams(
    unstacked: UnstackedModel,
    caches: Caches,
    beams: Beams,
    n_prompt: int,
    first_B: jax.Array,
    source: SourceCaches | None = None,
) -> tuple[jax.Array, Caches]:
    """Applies the model to the last tokens of hypotheses; returns logits (B, K, V) and the caches.

    The K hypotheses of a row are K tokens of one sequence: the token of slot k at step t is in
    column n_prompt + t K + k, and attends to the prompt, which they share, and to the columns of
    the slots that it descends from. So caches are never reordered, which would copy all of them.

    Args:
      caches: for B rows, with n_prompt + T K columns.
      n_prompt: number of columns of the prompts.
      first_B: the first column of each prompt, after padding at its left. source: as in `decode`.
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
    x_BKD, caches = decode_masked(unstacked, beams.tokens_BK, caches, positions_BK, mask, source)
    return unstacked.model.logits(x_BKD), caches


class SourceCaches(NamedTuple):
    """What the cross-attention of each layer reads of a source; the same for all its tokens.

    Attributes:
      layers: keys and values, one per layer. segments_BS: 1 at the source's tokens, else 0.
    """

    layers: Caches
    segments_BS: jax.Array

    def mask(self, tokens_BT: jax.Array) -> SequenceMask:
        """Returns the mask from tokens of the target to those of the source."""
        return SequenceMask(False, jnp.ones_like(tokens_BT), self.segments_BS)


def read_source(unstacked: UnstackedModel, source: Tokens) -> SourceCaches:
    """Applies the encoder, and projects its output to the keys and values of each layer.

    Args:
      source: one example per row (segment 1).
    """
    whole = unstacked.whole
    assert whole is not None
    x_BSD = whole.encoder.output(source, None, unstacked.step)
    context = Context(jnp.arange(x_BSD.shape[1]), step=unstacked.step)
    project = lambda block: block.cross.sublayer.project_memory(x_BSD, context)
    return SourceCaches(tuple(project(block) for block in unstacked.blocks), source.segments_BT)
