"""How a sublayer meets the stream: branches with their norms, and blocks made of two of them."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

import jax
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.attention import Attention, Cache, Span
from gpt2_jax.model.mlp import MLP
from gpt2_jax.model.norm import LayerNorm
from gpt2_jax.model.parts import Context, Init, dropout

Sublayer = TypeVar("Sublayer", Attention, MLP)


class Branch(nnx.Module, Generic[Sublayer]):
    """F(N(x)): a sublayer behind its norm."""

    def __init__(self, cfg: FrozenConfigDict, sublayer: Sublayer, name: str):
        self.rate, self.name = cfg.dropout, name
        self.pre = LayerNorm(cfg.n_embd, cfg.norm_eps, cfg.dtype)
        self.sublayer: Sublayer = sublayer

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        y_BTD = self.sublayer(self.pre(x_BTD), context)
        return dropout(y_BTD, context.keys_B, self.rate, f"{self.name}.residual")


class Block(nnx.Module):
    """x <- x + F(N(x)) for attention, then for the MLP.

    Projections that end on the stream start smaller by 1/sqrt(2 L), since 2 L of them add up
    (GPT-2, Radford et al. 2019, section 2.3).
    """

    def __init__(self, cfg: FrozenConfigDict, init: Init):
        out_std = cfg.init_std / math.sqrt(2 * cfg.n_layer)
        self.attn = Branch(cfg, Attention(cfg, init, out_std), "attn")
        self.mlp = Branch(cfg, MLP(cfg, init, out_std), "mlp")

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        x_BTD = x_BTD + self.attn(x_BTD, context)
        return x_BTD + self.mlp(x_BTD, context)

    def decode(
        self, x_BTD: jax.Array, context: Context, cache: Cache, span: Span
    ) -> tuple[jax.Array, Cache]:
        """The same for the columns `span` of a cache of keys and values."""
        y_BTD, cache = self.attn.sublayer.decode(self.attn.pre(x_BTD), context, cache, span)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(x_BTD, context), cache
