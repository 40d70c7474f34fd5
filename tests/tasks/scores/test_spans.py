"""SQuAD's scores and exact spans, against literal values."""

import numpy as np
import pytest

from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.spans import (
    LabeledSpan,
    answer_f1,
    answer_scores,
    exact_match,
    normalize_answer,
    span_scores,
)

NONE = Bootstrap(resamples=0)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Quick, Brown-Fox!", "quick brownfox"),
        ("a.b", "ab"),
        ("an apple\tfor the\nteacher", "apple for teacher"),
        ("theatre", "theatre"),
        ("“Äpfel”", "“äpfel”"),  # only ASCII punctuation is removed
        ("the", ""),
    ],
)
def test_normalization(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "f1"),
    [
        ("The cat.", "cat", 1, 1),
        ("black cat", "the cat", 0, 2 / 3),
        ("cat cat dog", "cat dog dog", 0, 2 / 3),
        ("dog", "cat", 0, 0),
        ("", "", 1, 1),
        ("", "cat", 0, 0),
        ("the", "", 1, 1),
    ],
)
def test_one_answer(prediction, answer, em, f1):
    assert exact_match(prediction, answer) == em
    assert answer_f1(prediction, answer) == pytest.approx(f1)


def test_best_of_several_answers_and_questions_without():
    answers = [["black cat", "cat"], ["dog"], [], [], ["the"]]
    predictions = ["the cat", "a big dog", "", "guess", ""]
    scores = answer_scores(answers, predictions, NONE)
    got = scores.metrics()
    assert got["exact_match"] == pytest.approx((1 + 0 + 1 + 0 + 1) / 5)
    assert got["answer_f1"] == pytest.approx((1 + 2 / 3 + 1 + 0 + 1) / 5)
    assert got["exact_match_has_answer"] == 1 / 2
    assert got["answer_f1_has_answer"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["exact_match_no_answer"] == pytest.approx(2 / 3)
    assert set(answer_scores(answers[:2], predictions[:2]).values) == {"exact_match", "answer_f1"}


def test_answer_interval_and_lengths():
    value = answer_scores([["x"]] * 100, ["x"] * 60 + ["y"] * 40).values["exact_match"]
    assert value.estimate == 0.6 and 0.45 < value.low < 0.55 < 0.65 < value.high < 0.75
    assert np.isnan(answer_scores([], []).values["exact_match"].estimate)
    with pytest.raises(ValueError, match="1 gold answers, but 2 predicted"):
        answer_scores([["x"]], ["x", "y"])


def test_labeled_spans_are_correct_only_if_exact():
    one = LabeledSpan("time", 3, 7)
    gold = [[one, LabeledSpan("people", 10, 11)], [LabeledSpan("time", 0, 2)], []]
    predicted = [
        [one, one, LabeledSpan("people", 10, 12)],  # repeated: counts once; wrong end
        [LabeledSpan("date", 0, 2)],  # wrong label
        [one],  # right in another text
    ]
    scores = span_scores(gold, predicted, NONE)
    got = scores.metrics()
    assert got["span_precision"] == 1 / 4
    assert got["span_recall"] == 1 / 3
    assert got["span_f1"] == pytest.approx(2 / 7)
    assert got["span_macro_f1"] == pytest.approx((0 + 0 + 2 / 4) / 3)
    rows = {row[0]: row[1:] for row in scores.tables[0].rows}
    assert rows["time"] == (1 / 2, 1 / 2, pytest.approx(1 / 2), 2, 2)
    assert rows["date"] == (0.0, 0.0, 0.0, 0, 1)
