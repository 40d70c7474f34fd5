"""Connections with a single residual stream; each class implements its paper's equation."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from gpt2_jax.model.builder import BlockBuilder
from gpt2_jax.model.residual.base import (
    ONE,
    Aux,
    Combine,
    Connection,
    Sequential,
    StreamAdapter,
    SublayerFn,
    matrix,
    register,
    square_matrices,
)
from gpt2_jax.nn.context import Context, SublayerAux
from gpt2_jax.nn.norms import UNIT_EPS, L2Norm, NormSpec
from gpt2_jax.nn.param import Role, param
from gpt2_jax.placements.spec import SublayerSpec

N_RECENT = 3  # streams that LAuReL-PA reads: the current one and the two before it


@register("plain")
class ResidualAdd(Combine):
    """x' = N_post(a N_skip(x̂) + F(x̂)), x̂ = N_stream(x), for each sublayer, as in GPT-2."""

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        self.stream, self.skip = build.norm("stream", spec), build.norm("skip", spec)
        self.skip_scale = build.scale("skip_scale", spec)
        self.post = build.norm("post", spec)
        self.adds_positions = build.spec.positions.at == "mlp" and spec.name == "mlp"

    def read(self, x: jax.Array, context: Context) -> jax.Array:
        if self.adds_positions:
            assert context.pos_emb is not None
            x = x + context.pos_emb
        return x if self.stream is None else self.stream(x)

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del x
        skip = u if self.skip is None else self.skip(u)
        x = self.skip_scale(skip, context) + y
        return x if self.post is None else self.post(x)


@register("parallel")
class Parallel(Connection):
    """x' = N_post(a N_skip(x̂) + A(x̂) + F(x̂)): all sublayers read the same stream."""

    def __init__(self, build: BlockBuilder):
        self.add = ResidualAdd(build, build.sublayers[0])

    def __call__(
        self, x: jax.Array, sublayers: Sequence[SublayerFn], context: Context
    ) -> tuple[jax.Array, Aux]:
        x = self.add.read(x, context)
        u = self.sublayer_input(x)
        ys, auxes = zip(*(f(u, context) for f in sublayers), strict=True)
        return self.add(x, x, sum(ys[1:], ys[0]), context), auxes

    def sublayer_input(self, x: jax.Array) -> jax.Array:
        """Returns the input of all sublayers."""
        return x


@register("parallel_shared")
class ParallelShared(Parallel):
    """x' = x + A(N(x)) + F(N(x)) with one N (GPT-J, PaLM)."""

    owned_sites = frozenset({"pre"})

    def __init__(self, build: BlockBuilder):
        super().__init__(build)
        self.pre = build.norm("pre", build.sublayers[0])

    def sublayer_input(self, x: jax.Array) -> jax.Array:
        return x if self.pre is None else self.pre(x)


@register("b2t")
class B2T(Connection):
    """h = N(x + A(x)), x' = N(x + h + F(h)) (Takase et al. 2022, eq. 6): a skip around norms."""

    def __init__(self, build: BlockBuilder):
        self.names = tuple(spec.name for spec in build.sublayers)
        for spec in build.sublayers:
            setattr(self, f"{spec.name}_post", build.norm("post", spec))

    def __call__(
        self, x: jax.Array, sublayers: Sequence[SublayerFn], context: Context
    ) -> tuple[jax.Array, Aux]:
        h, auxes = x, []
        for name, f in zip(self.names, sublayers, strict=True):
            y, aux = f(h, context)
            skip = x + h if name == self.names[-1] else h
            h = getattr(self, f"{name}_post")(skip + y)
            auxes.append(aux)
        return h, tuple(auxes)


@register("gpas")
class GPAS(Sequential):
    """x <- x - silu(g) sg(x) after each add, g per block, initially 0 (Chen et al. 2025, eq. 4).

    sg stops the gradient, so only the forward pass is scaled. If a norm follows the add, the skip
    before it is scaled instead.
    """

    part = ResidualAdd

    def __init__(self, build: BlockBuilder):
        super().__init__(build)
        self.gate = param(jnp.float32(0.0), Role.SCALAR)

    def step(
        self, add: ResidualAdd, x: jax.Array, f: SublayerFn, context: Context
    ) -> tuple[jax.Array, SublayerAux]:
        u = add.read(x, context)
        y, aux = f(u, context)
        if add.post is not None:
            return add(x, self.shrink(u), y, context), aux
        return self.shrink(add(x, u, y, context)), aux

    def shrink(self, x: jax.Array) -> jax.Array:
        """Returns x - silu(g) sg(x)."""
        return x - (jax.nn.silu(self.gate[...]) * lax.stop_gradient(x)).astype(x.dtype)


@register("gru")
class GRU(Combine):
    """x' = g(x, relu(F(x))), g a GRU's gate (Parisotto et al. 2019, GTrXL).

    g(x, y) = (1 - z) x + z h, with r = σ(W_r y + U_r x), z = σ(W_z y + U_z x - b) and
    h = tanh(W_h y + U_h (r x)) (section 3.2).
    """

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        gate = f"{spec.name}.gate"
        self.from_branch = square_matrices(build, f"{gate}.w", 3)
        self.from_stream = square_matrices(build, f"{gate}.u", 2)
        self.from_reset = square_matrices(build, f"{gate}.h", 1)
        bias = jnp.full(build.cfg.n_embd, build.spec.connection.gate_bias)
        self.bias = param(bias, Role.BIAS, ("embed",))

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del u, context
        wy_BT3D, ux_BT2D = self.from_branch(jax.nn.relu(y)), self.from_stream(x)
        r = jax.nn.sigmoid(wy_BT3D[..., 0, :] + ux_BT2D[..., 0, :])
        bias = self.bias[...].astype(x.dtype)
        z = jax.nn.sigmoid(wy_BT3D[..., 1, :] + ux_BT2D[..., 1, :] - bias)
        h = jnp.tanh(wy_BT3D[..., 2, :] + self.from_reset(r * x)[..., 0, :])
        return (1 - z) * x + z * h


@register("highway")
class Highway(Combine):
    """x' = (1 - T) x + T F(x), T = σ(W x - b) (Srivastava et al. 2015, eq. 3)."""

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        self.weight = square_matrices(build, f"{spec.name}.transform", 1)
        bias = jnp.full(build.cfg.n_embd, build.spec.connection.gate_bias)
        self.bias = param(bias, Role.BIAS, ("embed",))

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del u, context
        t = jax.nn.sigmoid(self.weight(x)[..., 0, :] - self.bias[...].astype(x.dtype))
        return (1 - t) * x + t * y


@register("laurel_rw")
class LaurelRW(Combine):
    """x' = a F(x) + b x, (a, b) = softmax(w), w initially 0 (Menghani et al. 2024, LAuReL-RW)."""

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        super().__init__(build, spec)
        self.shares = param(jnp.zeros(2), Role.SCALAR, (None,))

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del u, context
        a, b = jax.nn.softmax(self.shares[...])
        return (a * y + b * x).astype(x.dtype)


@register("laurel_lr")
class LaurelLR(Combine):
    """x' = F(x) + B A x + x, B A of rank r (Menghani et al. 2024, LAuReL-LR, eq. 3).

    Initially B = 0 and A has orthogonal columns: 1/sqrt(r D) where the row modulo r is the column.
    """

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        super().__init__(build, spec)
        d, r = build.cfg.n_embd, build.spec.connection.rank
        orthogonal = (jnp.arange(d)[:, None] % r == jnp.arange(r)) / jnp.sqrt(float(r * d))
        self.down = matrix(orthogonal, ("embed", None))
        self.up = matrix(jnp.zeros((r, d)), (None, "embed"))

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del u, context
        return y + x @ self.down[...].astype(x.dtype) @ self.up[...].astype(x.dtype) + x


@register("slerp")
class Slerp(Combine):
    """x' = |x + a (|F(x)| - x)|, |.| scaled to length 1, a = |a_0| 0.05 sqrt(d).

    a_0 is a parameter per channel, initially 1/sqrt(d), so a is initially 0.05.
    Loshchilov et al. 2024 (nGPT), 2410.01131, eqs. 10 and 11.
    """

    INITIAL = 0.05

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        super().__init__(build, spec)
        d = build.cfg.n_embd
        self.rate_factor = self.INITIAL * d**0.5
        self.rate = param(jnp.full(d, d**-0.5), Role.SCALAR, ("embed",))
        self.unit = L2Norm(d, NormSpec("l2", UNIT_EPS, False, build.cfg.dtype))

    def read(self, x: jax.Array, context: Context) -> jax.Array:
        return self.unit(x)

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del x, context
        a = (jnp.abs(self.rate[...]) * self.rate_factor).astype(u.dtype)
        return self.unit(u + a * (self.unit(y) - u))


class RecentStreams(StreamAdapter):
    """The stream and its two previous values, the latter initially zeros."""

    def expand(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.zeros((N_RECENT, *x_BTD.shape), x_BTD.dtype).at[0].set(x_BTD)

    def reduce(self, stream: jax.Array) -> jax.Array:
        return stream[0]


@register("laurel_pa")
class LaurelPA(Combine):
    """x_{i+1} = F(x_i) + x_i + sum_j g_ij x_{i-j}, j = 0 .. 2, g initially 0 (LAuReL-PA, eq. 4)."""

    adapter = RecentStreams

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        super().__init__(build, spec)
        self.weights = param(jnp.zeros(N_RECENT), Role.SCALAR, (None,))

    def read(self, x: jax.Array, context: Context) -> jax.Array:
        return x[0]

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del context
        earlier = jnp.einsum("j,j...->...", self.weights[...], x)
        new = (y + u + earlier).astype(x.dtype)
        return jnp.concatenate([new[None], x[:-1]])


@register("ddl")
class DeltaLearning(Combine):
    """x' = x + b (v - k^T x) k, k = F(c)/|F(c)|, b = 2 σ(w_b c), v = w_v c, c = N(x).

    Deep Delta Learning, 2601.00417, with one value per token (d_v = 1); `u` below is c.
    """

    owned_sites = frozenset({"pre"})

    EPS = 1e-5

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        d = build.cfg.n_embd
        self.pre = build.norm("pre", spec)
        std = build.std(ONE, d, 1, spec)
        initial = lambda name: build.init.normal(f"{spec.name}.{name}", (d, 1), std)
        self.step = matrix(initial("step"), ("embed", None))
        self.value = matrix(initial("value"), ("embed", None))
        self.bias = param(jnp.float32(0.0), Role.BIAS)

    def read(self, x: jax.Array, context: Context) -> jax.Array:
        return x if self.pre is None else self.pre(x)

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del context
        x_32, u_32, h = (z.astype(jnp.float32) for z in (x, u, y))
        k = h * lax.rsqrt(jnp.square(h).sum(-1, keepdims=True) + self.EPS**2)
        b = 2.0 * jax.nn.sigmoid(u_32 @ self.step[...] + self.bias[...])
        v = u_32 @ self.value[...]
        return (x_32 + b * (v - (k * x_32).sum(-1, keepdims=True)) * k).astype(x.dtype)


@register("orthogonal")
class Orthogonal(Combine):
    """x' = x + f - (<x, f>/(|x|^2 + eps)) x, f = F(x), per token (2505.11881)."""

    EPS = 1e-6

    def __call__(self, x: jax.Array, u: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        del u, context
        x_32, f = x.astype(jnp.float32), y.astype(jnp.float32)
        dot = (x_32 * f).sum(-1, keepdims=True)
        parallel = dot / (jnp.square(x_32).sum(-1, keepdims=True) + self.EPS)
        return (x_32 + f - parallel * x_32).astype(x.dtype)
