"""Perplexity compared with the strided procedure of Hugging Face's guide, for the same weights."""

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gpt2_jax.evaluate.perplexity import evaluate_run
from gpt2_jax.interop.import_model import import_model
from tests.peers.test_transformers import theirs
from tests.tools import make_text

pytestmark = pytest.mark.peers


def guide(model, ids, max_length, stride):
    """Returns nats and tokens of spans of `max_length`, of which the last `stride` are scored.

    The procedure of huggingface.co/docs/transformers/perplexity, written from its description.
    """
    nats, tokens, scored_until = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        span, labels = ids[begin:end], ids[begin:end].clone()
        labels[: -(end - scored_until)] = -100
        with torch.no_grad():
            loss = model(span[None], labels=labels[None]).loss
        n = int((labels[1:] != -100).sum())
        nats, tokens, scored_until = nats + float(loss) * n, tokens + n, end
        if end == len(ids):
            return nats, tokens
    raise AssertionError


@pytest.mark.parametrize("stride", [10, 23, 1])
def test_strided_perplexity_equals_that_of_the_guide(tmp_path, stride):
    model = theirs(vocab_size=257)
    model.save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"), tokenizer="bytes")
    text = make_text(300)
    (tmp_path / "text.txt").write_text(text)
    nats, tokens = guide(model, torch.tensor(list(text.encode())), 24, stride)
    got = evaluate_run(str(tmp_path / "run"), None, str(tmp_path / "text.txt"), stride)
    assert got["tokens"] == tokens == 299
    assert got["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    per_word = nats / tokens * 300 / len(text.split())
    assert got["word_perplexity"] == pytest.approx(math.exp(per_word), rel=1e-4)
    assert got["byte_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    whole = evaluate_run(str(tmp_path / "run"), None, str(tmp_path / "text.txt"), None)
    assert whole["perplexity"] != got["perplexity"]
