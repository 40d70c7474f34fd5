"""Files of a study that are written once and read by later versions: JSON with a format_version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2_jax.files import check_format, read_fields

VERSION = 2  # of campaign.json, outcomes/*.json and results.json; 1 had no format_version


def read_stored(path: Path) -> dict[str, Any]:
    """Returns a file's fields; those of an older version as they are.

    Raises:
      Damaged: if it is not such a file.
      UserError: if it cannot be read, or a newer version wrote it.
    """
    stored = read_fields(path)
    check_format(stored, path, VERSION)
    return stored
