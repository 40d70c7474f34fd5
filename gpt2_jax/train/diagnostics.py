"""Per-block diagnostics during training, on a few sequences to keep their cost low."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from gpt2_jax.config.sections import TrackConfig, TrainConfig
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.diagnostics import by_tower, figures, logits_without
from gpt2_jax.tasks.losses import AnyBatch, inputs_of
from gpt2_jax.train.batch_shapes import by_shape
from gpt2_jax.train.compiled_step import CompiledStep
from gpt2_jax.train.distributed.mesh import DATA, FSDP, manual_axes, n_row_devices, replicated
from gpt2_jax.train.distributed.sharding import make_layout
from gpt2_jax.train.loss import batch_loss
from gpt2_jax.train.state import abstract_params

OBSERVED_ROWS = 8  # at most this many sequences

DiagnosticsFn = Callable[[Any, jax.Array, AnyBatch], dict[str, jax.Array]]


def diagnostic_rows(train: TrainConfig, n_layer: int, n_devices: int) -> tuple[int, int]:
    """Returns how many sequences to observe, and on how many to compute skip costs.

    Each fits in one device's memory; together they cost as much as one to three steps.
    """
    rows = train.batch_size // n_devices
    at_once = min(OBSERVED_ROWS, rows // train.accumulation)
    return at_once, min(at_once, max(1, rows // n_layer))


def compile_diagnostics(
    track: TrackConfig, train: TrainConfig, compiled: CompiledStep
) -> DiagnosticsFn | None:
    """Returns a run's compiled diagnostics, None if `track.diagnostics_every` is unset."""
    if track.diagnostics_every is None:
        return None
    model_def, mesh = compiled.model_def, compiled.mesh
    rows = diagnostic_rows(train, model_def.n_blocks, n_row_devices(mesh))
    diagnostics = jit_diagnostics(model_def, mesh, *rows)
    params = abstract_params(model_def, mesh)
    step, batches = compiled.shapes.step, compiled.batch_shapes
    return by_shape(batches, [diagnostics.lower(params, step, b).compile() for b in batches])


def jit_diagnostics(
    model_def: ModelDef, mesh: Mesh, observed: int, skipped: int
) -> jax.stages.Wrapped:
    """Returns `make_diagnostics` jitted for a mesh.

    Every device computes all of them: there are few sequences, and averaging nonlinear
    diagnostics over devices would not give those of the batch.
    """
    layout, everywhere = make_layout(model_def, mesh), PartitionSpec()
    diagnostics = make_diagnostics(layout.on_device, observed, skipped)
    if mesh.size > mesh.shape[DATA]:
        diagnostics = jax.shard_map(
            diagnostics,
            mesh=mesh,
            axis_names=manual_axes(mesh),
            in_specs=(layout.specs_of(model_def.shapes, FSDP), everywhere, everywhere),
            out_specs=everywhere,
            check_vma=False,
        )
    return jax.jit(diagnostics, out_shardings=replicated(mesh))


def make_diagnostics(model_def: ModelDef, observed: int, skipped: int) -> DiagnosticsFn:
    """Returns a function `(params, step, batch) -> {name: (L)}`.

    It computes the diagnostics of `figures` on the first `observed` sequences of the batch, and
    the `skip_cost` of each block on the first `skipped`.
    """

    def diagnostics(params: Any, step: jax.Array, batch: AnyBatch) -> dict[str, jax.Array]:
        first = lambda n: jax.tree.map(lambda x: x[:n], batch)
        inputs, source = inputs_of(first(observed))
        measured = figures(model_def, params, inputs, step, source)
        costs = skip_costs(model_def, params, first(skipped), step)
        return measured | by_tower(model_def.cfg.towers, "skip_cost", costs)

    return diagnostics


def skip_costs(
    model_def: ModelDef, params: Any, batch: AnyBatch, step: jax.Array | int
) -> jax.Array:
    """Returns, for each block, how much the loss rises (nats) if its sublayers return 0, (L)."""
    inputs, source = inputs_of(batch)

    def loss(ablated: jax.Array) -> jax.Array:
        logits = logits_without(model_def, params, inputs, step, ablated, source)
        return batch_loss(logits, batch)

    losses = lax.map(loss, jnp.arange(-1, model_def.n_blocks))  # -1 ablates none
    return losses[1:] - losses[0]


def by_block(diagnostics: dict[str, Any]) -> dict[str, float]:
    """Returns `{"depth/stream_rms/block_01": ...}` for `{"stream_rms": (L)}`, counting from 1."""
    out: dict[str, float] = {}
    for name, values in diagnostics.items():
        width = max(2, len(str(len(values))))
        out |= {f"depth/{name}/block_{l:0{width}}": float(v) for l, v in enumerate(values, 1)}
    return out
