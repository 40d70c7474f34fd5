"""Multi-head self-attention (Vaswani et al. 2017, eq. 1), over a sequence or a key-value cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.attention_kernels import fused_attention
from gpt2_jax.nn.context import CacheMask, CausalMask, Context, PackedMask, SublayerAux
from gpt2_jax.nn.dropout import dropout
from gpt2_jax.nn.inserts import Prefix
from gpt2_jax.nn.linear import Linear
from gpt2_jax.nn.products import product
from gpt2_jax.nn.qkv import HeadOutput, QKVTransform, ShapedWeights
from gpt2_jax.nn.tensor_parallel import is_tensor_parallel

Input = jax.Array | tuple[jax.Array, ...]  # (B, T, D), or one such array for each of q, k and v


class Attention(nnx.Module):
    """softmax(scale q k^T + mask) v per head, and the output projection.

    Args:
      qkv: projects to (3, H, K), or (2, H, K) if values are not projected. out: W_O, or None.
      weights: transforms the attention weights, or None.
      kernel: `xla`, or a fused kernel for whole sequences, `cudnn` or `splash`. separate: whether
        q, k and v are always separate products, whose results need no copy; a single product is
        faster on a CPU.
      product_dtype: of the products with q, k and v, as in `Linear`; fused kernels ignore it.
      scale: factor on the scores. by_layer: whether those of block l (from 1) are also divided by l
        (`scale_attn_by_inverse_layer_idx` in transformers; Karamcheti et al. 2021, Mistral).
      dropout: rate on the attention weights.
      prefix: learned keys and values before those of the tokens, or None.
    """

    def __init__(
        self,
        qkv: Linear,
        out: Linear | None,
        *,
        transform: QKVTransform,
        heads: HeadOutput,
        weights: ShapedWeights | None,
        kernel: str,
        separate: bool,
        product_dtype: str | None,
        scale: float,
        by_layer: bool,
        dropout: float,
        prefix: Prefix | None = None,
    ):
        self.qkv, self.out = qkv, out
        self.transform, self.heads, self.weights = transform, heads, weights
        self.kernel, self.separate, self.rate = kernel, separate, dropout
        self.product_dtype = product_dtype
        self.scale, self.by_layer, self.prefix = scale, by_layer, prefix

    def __call__(self, x_BTD: Input, context: Context) -> tuple[jax.Array, SublayerAux]:
        """Returns the output (B, T, D) and its `SublayerAux`."""
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD, context)
        k_BHSK, v_BHSK, aux = k_BHTK, v_BHTK, SublayerAux(values=v_BHTK)
        if context.cache is not None:
            assert isinstance(context.mask, CacheMask)
            cache = context.cache.write(k_BHTK, v_BHTK, context.mask.start)
            k_BHSK, v_BHSK = cache
            aux = aux._replace(cache=cache)
        with jax.named_scope("attention"):
            if self.kernel != "xla" and context.cache is None and context.observe is None:
                o_BTHK = self._fused(q_BHTK, k_BHSK, v_BHSK, context)
            else:
                o_BTHK, aux = self._plain(q_BHTK, k_BHSK, v_BHSK, context, aux)
        o_BTHK = self.heads(o_BTHK)
        if self.out is None:
            return o_BTHK.reshape(*o_BTHK.shape[:2], -1), aux
        return self.out(o_BTHK), aux

    def project(self, x_BTD: Input, context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns q, k and v, each (B, H, T, K)."""
        in_heads = lambda: self._in_heads(x_BTD)
        # A single product would be gathered: its columns are not ordered by head.
        if (self.separate or is_tensor_parallel()) and not isinstance(x_BTD, tuple):
            x_BTD = (x_BTD,) * 3
        if isinstance(x_BTD, tuple):
            qkv = tuple(y_BTHK.swapaxes(1, 2) for y_BTHK in self.qkv.each(x_BTD))
        else:
            qkv = tuple(self.qkv(x_BTD).transpose(2, 0, 3, 1, 4))
        return self.transform(qkv, in_heads, context)

    def _in_heads(self, x_BTD: Input) -> jax.Array:
        """Returns the input of the values, split into heads, (B, H, T, K)."""
        x_BTD = x_BTD[-1] if isinstance(x_BTD, tuple) else x_BTD
        return x_BTD.reshape(*x_BTD.shape[:-1], *self.qkv.d_out[1:]).swapaxes(1, 2)

    def _fused(
        self, q_BHTK: jax.Array, k_BHTK: jax.Array, v_BHTK: jax.Array, context: Context
    ) -> jax.Array:
        assert isinstance(context.mask, CausalMask | PackedMask)  # of whole sequences
        mask = context.mask
        documents_BT = mask.documents_BT if isinstance(mask, PackedMask) else None
        scale = self.scale
        if self.by_layer:  # the kernel's scale must be a constant
            q_BHTK, scale = q_BHTK * self.score_scale(context).astype(q_BHTK.dtype), 1.0
        return fused_attention(self.kernel, q_BHTK, k_BHTK, v_BHTK, scale, documents_BT)

    def _plain(
        self,
        q_BHTK: jax.Array,
        k_BHSK: jax.Array,
        v_BHSK: jax.Array,
        context: Context,
        aux: SublayerAux,
    ) -> tuple[jax.Array, SublayerAux]:
        sizes = q_BHTK.shape[2], k_BHSK.shape[2]
        allowed = context.mask.allowed(*sizes)
        if self.prefix is not None:
            k_BHSK, v_BHSK = self.prefix(k_BHSK, v_BHSK)
            allowed = self.prefix.seen_by_all(allowed)
        scale, dtype = self.score_scale(context), self.product_dtype
        scores_BHTS = masked_scores(q_BHTK, k_BHSK, scale, allowed, dtype)
        p_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
        if self.weights is not None:
            p_BHTS = self.weights(p_BHTS, allowed, context.mask.diagonal(*sizes))
        if context.observe is not None:
            entropy_BHT = jax.scipy.special.entr(jax.nn.softmax(scores_BHTS)).sum(-1)
            aux = aux._replace(entropy=entropy_BHT.mean(), largest_score=scores_BHTS.max())
        p_BHTS = dropout(p_BHTS, context.keys_B, self.rate, "attn.weights")
        return mix(p_BHTS, v_BHSK, dtype), aux

    def score_scale(self, context: Context) -> jax.Array:
        """Returns the factor on the scores, float32."""
        divisor = context.layer + 1 if self.by_layer else 1
        return jnp.float32(self.scale) / divisor


def masked_scores(
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    scale: jax.Array,
    allowed: jax.Array,
    product_dtype: str | None = None,
) -> jax.Array:
    """Returns scale q k^T in float32, with the lowest float where `allowed` is False."""
    q_BHTK = q_BHTK * scale.astype(q_BHTK.dtype)
    equation = "BHTK,BHSK->BHTS"
    if product_dtype is None:
        s_BHTS = jnp.einsum(equation, q_BHTK, k_BHSK, preferred_element_type=jnp.float32)
    else:
        s_BHTS = product(equation, q_BHTK, k_BHSK, product_dtype)
    return jnp.where(allowed, s_BHTS, jnp.finfo(jnp.float32).min)


def mix(p_BHTS: jax.Array, v_BHSK: jax.Array, product_dtype: str | None = None) -> jax.Array:
    """Returns the values weighted by the attention probabilities, (B, T, H, K)."""
    equation = "BHTS,BHSK->BHTK"
    if product_dtype is None:
        o_BHTK = jnp.einsum(equation, p_BHTS.astype(v_BHSK.dtype), v_BHSK)
    else:
        o_BHTK = product(equation, p_BHTS, v_BHSK, product_dtype).astype(v_BHSK.dtype)
    return o_BHTK.swapaxes(1, 2)
