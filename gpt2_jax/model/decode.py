"""Decoding: the model applied to new tokens, with a key-value cache for the earlier ones."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.data.batch import Tokens
from gpt2_jax.model.block import Block
from gpt2_jax.model.definition import ModelDef, at_path, tower_path
from gpt2_jax.model.encoder_decoder import EncoderDecoder
from gpt2_jax.model.stack import Params, layers_of
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
    tower, shapes = (at_path(tree, path) for tree in (unstacked.outside, model_def.shapes))
    of_stacks = {stack.name: shapes["blocks"][stack.name] for stack in stacks}
    filled = {**tower, "blocks": {**tower["blocks"], **of_stacks}}
    whole = nnx.merge(model_def.graphdef, _with_tower(unstacked.outside, path, filled))
    model, blocks = at_path(whole, path, getattr), []
    if isinstance(whole, EncoderDecoder):
        whole.link()
    for stack in stacks:
        graphdef, _ = nnx.split(getattr(model.blocks, stack.name))
        layers = unstacked.layers[stack.start : stack.stop]
        blocks += [nnx.merge(graphdef, params) for params in layers]
    return UnstackedModel(model, blocks, unstacked.step, whole if path else None)


def _with_tower(params: Params, path: tuple[str, ...], tower: Params) -> Params:
    return {**params, path[0]: tower} if path else tower


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
    source: SourceCaches | None = None,
) -> tuple[jax.Array, Caches, jax.Array]:
    """Applies the model to tokens in columns start .. start+T-1.

    Returns the head's input (B, T, D), the caches, and the `first_B` of the next call.

    Args:
      source: what cross-attention reads, as returned by `read_source`.
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
    context = model.context(positions_BT, None, unstacked.step)
    memory = source and Memory(None, source.mask(tokens_BT))
    context = context._replace(mask=CacheMask(start, mask_BTS), memory=memory)
    carry, new = model.blocks.begin(model.embedding(tokens_BT, context)), []
    cross = source.layers if source else (None,) * len(caches)
    for layer, (block, *own) in enumerate(zip(unstacked.blocks, caches, cross, strict=True)):
        block_context = context.at(layer, carry.first_values, *own)
        carry, auxes = model.blocks.apply(block, carry, block_context)
        new.append(next(aux.cache for aux in auxes if aux.cache is not None))
    return model.head_input(carry), tuple(new), first_BT[:, -1]


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


class TargetCaches(NamedTuple):
    """The state of writing a target, row by row.

    Attributes:
      source: shared by the hypotheses of a source. own: keys and values of the target so far.
      length: number of tokens so far.
    """

    source: SourceCaches
    own: Caches
    length: jax.Array


def start(
    model_def: ModelDef, unstacked: UnstackedParams, source: Tokens, n_target: int, n_rows: int = 1
) -> TargetCaches:
    """Returns the state before the first token of each target.

    Args:
      source: one example per row (segment 1), B rows.
      n_target: most tokens of a target. n_rows: hypotheses per source; those of source b are rows
        b n_rows to (b + 1) n_rows - 1.
    """
    bound = bind_unstacked(model_def, unstacked)
    read = read_source(bound, source)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, n_rows, axis=0), read) if n_rows > 1 else read
    rows = source.ids_BT.shape[0] * n_rows
    return TargetCaches(repeated, empty_caches(model_def.cfg, rows, n_target), jnp.int32(0))


def step(
    model_def: ModelDef, unstacked: UnstackedParams, caches: TargetCaches, tokens_B: jax.Array
) -> tuple[jax.Array, TargetCaches]:
    """Returns float32 logits (B, V) of the token after `tokens_B`, and the state after them.

    Args:
      tokens_B: the next token of each row, at first the one that targets begin with.
    """
    bound = bind_unstacked(model_def, unstacked)
    first_B, tokens_B1 = jnp.zeros_like(tokens_B), tokens_B[:, None]
    x_B1D, own, _ = decode(bound, tokens_B1, caches.own, caches.length, first_B, caches.source)
    return bound.model.logits(x_B1D)[:, 0], caches._replace(own=own, length=caches.length + 1)


def reorder(caches: TargetCaches, rows_B: jax.Array) -> TargetCaches:
    """Returns the state in which row b continues what row `rows_B[b]` has written.

    Args:
      rows_B: rows of the same source.
    """
    return caches._replace(own=jax.tree.map(lambda x: x[rows_B], caches.own))
