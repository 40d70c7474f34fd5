"""Checkpoints that are whole or absent, and proved undamaged before they are used.

checkpoints/00000500.partial/   being written; deleted at the next start
checkpoints/00000500/           valid: renamed into place when all of it is on disk
    state/                      orbax
    meta.json                   step, validation loss, and which run it belongs to (identity.py)
    SHA256SUMS                  of every other file (`sha256sum -c` reads it)
weights/                        next to checkpoints/: the same with the parameters alone
checkpoints/00000500.damaged/   failed its sums; kept, never used
checkpoints/00000500.deleted/   no longer wanted; being deleted
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, plain_path, read_errors, sha256, write_atomic, write_json
from gpt2_jax.track.metrics import Seal, read_rows
from gpt2_jax.train.identity import META, Identity, Meta, finite, read_meta
from gpt2_jax.train.state import State

SUMS = "SHA256SUMS"
# What is wrong with a folder's structure; any other error of the system is not damage.
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: `checkpoints/` of the run directory.
      keep: how many of the latest stay; the one of lowest validation loss stays as well.
      identity: of the run, None for checkpoints that are only read.

    Attributes:
      before_commit: called in the saving thread once a checkpoint's files are on disk and before
        it becomes valid; what it raises keeps the checkpoint from becoming valid.
      announce: called after that with the step, also before the checkpoint becomes valid.
      seal: returns the seal of metrics.jsonl at a step, given whether the step was evaluated.
    """

    def __init__(self, folder: Path, keep: int = 2, identity: Identity | None = None) -> None:
        self._folder, self._keep, self._identity = folder, keep, identity
        self.before_commit: Callable[[], None] = lambda: None
        self.announce: Callable[[int], None] = lambda step: None
        self.seal: Callable[[int, bool], Seal | None] = lambda step, evaluated: None
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None

    @cached_property
    def _orbax(self) -> ocp.StandardCheckpointer:
        _drop_late_callbacks()
        return ocp.StandardCheckpointer()  # starts jax's backend, so not before it is needed

    def names(self) -> list[str]:
        """Returns the names of everything in the folder, none if there is no folder.

        Raises:
          UserError: if the folder cannot be read.
        """
        if not os.path.lexists(self._folder):
            return []
        with read_errors(self._folder):
            return sorted(os.listdir(self._folder))

    def clean(self) -> None:
        """Deletes what a killed process left half written or half deleted."""
        for name in self.names():
            if ".partial" in name or name.endswith(".deleted"):
                with disk_errors("checkpoints/"):
                    _remove(self._folder / name)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first; it may still be damaged."""
        numbers = [int(name) for name in self.names() if re.fullmatch("[0-9]{8,}", name)]
        return sorted(step for step in numbers if os.path.lexists(self.path(step)))

    def best(self, say: Callable[[str], None] = lambda line: None) -> int | None:
        """Returns the step of lowest validation loss among the checkpoints that have one.

        Args:
          say: called with a line for each checkpoint whose loss cannot be trusted.
        """
        known: dict[int, float] = {}
        for step in self.steps():
            try:
                loss = _val_loss(self.path(step))
            except UserError as error:
                if os.path.lexists(self.path(step)):  # else training has just deleted it
                    say(f"{error}: passed over")
            else:
                known |= {} if loss is None else {step: loss}
        return min(known, key=lambda step: known[step]) if known else None

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint."""
        return self._folder / f"{step:08d}"

    def save(self, step: int, state: State, val_loss: float | None) -> None:
        """Starts saving; returns when `state` may be donated. Raises what the save before met."""
        self.wait()
        partial = self._folder / f"{step:08d}.partial"
        val_loss = finite(val_loss)
        meta = Meta(step, val_loss, self.seal(step, val_loss is not None), self._identity)
        with disk_errors(f"checkpoint {step}"), ExitStack() as stack:
            partial.mkdir(parents=True)
            write_json(partial / META, meta.to_dict())
            plain = stack.enter_context(plain_path(partial))
            with jax.transfer_guard("allow"):  # the loop forbids what orbax does here
                self._orbax.save(plain / "state", state)
            self._saving = self._thread.submit(self._commit, step, partial, stack.pop_all())

    def wait(self) -> None:
        """Returns once the last save is valid; raises what kept it from becoming so."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            with disk_errors("a checkpoint"):
                saving.result()

    def restore(self, step: int, like: State) -> State:
        """Returns the state of a checkpoint, laid out as `like` is (arrays or their shapes).

        Raises:
          UserError: if another version of this program saved another kind of state, or the state
            is that of another step.
        """
        path = self.path(step)
        try:
            with plain_path(path) as plain:
                state = self._orbax.restore(plain / "state", jax.tree.map(_abstract, like))
        except ValueError as error:
            if "do not match" not in str(error):
                raise
            raise UserError(f"{path} was saved by a version with another train state") from None
        _check_step(path, step, state.step)
        return state

    def close(self) -> None:
        """Waits for the last save and ends the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again."""
        path, number = self.path(step), 0
        while os.path.lexists(aside := path.with_name(f"{path.name}.damaged{number or ''}")):
            number += 1
        with disk_errors("checkpoints/"):
            path.rename(aside)

    def _commit(self, step: int, partial: Path, link: ExitStack) -> None:
        with link:
            self._orbax.wait_until_finished()
        write_atomic(partial / SUMS, render_sums(partial))
        self.before_commit()
        self.announce(step)
        os.replace(partial, self.path(step))
        _sync_folder(self._folder)
        self._delete_old()

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, which will be trained again."""
        for later in [other for other in self.steps() if other > step]:
            self._delete(later)

    def _delete_old(self) -> None:
        kept = {*self.steps()[-self._keep :], self.best()}
        for step in self.steps():
            if step not in kept:
                self._delete(step)

    def _delete(self, step: int) -> None:
        # Renamed first: a kill while deleting must not leave what looks like damage.
        _remove(self.path(step).rename(self._folder / f"{step:08d}.deleted"))


def save_params(folder: Path, params: Any, identity: Identity | None = None) -> None:
    """Writes a checkpoint that holds parameters alone; it is whole or absent."""
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


def restore_params(folder: Path, like: Any, step: int = 0) -> Any:
    """Returns the parameters of a checkpoint and reads nothing else of it but its step.

    Args:
      like: their shapes with the shardings that they are to have.
      step: that the checkpoint is of; parameters alone have none.

    Raises:
      UserError: if they are another model's or another step's.
    """
    with plain_path(folder.absolute()) as plain, ocp.PyTreeCheckpointer() as orbax:
        saved = orbax.metadata(plain / "state").item_metadata.tree
        shapes = jax.tree.map(lambda x: tuple(x.shape), saved["params"])
        if shapes != jax.tree.map(lambda x: x.shape, like):
            raise UserError(f"{folder} holds the parameters of another model than its config.json")
        item = {"params": like}
        if "step" in saved:
            sharding = jax.tree.leaves(like)[0].sharding
            item["step"] = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
        arguments = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        restored = orbax.restore(plain / "state", args=arguments)
    if "step" in restored:
        _check_step(folder, step, restored["step"])
    return restored["params"]


def _check_step(folder: Path, step: int, found: jax.Array) -> None:
    if int(jax.device_get(found)) != step:
        raise UserError(f"{folder} holds the state of step {found}; move it away")


def render_sums(folder: Path) -> str:
    """Returns the text of SHA256SUMS: a line for each other file, in the order of their names."""
    files = sorted(path for path in _files(folder) if path != folder / SUMS)
    return "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files)


def _files(folder: Path) -> Iterator[Path]:
    """Yields the regular files below a folder."""

    def fail(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=fail):
        for path in (Path(place) / name for name in names):
            try:
                regular = stat.S_ISREG(os.stat(path).st_mode)
            except FileNotFoundError:  # a link that leads nowhere
                continue
            if regular:
                yield path


def damage(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint's files, None if every bit is as it was saved.

    Raises:
      UserError: if a file is there and cannot be read, which is not damage.
    """
    with read_errors(folder):
        try:
            expected = _sums(folder)
            found = render_sums(folder)
        except MISSING as error:
            return f"{Path(error.filename or folder).name}: {error.strerror}"
    if expected is None:
        return f"no {SUMS}"
    if found.encode() == expected:
        return None
    want, have = _by_name(expected.decode(errors="replace")), _by_name(found)
    if set(want) != set(have):
        return f"files differ from {SUMS}: {', '.join(sorted(set(want) ^ set(have))[:3])}"
    wrong = [name for name in have if want[name] != have[name]]
    return f"{', '.join(wrong[:3]) or SUMS} changed"


def _sums(folder: Path) -> bytes | None:
    """Returns the content of SHA256SUMS, None if there is no such file."""
    try:
        if not stat.S_ISREG(os.stat(folder / SUMS).st_mode):
            return None
        return (folder / SUMS).read_bytes()
    except MISSING:
        return None


def _val_loss(folder: Path) -> float | None:
    """Returns the validation loss of a checkpoint, None if it has none.

    Raises:
      UserError: if its meta.json is damaged.
    """
    with read_errors(folder):
        try:
            sums = _by_name((_sums(folder) or b"").decode(errors="replace"))
            regular = stat.S_ISREG(os.stat(folder / META).st_mode)
            whole = regular and sums.get(META) == sha256(folder / META)
        except MISSING:
            whole = False
    if not whole:
        raise UserError(f"checkpoint {folder} is damaged ({META} changed)")
    meta = read_meta(folder)
    return _recorded_loss(folder, meta.step) if meta.val_loss is None else meta.val_loss


def _recorded_loss(folder: Path, step: int) -> float | None:
    """Returns a step's validation loss in metrics.jsonl: of an evaluation made after a restart.

    A signal that ends an evaluation saves the step without its loss.
    """
    try:
        rows = read_rows(folder.parent.parent / "metrics.jsonl")
    except UserError:
        return None
    return finite(next((row.get("val/loss") for row in rows if row["step"] == step), None))


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


def _remove(path: Path) -> None:
    """Deletes a folder, a file or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@cache
def _drop_late_callbacks() -> None:
    """Keeps writes that end after another one failed from filling the screen.

    When a disk is full, orbax closes its event loop at the first write that fails, and tensorstore
    reports each of the others to the closed loop: hundreds of tracebacks before the one line that
    says what happened.
    """
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            others(unraisable)

    sys.unraisablehook = hook
