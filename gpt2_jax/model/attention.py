"""Causal multi-head self-attention (Vaswani et al. 2017, eq. 1), over a sequence or a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import ConfigDict, FrozenConfigDict

from gpt2_jax.model.parts import Init, Linear, dropout

Cache = tuple[jax.Array, jax.Array]  # keys and values, each (B, S, H, K)


def resolve_kernel(cfg: ConfigDict | FrozenConfigDict, platform: str) -> str:
    """Returns the kernel that `model.attention` means on a platform: "cudnn" or "xla".

    cuDNN's has no dropout on the attention weights and no float32.
    """
    if cfg.attention != "auto":
        return cfg.attention
    able = platform == "gpu" and cfg.dtype == "bfloat16" and cfg.dropout == 0.0
    return "cudnn" if able else "xla"


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(K) + causal mask) v, heads side by side, and the output projection."""

    def __init__(self, cfg: FrozenConfigDict, init: Init, out_std: float):
        width, heads = cfg.n_embd, cfg.n_head
        head_width = width // heads
        self.kernel, self.rate = resolve_kernel(cfg, jax.default_backend()), cfg.dropout
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

    def __call__(self, x_BTD: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        q_BTHK, k_BTHK, v_BTHK = self.project(x_BTD)
        if self.kernel == "cudnn":
            # Raises rather than falls back where the kernel cannot be had.
            o_BTHK = jax.nn.dot_product_attention(
                q_BTHK, k_BTHK, v_BTHK, is_causal=True, implementation="cudnn"
            )
        else:
            n = q_BTHK.shape[1]
            mask_TT = jnp.tril(jnp.ones((n, n), bool))
            p_BHTT = jax.nn.softmax(masked_scores(q_BTHK, k_BTHK, mask_TT), axis=-1)
            o_BTHK = mix(dropout(p_BHTT, keys_B, self.rate, "attn.weights"), v_BTHK)
        return self.out(o_BTHK)

    def decode(
        self, x_BTD: jax.Array, cache: Cache, start: jax.Array | int
    ) -> tuple[jax.Array, Cache]:
        """Attends from positions start .. start+T-1 to all of the cache up to each of them."""
        q_BTHK, k_BTHK, v_BTHK = self.project(x_BTD)
        k_BSHK = lax.dynamic_update_slice_in_dim(cache[0], k_BTHK, start, axis=1)
        v_BSHK = lax.dynamic_update_slice_in_dim(cache[1], v_BTHK, start, axis=1)
        positions_T = start + jnp.arange(x_BTD.shape[1])
        mask_TS = positions_T[:, None] >= jnp.arange(k_BSHK.shape[1])
        p_BHTS = jax.nn.softmax(masked_scores(q_BTHK, k_BSHK, mask_TS), axis=-1)
        return self.out(mix(p_BHTS, v_BSHK)), (k_BSHK, v_BSHK)

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns q, k and v, each (B, T, H, K)."""
        qkv_BT3HK = self.qkv(x_BTD)
        return qkv_BT3HK[:, :, 0], qkv_BT3HK[:, :, 1], qkv_BT3HK[:, :, 2]


def masked_scores(q_BTHK: jax.Array, k_BSHK: jax.Array, mask_TS: jax.Array) -> jax.Array:
    """Returns q k^T / sqrt(K) in float32, with the lowest float where the mask is False."""
    scale = q_BTHK.shape[-1] ** -0.5
    s_BHTS = jnp.einsum(
        "BTHK,BSHK->BHTS", q_BTHK * scale, k_BSHK, preferred_element_type=jnp.float32
    )
    return jnp.where(mask_TS, s_BHTS, jnp.finfo(jnp.float32).min)


def mix(p_BHTS: jax.Array, v_BSHK: jax.Array) -> jax.Array:
    """Returns the values weighted by the attention probabilities, (B, T, H, K)."""
    return jnp.einsum("BHTS,BSHK->BTHK", p_BHTS.astype(v_BSHK.dtype), v_BSHK)
