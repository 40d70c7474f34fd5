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
    """A predicted answer: characters start to end of the context, exclusive; empty for none.

    Attributes:
      probability: among all spans that may be predicted, and none.
    """

    start: int
    end: int
    text: str
    probability: float


def word_tags(
    examples: Examples, labels: Sequence[str], rows_T: Sequence[np.ndarray]
) -> list[list[str]]:
    """Returns the tag of each word of each example; words without a token are `O`.

    Args:
      rows_T: the predicted label id of each token, for the examples in order.
    """
    name = lambda found: OUTSIDE if found is None else labels[int(found)]
    return [[name(value) for value in row] for row in word_values(examples, rows_T)]


def word_values(examples: Examples, rows_T: Sequence[np.ndarray]) -> list[list[Any]]:
    """Returns the value of the first token of each word; None for words without a token.

    Args:
      rows_T: a value per token, for the examples in order.
    """
    out = []
    for i, (record, row_T) in enumerate(zip(examples.records, rows_T, strict=True)):
        words_T = examples.ragged["words"][i]
        first_T = (words_T > 0) & (np.diff(words_T, prepend=0) != 0)
        values: list[Any] = [None] * len(record.words)
        for position in np.flatnonzero(first_T).tolist():
            values[words_T[position] - 1] = row_T[position]
        out.append(values)
    return out


def best_answers(examples: Examples, rows_T2: Sequence[np.ndarray]) -> list[Answer]:
    """Returns the best answer to each question.

    It is the span of at most `LONGEST_ANSWER` tokens of the context with the largest sum of scores,
    or none if the scores of the first position have a larger sum (Devlin et al. 2019, section 4.3).
    If the context has several windows, a span is scored in the one with the most text around its
    first token, and none by the window where it is the least likely.

    Args:
      rows_T2: scores of the first and the last token, for the examples in order.
    """
    found = zip(examples.records, examples.windows, strict=True)
    return [_best_answer(record.context, examples, windows, rows_T2) for record, windows in found]


def _best_answer(
    context: str, examples: Examples, windows: range, rows_T2: Sequence[np.ndarray]
) -> Answer:
    """Returns the best answer in the windows of a context."""
    positions = [np.flatnonzero(examples.ragged["char_ends"][i]) for i in windows]
    owners = _owners(examples.scalars["window"][windows.start : windows.stop], positions)
    spans = [
        _span_scores(rows_T2[i][where], owner)
        for i, where, owner in zip(windows, positions, owners, strict=True)
    ]
    none = min(float(rows_T2[i][0].sum()) for i in windows)
    best = max(range(len(spans)), key=lambda k: spans[k].max(initial=-np.inf))
    highest = float(spans[best].max(initial=-np.inf))
    top = max(highest, none)
    total = np.exp(none - top) + sum(float(np.exp(scores - top).sum()) for scores in spans)
    probability = 1.0 / float(total)
    if highest <= none:
        return Answer(0, 0, "", probability)
    first, last = np.unravel_index(np.argmax(spans[best]), spans[best].shape)
    i, where = windows[best], positions[best]
    start = int(examples.ragged["char_starts"][i][where[first]])
    end = int(examples.ragged["char_ends"][i][where[last]])
    return Answer(start, end, context[start:end], probability)


def _owners(starts_W: np.ndarray, positions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns for each window which of its tokens have the most context there, (n,) each.

    The context of a token is the smaller number of tokens before and after it in the window; of
    several windows with the same, the first counts.

    Args:
      starts_W: first token of the context in each window. positions: of its tokens in the row.
    """
    most: dict[int, tuple[int, int]] = {}  # context and window, by token
    for k, (start, where) in enumerate(zip(starts_W.tolist(), positions, strict=True)):
        for n in range(len(where)):
            around = min(n, len(where) - 1 - n)
            if around > most.get(start + n, (-1, 0))[0]:
                most[start + n] = around, k
    return [
        np.array([most[start + n][1] == k for n in range(len(where))], bool)
        for k, (start, where) in enumerate(zip(starts_W.tolist(), positions, strict=True))
    ]


def _span_scores(scores_n2: np.ndarray, may_start: np.ndarray) -> np.ndarray:
    """Returns the score of each span of tokens by its first and last one, (n, n); -inf if invalid.

    Args:
      scores_n2: of the tokens of the context as first and as last.
      may_start: which of them may be the first.
    """
    scores = scores_n2.astype(np.float64)
    n = np.arange(len(scores))
    length = n[None, :] - n[:, None]
    valid = (length >= 0) & (length < LONGEST_ANSWER) & may_start[:, None]
    return np.where(valid, scores[:, :1] + scores[None, :, 1], -np.inf)


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
