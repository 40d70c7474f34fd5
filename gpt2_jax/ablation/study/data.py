"""The data of a study's trials: text, or the examples of a task."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from gpt2_jax.ablation.unigram import entropy, unigram_entropy
from gpt2_jax.config.sections import DataConfig, TaskConfig
from gpt2_jax.data.batch import LabelBatch, SpanBatch
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.tasks.data import ExampleData, open_example_data
from gpt2_jax.train.storage.open_run import open_data

ROWS_AT_ONCE = 64


class TrialData(NamedTuple):
    """The data of a trial.

    Attributes:
      corpus: a `Dataset`, or the `ExampleData` of a task.
      unigram_loss: the loss of predicting each validation target by its frequency alone; that of a
        mixture is the mean over its sources, weighted by their share. None for answers, which are
        positions.
    """

    corpus: Any
    tokenizer: Tokenizer
    unigram_loss: float | None


def open_trial_data(task: TaskConfig, data: DataConfig, with_types: bool, seed: int) -> TrialData:
    """Opens the data of a trial, only once.

    Args:
      with_types, seed: as in `ExampleData`.

    Raises:
      UserError: if it cannot be read, or is fetched while training.
    """
    if task.name == "lm":
        return _open_text(data)
    return _open_examples(task, data, with_types, seed)


@cache
def _open_text(data: DataConfig) -> TrialData:
    corpus, tokenizer = open_data(data)
    if corpus.streams:
        raise UserError(
            f"data.source={data.source} is fetched while training, which a study does not support; "
            "copy the files to a local disk and run gpt2-jax prepare"
        )
    corpus.check_validation()
    unigram = corpus.mean([unigram_entropy(part.corpus.val) for part in corpus.parts])
    return TrialData(corpus, tokenizer, unigram)


@cache
def _open_examples(task: TaskConfig, data: DataConfig, with_types: bool, seed: int) -> TrialData:
    examples = open_example_data(task, data, with_types, seed)
    examples.check_validation()
    return TrialData(examples, examples.tokenizer, _target_entropy(examples))


def _target_entropy(examples: ExampleData) -> float | None:
    """Returns the entropy of the frequencies of validation targets, in nats per target."""
    ordered, counts = examples.evaluation("val", ROWS_AT_ONCE), np.zeros(0, np.int64)
    for number in range(ordered.n_batches):
        batch = ordered.batch(number)
        if isinstance(batch, SpanBatch):
            return None
        targets = batch.labels_B if isinstance(batch, LabelBatch) else batch.targets_BT
        found = np.bincount(targets[batch.weights > 0], minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return entropy(counts)
