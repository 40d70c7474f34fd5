"""Next-token cross-entropy, in nats: the loss of training, evaluation and diagnostics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gpt2_jax.data.batch import Batch
from gpt2_jax.model.definition import ModelDef


def mean_loss(
    params: Any,
    model_def: ModelDef,
    batch: Batch,
    keys_B: jax.Array | None,
    step: jax.Array | int,
    total_weight: jax.Array | float | None = None,
) -> jax.Array:
    """Returns the `batch_loss` of a model after `step` steps.

    Args:
      keys_B: one dropout key per sequence, None for no dropout.
    """
    logits_BTV = model_def.bind(params)(batch.inputs_BT, keys_B, step)
    return batch_loss(logits_BTV, batch, total_weight)


def batch_loss(
    logits_BTV: jax.Array, batch: Batch, total_weight: jax.Array | float | None = None
) -> jax.Array:
    """Returns sum(w nll) / sum(w) over the predictions of a batch; all w are 1 without weights.

    Args:
      total_weight: divisor to use instead of this batch's sum(w). For part of a larger batch, it
        is computed from the whole batch; 1 returns the sum.
    """
    nll_BT = cross_entropy(logits_BTV, batch.targets_BT)
    if batch.weights_BT is not None:
        nll_BT = nll_BT * batch.weights_BT
        if total_weight is None:
            total_weight = batch.weights_BT.sum()
    return nll_BT.mean() if total_weight is None else nll_BT.sum() / total_weight


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns -log softmax(logits)[target] for each position, float32 (B, T).

    Targets are picked by comparison: the gradient of a gather is a scatter, for which a GPU would
    write all logits' gradients in float32 and read them again.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    is_target_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
    picked_BT = jnp.where(is_target_BTV, logits_BTV, 0.0).sum(-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT
