"""Gradients that are written by hand, and what is stored for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.nn.activations import gelu_new
from gpt2_jax.nn.context import Context
from gpt2_jax.nn.mlp import MLP
from gpt2_jax.nn.norms import NormSpec, layer_norm, make_norm
from gpt2_jax.nn.param import Init


def test_layer_norms_gradient_is_that_of_its_equation():
    def plain(x, gain, bias):
        centred = x - x.mean(-1, keepdims=True)
        return gain * centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) + bias

    keys = jax.random.split(jax.random.key(0), 4)
    x, weights = (jax.random.normal(k, (2, 3, 8)) for k in keys[:2])
    gain, bias = (jax.random.normal(k, (8,)) for k in keys[2:])
    gradients = [
        jax.value_and_grad(lambda *args, f=f: (f(*args) * weights).sum(), (0, 1, 2))(x, gain, bias)
        for f in (plain, lambda *args: layer_norm(0.1, *args))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)


def test_layer_norm_of_bfloat16_has_the_gradient_of_float32():
    keys = jax.random.split(jax.random.key(1), 4)
    x, weights = (jax.random.normal(k, (2, 3, 64), jnp.bfloat16) for k in keys[:2])
    gain, bias = (jax.random.normal(k, (64,)) for k in keys[2:])

    def gradients(x):
        loss = lambda *args: (layer_norm(1e-5, *args) * weights).sum()
        return jax.grad(loss, (0, 1, 2))(x, gain, bias)

    exact, rounded = gradients(x.astype(jnp.float32)), gradients(x)
    assert rounded[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(exact[0].astype(jnp.bfloat16), rounded[0])
    jax.tree.map(np.testing.assert_array_equal, exact[1:], rounded[1:])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-8)])
def test_gelus_gradient_is_that_of_its_equation(dtype, tolerance):
    x = jnp.linspace(-5, 5, 101).astype(dtype)
    c, k = np.sqrt(2 / np.pi), 0.044715
    x_64 = np.asarray(x, np.float64)
    tanh = np.tanh(c * (x_64 + k * x_64**3))
    expected = 0.5 * (1 + tanh) + 0.5 * x_64 * (1 - tanh**2) * c * (1 + 3 * k * x_64**2)
    slope = jax.grad(lambda x: gelu_new(x).astype(jnp.float32).sum())(x)
    assert slope.dtype == dtype
    np.testing.assert_allclose(slope.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance)


def test_an_mlp_of_bfloat16_stores_its_product_before_the_bias():
    init = Init(jax.random.key(0))
    stds = (0.1, 0.1)
    mlp = MLP(
        8, 32, activation="gelu_new", inner=None, hidden_scale=False, scalar_bias=False,
        stds=stds, init=init, dtype="bfloat16",
    )  # fmt: skip
    mlp.up.bias[...] = jnp.full(32, 3.0)
    x = jax.random.normal(jax.random.key(1), (2, 3, 8), jnp.bfloat16)
    stored = jax.tree.leaves(jax.vjp(lambda x: mlp(x, Context(jnp.arange(3)))[0], x)[1])
    wide = [np.asarray(leaf, np.float32) for leaf in stored if leaf.shape == (6, 32)]
    is_stored = lambda y: any((leaf == np.asarray(y, np.float32)).all() for leaf in wide)
    product = mlp.up.product(x)
    assert is_stored(product) and not is_stored(mlp.up.add_bias(product))


def test_no_float32_activation_of_a_bfloat16_layer_is_stored_for_its_gradient():
    x = jnp.ones((5, 7, 8), jnp.bfloat16)
    norm = make_norm(8, NormSpec("layernorm", 1e-5, bias=True, dtype="bfloat16"))
    for layer in (gelu_new, norm):
        stored = jax.tree.leaves(jax.vjp(layer, x)[1])
        assert {leaf.dtype for leaf in stored if leaf.shape == x.shape} == {x.dtype}
