"""ROUGE-1, ROUGE-2 and ROUGE-L of summaries (Lin 2004)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from gpt2_jax.tasks.scores.bootstrap import DEFAULT, Bootstrap, Sums
from gpt2_jax.tasks.scores.label_counts import check_lengths, precision_recall_f1
from gpt2_jax.tasks.scores.result import Cell, Scores, Table

Words = Literal["ascii", "unicode"]
_WORDS = {"ascii": re.compile(r"[a-z0-9]+"), "unicode": re.compile(r"[^\W_]+")}
_DEFINED = {"ascii": "of the characters a-z and 0-9", "unicode": "of Unicode letters and digits"}
Overlap = Callable[[Sequence[str], Sequence[str]], tuple[int, int, int]]


def words_of(text: str, words: Words) -> list[str]:
    """Returns the words of a text in lower case, without stemming.

    Args:
      words: `ascii`, as Google's `rouge_score`: of a-z and 0-9, so that `Käse` is `k` and `se`;
        `unicode`: of the letters and digits of any language.
    """
    return _WORDS[words].findall(text.lower())


def ngram_overlap(n: int) -> Overlap:
    """Returns a function that counts the n-grams in common, in a prediction and in a reference."""

    def overlap(found: Sequence[str], gold: Sequence[str]) -> tuple[int, int, int]:
        grams = [Counter(zip(*(one[i:] for i in range(n)), strict=False)) for one in (found, gold)]
        return (grams[0] & grams[1]).total(), grams[0].total(), grams[1].total()

    return overlap


def longest_overlap(found: Sequence[str], gold: Sequence[str]) -> tuple[int, int, int]:
    """Returns the lengths of the longest common subsequence, of a prediction and of a reference."""
    return _common_length(found, gold), len(found), len(gold)


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence (Hyyrö 2004, a bit per word of `a`)."""
    where: dict[str, int] = {}
    for i, word in enumerate(a):
        where[word] = where.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full  # a zero bit where a row of the table of lengths increases
    for word in b:
        match = row & where.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


OVERLAPS: dict[str, Overlap] = {
    "rouge1": ngram_overlap(1),
    "rouge2": ngram_overlap(2),
    "rougeL": longest_overlap,
}


def rouge_scores(
    references: Sequence[Sequence[str]],
    predictions: Sequence[str],
    words: Words = "ascii",
    bootstrap: Bootstrap = DEFAULT,
) -> Scores:
    """Returns the mean F1 over summaries of ROUGE-1, ROUGE-2 and ROUGE-L, from 0 to 1.

    Args:
      references: one or more reference summaries of each text; the one with the largest F1 counts.
      predictions: one summary per text.
      words: how texts are split; see `words_of`.

    Raises:
      ValueError: if lengths differ, or a text has no reference.
    """
    check_lengths(len(references), len(predictions), "summaries")
    if not references or not all(references):
        raise ValueError("each text needs a reference summary")
    found = [words_of(text, words) for text in predictions]
    gold = [[words_of(text, words) for text in texts] for texts in references]
    values = {name: _scores(overlap, gold, found) for name, overlap in OVERLAPS.items()}
    counts = {
        name: np.concatenate([each, np.ones((len(each), 1))], 1) for name, each in values.items()
    }
    rows: list[tuple[Cell, ...]] = [
        (name, *map(float, each.mean(0))) for name, each in values.items()
    ]
    return Scores(
        kind="summaries",
        unit="summaries",
        n=len(predictions),
        values=bootstrap.intervals(counts, _means),
        definitions={
            "rouge1, rouge2": "mean over summaries of the F1 of words or pairs of words",
            "rougeL": "mean over summaries of the F1 of the longest common subsequence, each "
            "summary as one sequence (not rougeLsum)",
            "words": f"{words}: lower case, {_DEFINED[words]}, without stemming",
        },
        bootstrap=bootstrap,
        tables=(Table("means", ("", "precision", "recall", "f1"), tuple(rows)),),
    )


def _scores(
    overlap: Overlap, references: Sequence[Sequence[list[str]]], predictions: Sequence[list[str]]
) -> np.ndarray:
    """Returns (N, 3) precision, recall and F1 with the best reference of each summary."""
    rows = []
    for gold, found in zip(references, predictions, strict=True):
        each = precision_recall_f1(np.array([overlap(found, one) for one in gold], float))
        rows.append(each[np.argmax(each[:, 2])])
    return np.array(rows)


def _means(sums: Sums) -> Mapping[str, np.ndarray]:
    return {name: total[:, 2] / total[:, 3] for name, total in sums.items()}
