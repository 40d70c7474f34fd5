"""The factors a, b, c and m of a placement, constant or learned."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.context import Context
from gpt2_jax.nn.param import Role, param
from gpt2_jax.placements.expressions import ScaleSpec, Sizes


class Scale(nnx.Module):
    """x times a factor.

    Args:
      first: initial value of a learned factor. index: position of the sublayer in its block.
    """

    def __init__(self, spec: ScaleSpec, first: Any, sizes: Sizes, index: int = 0):
        self.spec, self.sizes, self.index = spec, sizes, index
        shape, axes = ((sizes.n_embd,), ("embed",)) if spec.kind == "learned_vector" else ((), ())
        value = lambda: param(jnp.full(shape, first, jnp.float32), Role.SCALAR, axes)
        self.value = None if spec.kind == "constant" else value()

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        if self.spec.is_one:
            return x
        return (x * self.factor(context)).astype(x.dtype)

    def factor(self, context: Context) -> jax.Array:
        """Returns the factor, float32.

        Raises:
          ValueError: if it depends on the step and the context has none.
        """
        if self.value is not None:
            return self.value[...]
        l = jnp.asarray(context.layer + 1, jnp.float32)
        values = self.sizes.values(l, self.index)
        if "t" in self.spec.first.names:
            if context.step is None:
                raise ValueError(f"the scale {self.spec.first.text} needs the step")
            values["t"] = jnp.asarray(context.step, jnp.float32)
        return jnp.asarray(self.spec.first(values, jnp), jnp.float32)
