"""SHA256SUMS: hashes of a checkpoint's files, to detect damage."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from gpt2_jax.files import read_errors, sha256
from gpt2_jax.train.distributed.processes import ALONE, Processes

SUMS = "SHA256SUMS"
PROCESS_FOLDER = re.compile("ocdbt.process_([0-9]+)")
# Errors that mean damage; others, such as missing permissions, do not.
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def render_sums(folder: Path, processes: Processes = ALONE) -> str:
    """Returns the text of SHA256SUMS: one line per other file, sorted by name.

    Each process hashes the files that orbax wrote for it, and process 0 all others as well.
    """
    files = sorted(path for path in _files(folder) if path != folder / SUMS)
    sums: dict[str, str] = {}
    for path in files:
        name = path.relative_to(folder)
        if _writer(name) % processes.count == processes.index:
            sums[str(name)] = sha256(path)
    found = [item for one in processes.gather("sums", sums) for item in one.items()]
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(found, key=_as_path))


def _as_path(item: tuple[str, str]) -> Path:
    return Path(item[0])


def _writer(name: Path) -> int:
    """Returns the number of the process that wrote a file, 0 if it is not known."""
    found = (PROCESS_FOLDER.fullmatch(part) for part in name.parts)
    return next((int(match[1]) for match in found if match), 0)


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        for path in (Path(parent) / name for name in names):
            try:
                regular = stat.S_ISREG(os.stat(path).st_mode)
            except FileNotFoundError:  # a broken link
                continue
            if regular:
                yield path


def find_damage(folder: Path) -> str | None:
    """Describes the damage to a checkpoint's files; None if they are exactly as saved.

    Raises:
      UserError: if a file exists but cannot be read, which is not damage.
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


def is_intact(folder: Path, name: str) -> bool:
    """Returns whether one file of a checkpoint is as it was saved.

    Raises:
      UserError: if it exists but cannot be read.
    """
    with read_errors(folder):
        try:
            sums = _by_name((_sums(folder) or b"").decode(errors="replace"))
            regular = stat.S_ISREG(os.stat(folder / name).st_mode)
            return regular and sums.get(name) == sha256(folder / name)
        except MISSING:
            return False


def _sums(folder: Path) -> bytes | None:
    """Returns the content of SHA256SUMS, None if the file does not exist."""
    try:
        if not stat.S_ISREG(os.stat(folder / SUMS).st_mode):
            return None
        return (folder / SUMS).read_bytes()
    except MISSING:
        return None


def _by_name(sums: str) -> dict[str, str]:
    lines = [line.split("  ", 1) for line in sums.splitlines() if "  " in line]
    return {name: digest for digest, name in lines}
