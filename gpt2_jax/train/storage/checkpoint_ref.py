"""References to checkpoints (`DIR`, `DIR@STEP`, `DIR@best`): parsing and lookup."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from gpt2_jax.errors import UserError
from gpt2_jax.train.storage.checkpoint import Checkpoints
from gpt2_jax.train.storage.checksums import find_damage
from gpt2_jax.train.storage.rundir import RunDirectory
from gpt2_jax.train.storage.verify import check_identity

BEST = "best"
ATTEMPTS = 10  # while training keeps replacing checkpoints
T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointRef:
    """A reference to a checkpoint of a run.

    Attributes:
      step: a step, `best` for the best evaluation by `train.best_by`, or None for the latest
        undamaged checkpoint.
    """

    workdir: str
    step: int | str | None = None

    @classmethod
    def parse(cls, text: str) -> CheckpointRef:
        """Parses `DIR`, `DIR@STEP` or `DIR@best`.

        Raises:
          UserError: if what follows the @ is not a step.
        """
        workdir, _, step = text.rpartition("@")
        if not workdir or Path(text).is_dir():  # a path may contain an @
            return cls(text)
        return cls(workdir, parse_step(step))

    def __str__(self) -> str:
        """Returns text that `parse` accepts."""
        return self.workdir if self.step is None else f"{self.workdir}@{self.step}"

    def is_named_by(self, text: str) -> bool:
        """Returns whether `text` may mean this checkpoint: by step, as the best or the latest."""
        return text in map(str, (self, replace(self, step=None), replace(self, step=BEST)))


def parse_step(text: int | str | None) -> int | str | None:
    """Parses the `step` of a `CheckpointRef`.

    Raises:
      UserError: if it is neither a number nor `best`.
    """
    if text is None or text == BEST or isinstance(text, int):
        return text
    if not text.isdecimal():
        raise UserError(f"{text!r} is not a checkpoint's step: pass a number, or {BEST}")
    return int(text)


def find_checkpoint(ref: CheckpointRef) -> int:
    """Returns the step of a checkpoint.

    Raises:
      UserError: if the run or the checkpoint does not exist, or the checkpoint is damaged or
        belongs to another run.
    """
    directory = RunDirectory(ref.workdir)
    directory.read_config()
    return with_checkpoint(directory, ref, lambda step, folder: step)


def with_checkpoint(
    directory: RunDirectory, ref: CheckpointRef, use: Callable[[int, Path], T]
) -> T:
    """Returns `use(step, folder)` for a checkpoint in a run directory.

    If training deletes it in the meantime, the reference is looked up again.

    Raises:
      UserError: as `find_checkpoint`.
    """
    for _ in range(ATTEMPTS):
        folder = None
        try:
            step = _find(directory, ref)
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


class _Replaced(Exception):
    """A checkpoint was deleted by training in progress."""


def _find(directory: RunDirectory, ref: CheckpointRef) -> int:
    checkpoints = Checkpoints(directory.checkpoints_path, best_by=directory.best_by())
    path = directory.path
    step = _best(checkpoints, path) if ref.step == BEST else ref.step
    steps = checkpoints.steps()
    imported = directory.weights_path.exists() and 0 not in steps
    if imported and (step == 0 or (step is None and not steps)):
        if fault := find_damage(directory.weights_path):
            raise UserError(f"{directory.weights_path} is damaged: {fault}; import it again")
        return 0
    if step is None:
        return _latest(checkpoints, path)
    if not isinstance(step, int) or step not in steps:
        available = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{path} has no checkpoint of step {step}; there are: {available}")
    if fault := _damage(checkpoints.path(step)):
        raise UserError(f"checkpoint {checkpoints.path(step)} is damaged: {fault}")
    return step


def _best(checkpoints: Checkpoints, workdir: Path) -> int:
    best = checkpoints.best(_warn)
    if best is None:
        raise UserError(
            f"{workdir} has no checkpoint with a validation loss or score; name one by its step"
        )
    return best


def _latest(checkpoints: Checkpoints, workdir: Path) -> int:
    for step in reversed(checkpoints.steps()):
        fault = _damage(checkpoints.path(step))
        if fault is None:
            return step
        _warn(f"checkpoint {checkpoints.path(step)} is damaged ({fault}): skipped")
    raise UserError(f"{workdir} has no usable checkpoint: train it, or restore one from a copy")


def _damage(folder: Path) -> str | None:
    """Like `find_damage`, for a checkpoint that training may delete.

    Raises:
      _Replaced: if it no longer exists.
    """
    try:
        fault = find_damage(folder)
    except UserError:
        if os.path.lexists(folder):
            raise
        raise _Replaced from None
    if fault is not None and not os.path.lexists(folder):
        raise _Replaced
    return fault


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)
