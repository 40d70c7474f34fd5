"""The loss of each kind of batch, in nats, and what a model predicts for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt2_jax.data.batch import Batch, ExampleBatch, LabelBatch, PairBatch, SpanBatch, TokenBatch
from gpt2_jax.model.heads import LabelModel
from gpt2_jax.nn.loss import cross_entropy, smoothed_cross_entropy

AnyBatch = Batch | ExampleBatch


class LossOptions(NamedTuple):
    """What training changes about the cross-entropy; validation losses are without it.

    Attributes:
      z_loss: as in `cross_entropy`. label_smoothing: epsilon of `smoothed_cross_entropy`.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0


PLAIN = LossOptions()


class Outputs(NamedTuple):
    """What a model makes of a batch.

    Attributes:
      nll: the loss of each target in nats, float32, in the shape of the batch's weights.
      hits: whether the most likely prediction is the target, in the same shape.
      predicted: the most likely labels, int32: of tokens (B, T), or of rows (B). For spans, the
        float32 scores of the first and the last token, (B, T, 2). None for tokens of text.
    """

    nll: jax.Array
    hits: jax.Array
    predicted: jax.Array | None


def batch_nll(
    model: Any,
    batch: AnyBatch,
    keys_B: jax.Array | None,
    step: jax.Array | int,
    options: LossOptions = PLAIN,
) -> jax.Array:
    """Returns the loss of each target of a batch, float32, in the shape of its weights.

    Args:
      model: a bound module, with the head for this kind of batch.
      keys_B: a dropout key per row, None for no dropout.
      step: steps done.
    """
    if isinstance(model, LabelModel):
        logits = _label_logits(model, batch, keys_B, step)
        with jax.named_scope("loss"):
            return _label_nll(logits, batch, options)
    hidden_BTD, targets_BT = _hidden(model, batch, keys_B, step)
    with jax.named_scope("loss"):
        if not options.label_smoothing:
            return model.nll(hidden_BTD, targets_BT, options.z_loss)
        logits_BTV, n = model.logits(hidden_BTD), model.cfg.vocab_size
        return smoothed_cross_entropy(logits_BTV, targets_BT, options.label_smoothing, n)


def outputs(model: Any, batch: AnyBatch, step: jax.Array | int) -> Outputs:
    """Returns the loss and the predictions of a batch, without dropout."""
    if isinstance(model, LabelModel):
        logits = _label_logits(model, batch, None, step)
        predicted, hits = _predict(logits, batch)
        return Outputs(_label_nll(logits, batch, PLAIN), hits, predicted)
    hidden_BTD, targets_BT = _hidden(model, batch, None, step)
    logits_BTV = model.logits(hidden_BTD)
    hits_BT = logits_BTV.argmax(-1) == targets_BT
    return Outputs(cross_entropy(logits_BTV, targets_BT), hits_BT, None)


def _hidden(
    model: Any, batch: AnyBatch, keys_B: jax.Array | None, step: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Returns the head's input (B, T, D) and the targets (B, T)."""
    match batch:
        case PairBatch():
            hidden_BTD = model.hidden(batch.target, keys_B, step, batch.source)
        case TokenBatch():
            hidden_BTD = model.hidden(batch.inputs, keys_B, step)
        case Batch():
            hidden_BTD = model.hidden(batch.inputs_BT, keys_B, step)
        case _:
            raise TypeError(f"a model of tokens cannot predict a {type(batch).__name__}")
    return hidden_BTD, batch.targets_BT


def _label_logits(
    model: LabelModel, batch: AnyBatch, keys_B: jax.Array | None, step: jax.Array | int
) -> jax.Array:
    assert isinstance(batch, TokenBatch | LabelBatch | SpanBatch)
    hidden_BTD = model.hidden(batch.inputs, keys_B, step)
    return model.logits(hidden_BTD, batch.inputs.segments_BT, keys_B)


def _label_nll(logits: jax.Array, batch: AnyBatch, options: LossOptions) -> jax.Array:
    """Returns the loss; of a span, the mean of those of its first and last token."""

    def nll(logits: jax.Array, targets: jax.Array) -> jax.Array:
        if options.label_smoothing:
            n = logits.shape[-1]
            return smoothed_cross_entropy(logits, targets, options.label_smoothing, n)
        return cross_entropy(logits, targets, options.z_loss)

    match batch:
        case SpanBatch():
            starts, ends = (cross_entropy(logits[..., i], t) for i, t in enumerate(batch[1:3]))
            return (starts + ends) / 2
        case LabelBatch():
            return nll(logits, batch.labels_B)
        case TokenBatch():
            return nll(logits, batch.targets_BT)
    raise TypeError(type(batch).__name__)


def _predict(logits: jax.Array, batch: AnyBatch) -> tuple[jax.Array, jax.Array]:
    """Returns `Outputs.predicted` and `Outputs.hits`."""
    if isinstance(batch, SpanBatch):
        ends_B2 = jnp.stack([batch.starts_B, batch.ends_B], -1)
        return logits, (logits.argmax(1) == ends_B2).all(-1)
    labels = logits.argmax(-1).astype(jnp.int32)
    targets = batch.labels_B if isinstance(batch, LabelBatch) else batch.targets_BT
    return labels, labels == targets
