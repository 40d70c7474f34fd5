"""Activation functions of the MLP."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

_GELU_SCALE = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


@jax.custom_vjp
def gelu_new(x: jax.Array) -> jax.Array:
    """GPT-2's GELU, x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016).

    Its derivative is computed in the forward pass; otherwise XLA recomputes the tanh in each
    consumer of the backward pass.
    """
    return _gelu_new_forward(x)[0]


def _gelu_new_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_32 = x.astype(jnp.float32)
    square = x_32 * x_32
    tanh = jnp.tanh(_GELU_SCALE * x_32 * (1.0 + _GELU_CUBIC * square))
    slope = _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBIC * square)
    y = 0.5 * x_32 * (1.0 + tanh)
    dy_dx = 0.5 * (1.0 + tanh) + 0.5 * x_32 * (1.0 - tanh * tanh) * slope
    return y.astype(x.dtype), dy_dx.astype(x.dtype)


def _gelu_new_backward(dy_dx: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    return (dy * dy_dx,)


gelu_new.defvjp(_gelu_new_forward, _gelu_new_backward)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_new": gelu_new,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
# Activations of a gate; the names are those of `placements.axes.GATED`.
GATED: dict[str, Callable[[jax.Array], jax.Array]] = {"swiglu": jax.nn.silu}
