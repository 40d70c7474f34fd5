"""Figures by depth of a model in training, on so few sequences that they cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gpt2_jax.model.diagnostics import logits_without, observe
from gpt2_jax.model.structure import Structure
from gpt2_jax.train.loss import cross_entropy
from gpt2_jax.train.mesh import replicated
from gpt2_jax.train.program import Program

OBSERVED_ROWS = 8  # sequences at most

Probe = Callable[[Any, jax.Array, jax.Array], dict[str, jax.Array]]


def training_rows(config: ConfigDict, n_devices: int) -> tuple[int, int]:
    """Returns on how many sequences a run observes, and skips blocks.

    At most as many as a device takes at once; all of it costs what one to three steps cost.
    """
    rows = config.train.batch_size // n_devices
    at_once = min(OBSERVED_ROWS, rows // config.train.accumulation)
    return at_once, min(at_once, max(1, rows // config.model.n_layer))


def compile_probe(config: ConfigDict, program: Program) -> Probe | None:
    """Returns a run's probe, compiled before steps are timed; None where it has none."""
    if config.track.diagnostics_every is None:
        return None
    rows, shapes = training_rows(config, program.mesh.devices.size), program.shapes
    probe = make_probe(program.structure, program.mesh, *rows)
    return probe.lower(shapes.params, shapes.step, program.batch_shape).compile()


def make_probe(structure: Structure, mesh: Mesh, observed: int, skipped: int) -> jax.stages.Wrapped:
    """Returns `make_figures` jitted for a mesh.

    Every device computes all of them: they are few, and means of means would be others.
    """
    return jax.jit(make_figures(structure, observed, skipped), out_shardings=replicated(mesh))


def make_figures(structure: Structure, observed: int, skipped: int) -> Probe:
    """Returns the `(params, step, batch (B, T+1)) -> {figure: (L)}` of a run.

    The figures are those of `observe` on the batch's first `observed` sequences, and the
    `skip_cost` of each block on the first `skipped`.
    """

    def probe(params: Any, step: jax.Array, tokens_BT1: jax.Array) -> dict[str, jax.Array]:
        figures = observe(structure, params, tokens_BT1[:observed, :-1], step)._asdict()
        return figures | {"skip_cost": skip_costs(structure, params, tokens_BT1[:skipped], step)}

    return probe


def skip_costs(
    structure: Structure, params: Any, tokens_BT1: jax.Array, step: jax.Array | int
) -> jax.Array:
    """Returns by how many nats per token the loss rises when a block's branches give 0, (L)."""

    def loss(muted: jax.Array) -> jax.Array:
        logits_BTV = logits_without(structure, params, tokens_BT1[:, :-1], step, muted)
        return cross_entropy(logits_BTV, tokens_BT1[:, 1:]).mean()

    losses = lax.map(loss, jnp.arange(-1, structure.cfg.n_layer))  # -1 mutes none
    return losses[1:] - losses[0]


def by_block(figures: dict[str, Any]) -> dict[str, float]:
    """Returns `{"depth/stream_rms/block_01": …}` of `{"stream_rms": (L)}`; blocks count from 1."""
    out: dict[str, float] = {}
    for name, values in figures.items():
        width = max(2, len(str(len(values))))
        out |= {f"depth/{name}/block_{l:0{width}}": float(v) for l, v in enumerate(values, 1)}
    return out
