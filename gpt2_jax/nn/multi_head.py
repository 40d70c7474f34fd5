"""Attention and multi-head attention for use on their own, with explicit masks.

    attention = MultiHeadAttention(64, 4, key=jax.random.key(0))
    y_BTD = attention(x_BTD, causal=True)                           # self-attention
    y_BTD = attention(x_BTD, memory_BSD, key_padding_mask=pad_BS)   # cross-attention

The model uses `nn.attention`, which adds caches, fused kernels and the variants of placements to
the same equation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.nn.attention import masked_scores, mix
from gpt2_jax.nn.linear import Linear
from gpt2_jax.nn.param import Axes, Init

HEADS = ("heads", "head_dim")


def attend(
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    *,
    mask: jax.Array | None = None,
    key_padding_mask: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """Returns softmax(scale q k^T + mask) v, (B, T, H, K) (Vaswani et al. 2017, eq. 1).

    A query attends to the keys that all masks allow. If there are none, it attends to all keys
    alike, so that its output is finite.

    Args:
      mask: booleans that broadcast to (B, H, T, S), True where query T may attend to key S.
      key_padding_mask: (B, S), True for keys that are padding, which no query attends to.
      causal: whether query T attends only to keys S <= T.
      scale: of the scores; None for 1/sqrt(K).
    """
    if mask is not None:
        _check_shape("mask", mask, (*q_BHTK.shape[:3], k_BHSK.shape[2]))
    if key_padding_mask is not None:
        _check_shape("key_padding_mask", key_padding_mask, (k_BHSK.shape[0], k_BHSK.shape[2]))
        real_B11S = ~key_padding_mask[:, None, None]
        mask = real_B11S if mask is None else mask & real_B11S
    if causal:
        earlier_TS = jnp.tril(jnp.ones((q_BHTK.shape[2], k_BHSK.shape[2]), bool))
        mask = earlier_TS if mask is None else mask & earlier_TS
    factor = jnp.float32(q_BHTK.shape[-1] ** -0.5 if scale is None else scale)
    scores_BHTS = masked_scores(q_BHTK, k_BHSK, factor, mask)
    return mix(jax.nn.softmax(scores_BHTS, axis=-1), v_BHSK)


class MultiHeadAttention(nnx.Module):
    """Projections to q, k and v, `attend` in each head, and the output projection.

    Parameters have the names and shapes of the model's attention. Initial matrices are Xavier's
    (Glorot & Bengio 2010, eq. 16), biases 0.

    Args:
      width: D, of the inputs and the output. n_head: heads, which must divide the width.
      key: of the initial values. dtype: of the computation; parameters are float32.

    Raises:
      ValueError: if the number of heads does not divide the width.
    """

    def __init__(self, width: int, n_head: int, *, key: jax.Array, dtype: str = "float32"):
        if width % n_head:
            raise ValueError(f"n_head={n_head} does not divide width={width}")
        heads, init, std = (n_head, width // n_head), Init(key), width**-0.5

        def linear(d_in: tuple[int, ...], d_out: tuple[int, ...], axes: Axes, site: str) -> Linear:
            return Linear(d_in, d_out, axes=axes, site=site, std=std, init=init, dtype=dtype)

        self.qkv = linear((width,), (3, *heads), ("embed", "qkv", *HEADS), "attn.qkv")
        self.out = linear(heads, (width,), (*HEADS, "embed"), "attn.out")

    def __call__(
        self,
        x_BTD: jax.Array,
        memory_BSD: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        key_padding_mask: jax.Array | None = None,
        causal: bool = False,
    ) -> jax.Array:
        """Returns the output (B, T, D).

        Args:
          memory_BSD: what keys and values are projections of; None for the input itself.

        The other arguments are those of `attend`.
        """
        memory_BSD = x_BTD if memory_BSD is None else memory_BSD
        q, k, v = (y.swapaxes(1, 2) for y in self.qkv.each((x_BTD, memory_BSD, memory_BSD)))
        o_BTHK = attend(q, k, v, mask=mask, key_padding_mask=key_padding_mask, causal=causal)
        return self.out(o_BTHK)


def _check_shape(name: str, mask: jax.Array, shape: tuple[int, ...]) -> None:
    """Raises ValueError if a mask is not boolean or does not broadcast to a shape."""
    if mask.dtype != jnp.bool_:
        raise ValueError(f"{name} must be boolean, not {mask.dtype}")
    try:
        broadcast = jnp.broadcast_shapes(mask.shape, shape)
    except ValueError:
        broadcast = ()
    if broadcast != shape:
        raise ValueError(f"{name} has shape {mask.shape}, which does not broadcast to {shape}")
