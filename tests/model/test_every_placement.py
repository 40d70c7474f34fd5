"""Properties of every preset: causality, the same function in every mode, depth."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.model.definition import define_model
from gpt2_jax.placements import PRESETS
from tests.model.test_gpt2 import decoded
from tests.placements import EVERY, EVERY_AT_LENGTH, FAMILIES, FEW, depth
from tests.tools import tiny, tiny_model

STEP = 700  # in the middle of ProRes's ramp
TOKENS = jax.random.randint(jax.random.key(5), (3, 12), 0, 11)
WEIGHTS = jax.random.normal(jax.random.key(9), (3, 12, 11))


@cache
def model(name, **changes):
    return tiny_model(placement__preset=name, model__n_layer=depth(name), **changes)


def gradients(name, **changes):
    """Returns loss and gradients with random weights on all logits, in one mode."""
    _, params = model(name, model__unroll=False)
    config = tiny(placement__preset=name, model__n_layer=depth(name), **changes)
    built = define_model(config.model, config.placement)
    loss = lambda p: (built.bind(p)(TOKENS, step=STEP)[..., :11] * WEIGHTS).sum()
    traced = jax.jit(jax.value_and_grad(loss)).trace(params)
    return str(traced.jaxpr), traced.lower().compile()(params)


def assert_near(a, b):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-6 * scale), a, b)


def test_the_families_are_presets():
    assert {*FEW} <= {*FAMILIES} <= {*PRESETS}


@pytest.mark.parametrize("name", EVERY)
def test_no_position_depends_on_a_later_one(name):
    """Gradients of each position's logits with respect to every position's embedding."""
    built, params = model(name, model__unroll=False)
    bound = built.bind(params)
    context = bound.context(jnp.arange(12), None, STEP)

    def out(x_BTD):
        hidden = bound.head_input(bound.blocks(bound.blocks.begin(x_BTD), context)[0])
        return (bound.logits(hidden)[..., :11] * WEIGHTS[:1])[0].sum(-1)

    x_BTD = bound.embedding(TOKENS[:1], context)
    jacobian = jnp.abs(jax.jit(jax.jacrev(out))(x_BTD))[:, 0].sum(-1)  # (to, from)
    np.testing.assert_array_equal(np.asarray(jacobian > 0), np.tril(np.ones((12, 12), bool)))


@pytest.mark.parametrize("name", EVERY_AT_LENGTH)
def test_scan_with_remat_equals_unrolled_without(name):
    unrolled, want = gradients(name, model__unroll=True)
    scanned, got = gradients(name, model__unroll=False, model__remat="block")
    built, params = model(name, model__unroll=False)
    runs = [s.stop - s.start for s in built.spec.stacks]
    # A stack of one block is not a loop, nor are blocks whose carry grows.
    if max(runs) > 1 and not built.bind(params).blocks.grows:
        assert scanned.count("unroll=1\n") > unrolled.count("unroll=1\n")
    assert scanned.count("remat") > unrolled.count("remat")  # depth mixing has its own remat
    assert_near(want, got)


@pytest.mark.parametrize("name", EVERY)
def test_decoding_with_a_cache_equals_the_full_pass(name):
    """In spans of 5, 1, 1 and 5 columns, after padding that must not matter."""
    built, params = model(name, model__unroll=False)
    want = jax.jit(lambda p: built.bind(p)(TOKENS, step=STEP))(params)
    padding = (0, 1, 3)
    rows = np.full((3, 15), 4, np.int32)
    for row, pad in enumerate(padding):
        rows[row, pad : pad + 12] = TOKENS[row]
    got = decoded(built, params, rows, [0, 5, 6, 7], padding, STEP)
    for row, pad in enumerate(padding):
        np.testing.assert_allclose(got[row, pad : pad + 12], want[row], rtol=1e-4, atol=2e-5)


def deep(name, n_layer):
    """Returns a loss in bfloat16, initial parameters, and whether what blocks carry grows."""
    config = tiny(
        placement__preset=name, model__n_layer=n_layer, model__dtype="bfloat16", model__unroll=False
    )
    built = define_model(config.model, config.placement)
    params = built.init(jax.random.key(0))
    loss = lambda p: jax.nn.logsumexp(built.bind(p)(TOKENS, step=STEP), -1).mean()
    return loss, params, built.bind(params).blocks.grows


@pytest.mark.parametrize("name", EVERY_AT_LENGTH)
def test_64_layers_in_bfloat16_are_finite(name):
    """Loss and gradients at the initial values.

    If what blocks carry grows, the gradient is that of 24 layers: XLA's time for it grows with more
    than the square of the depth.
    """
    loss, params, grows = deep(name, 64)
    if grows:
        assert jnp.isfinite(jax.jit(loss)(params))
        loss, params, _ = deep(name, 24)
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert any(bool((g != 0).any()) for g in jax.tree.leaves(grads))
