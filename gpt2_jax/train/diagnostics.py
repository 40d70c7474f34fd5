"""Figures by depth of a model in training, on few sequences so that they cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from gpt2_jax.config.sections import TrackConfig, TrainConfig
from gpt2_jax.data.batch import Batch
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.diagnostics import logits_without, observe
from gpt2_jax.train.compiled_step import CompiledStep
from gpt2_jax.train.loss import batch_loss
from gpt2_jax.train.mesh import replicated
from gpt2_jax.train.state import abstract_params

OBSERVED_ROWS = 8  # sequences at most

DiagnosticsFn = Callable[[Any, jax.Array, Batch], dict[str, jax.Array]]


def diagnostic_rows(train: TrainConfig, n_layer: int, n_devices: int) -> tuple[int, int]:
    """Returns the number of sequences to observe, and the number to compute skip costs on.

    They fit on one device at a time; together they cost as much as one to three steps.
    """
    rows = train.batch_size // n_devices
    at_once = min(OBSERVED_ROWS, rows // train.accumulation)
    return at_once, min(at_once, max(1, rows // n_layer))


def compile_diagnostics(
    track: TrackConfig, train: TrainConfig, compiled: CompiledStep
) -> DiagnosticsFn | None:
    """Returns a run's diagnostics, compiled before steps are timed; None if it has none."""
    if track.diagnostics_every is None:
        return None
    model_def, mesh = compiled.model_def, compiled.mesh
    rows = diagnostic_rows(train, model_def.cfg.n_layer, mesh.devices.size)
    diagnostics = jit_diagnostics(model_def, mesh, *rows)
    params = abstract_params(model_def, mesh)
    return diagnostics.lower(params, compiled.shapes.step, compiled.batch_shape).compile()


def jit_diagnostics(
    model_def: ModelDef, mesh: Mesh, observed: int, skipped: int
) -> jax.stages.Wrapped:
    """Returns `make_diagnostics` jitted for a mesh.

    Every device computes all of it: the sequences are few, and a mean over devices of figures
    that are not linear would not be the figure of the batch.
    """
    diagnostics = make_diagnostics(model_def, observed, skipped)
    return jax.jit(diagnostics, out_shardings=replicated(mesh))


def make_diagnostics(model_def: ModelDef, observed: int, skipped: int) -> DiagnosticsFn:
    """Returns a function `(params, step, batch) -> {figure: (L)}`.

    The figures are those of `observe` on the first `observed` sequences of the batch, and the
    `skip_cost` of each block on the first `skipped`.
    """

    def diagnostics(params: Any, step: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        first = lambda n: jax.tree.map(lambda x: x[:n], batch)
        figures = observe(model_def, params, first(observed).inputs_BT, step)._asdict()
        return figures | {"skip_cost": skip_costs(model_def, params, first(skipped), step)}

    return diagnostics


def skip_costs(model_def: ModelDef, params: Any, batch: Batch, step: jax.Array | int) -> jax.Array:
    """Returns how much the loss rises, in nats, if the sublayers of a block return 0, (L)."""

    def loss(ablated: jax.Array) -> jax.Array:
        logits_BTV = logits_without(model_def, params, batch.inputs_BT, step, ablated)
        return batch_loss(logits_BTV, batch)

    losses = lax.map(loss, jnp.arange(-1, model_def.cfg.n_layer))  # -1 ablates none
    return losses[1:] - losses[0]


def by_block(figures: dict[str, Any]) -> dict[str, float]:
    """Returns `{"depth/stream_rms/block_01": ...}` for `{"stream_rms": (L)}`, counting from 1."""
    out: dict[str, float] = {}
    for name, values in figures.items():
        width = max(2, len(str(len(values))))
        out |= {f"depth/{name}/block_{l:0{width}}": float(v) for l, v in enumerate(values, 1)}
    return out
