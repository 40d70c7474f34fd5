"""Skip scales initialized from variances measured on data (Liu et al. 2020, Admin, 2004.08249)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gpt2_jax.model.definition import ModelDef, at_path, tower_path
from gpt2_jax.model.encoder_decoder import EncoderDecoder
from gpt2_jax.model.stack import Params
from gpt2_jax.model.tower import Inputs, Tower
from gpt2_jax.nn.context import Memory
from gpt2_jax.nn.masks import SequenceMask
from gpt2_jax.placements.spec import TowerSpec


def data_dependent_init(
    model_def: ModelDef, params: Params, inputs: Inputs, source: Inputs | None = None
) -> Params:
    """Returns the parameters with w_1 = 1 and w_{s+1}^2 = Var(w_s x_s) + Var(F(x_s)).

    Variances are over all entries of one batch except padding, measured sublayer by sublayer with
    the previous w already set, without dropout. An encoder comes before the decoder that reads it,
    and both begin with w_1 = 1. Returns `params` if the placement does not use this.
    """
    if not model_def.spec.data_dependent_init:
        return params
    model = model_def.bind(params)
    if not isinstance(model, EncoderDecoder):
        _, factors = _measure(model, inputs)
        return _with_factors(model_def.spec, params, factors)
    assert source is not None
    x_BSD, encoder_factors = _measure(model.encoder, source)
    memory = model.memory(x_BSD, source, inputs)
    _, decoder_factors = _measure(model.decoder, inputs, memory)
    for spec, factors in zip(model_def.specs, (encoder_factors, decoder_factors), strict=True):
        (name,) = path = tower_path(spec)
        params = {**params, name: _with_factors(spec, at_path(params, path), factors)}
    return params


def _measure(
    tower: Tower, inputs: Inputs, memory: Memory | None = None
) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the output of a tower with its initial factors, and the factors."""
    context = tower.context_of(inputs, None, 0, memory)
    context = context._replace(observe=lambda *_: None)  # makes sublayers return input and output
    assert isinstance(context.mask, SequenceMask)
    is_token_BT = context.mask.is_token()
    where = None if is_token_BT is None else is_token_BT[..., None]
    variance = lambda x: jnp.var(x.astype(jnp.float32), where=where)
    carry = tower.blocks.begin(tower.embed(inputs, context))
    factor, factors = jnp.float32(1.0), []
    for layer, block in enumerate(tower.blocks.unstacked()):
        block_context = context.at(layer, carry.first_values)
        for index, name in enumerate(block.names):
            value = getattr(block.connection, name).skip_scale.value
            value[...] = jnp.broadcast_to(factor, value.shape)
            factors.append(factor)
            after, auxes = tower.blocks.apply(block, carry, block_context)
            aux = auxes[index]
            factor = jnp.sqrt(factor**2 * variance(aux.input) + variance(aux.output))
        carry = after
    return tower.head_input(carry), factors


def _with_factors(spec: TowerSpec, params: Params, factors: list[jax.Array]) -> Params:
    """Returns a tower's parameters with their skip scales set."""
    params = jax.tree.map(lambda x: x, params)
    n = len(spec.tower.sublayers)
    for stack in spec.stacks:
        connection = params["blocks"][stack.name]["connection"]
        for sublayer in stack.block.sublayers:
            stacked = jnp.stack(factors[n * stack.start + sublayer.index : n * stack.stop : n])
            scale = connection[sublayer.name]["skip_scale"]
            rows = stacked.reshape(-1, *[1] * (scale["value"].ndim - 1))
            scale["value"] = jnp.broadcast_to(rows, scale["value"].shape)
    return params
