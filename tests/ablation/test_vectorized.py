"""Runs trained together, compared with the same runs trained alone."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gpt2_jax.ablation.vectorized import (
    HYPERPARAMETERS,
    INIT_FIELDS,
    VectorizedPrograms,
    VectorizedTrainer,
    hyperparameters,
    program_key,
)
from gpt2_jax.data.batch import Batch
from gpt2_jax.data.shards import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.diagnostics import compile_diagnostics
from gpt2_jax.train.evaluation import Evaluator, choose_windows, evaluation_batches
from tests.tools import make_text, tiny

N = 6
OPTIMIZERS = ["adamw", pytest.param("muon", marks=pytest.mark.slow)]
USUAL = {"mesh__data": 1, "optimizer__warmup_steps": 2, "optimizer__schedule": "cosine"}
NUMBERS = [
    {"optimizer__peak_lr": 1e-2},
    {"optimizer__peak_lr": 3e-2, "seed": 1},
    {"optimizer__weight_decay": 0.5, "optimizer__b2": 0.99, "optimizer__warmup_steps": 4},
    {"model__init_std": 0.1, "placement__embedding_std": "0.05"},
]


def batches(n_runs):
    draw = np.random.default_rng(3).integers
    return draw(0, 11, (n_runs, N, 8, 13), np.int32)


def alone(config, tokens_NBT1):
    program = compile_step(config)
    state, losses = program.init(), []
    for batch in tokens_NBT1:
        state, metrics = program.step(state, program.put(Batch(batch)))
        losses.append(float(metrics["loss"]))
    return np.float32(losses), state, program


def two_at_a_time(config, **changes):
    return VectorizedPrograms(config, **{"width": 2, "devices": jax.devices()[:2]} | changes)


def losses(trainer, tokens, n=None):
    return np.stack([m["loss"] for m in trainer.read(trainer.advance(tokens, n))])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("vmapped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_run_trained_with_others_matches_its_config_trained_alone(optimizer, vmapped):
    """Within rounding: the compiler orders operations differently if a number is an argument."""
    configs = [tiny(**USUAL | numbers, optimizer__name=optimizer) for numbers in NUMBERS]
    trainer = VectorizedTrainer(configs, two_at_a_time(configs[0], width=6, vmapped=vmapped))
    tokens = batches(len(configs))
    found = losses(trainer, tokens)
    assert found.shape == (len(configs), N)
    for i, config in enumerate(configs):
        expected, state, _ = alone(config, tokens[i])
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)
        # For parameters without a gradient, such as the biases of keys, Adam's updates are noise.
        wte = trainer.state(i).params["embedding"]["wte"]
        np.testing.assert_allclose(wte, state.params["embedding"]["wte"], atol=2e-5)
    assert np.ptp(found[:, -1]) > 1e-3


def test_evaluation_and_diagnostics_match_those_of_a_single_run():
    config = tiny(**USUAL, track__diagnostics_every=2)
    tokens = batches(1)
    _, state, program = alone(config, tokens[0])
    trainer = VectorizedTrainer([config, tiny(**USUAL, track__diagnostics_every=2, seed=1)])
    trainer.advance(np.repeat(tokens, 2, 0))
    text = Tokens([np.frombuffer(make_text(400).encode(), np.uint8) % 11])
    score = Evaluator(program.model_def, program.mesh, 12, 8).score(state.params, N, text)
    parts = evaluation_batches(text, choose_windows(len(text), 12, None), 8, 12)
    sums = np.sum([jax.device_get(trainer.eval_sums(N, part)) for part in parts], 0)
    assert sums[0, 0] == pytest.approx(score.nats, rel=1e-5) and sums[0, 1] == score.correct
    assert sums[1, 0] != pytest.approx(score.nats, rel=1e-3)
    probe = compile_diagnostics(config.track, config.train, program)
    expected = probe(state.params, state.step, program.put(Batch(tokens[0, 0])))
    figures = trainer.diagnostics(N, np.repeat(tokens[:, 0], 2, 0))
    for name, values in expected.items():
        np.testing.assert_allclose(figures[0][name], values, rtol=1e-3, atol=1e-5)
    assert not np.allclose(figures[0]["cosine"], figures[1]["cosine"])


@pytest.fixture
def optimized(monkeypatch):
    """Compiles with the default optimizations: without them, bits may depend on the width."""
    lower, options = VectorizedPrograms.lower, {"xla_backend_optimization_level": 3}
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
        options["xla_cpu_use_fusion_emitters"] = True

    def lower_optimized(programs, n_max):
        lowered = lower(programs, n_max)
        return SimpleNamespace(compile=lambda: lowered.compile(options))

    monkeypatch.setattr(VectorizedPrograms, "lower", lower_optimized)


def test_bits_of_a_run_do_not_depend_on_other_runs_or_pauses(optimized):
    configs = [tiny(**USUAL, model__n_layer=1, seed=i) for i in range(5)]
    tokens = batches(5)
    together = VectorizedTrainer(configs, two_at_a_time(configs[0], width=6))
    expected = losses(together, tokens)
    programs = two_at_a_time(configs[0])
    for first in (0, 2, 4):
        own = slice(first, first + 2)
        pair = VectorizedTrainer(configs[own], programs)
        found = losses(pair, tokens[own], 2)[:, :2]
        states = [pair.state(i) for i in range(len(configs[own]))]
        pair = VectorizedTrainer(configs[own], programs, states)  # as if restored
        rest = losses(pair, np.roll(tokens[own], -2, 1), N - 2)[:, : N - 2]
        np.testing.assert_array_equal(np.concatenate([found, rest], 1), expected[own])
        for i in range(len(configs[own])):
            for a, b in zip(
                jax.tree.leaves(pair.state(i)),
                jax.tree.leaves(together.state(first + i)),
                strict=True,
            ):
                np.testing.assert_array_equal(a, b)
    assert len(set(expected[:, -1].tolist())) == 5


def test_diverging_run_does_not_change_the_bits_of_others():
    usual = [tiny(**USUAL, seed=i) for i in range(4)]
    wild = [*usual[:1], tiny(**USUAL, seed=1, optimizer__peak_lr=1e30), *usual[2:]]
    programs = two_at_a_time(usual[0], width=4)
    found = [losses(VectorizedTrainer(configs, programs), batches(4)) for configs in (usual, wild)]
    assert not np.array_equal(found[0][1], found[1][1])
    for i in (0, 2, 3):
        np.testing.assert_array_equal(found[0][i], found[1][i])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_hyperparameter_has_an_effect(optimizer):
    """One run per hyperparameter differs only in it, and one run does not differ."""
    other = {"optimizer.warmup_steps": 5, "optimizer.eps": 1e-2, "optimizer.final_lr_ratio": 0.9}
    base = USUAL | {"optimizer__name": optimizer, "train__steps": 7}
    varied = [x for x in HYPERPARAMETERS if x != "optimizer.momentum" or optimizer == "muon"]
    changes = [{name.replace(".", "__"): other.get(name, 0.37)} for name in varied]
    trainer = VectorizedTrainer([tiny(**base | change) for change in ({}, *changes)])
    found = losses(trainer, np.repeat(batches(1), 1 + len(varied), 0))
    assert len(set(found[:, 0].tolist())) == 1
    same = [name for name, row in zip(varied, found[1:], strict=True) if row[-1] == found[0, -1]]
    assert same == []


def test_warm_up_fraction_is_converted_to_steps():
    steps, share = tiny(optimizer__warmup_steps=4), tiny(optimizer__warmup_fraction=0.2)  # of 20
    assert hyperparameters(share) == hyperparameters(steps) != hyperparameters(tiny())
    assert program_key(share) == program_key(steps) == program_key(tiny())


@pytest.mark.slow
def test_program_does_not_depend_on_initial_values():
    """The step has the same operations for all values of `INIT_FIELDS`."""
    other = {
        "seed": 3, "model.init_std": 0.3, "placement.init": "xavier",
        "placement.residual_init": "0.3",
        "placement.value_init": "0.3 | 0.4", "placement.query_init": "0.3",
        "placement.key_init": "0.3",
        "placement.embedding_std": "0.3", "placement.gate_bias": 0.3,
    }  # fmt: skip
    assert set(other) == set(INIT_FIELDS)
    for name, value in other.items():
        gated = {"placement__preset": "gtrxl"} if name == "placement.gate_bias" else {}
        configs = [
            tiny(**USUAL, **gated),
            tiny(**USUAL, **gated | {name.replace(".", "__"): value}),
        ]
        assert program_text(configs[0]) == program_text(configs[1]), name
        starts = [VectorizedPrograms(config, 1).initial_state(config) for config in configs]
        params = [jax.tree.leaves(start.params) for start in starts]
        assert any(not np.array_equal(a, b) for a, b in zip(*params, strict=True)), name
    assert program_text(tiny(**USUAL)) != program_text(tiny(**USUAL, placement__norm_eps=1e-3))


def program_text(config):
    return VectorizedPrograms(config, 1).lower(N).as_text()


def test_runs_that_differ_in_more_than_numbers_are_refused():
    with pytest.raises(ValueError, match=r"cannot differ in placement\.preset"):
        VectorizedTrainer([tiny(**USUAL), tiny(**USUAL, placement__preset="post_ln")])
    with pytest.raises(ValueError, match="data-dependent initial values"):
        VectorizedTrainer([tiny(**USUAL, placement__preset="admin")])
    with pytest.raises(ValueError, match="2 runs for programs of width 1"):
        VectorizedTrainer([tiny(**USUAL)] * 2, VectorizedPrograms(tiny(**USUAL), 1))


def test_faster_program_that_fits_is_chosen_on_an_accelerator(monkeypatch):
    config = tiny(**USUAL)
    assert not VectorizedPrograms.fastest(config, 2).vmapped
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    steady = tiny(**USUAL, train__deterministic=True)
    for taken, vmapped in (((2.0, 1.0), True), ((1.0, 2.0), False), ((1.0, None), False)):

        def measure(programs, taken=taken):
            seconds = taken[programs.vmapped]
            if seconds is None:
                raise UserError("the device has too little memory")
            return seconds

        monkeypatch.setattr(VectorizedPrograms, "seconds_per_step", measure)
        assert VectorizedPrograms.fastest(config, 2).vmapped == vmapped
        assert not VectorizedPrograms.fastest(steady, 2).vmapped  # timings vary


def test_programs_use_all_devices():
    for n, width, devices in ((1, 1, 1), (3, 3, 3), (4, 4, 4), (5, 8, 4), (11, 12, 4)):
        programs = VectorizedPrograms(tiny(**USUAL), n, jax.devices()[:4])
        assert (programs.width, programs.by_run.mesh.size) == (width, devices)
