"""SHA256SUMS: hashes of a checkpoint's files, to detect damage."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gpt2_jax.files import read_errors, sha256

SUMS = "SHA256SUMS"
# Errors that mean damage; others, such as missing permissions, do not.
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def render_sums(folder: Path) -> str:
    """Returns the text of SHA256SUMS: one line per other file, sorted by name."""
    files = sorted(path for path in _files(folder) if path != folder / SUMS)
    return "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files)


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
