"""Turns what a model predicts for rows into tags, labels and answers, and scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2_jax.data.examples.labels import OUTSIDE
from gpt2_jax.data.examples.store import Examples
from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.classification import classification_scores
from gpt2_jax.tasks.scores.entities import entity_scores
from gpt2_jax.tasks.scores.result import Scores
from gpt2_jax.tasks.scores.spans import LabeledSpan, answer_scores, span_scores

LONGEST_ANSWER = 30  # tokens, as in BERT's code for SQuAD
NO_INTERVALS = Bootstrap(resamples=0)


@dataclass(frozen=True)
class Answer:
    """A predicted answer: characters start to end of the context, exclusive; empty for none."""

    start: int
    end: int
    text: str


def word_tags(
    examples: Examples, labels: Sequence[str], rows_T: Sequence[np.ndarray]
) -> list[list[str]]:
    """Returns the tag of each word of each example; words without a token are `O`.

    Args:
      rows_T: the predicted label id of each token, for the examples in order.
    """
    out = []
    for i, (record, row_T) in enumerate(zip(examples.records, rows_T, strict=True)):
        words_T = examples.ragged["words"][i]
        first_T = (words_T > 0) & (np.diff(words_T, prepend=0) != 0)
        tags = [OUTSIDE] * len(record.words)
        for position in np.flatnonzero(first_T).tolist():
            tags[words_T[position] - 1] = labels[int(row_T[position])]
        out.append(tags)
    return out


def best_answers(examples: Examples, rows_T2: Sequence[np.ndarray]) -> list[Answer]:
    """Returns the best answer to each question.

    It is the span of at most `LONGEST_ANSWER` tokens of the context with the largest sum of scores,
    or none if the scores of the first position have a larger sum (Devlin et al. 2019, section 4.3).

    Args:
      rows_T2: scores of the first and the last token, for the examples in order.
    """
    out = []
    for i, (record, row_T2) in enumerate(zip(examples.records, rows_T2, strict=True)):
        starts_T, ends_T = examples.ragged["char_starts"][i], examples.ragged["char_ends"][i]
        positions = np.flatnonzero(ends_T > 0)
        found = best_span(row_T2, positions)
        if found is None:
            out.append(Answer(0, 0, ""))
            continue
        start, end = int(starts_T[found[0]]), int(ends_T[found[1]])
        out.append(Answer(start, end, record.context[start:end]))
    return out


def best_span(scores_T2: np.ndarray, positions: np.ndarray) -> tuple[int, int] | None:
    """Returns the first and last position of the best span, None if none is better.

    Args:
      positions: of the context, consecutive.
    """
    if not len(positions):
        return None
    starts, ends = scores_T2[positions, 0], scores_T2[positions, 1]
    totals = starts[:, None] + ends[None, :]
    n = np.arange(len(positions))
    length = n[None, :] - n[:, None]
    totals = np.where((length >= 0) & (length < LONGEST_ANSWER), totals, -np.inf)
    first, last = np.unravel_index(int(totals.argmax()), totals.shape)
    if totals[first, last] <= scores_T2[0].sum():
        return None
    return int(positions[first]), int(positions[last])


def predicted_values(
    task: str, examples: Examples, labels: Sequence[str], rows: Sequence[np.ndarray]
) -> list[Any]:
    """Returns the prediction for each example: tags of its words, a label, or an `Answer`."""
    rows = rows[: len(examples)]  # the rest only fill the last batch
    if task == "tag":
        return word_tags(examples, labels, rows)
    if task == "classify":
        return [labels[int(row)] for row in rows]
    return best_answers(examples, rows)


def prediction_scores(
    task: str,
    examples: Examples,
    labels: Sequence[str],
    predicted: Sequence[Any],
    out_of_scope: str | None = None,
    bootstrap: Bootstrap = NO_INTERVALS,
) -> Scores:
    """Returns the scores of predictions, the most important value first.

    Questions made of labels and texts (`span_questions`) are scored as labeled spans.

    Args:
      predicted: from `predicted_values`.
      out_of_scope: label of texts that belong to no other class, scored apart.
    """
    if task == "tag":
        gold = [record.tags for record in examples.records]
        return entity_scores(gold, predicted, bootstrap)
    if task == "classify":
        ids = {name: i for i, name in enumerate(labels)}
        found = [ids[name] for name in predicted]
        gold_N = examples.scalars["label"]
        return classification_scores(gold_N, found, labels, out_of_scope, bootstrap)
    if labels:
        return span_scores(*_labeled_spans(examples, labels, predicted), bootstrap)
    answers = [[text for _, text in record.answers] for record in examples.records]
    return answer_scores(answers, [one.text for one in predicted], bootstrap)


def _labeled_spans(
    examples: Examples, labels: Sequence[str], predicted: Sequence[Answer]
) -> tuple[list[list[LabeledSpan]], list[list[LabeledSpan]]]:
    """Returns the gold and the predicted spans of each text, which has a question per label."""
    gold: list[list[LabeledSpan]] = []
    found: list[list[LabeledSpan]] = []
    for i, (record, answer) in enumerate(zip(examples.records, predicted, strict=True)):
        label = labels[i % len(labels)]
        if label == labels[0]:
            gold.append([])
            found.append([])
        spans = [(start, start + len(text)) for start, text in record.answers]
        gold[-1] += [LabeledSpan(label, *span) for span in spans]
        if answer.text:
            found[-1].append(LabeledSpan(label, answer.start, answer.end))
    return gold, found
