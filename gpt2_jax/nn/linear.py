"""Linear layers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.param import Axes, Init, Role, param
from gpt2_jax.nn.products import product


class Linear(nnx.Module):
    """y = x W + b, from the trailing axes `d_in` of x to the trailing axes `d_out` of y.

    The kernel has shape (*d_in, *d_out), with separate axes for heads. It is applied as one matrix
    product with batch and sequence flattened, which is fastest on a CPU.

    Args:
      axes: names of the axes `d_in` and `d_out`.
      site: name that determines the random initial values.
      std: of the initial kernel; an array is broadcast to `d_out`.
      dtype: of x and y. product_dtype: what the product's inputs are rounded to if its result is
        float32, as in `nn.products`; None for a product in `dtype`.
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
        product_dtype: str | None = None,
        bias: bool = True,
    ):
        self.d_in, self.d_out, self.dtype = d_in, d_out, jnp.dtype(dtype)
        self.product_dtype = product_dtype
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
        return self._multiply(x.astype(self.dtype).reshape(-1, n_in), kernel)

    def _multiply(self, x_NI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
        if self.product_dtype is None:
            return x_NI @ kernel_IO
        return product("NI,IO->NO", x_NI, kernel_IO, self.product_dtype).astype(self.dtype)

    def add_bias(self, y: jax.Array) -> jax.Array:
        """Returns the result of `product` with b added."""
        return y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape(-1)

    def each(self, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Returns y in parts along the first axis of `d_out`, each from its own input.

        Inputs may have different lengths; those without a part are ignored.

        Each part is a separate product, so no copy is needed to split the result, and the axis
        after the first may be sharded. For a single input, `__call__` is faster on a CPU.
        """
        n_in, (n_parts, *d_out) = math.prod(self.d_in), self.d_out
        kernel = self.kernel[...].astype(self.dtype).reshape(n_in, n_parts, -1)
        ys = [
            self._multiply(x.astype(self.dtype).reshape(-1, n_in), kernel[:, i])
            for i, x in enumerate(xs[:n_parts])
        ]
        if self.bias is not None:
            biases = self.bias[...].astype(self.dtype).reshape(n_parts, -1)
            ys = [y + b for y, b in zip(ys, biases, strict=True)]
        return tuple(y.reshape(*x.shape[:-1], *d_out) for y, x in zip(ys, xs, strict=False))

    def parts(self, x: jax.Array, start: int, stop: int) -> jax.Array:
        """Returns parts `start` to `stop` - 1 of y along the first axis of `d_out`, as one product.

        The result has shape (*leading axes of x, stop - start, *rest of `d_out`).
        """
        n_in, (n_parts, *d_out) = math.prod(self.d_in), self.d_out
        kernel = self.kernel[...].astype(self.dtype).reshape(n_in, n_parts, -1)[:, start:stop]
        y = self._multiply(x.astype(self.dtype).reshape(-1, n_in), kernel.reshape(n_in, -1))
        if self.bias is not None:
            y = y + self.bias[...][start:stop].astype(self.dtype).reshape(-1)
        return y.reshape(*x.shape[:-1], stop - start, *d_out)


class Shift(nnx.Module):
    """x - b with a learned scalar b, initially 0 (Zhang et al. 2019, Fixup)."""

    def __init__(self) -> None:
        self.bias = param(jnp.float32(0.0), Role.BIAS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x - self.bias[...].astype(x.dtype)
