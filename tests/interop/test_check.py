"""The check of the released checkpoint: on weights that are not its own."""

import jax
import pytest

from gpt2_jax import config as configs
from gpt2_jax.errors import UserError
from gpt2_jax.interop.check import check_gpt2, wikitext_text
from gpt2_jax.model.structure import structure
from gpt2_jax.train.checkpoint import save_params
from tests import tools


def small_gpt2(folder):
    """A run with GPT-2's vocabulary and 24 positions."""
    config = tools.tiny(model__vocab_size=50257, model__n_positions=24, data__seq_len=24)
    config.data.tokenizer = "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(configs.to_json(config))
    save_params(folder / "weights", jax.jit(structure(config.model).init)(jax.random.key(0)))
    return str(folder)


def test_another_model_is_told_from_gpt2(tmp_path):
    found = list(check_gpt2(small_gpt2(tmp_path / "run"), None))
    assert [finding.agrees for finding in found] == [False, False, False]
    assert str(found[0]).endswith("DIFFERS from 124,439,808")
    loss = float(found[1].found)
    assert loss == pytest.approx(10.8, abs=0.2)  # ln 50257, from weights near their init


def test_another_vocabulary_is_refused(tmp_path):
    config = tools.tiny()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(configs.to_json(config))
    model = structure(config.model)
    save_params(tmp_path / "run" / "weights", jax.jit(model.init)(jax.random.key(0)))
    with pytest.raises(UserError, match="not of GPT-2's vocabulary"):
        list(check_gpt2(str(tmp_path / "run"), None))


@pytest.mark.skipif(not (tools.SHARED / "wikitext2_raw").exists(), reason="needs WikiText-2")
def test_wikitext_is_joined_as_in_the_guide():
    from gpt2_jax.data.tokenizer import load_tokenizer

    raw = (tools.SHARED / "wikitext2_raw" / "wiki.test.raw").read_text()
    assert len(load_tokenizer("gpt2").encode([wikitext_text(raw)])[0]) == 287_644
