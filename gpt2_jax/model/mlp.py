"""The MLP of a block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.model.parts import ACTIVATIONS, GATED, Linear, Role, Shift
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

        def linear(d_in: int, d_out: int, site: str, std: float, side: str) -> Linear:
            return Linear(
                (d_in,),
                (d_out,),
                site=site,
                std=std,
                init=plan.init,
                dtype=cfg.dtype,
                width=side,
            )

        if gated:
            self.gate = linear(width, hidden, "mlp.gate", first, "in")
        self.up = linear(width, hidden, "mlp.up", first, "in")
        self.inner = plan.norm("inner", SIDE, hidden)
        if placement.hidden_scale:
            self.up_scale = nnx.Param(jnp.ones(hidden), role=Role.SCALAR)
            self.gate_scale = nnx.Param(jnp.ones(hidden), role=Role.SCALAR) if gated else None
        self.to_first = width**0.5
        self.before, self.behind = (Shift(placement.scalar_bias) for _ in range(2))
        self.down = linear(hidden, width, "mlp.down", last, "out")

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        if self.activation in GATED:
            gate_BTF = self.before(self._scaled("gate", self.gate(x_BTD)))
            h_BTF = GATED[self.activation](gate_BTF) * self._scaled("up", self.up(x_BTD))
        else:
            h_BTF = ACTIVATIONS[self.activation](self.before(self._scaled("up", self.up(x_BTD))))
        return self.down(self.behind(self.inner(h_BTF)))

    def _scaled(self, name: str, h_BTF: jax.Array) -> jax.Array:
        """Returns s sqrt(d) h where hidden channels have factors (nGPT, eqs. 20 and 21)."""
        factor = getattr(self, f"{name}_scale", None)
        return (
            h_BTF if factor is None else (h_BTF * factor[...] * self.to_first).astype(h_BTF.dtype)
        )
