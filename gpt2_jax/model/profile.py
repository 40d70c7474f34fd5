"""Skip factors that start from variances measured on data (Liu et al. 2020, Admin, 2004.08249)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gpt2_jax.model.connections import Plain
from gpt2_jax.model.decode import bind_apart, take_apart
from gpt2_jax.model.gpt2 import Params
from gpt2_jax.model.plan import ATTN, MLP
from gpt2_jax.model.structure import Structure


def profile(structure: Structure, params: Params, tokens_BT: jax.Array) -> Params:
    """Returns the parameters with w_1 = 1 and w_{s+1}^2 = Var(w_s x_s) + Var(F(x_s)).

    Sublayer by sublayer on one batch, variances over all its entries, each w in effect for what is
    measured behind it; without dropout. As it is where the placement is not `profiled`.
    """
    if not structure.placement.profiled:
        return params
    bound = bind_apart(structure, take_apart(structure, params, 0))
    context = bound.model.context(jnp.arange(tokens_BT.shape[1]), None, 0)
    context = context._replace(probe=lambda *_: None)  # so that branches are handed out
    carry = bound.model.begin(bound.model.embed(tokens_BT, context))
    factor, factors = jnp.float32(1.0), []
    for layer, block in enumerate(bound.blocks):
        here = context.at(layer, carry.values)
        for which in (ATTN, MLP):
            assert isinstance(block.connection, Plain)
            value = block.connection.skip_scale.of(which).value
            value[...] = jnp.broadcast_to(factor, value.shape)
            factors.append(factor)
            passed, left = bound.model.pass_block(block, carry, here)
            x_BTD, y_BTD = left.branches[which]
            spread = lambda x: jnp.var(x.astype(jnp.float32))
            factor = jnp.sqrt(factor**2 * spread(x_BTD) + spread(y_BTD))
        carry = passed
    return _with_factors(structure, params, factors)


def _with_factors(structure: Structure, params: Params, factors: list[jax.Array]) -> Params:
    params = jax.tree.map(lambda x: x, params)
    for segment in structure.segments:
        scales = params[segment.name]["connection"]["skip_scale"]
        for which, name in ((ATTN, "attn"), (MLP, "mlp")):
            own = jnp.stack(factors[2 * segment.start + which : 2 * segment.stop : 2])
            value = scales[name]["value"]
            rows = own.reshape(-1, *[1] * (value.ndim - 1))
            scales[name]["value"] = jnp.broadcast_to(rows, value.shape)
    return params
