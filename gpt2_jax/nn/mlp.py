"""The MLP of a block."""

from __future__ import annotations

from typing import Any

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
      dtype, product_dtype: those of the `Linear` layers.
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
        product_dtype: str | None = None,
    ):
        self.activation, gated = activation, activation in GATED
        dtypes: Any = {"dtype": dtype, "product_dtype": product_dtype}

        def from_input(site: str) -> Linear:
            axes, sizes = ("embed", "mlp"), ((n_embd,), (n_inner,))
            return Linear(*sizes, axes=axes, site=site, std=stds[0], init=init, **dtypes)

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
            **dtypes,
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, SublayerAux]:
        """Returns the output (B, T, D)."""
        del context
        # The gradient keeps the products alone, before the bias: with more, a GPU would write and
        # read this widest of a block's activations once more.
        hidden = jax.checkpoint(self._hidden) if self.up.dtype == jnp.bfloat16 else self._hidden
        gate_NF = None if self.gate is None else self.gate.product(x_BTD)
        h_BTF = hidden(self.up.product(x_BTD), gate_NF).reshape(*x_BTD.shape[:-1], -1)
        if self.inner is not None:
            h_BTF = self.inner(h_BTF)
        if self.behind is not None:
            h_BTF = self.behind(h_BTF)
        return self.down(h_BTF), SublayerAux()

    def _hidden(self, up_NF: jax.Array, gate_NF: jax.Array | None) -> jax.Array:
        up_NF = self._scaled(self.up_scale, self.up.add_bias(up_NF))
        if self.gate is None or gate_NF is None:
            return ACTIVATIONS[self.activation](self._shifted(up_NF))
        gate_NF = self._scaled(self.gate_scale, self.gate.add_bias(gate_NF))
        return GATED[self.activation](self._shifted(gate_NF)) * up_NF

    def _shifted(self, h_BTF: jax.Array) -> jax.Array:
        return h_BTF if self.before is None else self.before(h_BTF)

    def _scaled(self, factor: nnx.Param[jax.Array] | None, h_BTF: jax.Array) -> jax.Array:
        if factor is None:
            return h_BTF
        return (h_BTF * factor[...] * self.hidden_factor).astype(h_BTF.dtype)
