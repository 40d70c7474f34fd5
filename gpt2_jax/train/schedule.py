"""Learning rates over a run, as shares of the peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

Schedule = Callable[[jax.Array | int], jax.Array]


def warmup_steps(config: ConfigDict) -> int:
    """Returns the steps of linear warm-up, given as such or as a share of `train.steps`."""
    opt, steps = config.optimizer, config.train.steps
    if opt.warmup_steps is not None:
        return opt.warmup_steps
    return min(round(opt.warmup_fraction * steps), steps - 1)


def make_schedule(config: ConfigDict) -> Schedule:
    """Returns the learning rate of the update that follows `n` others.

    Warm-up is linear over w = `warmup_steps(config)` steps, from peak/w at the first step to the
    peak at step w. After it: `cosine` and `linear` fall to `final_lr_ratio` over the remaining
    steps, `wsd` (Hu et al. 2024, MiniCPM) holds the peak and falls linearly over the last
    `decay_fraction` of all steps, `inverse_sqrt` is peak sqrt(w / n)
    (Vaswani et al. 2017, section 5.3).

    Every number may be traced (optax's schedules want Python's), so that runs that differ in them
    share a compiled program.
    """
    opt, steps = config.optimizer, config.train.steps
    w = warmup_steps(config)

    def rate(n: jax.Array | int) -> jax.Array:
        warmup = jnp.maximum(w, 1)
        warm = jnp.minimum(1.0, (n + 1) / warmup)
        behind = jnp.maximum(n - w, 0)
        rest = jnp.maximum(steps - w, 1)
        cooldown = jnp.clip(jnp.round(opt.decay_fraction * steps), 1, rest)
        last = opt.final_lr_ratio
        done = jnp.minimum(behind / rest, 1.0)
        cooled = jnp.clip((behind - (rest - cooldown)) / cooldown, 0.0, 1.0)
        after: dict[str, Any] = {
            "cosine": last + (1 - last) * (1 + jnp.cos(jnp.pi * done)) / 2,
            "linear": 1 - (1 - last) * done,
            "wsd": 1 - (1 - last) * cooled,
            "inverse_sqrt": jnp.sqrt(warmup / (behind + warmup)),
            "constant": 1.0,
        }
        return opt.peak_lr * warm * after[opt.schedule]

    return rate
