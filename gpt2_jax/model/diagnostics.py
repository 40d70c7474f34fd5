"""What goes on in a model by depth: sizes of stream, branches and gradients, attention's focus.

Each figure is one number a block, (L), float32, over all tokens that are given. A figure has the
same name here, in metrics.jsonl, on wandb and in the CSV files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt2_jax.model.attention import Left
from gpt2_jax.model.gpt2 import Params
from gpt2_jax.model.structure import Structure


class ByDepth(NamedTuple):
    """Figures of one block each.

    Attributes:
      stream_rms: of the stream behind the block, or of what several streams amount to.
      attn_ratio, mlp_ratio: RMS of what a branch gives over the RMS of what it was given.
      cosine: between the stream before the block and behind it.
      entropy: of attention's weights, nats. largest_score: before the softmax.
    """

    stream_rms: jax.Array
    attn_ratio: jax.Array
    mlp_ratio: jax.Array
    cosine: jax.Array
    entropy: jax.Array
    largest_score: jax.Array


def observe(
    structure: Structure, params: Params, tokens_BT: jax.Array, step: jax.Array | int
) -> ByDepth:
    """Returns figures by depth of a model after `step` updates, on a batch of ids; one pass."""
    model = structure.bind(params)

    def figures(before: Any, behind: Any, left: Left) -> ByDepth:
        (attn_in, attn_out), (mlp_in, mlp_out) = left.branches
        assert left.entropy is not None and left.largest_score is not None
        before_BTD, behind_BTD = model.ends.whole(before), model.ends.whole(behind)
        return ByDepth(
            stream_rms=rms(behind_BTD),
            attn_ratio=rms(attn_out) / rms(attn_in),
            mlp_ratio=rms(mlp_out) / rms(mlp_in),
            cosine=cosine(before_BTD, behind_BTD),
            entropy=left.entropy,
            largest_score=left.largest_score,
        )

    context = model.context(jnp.arange(tokens_BT.shape[1]), None, step)._replace(probe=figures)
    _, kept = model.run_blocks(model.embed(tokens_BT, context), context)
    return kept


def streams(
    structure: Structure, params: Params, tokens_BT: jax.Array, step: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Returns the stream behind each block (L, B, T, D), and what the head reads (B, T, D)."""
    model = structure.bind(params)
    context = model.context(jnp.arange(tokens_BT.shape[1]), None, step)
    context = context._replace(probe=lambda before, behind, left: model.ends.whole(behind))
    carry, kept = model.run_blocks(model.embed(tokens_BT, context), context)
    return kept, model.readout(carry)


def logits_without(
    structure: Structure, params: Params, tokens_BT: jax.Array, step: jax.Array | int, muted: Any
) -> jax.Array:
    """Returns the logits (B, T, V) where both branches of block `muted` (0-based) give 0."""
    model = structure.bind(params)
    context = model.context(jnp.arange(tokens_BT.shape[1]), None, step)._replace(muted=muted)
    carry, _ = model.run_blocks(model.embed(tokens_BT, context), context)
    return model.logits(model.readout(carry))


def rms(x: Any) -> jax.Array:
    """Returns the root of the mean square of all entries, be it one array or several."""
    squares = [jnp.square(leaf.astype(jnp.float32)).mean() for leaf in jax.tree.leaves(x)]
    return jnp.sqrt(sum(squares) / len(squares))


def cosine(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    """Returns the mean over tokens of the cosine between two vectors."""
    dot = lambda a, b: (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(-1)
    lengths = jnp.sqrt(dot(x_BTD, x_BTD) * dot(y_BTD, y_BTD))
    return (dot(x_BTD, y_BTD) / jnp.maximum(lengths, SMALLEST)).mean()


SMALLEST = 1e-30  # a product of lengths that is as good as zero


def gradient_norms(structure: Structure, grads: Params) -> jax.Array:
    """Returns the norm of each block's gradient, (L); of shared blocks that of their sum."""
    rows = []
    for segment in structure.segments:
        squares = [
            jnp.square(g.astype(jnp.float32)).reshape(segment.rows, -1).sum(-1)
            for g in jax.tree.leaves(grads[segment.name])
        ]
        rows.append(jnp.repeat(jnp.sqrt(sum(squares)), segment.repeats))
    return jnp.concatenate(rows)
