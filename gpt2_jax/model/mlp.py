"""The MLP of a block."""

from __future__ import annotations

import jax
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.parts import ACTIVATIONS, Context, Init, Linear


class MLP(nnx.Module):
    """W_down f(W_up x + b_up) + b_down (GPT-2: f = GELU, hidden width 4 D)."""

    def __init__(self, cfg: FrozenConfigDict, init: Init, out_std: float):
        width, hidden = cfg.n_embd, cfg.n_inner
        self.activation = cfg.activation
        self.up = Linear(
            (width,), (hidden,), site="mlp.up", std=cfg.init_std, init=init, dtype=cfg.dtype
        )
        self.down = Linear(
            (hidden,), (width,), site="mlp.down", std=out_std, init=init, dtype=cfg.dtype
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        del context  # GPT-2 drops nothing inside the MLP
        return self.down(ACTIVATIONS[self.activation](self.up(x_BTD)))
