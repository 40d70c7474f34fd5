"""The MLP of a block."""

from __future__ import annotations

import jax
from flax import nnx

from gpt2_jax.model.parts import ACTIVATIONS, GATED, Linear
from gpt2_jax.model.plan import MLP as SIDE
from gpt2_jax.model.plan import Plan


class MLP(nnx.Module):
    """W_down N(f(W_up x + b_up)) + b_down (GPT-2: f = GELU, hidden width 4 D, no N).

    `swiglu` is gated: f = silu(W_gate x + b_gate) (W_up x + b_up) (Shazeer 2020, eq. 6).
    """

    def __init__(self, plan: Plan):
        cfg, placement = plan.cfg, plan.placement
        width, hidden = cfg.n_embd, cfg.n_inner
        self.activation, gated = placement.activation, placement.activation in GATED
        first = plan.std(placement.value_init, width, hidden, SIDE)
        last = plan.std(placement.residual_init, hidden, width, SIDE)

        def linear(d_in: int, d_out: int, site: str, std: float) -> Linear:
            return Linear((d_in,), (d_out,), site=site, std=std, init=plan.init, dtype=cfg.dtype)

        if gated:
            self.gate = linear(width, hidden, "mlp.gate", first)
        self.up = linear(width, hidden, "mlp.up", first)
        self.inner = plan.norm("inner", SIDE, hidden)
        self.down = linear(hidden, width, "mlp.down", last)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        if self.activation in GATED:
            h_BTF = GATED[self.activation](self.gate(x_BTD)) * self.up(x_BTD)
        else:
            h_BTF = ACTIVATIONS[self.activation](self.up(x_BTD))
        return self.down(self.inner(h_BTF))
