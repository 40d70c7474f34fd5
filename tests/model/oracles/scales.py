"""Scales and gates on the skip and the branch."""

import math

import numpy as np

from tests.model.oracles import norms
from tests.model.oracles.base import ORACLES, A, F, attention, ln, oracle, rms, sigmoid, silu

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
        a = b.attn.branch_scale.value
        x = x + a * A(x, b)
        x = x + a * F(x, b)
    return m.head(x)


@oracle
def skipinit(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        x = x + b.attn.branch_scale.value * A(x, b)
        x = x + b.mlp.branch_scale.value * F(x, b)
    return m.head(x)


@oracle
def layerscale(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = x + b.attn.branch_scale.value * A(ln(x, b.attn.pre), b)
        x = x + b.mlp.branch_scale.value * F(ln(x, b.mlp.pre), b)
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


# The same functions as others, with different initial values.
ORACLES["ds_init"] = norms.post_ln
ORACLES["scaled_init"] = norms.pre_ln


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
