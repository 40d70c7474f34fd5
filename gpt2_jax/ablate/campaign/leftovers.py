"""Temporary files that killed processes left in a campaign's directory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # as `files.write_atomic` calls them
FOLDERS = (".", "cells/*", "claims", "outcomes", "report")


def sweep(workdir: Path, older_than: float) -> None:
    """Removes temporary files that were written before a time of the file system's clock."""
    for path in _temporary(workdir):
        with contextlib.suppress(OSError):  # another worker sweeps as well
            if path.stat().st_mtime < older_than:
                path.unlink()


def _temporary(workdir: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in workdir.glob(f"{folder}/.*.tmp"):
            if TEMPORARY.fullmatch(path.name):
                yield path
