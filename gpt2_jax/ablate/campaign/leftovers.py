"""Temporary files that killed processes left in a campaign's directory."""

from __future__ import annotations

from pathlib import Path

from gpt2_jax.files import remove_temporary

FOLDERS = ("cells/*", "claims", "outcomes", "report")


def sweep(workdir: Path, older_than: float) -> None:
    """Removes temporary files that were written before a time of the file system's clock."""
    for folder in (workdir, *(path for name in FOLDERS for path in workdir.glob(name))):
        if folder.is_dir():
            remove_temporary(folder, older_than)
