"""Magnitude pruning: which weights are 0, and that training keeps them."""

import jax
import numpy as np
import pytest

from gpt2_jax.config import replace
from gpt2_jax.config.check import check
from gpt2_jax.errors import UserError
from gpt2_jax.train import loop
from gpt2_jax.train.optim.pruning import pruned
from gpt2_jax.train.storage.open_run import open_run
from tests.runs import begin, losses
from tests.tools import tiny, tiny_model


def test_the_smallest_weights_of_each_matrix_are_0():
    model, params = tiny_model()
    got = pruned(model, params, 0.25)
    w, p = (tree["blocks"]["all"]["attn"]["sublayer"]["qkv"]["kernel"] for tree in (params, got))
    for layer in range(2):
        for part in range(3):
            before, after = (np.asarray(x[layer, :, part]).ravel() for x in (w, p))
            smallest = np.argsort(np.abs(before))[: before.size // 4]
            want = before.copy()
            want[smallest] = 0
            np.testing.assert_array_equal(after, want)
    for tree in (params, got):
        del tree["blocks"]["all"]["attn"]["sublayer"]["qkv"]["kernel"]
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), params, got)
    names = jax.tree_util.tree_leaves_with_path(changed)
    assert {path[-2].key for path, is_changed in names if is_changed} == {"out", "up", "down"}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_keeps_pruned_weights_at_0(name, source, text_file, tmp_path):
    fields = {"optimizer__sparsity": 0.5, "optimizer__name": name, "optimizer__momentum": 0.9}
    given = begin(text_file, source, **fields)
    given = replace(given, {"optimizer.schedule": "constant"})
    assert loop.train(replace(given, {"train.steps": 5}), str(tmp_path / "run")) == 0
    assert loop.train(given, str(tmp_path / "run")) == 0
    before, after = (open_run(str(d)).params for d in (source, tmp_path / "run"))
    for sublayer, layer in (("attn", "qkv"), ("attn", "out"), ("mlp", "up"), ("mlp", "down")):
        old, new = (
            np.asarray(tree["blocks"]["all"][sublayer]["sublayer"][layer]["kernel"])
            for tree in (before, after)
        )
        zero = new == 0
        assert zero.mean() == pytest.approx(0.5, abs=0.01)
        assert np.abs(old[zero]).max() < np.abs(old).max() and (new != old)[~zero].all()
    assert losses(tmp_path / "run")[10] < losses(tmp_path / "run")[0]


def test_pruning_needs_weights_and_trains_them(text_file, tmp_path):
    given = begin(text_file, "x", optimizer__sparsity=0.5)
    with pytest.raises(UserError, match=r"optimizer\.sparsity needs the weights of another run"):
        loop.train(replace(given, {"train.init_from": None}), str(tmp_path / "run"))
    wrong = {"optimizer.sparsity": 0.5, "tune.method": "lora"}
    with pytest.raises(UserError, match=r"does not support tune\.method=lora"):
        check(replace(tiny(), wrong))
