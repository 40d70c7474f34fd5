"""Loss weights by label, by literal values."""

import numpy as np
import pytest

from gpt2_jax.config.sections import TaskConfig
from gpt2_jax.data.batch import LabelBatch, TokenBatch
from gpt2_jax.data.examples.store import examples_in_memory
from gpt2_jax.data.layout.assemble import Assembler
from gpt2_jax.data.layout.packed import PackedLayout
from gpt2_jax.data.layout.padded import PaddedLayout
from gpt2_jax.data.tokenizer_protocol import Specials
from gpt2_jax.errors import UserError
from gpt2_jax.tasks.class_weights import ClassWeights, weigh_classes

SPECIALS = Specials(9, 8, 7, None, None, 6, frozenset({6, 7, 8, 9}), 8)
LABELS = ("red", "green=x", "blue")


def texts(*labels):
    return examples_in_memory("classify", [{"inputs": [1, 2], "label": n} for n in labels])


def weigh(*given, examples=None):
    return weigh_classes(TaskConfig(class_weights=given), LABELS, examples or texts(0, 0, 0, 2))


def test_no_weights():
    assert weigh() is None


def test_named_weights():
    assert weigh("red=0.5", "green=x=3").tolist() == [0.5, 3, 1]
    assert weigh("red=0.5,blue=2").tolist() == [0.5, 1, 2]


def test_balanced_weights_of_texts():
    """N / (C n_c); a label without examples counts as one."""
    np.testing.assert_allclose(weigh("balanced"), [4 / 9, 4 / 3, 4 / 3])


def test_balanced_weights_of_tags_count_words():
    """Targets are label ids plus 1; 0 is none."""
    columns = {"inputs": [1, 2, 3], "targets": [0, 1, 1], "words": [0, 1, 2]}
    other = {"inputs": [1, 2], "targets": [3, 0], "words": [1, 1]}
    found = weigh("balanced", examples=examples_in_memory("tag", [columns, other]))
    np.testing.assert_allclose(found, [3 / 6, 3 / 3, 3 / 3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("red",), "'red' must be LABEL=WEIGHT with a positive weight, as in red=0.5"),
        (("red=0",), "'red=0' must be LABEL=WEIGHT"),
        (("red=nan",), "'red=nan' must be LABEL=WEIGHT"),
        (("red=2", "balanced"), "'balanced' must be LABEL=WEIGHT"),
        (("bleu=2",), "the training data has no label 'bleu'; did you mean 'blue'?"),
    ],
)
def test_wrong_weights(given, message):
    with pytest.raises(UserError) as found:
        weigh(*given)
    assert message in str(found.value)


def test_targets_of_labels_are_weighted():
    layout = PaddedLayout(Assembler(texts(0, 1, 2), SPECIALS), [4], 4, 0)
    plain, weighted = (
        one.batch(1) for one in (layout, ClassWeights(layout, np.array([0.5, 2.0, 1.0])))
    )
    assert isinstance(weighted, LabelBatch) and weighted.weights_B.dtype == np.float32
    expected = np.array([0.5, 2, 1])[plain.labels_B] * (plain.inputs.segments_BT[:, 0] > 0)
    assert sorted(plain.weights_B) == [0, 1, 1, 1]
    np.testing.assert_array_equal(weighted.weights_B, expected)
    np.testing.assert_array_equal(weighted.inputs.ids_BT, plain.inputs.ids_BT)


def test_targets_of_tags_are_weighted():
    one = {"inputs": [1, 2, 3], "targets": [0, 1, 3], "words": [0, 1, 2]}
    examples = examples_in_memory("tag", [one])
    layout = PackedLayout(Assembler(examples, SPECIALS), 4, 1, 0)
    batch = ClassWeights(layout, np.array([0.5, 2.0, 4.0])).batch(0)
    assert isinstance(batch, TokenBatch)
    assert batch.weights_BT.tolist() == [[0, 0.5, 4, 0]]
    assert layout.batch(0).weights_BT.tolist() == [[0, 1, 1, 0]]
