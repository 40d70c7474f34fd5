"""Connections whose sublayers read a mixture of what all sublayers before them returned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.builder import BlockBuilder
from gpt2_jax.model.residual.base import (
    Aux,
    Combine,
    Connection,
    NormFn,
    StreamAdapter,
    SublayerFn,
    matrix,
    register,
)
from gpt2_jax.nn.context import Context
from gpt2_jax.nn.norms import FixedRMSNorm, NormSpec, RMSNorm
from gpt2_jax.nn.param import Role, param
from gpt2_jax.placements.spec import ModelSpec, SublayerSpec

Sources = tuple[jax.Array, ...]  # each (B, T, D): the embedding, then outputs of sublayers


class DepthAttention(nnx.Module):
    """sum_i softmax_i(w N(v_i)) v_i for each token, w initially 0 (2603.15031, eq. 2)."""

    def __init__(self, width: int, eps: float):
        self.norm = RMSNorm(width, NormSpec("rmsnorm", eps, False, "float32"))
        self.query = param(jnp.zeros(width), Role.SCALAR, ("embed",))

    def __call__(self, sources: Sources) -> jax.Array:
        """Returns the mixture of the sources, (B, T, D)."""

        def mixture(sources: Sources) -> jax.Array:
            v_nBTD = jnp.stack(sources)
            share_nBT = jax.nn.softmax(self.norm(v_nBTD) @ self.query[...], 0)
            return (share_nBT[..., None] * v_nBTD).sum(0).astype(v_nBTD.dtype)

        # Recomputed for its gradient, so that each source is kept once for all its mixtures.
        return jax.checkpoint(mixture)(sources)


class SourcesAdapter(StreamAdapter):
    """Sources, at first the embedding alone; at the end N of a mixture of all of them."""

    grows = True

    def __init__(self, cfg: ModelConfig, spec: ModelSpec):
        super().__init__(cfg, spec)
        self.attention = DepthAttention(cfg.n_embd, spec.norm.eps)

    def expand(self, x_BTD: jax.Array) -> Sources:
        return (x_BTD,)

    def reduce(self, stream: Sources) -> jax.Array:
        return reduce(jnp.add, (v.astype(jnp.float32) for v in stream)).astype(stream[0].dtype)

    def head_input(self, stream: Sources, norm: NormFn) -> jax.Array:
        return norm(self.attention(stream))


@register("attention_residuals")
class AttentionResiduals(Combine):
    """v_s = F(x_s), x_s = sum_i softmax_i(w_s N_s(v_i)) v_i over the embedding and all v before.

    In groups, the sum of the present group so far is a source next to the finished groups.
    """

    adapter = SourcesAdapter

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        self.attention = DepthAttention(build.cfg.n_embd, build.spec.norm.eps)
        self.group_size = build.spec.connection.group_size
        self.n, self.index = len(build.sublayers), spec.index

    def read(self, v: Sources, context: Context) -> jax.Array:
        return self.attention(v)

    def __call__(self, v: Sources, u: jax.Array, y: jax.Array, context: Context) -> Sources:
        begins = (self.n * int(context.layer) + self.index) % self.group_size == 0
        return (*v, y) if begins else (*v[:-1], v[-1] + y)


class Ways(NamedTuple):
    """What blocks returned so far, the embedding first, and the inputs of the next block."""

    given: tuple[jax.Array, ...]
    q: jax.Array
    k: jax.Array
    v: jax.Array
    r: jax.Array


class WaysAdapter(StreamAdapter):
    """All four inputs begin as the embedding; at the end the head reads N(r)."""

    def expand(self, x_BTD: jax.Array) -> Ways:
        return Ways((x_BTD,), *[x_BTD] * 4)

    def reduce(self, stream: Ways) -> jax.Array:
        return stream.r


@register("muddformer")
class Muddformer(Connection):
    """h = r + A(N(q), N(k), N(v)), X_l = h + F(N(h)); then q, k, v and r are each sum_j w_j X_j.

    w = W_2 gelu(W_1 N(X_l)) + e_l for each token and each of the four (after the last block r
    alone), N without gain, W_2 = 0 and e_l the l-th unit vector at the start (2502.12170).
    """

    EPS = 1e-6
    owned_sites = frozenset({"pre"})
    adapter = WaysAdapter

    def __init__(self, build: BlockBuilder):
        l, d = build.stack.stop, build.cfg.n_embd
        self.n_ways = 1 if l == build.cfg.n_layer else 4
        n = self.n_ways * (l + 1)
        attn, mlp = build.sublayers
        self.q_pre, self.k_pre, self.v_pre = (build.norm("pre", attn) for _ in range(3))
        self.mlp_pre = build.norm("pre", mlp)
        self.norm = FixedRMSNorm(d, NormSpec("rmsnorm_fixed", self.EPS, False, "float32"))
        inside = build.init.normal("mudd.inside", (d, n), d**-0.5)
        self.inside = matrix(inside, ("embed", None))
        self.outside = matrix(jnp.zeros((n, n)), (None, None))
        latest = jnp.tile(jnp.arange(l + 1) == l, self.n_ways)
        self.start = param(latest.astype(jnp.float32), Role.BIAS, (None,))

    def __call__(
        self, stream: Ways, sublayers: Sequence[SublayerFn], context: Context
    ) -> tuple[Ways, Aux]:
        assert self.q_pre and self.k_pre and self.v_pre and self.mlp_pre
        attn, mlp = sublayers
        u = self.q_pre(stream.q), self.k_pre(stream.k), self.v_pre(stream.v)
        y, of_attn = attn(u, context)
        h = y + stream.r
        y, of_mlp = mlp(self.mlp_pre(h), context)
        x = y + h
        given = (*stream.given, x)
        hidden = jax.nn.gelu(self.norm(x) @ self.inside[...], approximate=False)
        w = (hidden @ self.outside[...] + self.start[...]).reshape(*x.shape[:-1], self.n_ways, -1)
        made = jnp.einsum("btcj,jbtd->cbtd", w, jnp.stack(given)).astype(x.dtype)
        inputs = made if self.n_ways == 4 else [made[0]] * 4
        return Ways(given, *inputs), (of_attn, of_mlp)
