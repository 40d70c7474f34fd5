"""Norms over the last axis, with statistics in float32 for any input dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gpt2_jax.nn.norm_types import NORM_TYPES, NormType
from gpt2_jax.nn.param import Role, param
from gpt2_jax.nn.tensor_parallel import is_tensor_parallel

UNIT_EPS = 1e-12  # epsilon of unit norms that `placement.norm_eps` does not control


@dataclass(frozen=True)
class NormSpec:
    """A type of norm and its initial values.

    Attributes:
      kind: a key of `NORMS`. axis: the name of the normalized axis.
      gain, alpha: initial gain, and initial slope of dyt and derf (may be traced).
      fused: whether to use this project's GPU kernel, which only LayerNorm has.
    """

    kind: str
    eps: float
    bias: bool
    dtype: str
    gain: jax.Array | float = 1.0
    alpha: jax.Array | float = 0.5
    axis: str | None = "embed"
    fused: bool = False


class Norm(nnx.Module):
    """y = f(x) in the compute dtype, f computed in float32; subclasses implement `normalize`."""

    def __init__(self, width: int, spec: NormSpec):
        self.eps, self.dtype = spec.eps, jnp.dtype(spec.dtype)

    @jax.named_scope("norm")
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.normalize(x.astype(jnp.float32)).astype(self.dtype)

    def normalize(self, x: jax.Array) -> jax.Array:
        """Returns f(x), float32."""
        raise NotImplementedError


class LayerNorm(Norm):
    """y = gain (x - mean) / sqrt(var + eps) + bias (Ba et al. 2016, eq. 4)."""

    def __init__(self, width: int, spec: NormSpec):
        super().__init__(width, spec)
        self.gain, self.bias = _gain(width, spec, spec.gain), _bias(width, spec)
        self.fused = spec.fused

    @jax.named_scope("norm")
    def __call__(self, x: jax.Array) -> jax.Array:
        function = layer_norm
        if self.fused and not is_tensor_parallel():
            # Imported here, so that other devices do not depend on Pallas.
            from gpt2_jax.nn.fused.layer_norm import layer_norm as function
        bias = jnp.zeros_like(self.gain[...]) if self.bias is None else self.bias[...]
        return function(self.eps, x, self.gain[...], bias).astype(self.dtype)


class FixedRMSNorm(Norm):
    """y = x / sqrt(mean(x^2) + eps)."""

    def normalize(self, x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)


class RMSNorm(FixedRMSNorm):
    """y = gain x / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, spec: NormSpec):
        super().__init__(width, spec)
        self.gain = _gain(width, spec, spec.gain)

    def normalize(self, x: jax.Array) -> jax.Array:
        return self.gain[...] * super().normalize(x)


class PlusOneRMSNorm(FixedRMSNorm):
    """RMSNorm with gain 1 + w, w the parameter (Gemma)."""

    def __init__(self, width: int, spec: NormSpec):
        super().__init__(width, spec)
        self.gain = _gain(width, spec, spec.gain - 1.0)

    def normalize(self, x: jax.Array) -> jax.Array:
        return (1.0 + self.gain[...]) * super().normalize(x)


class L2Norm(Norm):
    """y = x / max(|x|, eps)."""

    def normalize(self, x: jax.Array) -> jax.Array:
        square = jnp.square(x).sum(-1, keepdims=True)
        return x * lax.rsqrt(jnp.maximum(square, self.eps**2))


class ScaleNorm(L2Norm):
    """y = g x / max(|x|, eps), one g, initially sqrt(width) (Nguyen & Salazar 2019, eq. 5)."""

    def __init__(self, width: int, spec: NormSpec):
        super().__init__(width, spec)
        self.gain = param(jnp.float32(width**0.5 * spec.gain), Role.GAIN)

    def normalize(self, x: jax.Array) -> jax.Array:
        return self.gain[...] * super().normalize(x)


class DyT(Norm):
    """y = gain tanh(alpha x) + bias (Zhu et al. 2025, 2503.10622, eq. 2)."""

    squash: Callable[[jax.Array], jax.Array] = staticmethod(jnp.tanh)

    def __init__(self, width: int, spec: NormSpec):
        super().__init__(width, spec)
        self.alpha = param(jnp.float32(spec.alpha), Role.SCALAR)
        self.gain, self.bias = _gain(width, spec, spec.gain), _bias(width, spec)

    def normalize(self, x: jax.Array) -> jax.Array:
        y = self.gain[...] * self.squash(self.inside(x))
        return y if self.bias is None else y + self.bias[...]

    def inside(self, x: jax.Array) -> jax.Array:
        """Returns the argument of `squash`."""
        return self.alpha[...] * x


class Derf(DyT):
    """y = gain erf(alpha x + s) + bias, one s, initially 0 (2512.10938)."""

    squash = staticmethod(jax.scipy.special.erf)

    def __init__(self, width: int, spec: NormSpec):
        super().__init__(width, spec)
        self.shift = param(jnp.float32(0.0), Role.BIAS)

    def inside(self, x: jax.Array) -> jax.Array:
        return super().inside(x) + self.shift[...]


NORMS: dict[str, type[Norm]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "rmsnorm_plus_one": PlusOneRMSNorm,
    "rmsnorm_fixed": FixedRMSNorm,
    "scalenorm": ScaleNorm,
    "l2": L2Norm,
    "dyt": DyT,
    "derf": Derf,
}


T = TypeVar("T", bound=type[Norm])


def register_norm(name: str, norm_type: NormType) -> Callable[[T], T]:
    """Registers a norm as `placement.norm_type=name`.

    Args:
      norm_type: the axes it uses; setting any other is an error.

    Raises:
      ValueError: if the name is taken.
    """

    def add(cls: T) -> T:
        if name in NORM_TYPES:
            raise ValueError(f"the norm {name!r} is registered twice")
        NORM_TYPES[name], NORMS[name] = norm_type, cls
        return cls

    return add


def make_norm(width: int, spec: NormSpec) -> Norm:
    """Returns the norm that `spec` describes."""
    return NORMS[spec.kind](width, spec)


def _gain(width: int, spec: NormSpec, value: jax.Array | float) -> nnx.Param[jax.Array]:
    return param(jnp.full(width, value, jnp.float32), Role.GAIN, (spec.axis,))


def _bias(width: int, spec: NormSpec) -> nnx.Param[jax.Array] | None:
    return param(jnp.zeros(width), Role.BIAS, (spec.axis,)) if spec.bias else None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(eps: float, x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """`LayerNorm` in float32, with an explicit gradient.

    With n = (x - mean)/sigma and g = gain dy: dx = (g - mean(g) - n mean(g n)) / sigma. Autodiff
    through mean and variance makes a training step on a CPU 5 % slower. The gradient keeps x as it
    is, which may be bfloat16, and two numbers per row, rather than n in float32.
    """
    return _layer_norm_forward(eps, x, gain, bias)[0]


Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _layer_norm_forward(
    eps: float, x: jax.Array, gain: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Saved]:
    x_32 = x.astype(jnp.float32)
    mean = x_32.mean(-1, keepdims=True)
    centred = x_32 - mean
    inverse_sigma = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred * inverse_sigma * gain + bias, (x, mean, inverse_sigma, gain)


def _layer_norm_backward(
    eps: float, saved: Saved, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse_sigma, gain = saved
    # Without the barrier, XLA would share n with the forward pass, and store it in float32.
    n = (lax.optimization_barrier(x).astype(jnp.float32) - mean) * inverse_sigma
    g = dy * gain
    means = g.mean(-1, keepdims=True) + n * (g * n).mean(-1, keepdims=True)
    rows = tuple(range(dy.ndim - 1))
    dx = inverse_sigma * (g - means)
    return dx.astype(x.dtype), (dy * n).sum(rows), dy.sum(rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
