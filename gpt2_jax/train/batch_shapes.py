"""The shapes of a run's batches, which differ in the lengths of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gpt2_jax.data.batch import Batch
from gpt2_jax.tasks.losses import AnyBatch


@dataclass(frozen=True)
class BatchShapes:
    """The shapes of batches, as batches whose number of rows does not matter.

    Attributes:
      train: one for each shape of a training batch. evaluation: likewise.
      tokens_per_step: mean number of tokens per step, without padding.
    """

    train: Sequence[AnyBatch]
    tokens_per_step: int
    evaluation: Sequence[AnyBatch] = ()

    @property
    def has_examples(self) -> bool:
        """Whether batches have the examples of a task, not windows of text."""
        return not isinstance(self.train[0], Batch)


def window_shapes(batch_size: int, seq_len: int) -> BatchShapes:
    """Returns the shape of batches for language modeling."""
    windows = Batch(np.zeros((0, seq_len + 1), np.int32))
    return BatchShapes([windows], batch_size * seq_len)


def batch_key(batch: AnyBatch) -> tuple[int, ...]:
    """Returns what distinguishes the shapes of a run's batches: the lengths of their rows."""
    return tuple(size for x in jax.tree.leaves(batch) for size in x.shape[1:])


def by_shape(batches: Sequence[AnyBatch], programs: Sequence[Any]) -> Any:
    """Returns a function that calls the program compiled for the shape of its last argument."""
    if len(programs) == 1:
        return programs[0]
    of_key = {batch_key(batch): program for batch, program in zip(batches, programs, strict=True)}
    return lambda *inputs: of_key[batch_key(inputs[-1])](*inputs)
