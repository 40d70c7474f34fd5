"""Reads a study's versioned JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError
from gpt2_jax.files import check_format, read_fields

VERSION = 3  # of study.json, outcomes/*.json and results.json


def read_stored(path: Path) -> dict[str, Any]:
    """Returns the fields of a file.

    Raises:
      Damaged: if it is not such a file.
      UserError: if it cannot be read, or was written by another version.
    """
    stored = read_fields(path)
    check_format(stored, path, VERSION)
    if (version := stored.get("format_version", 1)) < VERSION:
        raise UserError(
            f"{path} has format_version {version}, and this program reads {VERSION}; use the "
            "version of gpt2_jax that wrote it, or run the study again in another --workdir"
        )
    return stored
