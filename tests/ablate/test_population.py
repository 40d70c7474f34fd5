"""Members of a population against runs of their own."""

import jax
import numpy as np
import pytest

from gpt2_jax.ablate.population import DIALS, Population
from gpt2_jax.train.program import compile_program
from tests.tools import tiny

N = 6
OPTIMIZERS = ["adamw", pytest.param("muon", marks=pytest.mark.slow)]
USUAL = {"mesh__data": 1, "optimizer__warmup_steps": 2, "optimizer__schedule": "cosine"}
NUMBERS = [
    {"optimizer__peak_lr": 1e-2},
    {"optimizer__peak_lr": 3e-2, "seed": 1},
    {"optimizer__weight_decay": 0.5, "optimizer__b2": 0.99, "optimizer__warmup_steps": 4},
]


def batches(members):
    draw = np.random.default_rng(3).integers
    return draw(0, 11, (members, N, 8, 13), np.int32)


def alone(config, tokens_NBT1):
    program = compile_program(config)
    state, losses = program.init(), []
    for batch in tokens_NBT1:
        state, metrics = program.step(state, program.put(batch))
        losses.append(float(metrics["loss"]))
    return np.float32(losses), state.params


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_member_is_the_run_of_its_config(optimizer):
    configs = [tiny(**USUAL | numbers, optimizer__name=optimizer) for numbers in NUMBERS]
    population = Population(configs, jax.devices()[:2])  # one place on the second is left over
    tokens = batches(3)
    states, metrics = population.advance(population.init(), tokens)
    assert metrics["loss"].shape == (3, N)
    for i, config in enumerate(configs):
        losses, params = alone(config, tokens[i])
        np.testing.assert_allclose(metrics["loss"][i], losses, rtol=1e-5)
        # Of parameters without a gradient, such as the biases of keys, Adam makes steps of noise.
        np.testing.assert_allclose(states.params["wte"][i], params["wte"], atol=2e-5)
    assert np.ptp(metrics["loss"][:, -1]) > 1e-3


def test_a_member_that_diverges_leaves_the_others_bits_alone():
    usual = [tiny(**USUAL, seed=i) for i in range(4)]
    wild = [*usual[:1], tiny(**USUAL, seed=1, optimizer__peak_lr=1e30), *usual[2:]]
    tokens, found = batches(4), []
    for configs in (usual, wild):
        population = Population(configs, jax.devices()[:2])
        found.append(population.advance(population.init(), tokens)[1]["loss"])
    assert not np.array_equal(found[0][1], found[1][1])
    for i in (0, 2, 3):
        np.testing.assert_array_equal(found[0][i], found[1][i])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_dial_acts(optimizer):
    """One member for each dial, turned in it alone, beside one that is not."""
    other = {"optimizer.warmup_steps": 5, "optimizer.eps": 1e-2, "optimizer.final_lr_ratio": 0.9}
    base = USUAL | {"optimizer__name": optimizer, "train__steps": 7}
    turned = [dial for dial in DIALS if dial != "optimizer.momentum" or optimizer == "muon"]
    changes = [{dial.replace(".", "__"): other.get(dial, 0.37)} for dial in turned]
    population = Population([tiny(**base | change) for change in ({}, *changes)])
    tokens = np.repeat(batches(1), 1 + len(turned), 0)
    losses = population.advance(population.init(), tokens)[1]["loss"]
    assert len(set(losses[:, 0].tolist())) == 1
    same = [dial for dial, row in zip(turned, losses[1:], strict=True) if row[-1] == losses[0, -1]]
    assert same == []


def test_members_that_differ_in_more_than_numbers_are_refused():
    with pytest.raises(ValueError, match=r"cannot differ in model\.placement"):
        Population([tiny(**USUAL), tiny(**USUAL, model__placement="post_ln")])
    with pytest.raises(ValueError, match="a profile of their own"):
        Population([tiny(**USUAL, model__placement="admin")])
