"""Transforms of q, k and v before attention, of its weights, and of the heads' outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.context import Context
from gpt2_jax.nn.norms import UNIT_EPS, L2Norm, Norm, NormSpec
from gpt2_jax.nn.param import Role, param
from gpt2_jax.nn.positions import rotate

QKV = tuple[jax.Array, jax.Array, jax.Array]  # each (B, H, T, K)
MAX_LOGIT_SCALE = 100.0


class QKVTransform(nnx.Module):
    """Transforms q, k and v: norms, scaling, rotation, and mixing of values with block 1's.

    Args:
      norms: of q, k and v, or None. over_heads: whether the norms of q and k act on all heads at
        once rather than on each head.
      scaling: sets the lengths of q and k, before (Cosine) or after rotation (UnitQK).
      values: where values come from: `projected`, `first` (block 1), `input` (the layer's input,
        split into heads), or a module that mixes projected values with those of block 1.
    """

    def __init__(
        self,
        norms: tuple[Norm | None, Norm | None, Norm | None],
        *,
        over_heads: bool,
        scaling: Cosine | UnitQK | None,
        rotary: bool,
        values: str | ValueMix,
    ):
        self.q_norm, self.k_norm, self.v_norm = norms
        self.over_heads, self.rotary = over_heads, rotary
        self.cosine = scaling if isinstance(scaling, Cosine) else None
        self.unit_qk = scaling if isinstance(scaling, UnitQK) else None
        self.source = values if isinstance(values, str) else "projected"
        self.value_mix = None if isinstance(values, str) else values

    @property
    def projects_values(self) -> bool:
        """Whether values have a projection W_V."""
        return self.source == "projected"

    def __call__(
        self, qkv: tuple[jax.Array, ...], x: Callable[[], jax.Array], context: Context
    ) -> QKV:
        """Returns q, k and v.

        Args:
          qkv: q, k and v before the transforms, each (B, H, T, K); without W_V only q and k.
          x: returns attention's input, split into heads, (B, H, T, K).
        """
        v = self.value(self._values(qkv, x, context), context)
        return self.query(qkv[0], context), self.key(qkv[1], context), v

    def query(self, q: jax.Array, context: Context) -> jax.Array:
        """Returns the queries (B, H, T, K)."""
        if self.q_norm is not None:
            q = self._normed(self.q_norm, q)
        if self.cosine is not None:
            q = self.cosine.query(q)
        if self.rotary:
            q = rotate(q, context.positions)
        return q if self.unit_qk is None else self.unit_qk.query(q)

    def key(self, k: jax.Array, context: Context) -> jax.Array:
        """Returns the keys (B, H, S, K)."""
        if self.k_norm is not None:
            k = self._normed(self.k_norm, k)
        if self.cosine is not None:
            k = self.cosine.key(k)
        if self.rotary:
            k = rotate(k, context.positions)
        return k if self.unit_qk is None else self.unit_qk.key(k)

    def value(self, v: jax.Array, context: Context) -> jax.Array:
        """Returns the values (B, H, S, K)."""
        if self.v_norm is not None:
            v = self.v_norm(v)
        if self.value_mix is None:
            return v
        assert context.first_values is not None
        return self.value_mix(v, context.first_values)

    def _values(
        self, qkv: tuple[jax.Array, ...], x: Callable[[], jax.Array], context: Context
    ) -> jax.Array:
        if self.source == "projected":
            return qkv[2]
        if self.source == "input":
            return x()
        assert context.first_values is not None
        return context.first_values

    def _normed(self, norm: Norm, x_BHTK: jax.Array) -> jax.Array:
        if not self.over_heads:
            return norm(x_BHTK)
        x_BTHK = jnp.moveaxis(x_BHTK, 2, 1)
        y_BTD = norm(x_BTHK.reshape(*x_BTHK.shape[:2], -1))
        return jnp.moveaxis(y_BTD.reshape(x_BTHK.shape), 1, 2)


class Cosine(nnx.Module):
    """q and k of length 1, scores times exp(min(s, log 100)), one s per head, initially log 10.

    Liu et al. 2021 (Swin v2), section 3.2, and its code.
    """

    def __init__(self, n_head: int, dtype: str):
        self.unit = L2Norm(0, NormSpec("l2", UNIT_EPS, False, dtype))
        self.logit_scale = param(jnp.full(n_head, math.log(10.0)), Role.SCALAR, ("heads",))

    def query(self, q_BHTK: jax.Array) -> jax.Array:
        """Returns the queries, with the factor on the scores."""
        s_H = jnp.exp(jnp.minimum(self.logit_scale[...], math.log(MAX_LOGIT_SCALE)))
        return (self.unit(q_BHTK) * s_H[:, None, None]).astype(q_BHTK.dtype)

    def key(self, k_BHSK: jax.Array) -> jax.Array:
        """Returns the keys."""
        return self.unit(k_BHSK)


class UnitQK(nnx.Module):
    """q and k of length 1 times s sqrt(d), s initially 1/sqrt(d); scores times sqrt(K).

    Loshchilov et al. 2024 (nGPT), eqs. 15 and 16.
    """

    def __init__(self, n_head: int, head_dim: int, n_embd: int):
        self.sqrt_width, self.score_scale = n_embd**0.5, head_dim**0.5
        self.unit = L2Norm(head_dim, NormSpec("l2", UNIT_EPS, False, "float32"))
        initial = jnp.full((n_head, head_dim), n_embd**-0.5)
        self.factor = param(initial, Role.SCALAR, ("heads", "head_dim"))

    def query(self, q_BHTK: jax.Array) -> jax.Array:
        """Returns the queries, with the factor on the scores."""
        return (self.unit(q_BHTK) * self._s_H1K() * self.score_scale).astype(q_BHTK.dtype)

    def key(self, k_BHSK: jax.Array) -> jax.Array:
        """Returns the keys."""
        return (self.unit(k_BHSK) * self._s_H1K()).astype(k_BHSK.dtype)

    def _s_H1K(self) -> jax.Array:
        return (self.factor[...] * self.sqrt_width)[:, None, :]


class ValueMix(nnx.Module):
    """V <- a V_1 + b V, a = b = 1/2, fixed or learned (Zhou et al. 2024, ResFormer)."""

    def __init__(self, learned: bool):
        self.factors = param(jnp.full(2, 0.5), Role.SCALAR, (None,)) if learned else None

    def __call__(self, v: jax.Array, first: jax.Array) -> jax.Array:
        a, b = (0.5, 0.5) if self.factors is None else (self.factors[0], self.factors[1])
        return (a * first + b * v).astype(v.dtype)


class HeadOutput(nnx.Module):
    """Applied to the heads' outputs before W_O: a factor per head, then a norm over all heads.

    Args:
      n_head: number of learned factors; None for no factors.
    """

    def __init__(self, norm: Norm | None, n_head: int | None):
        self.inner = norm
        self.head_scale = (
            None if n_head is None else param(jnp.ones(n_head), Role.SCALAR, ("heads",))
        )

    def __call__(self, o_BTHK: jax.Array) -> jax.Array:
        if self.head_scale is not None:
            o_BTHK = (o_BTHK * self.head_scale[...][:, None]).astype(o_BTHK.dtype)
        if self.inner is None:
            return o_BTHK
        b, t, h, k = o_BTHK.shape
        return self.inner(o_BTHK.reshape(b, t, h * k)).reshape(b, t, h, k)


class ShapedWeights(nnx.Module):
    """M -> a I + b M - c C per head, a = b = c = 1 initially (He & Hofmann 2023, eq. 12).

    C is uniform over the tokens that a token may attend to; it equals M if all scores are equal.
    """

    def __init__(self, n_head: int):
        self.factors = param(jnp.ones((3, n_head, 1, 1)), Role.SCALAR, (None, "heads", None, None))

    def __call__(
        self, p_BHTS: jax.Array, allowed: jax.Array | None, diagonal_TS: jax.Array
    ) -> jax.Array:
        """Returns the weights (B, H, T, S); the masks are those of `Mask`."""
        a, b, c = self.factors[...]
        if allowed is None:
            allowed = jnp.ones_like(diagonal_TS, bool)
        uniform = allowed / jnp.maximum(allowed.sum(-1, keepdims=True), 1)
        return a * diagonal_TS + b * p_BHTS - c * uniform
