"""Connections whose sublayers read a mixture of what all sublayers before them gave."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.connection import Branch, Connection, Ends, NormCall
from gpt2_jax.model.norm import NormSpec, RMSNorm
from gpt2_jax.model.parts import Context, Role
from gpt2_jax.model.placements.axes import Placement
from gpt2_jax.model.plan import ATTN, MLP, Plan


def n_sources(cfg: FrozenConfigDict, placement: Placement) -> tuple[int, int]:
    """Returns how many groups of sublayers there are, and how many sublayers each sums."""
    n_sublayers = 2 * cfg.n_layer
    size = -(-n_sublayers // (placement.depth_groups or n_sublayers))
    return -(-n_sublayers // size), size


class DepthAttention(nnx.Module):
    """sum_i softmax_i(w N(v_i)) v_i for each token, w initially 0 (2603.15031, eq. 2)."""

    def __init__(self, width: int, eps: float):
        self.norm = RMSNorm(width, NormSpec("rmsnorm", eps, False, "float32"))
        self.query = nnx.Param(jnp.zeros(width), role=Role.SCALAR)

    def __call__(self, v_nBTD: jax.Array, present_n: jax.Array) -> jax.Array:
        """Returns the mixture of those of the n sources that are there already, (B, T, D)."""
        scores_nBT = self.norm(v_nBTD) @ self.query[...]
        there = present_n[:, None, None]
        share_nBT = jax.nn.softmax(jnp.where(there, scores_nBT, -jnp.inf), 0)
        return jnp.einsum("n...,n...d->...d", share_nBT, v_nBTD).astype(v_nBTD.dtype)


class DepthEnds(Ends):
    """Sources: the embedding, then room for each group; at the end N of a mixture of them all."""

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        super().__init__(cfg, placement)
        self.n_groups, _ = n_sources(cfg, placement)
        self.attention = DepthAttention(cfg.n_embd, placement.norm_eps)

    def expand(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.zeros((self.n_groups + 1, *x_BTD.shape), x_BTD.dtype).at[0].set(x_BTD)

    def readout(self, stream: jax.Array, norm: NormCall) -> jax.Array:
        return norm(self.attention(stream, jnp.ones(self.n_groups + 1, bool)))


class AttentionResiduals(Connection):
    """v_s = F(x_s), x_s = sum_i softmax_i(w_s N_s(v_i)) v_i over the embedding and all v before.

    In groups, what a group has summed so far is a source of its own beside the finished groups.
    """

    ends = DepthEnds

    def __init__(self, plan: Plan):
        width, eps = plan.cfg.n_embd, plan.placement.norm_eps
        self.n_groups, self.size = n_sources(plan.cfg, plan.placement)
        self.attn, self.mlp = DepthAttention(width, eps), DepthAttention(width, eps)

    def __call__(self, v_nBTD: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for which, attention, branch in ((ATTN, self.attn, attn), (MLP, self.mlp, mlp)):
            s = 2 * jnp.asarray(context.layer) + which
            group, within = s // self.size, s % self.size
            n = jnp.arange(self.n_groups + 1)
            present = (n <= group) | ((n == group + 1) & (within > 0))
            v_nBTD = v_nBTD.at[group + 1].add(branch(attention(v_nBTD, present)))
        return v_nBTD
