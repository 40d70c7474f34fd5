"""Linear layers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.param import Axes, Init, Role, param


class Linear(nnx.Module):
    """y = x W + b, from the trailing axes `d_in` of x to the trailing axes `d_out` of y.

    The kernel has shape (*d_in, *d_out), with separate axes for heads. It is applied as one matrix
    product with batch and sequence flattened, which is fastest on a CPU.

    Args:
      axes: names of the axes `d_in` and `d_out`.
      site: name that determines the random initial values.
      std: of the initial kernel; an array is broadcast to `d_out`.
    """

    def __init__(
        self,
        d_in: tuple[int, ...],
        d_out: tuple[int, ...],
        *,
        axes: Axes,
        site: str,
        std: jax.Array | float,
        init: Init,
        dtype: str,
        bias: bool = True,
    ):
        self.d_in, self.d_out, self.dtype = d_in, d_out, jnp.dtype(dtype)
        value = init.normal(site, d_in + d_out, std)
        self.kernel = param(value, Role.MATRIX, axes, n_in=len(d_in))
        self.bias = param(jnp.zeros(d_out), Role.BIAS, axes[len(d_in) :]) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        lead = x.shape[: x.ndim - len(self.d_in)]
        return self.add_bias(self.product(x)).reshape(*lead, *self.d_out)

    def product(self, x: jax.Array) -> jax.Array:
        """Returns x W as a matrix, (rows of x, product of `d_out`)."""
        n_in, n_out = math.prod(self.d_in), math.prod(self.d_out)
        kernel = self.kernel[...].astype(self.dtype).reshape(n_in, n_out)
        return x.astype(self.dtype).reshape(-1, n_in) @ kernel

    def add_bias(self, y: jax.Array) -> jax.Array:
        """Returns the result of `product` with b added."""
        return y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape(-1)

    def each(self, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Returns y in parts along the first axis of `d_out`, each from its own input.

        Each part is a separate product, so no copy is needed to split the result, and the axis
        after the first may be sharded. For a single input, `__call__` is faster on a CPU.
        """
        n_in, (n_parts, *d_out) = math.prod(self.d_in), self.d_out
        kernel = self.kernel[...].astype(self.dtype).reshape(n_in, n_parts, -1)
        ys = [
            x.astype(self.dtype).reshape(-1, n_in) @ kernel[:, i]
            for i, x in enumerate(xs[:n_parts])
        ]
        if self.bias is not None:
            biases = self.bias[...].astype(self.dtype).reshape(n_parts, -1)
            ys = [y + b for y, b in zip(ys, biases, strict=True)]
        return tuple(y.reshape(*xs[0].shape[:-1], *d_out) for y in ys)


class Shift(nnx.Module):
    """x - b with a learned scalar b, initially 0 (Zhang et al. 2019, Fixup)."""

    def __init__(self) -> None:
        self.bias = param(jnp.float32(0.0), Role.BIAS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x - self.bias[...].astype(x.dtype)


@jax.custom_vjp
def project(x_ND: jax.Array, head_VD: jax.Array) -> jax.Array:
    """Returns x head^T in float32; the products of the backward pass have the inputs' dtype.

    With autodiff, the float32 gradient of the logits would make both backward products float32 even
    if the head is bfloat16, which is up to twice as slow on a GPU.
    """
    return jnp.einsum("ND,VD->NV", x_ND, head_VD, preferred_element_type=jnp.float32)


def _project_forward(
    x_ND: jax.Array, head_VD: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return project(x_ND, head_VD), (x_ND, head_VD)


def _project_backward(
    saved: tuple[jax.Array, jax.Array], g_NV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_ND, head_VD = saved
    g_NV = g_NV.astype(x_ND.dtype)
    return jnp.einsum("NV,VD->ND", g_NV, head_VD), jnp.einsum("NV,ND->VD", g_NV, x_ND)


project.defvjp(_project_forward, _project_backward)
