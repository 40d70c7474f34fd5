"""Scores of answers as text (SQuAD) and of labeled spans."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gpt2_jax.tasks.scores.bootstrap import DEFAULT, Bootstrap, Sums, ratio
from gpt2_jax.tasks.scores.label_counts import (
    AVERAGES,
    averages,
    check_lengths,
    count_items,
    label_table,
)
from gpt2_jax.tasks.scores.result import Scores

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
PARTS = ("has_answer", "no_answer")
ANSWER_DEFINITIONS = {
    "exact_match": "share of questions whose answer equals a gold answer after normalization",
    "answer_f1": "mean over questions of the best F1 of words in common with a gold answer",
    "normalization": "SQuAD's: lower case, without ASCII punctuation and the words a, an, the",
    "no answer": "an empty prediction is correct if there is no gold answer, and wrong otherwise",
}
SPAN_DEFINITIONS = {
    "span": "a predicted span is correct if label, start and end equal a gold span's; micro "
    "average over labels unless macro or weighted",
}


def normalize_answer(text: str) -> str:
    """Normalizes as SQuAD's script: case, punctuation, articles and white space (in this order)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Returns 1.0 if two answers are equal after normalization, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def answer_f1(prediction: str, answer: str) -> float:
    """Returns the F1 of the bags of words of two answers; for an empty one, whether both are."""
    found, gold = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not found or not gold:
        return float(found == gold)
    common = (Counter(found) & Counter(gold)).total()
    return 2 * common / (len(found) + len(gold))


def answer_scores(
    answers: Sequence[Sequence[str]],
    predictions: Sequence[str],
    bootstrap: Bootstrap = DEFAULT,
) -> Scores:
    """Returns exact match and F1 as SQuAD 2.0's script does, as shares (SQuAD prints percent).

    If some questions have no answer, the scores of questions with and without one follow.

    Args:
      answers: gold answers of each question; none if the text does not contain the answer.
      predictions: one per question; empty for no answer.

    Raises:
      ValueError: if there are not as many predictions as questions.
    """
    check_lengths(len(answers), len(predictions), "answers")
    counts_NP3 = np.zeros((len(answers), len(PARTS), 3))
    for i, (gold, prediction) in enumerate(zip(answers, predictions, strict=True)):
        # SQuAD drops answers that normalize to nothing.
        known = [answer for answer in gold if normalize_answer(answer)]
        match = max(exact_match(prediction, answer) for answer in known or [""])
        f1 = max(answer_f1(prediction, answer) for answer in known or [""])
        counts_NP3[i, 0 if known else 1] = match, f1, 1
    has_unanswered = counts_NP3[:, 1].any()
    return Scores(
        kind="answers",
        unit="questions",
        n=len(answers),
        values=bootstrap.intervals({"parts": counts_NP3}, _by_part if has_unanswered else _all),
        definitions=ANSWER_DEFINITIONS,
        bootstrap=bootstrap,
    )


def _all(sums: Sums) -> Mapping[str, np.ndarray]:
    total_R3 = sums["parts"].sum(1)
    return {"exact_match": _mean(total_R3, 0), "answer_f1": _mean(total_R3, 1)}


def _by_part(sums: Sums) -> Mapping[str, np.ndarray]:
    values = dict(_all(sums))
    for part, name in enumerate(PARTS):
        values[f"exact_match_{name}"] = _mean(sums["parts"][:, part], 0)
        values[f"answer_f1_{name}"] = _mean(sums["parts"][:, part], 1)
    return values


def _mean(sums_R3: np.ndarray, column: int) -> np.ndarray:
    """Returns the mean of a column; nan for no questions."""
    return np.where(sums_R3[:, 2] > 0, ratio(sums_R3[:, column], sums_R3[:, 2]), np.nan)


class LabeledSpan(NamedTuple):
    """A span of a text with a label (a slot); `end` is exclusive."""

    label: str
    start: int
    end: int


def span_scores(
    gold: Sequence[Sequence[LabeledSpan]],
    predicted: Sequence[Sequence[LabeledSpan]],
    bootstrap: Bootstrap = DEFAULT,
) -> Scores:
    """Returns precision, recall and F1 of exact spans, by label.

    Args:
      gold: spans of each text; starts and ends in any unit that both sides share.
      predicted: likewise.

    Raises:
      ValueError: if the numbers of texts differ.
    """
    items = lambda texts: [[(one.label, (one.start, one.end)) for one in spans] for spans in texts]
    counted = count_items(items(gold), items(predicted))
    return Scores(
        kind="labeled spans",
        unit="texts",
        n=len(gold),
        values=bootstrap.intervals({"spans": counted.counts_NL3}, _span_values),
        definitions=SPAN_DEFINITIONS,
        bootstrap=bootstrap,
        tables=(label_table("spans by label", "label", counted),),
    )


def _span_values(sums: Sums) -> Mapping[str, np.ndarray]:
    average = averages(sums["spans"])
    precision, recall, f1 = np.moveaxis(average["micro"], -1, 0)
    values = {"span_f1": f1, "span_precision": precision, "span_recall": recall}
    return values | {f"span_{name}_f1": average[name][..., 2] for name in AVERAGES[1:]}
