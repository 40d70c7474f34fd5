"""Checks that the files in a run directory belong together; every command that opens a run does so.

- run.json and each checkpoint's meta.json have the same run id. meta.json also has the config, the
  hash of the dataset and the fingerprint of the tokenizer that the checkpoint was trained with.
- A checkpoint's folder, its meta.json and its state have the same step.
- The rows of metrics.jsonl up to a checkpoint's step have the digest stored in the checkpoint.
  (Which steps have a row is not checked: the `*_every` fields may change when a run continues.)

A checkpoint whose files have changed on disk is damaged, and an older one is used instead. Intact
files that do not belong together are refused, and so is a run that has started but has no usable
checkpoint. Only a run that was killed before its first checkpoint starts again: run.json records
that checkpoint just before it becomes valid.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpt2_jax.config import fixed_difference, from_dict, from_json, listed
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors
from gpt2_jax.track.metrics import Row, find_fault, read_rows
from gpt2_jax.train.distributed.processes import ALONE, Processes
from gpt2_jax.train.storage.checkpoint import Checkpoints
from gpt2_jax.train.storage.checksums import find_damage
from gpt2_jax.train.storage.identity import FORMAT_VERSION, META, Identity, read_meta
from gpt2_jax.train.storage.rundir import RunDirectory

TOKENIZER = "data.tokenizer"
BUILT_IN = ("bytes", "gpt2")  # tokenizers that are not files; ids:N is another


@dataclass(frozen=True)
class ResumePoint:
    """Where a run continues.

    Attributes:
      step: step of the newest usable checkpoint; None for a run that starts at step 0.
      damaged: steps of newer, unusable checkpoints, and what is wrong with them.
    """

    step: int | None
    damaged: tuple[tuple[int, str], ...] = ()


def find_resume_point(directory: RunDirectory) -> ResumePoint:
    """Returns where training continues in a directory; modifies nothing.

    Raises:
      UserError: if files cannot be read or do not belong together, or a run that has started has
        no usable checkpoint.
    """
    checkpoints = Checkpoints(directory.checkpoints_path)
    steps = checkpoints.steps()
    if not steps:
        _check_unsaved(directory, checkpoints.names())
        return ResumePoint(None)
    _check_recorded(directory, checkpoints.path(steps[-1]))
    damaged: list[tuple[int, str]] = []
    while steps and (fault := find_damage(checkpoints.path(steps[-1]))):
        damaged.append((steps.pop(), fault))
    if not steps:
        faults = "; ".join(f"{checkpoints.path(step)} is damaged ({why})" for step, why in damaged)
        raise _unusable(directory, faults)
    for step in steps:
        _check_strictly(directory, step, checkpoints.path(step), is_whole=step == steps[-1])
    check_rows(directory, steps[-1])
    return ResumePoint(steps[-1], tuple(damaged))


def is_usable(directory: RunDirectory, step: int) -> bool:
    """Returns whether training can continue from a step's checkpoint, because it is undamaged.

    Raises:
      UserError: as `find_resume_point`.
    """
    folder = directory.folder_of(step)
    if find_damage(folder) is not None:
        return False
    _check_strictly(directory, step, folder, is_whole=True)
    check_rows(directory, step)
    return True


def open_checkpoints(
    directory: RunDirectory, keep: int, resume: ResumePoint, processes: Processes = ALONE
) -> Checkpoints:
    """Returns the checkpoints of a run that is about to be trained, after removing leftovers."""
    with processes.together("open checkpoints"):
        identity = None
        if processes.is_main:
            if resume.step is None:
                # Must precede the deletion of unfinished ones.
                directory.record_first_checkpoint(None)
            with disk_errors("checkpoints/"):
                directory.checkpoints_path.mkdir(exist_ok=True)
            identity = directory.identity()
        folder, best_by = directory.checkpoints_path, directory.best_by()
        checkpoints = Checkpoints(folder, keep, identity, processes, best_by)
        checkpoints.announce = directory.record_first_checkpoint
        for step, _ in resume.damaged:
            checkpoints.set_aside(step)
        checkpoints.clean()
    return checkpoints


def check_identity(directory: RunDirectory, step: int, folder: Path) -> str | None:
    """Checks that an undamaged checkpoint, or imported weights, belong to the directory.

    Returns:
      What cannot be verified for lack of information; None if everything can.

    Raises:
      UserError: naming the folder, if it belongs to another step or run, or its format is old.
    """
    meta, info = read_meta(folder), directory.read_info()
    if meta.step != step:
        raise UserError(
            f"{folder} is the checkpoint of step {meta.step}, not of step {step}; rename it back "
            "or move it away"
        )
    if meta.version < FORMAT_VERSION:
        raise UserError(
            f"{folder} was saved by an older version of this program (format_version "
            f"{meta.version}), whose parameters have other names; use that version, or export the "
            "model with it and import it here"
        )
    known, imported = info.get("run_id"), folder == directory.weights_path
    if meta.identity is None:
        if known is None or imported:
            return f"{folder / META} has no run_id, so it may not belong to config.json"
        raise UserError(f"{folder} was not saved by this run: its meta.json has no run_id")
    if known not in (None, meta.identity.run_id):
        raise UserError(
            f"{folder} belongs to another run (run_id {meta.identity.run_id}, and run.json has "
            f"{known}); move it away, or restore the files of one run"
        )
    if not (imported and directory.is_claimed()):  # otherwise config.json is the training run's
        _check_config(directory, folder, meta.identity)
    if known is None:
        return f"{directory.info_path} is missing or has no run_id"
    for name in ("corpus", "tokenizer"):
        was = getattr(meta.identity, name)
        if was not in (None, info.get(name)):
            raise UserError(
                f"{directory.info_path} names another {name} than {folder} was trained with: "
                f"{info.get(name)!r} instead of {was!r}; restore run.json"
            )
    return None


def _check_config(directory: RunDirectory, folder: Path, identity: Identity) -> None:
    saved = from_dict(identity.config, folder / META)
    changed = fixed_difference(saved, from_json(directory.config_path))
    names = changed.get(TOKENIZER, ())
    if not any(name in BUILT_IN or name.startswith("ids:") for name in names):
        changed.pop(TOKENIZER, None)  # the path of a file, which its fingerprint identifies
    if changed:
        raise UserError(
            f"{directory.config_path} is not the config that {folder} was trained with: "
            f"{listed(changed)}; restore it ({META} there contains it as `config`)"
        )


def check_rows(directory: RunDirectory, step: int) -> list[Row]:
    """Returns the rows of metrics.jsonl up to the step of a checkpoint.

    Raises:
      UserError: if they were changed since the checkpoint was saved.
    """
    rows, meta = read_rows(directory.metrics_path), read_meta(directory.folder_of(step))
    if meta.rows is None:
        return [row for row in rows if row["step"] <= step]
    if fault := find_fault(rows, step, meta.val_loss is not None, meta.rows):
        raise UserError(
            f"{directory.metrics_path} does not fit the checkpoint of step {step}: {fault}; "
            f"restore the file from a copy, or {_from_weights(directory, step)}"
        )
    return [row for row in rows if row["step"] <= step]


def _check_strictly(directory: RunDirectory, step: int, folder: Path, is_whole: bool) -> None:
    """Raises unless a checkpoint certainly belongs to the directory, or is damaged."""
    try:
        if doubt := check_identity(directory, step, folder):
            raise UserError(
                f"{doubt}; restore it from a copy, continue with the version that started the "
                f"run, or {_from_weights(directory, step)}"
            )
    except UserError:
        if is_whole or find_damage(folder) is None:
            raise


def _check_recorded(directory: RunDirectory, newest: Path) -> None:
    """Checks that a directory with checkpoints has a config.json and a run.json with `starts`."""
    if not os.path.lexists(directory.config_path):
        raise UserError(
            f"{directory.config_path} is missing; restore it from a copy ({newest}/meta.json "
            "contains it as `config`)"
        )
    if not directory.is_started():
        raise UserError(
            f"{directory.info_path} is missing or has no `starts`, but there are "
            f"checkpoints; restore it from a copy, or {_from_weights(directory, None)}"
        )


def _check_unsaved(directory: RunDirectory, names: list[str]) -> None:
    """Checks that a directory without checkpoints has not lost them.

    Args:
      names: everything in checkpoints/.
    """
    info, rows = directory.read_info(), read_rows(directory.metrics_path)
    first, started = info.get("first_checkpoint"), bool(info.get("starts"))
    if aside := [name for name in names if ".damaged" in name]:
        raise _unusable(directory, f"checkpoints/ contains only {aside[0]}")
    if first is not None and f"{first:08d}.partial" not in names:
        raise _unusable(directory, f"checkpoints/ has lost that of step {first}")
    if (started or rows) and not os.path.lexists(directory.config_path):
        raise _unusable(directory, "config.json is missing")
    if rows and not started:
        raise _unusable(directory, "run.json is missing or has no `starts`")
    if started and "run_id" not in info:
        raise _unusable(directory, "run.json has no run_id")


def _unusable(directory: RunDirectory, reason: str) -> UserError:
    return UserError(
        f"{directory.path} contains a run that has started and cannot be continued: {reason}; "
        "restore what is missing, or start again in another --workdir"
    )


def _from_weights(directory: RunDirectory, step: int | None) -> str:
    name = directory.path if step is None else f"{directory.path}@{step}"
    return f"start from its weights in another --workdir, with train.init_from={name}"
