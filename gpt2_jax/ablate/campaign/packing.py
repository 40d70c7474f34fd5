"""A campaign's directory, finished or not, as one file that another machine can continue.

What belongs to this machine stays out: claims, locks, submitted jobs. So do the checkpoints of
finished cells, unless they are asked for: nothing in the campaign needs them any more.
"""

from __future__ import annotations

import os
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gpt2_jax.ablate.campaign.cells import Cells
from gpt2_jax.ablate.campaign.claims import Claims
from gpt2_jax.ablate.campaign.definition import read
from gpt2_jax.errors import UserError
from gpt2_jax.files import TEMPORARY, disk_errors

KINDS: dict[str, Literal["w", "w:gz"]] = {".tar": "w", ".tar.gz": "w:gz"}
OF_THIS_MACHINE = ("claims", "jobs")  # folders
LOCK = ".lock"


def pack(workdir: Path, out: Path, checkpoints: bool = False) -> int:
    """Writes a campaign's directory into a new file and returns how many files it holds.

    Args:
      checkpoints: whether to keep those of finished cells as well.

    Raises:
      UserError: if there is no campaign, a part of it is lost, a worker is in it, or `out` cannot
        be written.
    """
    read(workdir)
    kind = next((mode for end, mode in KINDS.items() if out.name.endswith(end)), None)
    if kind is None:
        raise UserError(f"--out={out} must end in {' or '.join(KINDS)}")
    if out.exists():
        raise UserError(f"--out={out} is there already; choose another, or remove it")
    if out.resolve().is_relative_to(workdir.resolve()):
        raise UserError(f"--out={out} is inside --workdir={workdir}; choose another place")
    _check_idle(workdir)
    cells = Cells(workdir)
    for outcome in sorted((workdir / "outcomes").glob("*.json")):
        cells.outcome(outcome.stem)  # refuses what was changed or lost: nobody would notice later
    files = list(_files(workdir, cells, checkpoints))
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
    """Refuses a campaign that is being worked on: its files would be of different moments."""
    if not (workdir / "claims").is_dir():
        return
    with Claims(workdir / "claims") as claims:
        if held := claims.others():
            raise UserError(
                f"--workdir={workdir}: a worker trains {held[0]} at the moment; stop it first, or "
                "wait a minute if it was killed on another machine"
            )


def _files(workdir: Path, cells: Cells, checkpoints: bool) -> Iterator[Path]:
    """Yields what is to be packed, in order.

    Raises:
      UserError: if a part of the campaign is a link, which would not be followed.
    """
    for root, folders, names in os.walk(workdir):
        here = Path(root).relative_to(workdir)
        kept = [f for f in sorted(folders) if not _is_left_out(here / f, cells, checkpoints)]
        folders[:] = kept
        for name in sorted(names):
            path = Path(root) / name
            if name != LOCK and not TEMPORARY.fullmatch(name):
                yield path
        links = [Path(root) / name for name in kept if (Path(root) / name).is_symlink()]
        if links and "wandb" not in here.parts:
            raise UserError(f"{links[0]} is a link to another folder; move that folder here first")


def _is_left_out(folder: Path, cells: Cells, checkpoints: bool) -> bool:
    """Returns whether a folder, relative to the campaign's, stays where it is."""
    if folder.parts[0] in OF_THIS_MACHINE or folder.name.endswith(".partial"):
        return True
    is_checkpoints = len(folder.parts) == 3 and folder.parts[::2] == ("cells", "checkpoints")
    return is_checkpoints and not checkpoints and cells.is_done(folder.parts[1])


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info
