"""The train step: a pure function from a state and a batch to the next state and metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from gpt2_jax.config import Config
from gpt2_jax.model.definition import ModelDef, global_norm
from gpt2_jax.model.diagnostics import gradient_norms
from gpt2_jax.tasks.losses import AnyBatch, LossOptions
from gpt2_jax.train.distillation import BoundTeacher, Teacher
from gpt2_jax.train.distributed.mesh import DATA, FSDP, TENSOR, manual_axes, row_axes
from gpt2_jax.train.distributed.sharding import Layout, make_layout
from gpt2_jax.train.loss import mean_loss, nonzero
from gpt2_jax.train.optim.frozen_params import frozen_rows, join, split
from gpt2_jax.train.optim.optimizer import trainable_infos
from gpt2_jax.train.optim.param_patterns import lr_factors
from gpt2_jax.train.optim.pruning import keep_pruned
from gpt2_jax.train.optim.schedule import make_schedule
from gpt2_jax.train.state import Guard, State, purpose_key

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[State, Metrics]]  # of a state and a batch

BLOCK_GRAD_NORMS = "block_grad_norms"
NORM_DECAY = 0.98  # decay of the running moments that define outliers
NORM_WARMUP = 50  # steps to take before any can be an outlier


def make_step(
    config: Config,
    model_def: ModelDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    teacher: Teacher | None = None,
) -> Step:
    """Returns the train step, sharded over a mesh, or for one device if `mesh` is None.

    With a teacher, the step's third argument is the teacher's parameters, and `loss` includes the
    comparison with its predictions.

    Frozen parameters have no gradient and do not count in the gradient norm.

    Metrics are scalars: `loss` (mean nats per token, plus the z-loss if there is one), `grad_norm`
    (before clipping), `lr`, `skipped` and `max_consecutive_skipped`; with
    `track.diagnostics_every` also `block_grad_norms` (L).
    """
    gradients = make_gradients(config, model_def, mesh, teacher)
    update = make_update(config, model_def, optimizer)

    def step(state: State, batch: AnyBatch, *taught: Any) -> tuple[State, Metrics]:
        given = (state.params, state.frozen, batch, state.step, state.seed)
        loss, grads = gradients(*given, *taught)
        with jax.named_scope("optimizer"):
            return update(state, loss, grads)

    return step


def make_update(
    config: Config, model_def: ModelDef, optimizer: optax.GradientTransformation
) -> Callable[[State, jax.Array, Any], tuple[State, Metrics]]:
    """Returns `(state, loss, gradients) -> (next state, metrics)`, as described in `make_step`."""
    schedule = make_schedule(config.optimizer, config.train.steps)
    limit = config.optimizer.grad_clip
    factors = lr_factors(config.optimizer, model_def)
    factors = factors and split(factors, frozen_rows(config.optimizer, model_def))[0]

    def update(state: State, loss: jax.Array, grads: Any) -> tuple[State, Metrics]:
        norm = global_norm(grads)
        lr = schedule(state.step)
        scale = jnp.minimum(1.0, limit / norm) if limit else 1.0

        def apply(params: Any, opt_state: Any) -> tuple[Any, Any]:
            clipped = jax.tree.map(lambda g: g * scale, grads)
            updates, opt_state = optimizer.update(clipped, opt_state, params)
            if factors is not None:
                updates = jax.tree.map(jnp.multiply, updates, factors)
            new = jax.tree.map(lambda p, u: p + lr * u, params, updates)
            if config.optimizer.sparsity:
                new = keep_pruned(trainable_infos(config.optimizer, model_def), params, new)
            return model_def.project(new), opt_state

        ok = jnp.isfinite(norm) & jnp.isfinite(loss) & ~is_outlier(config, state.guard, norm)
        old = state.params, state.opt_state
        params, opt_state = apply_if(ok, apply, old, branch=model_def.target.is_cpu)
        guard = next_guard(state.guard, norm, ok)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "skipped": guard.skipped,
            "max_consecutive_skipped": guard.max_consecutive,
        }
        if config.track.diagnostics_every is not None:
            none = jax.tree.map(jnp.zeros_like, state.frozen)
            metrics[BLOCK_GRAD_NORMS] = gradient_norms(model_def, join(grads, none))
        return State(state.step + 1, state.seed, params, opt_state, guard, state.frozen), metrics

    return update


def make_gradients(
    config: Config, model_def: ModelDef, mesh: Mesh | None, teacher: Teacher | None = None
) -> Callable[..., Any]:
    """Returns `(params, frozen, batch, step, seed) -> (loss, gradients of params)`.

    With a teacher, the teacher's parameters are one more argument.

    Each device processes its rows in `train.accumulation` parts, and gradients are averaged over
    devices once. For a batch with weights the loss is sum(w nll) / sum(w) over the whole batch,
    however it is distributed.
    """
    parts = config.train.accumulation
    options = LossOptions(config.train.z_loss, config.optimizer.label_smoothing)
    layout = None if mesh is None else make_layout(model_def, mesh)
    of_device = model_def if layout is None else layout.on_device
    taught_layout = make_layout(teacher.model_def, mesh) if teacher and mesh else None

    def local(
        params: Any, frozen: Any, batch: AnyBatch, step: jax.Array, seed: jax.Array, *taught: Any
    ) -> tuple[jax.Array, Any]:
        keys_B = row_keys(batch, step, seed, mesh)
        weight = mean_weight(batch, parts, mesh)
        bound = None
        if teacher is not None:
            theirs = taught_layout.on_device if taught_layout else teacher.model_def
            bound = BoundTeacher(teacher, theirs, *taught)

        def part(batch: AnyBatch, keys_B: jax.Array) -> tuple[jax.Array, Any]:
            def loss(params: Any) -> jax.Array:
                whole = join(params, frozen)
                return mean_loss(whole, of_device, batch, keys_B, step, weight, options, bound)

            return jax.value_and_grad(loss)(params)

        total = mean_of_parts(part, params, (batch, keys_B), parts)
        return total if layout is None else mean_over_devices(total, layout)

    return local if layout is None else on_mesh(local, layout, taught_layout)


def row_keys(batch: AnyBatch, step: jax.Array, seed: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Returns the dropout keys of a device's rows (B), which do not depend on the mesh."""
    n_rows = jax.tree.leaves(batch)[0].shape[0]
    key = jax.random.fold_in(purpose_key(seed, "dropout"), step)
    first_row = 0 if mesh is None else lax.axis_index(row_axes(mesh)) * n_rows
    rows = first_row + jnp.arange(n_rows)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def mean_of_parts(
    part: Callable[..., Any], params: Any, rows: tuple[Any, ...], parts: int
) -> tuple[jax.Array, Any]:
    """Returns the loss and the gradients of `params`, averaged over parts of the rows.

    Args:
      part: returns them for some of the `rows`.
    """
    if parts == 1:
        return part(*rows)
    split_rows = lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:])
    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    total, _ = lax.scan(
        lambda total, xs: (jax.tree.map(jnp.add, total, part(*xs)), None),
        zeros,
        jax.tree.map(split_rows, rows),
    )
    return jax.tree.map(lambda x: x / parts, total)


def on_mesh(
    local: Callable[..., Any], layout: Layout, taught_layout: Layout | None = None
) -> Callable[..., Any]:
    """Returns `local`, which computes the gradients of a device's rows, for all devices.

    Args:
      taught_layout: of the teacher's parameters, the last argument; None if there is no teacher.
    """
    mesh = layout.mesh

    def gradients(params: Any, frozen: Any, *inputs: Any) -> tuple[jax.Array, Any]:
        everywhere, rows = PartitionSpec(), PartitionSpec(row_axes(mesh))
        split = [layout.specs_of(tree, FSDP) for tree in (params, frozen)]
        others = [everywhere, everywhere]
        if taught_layout is not None:
            others.append(taught_layout.specs_of(inputs[-1], FSDP))
        # check_vma would add a sum over devices for each use of a parameter; one sum of the final
        # gradients is enough.
        sharded = jax.shard_map(
            local,
            mesh=mesh,
            axis_names=manual_axes(mesh),
            in_specs=(*split, rows, *others),
            out_specs=(everywhere, split[0]),
            check_vma=False,
        )
        return sharded(params, frozen, *inputs)

    return gradients


def mean_weight(batch: AnyBatch, parts: int, mesh: Mesh | None) -> jax.Array | None:
    """Returns the mean of sum(w) over parts and devices; None for a batch without weights.

    Losses divided by it average to the loss of the whole batch. It is known before the forward
    pass, so the gradients of parts can simply be added.
    """
    if batch.weights is None:
        return None
    total = batch.weights.sum()
    mean = total if mesh is None else lax.pmean(total, row_axes(mesh))
    return nonzero(mean) / parts


def apply_if(
    ok: jax.Array, apply: Callable[..., Any], old: tuple[Any, ...], *, branch: bool
) -> Any:
    """Returns `apply(*old)` if `ok`, else `old`, by a branch or by selecting values.

    On a GPU, a branch copies the whole state (9 GB of peak memory for 1558M on eight), whereas
    selecting values fuses with the update. On a CPU the branch is faster.
    """
    if branch:
        return lax.cond(ok, apply, lambda *old: old, *old)
    return jax.tree.map(lambda new, old: jnp.where(ok, new, old), apply(*old), old)


def mean_over_devices(total: tuple[jax.Array, Any], layout: Layout) -> Any:
    """Returns the loss and the gradients averaged over devices, inside a shard_map.

    A gradient that is split over `fsdp` is already summed over it.
    """
    mesh, (leaves, structure) = layout.mesh, jax.tree.flatten(total)
    mean = partial(_mean, joined=layout.model_def.target.is_cpu)
    is_part = [FSDP in spec for spec in jax.tree.leaves(layout.specs_of(total, FSDP))]
    pick = lambda xs, part: [x for x, is_one in zip(xs, is_part, strict=True) if is_one == part]

    def average(leaves: list[jax.Array]) -> list[jax.Array]:
        parts = [x / mesh.shape[FSDP] for x in pick(leaves, True)]
        if mesh.shape[DATA] > 1:
            parts = mean(parts, (DATA,))
        of_kind = {True: iter(parts), False: iter(mean(pick(leaves, False), row_axes(mesh)))}
        return [next(of_kind[kind]) for kind in is_part]

    if mesh.shape[TENSOR] > 1:  # XLA would join what it has split over `tensor` before it reduces
        specs = jax.tree.leaves(layout.specs_of(total, TENSOR))
        average = jax.shard_map(
            average, in_specs=(specs,), out_specs=specs, axis_names={TENSOR}, check_vma=False
        )
    return jax.tree.unflatten(structure, average(leaves))


def _mean(arrays: list[jax.Array], axes: tuple[str, ...], *, joined: bool) -> list[jax.Array]:
    """Returns the mean of each array over mesh axes.

    On a CPU, all arrays are joined and reduced as one. That is faster, and avoids a deadlock: the
    devices of a CPU share a few threads, and each of several concurrent reductions waits for all
    devices.
    """
    if not joined:
        return lax.pmean(arrays, axes)
    flat, unravel = ravel_pytree(arrays)
    return unravel(lax.pmean(flat, axes))


def is_outlier(config: Config, guard: Guard, norm: jax.Array) -> jax.Array:
    """Returns whether a gradient norm is far above those of the steps taken so far."""
    if config.optimizer.skip_outliers is None:
        return jnp.bool_(False)
    threshold = guard.norm_mean + config.optimizer.skip_outliers * jnp.sqrt(guard.norm_var)
    return (guard.taken >= NORM_WARMUP) & (norm > threshold)


def next_guard(guard: Guard, norm: jax.Array, ok: jax.Array) -> Guard:
    """Returns the guard after a step with gradient norm `norm`, taken (`ok`) or skipped."""
    weight = jnp.maximum(1.0 - NORM_DECAY, 1.0 / (guard.taken + 1))
    delta = norm - guard.norm_mean
    taken = Guard(
        skipped=guard.skipped,
        consecutive=jnp.int32(0),
        max_consecutive=guard.max_consecutive,
        taken=guard.taken + 1,
        norm_mean=guard.norm_mean + weight * delta,
        norm_var=(1.0 - weight) * (guard.norm_var + weight * delta * delta),
    )
    consecutive = guard.consecutive + 1
    skipped = guard._replace(
        skipped=guard.skipped + 1,
        consecutive=consecutive,
        max_consecutive=jnp.maximum(guard.max_consecutive, consecutive),
    )
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), taken, skipped)
