"""One placement of each family with any number of sublayers, in plain numpy and float64.

Each function returns the output of a tower before the head, from the embedding of its tokens. It
receives a `Tower`, whose `F` applies attention, cross-attention or the MLP.
"""

from __future__ import annotations

import math

import numpy as np

from tests.model.oracles.base import (
    affine,
    gelu,
    ln,
    mlp,
    namespace,
    rms,
    sigmoid,
    silu,
    softmax,
    unit,
)

TOWERS = {}
LOWEST = -1e30  # finite: padding may attend to nothing


def places(segments_BT):
    """Returns the position of each token in its segment."""
    return np.array([[(row[:i] == row[i]).sum() for i in range(len(row))] for row in segments_BT])


def tower(f):
    TOWERS[f.__name__] = f
    return f


class Tower:
    """Weights and tokens of a tower.

    Args:
      outside: parameters outside the blocks. blocks: parameters of each block, in order.
      memory: the output of the tower that cross-attention reads, or None.
      memory_segments: of that tower's tokens.
      table: of the other tower's tokens, if it is shared.

    Attributes:
      L, n, M: blocks, sublayers of each, and blocks of the tower that reads this one.
    """

    def __init__(
        self, outside, blocks, ids, segments, causal, table=None, memory=None, memory_segments=None
    ):
        self.__dict__.update(namespace(outside).__dict__)
        self.blocks = [namespace(block) for block in blocks]
        self.table = self.embedding.wte if table is None else table
        self.names = ("attn", "mlp") if memory is None else ("attn", "cross", "mlp")
        self.L, self.D, self.M = len(blocks), self.table.shape[1], 0
        self.n, self.memory, self.ids, self.segments = len(self.names), memory, ids, segments
        same = lambda other: segments[:, :, None] == other[:, None, :]
        n_time = ids.shape[1]
        later = np.triu(np.ones((n_time, n_time), bool), 1) if causal else False
        self.hidden = {"attn": ~same(segments) | later}
        if memory is not None:
            self.hidden["cross"] = ~same(memory_segments)
        self.places = places(segments)

    def embed(self, scale=1.0):
        return self.table[self.ids] * scale + self.embedding.wpe[self.places]

    def numbered(self):
        return enumerate(self.blocks, 1)

    def sublayers(self, b):
        """Name, parameters and the connection's parameters of each sublayer."""
        sides = getattr(b, "connection", None)  # the plain one may have no parameters
        return [(name, getattr(b, name), getattr(sides, name, None)) for name in self.names]

    def F(self, name, u, b, between=lambda o: o, values=None):
        p = getattr(b, name).sublayer
        if name == "mlp":
            return mlp(u, p, between)
        side = lambda x, i: np.tensordot(x, p.qkv.kernel[:, i], 1) + p.qkv.bias[i]
        other = self.memory if name == "cross" else u
        q, k, v = side(u, 0), side(other, 1), side(other, 2)
        if values is not None:
            v = values(v)
        scores = np.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
        weights = softmax(np.where(self.hidden[name][:, None], LOWEST, scores))
        o = between(np.einsum("bhts,bshk->bthk", weights, v))
        return np.tensordot(o, p.out.kernel, 2) + p.out.bias


@tower
def pre_ln(m, scale=1.0):
    x = m.embed(scale)
    for b in m.blocks:
        for name, p, _ in m.sublayers(b):
            x = x + m.F(name, ln(x, p.pre), b)
    return ln(x, m.ln_f)


@tower
def pre_ln_xavier(m):
    return pre_ln(m, math.sqrt(m.D))


@tower
def post_ln(m, skip=lambda m, c: 1.0):
    x = m.embed(math.sqrt(m.D))
    for b in m.blocks:
        for name, _, c in m.sublayers(b):
            x = ln(skip(m, c) * x + m.F(name, x, b), c.post)
    return x


@tower
def deepnorm(m):
    """Table of figure 2: of an encoder that is read, and of the decoder that reads."""
    if m.M:
        return post_ln(m, lambda m, c: 0.81 * (m.L**4 * m.M) ** (1 / 16))
    return post_ln(m, lambda m, c: (m.n * m.L) ** 0.25)


@tower
def admin(m):
    return post_ln(m, lambda m, c: c.skip_scale.value)


@tower
def sub_ln(m):
    """Cross-attention has no norm before its output matrix."""
    x = m.embed(math.sqrt(m.D))
    for b in m.blocks:
        for name, p, _ in m.sublayers(b):
            between = lambda o: o
            if name == "attn":
                n = p.sublayer.heads.inner
                between = lambda o, n=n: ln(o.reshape(*o.shape[:2], -1), n).reshape(o.shape)
            if name == "mlp":
                between = lambda h, n=p.sublayer.inner: ln(h, n)
            x = x + m.F(name, ln(x, p.pre), b, between)
    return ln(x, m.ln_f)


@tower
def b2t(m):
    """The skip around the norms begins before self-attention and ends after the MLP."""
    x = m.embed(math.sqrt(m.D))
    for b in m.blocks:
        h = x
        for name in m.names[:-1]:
            h = ln(h + m.F(name, h, b), getattr(b.connection, f"{name}_post"))
        x = ln(x + h + m.F("mlp", h, b), b.connection.mlp_post)
    return x


@tower
def keel(m):
    x = m.embed()
    for l, b in m.numbered():
        for name, p, c in m.sublayers(b):
            y = m.F(name, rms(x, p.pre), b)
            x = (x if l == 1 else m.n * m.L * x) + y
            x = x if l == 1 and name == "attn" else rms(x, c.post)
    return x


@tower
def rezero(m):
    x = m.embed(math.sqrt(m.D))
    for b in m.blocks:
        for name in m.names:
            x = x + b.attn.branch_scale.value * m.F(name, x, b)
    return x


@tower
def t_fixup(m):
    x = m.embed(math.sqrt(m.D))
    for b in m.blocks:
        for name in m.names:
            x = x + m.F(name, x, b)
    return x


@tower
def siamesenorm(m):
    x = y = m.embed()
    for l, b in m.numbered():
        for name, p, c in m.sublayers(b):
            o = m.F(name, ln(x + ln(y, c.norm_y), p.pre), b)
            x, y = ln(x + o / math.sqrt(m.n * l), c.post), y + o
    return x + ln(y, m.ln_f)


@tower
def residual_dual(m):
    x = y = m.embed(math.sqrt(m.D))
    for b in m.blocks:
        for name, _, c in m.sublayers(b):
            o = m.F(name, x, b)
            x, y = ln(x + o, c.post), y + o
    return x + ln(y, m.ln_f)


@tower
def parallel_gptj(m):
    x = m.embed()
    for b in m.blocks:
        u = ln(x, b.connection.pre)
        x = x + sum(m.F(name, u, b) for name in m.names)
    return ln(x, m.ln_f)


@tower
def gtrxl(m):
    x = m.embed()
    for b in m.blocks:
        for name, p, c in m.sublayers(b):
            y = np.maximum(m.F(name, ln(x, p.pre), b), 0)
            w, u = c.from_branch.kernel, c.from_stream.kernel
            r = sigmoid(y @ w[:, 0] + x @ u[:, 0])
            z = sigmoid(y @ w[:, 1] + x @ u[:, 1] - c.bias)
            x = (1 - z) * x + z * np.tanh(y @ w[:, 2] + (r * x) @ c.from_reset.kernel[:, 0])
    return ln(x, m.ln_f)


@tower
def gpas(m):
    x = m.embed()
    for b in m.blocks:
        for name, p, _ in m.sublayers(b):
            x = (x + m.F(name, ln(x, p.pre), b)) * (1 - silu(b.connection.gate))
    return ln(x, m.ln_f)


@tower
def x0_lambda(m):
    x0 = x = rms(m.embed())
    for l, b in m.numbered():
        skip = m.cross_layer.x0
        x = skip.stream_L[l - 1] * x + skip.x0_L[l - 1] * x0
        for name in m.names:
            x = x + m.F(name, rms(x), b)
    return rms(x)


@tower
def hyper_connections_static(m):
    h = [m.embed()] * 4
    for b in m.blocks:
        for name, p, c in m.sublayers(b):
            y = m.F(name, ln(sum(a * x for a, x in zip(c.read, h, strict=True)), p.pre), b)
            h = [sum(c.mix[i, j] * h[i] for i in range(4)) + c.write[j] * y for j in range(4)]
    return ln(sum(h), m.ln_f)


@tower
def attention_residuals(m):
    def mixed(sources, p):
        share = softmax(np.stack([rms(v, p.norm) @ p.query for v in sources], -1))
        return sum(share[..., i, None] * v for i, v in enumerate(sources))

    sources = [m.embed()]
    for b in m.blocks:
        for name, p, c in m.sublayers(b):
            sources.append(m.F(name, rms(mixed(sources, c.attention), p.pre), b))
    return rms(mixed(sources, m.adapter.attention), m.ln_f)


@tower
def value_residual(m):
    """Only self-attention takes part, in each tower on its own."""
    x, first = m.embed(), []

    def values(v):
        first.append(v)
        return (first[0] + v) / 2

    for b in m.blocks:
        for name, p, _ in m.sublayers(b):
            x = x + m.F(name, ln(x, p.pre), b, values=values if name == "attn" else None)
    return ln(x, m.ln_f)


@tower
def albert(m):
    x = ln(m.embed(), m.embedding.embedding_norm)
    for _ in range(m.L):
        for name, _, c in m.sublayers(m.blocks[0]):
            x = ln(x + m.F(name, x, m.blocks[0]), c.post)
    return x


@tower
def scalenorm_fixnorm(m):
    norm = lambda x, n: n.gain * unit(x)
    m.table = unit(m.table)
    x = m.embed(math.sqrt(m.D))
    for b in m.blocks:
        for name, p, _ in m.sublayers(b):
            x = x + m.F(name, norm(x, p.pre), b)
    return norm(x, m.ln_f)


@tower
def fixup(m):
    x = m.embed(math.sqrt(m.D))
    for b in m.blocks:
        for name, p, _ in m.sublayers(b):
            u = x - p.shift.bias
            if name == "mlp":
                q = p.sublayer
                y = affine(gelu(affine(u, q.up) - q.before.bias) - q.behind.bias, q.down)
            else:
                y = m.F(name, u, b)
            x = x + p.branch_scale.value * y
    return x - m.shift.bias
