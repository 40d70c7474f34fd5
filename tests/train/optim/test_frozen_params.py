"""Frozen parameters: no gradients, moments or changes, and the same losses as with masking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.model.definition import define_model, is_info
from gpt2_jax.train import loop
from gpt2_jax.train.optim.frozen_params import Frozen, frozen_rows, join, split
from gpt2_jax.train.optim.optimizer import trainable_infos
from gpt2_jax.train.step import make_gradients
from gpt2_jax.train.storage.checkpoint import Checkpoints, restore_params
from gpt2_jax.train.storage.open_run import open_run
from tests.runs import begin
from tests.tools import tiny
from tests.train.test_step import Trainer

FROZEN = ("wte,wpe", "blocks.0", "*.bias")
# Losses of a program that computes all gradients and multiplies those of frozen rows by 0.
LOSSES = {
    "rows": [2.3581479, 2.3252773, 2.2777803, 2.2768555, 2.2653461],
    "muon": [2.3581476, 2.3481317, 2.3239837, 2.3426912, 2.3306079],
    "scan": [2.3553522, 2.3667543, 2.3250942, 2.3223939, 2.2977176],
    "mixed": [2.3553522, 2.2746274, 2.1132455, 2.0348725, 1.9122380],
}
CHANGES = {
    "rows": {"mesh__data": 1, "optimizer__frozen": FROZEN, "optimizer__weight_decay": 0.5},
    "muon": {
        "mesh__data": 2,
        "optimizer__name": "muon",
        "optimizer__frozen": FROZEN,
        "optimizer__weight_decay": 0.5,
    },
    "scan": {
        "mesh__data": 2,
        "train__accumulation": 2,
        "model__n_layer": 4,
        "model__unroll": False,
        "optimizer__frozen": ("wte", "blocks.0", "blocks.1"),
    },
    "mixed": {
        "mesh__data": 1,
        "model__n_layer": 4,
        "optimizer__frozen": ("blocks.1", "blocks.3.mlp"),
        "optimizer__lr_multipliers": ("wpe=0", "blocks.*.attn=0.5"),
        "track__diagnostics_every": 5,
    },
}


def test_the_optimizer_knows_only_trainable_parameters():
    config = tiny(optimizer__frozen=("wte,wpe", "blocks.0"))
    model = define_model(config.model, config.placement)
    params = model.init(jax.random.key(0))
    trainable, _ = split(params, frozen_rows(config.optimizer, model))
    infos = trainable_infos(config.optimizer, model)
    assert len(jax.tree.leaves(infos, is_leaf=is_info)) == len(jax.tree.leaves(trainable))
    assert len(jax.tree.leaves(trainable)) < len(jax.tree.leaves(params))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "mixed")]


@pytest.mark.parametrize("name", ["rows", "scan", *SLOW])
def test_losses_equal_those_of_masked_gradients(name):
    trainer, losses = Trainer(**CHANGES[name]), []
    for step in range(5):
        trainer.state, metrics = trainer.step(trainer.state, trainer.batch(step))
        losses.append(metrics["loss"].item())
    np.testing.assert_allclose(losses, LOSSES[name], rtol=0, atol=2e-6)
    if name == "mixed":
        assert (metrics["block_grad_norms"] > 0).tolist() == [True, False, True, True]


def shapes(tree):
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="."): x.shape for p, x in paths}


def test_only_trainable_rows_have_moments():
    state = Trainer(optimizer__frozen=FROZEN).state
    assert shapes(state.opt_state[0].mu) == shapes(state.params) == {
        "blocks.all.attn.pre.gain": (1, 16),
        "blocks.all.attn.sublayer.out.kernel": (1, 2, 8, 16),
        "blocks.all.attn.sublayer.qkv.kernel": (1, 16, 3, 2, 8),
        "blocks.all.mlp.pre.gain": (1, 16),
        "blocks.all.mlp.sublayer.down.kernel": (1, 64, 16),
        "blocks.all.mlp.sublayer.up.kernel": (1, 16, 64),
        "ln_f.gain": (16,),
    }  # fmt: skip
    muon = Trainer(optimizer__name="muon", optimizer__frozen=("blocks.*.attn", "blocks.0")).state
    sizes = [x.size for x in jax.tree.leaves(muon.opt_state) if x.size >= 16 * 16]
    assert sorted(sizes) == [16 * 16, 16 * 16, 16 * 64, 16 * 64]  # wte's two moments; up and down


def test_muon_trains_the_rest_if_all_matrices_are_frozen():
    trainer = Trainer(mesh__data=1, optimizer__name="muon", optimizer__frozen=("*.kernel",))
    before = np.array(trainer.state.params["embedding"]["wte"])
    trainer.run(1)
    assert (np.asarray(trainer.state.params["embedding"]["wte"]) != before).any()


def flops(*frozen):
    made = tiny(model__unroll=True, optimizer__frozen=frozen)
    trainer = Trainer(model__unroll=True, optimizer__frozen=frozen, mesh__data=1)
    state = trainer.state
    gradients = jax.jit(make_gradients(made, define_model(made.model, made.placement), None))
    arguments = (state.params, state.frozen, trainer.batch(0), state.step, state.seed)
    return gradients.lower(*arguments).compile().cost_analysis()["flops"]


def test_gradients_of_frozen_parameters_are_not_computed():
    """A third of a matrix's FLOPs are for its gradient; the embedding's gradient needs the rest."""
    every = flops()
    assert flops("blocks") < 0.85 * every and flops("blocks.*.mlp") < 0.9 * every


@pytest.mark.parametrize("devices", [1, 2])
def test_frozen_rows_are_unchanged_and_a_run_resumes_bitwise(devices, tmp_path):
    trainer = Trainer(mesh__data=devices, optimizer__frozen=FROZEN)
    first = jax.tree.map(np.array, trainer.state.all_params)
    trainer.run(3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, trainer.state, {})
    checkpoints.wait()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trainer.state
    )
    stored = restore_params(checkpoints.path(3), jax.tree.map(jnp.asarray, first), 3)
    jax.tree.map(np.testing.assert_array_equal, stored, trainer.state.all_params)
    more = trainer.run(2)
    last = jax.tree.map(np.array, trainer.state)
    trainer.state = checkpoints.restore(3, like)
    checkpoints.close()
    assert trainer.run(2) == more
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, trainer.state), last)
    up, then = (tree["blocks"]["all"]["mlp"]["sublayer"]["up"] for tree in (first, stored))
    np.testing.assert_array_equal(then["kernel"][0], up["kernel"][0])
    np.testing.assert_array_equal(then["bias"], up["bias"])
    np.testing.assert_array_equal(stored["embedding"]["wte"], first["embedding"]["wte"])
    assert (np.asarray(then["kernel"][1]) != up["kernel"][1]).any()


def test_run_starts_from_weights_that_it_freezes(source, text_file, tmp_path):
    given = begin(text_file, source, train__steps=5, optimizer__frozen=("wte", "blocks.1"))
    assert loop.train(given, str(tmp_path / "run")) == 0
    before, after = (open_run(str(run)).params for run in (source, tmp_path / "run"))
    kernel = lambda params: np.asarray(params["blocks"]["all"]["mlp"]["sublayer"]["up"]["kernel"])
    np.testing.assert_array_equal(after["embedding"]["wte"], before["embedding"]["wte"])
    np.testing.assert_array_equal(kernel(after)[1], kernel(before)[1])
    assert (kernel(after)[0] != kernel(before)[0]).any()


def test_split_and_join_keep_the_order_of_rows():
    x = np.arange(10.0).reshape(5, 2)
    rows = (True, False, False, True, False)
    kinds = {"stack": Frozen(None, rows), "whole": Frozen(None, (True,)), "free": None}
    trainable, frozen = split({"stack": x, "whole": x, "free": x}, kinds)
    np.testing.assert_array_equal(trainable["stack"], [[2, 3], [4, 5], [8, 9]])
    np.testing.assert_array_equal(frozen["stack"].values, [[0, 1], [6, 7]])
    assert trainable["whole"] is None and frozen["free"] is None
    joined = join(trainable, frozen)
    for name in kinds:
        np.testing.assert_array_equal(joined[name], x)
    assert split({"free": x}, None) == ({"free": x}, None)
