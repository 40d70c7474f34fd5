"""A run opened again from its directory alone, to be evaluated or sampled."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from gpt2_jax.errors import UserError
from gpt2_jax.model.structure import Structure, structure
from gpt2_jax.train.checkpoint import Checkpoints, damage, restore_params
from gpt2_jax.train.mesh import configure_devices, make_mesh
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.state import abstract_params


@dataclass(frozen=True)
class OpenedRun:
    """A checkpoint's parameters on this machine's devices."""

    config: ConfigDict
    structure: Structure
    mesh: Mesh
    params: Any
    step: int


def open_run(workdir: str, step: int | str | None = None, devices: int | None = None) -> OpenedRun:
    """Opens a run at one of its checkpoints; nothing in the directory is written or executed.

    Args:
      step: an update, `best` for the one of lowest validation loss, None for the latest
        undamaged checkpoint.
      devices: how many to use; None for as many as divide the run's batch.

    Raises:
      UserError: if there is no run, no such checkpoint, or it is damaged.
    """
    directory = RunDirectory(workdir)
    config = directory.read_config()
    step = find_checkpoint(workdir, step)
    config.mesh.data = devices  # this machine may have others than the run had
    configure_devices(config)
    mesh, model = make_mesh(config), structure(config.model)
    params = restore_params(directory.folder_of(step), abstract_params(model, mesh))
    return OpenedRun(config, model, mesh, params, step)


def find_checkpoint(workdir: str, asked: int | str | None) -> int:
    """Returns the step of the checkpoint that is asked for, as `open_run` takes it.

    Raises:
      UserError: if there is no run, no such checkpoint, or it is damaged.
    """
    directory = RunDirectory(workdir)
    directory.read_config()
    checkpoints, path = Checkpoints(directory.checkpoints_path), directory.path
    step = _number(checkpoints, path, asked)
    imported = directory.weights_path.exists()
    if imported and (step == 0 or (step is None and not checkpoints.steps())):
        if fault := damage(directory.weights_path):
            raise UserError(f"{directory.weights_path} is damaged: {fault}; import it again")
        return 0
    if step is None:
        found = checkpoints.latest(lambda line: print(f"warning: {line}", file=sys.stderr))
        if found is None:
            raise UserError(f"{path} has no checkpoint yet: train it first")
        return found
    if step not in checkpoints.steps():
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"{path} has no checkpoint of step {step}; there are: {there}")
    if fault := damage(checkpoints.path(step)):
        raise UserError(f"checkpoint {checkpoints.path(step)} is damaged: {fault}")
    return step


def _number(checkpoints: Checkpoints, workdir: Path, asked: int | str | None) -> int | None:
    if asked is None or isinstance(asked, int):
        return asked
    if asked.isdecimal():
        return int(asked)
    if asked != "best":
        raise UserError(f"--step={asked} is neither a number of updates nor `best`")
    if (best := checkpoints.best()) is None:
        raise UserError(f"{workdir} has no checkpoint with a validation loss")
    return best
