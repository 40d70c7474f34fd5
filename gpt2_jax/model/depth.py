"""Connections whose sublayers read a mixture of what all sublayers before them gave."""

from __future__ import annotations

from functools import reduce
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

Sources = tuple[jax.Array, ...]  # each (B, T, D): the embedding, then what sublayers gave


class DepthAttention(nnx.Module):
    """sum_i softmax_i(w N(v_i)) v_i for each token, w initially 0 (2603.15031, eq. 2)."""

    def __init__(self, width: int, eps: float):
        self.norm = RMSNorm(width, NormSpec("rmsnorm", eps, False, "float32"))
        self.query = nnx.Param(jnp.zeros(width), role=Role.SCALAR)

    def __call__(self, sources: Sources) -> jax.Array:
        """Returns the mixture of the sources, (B, T, D)."""

        def mixture(sources: Sources) -> jax.Array:
            v_nBTD = jnp.stack(sources)
            share_nBT = jax.nn.softmax(self.norm(v_nBTD) @ self.query[...], 0)
            return (share_nBT[..., None] * v_nBTD).sum(0).astype(v_nBTD.dtype)

        # Computed again for its gradient: each source is kept once for all mixtures that it is in.
        return jax.checkpoint(mixture)(sources)


class DepthEnds(Ends):
    """Sources, at first the embedding alone; at the end N of a mixture of them all."""

    grows = True

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        super().__init__(cfg, placement)
        self.attention = DepthAttention(cfg.n_embd, placement.norm_eps)

    def expand(self, x_BTD: jax.Array) -> Sources:
        return (x_BTD,)

    def whole(self, stream: Sources) -> jax.Array:
        return reduce(jnp.add, (v.astype(jnp.float32) for v in stream)).astype(stream[0].dtype)

    def readout(self, stream: Sources, norm: NormCall) -> jax.Array:
        return norm(self.attention(stream))


class AttentionResiduals(Connection):
    """v_s = F(x_s), x_s = sum_i softmax_i(w_s N_s(v_i)) v_i over the embedding and all v before.

    In groups, what a group has summed so far is a source of its own beside the finished groups.
    """

    ends = DepthEnds

    def __init__(self, plan: Plan):
        width, eps = plan.cfg.n_embd, plan.placement.norm_eps
        _, self.size = depth_groups(plan.placement, plan.cfg.n_layer)
        self.attn, self.mlp = DepthAttention(width, eps), DepthAttention(width, eps)

    def __call__(self, v: Sources, attn: Branch, mlp: Branch, context: Context) -> Sources:
        for which, attention, branch in ((ATTN, self.attn, attn), (MLP, self.mlp, mlp)):
            y_BTD = branch(attention(v))
            begins = (2 * int(context.layer) + which) % self.size == 0
            v = (*v, y_BTD) if begins else (*v[:-1], v[-1] + y_BTD)
        return v


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
