"""ROUGE against literal values."""

import random

import pytest

from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.rouge import longest_overlap, ngram_overlap, rouge_scores, words_of

NONE = Bootstrap(resamples=0)


def test_literal_scores():
    """Lin 2004, section 3: police killed the gunman / police kill the gunman: ROUGE-L is 3/4."""
    got = rouge_scores([["police killed the gunman"]], ["police kill the gunman"], bootstrap=NONE)
    assert got.metrics() == {
        "rouge1": pytest.approx(3 / 4),
        "rouge2": pytest.approx(1 / 3),
        "rougeL": pytest.approx(3 / 4),
    }
    got = rouge_scores([["police killed the gunman"]], ["the gunman kill police"], bootstrap=NONE)
    assert got.metrics()["rougeL"] == pytest.approx(1 / 2)
    assert got.metrics()["rouge1"] == pytest.approx(3 / 4)


def test_repeated_words_count_as_often_as_they_match():
    assert ngram_overlap(1)(["the", "the", "the", "cat"], ["the", "cat", "the"]) == (3, 4, 3)
    assert ngram_overlap(2)(["a", "b", "a", "b"], ["a", "b"]) == (1, 3, 1)
    assert ngram_overlap(2)(["a"], ["a", "b"]) == (0, 0, 1)


def slow_length(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return table[-1][-1]


def test_longest_common_subsequence_equals_dynamic_programming():
    rng = random.Random(0)
    for _ in range(200):
        a, b = (rng.choices("abcd", k=rng.randint(0, 90)) for _ in range(2))
        assert longest_overlap(a, b) == (slow_length(a, b), len(a), len(b))


def test_best_reference_counts_for_each_score():
    references = [["x y", "a b c d"]]
    one = rouge_scores([references[0][:1]], ["a b"], bootstrap=NONE).metrics()
    both = rouge_scores(references, ["a b"], bootstrap=NONE)
    assert one["rouge1"] == 0.0
    assert both.metrics()["rouge1"] == pytest.approx(2 / 3)
    assert both.tables[0].rows[0] == ("rouge1", 1.0, 0.5, pytest.approx(2 / 3))


def test_words():
    assert words_of("Käse's 2nd_test", "ascii") == ["k", "se", "s", "2nd", "test"]
    assert words_of("Käse's 2nd_test", "unicode") == ["käse", "s", "2nd", "test"]
    assert "unicode: lower case" in rouge_scores([["a"]], ["a"], "unicode").text()


def test_empty_summary_and_missing_reference():
    assert rouge_scores([["a b"]], [""], bootstrap=NONE).metrics()["rougeL"] == 0.0
    with pytest.raises(ValueError, match="needs a reference summary"):
        rouge_scores([[]], ["a"])


def test_interval_of_the_mean():
    value = rouge_scores([["a b"]] * 40, ["a b"] * 20 + ["c d"] * 20).values["rouge1"]
    assert value.estimate == 0.5 and 0.3 < value.low < 0.45 and 0.55 < value.high < 0.7
