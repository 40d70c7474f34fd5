"""A run opened again from its directory alone, to be evaluated or sampled."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from gpt2_jax.errors import UserError
from gpt2_jax.model.structure import Structure, structure
from gpt2_jax.train.checkpoint import Checkpoints, damage
from gpt2_jax.train.mesh import configure_devices, make_mesh
from gpt2_jax.train.optimizer import make_optimizer
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.state import abstract, make_init


@dataclass(frozen=True)
class OpenedRun:
    """A checkpoint's parameters on this machine's devices."""

    config: ConfigDict
    structure: Structure
    mesh: Mesh
    params: Any
    step: int


def open_run(workdir: str, step: int | None = None) -> OpenedRun:
    """Opens a run at one of its checkpoints; nothing in the directory is written or executed.

    Args:
      step: None for the latest undamaged checkpoint.

    Raises:
      UserError: if there is no run, no such checkpoint, or it is damaged.
    """
    directory = RunDirectory(workdir)
    config = directory.read_config()
    checkpoints = Checkpoints(directory.checkpoints_path)
    step = _choose(checkpoints, workdir, step)
    config.mesh.data = None  # this machine may have other devices
    configure_devices(config)
    mesh, model = make_mesh(config), structure(config.model)
    optimizer = make_optimizer(config, model.infos)
    init = make_init(config, model, optimizer, mesh)
    state = checkpoints.restore(step, abstract(init, mesh))
    checkpoints.close()
    return OpenedRun(config, model, mesh, state.params, step)


def _choose(checkpoints: Checkpoints, workdir: str, step: int | None) -> int:
    if step is None:
        found = checkpoints.latest(lambda line: print(f"warning: {line}", file=sys.stderr))
        if found is None:
            raise UserError(f"{workdir} has no checkpoint yet: train it first")
        return found
    if step not in checkpoints.steps():
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"{workdir} has no checkpoint of step {step}; there are: {there}")
    if fault := damage(checkpoints.path(step)):
        raise UserError(f"checkpoint {checkpoints.path(step)} is damaged: {fault}")
    return step
