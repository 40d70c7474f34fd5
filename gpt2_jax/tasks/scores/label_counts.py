"""Precision, recall and F1 from counts of correct, predicted and gold items per label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from gpt2_jax.tasks.scores.bootstrap import ratio
from gpt2_jax.tasks.scores.result import Cell, Table

Item = tuple[str, Hashable]  # label, and what identifies the item in its example
AVERAGES = ("micro", "macro", "weighted")


class LabelCounts(NamedTuple):
    """Counts per example and label.

    Attributes:
      labels: names of the labels.
      counts_NL3: numbers of correct, predicted and gold items.
    """

    labels: tuple[str, ...]
    counts_NL3: np.ndarray


def count_items(gold: Sequence[Sequence[Item]], predicted: Sequence[Sequence[Item]]) -> LabelCounts:
    """Returns the counts of each example's items; labels are sorted.

    A predicted item is correct if the example's gold items contain it; repeated items count once.
    """
    check_lengths(len(gold), len(predicted), "examples")
    labels = tuple(sorted({label for items in (*gold, *predicted) for label, _ in items}))
    row = {label: i for i, label in enumerate(labels)}
    counts_NL3 = np.zeros((len(gold), len(labels), 3), np.int64)
    for i, (true, found) in enumerate(zip(gold, predicted, strict=True)):
        kinds = (set(true) & set(found), set(found), set(true))
        for kind, items in enumerate(kinds):
            for label, n in Counter(label for label, _ in items).items():
                counts_NL3[i, row[label], kind] = n
    return LabelCounts(labels, counts_NL3)


def check_lengths(n_gold: int, n_predicted: int, unit: str) -> None:
    """Raises ValueError unless there are as many predicted as gold items."""
    if n_gold != n_predicted:
        raise ValueError(f"{n_gold} gold {unit}, but {n_predicted} predicted")


def precision_recall_f1(counts: np.ndarray) -> np.ndarray:
    """Returns (..., 3) precision, recall and F1 from counts (..., 3); 0 for 0/0."""
    correct, predicted, gold = np.moveaxis(counts, -1, 0)
    f1 = ratio(2 * correct, predicted + gold)
    return np.stack([ratio(correct, predicted), ratio(correct, gold), f1], -1)


def averages(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns (..., 3) precision, recall and F1, averaged over labels, from counts (..., L, 3).

    micro: of the sums over labels. macro: mean over the labels that occur among gold or predicted
    items. weighted: mean weighted by the number of gold items.
    """
    each = precision_recall_f1(counts)
    occurs = ((counts[..., 1] + counts[..., 2]) > 0)[..., None]
    gold = counts[..., 2][..., None]
    return {
        "micro": precision_recall_f1(counts.sum(-2)),
        "macro": ratio((each * occurs).sum(-2), occurs.sum(-2).astype(float)),
        "weighted": ratio((each * gold).sum(-2), gold.sum(-2).astype(float)),
    }


def label_table(title: str, first_column: str, counted: LabelCounts) -> Table:
    """Returns precision, recall and F1 of each label, and their averages."""
    counts_L3 = counted.counts_NL3.sum(0)
    rows: list[tuple[Cell, ...]] = []
    for label, counts, values in zip(
        counted.labels, counts_L3, precision_recall_f1(counts_L3), strict=True
    ):
        rows.append((label, *map(float, values), int(counts[2]), int(counts[1])))
    _, predicted, gold = (int(n) for n in counts_L3.sum(0))
    for name, values in averages(counts_L3).items():
        rows.append((f"({name})", *map(float, values), gold, predicted))
    columns = (first_column, "precision", "recall", "f1", "gold", "predicted")
    return Table(title, columns, tuple(rows))
