"""The wording of messages."""

import pytest

from gpt2_jax.errors import counted, suggestion


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 layers"), (1, "1 layer"), (1200, "1,200 layers"), ("3 + 3", "3 + 3 layers")],
)
def test_plural(n, text):
    assert counted(n, "layer") == text
    assert counted(2, "batch", "es") == "2 batches" and counted(1, "batch", "es") == "1 batch"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("evaluate", "; did you mean 'eval'?"),  # although `ablate` has more letters in common
        ("diag", "; did you mean 'diagnose'?"),
        ("evla", "; did you mean 'eval'?"),
        ("export", "; choose one of ablate, diagnose, eval"),
    ],
)
def test_suggestion(word, hint):
    assert suggestion(word, ["eval", "ablate", "diagnose"]) == hint
