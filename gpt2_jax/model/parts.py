"""What every part is made of: parameters with a role, matrix products, dropout."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Role(StrEnum):
    """What a parameter is. Written on it as metadata: its ndim says nothing once stacked."""

    MATRIX = "matrix"
    MAP = "map"  # a connection's own small matrix, from the width to a few numbers
    EMBEDDING = "embedding"
    POSITION = "position"
    HEAD = "head"
    GAIN = "gain"
    BIAS = "bias"
    SCALAR = "scalar"  # a learned factor, be it one number or one a channel


class Rates(NamedTuple):
    """Factors on a parameter's learning rate, decay and Adam's epsilon."""

    lr: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


class Context(NamedTuple):
    """What a block is told besides the stream.

    Attributes:
      positions: of the tokens in their sequences, (T) or (B, T).
      keys_B: a dropout key for each sequence; None for no dropout.
      step: updates done, for what changes while the model is trained; None where nobody said.
      layer: 0-based index of the block (may be traced).
      values: attention's values of block 1, where later blocks use them.
      probe: told of each block the stream before it and behind it and what its attention left;
        what it returns is kept. Blocks then hand out what their branches were given and gave.
      muted: 0-based index of a block whose branches give 0, to see what they are worth.
      place: vectors of the positions, where blocks add them too, (T, D) or (B, T, D).
    """

    positions: jax.Array
    keys_B: jax.Array | None = None
    step: jax.Array | int | None = None
    layer: jax.Array | int = 0
    values: jax.Array | None = None
    place: jax.Array | None = None
    probe: Callable[[Any, Any, Any], Any] | None = None
    muted: jax.Array | int | None = None

    def at(self, layer: jax.Array | int, values: jax.Array | None) -> Context:
        """Returns what the block of that index is told, with dropout keys of its own."""
        keys_B = self.keys_B
        if keys_B is not None:
            keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, layer)
        return self._replace(layer=layer, keys_B=keys_B, values=values)


@dataclass(frozen=True)
class Init:
    """Initial values of one layer: a key for each site, so that models share what they share.

    Attributes:
      key: the run's key for initial weights.
      layer: 0-based index of the block (may be traced); 0 outside the blocks.
    """

    key: jax.Array
    layer: jax.Array | int = 0

    def normal(self, site: str, shape: tuple[int, ...], std: jax.Array | float) -> jax.Array:
        """Returns float32 normal values of std `std`, the same for the same site and layer."""
        site_key = jax.random.fold_in(self.key, zlib.crc32(site.encode()))
        return std * jax.random.normal(jax.random.fold_in(site_key, self.layer), shape)


class Linear(nnx.Module):
    """y = x W + b over the trailing axes `d_in` of x, giving the trailing axes `d_out`.

    The kernel is stored as (*d_in, *d_out), so heads stay visible in its shape, and multiplied as
    one two-dimensional product with batch and time flattened, which is the fastest on a CPU.

    Args:
      std: of the initial kernel; an array broadcasts against `d_out`.
      batch_axes: how many leading axes of `d_out` hold independent matrices (3 for q, k, v): an
        optimizer that works on whole matrices takes them one by one.
      bias: whether there is a b.
      width: which side is the stream's width, `in` or `out`, for placements that norm along it.
    """

    def __init__(
        self,
        d_in: tuple[int, ...],
        d_out: tuple[int, ...],
        *,
        site: str,
        std: jax.Array | float,
        init: Init,
        dtype: str,
        batch_axes: int = 0,
        bias: bool = True,
        width: str | None = None,
    ):
        ndim = len(d_in) + len(d_out)
        self.d_in, self.d_out, self.dtype = d_in, d_out, jnp.dtype(dtype)
        self.kernel = nnx.Param(
            init.normal(site, d_in + d_out, std),
            role=Role.MATRIX,
            in_axes=tuple(range(-ndim, -len(d_out))),
            out_axes=tuple(range(-len(d_out) + batch_axes, 0)),
            width_axes=(-ndim,) if width == "in" else (-1,) if width == "out" else (),
        )
        self.bias = nnx.Param(jnp.zeros(d_out), role=Role.BIAS) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        lead = x.shape[: x.ndim - len(self.d_in)]
        n_in, n_out = math.prod(self.d_in), math.prod(self.d_out)
        kernel = self.kernel[...].astype(self.dtype).reshape(n_in, n_out)
        y = x.astype(self.dtype).reshape(-1, n_in) @ kernel
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype).reshape(n_out)
        return y.reshape(*lead, *self.d_out)

    def each(self, xs: tuple[jax.Array, ...]) -> jax.Array:
        """Returns y where each of the matrices side by side in `d_out` has an input of its own."""
        n_in, n_out = math.prod(self.d_in), math.prod(self.d_out[1:])
        kernel = self.kernel[...].astype(self.dtype).reshape(n_in, self.d_out[0], n_out)
        ys = [x.astype(self.dtype) @ kernel[:, i] for i, x in enumerate(xs[: self.d_out[0]])]
        y = jnp.stack(ys, -2).reshape(*xs[0].shape[:-1], *self.d_out)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Shift(nnx.Module):
    """x - b, one b, initially 0 (Zhang et al. 2019, Fixup); x where there is none."""

    def __init__(self, present: bool):
        self.bias = nnx.Param(jnp.float32(0.0), role=Role.BIAS) if present else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return x if self.bias is None else x - self.bias[...].astype(x.dtype)


def dropout(x: jax.Array, keys_B: jax.Array | None, rate: float, site: str) -> jax.Array:
    """Zeroes entries of x (B, ...) with probability `rate` and scales the rest by 1/(1 - rate).

    One key a sequence, so that the mask does not depend on how a batch is spread over devices.

    Args:
      keys_B: a key for each sequence, or None to leave x as it is.
      site: name of the place, folded into the keys.
    """
    if keys_B is None or rate == 0.0:
        return x
    tag = zlib.crc32(site.encode())

    def keep(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, tag), 1.0 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(keys_B), x / (1.0 - rate), 0).astype(x.dtype)


def drop_rows(x: jax.Array, keys_B: jax.Array, rate: jax.Array, site: str) -> jax.Array:
    """Zeroes whole sequences of x (B, ...) with probability `rate`, scales the rest to match.

    Stochastic depth, for one branch (Huang et al. 2016).
    """
    tag = zlib.crc32(site.encode())
    keep = lambda key: jax.random.bernoulli(jax.random.fold_in(key, tag), 1.0 - rate)
    keep_B = jax.vmap(keep)(keys_B).reshape(-1, *[1] * (x.ndim - 1))
    kept = jnp.maximum(1.0 - rate, 1e-6)  # a rule in t may come to 1: none is kept then
    return jnp.where(keep_B, x / kept, 0).astype(x.dtype)


_GELU_SCALE = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


@jax.custom_vjp
def gelu_new(x: jax.Array) -> jax.Array:
    """GPT-2's GELU, x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016).

    Its derivative is computed in the forward pass: left alone, XLA computes the tanh again in
    each consumer of the backward pass.
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
# The gate's nonlinearity; the names are `placements.axes.GATED`.
GATED: dict[str, Callable[[jax.Array], jax.Array]] = {"swiglu": jax.nn.silu}
