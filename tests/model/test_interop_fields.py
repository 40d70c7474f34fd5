"""Fields that exist because some pretrained models have them."""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.errors import UserError
from tests import tools

TOKENS = jnp.arange(8)[None] % 5


def logits(model, params):
    return np.asarray(model.bind(params)(TOKENS))


def test_unused_positions_come_before_the_first():
    model, params = tools.tiny_model(model__position_offset=2)
    wpe = params["embedding"]["wpe"]
    assert len(wpe) == model.cfg.n_positions + 2
    base = logits(model, params)
    for row, changed in [(0, False), (1, False), (2, True), (9, True), (10, False)]:
        params["embedding"]["wpe"] = wpe.at[row].add(1.0)
        assert (logits(model, params) != base).any() == changed, row


def test_logits_have_a_bias():
    (plain, params), (biased, _) = tools.tiny_model(), tools.tiny_model(model__logits_bias=True)
    n_real = plain.cfg.vocab_size
    bias = jnp.linspace(-1.0, 1.0, n_real)
    got = logits(biased, params | {"logits_bias": bias})
    base = logits(plain, params)
    np.testing.assert_allclose(got[..., :n_real], base[..., :n_real] + bias, rtol=1e-6)
    np.testing.assert_array_equal(got[..., n_real:], base[..., n_real:])  # padding ids


def test_offset_without_learned_positions_is_rejected():
    with pytest.raises(UserError, match="position_offset=2 has no effect"):
        tools.tiny(model__position_offset=2, placement__positions="rotary")
