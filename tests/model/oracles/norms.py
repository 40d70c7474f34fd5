"""Sites and kinds of norms, and shared blocks."""

import math

import numpy as np

from tests.model.oracles.base import A, F, attention, ln, mlp, oracle, rms, unit

# -- norm sites


@oracle
def pre_ln(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        x = x + A(ln(x, b.attn.pre), b)
        x = x + F(ln(x, b.mlp.pre), b)
    return m.head(ln(x, m.ln_f))


@oracle
def pre_ln_xavier(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
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
    return sandwiched(m, rms(m.tokens + m.positions, m.embedding.embedding_norm), rms)


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
            return full(q, p.transform.q_norm), full(k, p.transform.k_norm), v

        x = x + norm(attention(x, p, shape), b.attn.out)
        x = x + norm(F(x, b), b.mlp.out)
    return m.head(norm(x, m.ln_f))


@oracle
def swin_v2(m):
    x = m.tokens + m.positions
    for b in m.blocks:
        p = b.attn.sublayer
        s = np.exp(np.minimum(p.transform.cosine.logit_scale, math.log(100)))[:, None]
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
        between = over_all_heads(lambda o, p=p: ln(o, p.heads.inner))
        x = x + attention(ln(x, b.attn.pre), p, between=between)
        x = x + mlp(ln(x, b.mlp.pre), q, between=lambda h, q=q: ln(h, q.inner))
    return m.head(ln(x, m.ln_f))


@oracle
def normformer(m):
    x = m.tokens * math.sqrt(m.D) + m.positions
    for b in m.blocks:
        p, q = b.attn.sublayer, b.mlp.sublayer
        scaled = lambda o, p=p: o * p.heads.head_scale[:, None]
        x = x + ln(attention(ln(x, b.attn.pre), p, between=scaled), b.attn.out)
        w = b.connection.mlp.skip_scale.value
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
    n = b.attn.sublayer.transform
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
        x = ln(x, b.connection.add.skip) + A(x, b) + F(x, b)
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
    x = (m.tokens + m.positions) * m.embedding.embedding_multiplier.value
    return m.head(pre_normed(m, x, lambda x, n: n.gain * np.tanh(n.alpha * x)))


@oracle
def derf(m):
    erf = np.vectorize(math.erf)
    x = (m.tokens + m.positions) * m.embedding.embedding_multiplier.value
    return m.head(pre_normed(m, x, lambda x, n: n.gain * erf(n.alpha * x + n.shift) + n.bias))


@oracle
def scalenorm_fixnorm(m):
    table = unit(m.wte)
    x = table[m.ids] * math.sqrt(m.D) + m.positions
    return m.head(pre_normed(m, x, lambda x, n: n.gain * unit(x)), table)


# -- shared blocks


@oracle
def albert(m):
    x = ln(m.tokens + m.positions, m.embedding.embedding_norm)
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

    places = np.stack([signal(p) for p in range(m.n_time)])[m.places]
    x = m.tokens * math.sqrt(m.D)
    for l in range(1, m.L + 1):
        b = m.blocks[0]
        x = x + places + signal(l)
        x = ln(x + A(x, b), b.connection.attn.post)
        x = ln(x + F(x, b), b.connection.mlp.post)
    return m.head(x)
