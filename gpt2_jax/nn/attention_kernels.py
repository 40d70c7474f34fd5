"""Fused attention kernels: cuDNN's on NVIDIA GPUs, splash attention on TPUs.

They compute causal attention over whole sequences, and splash attention also over segments of them,
without an array of scores (Dao et al. 2022, FlashAttention). They neither transform the attention
weights nor drop any.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gpt2_jax.nn.masks import CAUSAL, Mask, SequenceMask
from gpt2_jax.nn.tensor_parallel import TENSOR, is_tensor_parallel

PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}  # of each kernel
SPLASH_LANES = 128  # splash attention's sequences are multiples of this
SPLASH_BLOCK = 512  # most positions per tile
SPLASH_RESULTS = "splash_attention"  # name by which a remat policy recognizes them


class Kernel(Protocol):
    """A fused attention kernel."""

    def __call__(
        self,
        q_BHTK: jax.Array,
        k_BHTK: jax.Array,
        v_BHTK: jax.Array,
        segments_BT: jax.Array | None,
        *,
        scale: float,
    ) -> jax.Array:
        """Returns softmax(scale q k^T + mask) v, (B, T, H, K)."""


def supports(kernel: str, mask: Mask) -> bool:
    """Returns whether a kernel is fused and computes attention with this mask."""
    if kernel not in KERNELS or not isinstance(mask, SequenceMask):
        return False
    if not mask.causal or mask.keys_BS is not None or mask.prefix_BS is not None:
        return False
    return kernel == "splash" or mask.queries_BT is None


def fused_attention(
    kernel: str,
    q_BHTK: jax.Array,
    k_BHTK: jax.Array,
    v_BHTK: jax.Array,
    scale: float,
    mask: SequenceMask = CAUSAL,
) -> jax.Array:
    """Returns softmax(scale q k^T + mask) v, (B, T, H, K).

    Args:
      kernel: a key of `KERNELS`.
      mask: one that `supports` accepts.
    """
    attend = partial(KERNELS[kernel], scale=scale)
    if is_tensor_parallel():  # XLA cannot divide the kernel's call itself
        heads = PartitionSpec(None, TENSOR)
        attend = jax.shard_map(
            attend,
            in_specs=(heads, heads, heads, PartitionSpec()),
            out_specs=PartitionSpec(None, None, TENSOR),
            axis_names={TENSOR},
            check_vma=False,
        )
    return attend(q_BHTK, k_BHTK, v_BHTK, mask.queries_BT)


def cudnn(
    q_BHTK: jax.Array,
    k_BHTK: jax.Array,
    v_BHTK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    scale: float,
) -> jax.Array:
    """Returns cuDNN's attention, (B, T, H, K)."""
    assert segments_BT is None
    q_BTHK, k_BTHK, v_BTHK = (x.swapaxes(1, 2) for x in (q_BHTK, k_BHTK, v_BHTK))
    return jax.nn.dot_product_attention(
        q_BTHK, k_BTHK, v_BTHK, scale=scale, is_causal=True, implementation="cudnn"
    )


def splash(
    q_BHTK: jax.Array,
    k_BHTK: jax.Array,
    v_BHTK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    scale: float,
) -> jax.Array:
    """Returns jax's splash attention, (B, T, H, K).

    Sequences are padded to a multiple of `SPLASH_LANES`; no position attends to a later one, so
    the padding changes no result.
    """
    # Imported here, so that other devices do not depend on Pallas.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    n_head, t = q_BHTK.shape[1:3]
    padding = -t % SPLASH_LANES
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))
    segments = None
    if segments_BT is not None:
        padded_BT = jnp.pad(segments_BT, ((0, 0), (0, padding)))
        segments = kernels.SegmentIds(padded_BT, padded_BT)
    size = t + padding
    block = max(b for b in range(SPLASH_LANES, SPLASH_BLOCK + 1, SPLASH_LANES) if size % b == 0)
    attend = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((size, size))] * n_head),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        residual_checkpoint_name=SPLASH_RESULTS,
    )
    q_BHTK = q_BHTK * jnp.asarray(scale, q_BHTK.dtype)
    o_BHTK = jax.vmap(attend)(*map(pad, (q_BHTK, k_BHTK, v_BHTK)), segments)
    return o_BHTK[:, :, :t].swapaxes(1, 2)


KERNELS: dict[str, Kernel] = {"cudnn": cudnn, "splash": splash}
