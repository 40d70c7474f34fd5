"""How a block's branches meet one stream: each class is its paper's equation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gpt2_jax.model.connection import Branch, Connection, Ends, matrix, square
from gpt2_jax.model.norm import UNIT_EPS, L2Norm, NormSpec
from gpt2_jax.model.parts import Context, Role
from gpt2_jax.model.plan import ATTN, MLP, Plan, Scale

PREVIOUS = 3  # streams that LAuReL-PA looks at, its own included


class Meeting(nnx.Module):
    """x' = N_post(a N_skip(x̂) + F(x̂)), x̂ = N_stream(x): one sublayer."""

    def __init__(self, plan: Plan, which: int):
        self.stream = plan.norm("stream", which)
        self.skip = plan.norm("skip", which)
        self.post = plan.norm("post", which)

    def __call__(self, x: jax.Array, a: Scale, branch: Branch, context: Context) -> jax.Array:
        x = self.stream(x)
        return self.post(a(self.skip(x), context) + branch(x))


class Plain(Connection):
    """Attention meets the stream, then the MLP does."""

    def __init__(self, plan: Plan):
        self.skip_scale = plan.scales("skip_scale")
        self.attn, self.mlp = Meeting(plan, ATTN), Meeting(plan, MLP)
        self.again = plan.placement.positions_at == "mlp"

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        x = self.attn(x, self.skip_scale.of(ATTN), attn, context)
        if self.again:
            assert context.place is not None
            x = x + context.place
        return self.mlp(x, self.skip_scale.of(MLP), mlp, context)


class Parallel(Connection):
    """x' = N_post(a N_skip(x̂) + A(x̂) + F(x̂)): both branches read the same stream."""

    def __init__(self, plan: Plan):
        self.skip_scale, self.both = plan.scale("skip_scale", ATTN), Meeting(plan, ATTN)

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        both = lambda u: attn(u) + mlp(u)
        return self.both(x, self.skip_scale, both, context)


class ParallelShared(Parallel):
    """x' = x + A(N(x)) + F(N(x)) with one N (GPT-J, PaLM)."""

    takes = frozenset({"pre"})

    def __init__(self, plan: Plan):
        super().__init__(plan)
        self.pre = plan.norm("pre", ATTN)

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        def both(u: jax.Array) -> jax.Array:
            n = self.pre(u)
            return attn(n) + mlp(n)

        return self.both(x, self.skip_scale, both, context)


class B2T(Connection):
    """h = N(x + A(x)), x' = N(x + h + F(h)) (Takase et al. 2022, eq. 6): a skip past the norms."""

    def __init__(self, plan: Plan):
        self.attn_post, self.mlp_post = plan.norm("post", ATTN), plan.norm("post", MLP)

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        h = self.attn_post(x + attn(x))
        return self.mlp_post(x + h + mlp(h))


class GPAS(Plain):
    """x <- x - silu(g) sg(x) after each sum, one g a block, initially 0 (Chen et al. 2025, eq. 4).

    sg stops gradients: what is scaled down going forward comes back whole. Where a norm follows
    the sum, the shortcut before it is scaled.
    """

    def __init__(self, plan: Plan):
        super().__init__(plan)
        self.gate = nnx.Param(jnp.float32(0.0), role=Role.SCALAR)
        self.on_shortcut = tuple(plan.has("post", which) for which in (ATTN, MLP))

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for which, meeting, branch in ((ATTN, self.attn, attn), (MLP, self.mlp, mlp)):
            a = self.skip_scale.of(which)
            if self.on_shortcut[which]:
                x = meeting.stream(x)
                x = meeting.post(a(meeting.skip(self.shrink(x)), context) + branch(x))
            else:
                x = self.shrink(meeting(x, a, branch, context))
        return x

    def shrink(self, x: jax.Array) -> jax.Array:
        """Returns x - silu(g) sg(x)."""
        return x - (jax.nn.silu(self.gate[...]) * lax.stop_gradient(x)).astype(x.dtype)


class GRU(Connection):
    """x' = g(x, relu(F(x))) for each sublayer, g a GRU's gate (Parisotto et al. 2019, GTrXL)."""

    def __init__(self, plan: Plan):
        self.attn, self.mlp = GRUGate(plan, "attn"), GRUGate(plan, "mlp")

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        x = self.attn(x, jax.nn.relu(attn(x)))
        return self.mlp(x, jax.nn.relu(mlp(x)))


class GRUGate(nnx.Module):
    """r = σ(W_r y + U_r x), z = σ(W_z y + U_z x - b), h = tanh(W_h y + U_h (r x)).

    g(x, y) = (1 - z) x + z h (Parisotto et al. 2019, section 3.2).
    """

    def __init__(self, plan: Plan, side: str):
        d, gate = plan.cfg.n_embd, f"{side}.gate"
        self.from_branch = square(plan, f"{gate}.w", d, 3)
        self.from_stream = square(plan, f"{gate}.u", d, 2)
        self.from_reset = square(plan, f"{gate}.h", d, 1)
        self.bias = nnx.Param(jnp.full(d, plan.placement.gate_bias), role=Role.BIAS)

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        wy_BT3D, ux_BT2D = self.from_branch(y), self.from_stream(x)
        r = jax.nn.sigmoid(wy_BT3D[..., 0, :] + ux_BT2D[..., 0, :])
        bias = self.bias[...].astype(x.dtype)
        z = jax.nn.sigmoid(wy_BT3D[..., 1, :] + ux_BT2D[..., 1, :] - bias)
        h = jnp.tanh(wy_BT3D[..., 2, :] + self.from_reset(r * x)[..., 0, :])
        return (1 - z) * x + z * h


class Highway(Connection):
    """x' = (1 - T) x + T F(x), T = σ(W x - b) (Srivastava et al. 2015, eq. 3): each sublayer."""

    def __init__(self, plan: Plan):
        self.attn, self.mlp = Transform(plan, "attn"), Transform(plan, "mlp")

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for transform, branch in ((self.attn, attn), (self.mlp, mlp)):
            t = transform(x)
            x = (1 - t) * x + t * branch(x)
        return x


class Transform(nnx.Module):
    """T = σ(W x - b)."""

    def __init__(self, plan: Plan, side: str):
        self.weight = square(plan, f"{side}.transform", plan.cfg.n_embd, 1)
        self.bias = nnx.Param(jnp.full(plan.cfg.n_embd, plan.placement.gate_bias), role=Role.BIAS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.weight(x)[..., 0, :] - self.bias[...].astype(x.dtype))


class LaurelRW(Connection):
    """x' = a F(x) + b x, (a, b) = softmax(w), w initially 0 (Menghani et al. 2024, LAuReL-RW)."""

    def __init__(self, plan: Plan):
        self.shares = nnx.Param(jnp.zeros((2, 2)), role=Role.SCALAR)

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for which, branch in ((ATTN, attn), (MLP, mlp)):
            a, b = jax.nn.softmax(self.shares[which])
            x = (a * branch(x) + b * x).astype(x.dtype)
        return x


class LaurelLR(Connection):
    """x' = F(x) + B A x + x, A of rank r, B_0 = 0 (Menghani et al. 2024, LAuReL-LR, eq. 3)."""

    def __init__(self, plan: Plan):
        self.attn, self.mlp = LowRank(plan), LowRank(plan)

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        x = attn(x) + self.attn(x) + x
        return mlp(x) + self.mlp(x) + x


class LowRank(nnx.Module):
    """B A x; A's columns are orthogonal: 1/sqrt(r D) where the row modulo r is the column."""

    def __init__(self, plan: Plan):
        d, r = plan.cfg.n_embd, plan.placement.rank
        orthogonal = (jnp.arange(d)[:, None] % r == jnp.arange(r)) / jnp.sqrt(float(r * d))
        self.down = matrix(orthogonal)
        self.up = matrix(jnp.zeros((r, d)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.down[...].astype(x.dtype) @ self.up[...].astype(x.dtype)


class Slerp(Connection):
    """x' = |x + a (|F(x)| - x)|, |.| of length 1, a = |a_0| 0.05 sqrt(d), a_0 initially 1/sqrt(d).

    Loshchilov et al. 2024 (nGPT), 2410.01131, eqs. 10 and 11.
    """

    FIRST = 0.05

    def __init__(self, plan: Plan):
        d = plan.cfg.n_embd
        self.to_first = self.FIRST * d**0.5
        self.attn_rate, self.mlp_rate = (
            nnx.Param(jnp.full(d, d**-0.5), role=Role.SCALAR) for _ in range(2)
        )
        self.unit = L2Norm(d, NormSpec("l2", UNIT_EPS, False, plan.cfg.dtype))

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for rate, branch in ((self.attn_rate, attn), (self.mlp_rate, mlp)):
            x = self.unit(x)
            a = (jnp.abs(rate[...]) * self.to_first).astype(x.dtype)
            x = self.unit(x + a * (self.unit(branch(x)) - x))
        return x


class Recent(Ends):
    """The stream, and the two before it: zeros before the first sublayer."""

    def expand(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.zeros((PREVIOUS, *x_BTD.shape), x_BTD.dtype).at[0].set(x_BTD)

    def whole(self, stream: jax.Array) -> jax.Array:
        return stream[0]


class LaurelPA(Connection):
    """x_{i+1} = F(x_i) + x_i + sum_j g_ij x_{i-j}, j = 0 .. 2, g initially 0 (LAuReL-PA, eq. 4)."""

    ends = Recent

    def __init__(self, plan: Plan):
        self.weights = nnx.Param(jnp.zeros((2, PREVIOUS)), role=Role.SCALAR)

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for which, branch in ((ATTN, attn), (MLP, mlp)):
            earlier = jnp.einsum("j,j...->...", self.weights[which], x)
            new = (branch(x[0]) + x[0] + earlier).astype(x.dtype)
            x = jnp.concatenate([new[None], x[:-1]])
        return x


class DeltaLearning(Connection):
    """x' = x + b (v - k^T x) k, k = F(c)/|F(c)|, b = 2 σ(w_b c), v = w_v c, c = N(x).

    Deep Delta Learning, 2601.00417, with one value a token (d_v = 1).
    """

    takes = frozenset({"pre"})

    def __init__(self, plan: Plan):
        self.attn, self.mlp = Delta(plan, ATTN, "attn"), Delta(plan, MLP, "mlp")

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        return self.mlp(self.attn(x, attn), mlp)


class Delta(nnx.Module):
    """One sublayer of `DeltaLearning`."""

    EPS = 1e-5

    def __init__(self, plan: Plan, which: int, side: str):
        self.pre = plan.norm("pre", which)
        std = plan.std("1", plan.cfg.n_embd, 1, which)
        draw = lambda name: plan.init.normal(f"{side}.{name}", (plan.cfg.n_embd, 1), std)
        self.step, self.value = matrix(draw("step")), matrix(draw("value"))
        self.bias = nnx.Param(jnp.float32(0.0), role=Role.BIAS)

    def __call__(self, x: jax.Array, branch: Branch) -> jax.Array:
        c = self.pre(x)
        x_32, c_32, h = (u.astype(jnp.float32) for u in (x, c, branch(c)))
        k = h * lax.rsqrt(jnp.square(h).sum(-1, keepdims=True) + self.EPS**2)
        b = 2.0 * jax.nn.sigmoid(c_32 @ self.step[...] + self.bias[...])
        v = c_32 @ self.value[...]
        return (x_32 + b * (v - (k * x_32).sum(-1, keepdims=True)) * k).astype(x.dtype)


class Orthogonal(Connection):
    """x' = x + f - (<x, f>/(|x|^2 + eps)) x, f = F(x), for each token (2505.11881)."""

    EPS = 1e-6

    def __init__(self, plan: Plan):
        del plan

    def __call__(self, x: jax.Array, attn: Branch, mlp: Branch, context: Context) -> jax.Array:
        for branch in (attn, mlp):
            x_32, f = x.astype(jnp.float32), branch(x).astype(jnp.float32)
            along = (x_32 * f).sum(-1, keepdims=True)
            share = along / (jnp.square(x_32).sum(-1, keepdims=True) + self.EPS)
            x = (x_32 + f - share * x_32).astype(x.dtype)
        return x


ONE_STREAM: dict[str, type[Connection]] = {
    "plain": Plain,
    "parallel": Parallel,
    "parallel_shared": ParallelShared,
    "b2t": B2T,
    "gpas": GPAS,
    "gru": GRU,
    "highway": Highway,
    "laurel_rw": LaurelRW,
    "laurel_lr": LaurelLR,
    "slerp": Slerp,
    "laurel_pa": LaurelPA,
    "ddl": DeltaLearning,
    "orthogonal": Orthogonal,
}
