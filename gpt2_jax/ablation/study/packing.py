"""Packs a study's directory into one file, to continue the study on another machine.

Files that only concern this machine are excluded: leases, locks, submitted jobs. So are checkpoints
of finished trials unless requested, because the study no longer needs them.
"""

from __future__ import annotations

import os
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gpt2_jax.ablation.study.definition import read
from gpt2_jax.ablation.study.leases import Leases
from gpt2_jax.ablation.study.store import LEASES, OUTCOMES, TRIALS, TrialStore
from gpt2_jax.errors import UserError
from gpt2_jax.files import TEMPORARY, disk_errors

KINDS: dict[str, Literal["w", "w:gz"]] = {".tar": "w", ".tar.gz": "w:gz"}
LOCAL_FOLDERS = (LEASES, "jobs")  # only concern this machine
LOCK = ".lock"


def pack(workdir: Path, out: Path, checkpoints: bool = False) -> int:
    """Writes a study's directory to a new file and returns the number of files in it.

    Args:
      checkpoints: whether to include the checkpoints of finished trials.

    Raises:
      UserError: if there is no study, part of it is missing, a worker is running, or `out` cannot
        be written.
    """
    read(workdir)
    kind = next((mode for end, mode in KINDS.items() if out.name.endswith(end)), None)
    if kind is None:
        raise UserError(f"--out={out} must end in {' or '.join(KINDS)}")
    if out.exists():
        raise UserError(f"--out={out} already exists; choose another, or remove it")
    if out.resolve().is_relative_to(workdir.resolve()):
        raise UserError(f"--out={out} is inside --workdir={workdir}; choose another place")
    _check_idle(workdir)
    store = TrialStore(workdir)
    for outcome in sorted((workdir / OUTCOMES).glob("*.json")):
        store.outcome(outcome.stem)  # raises if it was changed or lost, while it can be repaired
    files = list(_files(workdir, store, checkpoints))
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with disk_errors(f"--out={out}"):
            with tarfile.open(partial, kind, dereference=True) as archive:
                for path in files:
                    name = Path(workdir.resolve().name) / path.relative_to(workdir)
                    archive.add(path, str(name), recursive=False, filter=_anonymous)
            os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return len(files)


def _check_idle(workdir: Path) -> None:
    """Checks that no worker is changing the study, so that its files are consistent."""
    if not (workdir / LEASES).is_dir():
        return
    with Leases(workdir / LEASES) as leases:
        if held := leases.others():
            raise UserError(
                f"--workdir={workdir}: a worker is training {held[0]}; stop it first, or wait a "
                "minute if it was killed on another machine"
            )


def _files(workdir: Path, store: TrialStore, checkpoints: bool) -> Iterator[Path]:
    """Yields the files to pack, in order.

    Raises:
      UserError: if a folder of the study is a link, which would not be followed.
    """
    for root, folders, names in os.walk(workdir):
        here = Path(root).relative_to(workdir)
        kept = [f for f in sorted(folders) if not _is_excluded(here / f, store, checkpoints)]
        folders[:] = kept
        for name in sorted(names):
            path = Path(root) / name
            if name != LOCK and not TEMPORARY.fullmatch(name):
                yield path
        links = [Path(root) / name for name in kept if (Path(root) / name).is_symlink()]
        if links and "wandb" not in here.parts:
            raise UserError(f"{links[0]} is a link to another folder; move that folder here first")


def _is_excluded(folder: Path, store: TrialStore, checkpoints: bool) -> bool:
    """Returns whether to exclude a folder, given relative to the study's directory."""
    if folder.parts[0] in LOCAL_FOLDERS or folder.name.endswith(".partial"):
        return True
    is_checkpoints = len(folder.parts) == 3 and folder.parts[::2] == (TRIALS, "checkpoints")
    return is_checkpoints and not checkpoints and store.is_done(folder.parts[1])


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info
