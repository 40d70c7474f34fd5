"""The train step: one pure function from a state and a batch to the next state and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from gpt2_jax.model.diagnostics import gradient_norms
from gpt2_jax.model.structure import Structure
from gpt2_jax.train.loss import cross_entropy
from gpt2_jax.train.mesh import DATA
from gpt2_jax.train.patterns import rate_factors
from gpt2_jax.train.schedule import make_schedule
from gpt2_jax.train.state import Guard, State, purpose_key

Metrics = dict[str, jax.Array]
Step = Callable[[State, jax.Array], tuple[State, Metrics]]

BLOCK_GRAD_NORMS = "block_grad_norms"
NORM_DECAY = 0.98  # of the running moments that outliers are held against
NORM_WARMUP = 50  # updates before any is called an outlier


def make_step(
    config: ConfigDict,
    structure: Structure,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
) -> Step:
    """Returns the step for batches (B, T+1) of token ids, spread over a mesh or (None) on a device.

    Parameters whose rate is 0 have no gradient: they count neither in its norm nor in moments.

    Metrics are scalars: `loss` (mean nats a token), `grad_norm` (before clipping), `lr`,
    `skipped` and `longest_skipped` (in a row); with `track.diagnostics_every` also
    `block_grad_norms` (L).
    """
    schedule = make_schedule(config)
    gradients = make_gradients(config, structure, mesh)
    limit = config.optimizer.grad_clip
    factors = rate_factors(config, structure)

    def step(state: State, tokens_BT1: jax.Array) -> tuple[State, Metrics]:
        loss, grads = gradients(state.params, tokens_BT1, state.step, state.seed)
        if factors is not None:
            grads = jax.tree.map(lambda g, f: g * (f != 0), grads, factors)
        norm = optax.tree.norm(grads)
        rate = schedule(state.step)
        scale = jnp.minimum(1.0, limit / norm) if limit else 1.0

        def take(params: Any, opt_state: Any) -> tuple[Any, Any]:
            clipped = jax.tree.map(lambda g: g * scale, grads)
            updates, opt_state = optimizer.update(clipped, opt_state, params)
            if factors is not None:
                updates = jax.tree.map(jnp.multiply, updates, factors)
            params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
            return structure.project(params), opt_state

        ok = jnp.isfinite(norm) & jnp.isfinite(loss) & ~is_outlier(config, state.guard, norm)
        params, opt_state = take_if(ok, take, (state.params, state.opt_state))
        guard = next_guard(state.guard, norm, ok)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "skipped": guard.skipped,
            "longest_skipped": guard.longest,
        }
        if config.track.diagnostics_every is not None:
            metrics[BLOCK_GRAD_NORMS] = gradient_norms(structure, grads)
        return State(state.step + 1, state.seed, params, opt_state, guard), metrics

    return step


def make_gradients(
    config: ConfigDict, structure: Structure, mesh: Mesh | None
) -> Callable[..., Any]:
    """Returns `(params, tokens, step, seed) -> (loss, gradients)`, means over the whole batch.

    Each device works through its rows in `train.accumulation` parts; the gradients meet once.
    """
    parts = config.train.accumulation

    def local(
        params: Any, tokens_bT1: jax.Array, step: jax.Array, seed: jax.Array
    ) -> tuple[jax.Array, Any]:
        n_rows = tokens_bT1.shape[0]
        key = jax.random.fold_in(purpose_key(seed, "dropout"), step)
        first_row = 0 if mesh is None else lax.axis_index(DATA) * n_rows
        rows = first_row + jnp.arange(n_rows)
        keys_b = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)

        def part(tokens: jax.Array, keys: jax.Array) -> tuple[jax.Array, Any]:
            return jax.value_and_grad(mean_loss)(params, structure, tokens, keys, step)

        if parts == 1:
            total = part(tokens_bT1, keys_b)
        else:
            split = lambda x: x.reshape(parts, n_rows // parts, *x.shape[1:])
            zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
            total, _ = lax.scan(
                lambda total, xs: (jax.tree.map(jnp.add, total, part(*xs)), None),
                zeros,
                (split(tokens_bT1), split(keys_b)),
            )
            total = jax.tree.map(lambda x: x / parts, total)
        return total if mesh is None else mean_over_devices(total)

    if mesh is None:
        return local
    # Not checked for varying axes: the check would add a sum over devices for each use of a
    # parameter, where one sum of the finished gradients is enough.
    everywhere, rows = PartitionSpec(), PartitionSpec(DATA)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, rows, everywhere, everywhere),
        out_specs=(everywhere, everywhere),
        check_vma=False,
    )


def take_if(ok: jax.Array, take: Callable[..., Any], old: tuple[Any, ...]) -> Any:
    """Returns `take(*old)` where `ok`, else `old`.

    A branch copies the whole state on a GPU (9 GB of the peak for 1558M on eight), where choosing
    each value melts into the update; on a CPU the branch is the faster one.
    """
    if jax.default_backend() == "cpu":
        return lax.cond(ok, take, lambda *old: old, *old)
    return jax.tree.map(lambda new, old: jnp.where(ok, new, old), take(*old), old)


def mean_over_devices(tree: Any) -> Any:
    """Returns the mean of each array over the `data` axis, inside a shard_map.

    On a CPU all arrays travel as one: it is faster there, and a CPU's devices share a few threads,
    which sums that wait for each other side by side can all hold up for good.
    """
    if jax.default_backend() != "cpu":
        return lax.pmean(tree, DATA)
    flat, unravel = ravel_pytree(tree)
    return unravel(lax.pmean(flat, DATA))


def mean_loss(
    params: Any,
    structure: Structure,
    tokens_BT1: jax.Array,
    keys_B: jax.Array | None,
    step: jax.Array | int,
) -> jax.Array:
    """Returns the mean nats a predicted token after `step` updates."""
    logits_BTV = structure.bind(params)(tokens_BT1[:, :-1], keys_B, step)
    return cross_entropy(logits_BTV, tokens_BT1[:, 1:]).mean()


def is_outlier(config: ConfigDict, guard: Guard, norm: jax.Array) -> jax.Array:
    """Returns whether a gradient's norm is too far above those of the updates taken so far."""
    if config.optimizer.skip_outliers is None:
        return jnp.bool_(False)
    threshold = guard.norm_mean + config.optimizer.skip_outliers * jnp.sqrt(guard.norm_var)
    return (guard.taken >= NORM_WARMUP) & (norm > threshold)


def next_guard(guard: Guard, norm: jax.Array, ok: jax.Array) -> Guard:
    """Returns the guard after an update with this norm was taken (`ok`) or skipped."""
    weight = jnp.maximum(1.0 - NORM_DECAY, 1.0 / (guard.taken + 1))
    delta = norm - guard.norm_mean
    taken = Guard(
        skipped=guard.skipped,
        in_a_row=jnp.int32(0),
        longest=guard.longest,
        taken=guard.taken + 1,
        norm_mean=guard.norm_mean + weight * delta,
        norm_var=(1.0 - weight) * (guard.norm_var + weight * delta * delta),
    )
    row = guard.in_a_row + 1
    skipped = guard._replace(
        skipped=guard.skipped + 1, in_a_row=row, longest=jnp.maximum(guard.longest, row)
    )
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), taken, skipped)
