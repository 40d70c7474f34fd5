"""Training with every preset: it learns, resumes bitwise, and does not depend on the mesh."""

import argparse
from pathlib import Path

import jax
import numpy as np
import pytest

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Tokens
from gpt2_jax.model.definition import define_model
from gpt2_jax.placements import PRESETS
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.optim.param_patterns import lr_factors
from gpt2_jax.train.storage.checkpoint import Checkpoints
from tests.placements import EVERY_CONNECTION, REPRESENTATIVES, depth
from tests.tools import tiny

# Real text that comes with every Python.
IDS = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8).astype(np.uint16) % 128
STEPS, SAVED, BATCH, SEQ_LEN = 100, 80, 16, 32


def unigram_entropy():
    """Nats per token when predicting by token frequency only."""
    p = np.bincount(IDS) / len(IDS)
    return -(p[p > 0] * np.log(p[p > 0])).sum()


def config(name, **changes):
    sizes = {
        "model__n_layer": depth(name),
        "model__n_embd": 32,
        "model__n_positions": SEQ_LEN,
        "model__vocab_size": 128,
        "model__unroll": False,
        "data__seq_len": SEQ_LEN,
        "train__batch_size": BATCH,
        "train__steps": STEPS,
        "optimizer__schedule": "constant",
        "optimizer__warmup_steps": 10,
        "optimizer__peak_lr": 1e-2,
    }
    return tiny(placement__preset=name, **sizes, **changes)


def run(program, state, first, last):
    """Returns the state after steps `first` to `last`, and their losses."""
    sampler, losses = Sampler(Tokens([IDS]), SEQ_LEN, BATCH, 0), []
    for step in range(first, last):
        state, metrics = program.step(state, program.put(sampler.batch(step)))
        losses.append(metrics["loss"].item())
    return state, losses


def first_batch():
    return Batch(np.stack([IDS[: SEQ_LEN + 1]] * BATCH).astype(np.int32))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*PRESETS} - REPRESENTATIVES))
def test_model_learns_real_text(name):
    program = compile_step(config(name, mesh__data=1))
    _, losses = run(program, program.start(first_batch()), 0, STEPS)
    assert np.mean(losses[-10:]) < unigram_entropy() < losses[0]


@pytest.mark.parametrize("name", EVERY_CONNECTION)
def test_model_learns_real_text_on_any_mesh_and_resumes_bitwise(name, tmp_path):
    program = compile_step(config(name, mesh__data=1))
    most, losses = run(program, program.start(first_batch()), 0, SAVED)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(SAVED, most, {})
    checkpoints.wait()
    whole, more = run(program, most, SAVED, STEPS)
    assert np.mean(more[-10:]) < unigram_entropy() < losses[0]
    resumed, again = run(program, checkpoints.restore(SAVED, program.shapes), SAVED, STEPS)
    checkpoints.close()
    assert again == more
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), whole.params, resumed.params)
    eight = compile_step(config(name, mesh__data=8))
    assert eight.mesh.devices.size == 8 and program.mesh.devices.size == 1
    found = run(eight, eight.start(first_batch()), 0, 4)[1]
    np.testing.assert_allclose(found, losses[:4], rtol=2e-4)


def lengths(params):
    """Lengths along the width of the matrices and embeddings that nGPT keeps at 1."""
    attn, mlp = (params["blocks"]["all"][name]["sublayer"] for name in ("attn", "mlp"))
    spans = [
        (attn["qkv"], 1),
        (attn["out"], -1),
        (mlp["up"], 1),
        (mlp["gate"], 1),
        (mlp["down"], -1),
    ]
    found = [np.linalg.norm(part["kernel"], axis=axis).ravel() for part, axis in spans]
    return np.concatenate([*found, np.linalg.norm(params["embedding"]["wte"], axis=-1)])


def test_parameters_of_unit_length_keep_it_through_steps():
    """Compared with the same model without the projection."""
    for kept in (True, False):
        program = compile_step(config("ngpt", mesh__data=1, placement__unit_weights=kept))
        state, _ = run(program, program.init(), 0, 3)
        assert (np.abs(lengths(state.params) - 1).max() < 1e-5) == kept


def test_admin_training_starts_from_measured_variances():
    program = compile_step(config("admin", mesh__data=1))
    connection = lambda state: state.params["blocks"]["all"]["connection"]
    factors = lambda state: connection(state)["mlp"]["skip_scale"]["value"]
    assert (factors(program.init()) == 1).all()
    measured = np.asarray(factors(program.start(first_batch())))
    assert (measured > 1.05).all() and (measured == measured[:, :1]).all()


@pytest.mark.parametrize("name", ["derf", pytest.param("fixup", marks=pytest.mark.slow)])
def test_parameters_can_be_frozen_in_models_with_scalar_parameters(name):
    """Factors of patterns have the shape of their parameter, even for scalars."""
    frozen = config(name, mesh__data=1, optimizer__frozen=("wpe",))
    program = compile_step(frozen)
    state = program.init()
    before = jax.tree.map(np.asarray, state.all_params)
    after = run(program, state, 0, 3)[0].all_params
    np.testing.assert_array_equal(after["embedding"]["wpe"], before["embedding"]["wpe"])
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after, before)
    up = changed["blocks"]["all"]["mlp"]["sublayer"]["up"]
    assert changed["embedding"]["wte"] and all(jax.tree.leaves(up))


def test_shared_block_matches_each_of_its_block_numbers():
    shared = config("pre_ln", placement__share_blocks=1, optimizer__frozen=("blocks.1.attn",))
    factors = lr_factors(shared.optimizer, define_model(shared.model, shared.placement))
    assert (factors["blocks"]["all"]["attn"]["pre"]["gain"] == 0).all()
    assert (factors["blocks"]["all"]["mlp"]["pre"]["gain"] == 1).all()
