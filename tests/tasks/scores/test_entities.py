"""Entities against literal values and against conlleval, written here from its description."""

import random
from collections import Counter

import numpy as np
import pytest

from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.entities import Entity, entities, entity_scores

NONE = Bootstrap(resamples=0)


@pytest.mark.parametrize(
    ("tags", "strict", "lenient"),
    [
        ("B-X I-X O", [("X", 0, 2)], [("X", 0, 2)]),
        ("B-X B-X", [("X", 0, 1), ("X", 1, 2)], [("X", 0, 1), ("X", 1, 2)]),
        ("I-X I-X", [], [("X", 0, 2)]),
        ("O I-X", [], [("X", 1, 2)]),
        ("B-X I-Y", [("X", 0, 1)], [("X", 0, 1), ("Y", 1, 2)]),
        ("B-X I-Y I-X", [("X", 0, 1)], [("X", 0, 1), ("Y", 1, 2), ("X", 2, 3)]),
        ("B-X O I-X", [("X", 0, 1)], [("X", 0, 1), ("X", 2, 3)]),
        ("I-X B-X I-X", [("X", 1, 3)], [("X", 0, 1), ("X", 1, 3)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)], [("creative-work", 0, 2)]),
        ("O O", [], []),
        ("", [], []),
    ],
)
def test_entities_of_a_sentence(tags, strict, lenient):
    assert entities(tags.split(), "strict") == [Entity(*one) for one in strict]
    assert entities(tags.split(), "lenient") == [Entity(*one) for one in lenient]


@pytest.mark.parametrize("tag", ["X", "B", "B-", "S-X", "o", ""])
def test_other_tags_are_refused(tag):
    with pytest.raises(ValueError, match="is not O, B-type or I-type"):
        entities(["O", tag], "lenient")


def random_tags(rng: random.Random, n: int) -> list[list[str]]:
    tags = ["O", "O", "B-X", "I-X", "B-Y", "I-Y", "B-a-b", "I-a-b"]
    return [rng.choices(tags, k=rng.randint(0, 9)) for _ in range(n)]


def noisy_copy(rng: random.Random, sentences: list[list[str]]) -> list[list[str]]:
    other = random_tags(rng, 1000)
    pool = [tag for tags in other for tag in tags]
    return [[tag if rng.random() < 0.8 else rng.choice(pool) for tag in tags] for tags in sentences]


def conlleval(gold, predicted):
    """The CoNLL-2000 script's loop: chunks open and close while both columns are read together."""

    def starts(previous, now):
        (p_tag, p_type), (tag, kind) = previous, now
        return tag == "B" or (tag == "I" and (p_tag == "O" or p_type != kind))

    def ends(previous, now):
        (p_tag, p_type), (tag, kind) = previous, now
        return p_tag != "O" and (tag in "BO" or p_type != kind)

    split = lambda tag: tuple(tag.split("-", 1)) if tag != "O" else ("O", "")
    correct, found, true = Counter(), Counter(), Counter()
    last_gold = last_found = ("O", "")
    in_correct = False
    for gold_tags, found_tags in zip(gold, predicted, strict=True):
        for g, f in [
            *zip(map(split, gold_tags), map(split, found_tags), strict=True),
            *[(("O", ""),) * 2],
        ]:
            gold_ends, found_ends = ends(last_gold, g), ends(last_found, f)
            if in_correct:
                if gold_ends and found_ends:
                    in_correct = False
                    correct[last_gold[1]] += 1
                elif gold_ends != found_ends or g[1] != f[1]:
                    in_correct = False
            if starts(last_gold, g) and starts(last_found, f) and g[1] == f[1]:
                in_correct = True
            true[g[1]] += starts(last_gold, g)
            found[f[1]] += starts(last_found, f)
            last_gold, last_found = g, f
    n_correct, n_found, n_true = (sum(one.values()) for one in (correct, found, true))
    precision, recall = n_correct / n_found, n_correct / n_true
    types = {t: (correct[t], found[t], true[t]) for t in true if t}
    return precision, recall, 2 * precision * recall / (precision + recall), types


@pytest.mark.parametrize("seed", range(5))
def test_lenient_scores_equal_conlleval(seed):
    rng = random.Random(seed)
    gold = random_tags(rng, 60)
    predicted = noisy_copy(rng, gold)
    precision, recall, f1, types = conlleval(gold, predicted)
    scores = entity_scores(gold, predicted, NONE)
    got = scores.metrics()
    assert got["entity_precision_lenient"] == pytest.approx(precision, abs=1e-12)
    assert got["entity_recall_lenient"] == pytest.approx(recall, abs=1e-12)
    assert got["entity_f1_lenient"] == pytest.approx(f1, abs=1e-12)
    assert got["entity_f1_strict"] != pytest.approx(f1, abs=1e-3)
    rows = {row[0]: row for row in scores.tables[1].rows}
    assert set(rows) == {*types, "(micro)", "(macro)", "(weighted)"}
    for name, (correct, found, true) in types.items():
        assert rows[name][4:] == (true, found)
        assert rows[name][1] == pytest.approx(correct / found)


GOLD = [["B-X", "I-X", "O", "B-Y"], ["O", "O", "B-Z"]]
PREDICTED = [["B-X", "I-X", "O", "I-Y"], ["O", "B-X", "O"]]


def test_literal_scores():
    """Strict: 1 of 2 predicted and of 3 gold. Lenient: I-Y is an entity, so 2 of 3 and 3."""
    got = entity_scores(GOLD, PREDICTED, NONE).metrics()
    assert got["entity_precision_strict"] == 1 / 2
    assert got["entity_recall_strict"] == 1 / 3
    assert got["entity_f1_strict"] == pytest.approx(2 / 5)
    assert got["entity_f1_lenient"] == pytest.approx(2 / 3)
    assert got["entity_macro_f1_strict"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert got["entity_macro_f1_lenient"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert got["entity_weighted_f1_lenient"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert got["token_accuracy"] == 4 / 7


def test_table_by_tag_is_apart_from_the_table_by_entity():
    strict, lenient, tags = entity_scores(GOLD, PREDICTED, NONE).tables
    assert "strict" in strict.title and "lenient" in lenient.title
    assert "not entities" in tags.title
    rows = {row[0]: row[1:] for row in tags.rows}
    assert rows["O"] == (2 / 3, 2 / 3, pytest.approx(2 / 3), 3, 3)
    assert rows["I-Y"] == (0.0, 0.0, 0.0, 0, 1)
    assert rows["(micro)"][2] == 4 / 7  # equals token accuracy
    assert "O" not in {row[0] for row in strict.rows}


def test_no_entity_and_no_sentence():
    for gold in ([["O", "O"]], [[]], []):
        got = entity_scores(gold, gold).metrics()
        assert got["entity_f1_strict"] == 0.0
        assert not np.isnan(list(got.values())).any()


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match="1 gold sentences, but 0 predicted"):
        entity_scores([["O"]], [])
    with pytest.raises(ValueError, match="2 gold tags in a sentence, but 1 predicted"):
        entity_scores([["O", "O"]], [["O"]])


def test_intervals_enclose_the_estimate_and_resample_sentences():
    rng = random.Random(1)
    gold = random_tags(rng, 200)
    predicted = noisy_copy(rng, gold)
    value = entity_scores(gold, predicted, Bootstrap(300)).values["entity_f1_strict"]
    assert value.low < value.estimate < value.high
    # Four copies of the data: the interval is about half as wide.
    wide = value.high - value.low
    value = entity_scores(gold * 4, predicted * 4, Bootstrap(300)).values["entity_f1_strict"]
    assert 0.35 < (value.high - value.low) / wide < 0.7
