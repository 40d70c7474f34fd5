"""The mean loss of a batch: what training, evaluation and diagnostics measure."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gpt2_jax.data.batch import Batch
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.tasks.losses import PLAIN, AnyBatch, LossOptions, batch_nll, logits_nll, tokens_nll
from gpt2_jax.train.distillation import BoundTeacher


def mean_loss(
    params: Any,
    model_def: ModelDef,
    batch: AnyBatch,
    keys_B: jax.Array | None,
    step: jax.Array | int,
    total_weight: jax.Array | float | None = None,
    options: LossOptions = PLAIN,
    teacher: BoundTeacher | None = None,
) -> jax.Array:
    """Returns sum(w nll) / sum(w) over the targets of a batch, of a model after `step` steps.

    Args:
      keys_B: one dropout key per sequence, None for no dropout.
      total_weight: as in `batch_loss`.
      teacher: a model whose predictions of a `Batch` count in the loss as well; None for none.
    """
    model = model_def.bind(params)
    if teacher is None:
        nll = batch_nll(model, batch, keys_B, step, options)
    else:
        assert isinstance(batch, Batch)
        nll = _distilled_nll(model, batch, keys_B, step, options, teacher)
    return weighted_mean(nll, batch.weights, total_weight)


def _distilled_nll(
    model: Any,
    batch: Batch,
    keys_B: jax.Array | None,
    step: jax.Array | int,
    options: LossOptions,
    teacher: BoundTeacher,
) -> jax.Array:
    hidden_BTD = model.hidden(batch.inputs_BT, keys_B, step)
    with jax.named_scope("loss"):
        nll_BT = tokens_nll(model, hidden_BTD, batch, options)
        return teacher.mixed(nll_BT, model.logits(hidden_BTD), batch.inputs_BT)


def batch_loss(
    logits: jax.Array, batch: AnyBatch, total_weight: jax.Array | float | None = None
) -> jax.Array:
    """Returns sum(w nll) / sum(w) over the predictions of a batch; all w are 1 without weights.

    Args:
      logits: as in `logits_nll`.
      total_weight: divisor to use instead of this batch's sum(w). For part of a larger batch, it
        is computed from the whole batch; 1 returns the sum.
    """
    return weighted_mean(logits_nll(logits, batch), batch.weights, total_weight)


def weighted_mean(
    nll: jax.Array, weights: jax.Array | None, total_weight: jax.Array | float | None
) -> jax.Array:
    """Returns sum(w nll) / sum(w), 0 if all w are 0; without weights, all w are 1.

    Args:
      total_weight: as in `batch_loss`.
    """
    if weights is not None:
        nll = nll * weights
        if total_weight is None:
            total_weight = nonzero(weights.sum())
    return nll.mean() if total_weight is None else nll.sum() / total_weight


def nonzero(total_weight: jax.Array) -> jax.Array:
    """Returns a divisor for a sum of weighted losses, which is 0 if there are no targets."""
    return jnp.where(total_weight > 0, total_weight, 1.0)
