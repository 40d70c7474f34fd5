"""Diagnoses of an encoder-decoder, compared with an oracle in numpy and float64; the command."""

import csv
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.ablation.diagnosis import BY_BLOCK, STEP_LR, diagnose
from gpt2_jax.data.batch import PairBatch
from gpt2_jax.model.definition import define_model
from gpt2_jax.train.distributed.mesh import make_mesh
from tests.model.architectures import REAL, SOURCE, TARGET, oracle
from tests.tools import noisy, run, tiny

# Rows weigh differently, so that a mean over devices is not the mean over targets.
WEIGHTS = (REAL * np.array([[1.0], [0.25]])).astype(np.float32)
TARGETS = [np.random.default_rng(i).integers(0, 11, REAL.shape, np.int32) for i in range(2)]
BATCHES = [PairBatch(SOURCE, TARGET, targets, WEIGHTS) for targets in TARGETS]
DEPTHS = {"encoder": 1, "decoder": 2}


@pytest.fixture(scope="module")
def measured():
    config = tiny(
        placement__preset="post_ln",
        model__architecture="encoder_decoder",
        model__n_encoder_layer=DEPTHS["encoder"],
        model__unroll=False,
        train__batch_size=2,
        mesh__data=2,
    )
    model = define_model(config.model, config.placement)
    params = noisy(model.init(jax.random.key(0)))
    mesh = make_mesh(config.train, config.mesh)
    return model, params, diagnose("p", config, model, mesh, params, 0, BATCHES)


@pytest.fixture(scope="module")
def gradients(measured):
    """Gradients of each batch's loss."""
    model, params, _ = measured

    @jax.jit
    @jax.grad
    def gradient(params, targets):
        logs = jax.nn.log_softmax(model.bind(params)(TARGET, source=SOURCE)[..., :11])
        nll = -jnp.take_along_axis(logs, targets[..., None], -1)[..., 0]
        return (WEIGHTS * nll).sum() / WEIGHTS.sum()

    return [gradient(params, targets) for targets in TARGETS]


def loss(model, params, targets):
    logits = oracle("post_ln", model, params)[-1]
    nll = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    )
    return (WEIGHTS * nll).sum() / WEIGHTS.sum()


def rms(x, real):
    return np.sqrt((x[real] ** 2).mean())


def test_each_tower_has_its_quantities(measured):
    found = measured[2].by_block
    assert list(found) == list(DEPTHS) and measured[2].depths == DEPTHS
    assert set(found["decoder"]) == set(BY_BLOCK)
    assert set(found["encoder"]) == set(BY_BLOCK) - {"cross_ratio"}
    for tower, depth in DEPTHS.items():
        for name, values in found[tower].items():
            assert values.shape == (depth,) and np.isfinite(values).all(), name
            assert (values != 0).all(), name


def test_loss_and_gradients_are_means_over_targets(measured, gradients):
    model, params, got = measured
    losses = [loss(model, params, targets) for targets in TARGETS]
    assert got.whole["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    mean = jax.tree.map(lambda *each: sum(each) / len(each), *gradients)
    for tower, depth in DEPTHS.items():
        norms = partial(block_norms, tower=tower, depth=depth)
        each = np.mean([norms(grads) for grads in gradients], 0)
        np.testing.assert_allclose(got.by_block[tower]["grad_norm"], each, rtol=1e-4)
        of_mean = norms(mean)
        np.testing.assert_allclose(got.by_block[tower]["mean_grad_norm"], of_mean, rtol=1e-4)
        assert (of_mean < 0.99 * each).all()


def block_norms(grads, tower, depth):
    leaves = jax.tree.leaves(grads[tower]["blocks"])
    rows = [np.concatenate([np.ravel(x[l]) for x in leaves]) for l in range(depth)]
    return np.array([np.linalg.norm(row) for row in rows])


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_first_step_moves_the_streams_of_both_towers(measured, gradients, kind):
    """A Post-LN tower's output is the stream after its last block, here the encoder's only one.

    In float64 the difference is exact enough at `STEP_LR` itself.
    """
    model, params, got = measured
    to_64 = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    moves = {"sgd": lambda g: g, "adam": lambda g: g / (abs(g) + 1e-8)}
    step = lambda p, g: p - STEP_LR * moves[kind](g)
    before = oracle("post_ln", model, to_64(params))
    after = oracle("post_ln", model, jax.tree.map(step, to_64(params), to_64(gradients[0])))
    memory, hidden = (new - old for new, old in zip(after[:2], before[:2], strict=True))
    real = SOURCE.segments_BT != 0
    want = rms(memory, real) / rms(before[0], real)
    assert got.by_block["encoder"][f"{kind}_change"][0] == pytest.approx(want, rel=2e-2)
    want = rms(hidden, REAL) / rms(before[1], REAL)
    assert got.by_block["decoder"][f"{kind}_change"][-1] == pytest.approx(want, rel=2e-2)
    assert got.whole[f"{kind}_model_change"] == pytest.approx(rms(hidden, REAL), rel=2e-2)


@pytest.mark.parametrize(("tower", "block"), [("encoder", 0), ("decoder", 1)])
def test_skip_cost_is_that_of_sublayers_that_return_0(measured, tower, block):
    model, params, got = measured
    without = jax.tree.map(np.array, params)
    for name, sublayer in without[tower]["blocks"]["all"].items():
        if name in ("attn", "cross", "mlp"):
            for x in sublayer["sublayer"]["down" if name == "mlp" else "out"].values():
                x[block] = 0
    want = loss(model, without, TARGETS[0]) - loss(model, params, TARGETS[0])
    assert abs(want) > 1e-3
    assert got.by_block[tower]["skip_cost"][block] == pytest.approx(want, abs=1e-5)


@pytest.mark.slow
def test_depths_of_the_command_are_those_of_both_towers(tmp_path):
    """The config sets 3 blocks for each."""
    sizes = {
        "model.n_embd": 16, "model.n_head": 2, "data.tokenizer": "wordpiece:200",
        "data.source": "toy:reverse", "data.val_source": "toy:reverse#val", "train.batch_size": 2,
    }  # fmt: skip
    given = [f"--config.{name}={value}" for name, value in sizes.items()]
    words = ("--config=translate", *given, "--placements=post_ln", "--depths=1,2", "--batches=1")
    done = run("-m", "gpt2_jax", "diagnose", *words, f"--out={tmp_path}/out", tmp=tmp_path,
               XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "blocks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["n_layer"], row["tower"], row["block"]) for row in rows]
    assert found == [
        *[("1", "encoder", "1"), ("1", "decoder", "1")],
        *[
            ("2", "encoder", "1"),
            ("2", "encoder", "2"),
            ("2", "decoder", "1"),
            ("2", "decoder", "2"),
        ],
    ]
    figures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    each = {f"blocks_{tower}_{depth}" for tower in DEPTHS for depth in (1, 2)}
    assert figures == {"depth", *each}
