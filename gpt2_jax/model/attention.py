"""Causal multi-head self-attention (Vaswani et al. 2017, eq. 1), over a sequence or a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import ConfigDict, FrozenConfigDict

from gpt2_jax.model.parts import Init, Linear, dropout

Cache = tuple[jax.Array, jax.Array]  # keys and values, each (B, H, S, K)


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
        attend = self._fused if self.kernel == "cudnn" else self._plain
        return self.out(attend(x_BTD, keys_B))

    def _fused(self, x_BTD: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        # Takes the heads where the projection leaves them; raises rather than falls back.
        qkv_BT3HK = self.qkv(x_BTD)
        return jax.nn.dot_product_attention(
            *(qkv_BT3HK[:, :, i] for i in range(3)), is_causal=True, implementation="cudnn"
        )

    def _plain(self, x_BTD: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD)
        n = x_BTD.shape[1]
        mask_TT = jnp.tril(jnp.ones((n, n), bool))
        p_BHTT = jax.nn.softmax(masked_scores(q_BHTK, k_BHTK, mask_TT), axis=-1)
        return mix(dropout(p_BHTT, keys_B, self.rate, "attn.weights"), v_BHTK)

    def decode(
        self, x_BTD: jax.Array, cache: Cache, start: jax.Array | int
    ) -> tuple[jax.Array, Cache]:
        """Attends from positions start .. start+T-1 to all of the cache up to each of them."""
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD)
        k_BHSK = lax.dynamic_update_slice_in_dim(cache[0], k_BHTK, start, axis=2)
        v_BHSK = lax.dynamic_update_slice_in_dim(cache[1], v_BHTK, start, axis=2)
        positions_T = start + jnp.arange(x_BTD.shape[1])
        mask_TS = positions_T[:, None] >= jnp.arange(k_BHSK.shape[2])
        p_BHTS = jax.nn.softmax(masked_scores(q_BHTK, k_BHSK, mask_TS), axis=-1)
        return self.out(mix(p_BHTS, v_BHSK)), (k_BHSK, v_BHSK)

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns q, k and v, each (B, H, T, K): one transposition for all three."""
        qkv_3BHTK = self.qkv(x_BTD).transpose(2, 0, 3, 1, 4)
        return qkv_3BHTK[0], qkv_3BHTK[1], qkv_3BHTK[2]


def masked_scores(q_BHTK: jax.Array, k_BHSK: jax.Array, mask_TS: jax.Array) -> jax.Array:
    """Returns q k^T / sqrt(K) in float32, with the lowest float where the mask is False."""
    scale = q_BHTK.shape[-1] ** -0.5
    s_BHTS = jnp.einsum(
        "BHTK,BHSK->BHTS", q_BHTK * scale, k_BHSK, preferred_element_type=jnp.float32
    )
    return jnp.where(mask_TS, s_BHTS, jnp.finfo(jnp.float32).min)


def mix(p_BHTS: jax.Array, v_BHSK: jax.Array) -> jax.Array:
    """Returns the values weighted by the attention probabilities, (B, T, H, K)."""
    o_BHTK = jnp.einsum("BHTS,BHSK->BHTK", p_BHTS.astype(v_BHSK.dtype), v_BHSK)
    return o_BHTK.swapaxes(1, 2)
