"""Learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gpt2_jax.config.sections import OptimizerConfig

Schedule = Callable[[jax.Array | int], jax.Array]


def warmup_steps(opt: OptimizerConfig, steps: int) -> int:
    """Returns the number of linear warm-up steps, configured directly or as a fraction."""
    if opt.warmup_steps is not None:
        return opt.warmup_steps
    return min(round(opt.warmup_fraction * steps), steps - 1)


def make_schedule(opt: OptimizerConfig, steps: int) -> Schedule:
    """Returns a function from the number of steps done to the learning rate of the next step.

    Warm-up is linear over w = `warmup_steps(opt, steps)`, from peak/w at the first step to the
    peak at step w. After it, `cosine` and `linear` decay to `final_lr_ratio` over the remaining
    steps, `wsd` (Hu et al. 2024, MiniCPM) holds the peak and decays linearly over the last
    `decay_fraction` of all steps, and `inverse_sqrt` is peak sqrt(w / n)
    (Vaswani et al. 2017, section 5.3).

    Unlike in optax's schedules, all numbers may be traced, so runs with different numbers share a
    compiled program.
    """
    w = warmup_steps(opt, steps)

    def learning_rate(n: jax.Array | int) -> jax.Array:
        warmup = jnp.maximum(w, 1)
        warm = jnp.minimum(1.0, (n + 1) / warmup)
        since_warmup = jnp.maximum(n - w, 0)
        rest = jnp.maximum(steps - w, 1)
        cooldown = jnp.clip(jnp.round(opt.decay_fraction * steps), 1, rest)
        last = opt.final_lr_ratio
        done = jnp.minimum(since_warmup / rest, 1.0)
        cooled = jnp.clip((since_warmup - (rest - cooldown)) / cooldown, 0.0, 1.0)
        after: dict[str, Any] = {
            "cosine": last + (1 - last) * (1 + jnp.cos(jnp.pi * done)) / 2,
            "linear": 1 - (1 - last) * done,
            "wsd": 1 - (1 - last) * cooled,
            "inverse_sqrt": jnp.sqrt(warmup / (since_warmup + warmup)),
            "constant": 1.0,
        }
        return opt.peak_lr * warm * after[opt.schedule]

    return learning_rate
