"""Independent implementations of every placement in plain numpy and float64, from its equation.

Each function is a whole model. It receives weights by name and numbers, and shares no code with the
model: no scan, no stacking, no helper for where norms are.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

ORACLES = {}
VISIBLE = [None]  # (B, T, T), True where a token attends to another; None: to itself and before


@contextmanager
def visible(mask_BTT):
    """Sets which tokens attend to which."""
    VISIBLE[0] = mask_BTT
    try:
        yield
    finally:
        VISIBLE[0] = None


def oracle(f):
    ORACLES[f.__name__] = f
    return f


def namespace(tree):
    """Converts nested dicts of arrays to attributes, float64."""
    if isinstance(tree, dict):
        return SimpleNamespace(**{name: namespace(value) for name, value in tree.items()})
    return np.asarray(tree, np.float64)


class Model:
    """Weights and sizes of a tiny model, and the parts that all variants share.

    Args:
      outside: parameters outside the blocks.
      blocks: parameters of each block, in order.
      t: number of steps done.
      places: position of each token, (B, T); None: 0, 1, ...
    """

    def __init__(self, outside, blocks, tokens, vocab_size, t, places=None):
        self.__dict__.update(namespace(outside).__dict__)
        self.wte, self.wpe = self.embedding.wte, getattr(self.embedding, "wpe", None)
        self.blocks = [namespace(block) for block in blocks]
        self.ids, self.vocab_size, self.t = np.asarray(tokens), vocab_size, t
        self.n_batch, self.n_time = self.ids.shape
        self.L, self.D = len(blocks), self.wte.shape[1]
        self.tokens = self.wte[self.ids]
        self.places = np.arange(self.n_time) if places is None else places

    @property
    def positions(self):
        return self.wpe[self.places]

    def numbered(self):
        """Blocks with their number, from 1."""
        return enumerate(self.blocks, 1)

    def head(self, x, table=None):
        table = self.wte if table is None else table
        return (x @ table.T)[..., : self.vocab_size]


def ln(x, n, eps=1e-5):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * n.gain + n.bias


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
    """Attention weights, (B, H, T, T), of q and k (B, T, H, K): causal, or as in `visible`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = np.einsum("bthk,bshk->bhts", q, k) * scale
    return softmax(np.where(seen(scores.shape[-1]), scores, -np.inf))


def seen(n_time):
    """Where tokens attend, (T, T) or (B, 1, T, T)."""
    return np.tril(np.ones((n_time, n_time), bool)) if VISIBLE[0] is None else VISIBLE[0][:, None]


def attention(x, p, shape=lambda q, k, v: (q, k, v), scale=None, between=lambda o: o):
    """W_O applied to the heads; `shape` transforms q, k, v, and `between` the heads' outputs."""
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
