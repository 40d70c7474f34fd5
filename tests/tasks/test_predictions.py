"""The best answer over the windows of a context, against every span of every window."""

import itertools
import math

import numpy as np
import pytest

from gpt2_jax.data.examples.records import Question
from gpt2_jax.data.examples.store import examples_in_memory
from gpt2_jax.tasks.predictions import best_answers, word_values

WORDS = ["a", "b", "c", "d", "e", "f", "g"]
CONTEXT = " ".join(WORDS)  # token n has the characters 2n to 2n + 1


def examples(windows):
    """A question whose tokens are the words of the context, after two positions for others."""
    columns = []
    for start, n in windows:
        at = np.arange(start, start + n)
        columns.append({"inputs": np.zeros(n + 2, int), "types": np.zeros(n + 2, int)})
        columns[-1] |= {"char_starts": np.r_[0, 0, 2 * at], "char_ends": np.r_[0, 0, 2 * at + 1]}
        columns[-1] |= {"start": 0, "end": 0, "window": start}
    question = Question("q", "?", CONTEXT, (), "w")
    return examples_in_memory("answer", columns, [question] * len(windows))


@pytest.mark.parametrize("windows", [[(0, 7)], [(0, 4), (2, 4), (4, 3)], [(0, 5), (1, 5), (2, 5)]])
@pytest.mark.parametrize("seed", range(4))
def test_best_answer_and_its_probability(windows, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(n + 2, 2)).astype(np.float32) for _, n in windows]
    around = lambda token, start, n: min(token - start, start + n - 1 - token)
    scores = {}
    for first, last in itertools.combinations_with_replacement(range(7), 2):
        having = [k for k, (start, n) in enumerate(windows) if start <= first < start + n]
        k = max(having, key=lambda k: (around(first, *windows[k]), -k))
        start, n = windows[k]
        if last < start + n:
            starts, ends = rows[k][2:].T
            scores[first, last] = float(starts[first - start] + ends[last - start])
    scores[None] = min(float(row[0].sum()) for row in rows)
    (found,) = best_answers(examples(windows), rows)
    best = max(scores, key=scores.get)
    expected = (0, 0) if best is None else (2 * best[0], 2 * best[1] + 1)
    assert (found.start, found.end) == expected and found.text == CONTEXT[slice(*expected)]
    total = sum(math.exp(score) for score in scores.values())
    assert found.probability == pytest.approx(math.exp(scores[best]) / total, rel=1e-5)


def test_no_answer_must_be_likelier_in_every_window():
    windows = [(0, 4), (3, 4)]
    rows = [np.zeros((6, 2), np.float32) for _ in windows]
    rows[1][3, 0] = 1.0
    rows[0][0] = 5.0
    assert best_answers(examples(windows), rows)[0].text
    rows[1][0] = 5.0
    found = best_answers(examples(windows), rows)[0]
    assert not found.text and found.probability > 0.9


def test_words_have_the_value_of_their_first_token():
    columns = {name: np.zeros(5, int) for name in ("inputs", "types", "targets")}
    columns["words"] = np.array([0, 1, 1, 3, 0])
    records = [Question("q", "?", "", (), "w")]
    object.__setattr__(records[0], "words", ("a", "b", "c"))
    found = examples_in_memory("tag", [columns], records)
    assert word_values(found, [np.arange(5) / 10]) == [[0.1, None, 0.3]]
