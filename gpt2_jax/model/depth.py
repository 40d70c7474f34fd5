"""Connections whose sublayers read a mixture of what all sublayers before them gave."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.connection import Branch, Connection, Ends, NormCall, matrix
from gpt2_jax.model.norm import FixedRMSNorm, NormSpec, RMSNorm
from gpt2_jax.model.parts import Context, Role
from gpt2_jax.model.placements.axes import Placement
from gpt2_jax.model.placements.resolve import depth_groups
from gpt2_jax.model.plan import ATTN, MLP, Plan


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
        self.n_groups, _ = depth_groups(placement, cfg.n_layer)
        self.attention = DepthAttention(cfg.n_embd, placement.norm_eps)

    def expand(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.zeros((self.n_groups + 1, *x_BTD.shape), x_BTD.dtype).at[0].set(x_BTD)

    def whole(self, stream: jax.Array) -> jax.Array:
        return stream.astype(jnp.float32).sum(0).astype(stream.dtype)

    def readout(self, stream: jax.Array, norm: NormCall) -> jax.Array:
        return norm(self.attention(stream, jnp.ones(self.n_groups + 1, bool)))


class AttentionResiduals(Connection):
    """v_s = F(x_s), x_s = sum_i softmax_i(w_s N_s(v_i)) v_i over the embedding and all v before.

    In groups, what a group has summed so far is a source of its own beside the finished groups.
    """

    ends = DepthEnds

    def __init__(self, plan: Plan):
        width, eps = plan.cfg.n_embd, plan.placement.norm_eps
        self.n_groups, self.size = depth_groups(plan.placement, plan.cfg.n_layer)
        self.attn, self.mlp = DepthAttention(width, eps), DepthAttention(width, eps)

    def __call__(self, v_nBTD: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for which, attention, branch in ((ATTN, self.attn, attn), (MLP, self.mlp, mlp)):
            s = 2 * jnp.asarray(context.layer) + which
            group, within = s // self.size, s % self.size
            n = jnp.arange(self.n_groups + 1)
            present = (n <= group) | ((n == group + 1) & (within > 0))
            v_nBTD = v_nBTD.at[group + 1].add(branch(attention(v_nBTD, present)))
        return v_nBTD


class Ways(NamedTuple):
    """What blocks gave so far, the embedding first, and the inputs of the next block."""

    given: tuple[jax.Array, ...]
    q: jax.Array
    k: jax.Array
    v: jax.Array
    r: jax.Array


class WayEnds(Ends):
    """All four inputs begin as the embedding; at the end the head reads N(r)."""

    def expand(self, x_BTD: jax.Array) -> Ways:
        return Ways((x_BTD,), *[x_BTD] * 4)

    def whole(self, stream: Ways) -> jax.Array:
        return stream.r


class Muddformer(Connection):
    """h = r + A(N(q), N(k), N(v)), X_l = h + F(N(h)); then q, k, v and r are each sum_j w_j X_j.

    w = W_2 gelu(W_1 N(X_l)) + e_l for each token and each of the four (behind the last block r
    alone), N without gain, W_2 = 0 and e_l the l-th unit vector at the start (2502.12170).
    """

    EPS = 1e-6
    takes = frozenset({"pre"})
    ends = WayEnds

    def __init__(self, plan: Plan):
        l, d = plan.segment.stop, plan.cfg.n_embd
        self.n_ways = 1 if l == plan.cfg.n_layer else 4
        n = self.n_ways * (l + 1)
        self.q_pre, self.k_pre, self.v_pre = (plan.norm("pre", ATTN) for _ in range(3))
        self.mlp_pre = plan.norm("pre", MLP)
        self.norm = FixedRMSNorm(d, NormSpec("rmsnorm_fixed", self.EPS, False, "float32"))
        self.inside = matrix(plan.init.normal("mudd.inside", (d, n), d**-0.5))
        self.outside = matrix(jnp.zeros((n, n)))
        latest = jnp.tile(jnp.arange(l + 1) == l, self.n_ways)
        self.start = nnx.Param(latest.astype(jnp.float32), role=Role.BIAS)

    def __call__(self, stream: Ways, attn: Branch, mlp: Branch, context: Context) -> Ways:
        h = attn((self.q_pre(stream.q), self.k_pre(stream.k), self.v_pre(stream.v))) + stream.r
        x = mlp(self.mlp_pre(h)) + h
        given = (*stream.given, x)
        hidden = jax.nn.gelu(self.norm(x) @ self.inside[...], approximate=False)
        w = (hidden @ self.outside[...] + self.start[...]).reshape(*x.shape[:-1], self.n_ways, -1)
        made = jnp.einsum("btcj,jbtd->cbtd", w, jnp.stack(given)).astype(x.dtype)
        return Ways(given, *made) if self.n_ways == 4 else Ways(given, *[made[0]] * 4)
