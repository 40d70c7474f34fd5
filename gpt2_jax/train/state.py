"""The train state: everything that the next step depends on, as one pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gpt2_jax.config.sections import OptimizerConfig
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.nn.target import Target
from gpt2_jax.train.distributed.sharding import make_layout
from gpt2_jax.train.optim.frozen_params import frozen_rows, join, split


class Guard(NamedTuple):
    """Statistics that decide whether a step is skipped.

    Attributes:
      skipped: number of skipped steps.
      consecutive: number of steps skipped since the last one taken.
      max_consecutive: maximum of `consecutive` so far; shows a series however rarely it is read.
      taken: number of steps taken.
      norm_mean: running mean of their gradient norms; norm_var: the running variance.
    """

    skipped: jax.Array
    consecutive: jax.Array
    max_consecutive: jax.Array
    taken: jax.Array
    norm_mean: jax.Array
    norm_var: jax.Array


class State(NamedTuple):
    """The state between two steps.

    Attributes:
      step: number of steps done, including skipped ones.
      seed: the run's seed; all random numbers derive from it, the step and a purpose.
      params: trainable parameters.
      opt_state: optimizer state of the trainable parameters.
      frozen: frozen parameters (see `frozen_params.py`); None if there are none.
    """

    step: jax.Array
    seed: jax.Array
    params: dict[str, Any]
    opt_state: optax.OptState
    guard: Guard
    frozen: dict[str, Any] | None = None

    @property
    def all_params(self) -> dict[str, Any]:
        """The model's parameters, trainable and frozen."""
        return join(self.params, self.frozen)

    def replace_params(self, all_params: dict[str, Any]) -> State:
        """Returns the state with new values of the model's parameters."""
        params, frozen = split(all_params, self.frozen)
        return self._replace(params=params, frozen=frozen)


def purpose_key(seed: jax.Array | int, purpose: str) -> jax.Array:
    """Returns the random key for a purpose: `init`, `dropout` or `sample`."""
    index = ("init", "dropout", "sample").index(purpose)
    return jax.random.fold_in(jax.random.key(seed), index)


def new_state(
    config: OptimizerConfig,
    model_def: ModelDef,
    optimizer: optax.GradientTransformation,
    seed: jax.Array,
) -> State:
    """Returns the state before the first step."""
    all_params = model_def.init(purpose_key(seed, "init"))
    params, frozen = split(all_params, frozen_rows(config, model_def))
    zero = jnp.int32(0)
    guard = Guard(zero, zero, zero, zero, jnp.float32(0), jnp.float32(0))
    return State(zero, seed, params, optimizer.init(params), guard, frozen)


def make_init(
    seed: int,
    config: OptimizerConfig,
    model_def: ModelDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[], State]:
    """Returns a jitted function that returns the state before the first step, on the mesh."""
    init = lambda: new_state(config, model_def, optimizer, jnp.uint32(seed))
    shardings = make_layout(model_def, mesh).shardings(jax.eval_shape(init))
    return jit_once(init, shardings, model_def.target)


def jit_once(init: Callable[..., Any], out_shardings: Any, target: Target) -> Callable[..., Any]:
    """Jits a function that runs once, without optimizations that would not pay off."""
    quick = {"xla_backend_optimization_level": 0} if target.is_cpu else None
    return jax.jit(init, out_shardings=out_shardings, compiler_options=quick)


def abstract_params(model_def: ModelDef, mesh: Mesh) -> dict[str, Any]:
    """Returns the shapes, types and shardings of all parameters."""
    return make_layout(model_def, mesh).abstract(model_def.shapes)
