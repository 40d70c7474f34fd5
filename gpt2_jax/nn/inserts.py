"""Modules that parameter-efficient tuning adds to a trained model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.context import Context
from gpt2_jax.nn.masks import SequenceMask
from gpt2_jax.nn.param import Init, Role, param


class Adapter(nnx.Module):
    """y + U gelu(D y + b) + c after a sublayer, with U and c initially 0.

    Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", fig. 2.

    Args:
      width: of y. hidden: width of D y. site: name that determines the initial values of D.
    """

    def __init__(self, width: int, hidden: int, site: str, init: Init):
        down = init.normal(site, (width, hidden), width**-0.5)
        self.down = param(down, Role.ADAPTER, ("embed", None))
        self.down_bias = param(jnp.zeros(hidden), Role.ADAPTER, (None,))
        self.up = param(jnp.zeros((hidden, width)), Role.ADAPTER, (None, "embed"))
        self.up_bias = param(jnp.zeros(width), Role.ADAPTER, ("embed",))

    def __call__(self, y_BTD: jax.Array) -> jax.Array:
        cast = lambda x: x[...].astype(y_BTD.dtype)
        hidden = jax.nn.gelu(y_BTD @ cast(self.down) + cast(self.down_bias))
        return y_BTD + hidden @ cast(self.up) + cast(self.up_bias)


class Prefix(nnx.Module):
    """P learned keys and values that every token attends to, before those of the tokens.

    Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", section 4,
    trained directly instead of through an MLP. Values are initially 0.

    Args:
      length: P.
    """

    def __init__(self, length: int, n_head: int, head_dim: int, std: float, init: Init):
        shape = (length, n_head, head_dim)
        axes = (None, "heads", "head_dim")
        self.length = length
        self.k = param(init.normal("attn.prefix", shape, std), Role.ADAPTER, axes)
        self.v = param(jnp.zeros(shape), Role.ADAPTER, axes)

    def __call__(self, k_BHSK: jax.Array, v_BHSK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values, each (B, H, P + S, K)."""

        def joined(own: nnx.Param[jax.Array], x_BHSK: jax.Array) -> jax.Array:
            own_HPK = own[...].astype(x_BHSK.dtype).swapaxes(0, 1)
            own_BHPK = jnp.broadcast_to(own_HPK, (x_BHSK.shape[0], *own_HPK.shape))
            return jnp.concatenate([own_BHPK, x_BHSK], axis=2)

        return joined(self.k, k_BHSK), joined(self.v, v_BHSK)

    def seen_by_all(self, mask: jax.Array | None) -> jax.Array | None:
        """Returns a mask (..., T, S) with P columns of True before it; None if all are True."""
        if mask is None:
            return None
        return jnp.pad(mask, [*[(0, 0)] * (mask.ndim - 1), (self.length, 0)], constant_values=True)


class Prompt(nnx.Module):
    """P learned vectors in the residual stream before those of the tokens.

    Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2. They
    have no position vectors, and rotations by the positions -P .. -1, so that the tokens' positions
    do not change.
    """

    def __init__(self, length: int, width: int, std: float, init: Init):
        self.length = length
        vectors = init.normal("prompt", (length, width), std)
        self.vectors = param(vectors, Role.ADAPTER, (None, "embed"))

    def stream(self, n_rows: int, dtype: str) -> jax.Array:
        """Returns the vectors for each row, (B, P, D)."""
        vectors_PD = self.vectors[...].astype(dtype)
        return jnp.broadcast_to(vectors_PD, (n_rows, *vectors_PD.shape))

    def context(self, context: Context) -> Context:
        """Returns the context of the vectors alone, from one of tokens."""
        positions_P = jnp.arange(-self.length, 0)
        pos_emb = context.pos_emb
        if pos_emb is not None:
            pos_emb = jnp.zeros((self.length, pos_emb.shape[-1]), pos_emb.dtype)
        return context._replace(positions=positions_P, pos_emb=pos_emb)

    def before(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, Context]:
        """Returns the stream (B, P + T, D) and the context of whole sequences of tokens.

        The vectors belong to segment 1, the only one of a row.
        """
        own, mask = self.context(context), context.mask
        assert isinstance(mask, SequenceMask)
        rows = context.positions.shape[:-1]
        joined = lambda own, x: jnp.concatenate(
            [jnp.broadcast_to(own, (*rows, *own.shape)), x], -own.ndim
        )
        positions, pos_emb = joined(own.positions, context.positions), context.pos_emb
        if pos_emb is not None and own.pos_emb is not None:
            pos_emb = joined(own.pos_emb, pos_emb)
        if mask.queries_BT is not None:
            widths = ((0, 0), (self.length, 0))
            mask = mask._replace(queries_BT=jnp.pad(mask.queries_BT, widths, constant_values=1))
        x_BTD = jnp.concatenate([self.stream(x_BTD.shape[0], x_BTD.dtype.name), x_BTD], axis=1)
        return x_BTD, context._replace(positions=positions, pos_emb=pos_emb, mask=mask)
