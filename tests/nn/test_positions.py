"""Sinusoids: values and orders of channels."""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.nn.positions import sinusoids, sinusoids_in_halves


@pytest.mark.parametrize("positions", [jnp.arange(5), jnp.array([[3, 0], [1, 7]])])
def test_halves_are_the_same_channels_in_another_order(positions):
    interleaved, halves = sinusoids(positions, 8), sinusoids_in_halves(positions, 8)
    assert (interleaved != halves).any()
    np.testing.assert_array_equal(halves[..., :4], interleaved[..., ::2])
    np.testing.assert_array_equal(halves[..., 4:], interleaved[..., 1::2])


def test_values_in_halves():
    """MarianSinusoidalPositionalEmbedding of transformers, width 4, position 3."""
    want = np.array([np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], np.float32)
    np.testing.assert_allclose(sinusoids_in_halves(jnp.array([3]), 4)[0], want, atol=1e-6)
