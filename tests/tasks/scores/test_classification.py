"""Classification against literal values, and the picture of a confusion matrix."""

import numpy as np
import pytest

from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.classification import classification_scores, confusion_matrix
from gpt2_jax.tasks.scores.confusion_plot import plot_confusion

NONE = Bootstrap(resamples=0)
NAMES = ["a", "b", "c", "oos"]
GOLD = [0, 0, 0, 1, 1, 3, 3]
PREDICTED = [0, 0, 1, 1, 1, 3, 0]


def test_literal_scores():
    """F1: a 4/6, b 4/5, oos 2/3. Class c occurs nowhere, so it is not in the mean."""
    scores = classification_scores(GOLD, PREDICTED, NAMES, bootstrap=NONE)
    assert scores.n == 7
    got = scores.metrics("val/")
    assert set(got) == {"val/accuracy", "val/macro_f1"}
    assert got["val/accuracy"] == pytest.approx(5 / 7)
    assert got["val/macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 2 / 3) / 3)
    classes, confusions = scores.tables
    assert classes.rows[0] == ("a", 2 / 3, 2 / 3, pytest.approx(2 / 3), 3, 3)
    assert classes.rows[2] == ("c", 0.0, 0.0, 0.0, 0, 0)
    assert confusions.rows == (("a", "b", 1, 1 / 3), ("oos", "a", 1, 1 / 2))


def test_out_of_scope_is_scored_separately():
    got = classification_scores(GOLD, PREDICTED, NAMES, "oos", NONE).metrics()
    assert got["accuracy"] == pytest.approx(5 / 7)
    assert got["in_scope_accuracy"] == pytest.approx(4 / 5)
    assert got["out_of_scope_recall"] == 1 / 2
    assert got["out_of_scope_precision"] == 1.0
    with pytest.raises(ValueError, match="'none' is not the name of a class"):
        classification_scores(GOLD, PREDICTED, NAMES, "none")


def test_confusion_matrix():
    want = [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert confusion_matrix(GOLD, PREDICTED, 4).tolist() == want
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("gold", [[4, 0], [-1, 0]])
def test_unknown_class_is_refused(gold):
    with pytest.raises(ValueError, match="classes must be from 0 to 3"):
        confusion_matrix(gold, [0, 0], 4)
    with pytest.raises(ValueError, match="2 gold classes, but 1 predicted"):
        confusion_matrix(gold, [0], 4)


def test_interval_of_accuracy_is_that_of_a_proportion():
    """A proportion p of n has the standard error sqrt(p (1 - p) / n)."""
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 5, 400)
    predicted = np.where(rng.random(400) < 0.8, gold, (gold + 1) % 5)
    value = classification_scores(gold, predicted, list("vwxyz")).values["accuracy"]
    half = 1.96 * np.sqrt(value.estimate * (1 - value.estimate) / 400)
    assert value.high - value.low == pytest.approx(2 * half, rel=0.1)


def test_no_examples():
    assert classification_scores([], [], NAMES, "oos").metrics()["accuracy"] == 0.0


@pytest.mark.parametrize("n", [3, 60])
def test_picture_of_the_confusion_matrix(tmp_path, n):
    matplotlib = pytest.importorskip("matplotlib.image")
    matrix = np.eye(n, dtype=int) * 9
    path = tmp_path / "confusion.png"
    plot_confusion(matrix, [f"class $i$ {i}" for i in range(n)], path, "test")
    height, width, _ = matplotlib.imread(path).shape
    assert min(height, width) >= 500
    assert [one.name for one in tmp_path.iterdir()] == ["confusion.png"]
    plot_confusion(matrix[::-1], [f"class {i}" for i in range(n)], tmp_path / "other.png", "test")
    assert (tmp_path / "other.png").read_bytes() != path.read_bytes()
