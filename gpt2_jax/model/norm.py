"""Normalizations of the stream. Statistics are float32 whatever the stream is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gpt2_jax.model.parts import Role


class LayerNorm(nnx.Module):
    """y = gain (x - mean) / sqrt(var + eps) + bias over the last axis (Ba et al. 2016, eq. 4)."""

    def __init__(self, d: int, eps: float, dtype: str):
        self.eps, self.dtype = eps, jnp.dtype(dtype)
        self.gain = nnx.Param(jnp.ones(d), role=Role.GAIN)
        self.bias = nnx.Param(jnp.zeros(d), role=Role.BIAS)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * lax.rsqrt(variance + self.eps) * self.gain[...] + self.bias[...]
        return y.astype(self.dtype)
