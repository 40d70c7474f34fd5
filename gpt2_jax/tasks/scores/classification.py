"""Scores of classification: accuracy, F1 by class, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gpt2_jax.tasks.scores.bootstrap import DEFAULT, Bootstrap, Sums, ratio
from gpt2_jax.tasks.scores.label_counts import LabelCounts, averages, check_lengths, label_table
from gpt2_jax.tasks.scores.result import Cell, Scores, Table

MAX_CONFUSIONS = 20  # rows in the table of confusions
DEFINITIONS = {
    "accuracy": "share of examples with the gold class",
    "macro_f1": "mean F1 over the classes that occur among gold or predicted ones",
}
SCOPE_DEFINITIONS = {
    "in_scope_accuracy": "accuracy on the examples whose gold class is in scope; predicting {} is "
    "an error",
    "out_of_scope_recall": "share of the {} examples that are predicted as such",
    "out_of_scope_precision": "share of the examples predicted as {} that are",
}


def confusion_matrix(
    gold_N: Sequence[int] | np.ndarray, predicted_N: Sequence[int] | np.ndarray, n_classes: int
) -> np.ndarray:
    """Returns (C, C) numbers of examples: rows are gold classes, columns predicted ones.

    Raises:
      ValueError: if lengths differ, or a class is not in 0 .. C-1.
    """
    gold_N, predicted_N = np.asarray(gold_N, np.int64), np.asarray(predicted_N, np.int64)
    check_lengths(len(gold_N), len(predicted_N), "classes")
    both = np.concatenate([gold_N, predicted_N])
    if both.size and not (both.min() >= 0 and both.max() < n_classes):
        raise ValueError(f"classes must be from 0 to {n_classes - 1}")
    cells = np.bincount(gold_N * n_classes + predicted_N, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes)


def classification_scores(
    gold_N: Sequence[int] | np.ndarray,
    predicted_N: Sequence[int] | np.ndarray,
    names: Sequence[str],
    out_of_scope: str | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> Scores:
    """Returns accuracy, macro F1, a table by class, and the most frequent confusions.

    Args:
      gold_N: gold classes, from 0.
      predicted_N: predicted classes.
      names: name of each class.
      out_of_scope: name of the class of examples that belong to no other (CLINC150's `oos`). It is
        then also scored separately. None if there is none.

    Raises:
      ValueError: if lengths differ, or a class is not in `names`.
    """
    if out_of_scope is not None and out_of_scope not in names:
        raise ValueError(f"out_of_scope={out_of_scope!r} is not the name of a class")
    matrix = confusion_matrix(gold_N, predicted_N, len(names))
    outside = None if out_of_scope is None else list(names).index(out_of_scope)
    counts_MC3, repeats_M = _cells(matrix)
    scope = SCOPE_DEFINITIONS if outside is not None else {}
    counted = LabelCounts(tuple(names), (counts_MC3 * repeats_M[:, None, None]))
    return Scores(
        kind="classes",
        unit="examples",
        n=int(matrix.sum()),
        values=bootstrap.intervals({"classes": counts_MC3}, _statistic(outside), repeats_M),
        definitions=DEFINITIONS | {name: w.format(out_of_scope) for name, w in scope.items()},
        bootstrap=bootstrap,
        tables=(label_table("classes", "class", counted), _confusions(matrix, names)),
    )


def _cells(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns counts (M, C, 3) of one example of each nonzero cell, and its examples (M)."""
    gold_M, predicted_M = np.nonzero(matrix)
    classes = np.arange(len(matrix))
    is_gold = gold_M[:, None] == classes
    is_predicted = predicted_M[:, None] == classes
    counts = np.stack([is_gold & is_predicted, is_predicted, is_gold], -1).astype(np.int64)
    return counts, matrix[gold_M, predicted_M]


def _statistic(outside: int | None) -> Callable[[Sums], Mapping[str, np.ndarray]]:
    def values(sums: Sums) -> Mapping[str, np.ndarray]:
        classes = sums["classes"]
        correct, predicted, gold = np.moveaxis(classes, -1, 0)
        out = {
            "accuracy": ratio(correct.sum(-1), gold.sum(-1)),
            "macro_f1": averages(classes)["macro"][..., 2],
        }
        if outside is not None:
            inside = np.arange(gold.shape[-1]) != outside
            out["in_scope_accuracy"] = ratio(correct[:, inside].sum(-1), gold[:, inside].sum(-1))
            out["out_of_scope_recall"] = ratio(correct[:, outside], gold[:, outside])
            out["out_of_scope_precision"] = ratio(correct[:, outside], predicted[:, outside])
        return out

    return values


def _confusions(matrix: np.ndarray, names: Sequence[str]) -> Table:
    """Returns the most frequent pairs of a gold class and another predicted class."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    rows: list[tuple[Cell, ...]] = []
    for gold, predicted in zip(*np.unravel_index(order, matrix.shape), strict=True):
        if wrong[gold, predicted]:
            share = float(wrong[gold, predicted] / matrix[gold].sum())
            rows.append((names[gold], names[predicted], int(wrong[gold, predicted]), share))
    columns = ("gold class", "predicted class", "examples", "share of gold")
    return Table("most frequent confusions", columns, tuple(rows))
