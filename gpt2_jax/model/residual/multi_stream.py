"""Connections with several residual streams; each class implements its paper's equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.model.builder import BlockBuilder
from gpt2_jax.model.residual.base import (
    Combine,
    NormFn,
    Sequential,
    StreamAdapter,
    SublayerFn,
    matrix,
    register,
)
from gpt2_jax.nn.context import Context, SublayerAux
from gpt2_jax.nn.norms import LayerNorm, NormSpec, RMSNorm
from gpt2_jax.nn.param import Role, param
from gpt2_jax.placements.spec import SublayerSpec

Maps = tuple[jax.Array, jax.Array, jax.Array]  # a, r and b
MapsFn = Callable[[jax.Array], Maps]


class TwoStreams(NamedTuple):
    """A stream that is normalized, and one that is not."""

    x_BTD: jax.Array
    y_BTD: jax.Array


class TwoStreamAdapter(StreamAdapter):
    """Both streams are initially the embedding; the head reads x + N(y)."""

    def expand(self, x_BTD: jax.Array) -> TwoStreams:
        return TwoStreams(x_BTD, x_BTD)

    def reduce(self, stream: TwoStreams) -> jax.Array:
        return stream.x_BTD + stream.y_BTD

    def head_input(self, stream: TwoStreams, norm: NormFn) -> jax.Array:
        return stream.x_BTD + norm(stream.y_BTD)


@register("residual_dual")
class ResiDual(Combine):
    """o = F(x); x <- N(x + o); y <- y + o (Xie et al. 2023, 2304.14802)."""

    adapter = TwoStreamAdapter

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        self.post = build.norm("post", spec)

    def read(self, stream: TwoStreams, context: Context) -> jax.Array:
        return stream.x_BTD

    def __call__(
        self, stream: TwoStreams, u: jax.Array, o: jax.Array, context: Context
    ) -> TwoStreams:
        assert self.post is not None
        return TwoStreams(self.post(stream.x_BTD + o), stream.y_BTD + o)


@register("siamesenorm")
class SiameseNorm(ResiDual):
    """o = F(x + N_y(y)); x <- N_x(x + o/sqrt(n l)); y <- y + o, l the block's number.

    n is the number of sublayers of a block, 2 in the paper. 2602.08064, algorithm 1 with
    normalized input (the norm site `pre`) and depth scaling.
    """

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        super().__init__(build, spec)
        self.n = len(build.sublayers)
        self.norm_y = build.norm("post", spec)

    def read(self, stream: TwoStreams, context: Context) -> jax.Array:
        assert self.norm_y is not None
        return stream.x_BTD + self.norm_y(stream.y_BTD)

    def __call__(
        self, stream: TwoStreams, u: jax.Array, o: jax.Array, context: Context
    ) -> TwoStreams:
        assert self.post is not None
        x, y = stream
        c = jnp.sqrt(float(self.n) * jnp.asarray(context.layer + 1, jnp.float32))
        return TwoStreams(self.post(x + (o / c).astype(x.dtype)), y + o)


class SummedStreams(StreamAdapter):
    """n streams, initially copies of the embedding; the head reads N(sum_i h_i)."""

    def expand(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.stack([x_BTD] * self.n_streams)

    def reduce(self, stream: jax.Array) -> jax.Array:
        return stream.astype(jnp.float32).sum(0).astype(stream.dtype)


class NormalizedStreams(SummedStreams):
    """n streams, initially copies of the embedding; the head reads sum_i N(h_i)."""

    def head_input(self, stream: jax.Array, norm: NormFn) -> jax.Array:
        return norm(stream).astype(jnp.float32).sum(0).astype(stream.dtype)


class StaticMaps(nnx.Module):
    """Learned a, r and b, initially a = e_k, r = I, b = 1, with k as in `one_hot_stream`."""

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        self.n = n = build.spec.connection.n_streams
        self.read = param(one_hot_stream(build, spec, n), Role.SCALAR, (None,))
        self.mix = param(jnp.eye(n), Role.SCALAR, (None, None))
        self.write = param(jnp.ones(n), Role.SCALAR, (None,))

    def __call__(self, h_nBTD: jax.Array) -> Maps:
        lead = h_nBTD.shape[1:-1]
        expand = lambda x: jnp.broadcast_to(x, (*lead, *x.shape))
        return expand(self.read[...]), expand(self.mix[...]), expand(self.write[...])


def one_hot_stream(build: BlockBuilder, spec: SublayerSpec, n: int) -> jax.Array:
    """Returns the unit vector e_k, with k the sublayer's number (from 0) modulo n."""
    before = len(build.sublayers) * build.init.layer
    return jax.nn.one_hot((before + spec.index) % n, n)


@register("hyper_static")
class HyperConnections(Sequential):
    """n streams h_1..h_n: u = sum_i a_i h_i, h_j <- sum_i r_ij h_i + b_j F(u) (2409.19606, eq. 2).

    Here the maps a, r and b are parameters. Initially, every stream is that of Pre-LN.
    Subclasses have another `part`, which returns a, r and b before a sublayer.
    """

    adapter = SummedStreams
    part: Callable[[BlockBuilder, SublayerSpec], nnx.Module] = StaticMaps

    def step(
        self, maps: MapsFn, h_nBTD: jax.Array, f: SublayerFn, context: Context
    ) -> tuple[jax.Array, SublayerAux]:
        a, r, b = maps(h_nBTD)
        u_BTD = jnp.einsum("...i,i...d->...d", a, h_nBTD).astype(h_nBTD.dtype)
        y_BTD, aux = f(u_BTD, context)
        mixed = jnp.einsum("...ij,i...d->j...d", r, h_nBTD)
        added = jnp.moveaxis(b, -1, 0)[..., None] * y_BTD
        return (mixed + added).astype(h_nBTD.dtype), aux


class DynamicMaps(StaticMaps):
    """`StaticMaps` plus s tanh(N(h_i) W) per stream i and token, initially W = 0 and s = 0.01.

    Zhu et al. 2024, eqs. 10 to 14; a and r share one s, b has another.
    """

    INITIAL_SCALE = 0.01

    def __init__(self, build: BlockBuilder, spec: SublayerSpec, width: int | None = None):
        super().__init__(build, spec)
        d = width or build.cfg.n_embd
        axis = "embed" if width is None else None
        norm = NormSpec("layernorm", build.spec.norm.eps, True, "float32", axis=axis)
        self.norm = LayerNorm(d, norm)
        self.to_mix = matrix(jnp.zeros((d, self.n_mixed())), (axis, None))
        self.to_write = matrix(jnp.zeros((d, 1)), (axis, None))
        self.mix_scale = param(jnp.float32(self.INITIAL_SCALE), Role.SCALAR)
        self.write_scale = param(jnp.float32(self.INITIAL_SCALE), Role.SCALAR)

    def n_mixed(self) -> int:
        """Returns the number of outputs of a and r together: the sublayer's input and n streams."""
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


@register("hyper")
class DynamicHyperConnections(HyperConnections):
    """Hyper-connections whose maps also depend on the token."""

    part = DynamicMaps


class FracMaps(DynamicMaps):
    """Maps between m parts of one stream; a is (m, m) too, initially the identity."""

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        m = build.spec.connection.n_streams
        super().__init__(build, spec, build.cfg.n_embd // m)
        self.read = param(jnp.eye(m), Role.SCALAR, (None, None))

    def n_mixed(self) -> int:
        return 2 * self.n


@register("frac")
class FracConnections(Sequential):
    """Dynamic hyper-connections among m parts of one stream (2503.14125, algorithm 2)."""

    part = FracMaps

    def step(
        self, maps: FracMaps, x: jax.Array, f: SublayerFn, context: Context
    ) -> tuple[jax.Array, SublayerAux]:
        split = lambda z: z.reshape(*z.shape[:-1], maps.n, -1)
        parts = jnp.moveaxis(split(x), -2, 0)
        a, r, b = maps(parts)
        u = jnp.einsum("...ij,i...d->...jd", a, parts).reshape(x.shape).astype(x.dtype)
        y, aux = f(u, context)
        mixed = jnp.einsum("...ij,i...d->...jd", r, parts)
        return (mixed + b[..., None] * split(y)).reshape(x.shape).astype(x.dtype), aux


class ManifoldMaps(nnx.Module):
    """a = σ(.), b = 2 σ(.), r doubly stochastic, functions of the concatenated, normalized streams.

    DeepSeek 2025 (mHC), 2512.24880, eqs. 7 to 9. Initial values that the paper does not state are
    those of FFTYYY/mhc-lite hyper_conn/mhc.py: a reads mostly from stream k, b writes mostly to it,
    and r is nearly I.
    """

    INITIAL_SCALE, OFF = 0.01, -8.0

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        self.n = n = build.spec.connection.n_streams
        width = n * build.cfg.n_embd
        self.norm = RMSNorm(width, NormSpec("rmsnorm", 1e-20, False, "float32", axis=None))
        self.to_read, self.to_write = (
            matrix(jnp.zeros((width, n)), (None, None)) for _ in range(2)
        )
        self.to_mix = matrix(jnp.zeros((width, self.n_mix())), (None, None))
        self.scales = param(jnp.full(3, self.INITIAL_SCALE), Role.SCALAR, (None,))
        stream_k = 2.0 * one_hot_stream(build, spec, n) - 1.0
        self.read = param(stream_k, Role.BIAS, (None,))
        self.write = param(stream_k, Role.BIAS, (None,))
        self.mix = param(self.initial_mix(), Role.BIAS, (None,))

    def n_mix(self) -> int:
        """Returns the number of logits of r."""
        return self.n * self.n

    def initial_mix(self) -> jax.Array:
        """Returns the initial bias of the logits of r."""
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
        """Returns r (..., from, to) from its logits."""
        to_from = sinkhorn(mix.reshape(*mix.shape[:-1], self.n, self.n))
        return jnp.swapaxes(to_from, -1, -2)


def sinkhorn(logits: jax.Array, iterations: int = 20) -> jax.Array:
    """Returns exp(logits) with columns and rows repeatedly normalized to sum 1 (mHC, eq. 9)."""

    def normalize(log_m: jax.Array, _: None) -> tuple[jax.Array, None]:
        log_m = log_m - jax.nn.logsumexp(log_m, -2, keepdims=True)
        return log_m - jax.nn.logsumexp(log_m, -1, keepdims=True), None

    return jnp.exp(jax.lax.scan(normalize, logits, None, length=iterations)[0])


@register("mhc")
class ManifoldHyperConnections(HyperConnections):
    """Hyper-connections with a doubly stochastic r (mHC)."""

    part = ManifoldMaps


class LiteMaps(ManifoldMaps):
    """r = sum_p softmax(.)_p P_p over the n! permutations: doubly stochastic (2601.05732)."""

    def n_mix(self) -> int:
        return math.factorial(self.n)

    def initial_mix(self) -> jax.Array:
        return self.OFF * (jnp.arange(self.n_mix()) > 0)

    def stochastic(self, mix: jax.Array) -> jax.Array:
        matrices = jnp.stack([jnp.eye(self.n)[jnp.array(p)] for p in permutations(range(self.n))])
        return jnp.einsum("...p,pij->...ij", jax.nn.softmax(mix), matrices)


@register("mhc_lite")
class LiteHyperConnections(HyperConnections):
    """mHC-lite; streams are normalized before they are summed, as in its code."""

    adapter = NormalizedStreams
    part = LiteMaps
