"""What a placement does inside attention: to q, k, v, and to the heads' outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.norm import UNIT_EPS, L2Norm, NormSpec
from gpt2_jax.model.parts import Context, Role
from gpt2_jax.model.plan import ATTN, Plan
from gpt2_jax.model.positions import rotate

QKV = tuple[jax.Array, jax.Array, jax.Array]
MAX_LOGIT_SCALE = 100.0


class Shaped(nnx.Module):
    """q, k, v -> q, k, v: norms, then rotation, then the values of block 1."""

    def __init__(self, plan: Plan):
        cfg, heads = plan.cfg, plan.cfg.n_head
        width = cfg.n_embd // heads
        self.rotary = plan.placement.positions == "rotary"
        self.borrows_values = plan.segment.values == "first"
        self.has_values = not (self.borrows_values or plan.placement.identity_values)
        self.scales_scores = plan.has("cosine", ATTN) or plan.has("unit_qk", ATTN)
        for site, over in (("qk", width), ("qk_full", cfg.n_embd), ("qkv", width)):
            if plan.has(site, ATTN):
                self.q_norm, self.k_norm = (plan.norm(site, ATTN, over) for _ in "qk")
        if plan.has("qkv", ATTN) and not self.borrows_values:  # block 1 has normed its own
            self.v_norm = plan.norm("qkv", ATTN, width)
        self.over_heads = plan.has("qk_full", ATTN)
        if plan.has("cosine", ATTN):
            self.cosine = Cosine(heads, cfg.dtype)
        if plan.has("unit_qk", ATTN):
            self.unit_qk = UnitQK(heads, width, cfg)
        if plan.segment.values in ("half", "learned"):
            self.value_mix = ValueMix(learned=plan.segment.values == "learned")

    def __call__(
        self, qkv: jax.Array, x: Callable[[], jax.Array], context: Context, time_axis: int
    ) -> QKV:
        """Returns q, k and v in the layout in which they came.

        Args:
          qkv: (3, B, H, T, K) with `time_axis` 2 or (3, B, T, H, K) with 1; (2, ...) where there
            is no W_V.
          x: what attention reads, in heads and in that layout.
        """
        q, k = qkv[0], qkv[1]
        v = context.values if self.borrows_values else qkv[2] if self.has_values else x()
        assert v is not None
        if hasattr(self, "q_norm"):
            q, k = self._normed(self.q_norm, q, time_axis), self._normed(self.k_norm, k, time_axis)
        if hasattr(self, "v_norm"):
            v = self.v_norm(v)
        if hasattr(self, "cosine"):
            q, k = self.cosine(q, k, time_axis)
        if self.rotary:
            q, k = (rotate(x, context.positions, time_axis) for x in (q, k))
        if hasattr(self, "unit_qk"):
            q, k = self.unit_qk(q, k, time_axis)
        if hasattr(self, "value_mix"):
            v = self.value_mix(v, context.values)
        return q, k, v

    def _normed(self, norm: nnx.Module, x: jax.Array, time_axis: int) -> jax.Array:
        if not self.over_heads:
            return norm(x)
        x_BTHK = jnp.moveaxis(x, time_axis, 1)
        y_BTD = norm(x_BTHK.reshape(*x_BTHK.shape[:2], -1))
        return jnp.moveaxis(y_BTD.reshape(x_BTHK.shape), 1, time_axis)


class Cosine(nnx.Module):
    """q and k of length 1, scores times exp(min(s, log 100)), one s a head, initially log 10.

    Liu et al. 2021 (Swin v2), section 3.2, and its code.
    """

    def __init__(self, heads: int, dtype: str):
        self.unit = L2Norm(0, NormSpec("l2", UNIT_EPS, False, dtype))
        self.logit_scale = nnx.Param(jnp.full(heads, math.log(10.0)), role=Role.SCALAR)

    def __call__(self, q: jax.Array, k: jax.Array, time_axis: int) -> tuple[jax.Array, jax.Array]:
        s_H = jnp.exp(jnp.minimum(self.logit_scale[...], math.log(MAX_LOGIT_SCALE)))
        s = s_H[:, None] if time_axis == 1 else s_H[:, None, None]
        return (self.unit(q) * s).astype(q.dtype), self.unit(k)


class UnitQK(nnx.Module):
    """q and k of length 1 times s sqrt(d), s initially 1/sqrt(d); scores times sqrt(K).

    Loshchilov et al. 2024 (nGPT), eqs. 15 and 16.
    """

    def __init__(self, heads: int, width: int, cfg: FrozenConfigDict):
        self.to_one, self.score_scale = cfg.n_embd**0.5, width**0.5
        self.unit = L2Norm(width, NormSpec("l2", UNIT_EPS, False, "float32"))
        first = jnp.full((heads, width), cfg.n_embd**-0.5)
        self.factor = nnx.Param(first, role=Role.SCALAR)

    def __call__(self, q: jax.Array, k: jax.Array, time_axis: int) -> tuple[jax.Array, jax.Array]:
        s = self.factor[...] * self.to_one
        s = s if time_axis == 1 else s[:, None, :]
        scaled = self.unit(q) * s * self.score_scale, self.unit(k) * s
        return scaled[0].astype(q.dtype), scaled[1].astype(k.dtype)


class ValueMix(nnx.Module):
    """V <- a V_1 + b V, a = b = 1/2 or learned from there (Zhou et al. 2024, ResFormer)."""

    def __init__(self, learned: bool):
        self.learned = learned
        if learned:
            self.factors = nnx.Param(jnp.full(2, 0.5), role=Role.SCALAR)

    def __call__(self, v: jax.Array, first: jax.Array | None) -> jax.Array:
        assert first is not None
        a, b = (self.factors[0], self.factors[1]) if self.learned else (0.5, 0.5)
        return (a * first + b * v).astype(v.dtype)


class Mixed(nnx.Module):
    """The heads' outputs before the output projection: a factor for each head, a norm over all."""

    def __init__(self, plan: Plan):
        self.inner = plan.norm("inner", ATTN)
        self.normed = plan.has("inner", ATTN)
        if plan.placement.head_scale:
            self.head_scale = nnx.Param(jnp.ones(plan.cfg.n_head), role=Role.SCALAR)

    def __call__(self, o_BTHK: jax.Array) -> jax.Array:
        if hasattr(self, "head_scale"):
            o_BTHK = (o_BTHK * self.head_scale[...][:, None]).astype(o_BTHK.dtype)
        if not self.normed:
            return o_BTHK
        b, t, h, k = o_BTHK.shape
        return self.inner(o_BTHK.reshape(b, t, h * k)).reshape(b, t, h, k)


class ShapedMap(nnx.Module):
    """M -> a I + b M - c C for each head, a = b = c = 1 at the start (He & Hofmann 2023, eq. 12).

    C is uniform over what a token may attend to, which is M itself where all scores are equal.
    """

    def __init__(self, heads: int):
        self.factors = nnx.Param(jnp.ones((3, heads, 1, 1)), role=Role.SCALAR)

    def __call__(self, p_BHTS: jax.Array, mask: jax.Array, own_TS: jax.Array) -> jax.Array:
        """Returns the weights (B, H, T, S).

        Args:
          mask: what is attended to. own_TS: which column each token itself is.
        """
        a, b, c = self.factors[...]
        uniform = mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)
        return a * own_TS + b * p_BHTS - c * uniform
