"""Causal multi-head self-attention (Vaswani et al. 2017, eq. 1), over a sequence or a cache."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import ConfigDict, FrozenConfigDict

from gpt2_jax.model.parts import Context, Init, Linear, dropout

Cache = tuple[jax.Array, jax.Array]  # keys and values, each (B, H, S, K)


class Span(NamedTuple):
    """Columns of a cache that are being computed, and what each of them may look at.

    Attributes:
      start: the first of them.
      mask_BTS: (B or 1, T, S), True where a column T attends to a cached column S.
    """

    start: jax.Array | int
    mask_BTS: jax.Array


def resolve_kernel(cfg: ConfigDict | FrozenConfigDict, platform: str) -> str:
    """Returns the kernel that `model.attention` means on a platform: "cudnn" or "xla".

    cuDNN's has no dropout on the attention weights and no float32.
    """
    if cfg.attention != "auto":
        return cfg.attention
    able = platform == "gpu" and cfg.dtype == "bfloat16" and cfg.dropout == 0.0
    return "cudnn" if able else "xla"


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(K) + causal mask) v, heads side by side, and the output projection.

    `scale_attn_weights=False` leaves out the 1/sqrt(K); `scale_attn_by_inverse_layer_idx` divides
    the scores of block l (from 1) by l besides (transformers' names; Karamcheti et al. 2021,
    Mistral).
    """

    def __init__(self, cfg: FrozenConfigDict, init: Init, out_std: float):
        width, heads = cfg.n_embd, cfg.n_head
        head_width = width // heads
        self.kernel, self.rate = resolve_kernel(cfg, jax.default_backend()), cfg.dropout
        self.scale = head_width**-0.5 if cfg.scale_attn_weights else 1.0
        self.by_layer = cfg.scale_attn_by_inverse_layer_idx
        self.qkv = Linear(
            (width,),
            (3, heads, head_width),
            site="attn.qkv",
            std=cfg.init_std,
            init=init,
            dtype=cfg.dtype,
            batch_axes=1,
        )
        self.out = Linear(
            (heads, head_width), (width,), site="attn.out", std=out_std, init=init, dtype=cfg.dtype
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        attend = self._fused if self.kernel == "cudnn" else self._plain
        return self.out(attend(x_BTD, context))

    def _fused(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        # Takes the heads where the projection leaves them; raises rather than falls back.
        q_BTHK, k_BTHK, v_BTHK = jnp.moveaxis(self.qkv(x_BTD), 2, 0)
        scale = self.scale
        if self.by_layer:  # the kernel's own scale is a constant
            q_BTHK, scale = q_BTHK * self.score_scale(context).astype(q_BTHK.dtype), 1.0
        return jax.nn.dot_product_attention(
            q_BTHK, k_BTHK, v_BTHK, scale=scale, is_causal=True, implementation="cudnn"
        )

    def _plain(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD)
        n = x_BTD.shape[1]
        mask_TT = jnp.tril(jnp.ones((n, n), bool))
        scores_BHTT = masked_scores(q_BHTK, k_BHTK, self.score_scale(context), mask_TT)
        p_BHTT = jax.nn.softmax(scores_BHTT, axis=-1)
        return mix(dropout(p_BHTT, context.keys_B, self.rate, "attn.weights"), v_BHTK)

    def decode(
        self, x_BTD: jax.Array, context: Context, cache: Cache, span: Span
    ) -> tuple[jax.Array, Cache]:
        """Writes the keys and values of `x_BTD` into the cache and attends to what is there."""
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD)
        k_BHSK = lax.dynamic_update_slice_in_dim(cache[0], k_BHTK, span.start, axis=2)
        v_BHSK = lax.dynamic_update_slice_in_dim(cache[1], v_BHTK, span.start, axis=2)
        scale, mask_B1TS = self.score_scale(context), span.mask_BTS[:, None]
        scores_BHTS = masked_scores(q_BHTK, k_BHSK, scale, mask_B1TS)
        return self.out(mix(jax.nn.softmax(scores_BHTS, axis=-1), v_BHSK)), (k_BHSK, v_BHSK)

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns q, k and v, each (B, H, T, K): one transposition for all three."""
        qkv_3BHTK = self.qkv(x_BTD).transpose(2, 0, 3, 1, 4)
        return qkv_3BHTK[0], qkv_3BHTK[1], qkv_3BHTK[2]

    def score_scale(self, context: Context) -> jax.Array:
        """Returns the factor of the scores, float32."""
        layers = context.layer + 1 if self.by_layer else 1
        return jnp.float32(self.scale) / layers


def masked_scores(
    q_BHTK: jax.Array, k_BHSK: jax.Array, scale: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns scale q k^T in float32, with the lowest float where the mask is False."""
    q_BHTK = q_BHTK * scale.astype(q_BHTK.dtype)
    s_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK, k_BHSK, preferred_element_type=jnp.float32)
    return jnp.where(mask, s_BHTS, jnp.finfo(jnp.float32).min)


def mix(p_BHTS: jax.Array, v_BHSK: jax.Array) -> jax.Array:
    """Returns the values weighted by the attention probabilities, (B, T, H, K)."""
    o_BHTK = jnp.einsum("BHTS,BHSK->BHTK", p_BHTS.astype(v_BHSK.dtype), v_BHSK)
    return o_BHTK.swapaxes(1, 2)
