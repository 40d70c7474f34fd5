"""Connections that keep more than one stream: each class is its paper's equation."""

from __future__ import annotations

import math
from itertools import permutations
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.model.connection import Branch, Connection, Ends, NormCall, matrix
from gpt2_jax.model.depth import AttentionResiduals, Muddformer
from gpt2_jax.model.norm import LayerNorm, NormSpec, RMSNorm
from gpt2_jax.model.parts import Context, Role
from gpt2_jax.model.plan import ATTN, MLP, Plan

Maps = tuple[jax.Array, jax.Array, jax.Array]


class Two(NamedTuple):
    """A stream that is normed, and one that is not."""

    x_BTD: jax.Array
    y_BTD: jax.Array


class TwoEnds(Ends):
    """Both begin as the embedding; at the end x + N(y)."""

    def expand(self, x_BTD: jax.Array) -> Two:
        return Two(x_BTD, x_BTD)

    def whole(self, stream: Two) -> jax.Array:
        return stream.x_BTD + stream.y_BTD

    def readout(self, stream: Two, norm: NormCall) -> jax.Array:
        return stream.x_BTD + norm(stream.y_BTD)


class ResiDual(Connection):
    """o = F(x); x <- N(x + o); y <- y + o; at the end x + N(y) (Xie et al. 2023, 2304.14802)."""

    ends = TwoEnds

    def __init__(self, plan: Plan):
        self.attn_post, self.mlp_post = plan.norm("post", ATTN), plan.norm("post", MLP)

    def __call__(self, stream: Two, attn: Branch, mlp: Branch, context: Context) -> Two:
        x, y = stream
        for post, branch in ((self.attn_post, attn), (self.mlp_post, mlp)):
            o = branch(x)
            x, y = post(x + o), y + o
        return Two(x, y)


class SiameseNorm(ResiDual):
    """o = F(x + N_y(y)); x <- N_x(x + o/sqrt(2 l)); y <- y + o; at the end x + N(y).

    2602.08064, algorithm 1 with its normed input (the branch's own norm) and depth scaling; l is
    the block's number.
    """

    def __init__(self, plan: Plan):
        super().__init__(plan)
        self.attn_y, self.mlp_y = plan.norm("post", ATTN), plan.norm("post", MLP)

    def __call__(self, stream: Two, attn: Branch, mlp: Branch, context: Context) -> Two:
        x, y = stream
        c = jnp.sqrt(2.0 * jnp.asarray(context.layer + 1, jnp.float32))
        sides = ((self.attn_post, self.attn_y, attn), (self.mlp_post, self.mlp_y, mlp))
        for post, norm_y, branch in sides:
            o = branch(x + norm_y(y))
            x, y = post(x + (o / c).astype(x.dtype)), y + o
        return Two(x, y)


class Summed(Ends):
    """n copies of the embedding; at the end N(sum_i h_i)."""

    def expand(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.stack([x_BTD] * self.placement.n_streams)

    def whole(self, stream: jax.Array) -> jax.Array:
        return stream.astype(jnp.float32).sum(0).astype(stream.dtype)


class NormedAndSummed(Summed):
    """n copies of the embedding; at the end sum_i N(h_i)."""

    def readout(self, stream: jax.Array, norm: NormCall) -> jax.Array:
        return norm(stream).astype(jnp.float32).sum(0).astype(stream.dtype)


class HyperConnections(Connection):
    """n streams h_1..h_n: u = sum_i a_i h_i, h_j <- sum_i r_ij h_i + b_j F(u) (2409.19606, eq. 2).

    The static maps a, r, b are the parameters themselves; at the start all streams are Pre-LN's.
    At the end the streams are summed.
    """

    ends = Summed

    def __init__(self, plan: Plan):
        self.attn, self.mlp = self.maps(plan, ATTN), self.maps(plan, MLP)

    @staticmethod
    def maps(plan: Plan, which: int) -> nnx.Module:
        """Returns what makes a, r and b of the streams before one sublayer."""
        return StaticMaps(plan, which)

    def __call__(self, h_nBTD: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for maps, branch in ((self.attn, attn), (self.mlp, mlp)):
            a, r, b = maps(h_nBTD)
            y_BTD = branch(jnp.einsum("...i,i...d->...d", a, h_nBTD).astype(h_nBTD.dtype))
            mixed = jnp.einsum("...ij,i...d->j...d", r, h_nBTD)
            added = jnp.moveaxis(b, -1, 0)[..., None] * y_BTD
            h_nBTD = (mixed + added).astype(h_nBTD.dtype)
        return h_nBTD


class StaticMaps(nnx.Module):
    """a = e_k, r = I, b = 1 at the start, k the sublayer's number modulo n."""

    def __init__(self, plan: Plan, which: int):
        self.n = n = plan.placement.n_streams
        self.read = nnx.Param(first_stream(plan, which, n), role=Role.SCALAR)
        self.mix = nnx.Param(jnp.eye(n), role=Role.SCALAR)
        self.write = nnx.Param(jnp.ones(n), role=Role.SCALAR)

    def __call__(self, h_nBTD: jax.Array) -> Maps:
        lead = h_nBTD.shape[1:-1]
        wide = lambda x: jnp.broadcast_to(x, (*lead, *x.shape))
        return wide(self.read[...]), wide(self.mix[...]), wide(self.write[...])


def first_stream(plan: Plan, which: int, n: int) -> jax.Array:
    """Returns e_k, k the sublayer's 0-based number modulo n."""
    return jax.nn.one_hot((2 * plan.init.layer + which) % n, n)


class DynamicMaps(StaticMaps):
    """Those, and s tanh(N(h_i) W) for each stream i and token, W = 0 and s = 0.01 at the start.

    Zhu et al. 2024, eqs. 10 to 14; s is one number for a and r, and another for b.
    """

    FIRST = 0.01

    def __init__(self, plan: Plan, which: int, width: int | None = None):
        super().__init__(plan, which)
        d = width or plan.cfg.n_embd
        self.norm = LayerNorm(d, NormSpec("layernorm", plan.placement.norm_eps, True, "float32"))
        self.to_mix = matrix(jnp.zeros((d, self.n_mixed())))
        self.to_write = matrix(jnp.zeros((d, 1)))
        self.mix_scale = nnx.Param(jnp.float32(self.FIRST), role=Role.SCALAR)
        self.write_scale = nnx.Param(jnp.float32(self.FIRST), role=Role.SCALAR)

    def n_mixed(self) -> int:
        """Returns how many streams are made of the n: the branch's input, and the n again."""
        return self.n + 1

    def __call__(self, h_nBTD: jax.Array) -> Maps:
        read, mix, write = super().__call__(h_nBTD)
        normed = self.norm(h_nBTD)
        mixes = self.mix_scale[...] * jnp.tanh(normed @ self.to_mix[...])
        mixes = jnp.moveaxis(mixes, 0, -2)  # (B, T, from, to)
        writes = self.write_scale[...] * jnp.tanh(normed @ self.to_write[...])[..., 0]
        split = mixes.shape[-1] - self.n
        read = read + mixes[..., :split].reshape(*mixes.shape[:-1], *read.shape[mixes.ndim - 1 :])
        return read, mix + mixes[..., split:], write + jnp.moveaxis(writes, 0, -1)


class DynamicHyperConnections(HyperConnections):
    """Hyper-connections whose maps also depend on the token."""

    @staticmethod
    def maps(plan: Plan, which: int) -> nnx.Module:
        return DynamicMaps(plan, which)


class FracMaps(DynamicMaps):
    """Maps between m parts of one stream: a is (m, m) too, and all begin as the identity."""

    def __init__(self, plan: Plan, which: int):
        m = plan.placement.n_streams
        super().__init__(plan, which, plan.cfg.n_embd // m)
        self.read = nnx.Param(jnp.eye(m), role=Role.SCALAR)

    def n_mixed(self) -> int:
        return 2 * self.n


class FracConnections(Connection):
    """Hyper-connections between the m parts of one stream, dynamic (2503.14125, algorithm 2)."""

    def __init__(self, plan: Plan):
        self.m = plan.placement.n_streams
        self.attn, self.mlp = FracMaps(plan, ATTN), FracMaps(plan, MLP)

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for maps, branch in ((self.attn, attn), (self.mlp, mlp)):
            parts = jnp.moveaxis(x.reshape(*x.shape[:-1], self.m, -1), -2, 0)
            a, r, b = maps(parts)
            u = jnp.einsum("...ij,i...d->...jd", a, parts).reshape(x.shape).astype(x.dtype)
            y = branch(u).reshape(*x.shape[:-1], self.m, -1)
            mixed = jnp.einsum("...ij,i...d->...jd", r, parts)
            x = (mixed + b[..., None] * y).reshape(x.shape).astype(x.dtype)
        return x


class ManifoldMaps(nnx.Module):
    """a = σ(.), b = 2 σ(.), r doubly stochastic, of the normed streams side by side.

    DeepSeek 2025 (mHC), 2512.24880, eqs. 7 to 9. Where the paper is silent, the start is that of
    FFTYYY/mhc-lite hyper_conn/mhc.py: a favours stream k, b writes to it, r is nearly I.
    """

    FIRST, OFF = 0.01, -8.0

    def __init__(self, plan: Plan, which: int):
        self.n = n = plan.placement.n_streams
        width = n * plan.cfg.n_embd
        self.norm = RMSNorm(width, NormSpec("rmsnorm", 1e-20, False, "float32"))
        self.to_read, self.to_write = (matrix(jnp.zeros((width, n))) for _ in range(2))
        self.to_mix = matrix(jnp.zeros((width, self.n_mix())))
        self.scales = nnx.Param(jnp.full(3, self.FIRST), role=Role.SCALAR)
        favoured = 2.0 * first_stream(plan, which, n) - 1.0
        self.read = nnx.Param(favoured, role=Role.BIAS)
        self.write = nnx.Param(favoured, role=Role.BIAS)
        self.mix = nnx.Param(self.first_mix(), role=Role.BIAS)

    def n_mix(self) -> int:
        """Returns how many numbers r is made of."""
        return self.n * self.n

    def first_mix(self) -> jax.Array:
        """Returns the bias of those numbers."""
        return (self.OFF * (1.0 - jnp.eye(self.n))).reshape(-1)

    def __call__(self, h_nBTD: jax.Array) -> Maps:
        vec = jnp.moveaxis(h_nBTD.astype(jnp.float32), 0, -2)
        vec = self.norm(vec.reshape(*vec.shape[:-2], -1))
        scale = self.scales[...]
        read = scale[0] * (vec @ self.to_read[...]) + self.read[...]
        write = scale[1] * (vec @ self.to_write[...]) + self.write[...]
        mix = scale[2] * (vec @ self.to_mix[...]) + self.mix[...]
        return jax.nn.sigmoid(read), self.stochastic(mix), 2.0 * jax.nn.sigmoid(write)

    def stochastic(self, mix: jax.Array) -> jax.Array:
        """Returns r (..., from, to): exp of the numbers, columns and rows normed in turn."""
        to_from = sinkhorn(mix.reshape(*mix.shape[:-1], self.n, self.n))
        return jnp.swapaxes(to_from, -1, -2)


def sinkhorn(logits: jax.Array, iterations: int = 20) -> jax.Array:
    """Returns exp(logits) with columns, then rows, normed to sum 1, again and again (eq. 9)."""

    def norm_both(log_m: jax.Array, _: None) -> tuple[jax.Array, None]:
        log_m = log_m - jax.nn.logsumexp(log_m, -2, keepdims=True)
        return log_m - jax.nn.logsumexp(log_m, -1, keepdims=True), None

    return jnp.exp(jax.lax.scan(norm_both, logits, None, length=iterations)[0])


class ManifoldHyperConnections(HyperConnections):
    """Hyper-connections whose r is kept doubly stochastic (mHC)."""

    @staticmethod
    def maps(plan: Plan, which: int) -> nnx.Module:
        return ManifoldMaps(plan, which)


class LiteMaps(ManifoldMaps):
    """r = sum_p softmax(.)_p P_p over the n! permutations: doubly stochastic (2601.05732)."""

    def n_mix(self) -> int:
        return math.factorial(self.n)

    def first_mix(self) -> jax.Array:
        return self.OFF * (jnp.arange(self.n_mix()) > 0)

    def stochastic(self, mix: jax.Array) -> jax.Array:
        matrices = jnp.stack([jnp.eye(self.n)[jnp.array(p)] for p in permutations(range(self.n))])
        return jnp.einsum("...p,pij->...ij", jax.nn.softmax(mix), matrices)


class LiteHyperConnections(HyperConnections):
    """mHC-lite; at the end each stream is normed before they are summed, as its code does it."""

    ends = NormedAndSummed

    @staticmethod
    def maps(plan: Plan, which: int) -> nnx.Module:
        return LiteMaps(plan, which)


SEVERAL_STREAMS: dict[str, type[Connection]] = {
    "residual_dual": ResiDual,
    "siamesenorm": SiameseNorm,
    "hyper_static": HyperConnections,
    "hyper": DynamicHyperConnections,
    "frac": FracConnections,
    "muddformer": Muddformer,
    "attention_residuals": AttentionResiduals,
    "mhc": ManifoldHyperConnections,
    "mhc_lite": LiteHyperConnections,
}
