"""Files of a study that are written once and read by later versions: JSON with a format_version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError

VERSION = 2  # of campaign.json, outcomes/*.json and results.json; 1 had no format_version


class Damaged(UserError):
    """A file that is not what this program writes."""


def read_stored(path: Path) -> dict[str, Any]:
    """Returns a file's fields; those of an older version as they are.

    Raises:
      Damaged: if it is not such a file.
      UserError: if it cannot be read, or a newer version wrote it.
    """
    try:
        stored = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({error})") from None
    if not isinstance(stored, dict):
        raise Damaged(f"{path} is damaged (it holds no fields)")
    version = stored.get("format_version", 1)
    if type(version) is not int or version < 1:
        raise Damaged(f"{path} is damaged (its format_version is {version!r})")
    if version > VERSION:
        raise UserError(
            f"{path} has format_version {version}, and this version of gpt2_jax reads {VERSION} at "
            "most; update gpt2_jax"
        )
    return stored
