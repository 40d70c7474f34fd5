"""Sinusoidal and rotary position embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp

WAVELENGTH = 10_000.0


def sinusoids(positions: jax.Array, width: int, halves: bool = False) -> jax.Array:
    """Returns sin(p / 10000^(2i/D)) in the even and cos in the odd channels, (*positions, D).

    Vaswani et al. 2017, section 3.5.

    Args:
      halves: whether sines are in the first half of the channels and cosines in the second, as in
        Marian.
    """
    angles = _angles(positions, width)
    if halves:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*positions.shape, width)


def rotate(x_BHTK: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotates pairs of channels by angles proportional to the position (Su et al. 2021, eq. 34).

    Channel i is paired with i + K/2, as in GPT-NeoX; the paper pairs adjacent channels, which is
    the same up to the order of channels.

    Args:
      positions: (T) or (B, T).
    """
    angles = jnp.expand_dims(_angles(positions, x_BHTK.shape[-1]), -3)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x_BHTK.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BHTK.dtype)


def _angles(positions: jax.Array, width: int) -> jax.Array:
    frequencies = WAVELENGTH ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return positions[..., None].astype(jnp.float32) * frequencies
