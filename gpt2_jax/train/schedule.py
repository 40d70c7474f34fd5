"""Learning rates over a run, as shares of the peak."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(config: ConfigDict) -> Schedule:
    """Returns the learning rate of the update that follows `n` others.

    Warm-up is linear, from `peak/warmup_steps` at the first update to the peak at the
    `warmup_steps`-th. After it: `cosine` and `linear` fall to `final_lr_ratio` over the remaining
    steps, `wsd` (Hu et al. 2024, MiniCPM) holds the peak and falls linearly over the last
    `decay_fraction` of all steps, `inverse_sqrt` is peak sqrt(w / n) with w the warm-up's length
    (Vaswani et al. 2017, section 5.3).
    """
    opt, steps = config.optimizer, config.train.steps
    warmup, last = opt.warmup_steps, opt.final_lr_ratio
    rest = max(steps - warmup, 1)
    cooldown = max(1, min(rest, round(opt.decay_fraction * steps)))
    after: dict[str, optax.Schedule] = {
        "cosine": optax.cosine_decay_schedule(1.0, rest, last),
        "linear": optax.linear_schedule(1.0, last, rest),
        "wsd": optax.linear_schedule(1.0, last, cooldown, rest - cooldown),
        "inverse_sqrt": lambda n: jnp.sqrt(max(warmup, 1) / (n + max(warmup, 1))),
        "constant": optax.constant_schedule(1.0),
    }
    shape = after[opt.schedule]

    def rate(n: jax.Array | int) -> jax.Array:
        warm = jnp.minimum(1.0, (n + 1) / max(warmup, 1))
        return opt.peak_lr * warm * shape(jnp.maximum(n - warmup, 0))

    return rate
