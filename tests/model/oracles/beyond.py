"""Connections across layers, other skips, and several streams."""

import itertools
import math

import numpy as np

from tests.model.oracles.base import (
    A,
    F,
    affine,
    attention,
    gelu,
    ln,
    oracle,
    rms,
    seen,
    sigmoid,
    silu,
    softmax,
    unit,
    weights,
)

# -- across layers


@oracle
def x0_lambda(m):
    x0 = x = rms(m.tokens + m.positions)
    for l, b in m.numbered():
        x = m.cross_layer.x0.stream_L[l - 1] * x + m.cross_layer.x0.x0_L[l - 1] * x0
        x = x + A(rms(x), b)
        x = x + F(rms(x), b)
    return m.head(rms(x))


@oracle
def unet_skips(m):
    x, pushed, half = m.tokens + m.positions, [], m.L // 2
    for l, b in m.numbered():
        if l > half:
            x = x + m.cross_layer.unet.weights[l - half - 1] * pushed.pop()
        x = x + A(ln(x, b.attn.pre), b)
        x = x + F(ln(x, b.mlp.pre), b)
        if l <= half:
            pushed.append(x)
    return m.head(ln(x, m.ln_f))


@oracle
def value_residual(m):
    x, first = m.tokens + m.positions, []

    def mixed(q, k, v):
        first.append(v)
        return q, k, (first[0] + v) / 2  # in block 1, both are its own

    for b in m.blocks:
        x = x + attention(ln(x, b.attn.pre), b.attn.sublayer, mixed)
        x = x + F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f))


@oracle
def svformer(m):
    x, first = m.tokens + m.positions, None
    for b in m.blocks:
        p, u = b.attn.sublayer, ln(x, b.attn.pre)
        qkv = affine(u, p.qkv)
        first = qkv[:, :, 2] if first is None else first
        o = np.einsum("bhts,bshk->bthk", weights(qkv[:, :, 0], qkv[:, :, 1]), first)
        x = x + np.tensordot(o, p.out.kernel, 2) + p.out.bias
        x = x + F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f))


# -- other skips


@oracle
def laurel_rw(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        for branch, n, c in (
            (A, b.attn.pre, b.connection.attn),
            (F, b.mlp.pre, b.connection.mlp),
        ):
            share = softmax(c.shares)
            x = share[0] * branch(ln(x, n), b) + share[1] * x
    return m.head(ln(x, m.ln_f))


@oracle
def laurel_lr(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        p, q = b.connection.attn, b.connection.mlp
        x = A(ln(x, b.attn.pre), b) + x @ p.down @ p.up + x
        x = F(ln(x, b.mlp.pre), b) + x @ q.down @ q.up + x
    return m.head(ln(x, m.ln_f))


@oracle
def ddl(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        for branch, p in ((A, b.connection.attn), (F, b.connection.mlp)):
            c = rms(x, p.pre)
            h = branch(c, b)
            k = h / np.sqrt((h**2).sum(-1, keepdims=True) + 1e-10)
            step = 2 * sigmoid(c @ p.step + p.bias)
            x = x + step * (c @ p.value - (k * x).sum(-1, keepdims=True)) * k
    return m.head(rms(x, m.ln_f))


@oracle
def orthogonal_residual(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        for branch, n in ((A, b.attn.pre), (F, b.mlp.pre)):
            f = branch(ln(x, n), b)
            dot = lambda u, v: (u * v).sum(-1, keepdims=True)
            x = x + f - dot(x, f) / (dot(x, x) + 1e-6) * x
    return m.head(ln(x, m.ln_f))


# -- several streams


@oracle
def residual_dual(m):
    x = y = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        for branch, n in ((A, b.connection.attn.post), (F, b.connection.mlp.post)):
            o = branch(x, b)
            x, y = ln(x + o, n), y + o
    return m.head(x + ln(y, m.ln_f))


@oracle
def siamesenorm(m):
    x = y = m.tokens + m.positions
    for l, b in m.numbered():
        c = b.connection
        for branch, pre, n_y, n_x in (
            (A, b.attn.pre, c.attn.norm_y, c.attn.post),
            (F, b.mlp.pre, c.mlp.norm_y, c.mlp.post),
        ):
            o = branch(ln(x + ln(y, n_y), pre), b)
            x, y = ln(x + o / math.sqrt(2 * l), n_x), y + o
    return m.head(x + ln(y, m.ln_f))


def hyper(m, maps, read=lambda m, h: ln(sum(h), m.ln_f)):
    """n streams as a list; `maps` returns a, r and b of each token."""
    n = m.blocks[0].connection.attn.read.shape[0]
    h = [m.tokens + m.positions] * n
    for b in m.blocks:
        for branch, pre, p in (
            (A, b.attn.pre, b.connection.attn),
            (F, b.mlp.pre, b.connection.mlp),
        ):
            a, r, w = maps(p, h)
            u = sum(a[..., i, None] * h[i] for i in range(n))
            y = branch(ln(u, pre), b)
            h = [
                sum(r[..., i, j, None] * h[i] for i in range(n)) + w[..., j, None] * y
                for j in range(n)
            ]
    return m.head(read(m, h))


@oracle
def hyper_connections_static(m):
    return hyper(m, lambda p, h: (p.read, p.mix, p.write))


def dynamic(p, h):
    """The token-dependent parts of the maps: (..., from, to) and (..., to)."""
    normed = [ln(x, p.norm) for x in h]
    mix = np.stack([p.mix_scale * np.tanh(x @ p.to_mix) for x in normed], -2)
    write = np.concatenate([p.write_scale * np.tanh(x @ p.to_write) for x in normed], -1)
    return mix, write


@oracle
def hyper_connections(m):
    def maps(p, h):
        mix, write = dynamic(p, h)
        return p.read + mix[..., 0], p.mix + mix[..., 1:], p.write + write

    return hyper(m, maps)


@oracle
def frac_connections(m):
    x, n = m.tokens + m.positions, m.blocks[0].connection.attn.read.shape[0]
    for b in m.blocks:
        for branch, pre, p in (
            (A, b.attn.pre, b.connection.attn),
            (F, b.mlp.pre, b.connection.mlp),
        ):
            h = np.split(x, n, -1)
            mix, write = dynamic(p, h)
            a, r, w = p.read + mix[..., :n], p.mix + mix[..., n:], p.write + write
            made = lambda c, j, h=h: sum(c[..., i, j, None] * h[i] for i in range(n))
            u = np.concatenate([made(a, j) for j in range(n)], -1)
            y = np.split(branch(ln(u, pre), b), n, -1)
            x = np.concatenate([made(r, j) + w[..., j, None] * y[j] for j in range(n)], -1)
    return m.head(ln(x, m.ln_f))


def manifold(p, h):
    v = rms(np.concatenate(h, -1), p.norm, eps=1e-20)
    read = sigmoid(p.scales[0] * (v @ p.to_read) + p.read)
    write = 2 * sigmoid(p.scales[1] * (v @ p.to_write) + p.write)
    return read, p.scales[2] * (v @ p.to_mix) + p.mix, write


@oracle
def mhc(m):
    def maps(p, h):
        read, mix, write = manifold(p, h)
        r = np.exp(mix.reshape(*mix.shape[:-1], len(h), len(h)))  # row: to, column: from
        for _ in range(20):
            r = r / r.sum(-2, keepdims=True)
            r = r / r.sum(-1, keepdims=True)
        return read, np.swapaxes(r, -1, -2), write

    return hyper(m, maps)


@oracle
def mhc_lite(m):
    def maps(p, h):
        read, mix, write = manifold(p, h)
        share, n = softmax(mix), len(h)
        r = np.zeros((*mix.shape[:-1], n, n))
        for index, order in enumerate(itertools.permutations(range(n))):
            for one, other in enumerate(order):
                r[..., one, other] += share[..., index]
        return read, r, write

    return hyper(m, maps, lambda m, h: sum(ln(x, m.ln_f) for x in h))


# -- over the whole depth


@oracle
def denseformer(m):
    x = m.tokens + m.positions
    made, at = [x], 0
    for l, b in m.numbered():
        x = x + A(ln(x, b.attn.pre), b)
        x = x + F(ln(x, b.mlp.pre), b)
        made.append(x)
        row = m.cross_layer.dense.weights[at : at + l + 1]
        x = sum(a * one for a, one in zip(row, made, strict=True))
        at += l + 1
    return m.head(ln(x, m.ln_f))


def attended(p, sources):
    share = softmax(np.stack([rms(v, p.norm) @ p.query for v in sources], -1))
    return sum(share[..., i, None] * v for i, v in enumerate(sources))


@oracle
def attention_residuals(m):
    v = [m.tokens + m.positions]
    for b in m.blocks:
        v.append(A(rms(attended(b.connection.attn.attention, v), b.attn.pre), b))
        v.append(F(rms(attended(b.connection.mlp.attention, v), b.mlp.pre), b))
    return m.head(rms(attended(m.adapter.attention, v), m.ln_f))


@oracle
def attention_residuals_block(m):
    done, partial, s = [m.tokens + m.positions], 0, 0
    size = math.ceil(2 * m.L / 8)
    for b in m.blocks:
        for branch, pre, p in (
            (A, b.attn.pre, b.connection.attn),
            (F, b.mlp.pre, b.connection.mlp),
        ):
            sources = done if s % size == 0 else [*done, partial]
            partial = partial + branch(rms(attended(p.attention, sources), pre), b)
            s += 1
            if s % size == 0 or s == 2 * m.L:
                done, partial = [*done, partial], 0
    return m.head(rms(attended(m.adapter.attention, done), m.ln_f))


@oracle
def laurel_pa(m):
    x = [m.tokens + m.positions]
    for b in m.blocks:
        for branch, n, c in (
            (A, b.attn.pre, b.connection.attn),
            (F, b.mlp.pre, b.connection.mlp),
        ):
            new = branch(ln(x[-1], n), b) + x[-1]
            for g, earlier in zip(c.weights, reversed(x), strict=False):
                new = new + g * earlier
            x.append(new)
    return m.head(ln(x[-1], m.ln_f))


@oracle
def fixup(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        p = b.mlp.sublayer
        x = x + b.attn.branch_scale.value * A(x - b.attn.shift.bias, b)
        h = gelu(affine(x - b.mlp.shift.bias, p.up) - p.before.bias)
        x = x + b.mlp.branch_scale.value * affine(h - p.behind.bias, p.down)
    return m.head(x - m.shift.bias)


@oracle
def ngpt(m):
    def turned(q):  # rotary: channel i with i + K/2
        half = q.shape[-1] // 2
        angle = m.places[..., None] / 10000 ** (np.arange(half) / half)
        cos, sin = np.cos(angle)[..., None, :], np.sin(angle)[..., None, :]
        a, b = q[..., :half], q[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x, root = m.tokens, math.sqrt(m.D)
    for b in m.blocks:
        p, q, c = b.attn.sublayer, b.mlp.sublayer, b.connection
        s = p.transform.unit_qk.factor * root
        shape = lambda q, k, v, s=s: (unit(turned(q)) * s, unit(turned(k)) * s, v)
        y = attention(unit(x), p, shape, scale=math.sqrt(p.qkv.kernel.shape[-1]))
        x = unit(unit(x) + abs(c.attn.rate) * 0.05 * root * (unit(y) - unit(x)))
        u, v = affine(x, q.up) * q.up_scale * root, affine(x, q.gate) * q.gate_scale * root
        y = affine(u * silu(v), q.down)
        x = unit(x + abs(c.mlp.rate) * 0.05 * root * (unit(y) - x))
    return m.head(x) * m.logit_scale * root


@oracle
def admin(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        c = b.connection
        x = ln(c.attn.skip_scale.value * x + A(x, b), c.attn.post)
        x = ln(c.mlp.skip_scale.value * x + F(x, b), c.mlp.post)
    return m.head(x)


def admin_profile(m):
    """The factors that Admin measures, one per sublayer, regardless of the model's factors."""
    x, w, found = m.tokens * math.sqrt(m.D) + m.positions, 1.0, []
    for b in m.blocks:
        for branch, n in ((A, b.connection.attn.post), (F, b.connection.mlp.post)):
            found.append(w)
            y = branch(x, b)
            x, w = ln(w * x + y, n), math.sqrt((w * x).var() + y.var())
    return found


@oracle
def simplified_skipless(m):
    x = m.tokens + m.positions
    uniform = seen(m.n_time) / seen(m.n_time).sum(-1, keepdims=True)
    for b in m.blocks:
        p, c = b.attn.sublayer, b.connection
        n = rms(x, b.attn.pre)
        qk = affine(n, p.qkv)
        own = weights(qk[:, :, 0], qk[:, :, 1])
        f = p.weights.factors
        mixed = f[0] * np.eye(m.n_time) + f[1] * own - f[2] * uniform
        heads = n.reshape(*qk[:, :, 0].shape)
        y = np.einsum("bhts,bshk->bthk", mixed, heads).reshape(n.shape)
        x = b.attn.branch_scale.value * y
        x = c.mlp.skip_scale.value * x + b.mlp.branch_scale.value * F(rms(x, b.mlp.pre), b)
    return m.head(rms(x, m.ln_f))


@oracle
def muddformer(m):
    erf = np.vectorize(math.erf)
    q = k = v = r = m.tokens + m.positions
    given = [r]
    for b in m.blocks:
        p, c = b.attn.sublayer, b.connection
        part = lambda x, i, p=p: np.tensordot(x, p.qkv.kernel[:, i], 1) + p.qkv.bias[i]
        inputs = part(ln(q, c.q_pre), 0), part(ln(k, c.k_pre), 1), part(ln(v, c.v_pre), 2)
        o = np.einsum("bhts,bshk->bthk", weights(*inputs[:2]), inputs[2])
        h = np.tensordot(o, p.out.kernel, 2) + p.out.bias + r
        given.append(F(ln(h, c.mlp_pre), b) + h)
        hidden = rms(given[-1], eps=1e-6) @ c.inside
        w = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2))) @ c.outside + c.start
        n = len(given)
        mix = lambda i, w=w, n=n: sum(w[..., i * n + j, None] * given[j] for j in range(n))
        made = [mix(i) for i in range(w.shape[-1] // n)]
        q, k, v, r = made if len(made) == 4 else made * 4
    return m.head(ln(r, m.ln_f))
