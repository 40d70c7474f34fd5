"""Diagnostics by depth: scale of the residual stream, sublayer outputs and gradients; attention.

Each diagnostic is one float32 number per block, (L), over all tokens of the batch. It has the same
name here, in metrics.jsonl, in wandb and in CSV files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt2_jax.data.batch import Tokens
from gpt2_jax.model.definition import ModelDef, at_path
from gpt2_jax.model.encoder_decoder import EncoderDecoder
from gpt2_jax.model.heads import LabelModel
from gpt2_jax.model.residual.base import Aux
from gpt2_jax.model.stack import Carry, Params
from gpt2_jax.model.tower import Inputs, Tower
from gpt2_jax.nn.context import Context, Memory
from gpt2_jax.nn.masks import SequenceMask
from gpt2_jax.placements.towers import CROSS, TowerShape


class ByDepth(NamedTuple):
    """Diagnostics of a block, or of all blocks of a tower with an axis L; padding does not count.

    Attributes:
      stream_rms: RMS of the stream after the block; several streams are reduced to one first.
      attn_ratio, mlp_ratio, cross_ratio: RMS of a sublayer's output over the RMS of its input; the
        last is None without cross-attention.
      cosine: between the stream before the block and after it.
      entropy: of the self-attention weights, in nats. largest_score: before the softmax.
    """

    stream_rms: jax.Array
    attn_ratio: jax.Array
    mlp_ratio: jax.Array
    cosine: jax.Array
    entropy: jax.Array
    largest_score: jax.Array
    cross_ratio: jax.Array | None = None


def observe(
    model_def: ModelDef,
    params: Params,
    inputs: Inputs,
    step: jax.Array | int,
    source: Inputs | None = None,
) -> ByDepth:
    """Returns the diagnostics of a model after `step` steps on a batch; of its last tower."""
    return observe_towers(model_def, params, inputs, step, source)[model_def.spec.tower.kind.name]


def observe_towers(
    model_def: ModelDef,
    params: Params,
    inputs: Inputs,
    step: jax.Array | int,
    source: Inputs | None = None,
) -> dict[str, ByDepth]:
    """Returns the diagnostics of each tower by its name, which is empty for the only one."""

    def observing(tower: Tower, context: Context) -> Context:
        assert isinstance(context.mask, SequenceMask)
        measure = partial(measure_block, tower, context.mask.is_token())
        return context._replace(observe=measure)

    runs = run_towers(model_def.bind(params), inputs, step, source, observing)
    return {name: run.observed for name, run in runs.items()}


def figures(
    model_def: ModelDef,
    params: Params,
    inputs: Inputs,
    step: jax.Array | int,
    source: Inputs | None = None,
) -> dict[str, jax.Array]:
    """Returns each diagnostic (L) by name: `stream_rms`, or `encoder/stream_rms` of two towers."""
    found = observe_towers(model_def, params, inputs, step, source)
    return {
        tower_figure(tower, name): values
        for tower, by_depth in found.items()
        for name, values in by_depth._asdict().items()
        if values is not None
    }


def tower_figure(tower: str, name: str) -> str:
    """Returns the name of a tower's figure."""
    return f"{tower}/{name}" if tower else name


def by_tower(towers: Sequence[TowerShape], name: str, values: Any) -> dict[str, Any]:
    """Splits a figure of all blocks, such as `gradient_norms`, into those of each tower."""
    found, start = {}, 0
    for tower in towers:
        stop = start + tower.n_layer
        found[tower_figure(tower.kind.name, name)] = values[start:stop]
        start = stop
    return found


def measure_block(
    tower: Tower, is_token_BT: jax.Array | None, before: Any, after: Any, auxes: Aux
) -> ByDepth:
    """Returns the diagnostics of a block."""
    reduce = lambda x: tower.of_tokens(tower.blocks.adapter.reduce(x))
    by_name = dict(zip(tower.blocks.sublayers, auxes, strict=True))
    size = lambda x: rms(jax.tree.map(tower.of_tokens, x), is_token_BT)
    ratios = {name: size(aux.output) / size(aux.input) for name, aux in by_name.items()}
    attn, before_BTD, after_BTD = by_name["attn"], reduce(before), reduce(after)
    assert attn.entropy is not None and attn.largest_score is not None
    return ByDepth(
        stream_rms=size(after_BTD),
        attn_ratio=ratios["attn"],
        mlp_ratio=ratios["mlp"],
        cosine=cosine(before_BTD, after_BTD, is_token_BT),
        entropy=attn.entropy,
        largest_score=attn.largest_score,
        cross_ratio=ratios.get("cross"),
    )


class TowerRun(NamedTuple):
    """What a tower did with a batch; `observed` has the results of `Context.observe`."""

    tower: Tower
    context: Context
    carry: Carry
    observed: Any

    @property
    def output(self) -> jax.Array:
        """The output of the tower (B, T, D), after the final norm."""
        return self.tower.of_tokens(self.tower.head_input(self.carry))


def run_towers(
    model: Any,
    inputs: Inputs,
    step: jax.Array | int,
    source: Inputs | None,
    change: Callable[[Tower, Context], Context],
) -> dict[str, TowerRun]:
    """Applies the towers of a model, without dropout.

    Args:
      change: returns the context with which a tower is applied, given its usual one.
    """

    def run(tower: Tower, inputs: Inputs, memory: Memory | None = None) -> TowerRun:
        context = change(tower, tower.context_of(inputs, None, step, memory))
        return TowerRun(tower, context, *tower.run(inputs, context))

    if not isinstance(model, EncoderDecoder):
        return {"": run(model, inputs)}
    assert source is not None
    encoder = run(model.encoder, source)
    memory = model.memory(encoder.output, source, inputs)
    return {"encoder": encoder, "decoder": run(model.decoder, inputs, memory)}


class TowerStreams(NamedTuple):
    """The residual stream of a tower.

    Attributes:
      stream_LBTD: after each block; several streams are reduced to one.
      output_BTD: after the final norm: what the head or cross-attention reads.
      is_token_BT: the tokens that are not padding; None if all are.
    """

    stream_LBTD: jax.Array
    output_BTD: jax.Array
    is_token_BT: jax.Array | None


def streams(
    model_def: ModelDef,
    params: Params,
    inputs: Inputs,
    step: jax.Array | int,
    source: Inputs | None = None,
) -> dict[str, TowerStreams]:
    """Returns the streams of each tower by its name, which is empty for the only one."""

    def observing(tower: Tower, context: Context) -> Context:
        reduce = tower.blocks.adapter.reduce
        return context._replace(observe=lambda before, after, auxes: reduce(after))

    def of(run: TowerRun, read: Inputs) -> TowerStreams:
        is_token_BT = read.segments_BT != 0 if isinstance(read, Tokens) else None
        return TowerStreams(run.tower.of_tokens(run.observed), run.output, is_token_BT)

    runs = run_towers(model_def.bind(params), inputs, step, source, observing)
    sides = [inputs] if source is None else [source, inputs]
    return {name: of(run, read) for (name, run), read in zip(runs.items(), sides, strict=True)}


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
    inputs: Inputs,
    step: jax.Array | int,
    layer: jax.Array | int,
    source: Inputs | None = None,
) -> jax.Array:
    """Returns the logits with the sublayers of one block returning 0.

    Args:
      layer: the block, from 0; with two towers, those of the encoder come first.
    """
    model = model_def.bind(params)
    n_encoder_layer = sum(spec.tower.n_layer for spec in model_def.specs[:-1])

    def without(tower: Tower, context: Context) -> Context:
        before = n_encoder_layer if CROSS in tower.blocks.sublayers else 0
        return context._replace(ablated_layer=layer - before)

    run = list(run_towers(model, inputs, step, source, without).values())[-1]
    if isinstance(model, LabelModel) and isinstance(inputs, Tokens):
        return model.logits(run.output, inputs.segments_BT)
    return model.logits(run.output)


def rms(x: Any, is_token_BT: jax.Array | None = None) -> jax.Array:
    """Returns the root mean square of an array (B, T, D), or of several with equal weight.

    Args:
      is_token_BT: the tokens that count; None for all.
    """
    where = None if is_token_BT is None else is_token_BT[..., None]
    squares = [
        jnp.mean(jnp.square(leaf.astype(jnp.float32)), where=where) for leaf in jax.tree.leaves(x)
    ]
    return jnp.sqrt(sum(squares) / len(squares))


def cosine(x_BTD: jax.Array, y_BTD: jax.Array, is_token_BT: jax.Array | None = None) -> jax.Array:
    """Returns the cosine between the vectors of two arrays, averaged over tokens."""
    dot = lambda a, b: (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(-1)
    lengths = jnp.sqrt(dot(x_BTD, x_BTD) * dot(y_BTD, y_BTD))
    return jnp.mean(dot(x_BTD, y_BTD) / jnp.maximum(lengths, SMALLEST), where=is_token_BT)


SMALLEST = 1e-30  # lower bound on the product of lengths, to avoid 0/0


def gradient_norms(model_def: ModelDef, grads: Params) -> jax.Array:
    """Returns the norm of each block's gradient, (L); shared blocks have a common gradient.

    With two towers, the blocks of the encoder come first.
    """
    rows = []
    for path, stack in model_def.stacks.items():
        squares = [
            jnp.square(g.astype(jnp.float32)).reshape(stack.n_rows, -1).sum(-1)
            for g in jax.tree.leaves(at_path(grads, path))
        ]
        rows.append(jnp.repeat(jnp.sqrt(sum(squares)), stack.repeats))
    return jnp.concatenate(rows)
