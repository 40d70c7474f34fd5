"""Connections whose sublayers read a weighted sum of all earlier outputs."""

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
from gpt2_jax.placements.spec import SublayerSpec, TowerSpec

Sources = tuple[jax.Array, ...]  # each (B, T, D): the embedding, then sublayer outputs or sums


class DepthAttention(nnx.Module):
    """sum_i softmax_i(w N(v_i)) v_i per token, w initially 0 (2603.15031, eq. 2)."""

    def __init__(self, width: int, eps: float):
        self.norm = RMSNorm(width, NormSpec("rmsnorm", eps, False, "float32"))
        self.query = param(jnp.zeros(width), Role.SCALAR, ("embed",))

    def __call__(self, sources: Sources) -> jax.Array:
        """Returns the weighted sum of the sources, (B, T, D)."""

        def weighted_sum(sources: Sources) -> jax.Array:
            v_nBTD = jnp.stack(sources)
            weights_nBT = jax.nn.softmax(self.norm(v_nBTD) @ self.query[...], 0)
            return (weights_nBT[..., None] * v_nBTD).sum(0).astype(v_nBTD.dtype)

        # Recomputed in the backward pass, which would otherwise save a stack of sources per sum.
        return jax.checkpoint(weighted_sum)(sources)


class SourcesAdapter(StreamAdapter):
    """A list of sources, initially the embedding; the head reads N of a weighted sum of them."""

    grows = True

    def __init__(self, cfg: ModelConfig, spec: TowerSpec):
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
    """v_s = F(x_s), x_s = sum_i softmax_i(w_s N_s(v_i)) v_i over the embedding and earlier v.

    With groups, the sources are the sums of complete groups and the partial sum of the current one.
    """

    adapter = SourcesAdapter

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        self.attention = DepthAttention(build.cfg.n_embd, build.spec.norm.eps)
        self.group_size = build.spec.connection.group_size
        self.n, self.index = len(build.sublayers), spec.index

    def read(self, v: Sources, context: Context) -> jax.Array:
        return self.attention(v)

    def __call__(self, v: Sources, u: jax.Array, y: jax.Array, context: Context) -> Sources:
        starts_group = (self.n * int(context.layer) + self.index) % self.group_size == 0
        return (*v, y) if starts_group else (*v[:-1], v[-1] + y)


class MultiwayStream(NamedTuple):
    """The embedding and the outputs of all blocks so far, and the four inputs of the next block."""

    outputs: tuple[jax.Array, ...]
    q: jax.Array
    k: jax.Array
    v: jax.Array
    r: jax.Array


class MultiwayAdapter(StreamAdapter):
    """All four inputs are initially the embedding; the head reads N(r)."""

    def expand(self, x_BTD: jax.Array) -> MultiwayStream:
        return MultiwayStream((x_BTD,), *[x_BTD] * 4)

    def reduce(self, stream: MultiwayStream) -> jax.Array:
        return stream.r


@register("muddformer")
class Muddformer(Connection):
    """h = r + A(N(q), N(k), N(v)), X_l = h + F(N(h)); then q, k, v and r are each sum_j w_j X_j.

    w = W_2 gelu(W_1 N(X_l)) + e_l per token for each of the four, or for r alone after the last
    block. N has no gain; initially W_2 = 0 and e_l is the l-th unit vector (2502.12170).
    """

    EPS = 1e-6
    owned_sites = frozenset({"pre"})
    adapter = MultiwayAdapter

    def __init__(self, build: BlockBuilder):
        l, d = build.stack.stop, build.cfg.n_embd
        self.n_ways = 1 if l == build.spec.tower.n_layer else 4
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
        self, stream: MultiwayStream, sublayers: Sequence[SublayerFn], context: Context
    ) -> tuple[MultiwayStream, Aux]:
        assert self.q_pre and self.k_pre and self.v_pre and self.mlp_pre
        attn, mlp = sublayers
        u = self.q_pre(stream.q), self.k_pre(stream.k), self.v_pre(stream.v)
        y, attn_aux = attn(u, context)
        h = y + stream.r
        y, mlp_aux = mlp(self.mlp_pre(h), context)
        x = y + h
        outputs = (*stream.outputs, x)
        hidden = jax.nn.gelu(self.norm(x) @ self.inside[...], approximate=False)
        w = (hidden @ self.outside[...] + self.start[...]).reshape(*x.shape[:-1], self.n_ways, -1)
        sums = jnp.einsum("btcj,jbtd->cbtd", w, jnp.stack(outputs)).astype(x.dtype)
        inputs = sums if self.n_ways == 4 else [sums[0]] * 4
        return MultiwayStream(outputs, *inputs), (attn_aux, mlp_aux)
