"""Skip scales initialized from variances measured on data (Liu et al. 2020, Admin, 2004.08249)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gpt2_jax.model.decode import bind_unstacked, unstack_params
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.stack import Params


def data_dependent_init(model_def: ModelDef, params: Params, tokens_BT: jax.Array) -> Params:
    """Returns the parameters with w_1 = 1 and w_{s+1}^2 = Var(w_s x_s) + Var(F(x_s)).

    Variances are over all entries of one batch, measured sublayer by sublayer with the previous w
    already set, without dropout. Returns `params` if the placement does not use this.
    """
    if not model_def.spec.data_dependent_init:
        return params
    unstacked = bind_unstacked(model_def, unstack_params(model_def, params, 0))
    model = unstacked.model
    context = model.context_of(tokens_BT, None, 0)
    context = context._replace(observe=lambda *_: None)  # makes sublayers return input and output
    carry = model.blocks.begin(model.embedding(tokens_BT, context))
    factor, factors = jnp.float32(1.0), []
    for layer, block in enumerate(unstacked.blocks):
        block_context = context.at(layer, carry.first_values)
        for index, name in enumerate(block.names):
            value = getattr(block.connection, name).skip_scale.value
            value[...] = jnp.broadcast_to(factor, value.shape)
            factors.append(factor)
            after, auxes = model.blocks.apply(block, carry, block_context)
            variance = lambda x: jnp.var(x.astype(jnp.float32))
            aux = auxes[index]
            factor = jnp.sqrt(factor**2 * variance(aux.input) + variance(aux.output))
        carry = after
    return _with_factors(model_def, params, factors)


def _with_factors(model_def: ModelDef, params: Params, factors: list[jax.Array]) -> Params:
    params = jax.tree.map(lambda x: x, params)
    n = model_def.spec.n_sublayers
    for stack in model_def.spec.stacks:
        connection = params["blocks"][stack.name]["connection"]
        for spec in stack.block.sublayers:
            stacked = jnp.stack(factors[n * stack.start + spec.index : n * stack.stop : n])
            scale = connection[spec.name]["skip_scale"]
            rows = stacked.reshape(-1, *[1] * (scale["value"].ndim - 1))
            scale["value"] = jnp.broadcast_to(rows, scale["value"].shape)
    return params
