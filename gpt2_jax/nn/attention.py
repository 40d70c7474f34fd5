"""Multi-head attention (Vaswani et al. 2017, eq. 1), over sequences or a key-value cache.

`attend` and `MultiHeadAttention` in `nn.multi_head` are for use on their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.attention_kernels import fused_attention, supports
from gpt2_jax.nn.context import Context, KVCache, SublayerAux
from gpt2_jax.nn.dropout import dropout
from gpt2_jax.nn.inserts import Prefix
from gpt2_jax.nn.linear import Linear
from gpt2_jax.nn.masks import CacheMask, Mask, SequenceMask
from gpt2_jax.nn.products import product
from gpt2_jax.nn.qkv import HeadOutput, QKVTransform, ShapedWeights
from gpt2_jax.nn.tensor_parallel import is_tensor_parallel

# q, k and v, each (B, H, T or S, K), the mask, and what is known of the auxiliary outputs
Inputs = tuple[jax.Array, jax.Array, jax.Array, Mask, SublayerAux]
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
      cross: whether k and v are projections of `Context.memory` instead of the input.
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
        cross: bool = False,
        prefix: Prefix | None = None,
    ):
        self.cross, self.site = cross, "cross.weights" if cross else "attn.weights"
        self.qkv, self.out = qkv, out
        self.transform, self.heads, self.weights = transform, heads, weights
        self.kernel, self.separate, self.rate = kernel, separate, dropout
        self.product_dtype = product_dtype
        self.scale, self.by_layer, self.prefix = scale, by_layer, prefix

    def __call__(self, x_BTD: Input, context: Context) -> tuple[jax.Array, SublayerAux]:
        """Returns the output (B, T, D) and its `SublayerAux`."""
        if self.cross:
            q_BHTK, k_BHSK, v_BHSK, mask, aux = self._cross(x_BTD, context)
        else:
            q_BHTK, k_BHSK, v_BHSK, mask, aux = self._self(x_BTD, context)
        with jax.named_scope("attention"):
            fused = context.cache is None and context.observe is None and not self.cross
            if fused and supports(self.kernel, mask):
                o_BTHK = self._fused(q_BHTK, k_BHSK, v_BHSK, mask, context)
            else:
                o_BTHK, aux = self._plain((q_BHTK, k_BHSK, v_BHSK), mask, context, aux)
        o_BTHK = self.heads(o_BTHK)
        if self.out is None:
            return o_BTHK.reshape(*o_BTHK.shape[:2], -1), aux
        return self.out(o_BTHK), aux

    def _self(self, x_BTD: Input, context: Context) -> Inputs:
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD, context)
        aux = SublayerAux(values=v_BHTK)
        if context.cache is None:
            return q_BHTK, k_BHTK, v_BHTK, context.mask, aux
        assert isinstance(context.mask, CacheMask)
        cache = context.cache.write(k_BHTK, v_BHTK, context.mask.start)
        return q_BHTK, *cache, context.mask, aux._replace(cache=cache)

    def _cross(self, x_BTD: Input, context: Context) -> Inputs:
        assert context.memory is not None and not isinstance(x_BTD, tuple)
        memory = context.memory
        q_BHTK = self.qkv.parts(x_BTD, 0, 1)[:, :, 0].swapaxes(1, 2)
        cache = context.cross_cache
        if cache is None:
            assert memory.x_BSD is not None
            cache = self.project_memory(memory.x_BSD, context)
        return self.transform.query(q_BHTK, context), *cache, memory.mask, SublayerAux()

    def project_memory(self, x_BSD: jax.Array, context: Context) -> KVCache:
        """Returns keys and values of another tower's output."""
        if self.separate or is_tensor_parallel():
            kv = [self.qkv.parts(x_BSD, i, i + 1)[:, :, 0] for i in (1, 2)]
        else:
            kv = list(jnp.moveaxis(self.qkv.parts(x_BSD, 1, 3), 2, 0))
        k_BHSK, v_BHSK = (y_BSHK.swapaxes(1, 2) for y_BSHK in kv)
        return KVCache(self.transform.key(k_BHSK, context), self.transform.value(v_BHSK, context))

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
        self,
        q_BHTK: jax.Array,
        k_BHTK: jax.Array,
        v_BHTK: jax.Array,
        mask: Mask,
        context: Context,
    ) -> jax.Array:
        assert isinstance(mask, SequenceMask)
        scale = self.scale
        if self.by_layer:  # the kernel's scale must be a constant
            q_BHTK, scale = q_BHTK * self.score_scale(context).astype(q_BHTK.dtype), 1.0
        return fused_attention(self.kernel, q_BHTK, k_BHTK, v_BHTK, scale, mask)

    def _plain(
        self,
        qkv: tuple[jax.Array, jax.Array, jax.Array],
        mask: Mask,
        context: Context,
        aux: SublayerAux,
    ) -> tuple[jax.Array, SublayerAux]:
        q_BHTK, k_BHSK, v_BHSK = qkv
        sizes = q_BHTK.shape[2], k_BHSK.shape[2]
        allowed = mask.allowed(*sizes)
        if self.prefix is not None:
            k_BHSK, v_BHSK = self.prefix(k_BHSK, v_BHSK)
            allowed = self.prefix.seen_by_all(allowed)
        scale, dtype = self.score_scale(context), self.product_dtype
        scores_BHTS = masked_scores(q_BHTK, k_BHSK, scale, allowed, dtype)
        p_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
        if self.weights is not None:
            p_BHTS = self.weights(p_BHTS, allowed, mask.diagonal(*sizes))
        if context.observe is not None:
            assert isinstance(mask, SequenceMask)
            aux = observed(aux, scores_BHTS, mask)
        p_BHTS = dropout(p_BHTS, context.keys_B, self.rate, self.site)
        return mix(p_BHTS, v_BHSK, dtype), aux

    def score_scale(self, context: Context) -> jax.Array:
        """Returns the factor on the scores, float32."""
        divisor = context.layer + 1 if self.by_layer else 1
        return jnp.float32(self.scale) / divisor


def observed(aux: SublayerAux, scores_BHTS: jax.Array, mask: SequenceMask) -> SublayerAux:
    """Returns `aux` with the entropy and the largest score of the queries that are tokens."""
    entropy_BHT = jax.scipy.special.entr(jax.nn.softmax(scores_BHTS)).sum(-1)
    is_token_BT = mask.is_token()
    if is_token_BT is None:
        return aux._replace(entropy=entropy_BHT.mean(), largest_score=scores_BHTS.max())
    where = jnp.broadcast_to(is_token_BT[:, None], entropy_BHT.shape)
    lowest = jnp.finfo(jnp.float32).min
    largest = jnp.max(scores_BHTS, initial=lowest, where=where[..., None])
    return aux._replace(entropy=jnp.mean(entropy_BHT, where=where), largest_score=largest)


def masked_scores(
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    scale: jax.Array,
    allowed: jax.Array | None,
    product_dtype: str | None = None,
) -> jax.Array:
    """Returns scale q k^T in float32, with the lowest float where `allowed` is False.

    The lowest float is finite, so the weights of a query that attends to no key are uniform rather
    than NaN.
    """
    q_BHTK = q_BHTK * scale.astype(q_BHTK.dtype)
    equation = "BHTK,BHSK->BHTS"
    if product_dtype is None:
        s_BHTS = jnp.einsum(equation, q_BHTK, k_BHSK, preferred_element_type=jnp.float32)
    else:
        s_BHTS = product(equation, q_BHTK, k_BHSK, product_dtype)
    if allowed is None:
        return s_BHTS
    return jnp.where(allowed, s_BHTS, jnp.finfo(jnp.float32).min)


def mix(p_BHTS: jax.Array, v_BHSK: jax.Array, product_dtype: str | None = None) -> jax.Array:
    """Returns the values weighted by the attention probabilities, (B, T, H, K)."""
    equation = "BHTS,BHSK->BHTK"
    if product_dtype is None:
        o_BHTK = jnp.einsum(equation, p_BHTS.astype(v_BHSK.dtype), v_BHSK)
    else:
        o_BHTK = product(equation, p_BHTS, v_BHSK, product_dtype).astype(v_BHSK.dtype)
    return o_BHTK.swapaxes(1, 2)
