"""What a run of a task shows at its end."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_jax.data.examples.records import LabeledText, Question, TaggedWords
from gpt2_jax.evaluate import run_texts
from gpt2_jax.evaluate.run_texts import SHOWN
from gpt2_jax.train.example_evaluation import Evaluated, ExampleScore


def sample(task, records, predicted, monkeypatch):
    """Returns what is shown of predictions for records."""
    monkeypatch.setattr(run_texts, "predicted_values", lambda *_: predicted)
    data = SimpleNamespace(
        task=SimpleNamespace(name=task),
        labels=("a",),
        splits={"val": SimpleNamespace(records=records)},
    )
    score = ExampleScore(Evaluated(1.0, 1.0, 1.0, [np.zeros(1)]), None)
    return run_texts._predictions(data, score)


@pytest.mark.parametrize(
    ("task", "record", "predicted", "row"),
    [
        (
            "classify",
            LabeledText("Fine.", None, "good", "f line 1"),
            "bad",
            {"text": "Fine.", "gold": "good", "model": "bad"},
        ),
        (
            "tag",
            TaggedWords(("Ada", "slept"), ("B-PER", "O"), "f line 1"),
            ["O", "B-LOC"],
            {"gold": "Ada[B-PER] slept", "model": "Ada slept[B-LOC]"},
        ),
        (
            "answer",
            Question("1", "Who?", "Ada slept.", ((0, "Ada"), (0, "Ada slept")), "f line 1"),
            SimpleNamespace(text=""),
            {"context": "Ada slept.", "question": "Who?"}
            | {"gold": "Ada or Ada slept", "model": "(no answer)"},
        ),
    ],
)
def test_sample_has_gold_values_and_predictions(task, record, predicted, row, monkeypatch):
    shown = sample(task, [record] * 9, [predicted] * 9, monkeypatch)
    columns, rows = shown.table
    assert list(columns) == list(row)
    assert rows == [list(row.values())] * SHOWN
    blocks = shown.text.split("\n\n")
    assert len(blocks) == SHOWN
    assert [line.split(maxsplit=1) for line in blocks[0].split("\n")] == [
        [name, value] for name, value in row.items()
    ]
