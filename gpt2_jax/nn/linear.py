"""Linear maps."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.param import Axes, Init, Role, param


class Linear(nnx.Module):
    """y = x W + b over the trailing axes `d_in` of x, producing the trailing axes `d_out`.

    The kernel is stored as (*d_in, *d_out), so that heads stay visible in its shape, and multiplied
    as one two-dimensional product with batch and time flattened, which is fastest on a CPU.

    Args:
      axes: names of the axes in `d_in` and `d_out`.
      std: of the initial kernel; an array broadcasts against `d_out`.
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
        n_in, n_out = math.prod(self.d_in), math.prod(self.d_out)
        kernel = self.kernel[...].astype(self.dtype).reshape(n_in, n_out)
        y = x.astype(self.dtype).reshape(-1, n_in) @ kernel
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype).reshape(n_out)
        return y.reshape(*lead, *self.d_out)

    def each(self, xs: tuple[jax.Array, ...]) -> jax.Array:
        """Returns y where each matrix along the first axis of `d_out` has an input of its own."""
        n_in, n_out = math.prod(self.d_in), math.prod(self.d_out[1:])
        kernel = self.kernel[...].astype(self.dtype).reshape(n_in, self.d_out[0], n_out)
        ys = [x.astype(self.dtype) @ kernel[:, i] for i, x in enumerate(xs[: self.d_out[0]])]
        y = jnp.stack(ys, -2).reshape(*xs[0].shape[:-1], *self.d_out)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Shift(nnx.Module):
    """x - b with a learned number b, initially 0 (Zhang et al. 2019, Fixup)."""

    def __init__(self) -> None:
        self.bias = param(jnp.float32(0.0), Role.BIAS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x - self.bias[...].astype(x.dtype)


@jax.custom_vjp
def project(x_ND: jax.Array, head_VD: jax.Array) -> jax.Array:
    """Returns x head^T in float32, with backward products in the dtype of the inputs.

    Left to autodiff, the float32 gradient of the logits would turn both backward products of a
    bfloat16 head into float32 ones, up to twice as slow on a GPU.
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
