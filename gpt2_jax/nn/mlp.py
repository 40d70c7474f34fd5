"""The MLP of a block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.activations import ACTIVATIONS, GATED
from gpt2_jax.nn.context import Context, SublayerAux
from gpt2_jax.nn.linear import Linear, Shift
from gpt2_jax.nn.norms import Norm
from gpt2_jax.nn.param import Init, Role, param


class MLP(nnx.Module):
    """W_down N(f(W_up x + b_up)) + b_down (GPT-2: f = GELU, hidden width 4 D, no N).

    `swiglu` replaces f by silu(W_gate x + b_gate) (W_up x + b_up) (Shazeer 2020, eq. 6).

    Args:
      n_embd, n_inner: the width D and the hidden width.
      inner: N, or None. stds: initial std of the first and last matrices.
      hidden_scale: whether hidden channels have learned factors s sqrt(D), s initially 1
        (nGPT, eqs. 20 and 21).
      scalar_bias: whether learned scalars are subtracted before f and before W_down.
    """

    def __init__(
        self,
        n_embd: int,
        n_inner: int,
        *,
        activation: str,
        inner: Norm | None,
        hidden_scale: bool,
        scalar_bias: bool,
        stds: tuple[jax.Array | float, jax.Array | float],
        init: Init,
        dtype: str,
    ):
        self.activation, gated = activation, activation in GATED

        def from_input(site: str) -> Linear:
            axes, sizes = ("embed", "mlp"), ((n_embd,), (n_inner,))
            return Linear(*sizes, axes=axes, site=site, std=stds[0], init=init, dtype=dtype)

        factor = lambda: param(jnp.ones(n_inner), Role.SCALAR, ("mlp",))
        self.gate = from_input("mlp.gate") if gated else None
        self.up = from_input("mlp.up")
        self.inner = inner
        self.up_scale = factor() if hidden_scale else None
        self.gate_scale = factor() if hidden_scale and gated else None
        self.hidden_factor = n_embd**0.5
        self.before, self.behind = (Shift() if scalar_bias else None for _ in range(2))
        self.down = Linear(
            (n_inner,),
            (n_embd,),
            axes=("mlp", "embed"),
            site="mlp.down",
            std=stds[1],
            init=init,
            dtype=dtype,
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, SublayerAux]:
        """Returns the output (B, T, D)."""
        del context
        up_BTF = self._scaled(self.up_scale, self.up(x_BTD))
        if self.gate is not None:
            gate_BTF = self._shifted(self._scaled(self.gate_scale, self.gate(x_BTD)))
            h_BTF = GATED[self.activation](gate_BTF) * up_BTF
        else:
            h_BTF = ACTIVATIONS[self.activation](self._shifted(up_BTF))
        if self.inner is not None:
            h_BTF = self.inner(h_BTF)
        if self.behind is not None:
            h_BTF = self.behind(h_BTF)
        return self.down(h_BTF), SublayerAux()

    def _shifted(self, h_BTF: jax.Array) -> jax.Array:
        return h_BTF if self.before is None else self.before(h_BTF)

    def _scaled(self, factor: nnx.Param[jax.Array] | None, h_BTF: jax.Array) -> jax.Array:
        if factor is None:
            return h_BTF
        return (h_BTF * factor[...] * self.hidden_factor).astype(h_BTF.dtype)
