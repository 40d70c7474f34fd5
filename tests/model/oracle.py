"""Every placement once more: plain numpy, float64, from the equation alone.

Each function below is a whole model. It is given weights by name and numbers, and knows nothing
of the model's code: no scan, no stacking, no shared helper for where a norm stands.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np

ORACLES = {}


def oracle(f):
    ORACLES[f.__name__] = f
    return f


def namespace(tree):
    """Returns nested dicts of arrays as attributes, float64."""
    if isinstance(tree, dict):
        return SimpleNamespace(**{name: namespace(value) for name, value in tree.items()})
    return np.asarray(tree, np.float64)


class Model:
    """Weights and sizes of a tiny model, and what every variant does alike.

    Args:
      outside: parameters that are in no block. blocks: those of each block, in order.
      t: updates done.
    """

    def __init__(self, outside, blocks, tokens, vocab_size, t):
        self.__dict__.update(namespace(outside).__dict__)
        self.blocks = [namespace(block) for block in blocks]
        self.ids, self.vocab_size, self.t = np.asarray(tokens), vocab_size, t
        self.n_batch, self.n_time = self.ids.shape
        self.L, self.D = len(blocks), self.wte.shape[1]
        self.tokens = self.wte[self.ids]

    @property
    def positions(self):
        return self.wpe[: self.n_time]

    def numbered(self):
        """Blocks with their number, from 1."""
        return enumerate(self.blocks, 1)

    def head(self, x, table=None):
        table = self.wte if table is None else table
        return (x @ table.T)[..., : self.vocab_size]


def ln(x, n, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * n.gain + n.bias


def rms(x, n=None, eps=1e-5):
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return y if n is None else y * n.gain


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def affine(x, p):
    return np.tensordot(x, p.kernel, 1) + p.bias


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def weights(q, k, scale=None):
    """Causal attention weights, (B, H, T, T), of q and k (B, T, H, K)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = np.einsum("bthk,bshk->bhts", q, k) * scale
    future = np.triu(np.ones(scores.shape[-2:], bool), 1)
    return softmax(np.where(future, -np.inf, scores))


def attention(x, p, shape=lambda q, k, v: (q, k, v), scale=None, between=lambda o: o):
    """W_O of the heads; `shape` changes q, k, v, and `between` the heads' outputs."""
    qkv = affine(x, p.qkv)
    q, k, v = shape(*(qkv[:, :, i] for i in range(3)))
    o = between(np.einsum("bhts,bshk->bthk", weights(q, k, scale), v))
    return np.tensordot(o, p.out.kernel, 2) + p.out.bias


def mlp(x, p, between=lambda h: h, f=gelu):
    return affine(between(f(affine(x, p.up))), p.down)


def A(x, b):
    return attention(x, b.attn.sublayer)


def F(x, b):
    return mlp(x, b.mlp.sublayer)


# -- where norms stand


@oracle
def pre_ln(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = x + A(ln(x, b.attn.pre), b)
        x = x + F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f))


@oracle
def post_ln(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        x = ln(x + A(x, b), b.connection.attn.post)
        x = ln(x + F(x, b), b.connection.mlp.post)
    return m.head(x)


def sandwiched(m, x, norm):
    for b in m.blocks:
        x = x + norm(A(norm(x, b.attn.pre), b), b.attn.out)
        x = x + norm(F(norm(x, b.mlp.pre), b), b.mlp.out)
    return m.head(norm(x, m.ln_f))


@oracle
def sandwich_ln(m):
    return sandwiched(m, m.tokens + m.positions, ln)


@oracle
def peri_ln(m):
    return sandwiched(m, rms(m.tokens + m.positions, m.embedding_norm), rms)


@oracle
def gemma2(m):
    def norm(x, n):
        return rms(x, eps=1e-6) * (1 + n.gain)

    return sandwiched(m, m.tokens * math.sqrt(m.D) + m.positions, norm)


@oracle
def olmo2(m):
    x = m.tokens + m.positions
    norm = lambda x, n: rms(x, n, eps=1e-6)
    for b in m.blocks:
        p = b.attn.sublayer

        def full(q, n):
            return norm(q.reshape(*q.shape[:2], -1), n).reshape(q.shape)

        def shape(q, k, v, p=p, full=full):
            return full(q, p.shaped.q_norm), full(k, p.shaped.k_norm), v

        x = x + norm(attention(x, p, shape), b.attn.out)
        x = x + norm(F(x, b), b.mlp.out)
    return m.head(norm(x, m.ln_f))


@oracle
def swin_v2(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        p = b.attn.sublayer
        s = np.exp(np.minimum(p.shaped.cosine.logit_scale, math.log(100)))[:, None]
        y = attention(x, p, lambda q, k, v, s=s: (unit(q) * s, unit(k), v), scale=1.0)
        x = x + ln(y, b.attn.out)
        x = x + ln(F(x, b), b.mlp.out)
    return m.head(ln(x, m.ln_f))


def over_all_heads(norm):
    return lambda o: norm(o.reshape(*o.shape[:2], -1)).reshape(o.shape)


@oracle
def sub_ln(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        p, q = b.attn.sublayer, b.mlp.sublayer
        between = over_all_heads(lambda o, p=p: ln(o, p.mixed.inner))
        x = x + attention(ln(x, b.attn.pre), p, between=between)
        x = x + mlp(ln(x, b.mlp.pre), q, between=lambda h, q=q: ln(h, q.inner))
    return m.head(ln(x, m.ln_f))


@oracle
def normformer(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        p, q = b.attn.sublayer, b.mlp.sublayer
        scaled = lambda o, p=p: o * p.mixed.head_scale[:, None]
        x = x + ln(attention(ln(x, b.attn.pre), p, between=scaled), b.attn.out)
        w = b.connection.skip_scale.mlp.value
        x = w * x + mlp(ln(x, b.mlp.pre), q, between=lambda h, q=q: ln(h, q.inner))
    return m.head(ln(x, m.ln_f))


@oracle
def stream_norm(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = ln(x, b.connection.attn.stream)
        x = x + A(x, b)
        x = ln(x, b.connection.mlp.stream)
        x = x + F(x, b)
    return m.head(ln(x, m.ln_f))


@oracle
def pre_post_ln(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = ln(x + A(ln(x, b.attn.pre), b), b.connection.attn.post)
        x = ln(x + F(ln(x, b.mlp.pre), b), b.connection.mlp.post)
    return m.head(x)


@oracle
def b2t(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        h = ln(x + A(x, b), b.connection.attn_post)
        x = ln(x + h + F(h, b), b.connection.mlp_post)
    return m.head(x)


@oracle
def mix_ln(m):
    x = m.tokens + m.positions
    for l, b in m.numbered():
        if l <= m.L // 4:
            x = ln(x + A(x, b), b.connection.attn.post)
            x = ln(x + F(x, b), b.connection.mlp.post)
        else:
            x = x + A(ln(x, b.attn.pre), b)
            x = x + F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f))


def normed_qkv(x, b):
    n = b.attn.sublayer.shaped
    shape = lambda q, k, v: (rms(q, n.q_norm), rms(k, n.k_norm), rms(v, n.v_norm))
    return attention(x, b.attn.sublayer, shape)


@oracle
def hybridnorm(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        y = x + normed_qkv(x, b)
        z = rms(y, b.connection.mlp.stream)
        x = z + F(z, b)
    return m.head(rms(x, m.ln_f))


@oracle
def hybridnorm_star(m):
    x = m.tokens + m.positions
    for l, b in m.numbered():
        if l == 1:
            x = x + normed_qkv(rms(x, b.attn.pre), b)
            x = x + F(rms(x, b.mlp.pre), b)
        else:
            x = x + normed_qkv(x, b)
            z = rms(x, b.connection.mlp.stream)
            x = z + F(z, b)
    return m.head(rms(x, m.ln_f))


@oracle
def parallel_gptj(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        n = ln(x, b.connection.pre)
        x = x + A(n, b) + F(n, b)
    return m.head(ln(x, m.ln_f))


@oracle
def parallel_neox(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = x + A(ln(x, b.attn.pre), b) + F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f))


@oracle
def summed_residual(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = x + A(x, b) + F(x, b)
    return m.head(ln(x, m.ln_f))


@oracle
def normed_skip(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = ln(x, b.connection.both.skip) + A(x, b) + F(x, b)
    return m.head(ln(x, m.ln_f))


@oracle
def normed_stream_mlp(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = x + A(ln(x, b.attn.pre), b)
        x = ln(x, b.connection.mlp.stream)
        x = x + F(x, b)
    return m.head(ln(x, m.ln_f))


# -- kinds of norm


def pre_normed(m, x, norm):
    for b in m.blocks:
        x = x + A(norm(x, b.attn.pre), b)
        x = x + F(norm(x, b.mlp.pre), b)
    return norm(x, m.ln_f)


@oracle
def dyt(m):
    x = (m.tokens + m.positions) * m.embedding_multiplier.value
    return m.head(pre_normed(m, x, lambda x, n: n.gain * np.tanh(n.alpha * x)))


@oracle
def derf(m):
    erf = np.vectorize(math.erf)
    x = (m.tokens + m.positions) * m.embedding_multiplier.value
    return m.head(pre_normed(m, x, lambda x, n: n.gain * erf(n.alpha * x + n.shift) + n.bias))


@oracle
def scalenorm_fixnorm(m):
    table = unit(m.wte)
    x = table[m.ids] * math.sqrt(m.D) + m.positions
    return m.head(pre_normed(m, x, lambda x, n: n.gain * unit(x)), table)


# -- shared blocks


@oracle
def albert(m):
    x = ln(m.tokens + m.positions, m.embedding_norm)
    for _ in range(m.L):
        b = m.blocks[0]
        x = ln(x + A(x, b), b.connection.attn.post)
        x = ln(x + F(x, b), b.connection.mlp.post)
    return m.head(x)


@oracle
def universal(m):
    def signal(index):  # sin in even channels, cos in odd ones
        angle = index / 10000 ** (np.arange(0, m.D, 2) / m.D)
        return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(m.D)

    places = np.stack([signal(p) for p in range(m.n_time)])
    x = m.tokens * math.sqrt(m.D)
    for l in range(1, m.L + 1):
        b = m.blocks[0]
        x = x + places + signal(l)
        x = ln(x + A(x, b), b.connection.attn.post)
        x = ln(x + F(x, b), b.connection.mlp.post)
    return m.head(x)


# -- scales


@oracle
def deepnorm(m):
    x, a = m.tokens * math.sqrt(m.D) + m.positions, (2 * m.L) ** 0.25
    for b in m.blocks:
        x = ln(a * x + A(x, b), b.connection.attn.post)
        x = ln(a * x + F(x, b), b.connection.mlp.post)
    return m.head(x)


@oracle
def rezero(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        a = b.branch_scale.both.value
        x = x + a * A(x, b)
        x = x + a * F(x, b)
    return m.head(x)


@oracle
def skipinit(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        x = x + b.branch_scale.attn.value * A(x, b)
        x = x + b.branch_scale.mlp.value * F(x, b)
    return m.head(x)


@oracle
def layerscale(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = x + b.branch_scale.attn.value * A(ln(x, b.attn.pre), b)
        x = x + b.branch_scale.mlp.value * F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f))


@oracle
def keel(m):
    x, a = m.tokens + m.positions, 2 * m.L
    for l, b in m.numbered():
        branch = A(rms(x, b.attn.pre), b)
        x = x + branch if l == 1 else rms(a * x + branch, b.connection.attn.post)
        skip = x if l == 1 else a * x
        x = rms(skip + F(rms(x, b.mlp.pre), b), b.connection.mlp.post)
    return m.head(x)


@oracle
def lns(m):
    x = m.tokens + m.positions
    for l, b in m.numbered():
        x = x + A(ln(x, b.attn.pre) / math.sqrt(l), b)
        x = x + F(ln(x, b.mlp.pre) / math.sqrt(l), b)
    return m.head(ln(x, m.ln_f))


@oracle
def gpas(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        keep = 1 - silu(b.connection.gate)
        x = (x + A(ln(x, b.attn.pre), b)) * keep
        x = (x + F(ln(x, b.mlp.pre), b)) * keep
    return m.head(ln(x, m.ln_f))


@oracle
def prores(m):
    x = m.tokens + m.positions
    for l, b in m.numbered():
        a = min(m.t / (1000 * l), 1)
        x = x + a * A(ln(x, b.attn.pre), b)
        x = x + a * F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f))


@oracle
def t_fixup(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        x = x + A(x, b)
        x = x + F(x, b)
    return m.head(x)


@oracle
def completep(m):
    x, branch = m.tokens + m.positions, 2 / m.L
    for b in m.blocks:
        head_width = b.attn.sublayer.qkv.kernel.shape[-1]
        x = x + branch * attention(ln(x, b.attn.pre), b.attn.sublayer, scale=1 / head_width)
        x = x + branch * F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f)) / (m.D / 256)


# The same function as another one; what differs is where they start.
ORACLES["ds_init"] = post_ln
ORACLES["scaled_init"] = pre_ln


# -- gates


@oracle
def gtrxl(m):
    def gate(x, y, p):
        w_r, w_z, w_h = (p.from_branch.kernel[:, i] for i in range(3))
        u_r, u_z = (p.from_stream.kernel[:, i] for i in range(2))
        u_h = p.from_reset.kernel[:, 0]
        r = sigmoid(y @ w_r + x @ u_r)
        z = sigmoid(y @ w_z + x @ u_z - p.bias)
        return (1 - z) * x + z * np.tanh(y @ w_h + (r * x) @ u_h)

    relu = lambda y: np.maximum(y, 0)
    x = m.tokens + m.positions
    for b in m.blocks:
        x = gate(x, relu(A(ln(x, b.attn.pre), b)), b.connection.attn)
        x = gate(x, relu(F(ln(x, b.mlp.pre), b)), b.connection.mlp)
    return m.head(ln(x, m.ln_f))


@oracle
def highway(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        for branch, p in ((A, b.connection.attn), (F, b.connection.mlp)):
            t = sigmoid(x @ p.weight.kernel[:, 0] - p.bias)
            x = (1 - t) * x + t * branch(x, b)
    return m.head(ln(x, m.ln_f))


# -- across layers


@oracle
def x0_lambda(m):
    x0 = x = rms(m.tokens + m.positions)
    for l, b in m.numbered():
        x = m.across.x0.stream_L[l - 1] * x + m.across.x0.x0_L[l - 1] * x0
        x = x + A(rms(x), b)
        x = x + F(rms(x), b)
    return m.head(rms(x))


@oracle
def unet_skips(m):
    x, pushed, half = m.tokens + m.positions, [], m.L // 2
    for l, b in m.numbered():
        if l > half:
            x = x + m.across.unet.weights[l - half - 1] * pushed.pop()
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
        return q, k, (first[0] + v) / 2  # in block 1 that is its own

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
        for i, (branch, n) in enumerate(((A, b.attn.pre), (F, b.mlp.pre))):
            share = softmax(b.connection.shares[i])
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
        for branch, n in ((A, b.connection.attn_post), (F, b.connection.mlp_post)):
            o = branch(x, b)
            x, y = ln(x + o, n), y + o
    return m.head(x + ln(y, m.ln_f))


@oracle
def siamesenorm(m):
    x = y = m.tokens + m.positions
    for l, b in m.numbered():
        c = b.connection
        for branch, pre, n_y, n_x in (
            (A, b.attn.pre, c.attn_y, c.attn_post),
            (F, b.mlp.pre, c.mlp_y, c.mlp_post),
        ):
            o = branch(ln(x + ln(y, n_y), pre), b)
            x, y = ln(x + o / math.sqrt(2 * l), n_x), y + o
    return m.head(x + ln(y, m.ln_f))


def hyper(m, maps, read=lambda m, h: ln(sum(h), m.ln_f)):
    """n streams as a list; `maps` gives a, r and b of each token."""
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
    """The parts of the maps that depend on the token: (..., from, to) and (..., to)."""
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


# -- over all depth


@oracle
def denseformer(m):
    x = m.tokens + m.positions
    made, at = [x], 0
    for l, b in m.numbered():
        x = x + A(ln(x, b.attn.pre), b)
        x = x + F(ln(x, b.mlp.pre), b)
        made.append(x)
        row = m.across.dense.weights[at : at + l + 1]
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
        v.append(A(rms(attended(b.connection.attn, v), b.attn.pre), b))
        v.append(F(rms(attended(b.connection.mlp, v), b.mlp.pre), b))
    return m.head(rms(attended(m.ends.attention, v), m.ln_f))


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
            partial = partial + branch(rms(attended(p, sources), pre), b)
            s += 1
            if s % size == 0 or s == 2 * m.L:
                done, partial = [*done, partial], 0
    return m.head(rms(attended(m.ends.attention, done), m.ln_f))


@oracle
def laurel_pa(m):
    x = [m.tokens + m.positions]
    for b in m.blocks:
        for i, (branch, n) in enumerate(((A, b.attn.pre), (F, b.mlp.pre))):
            new = branch(ln(x[-1], n), b) + x[-1]
            for g, earlier in zip(b.connection.weights[i], reversed(x), strict=False):
                new = new + g * earlier
            x.append(new)
    return m.head(ln(x[-1], m.ln_f))


@oracle
def fixup(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        p, a = b.mlp.sublayer, b.branch_scale
        x = x + a.attn.value * A(x - b.attn.shift.bias, b)
        h = gelu(affine(x - b.mlp.shift.bias, p.up) - p.before.bias)
        x = x + a.mlp.value * affine(h - p.behind.bias, p.down)
    return m.head(x - m.shift.bias)


@oracle
def ngpt(m):
    def turned(q):  # rotary: channel i with i + K/2
        half = q.shape[-1] // 2
        angle = np.arange(m.n_time)[:, None] / 10000 ** (np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = q[..., :half], q[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x, root = m.tokens, math.sqrt(m.D)
    for b in m.blocks:
        p, q, c = b.attn.sublayer, b.mlp.sublayer, b.connection
        s = p.shaped.unit_qk.factor * root
        shape = lambda q, k, v, s=s: (unit(turned(q)) * s, unit(turned(k)) * s, v)
        y = attention(unit(x), p, shape, scale=math.sqrt(p.qkv.kernel.shape[-1]))
        x = unit(unit(x) + abs(c.attn_rate) * 0.05 * root * (unit(y) - unit(x)))
        u, v = affine(x, q.up) * q.up_scale * root, affine(x, q.gate) * q.gate_scale * root
        y = affine(u * silu(v), q.down)
        x = unit(x + abs(c.mlp_rate) * 0.05 * root * (unit(y) - x))
    return m.head(x) * m.logit_scale * root


@oracle
def admin(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        w, c = b.connection.skip_scale, b.connection
        x = ln(w.attn.value * x + A(x, b), c.attn.post)
        x = ln(w.mlp.value * x + F(x, b), c.mlp.post)
    return m.head(x)


def admin_profile(m):
    """The factors that Admin measures, one a sublayer, whatever those of the model are."""
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
    seen = np.tril(np.ones((m.n_time, m.n_time)))
    uniform = seen / seen.sum(-1, keepdims=True)
    for b in m.blocks:
        p, c = b.attn.sublayer, b.connection.skip_scale
        n = rms(x, b.attn.pre)
        qk = affine(n, p.qkv)
        own = weights(qk[:, :, 0], qk[:, :, 1])
        f = p.map.factors
        mixed = f[0] * np.eye(m.n_time) + f[1] * own - f[2] * uniform
        heads = n.reshape(*qk[:, :, 0].shape)
        y = np.einsum("bhts,bshk->bthk", mixed, heads).reshape(n.shape)
        x = b.branch_scale.attn.value * y
        x = c.mlp.value * x + b.branch_scale.mlp.value * F(rms(x, b.mlp.pre), b)
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
