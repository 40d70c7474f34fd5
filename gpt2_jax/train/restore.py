"""A run opened again from its directory alone, to be evaluated or sampled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import Mesh
from ml_collections import ConfigDict

from gpt2_jax.errors import UserError
from gpt2_jax.files import sha256
from gpt2_jax.model.structure import Structure, structure
from gpt2_jax.train.checkpoint import SUMS, Checkpoints, damage, restore_params
from gpt2_jax.train.identity import read_meta
from gpt2_jax.train.mesh import configure_devices, make_mesh
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.state import abstract_params
from gpt2_jax.train.verify import check_identity

ATTEMPTS = 10  # at a checkpoint, while training replaces them
T = TypeVar("T")


@dataclass(frozen=True)
class OpenedRun:
    """A checkpoint's parameters on this machine's devices.

    Attributes:
      corpus: hash of the text that it was trained on, None if it is not known.
      sums: hash of the checkpoint's files.
    """

    config: ConfigDict
    structure: Structure
    mesh: Mesh
    params: Any
    step: int
    corpus: str | None
    sums: str


class _Replaced(Exception):
    """A checkpoint was deleted by training in progress."""


def open_run(workdir: str, step: int | str | None = None, devices: int | None = None) -> OpenedRun:
    """Opens a run at one of its checkpoints; nothing in the directory is written or executed.

    Args:
      step: of the checkpoint; `best` for the one of lowest validation loss, None for the latest
        undamaged one.
      devices: how many to use; None for as many as divide the run's batch.

    Raises:
      UserError: if there is no run, no such checkpoint, or it is damaged or another run's.
    """
    directory = RunDirectory(workdir)
    config = directory.read_config()
    config.mesh.data = devices  # this machine may have others than the run had

    def restore(step: int, folder: Path) -> OpenedRun:
        configure_devices(config)
        mesh, model = make_mesh(config), structure(config.model)
        params = restore_params(folder, abstract_params(model, mesh), step)
        identity, info = read_meta(folder).identity, directory.read_info()
        corpus = info.get("corpus") if identity is None else identity.corpus
        return OpenedRun(config, model, mesh, params, step, corpus, sha256(folder / SUMS))

    return _with_checkpoint(directory, step, restore)


def find_checkpoint(workdir: str, asked: int | str | None) -> int:
    """Returns the step of the checkpoint that is asked for, as `open_run` takes it.

    Raises:
      UserError: if there is no run, no such checkpoint, or it is damaged or another run's.
    """
    directory = RunDirectory(workdir)
    directory.read_config()
    return _with_checkpoint(directory, asked, lambda step, folder: step)


def _with_checkpoint(
    directory: RunDirectory, asked: int | str | None, use: Callable[[int, Path], T]
) -> T:
    """Returns what `use` makes of the checkpoint that is asked for.

    If training deletes it meanwhile, the next one is taken.
    """
    for _ in range(ATTEMPTS):
        folder = None
        try:
            step = _find(directory, asked)
            folder = directory.folder_of(step)
            if doubt := check_identity(directory, step, folder):
                _warn(doubt)
            return use(step, folder)
        except _Replaced:
            continue
        except Exception:
            if folder is None or os.path.lexists(folder):
                raise
    raise UserError(f"the checkpoints of {directory.path} change faster than they can be read")


def _find(directory: RunDirectory, asked: int | str | None) -> int:
    checkpoints, path = Checkpoints(directory.checkpoints_path), directory.path
    step, steps = _number(checkpoints, path, asked), checkpoints.steps()
    imported = directory.weights_path.exists() and 0 not in steps
    if imported and (step == 0 or (step is None and not steps)):
        if fault := damage(directory.weights_path):
            raise UserError(f"{directory.weights_path} is damaged: {fault}; import it again")
        return 0
    if step is None:
        return _latest(directory, checkpoints)
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{path} has no checkpoint of step {step}; there are: {there}")
    if fault := _damage(checkpoints.path(step)):
        raise UserError(f"checkpoint {checkpoints.path(step)} is damaged: {fault}")
    return step


def _latest(directory: RunDirectory, checkpoints: Checkpoints) -> int:
    for step in reversed(checkpoints.steps()):
        fault = _damage(checkpoints.path(step))
        if fault is None:
            return step
        _warn(f"checkpoint {checkpoints.path(step)} is damaged ({fault}): passed over")
    raise UserError(f"{directory.path} has no usable checkpoint: train it, or bring one back")


def _damage(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint's files, as `damage` does.

    Raises:
      _Replaced: if it does not exist any more.
    """
    try:
        fault = damage(folder)
    except UserError:
        if os.path.lexists(folder):
            raise
        raise _Replaced from None
    if fault is not None and not os.path.lexists(folder):
        raise _Replaced
    return fault


def _number(checkpoints: Checkpoints, workdir: Path, asked: int | str | None) -> int | None:
    if asked is None or isinstance(asked, int):
        return asked
    if asked.isdecimal():
        return int(asked)
    if asked != "best":
        raise UserError(f"--step={asked} is neither a number of steps nor `best`")
    if (best := checkpoints.best(_warn)) is None:
        raise UserError(f"{workdir} has no checkpoint with a validation loss")
    return best


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)
