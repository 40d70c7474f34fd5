"""Weights in 8 bits: rounding, evaluation, and decoding."""

import jax
import numpy as np
import pytest

from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.perplexity import as_lines, evaluate_run
from gpt2_jax.evaluate.text_generation import open_generator
from gpt2_jax.model.definition import is_info
from gpt2_jax.nn.param import Role
from gpt2_jax.tuning.int8 import in_int8, n_bytes
from tests.tools import tiny_model
from tests.tuning.test_lora import TOKENS, logits


def test_each_output_has_its_own_scale():
    model, params = tiny_model()
    params["blocks"]["all"]["mlp"]["sublayer"]["up"]["kernel"] *= np.geomspace(1, 1e4, 64)
    quantized, stored = in_int8(model, params)
    qkv, up = (
        stored["blocks"]["all"][name]["sublayer"][layer]["kernel"]
        for name, layer in (("attn", "qkv"), ("mlp", "up"))
    )
    assert qkv["codes"].dtype == np.int8 and qkv["scale"].shape == (2, 1, 3, 2, 8)
    assert up["scale"].shape == (2, 1, 64) and stored["embedding"]["wte"]["scale"].shape == (16, 1)
    assert np.abs(up["codes"]).max((0, 1)).tolist() == [127] * 64
    restored = quantized.restored(stored)
    changed = {"matrix": 0, "table": 0}
    infos = jax.tree.leaves(model.infos, is_leaf=is_info)
    for info, x, y in zip(infos, jax.tree.leaves(params), jax.tree.leaves(restored), strict=True):
        if info.role not in (Role.MATRIX, Role.EMBEDDING):
            np.testing.assert_array_equal(x, y)
            continue
        axes = info.in_axes if info.role == Role.MATRIX else (-1,)
        step = np.abs(x).max(axes, keepdims=True) / 127
        assert (np.abs(x - y) <= 0.5001 * step).all() and (x != y).any()
        changed["matrix" if info.role == Role.MATRIX else "table"] += 1
    assert changed == {"matrix": 4, "table": 1}
    assert n_bytes(stored) < 0.5 * n_bytes(params)


@pytest.mark.parametrize("changes", [{}, {"placement__preset": "denseformer", "model__n_layer": 3}])
def test_decoding_has_the_logits_of_the_rounded_weights(changes):
    model, params = tiny_model(**changes)
    quantized, stored = in_int8(model, params)
    want = logits(model, quantized.restored(stored))
    np.testing.assert_allclose(logits(quantized, stored), want, atol=1e-5)
    np.testing.assert_allclose(
        Generator(quantized, stored, 0, 12).logits(TOKENS.tolist()), want, atol=2e-5
    )
    assert np.abs(want - logits(model, params)).max() > 1e-3


def test_evaluation_reports_the_difference(source):
    result = evaluate_run(str(source), None, None, None, int8=True)
    plain = evaluate_run(str(source), None, None, None)
    assert result["loss"] == plain["loss"] and "int8_loss" not in plain
    increase = result["int8_loss"] - result["loss"]
    assert 0 < abs(increase) < 0.05 and result["int8_loss_increase"] == increase
    assert result["int8_weight_bytes"] < 0.5 * result["weight_bytes"]
    text = "\n".join(as_lines(result))
    assert "int8_loss_increase" in text and "with weights in 8 bits" in text
    generator, _ = open_generator(str(source), int8=True)
    exact, _ = open_generator(str(source))
    got, want = (g.logits([[1, 2, 3]]) for g in (generator, exact))
    assert 0 < np.abs(got - want).max() < 0.5
