"""The loss of each kind of batch, in nats, and what a model predicts for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt2_jax.data.batch import (
    Batch,
    ExampleBatch,
    LabelBatch,
    PairBatch,
    SpanBatch,
    Tokens,
)
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
        float32 scores of the first and the last token, (B, T, 2). None for tokens of text. With
        `probabilities`, those of all labels, float32 (B, T, C) or (B, C).
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
    inputs, source = inputs_of(batch)
    hidden_BTD = model.hidden(inputs, keys_B, step, source)
    if isinstance(model, LabelModel):
        logits = model.logits(hidden_BTD, inputs.segments_BT, keys_B)
        with jax.named_scope("loss"):
            return logits_nll(logits, batch, options)
    with jax.named_scope("loss"):
        return tokens_nll(model, hidden_BTD, batch, options)


def tokens_nll(
    model: Any, hidden_BTD: jax.Array, batch: AnyBatch, options: LossOptions
) -> jax.Array:
    """Returns the loss of each token to predict, (B, T), from the output of `model.hidden`."""
    if not options.label_smoothing:
        return model.nll(hidden_BTD, _targets(batch), options.z_loss)
    return logits_nll(model.logits(hidden_BTD), batch, options, model.cfg.vocab_size)


def outputs(
    model: Any, batch: AnyBatch, step: jax.Array | int, probabilities: bool = False
) -> Outputs:
    """Returns the loss and the predictions of a batch, without dropout.

    Args:
      probabilities: whether to return those of all labels instead of the most likely ones.
    """
    inputs, source = inputs_of(batch)
    hidden_BTD = model.hidden(inputs, None, step, source)
    if isinstance(model, LabelModel):
        logits = model.logits(hidden_BTD, inputs.segments_BT)
        predicted, hits = _predict(logits, batch)
        if probabilities and not isinstance(batch, SpanBatch):
            predicted = jax.nn.softmax(logits.astype(jnp.float32))
        return Outputs(logits_nll(logits, batch), hits, predicted)
    logits_BTV = model.logits(hidden_BTD)
    hits_BT = logits_BTV.argmax(-1) == _targets(batch)
    return Outputs(logits_nll(logits_BTV, batch), hits_BT, None)


def inputs_of(batch: AnyBatch) -> tuple[Any, Tokens | None]:
    """Returns what the tower with the head reads, and the source of an encoder-decoder or None."""
    match batch:
        case PairBatch():
            return batch.target, batch.source
        case Batch():
            return batch.inputs_BT, None
    return batch.inputs, None


def logits_nll(
    logits: jax.Array,
    batch: AnyBatch,
    options: LossOptions = PLAIN,
    n_classes: int | None = None,
) -> jax.Array:
    """Returns the loss of each target in nats, float32; of a span, the mean of its two ends.

    Args:
      logits: of tokens or labels (B, T, C), of labels (B, C), or of the ends of spans (B, T, 2).
      n_classes: logits that are not padding, which label smoothing needs; None for all.
    """

    def nll(logits: jax.Array, targets: jax.Array) -> jax.Array:
        if options.label_smoothing:
            n = logits.shape[-1] if n_classes is None else n_classes
            return smoothed_cross_entropy(logits, targets, options.label_smoothing, n)
        return cross_entropy(logits, targets, options.z_loss)

    match batch:
        case SpanBatch():
            return (nll(logits[..., 0], batch.starts_B) + nll(logits[..., 1], batch.ends_B)) / 2
    return nll(logits, _targets(batch))


def _targets(batch: AnyBatch) -> Any:
    """Returns the ids or labels to predict."""
    assert not isinstance(batch, SpanBatch)
    return batch.labels_B if isinstance(batch, LabelBatch) else batch.targets_BT


def _predict(logits: jax.Array, batch: AnyBatch) -> tuple[jax.Array, jax.Array]:
    """Returns `Outputs.predicted` and `Outputs.hits`."""
    if isinstance(batch, SpanBatch):
        ends_B2 = jnp.stack([batch.starts_B, batch.ends_B], -1)
        return logits, (logits.argmax(1) == ends_B2).all(-1)
    labels = logits.argmax(-1).astype(jnp.int32)
    return labels, labels == _targets(batch)
