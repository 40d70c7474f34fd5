"""Diagnostics by depth: scale of the residual stream, sublayer outputs and gradients; attention.

Each diagnostic is one float32 number per block, (L), over all tokens of the batch. It has the same
name here, in metrics.jsonl, in wandb and in CSV files.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.residual.base import Aux
from gpt2_jax.model.stack import Params


class ByDepth(NamedTuple):
    """Diagnostics of a block, or of all blocks with an axis L.

    Attributes:
      stream_rms: RMS of the stream after the block; several streams are reduced to one first.
      attn_ratio, mlp_ratio: RMS of a sublayer's output over the RMS of its input.
      cosine: between the stream before the block and after it.
      entropy: of the attention weights, in nats. largest_score: before the softmax.
    """

    stream_rms: jax.Array
    attn_ratio: jax.Array
    mlp_ratio: jax.Array
    cosine: jax.Array
    entropy: jax.Array
    largest_score: jax.Array


def observe(
    model_def: ModelDef, params: Params, tokens_BT: jax.Array, step: jax.Array | int
) -> ByDepth:
    """Returns the diagnostics of a model after `step` steps, on a batch of token ids."""
    model = model_def.bind(params)
    reduce = model.blocks.adapter.reduce

    def measure(before: Any, after: Any, auxes: Aux) -> ByDepth:
        attn, mlp = auxes
        assert attn.entropy is not None and attn.largest_score is not None
        before_BTD, after_BTD = reduce(before), reduce(after)
        return ByDepth(
            stream_rms=rms(after_BTD),
            attn_ratio=rms(attn.output) / rms(attn.input),
            mlp_ratio=rms(mlp.output) / rms(mlp.input),
            cosine=cosine(before_BTD, after_BTD),
            entropy=attn.entropy,
            largest_score=attn.largest_score,
        )

    context = model.context_of(tokens_BT, None, step)
    return model.run(tokens_BT, context._replace(observe=measure))[1]


def streams(
    model_def: ModelDef, params: Params, tokens_BT: jax.Array, step: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Returns the stream after each block (L, B, T, D), and the head's input (B, T, D)."""
    model = model_def.bind(params)
    reduce = model.blocks.adapter.reduce
    context = model.context_of(tokens_BT, None, step)
    context = context._replace(observe=lambda before, after, auxes: reduce(after))
    carry, stream_LBTD = model.run(tokens_BT, context)
    return model.of_tokens(stream_LBTD), model.of_tokens(model.head_input(carry))


class Activations(NamedTuple):
    """The residual stream before and after all blocks, and the outputs of sublayers.

    Attributes:
      sublayer_LBTD: by name of the sublayer, its output after its norms and scales.
    """

    embedding_BTD: jax.Array
    stream_LBTD: jax.Array
    sublayer_LBTD: dict[str, jax.Array]
    head_input_BTD: jax.Array


@partial(jax.jit, static_argnames="model_def")
def activations(
    model_def: ModelDef, params: Params, tokens_BT: jax.Array, step: jax.Array | int
) -> Activations:
    """Returns the activations of a model after `step` steps, on a batch of token ids."""
    model = model_def.bind(params)
    reduce = model.blocks.adapter.reduce
    names = [sublayer.name for sublayer in model_def.spec.stacks[0].block.sublayers]

    def keep(before: Any, after: Any, auxes: Aux) -> tuple[jax.Array, dict[str, Any]]:
        del before
        return reduce(after), {n: aux.output for n, aux in zip(names, auxes, strict=True)}

    context = model.context_of(tokens_BT, None, step)
    carry, (stream, outputs) = model.run(tokens_BT, context._replace(observe=keep))
    embedding = reduce(model.blocks.begin(model.embedding(tokens_BT, context)).stream)
    found = (stream, outputs, model.head_input(carry))
    return Activations(embedding, *jax.tree.map(model.of_tokens, found))


def logits_without(
    model_def: ModelDef,
    params: Params,
    tokens_BT: jax.Array,
    step: jax.Array | int,
    layer: jax.Array | int,
) -> jax.Array:
    """Returns the logits (B, T, V) with the sublayers of one block (from 0) returning 0."""
    model = model_def.bind(params)
    context = model.context_of(tokens_BT, None, step)
    carry, _ = model.run(tokens_BT, context._replace(ablated_layer=layer))
    return model.logits(model.of_tokens(model.head_input(carry)))


def rms(x: Any) -> jax.Array:
    """Returns the root mean square of an array, or of several with equal weight."""
    squares = [jnp.square(leaf.astype(jnp.float32)).mean() for leaf in jax.tree.leaves(x)]
    return jnp.sqrt(sum(squares) / len(squares))


def cosine(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    """Returns the cosine between the vectors of two arrays, averaged over tokens."""
    dot = lambda a, b: (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(-1)
    lengths = jnp.sqrt(dot(x_BTD, x_BTD) * dot(y_BTD, y_BTD))
    return (dot(x_BTD, y_BTD) / jnp.maximum(lengths, SMALLEST)).mean()


SMALLEST = 1e-30  # lower bound on the product of lengths, to avoid 0/0


def gradient_norms(model_def: ModelDef, grads: Params) -> jax.Array:
    """Returns the norm of each block's gradient, (L); shared blocks have a common gradient."""
    rows = []
    for stack in model_def.spec.stacks:
        squares = [
            jnp.square(g.astype(jnp.float32)).reshape(stack.n_rows, -1).sum(-1)
            for g in jax.tree.leaves(grads["blocks"][stack.name])
        ]
        rows.append(jnp.repeat(jnp.sqrt(sum(squares)), stack.repeats))
    return jnp.concatenate(rows)
