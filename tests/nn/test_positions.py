"""Sinusoids, from their definition."""

import jax.numpy as jnp
import numpy as np

from gpt2_jax.nn.positions import sinusoids


def test_sines_and_cosines_are_interleaved_or_in_halves():
    places = np.array([0, 1, 7])
    angles = places[:, None] / 10000 ** (np.arange(0, 6, 2) / 6)
    pairs, halves = (sinusoids(jnp.asarray(places), 6, h) for h in (False, True))
    np.testing.assert_allclose(pairs[:, ::2], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(pairs[:, 1::2], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(halves[:, :3], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(halves[:, 3:], np.cos(angles), atol=1e-6)
