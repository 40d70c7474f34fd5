"""Checkpoints: written atomically, and verified by hash before they are used.

checkpoints/00000500.partial/   being written; deleted at the next start
checkpoints/00000500/           valid: renamed after all of it is on disk
    state/                      orbax; all parameters in one tree, moments of trainable ones only
    meta.json                   step, scores, and the run it belongs to (identity.py)
    SHA256SUMS                  of all other files (`sha256sum -c` reads it)
weights/                        next to checkpoints/: the same with parameters only
checkpoints/00000500.damaged/   its files do not match SHA256SUMS; kept, never used
checkpoints/00000500.deleted/   no longer needed; being deleted
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from gpt2_jax.config.task_sections import LOSS
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, plain_path, read_errors, write_atomic, write_json
from gpt2_jax.track.metrics import Row, RowsDigest, best_row, read_rows
from gpt2_jax.train.distributed.mesh import replicated
from gpt2_jax.train.distributed.processes import ALONE, Processes
from gpt2_jax.train.distributed.sharding import param_keys
from gpt2_jax.train.state import State
from gpt2_jax.train.storage.checksums import SUMS, is_intact, render_sums
from gpt2_jax.train.storage.identity import META, Identity, Meta, finite, read_meta


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: `checkpoints/` of the run directory.
      keep: number of latest checkpoints to keep, in addition to the best one.
      best_by: as in `train.best_by`.
      identity: the run's identity; None if checkpoints are only read.
      processes: those that train together. All save, and process 0 does the rest.

    Attributes:
      before_commit: called in the saving thread once a checkpoint's files are on disk. The
        checkpoint does not become valid if it raises.
      announce: called next, with the step, just before the checkpoint becomes valid.
      digest_rows: maps a step, and whether it was evaluated, to the digest of metrics.jsonl.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        identity: Identity | None = None,
        processes: Processes = ALONE,
        best_by: str = LOSS,
    ) -> None:
        self._folder, self._keep, self._identity = folder, keep, identity
        self._processes, self._best_by = processes, best_by
        self.before_commit: Callable[[], None] = lambda: None
        self.announce: Callable[[int], None] = lambda step: None
        self.digest_rows: Callable[[int, bool], RowsDigest | None] = lambda step, evaluated: None
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None

    @cached_property
    def _orbax(self) -> ocp.StandardCheckpointer:
        _drop_late_callbacks()
        return ocp.StandardCheckpointer()  # starts jax's backend, so only when needed

    def names(self) -> list[str]:
        """Lists everything in the folder; empty if it does not exist.

        Raises:
          UserError: if the folder cannot be read.
        """
        if not os.path.lexists(self._folder):
            return []
        with read_errors(self._folder):
            return sorted(os.listdir(self._folder))

    def clean(self) -> None:
        """Deletes checkpoints that a killed process was writing or deleting."""
        if not self._processes.is_main:
            return
        for name in self.names():
            if ".partial" in name or name.endswith(".deleted"):
                with disk_errors("checkpoints/"):
                    _remove(self._folder / name)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, damaged or not, oldest first."""
        numbers = [int(name) for name in self.names() if re.fullmatch("[0-9]{8,}", name)]
        return sorted(step for step in numbers if os.path.lexists(self.path(step)))

    def best(self, say: Callable[[str], None] = lambda line: None) -> int | None:
        """Returns the step of the best checkpoint, by `best_by`, among those that have a score.

        Args:
          say: called with a line for each checkpoint whose stored score is damaged.
        """
        known: list[Row] = []
        for step in self.steps():
            try:
                score = _score(self.path(step), self._best_by)
            except UserError as error:
                if os.path.lexists(self.path(step)):  # otherwise training has just deleted it
                    say(f"{error}: skipped")
            else:
                known += [] if score is None else [{"step": step, f"val/{self._best_by}": score}]
        best = best_row(known, self._best_by)
        return None if best is None else best["step"]

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint."""
        return self._folder / f"{step:08d}"

    def save(self, step: int, state: State, scored: Mapping[str, Any]) -> None:
        """Starts saving in the background; returns once `state` may be donated.

        Args:
          scored: `val/*` fields of the step; empty if it was not evaluated.

        Raises:
          DiskError: if this save cannot start, or the previous one failed.
        """
        self.wait()
        partial = self._folder / f"{step:08d}.partial"
        val_loss, score = (finite(scored.get(f"val/{by}")) for by in (LOSS, self._best_by))
        rows = self.digest_rows(step, val_loss is not None)
        meta = Meta(step, val_loss, rows, self._identity, best_by=self._best_by, score=score)
        with disk_errors(f"checkpoint {step}"), ExitStack() as stack:
            with self._processes.together("start of save"), disk_errors(f"checkpoint {step}"):
                if self._processes.is_main:
                    partial.mkdir(parents=True)
                    write_json(partial / META, meta.to_dict())
            plain = stack.enter_context(plain_path(partial))
            with jax.transfer_guard("allow"):  # the training loop disallows transfers
                self._orbax.save(plain / "state", _stored(state))
            self._saving = self._thread.submit(self._commit, step, partial, stack.pop_all())

    def wait(self) -> None:
        """Blocks until the last save is valid.

        Raises:
          DiskError: if it failed.
        """
        if self._saving is not None:
            saving, self._saving = self._saving, None
            with disk_errors("a checkpoint"):
                saving.result()

    def restore(self, step: int, like: State) -> State:
        """Returns the state of a checkpoint, with the shapes and the sharding of `like`.

        Raises:
          UserError: if its train state has a different structure or belongs to another step.
        """
        path = self.path(step)
        try:
            with plain_path(path) as plain:
                stored = self._orbax.restore(plain / "state", _abstract(like))
        except ValueError as error:
            if "do not match" not in str(error):
                raise
            raise UserError(
                f"{path} was saved by a version of this program with another train state; use that "
                "version"
            ) from None
        _check_step(path, step, stored["step"])
        state = State(**stored, frozen=like.frozen).replace_params(stored["params"])
        return jax.tree.map(lambda x, target: jax.device_put(x, target.sharding), state, like)

    def close(self) -> None:
        """Waits for the last save and stops the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint so its step can be saved again."""
        if not self._processes.is_main:
            return
        path, number = self.path(step), 0
        while os.path.lexists(aside := path.with_name(f"{path.name}.damaged{number or ''}")):
            number += 1
        with disk_errors("checkpoints/"):
            path.rename(aside)

    def _commit(self, step: int, partial: Path, link: ExitStack) -> None:
        with link:
            self._orbax.wait_until_finished()
        sums = render_sums(partial, self._processes)
        with self._processes.together("end of save"), disk_errors("a checkpoint"):
            if self._processes.is_main:
                write_atomic(partial / SUMS, sums)
                self.before_commit()
                self.announce(step)
                os.replace(partial, self.path(step))
                _sync_folder(self._folder)
                self._delete_old()

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, which will be repeated."""
        for later in [other for other in self.steps() if other > step]:
            self._delete(later)

    def _delete_old(self) -> None:
        kept = {*self.steps()[-self._keep :], self.best()}
        for step in self.steps():
            if step not in kept:
                self._delete(step)

    def _delete(self, step: int) -> None:
        # Rename first: if the process is killed, a half-deleted checkpoint must not look damaged.
        _remove(self.path(step).rename(self._folder / f"{step:08d}.deleted"))


def save_params(folder: Path, params: Any, identity: Identity | None = None) -> None:
    """Writes a checkpoint of parameters only, atomically."""
    partial = folder.with_name(f"{folder.name}.partial")
    _drop_late_callbacks()
    with disk_errors(str(folder)), ocp.StandardCheckpointer() as orbax:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / META, Meta(0, None, None, identity).to_dict())
        with plain_path(partial.absolute()) as plain:
            orbax.save(plain / "state", {"params": params})
            orbax.wait_until_finished()
        write_atomic(partial / SUMS, render_sums(partial))
        os.replace(partial, folder)
        _sync_folder(folder.parent)


def restore_params(
    folder: Path, like: Any, step: int = 0, select: Callable[[Any, Any], Any] | None = None
) -> Any:
    """Returns the parameters of a checkpoint; reads nothing else but its step.

    Args:
      like: shapes and target shardings of the parameters.
      step: expected step; not checked if only parameters were saved.
      select: returns which part of `like` to read, given `like` and the saved shapes, or raises
        ValueError if they do not fit; None for all, which must have the saved shapes.

    Raises:
      UserError: if they belong to another model or step.
    """
    with plain_path(folder.absolute()) as plain, ocp.PyTreeCheckpointer() as orbax:
        saved = orbax.metadata(plain / "state").item_metadata.tree
        shapes = jax.tree.map(lambda x: tuple(x.shape), saved["params"])
        try:
            like = (select or _check_all)(like, shapes)
        except ValueError:
            raise UserError(
                f"{folder} holds parameters that do not fit the model of its config.json"
            ) from None
        item = {"params": like}
        if "step" in saved:
            sharding = jax.tree.leaves(like)[0].sharding
            is_named = isinstance(sharding, NamedSharding)
            whole = replicated(sharding.mesh) if is_named else sharding
            item["step"] = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        arguments = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        restored = orbax.restore(plain / "state", args=arguments)
    if "step" in restored:
        _check_step(folder, step, restored["step"])
    return restored["params"]


def _check_all(like: Any, shapes: Any) -> Any:
    """Returns all; raises ValueError if shapes differ."""
    if shapes != jax.tree.map(lambda x: x.shape, like):
        raise ValueError
    return like


def _check_step(folder: Path, step: int, found: jax.Array) -> None:
    if int(jax.device_get(found)) != step:
        raise UserError(
            f"{folder} holds the state of step {found}, not of step {step}; move it away"
        )


def _score(folder: Path, best_by: str) -> float | None:
    """Returns what a checkpoint is compared by, None if it has none.

    Raises:
      UserError: if its meta.json is damaged.
    """
    if not is_intact(folder, META):
        raise UserError(f"checkpoint {folder} is damaged ({META} changed)")
    meta = read_meta(folder)
    stored = meta.score if meta.best_by == best_by else None
    return _recorded_score(folder, meta.step, best_by) if stored is None else stored


def _recorded_score(folder: Path, step: int, best_by: str) -> float | None:
    """Returns a step's score from metrics.jsonl.

    If a signal interrupts an evaluation, the step is saved without its score; the next start adds
    it only to metrics.jsonl. `train.best_by` may also have been another when the step was saved.
    """
    try:
        rows = read_rows(folder.parent.parent / "metrics.jsonl")
    except UserError:
        return None
    return finite(next((row.get(f"val/{best_by}") for row in rows if row["step"] == step), None))


def _stored(state: State) -> dict[str, Any]:
    """Returns the checkpoint's pytree, with trainable and frozen parameters in one tree."""
    fields = state._asdict() | {"params": state.all_params}
    del fields["frozen"]
    return fields


def _abstract(like: State) -> dict[str, Any]:
    """Returns the shapes of `_stored(like)`, with the shardings of `like`."""
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    leaves = jax.tree_util.tree_leaves_with_path((like.params, like.frozen))
    layout = {param_keys(path): x.sharding for path, x in leaves}
    stored = jax.eval_shape(_stored, like)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: shape(x, layout[param_keys(path)]), stored["params"]
    )
    others = {name: getattr(like, name) for name in stored if name != "params"}
    return jax.tree.map(lambda x: shape(x, x.sharding), others) | {"params": params}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@cache
def _drop_late_callbacks() -> None:
    """Suppresses follow-up errors after a failed write.

    When a disk is full, orbax closes its event loop at the first failed write. Tensorstore then
    reports every other write to the closed loop: hundreds of tracebacks before the one line that
    says what happened.
    """
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            others(unraisable)

    sys.unraisablehook = hook
