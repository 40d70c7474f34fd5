"""Checkpoints that are whole or absent, and proved undamaged before they are used.

checkpoints/00000500.partial/   being written; deleted at the next start
checkpoints/00000500/           valid: renamed into place when all of it is on disk
    state/                      orbax
    meta.json                   the step and its validation loss, if it was evaluated
    SHA256SUMS                  of every other file (`sha256sum -c` reads it)
weights/                        beside checkpoints/: the same with the parameters alone
checkpoints/00000500.damaged/   failed its sums; kept, never used
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, sha256, write_atomic, write_json
from gpt2_jax.track.metrics import Row, read_rows
from gpt2_jax.train.state import State

SUMS = "SHA256SUMS"


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: `checkpoints/` of the run directory.
      keep: how many of the latest stay; the one of lowest validation loss stays as well.
      before_commit: called in the saving thread once a checkpoint's files are on disk and before
        it becomes valid; what it raises keeps the checkpoint from becoming valid.
    """

    def __init__(
        self, folder: Path, keep: int = 2, before_commit: Callable[[], None] = lambda: None
    ) -> None:
        self._folder, self._keep, self.before_commit = folder, keep, before_commit
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None

    @cached_property
    def _orbax(self) -> ocp.StandardCheckpointer:
        return ocp.StandardCheckpointer()  # starts jax's backend, so not before it is needed

    def clean(self) -> None:
        """Deletes what a killed process left half written."""
        for leftover in self._folder.glob("*.partial*"):
            shutil.rmtree(leftover)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first; it may still be damaged."""
        return sorted(int(p.name) for p in self._folder.glob("[0-9]*") if p.name.isdigit())

    def latest(self, say: Callable[[str], None], set_aside: bool = False) -> int | None:
        """Returns the last step whose checkpoint is undamaged, None if there is none.

        Args:
          say: told of each damaged one that is passed over.
          set_aside: whether to rename the damaged ones, so that their steps can be saved again.
        """
        for step in reversed(self.steps()):
            fault = damage(self.path(step))
            if fault is None:
                return step
            say(f"checkpoint {self.path(step)} is damaged ({fault}): passed over")
            if set_aside:
                self._set_aside(self.path(step))
        return None

    def best(self) -> int | None:
        """Returns the step of lowest validation loss among the checkpoints that have one."""
        losses = {step: self._val_loss(step) for step in self.steps()}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        return min(known, key=lambda step: known[step]) if known else None

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint."""
        return self._folder / f"{step:08d}"

    def save(self, step: int, state: State, val_loss: float | None) -> None:
        """Starts saving; returns when `state` may be donated. Raises what the save before met."""
        self.wait()
        partial = self._folder / f"{step:08d}.partial"
        with disk_errors(f"checkpoint {step}"):
            partial.mkdir(parents=True)
            write_json(partial / "meta.json", {"step": step, "val_loss": val_loss})
            with jax.transfer_guard("allow"):  # the loop forbids what orbax does here
                self._orbax.save(partial / "state", state)
        self._saving = self._thread.submit(self._commit, step, partial)

    def wait(self) -> None:
        """Returns once the last save is valid; raises what kept it from becoming so."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            with disk_errors("a checkpoint"):
                saving.result()

    def restore(self, step: int, like: State) -> State:
        """Returns the state of a checkpoint, laid out as `like` is (arrays or their shapes).

        Raises:
          UserError: if another version of this program saved another kind of state.
        """
        path = self.path(step)
        try:
            return self._orbax.restore(path / "state", jax.tree.map(_abstract, like))
        except ValueError as error:
            if "do not match" not in str(error):
                raise
            raise UserError(f"{path} was saved by a version with another train state") from None

    def close(self) -> None:
        """Waits for the last save and ends the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def _commit(self, step: int, partial: Path) -> None:
        self._orbax.wait_until_finished()
        write_atomic(partial / SUMS, render_sums(partial))
        self.before_commit()
        os.replace(partial, self.path(step))
        _sync_folder(self._folder)
        self._delete_old()

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later updates, which are to be made again."""
        for later in [other for other in self.steps() if other > step]:
            self._delete(later)

    def _delete_old(self) -> None:
        kept = {*self.steps()[-self._keep :], self.best()}
        for step in self.steps():
            if step not in kept:
                self._delete(step)

    def _delete(self, step: int) -> None:
        # Renamed first: a kill while deleting must not leave what looks like damage.
        shutil.rmtree(self.path(step).rename(self._folder / f"{step:08d}.partial"))

    def _val_loss(self, step: int) -> float | None:
        try:
            loss = json.loads((self.path(step) / "meta.json").read_text())["val_loss"]
        except (OSError, ValueError, KeyError):
            return None
        if loss is None:  # a signal cut the evaluation short, and the next start made it
            loss = next((r.get("val/loss") for r in self._rows() if r["step"] == step), None)
        return loss if loss is not None and math.isfinite(loss) else None

    def _rows(self) -> list[Row]:
        try:
            return read_rows(self._folder.parent / "metrics.jsonl")
        except (OSError, UserError):
            return []

    def _set_aside(self, path: Path) -> None:
        number = 0
        while (aside := path.with_name(f"{path.name}.damaged{number or ''}")).exists():
            number += 1
        path.rename(aside)


def save_params(folder: Path, params: Any) -> None:
    """Writes a checkpoint that holds parameters alone; it is whole or absent."""
    partial = folder.with_name(f"{folder.name}.partial")
    with disk_errors(str(folder)), ocp.StandardCheckpointer() as orbax:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / "meta.json", {"step": 0, "val_loss": None})
        orbax.save((partial / "state").absolute(), {"params": params})
        orbax.wait_until_finished()
        write_atomic(partial / SUMS, render_sums(partial))
        os.replace(partial, folder)
        _sync_folder(folder.parent)


def restore_params(folder: Path, like: Any) -> Any:
    """Returns the parameters of a checkpoint and reads nothing else of it.

    Args:
      like: their shapes with the shardings that they are to have.

    Raises:
      UserError: if they are another model's.
    """
    item = {"params": like}
    arguments = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with ocp.PyTreeCheckpointer() as orbax:
        saved = orbax.metadata(folder / "state").item_metadata.tree["params"]
        if jax.tree.map(lambda x: tuple(x.shape), saved) != jax.tree.map(lambda x: x.shape, like):
            raise UserError(f"{folder} holds the parameters of another model than its config.json")
        return orbax.restore(folder / "state", args=arguments)["params"]


def render_sums(folder: Path) -> str:
    """Returns the text of SHA256SUMS: a line for each other file, in the order of their names."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SUMS)
    return "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files)


def damage(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint's files, None if every bit is as it was saved."""
    if not (folder / SUMS).exists():
        return f"no {SUMS}"
    try:
        expected, found = (folder / SUMS).read_bytes(), render_sums(folder)
    except OSError as error:
        return f"it cannot be read: {error}"
    if found.encode() == expected:
        return None
    want, have = _by_name(expected.decode(errors="replace")), _by_name(found)
    if set(want) != set(have):
        return f"files differ from {SUMS}: {', '.join(sorted(set(want) ^ set(have))[:3])}"
    wrong = [name for name in have if want[name] != have[name]]
    return f"{', '.join(wrong[:3]) or SUMS} changed"


def _by_name(sums: str) -> dict[str, str]:
    lines = [line.split("  ", 1) for line in sums.splitlines() if "  " in line]
    return {name: digest for digest, name in lines}


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
