"""Members of a population against runs of their own."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gpt2_jax.ablate.population import DIALS, INITIAL, Lanes, Population, dials_of, program_key
from gpt2_jax.data.shards import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.train.evaluation import Evaluator, choose_windows, masked_batches
from gpt2_jax.train.probe import compile_probe
from gpt2_jax.train.program import compile_program
from tests.tools import make_text, tiny

N = 6
OPTIMIZERS = ["adamw", pytest.param("muon", marks=pytest.mark.slow)]
USUAL = {"mesh__data": 1, "optimizer__warmup_steps": 2, "optimizer__schedule": "cosine"}
NUMBERS = [
    {"optimizer__peak_lr": 1e-2},
    {"optimizer__peak_lr": 3e-2, "seed": 1},
    {"optimizer__weight_decay": 0.5, "optimizer__b2": 0.99, "optimizer__warmup_steps": 4},
    {"model__init_std": 0.1, "model__embedding_std": "0.05"},
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
    return np.float32(losses), state, program


def two_lanes(config, **changes):
    return Lanes(config, **{"width": 2, "devices": jax.devices()[:2]} | changes)


def losses(population, tokens, n=None):
    return np.stack([m["loss"] for m in population.read(population.advance(tokens, n))])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("abreast", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_member_is_the_run_of_its_config(optimizer, abreast):
    """Within rounding: where a number is data the compiler groups operations in another way."""
    configs = [tiny(**USUAL | numbers, optimizer__name=optimizer) for numbers in NUMBERS]
    population = Population(configs, two_lanes(configs[0], width=6, abreast=abreast))
    tokens = batches(len(configs))
    found = losses(population, tokens)
    assert found.shape == (len(configs), N)
    for i, config in enumerate(configs):
        expected, state, _ = alone(config, tokens[i])
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)
        # Of parameters without a gradient, such as the biases of keys, Adam makes steps of noise.
        wte = population.member(i).params["wte"]
        np.testing.assert_allclose(wte, state.params["wte"], atol=2e-5)
    assert np.ptp(found[:, -1]) > 1e-3


def test_it_is_scored_and_observed_as_the_run_is():
    config = tiny(**USUAL, track__diagnostics_every=2)
    tokens = batches(1)
    _, state, program = alone(config, tokens[0])
    population = Population([config, tiny(**USUAL, track__diagnostics_every=2, seed=1)])
    population.advance(np.repeat(tokens, 2, 0))
    text = Tokens([np.frombuffer(make_text(400).encode(), np.uint8) % 11])
    score = Evaluator(program.structure, program.mesh, 12, 8).score(state.params, N, text)
    parts = masked_batches(text, choose_windows(len(text), 12, None), 8, 12)
    sums = np.sum([jax.device_get(population.sums(N, *part)) for part in parts], 0)
    assert sums[0, 0] == pytest.approx(score.nats, rel=1e-5) and sums[0, 1] == score.correct
    assert sums[1, 0] != pytest.approx(score.nats, rel=1e-3)
    probe = compile_probe(config, program)
    expected = probe(state.params, state.step, program.put(tokens[0, 0]))
    figures = population.figures(N, np.repeat(tokens[:, 0], 2, 0))
    for name, values in expected.items():
        np.testing.assert_allclose(figures[0][name], values, rtol=1e-3, atol=1e-5)
    assert not np.allclose(figures[0]["cosine"], figures[1]["cosine"])


@pytest.fixture
def optimized(monkeypatch):
    """Has populations compiled as users have them: unoptimized bits may depend on the width."""
    lower, options = Lanes.lower, {"xla_backend_optimization_level": 3}
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
        options["xla_cpu_use_fusion_emitters"] = True

    def lower_for_users(lanes, rows):
        lowered = lower(lanes, rows)
        return SimpleNamespace(compile=lambda: lowered.compile(options))

    monkeypatch.setattr(Lanes, "lower", lower_for_users)


def test_neither_company_nor_pauses_change_a_members_bits(optimized):
    configs = [tiny(**USUAL, model__n_layer=1, seed=i) for i in range(5)]
    tokens = batches(5)
    together = Population(configs, two_lanes(configs[0], width=6))
    expected = losses(together, tokens)
    lanes = two_lanes(configs[0])
    for first in (0, 2, 4):
        own = slice(first, first + 2)
        pair = Population(configs[own], lanes)
        found = losses(pair, tokens[own], 2)[:, :2]
        states = [pair.member(i) for i in range(len(configs[own]))]
        pair = Population(configs[own], lanes, states)  # as from a checkpoint
        rest = losses(pair, np.roll(tokens[own], -2, 1), N - 2)[:, : N - 2]
        np.testing.assert_array_equal(np.concatenate([found, rest], 1), expected[own])
        for i in range(len(configs[own])):
            for a, b in zip(
                jax.tree.leaves(pair.member(i)),
                jax.tree.leaves(together.member(first + i)),
                strict=True,
            ):
                np.testing.assert_array_equal(a, b)
    assert len(set(expected[:, -1].tolist())) == 5


def test_a_member_that_diverges_leaves_the_others_bits_alone():
    usual = [tiny(**USUAL, seed=i) for i in range(4)]
    wild = [*usual[:1], tiny(**USUAL, seed=1, optimizer__peak_lr=1e30), *usual[2:]]
    lanes = two_lanes(usual[0], width=4)
    found = [losses(Population(configs, lanes), batches(4)) for configs in (usual, wild)]
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
    found = losses(population, np.repeat(batches(1), 1 + len(turned), 0))
    assert len(set(found[:, 0].tolist())) == 1
    same = [dial for dial, row in zip(turned, found[1:], strict=True) if row[-1] == found[0, -1]]
    assert same == []


def test_a_warm_up_in_shares_is_one_in_steps():
    steps, share = tiny(optimizer__warmup_steps=4), tiny(optimizer__warmup_fraction=0.2)  # of 20
    assert dials_of(share) == dials_of(steps) != dials_of(tiny())
    assert program_key(share) == program_key(steps) == program_key(tiny())


@pytest.mark.slow
def test_initial_values_are_in_no_program():
    """The step is traced to the same operations whatever the fields of `INITIAL` are."""
    other = {
        "seed": 3, "model.init_std": 0.3, "model.init": "xavier", "model.residual_init": "0.3",
        "model.value_init": "0.3 | 0.4", "model.query_init": "0.3", "model.key_init": "0.3",
        "model.embedding_std": "0.3", "model.gate_bias": 0.3,
    }  # fmt: skip
    assert set(other) == set(INITIAL)
    for name, value in other.items():
        gated = {"model__placement": "gtrxl"} if name == "model.gate_bias" else {}
        configs = [
            tiny(**USUAL, **gated),
            tiny(**USUAL, **gated | {name.replace(".", "__"): value}),
        ]
        assert program_text(configs[0]) == program_text(configs[1]), name
        starts = [Lanes(config, 1).start(config) for config in configs]
        params = [jax.tree.leaves(start.params) for start in starts]
        assert any(not np.array_equal(a, b) for a, b in zip(*params, strict=True)), name
    assert program_text(tiny(**USUAL)) != program_text(tiny(**USUAL, model__norm_eps=1e-3))


def program_text(config):
    return Lanes(config, 1).lower(N).as_text()


def test_members_that_differ_in_more_than_numbers_are_refused():
    with pytest.raises(ValueError, match=r"cannot differ in model\.placement"):
        Population([tiny(**USUAL), tiny(**USUAL, model__placement="post_ln")])
    with pytest.raises(ValueError, match="a profile of their own"):
        Population([tiny(**USUAL, model__placement="admin")])
    with pytest.raises(ValueError, match="2 members for 1 lanes"):
        Population([tiny(**USUAL)] * 2, Lanes(tiny(**USUAL), 1))


def test_an_accelerators_lanes_are_of_the_kind_that_is_faster_and_fits(monkeypatch):
    config = tiny(**USUAL)
    assert Lanes.fastest(config, 2)._over is not jax.vmap
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    steady = tiny(**USUAL, train__deterministic=True)
    for taken, abreast in (((2.0, 1.0), True), ((1.0, 2.0), False), ((1.0, None), False)):

        def trial(lanes, taken=taken):
            seconds = taken[lanes._over is jax.vmap]
            if seconds is None:
                raise UserError("the device has too little memory")
            return seconds

        monkeypatch.setattr(Lanes, "trial_seconds", trial)
        assert (Lanes.fastest(config, 2)._over is jax.vmap) == abreast
        assert Lanes.fastest(steady, 2)._over is not jax.vmap  # trials may differ


def test_lanes_use_all_devices():
    for n, width, devices in ((1, 1, 1), (3, 3, 3), (4, 4, 4), (5, 8, 4), (11, 12, 4)):
        lanes = Lanes(tiny(**USUAL), n, jax.devices()[:4])
        assert (lanes.width, lanes.by_member.mesh.size) == (width, devices)
