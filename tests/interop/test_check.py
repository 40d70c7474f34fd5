"""The check of GPT-2 124M, applied to other weights."""

import jax
import pytest

from gpt2_jax import config as configs
from gpt2_jax.errors import UserError
from gpt2_jax.interop.check import check_gpt2, wikitext_text
from gpt2_jax.model.definition import define_model
from gpt2_jax.train.storage.checkpoint import save_params
from tests import tools


def small_gpt2(folder):
    """A run with GPT-2's vocabulary and 24 positions."""
    sizes = {"model.vocab_size": 50257, "model.n_positions": 24, "data.seq_len": 24}
    config = tools.tiny(**sizes, data__tokenizer="gpt2")
    folder.mkdir()
    (folder / "config.json").write_text(configs.to_json(config))
    model = define_model(config.model, config.placement)
    save_params(folder / "weights", jax.jit(model.init)(jax.random.key(0)))
    return str(folder)


def test_other_weights_disagree(tmp_path):
    found = list(check_gpt2(small_gpt2(tmp_path / "run"), None))
    assert [finding.agrees for finding in found] == [False, False, False]
    assert str(found[0]).endswith("DIFFERS from 124,439,808")
    loss = float(found[1].found)
    assert loss == pytest.approx(10.8, abs=0.2)  # ln 50257, for initial weights


def test_other_vocabulary_is_rejected(tmp_path):
    config = tools.tiny()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(configs.to_json(config))
    model = define_model(config.model, config.placement)
    save_params(tmp_path / "run" / "weights", jax.jit(model.init)(jax.random.key(0)))
    with pytest.raises(UserError, match="vocabulary"):
        list(check_gpt2(str(tmp_path / "run"), None))


@pytest.mark.skipif(not (tools.SHARED / "wikitext2_raw").exists(), reason="needs WikiText-2")
def test_wikitext_token_count():
    from gpt2_jax.data.tokenizer import load_tokenizer

    raw = (tools.SHARED / "wikitext2_raw" / "wiki.test.raw").read_text()
    assert len(load_tokenizer("gpt2").encode([wikitext_text(raw)])[0]) == 287_644
