"""The mean loss of a batch: what training, evaluation and diagnostics measure."""

from __future__ import annotations

from typing import Any

import jax

from gpt2_jax.data.batch import Batch
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.nn.loss import cross_entropy
from gpt2_jax.tasks.losses import PLAIN, AnyBatch, LossOptions, batch_nll


def mean_loss(
    params: Any,
    model_def: ModelDef,
    batch: AnyBatch,
    keys_B: jax.Array | None,
    step: jax.Array | int,
    total_weight: jax.Array | float | None = None,
    options: LossOptions = PLAIN,
) -> jax.Array:
    """Returns sum(w nll) / sum(w) over the targets of a batch, of a model after `step` steps.

    Args:
      keys_B: one dropout key per sequence, None for no dropout.
      total_weight: as in `batch_loss`.
    """
    nll = batch_nll(model_def.bind(params), batch, keys_B, step, options)
    return weighted_mean(nll, batch.weights, total_weight)


def batch_loss(
    logits_BTV: jax.Array, batch: Batch, total_weight: jax.Array | float | None = None
) -> jax.Array:
    """Returns sum(w nll) / sum(w) over the predictions of a batch; all w are 1 without weights.

    Args:
      total_weight: divisor to use instead of this batch's sum(w). For part of a larger batch, it
        is computed from the whole batch; 1 returns the sum.
    """
    nll_BT = cross_entropy(logits_BTV, batch.targets_BT)
    return weighted_mean(nll_BT, batch.weights, total_weight)


def weighted_mean(
    nll: jax.Array, weights: jax.Array | None, total_weight: jax.Array | float | None
) -> jax.Array:
    """Returns sum(w nll) / sum(w); without weights, all w are 1.

    Args:
      total_weight: as in `batch_loss`.
    """
    if weights is not None:
        nll = nll * weights
        if total_weight is None:
            total_weight = weights.sum()
    return nll.mean() if total_weight is None else nll.sum() / total_weight
