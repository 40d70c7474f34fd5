"""Causal multi-head self-attention (Vaswani et al. 2017, eq. 1), over a sequence or a cache."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import ConfigDict, FrozenConfigDict

from gpt2_jax.model.heads import Mixed, Shaped, ShapedMap
from gpt2_jax.model.parametrization import score_exponent
from gpt2_jax.model.parts import Context, Linear, dropout
from gpt2_jax.model.placements.resolve import resolve
from gpt2_jax.model.plan import ATTN, Plan

Input = jax.Array | tuple[jax.Array, ...]  # (B, T, D), or one for each of q, k and v
Cache = tuple[jax.Array, jax.Array]  # keys and values, each (B, H, S, K)


class Span(NamedTuple):
    """Columns of a cache that are being computed, and what each of them may look at.

    Attributes:
      start: the first of them.
      mask_BTS: (B or 1, T, S), True where a column T attends to a cached column S.
    """

    start: jax.Array | int
    mask_BTS: jax.Array


class Past(NamedTuple):
    """A cache of keys and values, and the span of its columns that is being computed."""

    cache: Cache
    span: Span


class Left(NamedTuple):
    """What attention leaves besides its output.

    Attributes:
      values: as they were mixed, for blocks that use those of block 1.
      cache: the new one, where there was one.
      branches: what attention's branch and the MLP's were given and gave, where asked for.
      entropy: of the attention weights, nats, mean over heads and tokens, where asked for.
      largest_score: before the softmax, where asked for.
    """

    values: jax.Array
    cache: Cache | None = None
    branches: tuple[tuple[jax.Array, jax.Array], ...] = ()
    entropy: jax.Array | None = None
    largest_score: jax.Array | None = None


def resolve_kernel(cfg: ConfigDict | FrozenConfigDict, platform: str) -> str:
    """Returns the kernel that `model.attention` means on a platform: "cudnn" or "xla".

    cuDNN's has no dropout on the attention weights, no other shape of them, and no float32.
    """
    if cfg.attention != "auto":
        return cfg.attention
    usual = cfg.dropout == 0.0 and not resolve(cfg).shaped_attention
    able = platform == "gpu" and cfg.dtype == "bfloat16" and usual
    return "cudnn" if able else "xla"


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(K) + causal mask) v, heads side by side, and the output projection.

    `scale_attn_weights=False` leaves out the 1/sqrt(K); `scale_attn_by_inverse_layer_idx` divides
    the scores of block l (from 1) by l besides (transformers' names; Karamcheti et al. 2021,
    Mistral). What a placement does to q, k, v and to the heads' outputs is in `heads`.
    """

    def __init__(self, plan: Plan):
        cfg, placement = plan.cfg, plan.placement
        width, heads = cfg.n_embd, cfg.n_head
        head_width = width // heads
        self.kernel, self.rate = resolve_kernel(cfg, jax.default_backend()), cfg.dropout
        self.scale = head_width ** score_exponent(placement) if cfg.scale_attn_weights else 1.0
        self.by_layer = cfg.scale_attn_by_inverse_layer_idx
        self.shaped = Shaped(plan)
        if self.shaped.scales_scores:
            self.scale, self.by_layer = 1.0, False
        n = 3 if self.shaped.has_values else 2
        self.qkv = Linear(
            (width,),
            (n, heads, head_width),
            site="attn.qkv",
            std=self._stds(plan)[:n],
            init=plan.init,
            dtype=cfg.dtype,
            batch_axes=1,
            width="in",
        )
        self.mixed = Mixed(plan)
        if placement.shaped_attention:
            self.map = ShapedMap(heads)
        if not placement.identity_values:
            self.out = Linear(
                (heads, head_width),
                (width,),
                site="attn.out",
                std=plan.std(placement.residual_init, width, width, ATTN),
                init=plan.init,
                dtype=cfg.dtype,
                width="out",
            )

    @staticmethod
    def _stds(plan: Plan) -> jax.Array:
        """Returns the std of the initial W_Q, W_K and W_V, (3, 1, 1)."""
        width, placement = plan.cfg.n_embd, plan.placement
        factors = (placement.query_init, placement.key_init, placement.value_init)
        stds = [jnp.float32(plan.std(factor, width, width, ATTN)) for factor in factors]
        return jnp.stack(stds)[:, None, None]

    def __call__(
        self, x_BTD: Input, context: Context, past: Past | None = None
    ) -> tuple[jax.Array, Left]:
        """Returns the output (B, T, D), and what attention leaves behind.

        Args:
          past: the columns of a cache that `x_BTD` stands in; None for whole sequences.
        """
        if past is not None:
            o_BTHK, left = self._over_cache(x_BTD, context, past)
        elif self.kernel == "cudnn" and context.probe is None:
            o_BTHK, left = self._fused(x_BTD, context)
        else:
            o_BTHK, left = self._plain(x_BTD, context)
        o_BTHK = self.mixed(o_BTHK)
        if not hasattr(self, "out"):
            return o_BTHK.reshape(*o_BTHK.shape[:2], -1), left
        return self.out(o_BTHK), left

    def _fused(self, x_BTD: Input, context: Context) -> tuple[jax.Array, Left]:
        # Takes the heads where the projection leaves them; raises rather than falls back.
        qkv_3BTHK = jnp.moveaxis(self.all_three(x_BTD), 2, 0)
        x_BTHK = lambda: self.in_heads(x_BTD)
        q_BTHK, k_BTHK, v_BTHK = self.shaped(qkv_3BTHK, x_BTHK, context, 1)
        scale = self.scale
        if self.by_layer:  # the kernel's own scale is a constant
            q_BTHK, scale = q_BTHK * self.score_scale(context).astype(q_BTHK.dtype), 1.0
        o_BTHK = jax.nn.dot_product_attention(
            q_BTHK, k_BTHK, v_BTHK, scale=scale, is_causal=True, implementation="cudnn"
        )
        return o_BTHK, Left(values=v_BTHK)

    def _plain(self, x_BTD: Input, context: Context) -> tuple[jax.Array, Left]:
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD, context)
        n = q_BHTK.shape[2]
        mask_TT = jnp.tril(jnp.ones((n, n), bool))
        scores_BHTT = masked_scores(q_BHTK, k_BHTK, self.score_scale(context), mask_TT)
        p_BHTT = self.weigh(scores_BHTT, mask_TT, jnp.eye(n))
        left = Left(values=v_BHTK)
        if context.probe is not None:
            nats_BHT = jax.scipy.special.entr(jax.nn.softmax(scores_BHTT)).sum(-1)
            left = left._replace(entropy=nats_BHT.mean(), largest_score=scores_BHTT.max())
        p_BHTT = dropout(p_BHTT, context.keys_B, self.rate, "attn.weights")
        return mix(p_BHTT, v_BHTK), left

    def _over_cache(self, x_BTD: Input, context: Context, past: Past) -> tuple[jax.Array, Left]:
        """Writes the keys and values of `x_BTD` into the cache and attends to what is there."""
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD, context)
        (k_BHSK, v_BHSK), (start, mask_BTS) = past.cache, past.span
        k_BHSK = lax.dynamic_update_slice_in_dim(k_BHSK, k_BHTK, start, axis=2)
        v_BHSK = lax.dynamic_update_slice_in_dim(v_BHSK, v_BHTK, start, axis=2)
        mask_B1TS = mask_BTS[:, None]
        scores_BHTS = masked_scores(q_BHTK, k_BHSK, self.score_scale(context), mask_B1TS)
        columns_T = start + jnp.arange(q_BHTK.shape[2])
        own_TS = jnp.arange(k_BHSK.shape[2]) == columns_T[:, None]
        p_BHTS = self.weigh(scores_BHTS, mask_B1TS, own_TS)
        return mix(p_BHTS, v_BHSK), Left(v_BHTK, (k_BHSK, v_BHSK))

    def weigh(self, scores_BHTS: jax.Array, mask: jax.Array, own_TS: jax.Array) -> jax.Array:
        """Returns the weights of cached columns, float32; `own_TS` is each token's own."""
        p_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
        return self.map(p_BHTS, mask, own_TS) if hasattr(self, "map") else p_BHTS

    def project(self, x_BTD: Input, context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns q, k and v, each (B, H, T, K): one transposition for all three."""
        x_BHTK = lambda: self.in_heads(x_BTD).swapaxes(1, 2)
        return self.shaped(self.all_three(x_BTD).transpose(2, 0, 3, 1, 4), x_BHTK, context, 2)

    def all_three(self, x_BTD: Input) -> jax.Array:
        """Returns q, k and v side by side, (B, T, 3, H, K), of one input or of one for each."""
        return self.qkv.each(x_BTD) if isinstance(x_BTD, tuple) else self.qkv(x_BTD)

    def in_heads(self, x_BTD: Input) -> jax.Array:
        """Returns what values are read from, cut into heads, (B, T, H, K)."""
        x_BTD = x_BTD[-1] if isinstance(x_BTD, tuple) else x_BTD
        return x_BTD.reshape(*x_BTD.shape[:-1], *self.qkv.d_out[1:])

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
