"""Normalizations of the stream. Statistics are float32 whatever the stream is."""

from __future__ import annotations

from functools import partial

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
        y = layer_norm(self.eps, x.astype(jnp.float32), self.gain[...], self.bias[...])
        return y.astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(eps: float, x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """The equation above in float32, with its gradient in one pass over x.

    With n = (x - mean)/sigma and g = gain dy: dx = (g - mean(g) - n mean(g n)) / sigma. Autodiff
    goes through mean and variance one after the other, which costs a CPU a twentieth of the step.
    """
    return _layer_norm_forward(eps, x, gain, bias)[0]


Saved = tuple[jax.Array, jax.Array, jax.Array]


def _layer_norm_forward(
    eps: float, x: jax.Array, gain: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Saved]:
    centred = x - x.mean(-1, keepdims=True)
    inverse_sigma = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    n = centred * inverse_sigma
    return n * gain + bias, (n, inverse_sigma, gain)


def _layer_norm_backward(
    eps: float, saved: Saved, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    n, inverse_sigma, gain = saved
    g = dy * gain
    means = g.mean(-1, keepdims=True) + n * (g * n).mean(-1, keepdims=True)
    rows = tuple(range(dy.ndim - 1))
    return inverse_sigma * (g - means), (dy * n).sum(rows), dy.sum(rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
