"""Whether the files in a run directory are one run: checked here by every command that opens it.

A run directory is whole if config.json, run.json, metrics.jsonl and the checkpoints fit together:

- run.json has the run's id, which is also in each checkpoint's meta.json, with the config, the
  hash of the dataset and the fingerprint of the tokenizer that it was trained with;
- a checkpoint's folder, its meta.json and the state in it name the same step;
- the rows of metrics.jsonl up to a checkpoint's step have the hash that the checkpoint keeps.
  (Which steps have a row is not asked: the `*_every` fields may change when a run continues.)

A checkpoint whose files changed on disk is damaged, and an older one can take its place. Files that
are intact but do not belong together are refused, and so is a run that has started and has no
usable checkpoint. Only a run that was killed before its first checkpoint begins again: run.json
records the first one just before it becomes valid.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpt2_jax import config as configs
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors
from gpt2_jax.track.metrics import Row, find_fault, read_rows
from gpt2_jax.train.checkpoint import Checkpoints, damage
from gpt2_jax.train.identity import META, Identity, read_meta
from gpt2_jax.train.rundir import RunDirectory

TOKENIZER = "data.tokenizer"
BUILT_IN = ("bytes", "gpt2")  # tokenizers that are not files, with ids:N


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
      step: of the newest usable checkpoint; None for a run that begins at step 0.
      damaged: newer checkpoints that are not usable, with what is wrong with them.
    """

    step: int | None
    damaged: tuple[tuple[int, str], ...] = ()


def examine(directory: RunDirectory) -> Standing:
    """Returns where training continues in a directory; changes nothing.

    Raises:
      UserError: if the files do not belong together, cannot be read, or a run that has started has
        no usable checkpoint.
    """
    checkpoints = Checkpoints(directory.checkpoints_path)
    steps = checkpoints.steps()
    if not steps:
        _check_unsaved(directory, checkpoints.names())
        return Standing(None)
    _check_recorded(directory, checkpoints.path(steps[-1]))
    damaged: list[tuple[int, str]] = []
    while steps and (fault := damage(checkpoints.path(steps[-1]))):
        damaged.append((steps.pop(), fault))
    if not steps:
        faults = "; ".join(f"{checkpoints.path(step)} is damaged ({why})" for step, why in damaged)
        raise _unusable(directory, faults)
    for step in steps:
        _check_strictly(directory, step, checkpoints.path(step), is_whole=step == steps[-1])
    check_rows(directory, steps[-1])
    return Standing(steps[-1], tuple(damaged))


def is_usable(directory: RunDirectory, step: int) -> bool:
    """Returns whether training may continue after a step, of which the checkpoint is undamaged.

    Raises:
      UserError: as `examine`.
    """
    folder = directory.folder_of(step)
    if damage(folder) is not None:
        return False
    _check_strictly(directory, step, folder, is_whole=True)
    check_rows(directory, step)
    return True


def open_checkpoints(directory: RunDirectory, keep: int, standing: Standing) -> Checkpoints:
    """Returns the checkpoints of a run that is about to be trained, with leftovers cleared away."""
    if standing.step is None:
        directory.note_first_checkpoint(None)  # before what was being written then is deleted
    with disk_errors("checkpoints/"):
        directory.checkpoints_path.mkdir(exist_ok=True)
    checkpoints = Checkpoints(directory.checkpoints_path, keep, directory.identity())
    checkpoints.announce = directory.note_first_checkpoint
    for step, _ in standing.damaged:
        checkpoints.set_aside(step)
    checkpoints.clean()
    return checkpoints


def check_identity(directory: RunDirectory, step: int, folder: Path) -> str | None:
    """Refuses an undamaged checkpoint, or imported weights, that do not fit the directory.

    Returns:
      What cannot be verified, since an older version or a lost run.json does not say; else None.

    Raises:
      UserError: naming the folder, if it is another step's or another run's.
    """
    meta, info = read_meta(folder), directory.read_info()
    if meta.step != step:
        raise UserError(
            f"{folder} is the checkpoint of step {meta.step}, not of step {step}; rename it back "
            "or move it away"
        )
    known, imported = info.get("run_id"), folder == directory.weights_path
    if meta.identity is None:
        if known is None or imported:
            return (
                f"{folder} was saved by an older version of this program (its meta.json has no "
                "format_version), so nothing shows that it belongs to config.json"
            )
        raise UserError(f"{folder} was not saved by this run: its meta.json has no run_id")
    if known not in (None, meta.identity.run_id):
        raise UserError(
            f"{folder} belongs to another run (run_id {meta.identity.run_id}, and run.json has "
            f"{known}); move it away, or bring back the files of one run"
        )
    if not (imported and directory.is_claimed()):  # its config.json is that of the training then
        _check_config(directory, folder, meta.identity)
    if known is None:
        return f"{directory.info_path} is missing, or has lost its run_id and more"
    for name in ("corpus", "tokenizer"):
        was = getattr(meta.identity, name)
        if was not in (None, info.get(name)):
            raise UserError(
                f"{directory.info_path} names another {name} than {folder} was trained with: "
                f"{info.get(name)!r} instead of {was!r}; bring run.json back"
            )
    return None


def _check_config(directory: RunDirectory, folder: Path, identity: Identity) -> None:
    """Refuses a config.json that is not what a checkpoint was trained with."""
    saved = configs.from_dict(identity.config, folder / META)
    changed = configs.fixed_difference(saved, configs.from_json(directory.config_path))
    names = changed.get(TOKENIZER, ())
    if not any(name in BUILT_IN or name.startswith("ids:") for name in names):
        changed.pop(TOKENIZER, None)  # a file by another path: known by its fingerprint
    if changed:
        raise UserError(
            f"{directory.config_path} is not the config that {folder} was trained with: "
            f"{configs.listed(changed)}; bring it back ({META} there has it as `config`)"
        )


def check_rows(directory: RunDirectory, step: int) -> list[Row]:
    """Returns the rows of metrics.jsonl up to the step of a checkpoint.

    Raises:
      UserError: if they are not those that were written then.
    """
    rows, meta = read_rows(directory.metrics_path), read_meta(directory.folder_of(step))
    if meta.rows is None:
        return [row for row in rows if row["step"] <= step]
    if fault := find_fault(rows, step, meta.val_loss is not None, meta.rows):
        raise UserError(
            f"{directory.metrics_path} does not fit the checkpoint of step {step}: {fault}; bring "
            f"the file back from a copy, or {_from_weights(directory, step)}"
        )
    return [row for row in rows if row["step"] <= step]


def _check_strictly(directory: RunDirectory, step: int, folder: Path, is_whole: bool) -> None:
    """Refuses a checkpoint that does not fit the directory or may not, unless it is damaged."""
    try:
        if doubt := check_identity(directory, step, folder):
            raise UserError(
                f"{doubt}; bring it back from a copy, continue with the version that began the "
                f"run, or {_from_weights(directory, step)}"
            )
    except UserError:
        if is_whole or damage(folder) is None:
            raise


def _check_recorded(directory: RunDirectory, newest: Path) -> None:
    """Refuses a directory with checkpoints whose config.json or run.json is missing or empty."""
    if not os.path.lexists(directory.config_path):
        raise UserError(
            f"{directory.config_path} is missing; bring it back from a copy ({newest}/meta.json "
            "has it as `config`)"
        )
    if not directory.is_started():
        raise UserError(
            f"{directory.info_path} is missing or has lost its `starts`, but there are "
            f"checkpoints; bring it back from a copy, or {_from_weights(directory, None)}"
        )


def _check_unsaved(directory: RunDirectory, names: list[str]) -> None:
    """Refuses a directory without checkpoints in which there were some once.

    Args:
      names: of what is in checkpoints/.
    """
    info, rows = directory.read_info(), read_rows(directory.metrics_path)
    first, started = info.get("first_checkpoint"), bool(info.get("starts"))
    if aside := [name for name in names if ".damaged" in name]:
        raise _unusable(directory, f"{aside[0]} is all that checkpoints/ holds")
    if first is not None and f"{first:08d}.partial" not in names:
        raise _unusable(directory, f"checkpoints/ holds none, and had that of step {first}")
    if (started or rows) and not os.path.lexists(directory.config_path):
        raise _unusable(directory, "config.json is missing")
    if rows and not started:
        raise _unusable(directory, "run.json is missing or has lost its `starts`")
    if started and "run_id" not in info:
        raise _unusable(directory, "run.json has no run_id")


def _unusable(directory: RunDirectory, reason: str) -> UserError:
    return UserError(
        f"{directory.path} holds a run that has started and cannot be continued: {reason}; bring "
        "what is missing back, or to begin anew choose another --workdir or move this one away"
    )


def _from_weights(directory: RunDirectory, step: int | None) -> str:
    name = directory.path if step is None else f"{directory.path}@{step}"
    return f"begin from its weights in another --workdir, with train.init_from={name}"
