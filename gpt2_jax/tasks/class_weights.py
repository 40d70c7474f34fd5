"""Loss weights by label: `task.class_weights`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2_jax.config.sections import TaskConfig
from gpt2_jax.config.table import words
from gpt2_jax.data.batch import ExampleBatch, LabelBatch, TokenBatch
from gpt2_jax.data.examples.store import Examples
from gpt2_jax.data.layout.shape import Layout, Shape
from gpt2_jax.errors import UserError, quoted, suggestion

BALANCED = "balanced"


class ClassWeights:
    """The batches of a layout, with the loss weight of each target multiplied by its label's.

    Args:
      weights_C: of each label.
    """

    def __init__(self, layout: Layout, weights_C: np.ndarray) -> None:
        self._layout, self._weights_C = layout, weights_C.astype(np.float32)
        self.shapes, self.real_share = layout.shapes, layout.real_share

    def shape(self, step: int) -> Shape:
        return self._layout.shape(step)

    def steps(self, epochs: float) -> int:
        return self._layout.steps(epochs)

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> ExampleBatch:
        batch = self._layout.batch(step, rows)
        if isinstance(batch, LabelBatch):
            return batch._replace(weights_B=batch.weights_B * self._weights_C[batch.labels_B])
        assert isinstance(batch, TokenBatch)
        return batch._replace(weights_BT=batch.weights_BT * self._weights_C[batch.targets_BT])


def weigh_classes(task: TaskConfig, labels: Sequence[str], examples: Examples) -> np.ndarray | None:
    """Returns the weight of each label, None if all are 1.

    `balanced` is N / (C n_c): N targets, C labels, n_c targets with the label (King & Zeng 2001).

    Raises:
      UserError: if a weight is not valid or a label unknown.
    """
    given = words(task.class_weights)
    if not given:
        return None
    if given == (BALANCED,):
        counts_C = _counts(examples, len(labels))
        return counts_C.sum() / (len(labels) * np.maximum(counts_C, 1))
    weights_C = np.ones(len(labels))
    for entry in given:
        label, _, text = entry.rpartition("=")
        weight = _number(text)
        if not label or weight is None:
            raise UserError(
                f"task.class_weights: {quoted(entry)} must be LABEL=WEIGHT with a positive weight, "
                f"as in {labels[0]}=0.5, or {BALANCED} alone"
            )
        if label not in labels:
            raise UserError(
                f"task.class_weights: the training data has no label {quoted(label)}"
                f"{suggestion(label, labels)}"
            )
        weights_C[labels.index(label)] = weight
    return weights_C


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < 1e6 else None


def _counts(examples: Examples, n_labels: int) -> np.ndarray:
    """Returns the number of targets with each label."""
    if "label" in examples.scalars:
        found: Any = examples.scalars["label"]
    else:
        column = examples.ragged["targets"]
        targets = np.concatenate([column[i] for i in range(len(column))])
        found = targets[targets > 0] - 1  # 0 is no target
    return np.bincount(np.asarray(found, np.int64), minlength=n_labels)
