"""Everything that the next update depends on, as one plain pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gpt2_jax.model.structure import Structure
from gpt2_jax.train.mesh import replicated


class Guard(NamedTuple):
    """What decides whether an update is skipped.

    Attributes:
      skipped: updates skipped so far. in_a_row: of them, directly before now. longest: the most
        that ever were, so that a row of them is seen however seldom one looks.
      taken: updates taken. norm_mean, norm_var: running moments of their gradients' norm.
    """

    skipped: jax.Array
    in_a_row: jax.Array
    longest: jax.Array
    taken: jax.Array
    norm_mean: jax.Array
    norm_var: jax.Array


class State(NamedTuple):
    """A run between two updates.

    Attributes:
      step: updates done (skipped ones included).
      seed: of the run; every random number is folded from it, the step and a purpose.
    """

    step: jax.Array
    seed: jax.Array
    params: dict[str, Any]
    opt_state: optax.OptState
    guard: Guard


def purpose_key(seed: jax.Array | int, purpose: str) -> jax.Array:
    """Returns the key of one use of randomness: `init`, `dropout`, `sample`."""
    index = ("init", "dropout", "sample").index(purpose)
    return jax.random.fold_in(jax.random.key(seed), index)


def new_state(
    structure: Structure, optimizer: optax.GradientTransformation, seed: jax.Array
) -> State:
    """Returns the state before the first update."""
    params = structure.init(purpose_key(seed, "init"))
    zero = jnp.int32(0)
    guard = Guard(zero, zero, zero, zero, jnp.float32(0), jnp.float32(0))
    return State(zero, seed, params, optimizer.init(params), guard)


def make_init(
    config: ConfigDict, structure: Structure, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[], State]:
    """Returns the jitted maker of the state before the first update, laid out on the mesh."""
    init = lambda: new_state(structure, optimizer, jnp.uint32(config.seed))
    return jit_once(init, mesh)


def jit_once(init: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """Returns a function jitted onto the mesh that runs once: compiling it well would not pay."""
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    sharding = None if mesh is None else replicated(mesh)
    return jax.jit(init, out_shardings=sharding, compiler_options=quick)


def abstract_params(structure: Structure, mesh: Mesh) -> dict[str, Any]:
    """Returns the shapes, types and shardings of the parameters."""
    whole = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), structure.shapes
    )


def abstract(init: Callable[[], State], mesh: Mesh) -> State:
    """Returns the shapes, types and shardings of the state, with nothing allocated."""
    whole = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(init)
    )
