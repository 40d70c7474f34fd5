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

    Differentiated by XLA, the tanh would be recomputed in each consumer of the gradient on a CPU,
    and stored in float32 on a GPU. Instead, the derivative is stored if x is float32, and else x.
    """
    return _gelu_new_and_slope(x)[0]


def _gelu_new_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_32 = x.astype(jnp.float32)
    square = x_32 * x_32
    argument = _GELU_SCALE * x_32 * (1.0 + _GELU_CUBIC * square)
    if x.dtype == jnp.float32:
        tanh = jnp.tanh(argument)
    else:  # far fewer instructions on a GPU; the rounding is far below bfloat16's
        tanh = 2.0 * jax.nn.sigmoid(2.0 * argument) - 1.0
    inner_slope = _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBIC * square)
    y = 0.5 * x_32 * (1.0 + tanh)
    slope = 0.5 * (1.0 + tanh) + 0.5 * x_32 * (1.0 - tanh * tanh) * inner_slope
    return y.astype(x.dtype), slope.astype(x.dtype)


def _gelu_new_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, slope = _gelu_new_and_slope(x)
    return y, slope if x.dtype == jnp.float32 else x


def _gelu_new_backward(saved: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    if saved.dtype == jnp.float32:
        return (dy * saved,)
    return (dy * _gelu_new_and_slope(saved)[1],)


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
