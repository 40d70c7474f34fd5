"""Next-token cross-entropy, in nats: the loss of training, evaluation and diagnostics."""

from __future__ import annotations

from typing import Any

import jax

from gpt2_jax.data.batch import Batch
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.nn.loss import cross_entropy
from gpt2_jax.train.distillation import BoundTeacher


def mean_loss(
    params: Any,
    model_def: ModelDef,
    batch: Batch,
    keys_B: jax.Array | None,
    step: jax.Array | int,
    total_weight: jax.Array | float | None = None,
    z_loss: float = 0.0,
    teacher: BoundTeacher | None = None,
) -> jax.Array:
    """Returns the `batch_loss` of a model after `step` steps, with `z_loss` as in `cross_entropy`.

    Args:
      keys_B: one dropout key per sequence, None for no dropout.
      teacher: a model whose predictions count in the loss as well; None for none.
    """
    model = model_def.bind(params)
    hidden_BTD = model.hidden(batch.inputs_BT, keys_B, step)
    with jax.named_scope("loss"):
        nll_BT = model.nll(hidden_BTD, batch.targets_BT, z_loss)
        if teacher is not None:
            nll_BT = teacher.mixed(nll_BT, model.logits(hidden_BTD), batch.inputs_BT)
        return weighted_mean(nll_BT, batch, total_weight)


def batch_loss(
    logits_BTV: jax.Array, batch: Batch, total_weight: jax.Array | float | None = None
) -> jax.Array:
    """Returns sum(w nll) / sum(w) over the predictions of a batch; all w are 1 without weights.

    Args:
      total_weight: divisor to use instead of this batch's sum(w). For part of a larger batch, it
        is computed from the whole batch; 1 returns the sum.
    """
    return weighted_mean(cross_entropy(logits_BTV, batch.targets_BT), batch, total_weight)


def weighted_mean(
    nll_BT: jax.Array, batch: Batch, total_weight: jax.Array | float | None
) -> jax.Array:
    """Returns sum(w nll) / sum(w); the arguments are those of `batch_loss`."""
    if batch.weights_BT is not None:
        nll_BT = nll_BT * batch.weights_BT
        if total_weight is None:
            total_weight = batch.weights_BT.sum()
    return nll_BT.mean() if total_weight is None else nll_BT.sum() / total_weight
