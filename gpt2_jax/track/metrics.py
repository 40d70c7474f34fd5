"""metrics.jsonl: one JSON object a line, the record that everything else is drawn from."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from gpt2_jax.files import disk_errors, write_atomic

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Returns the whole rows of a metrics file; a torn last line is left out."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows


class MetricsFile:
    """Appends rows to a file, from the one after `last_step` on.

    A row past it, or torn by a kill, belongs to updates that will be done again, and is cut off.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        kept = [row for row in read_rows(path) if row["step"] <= last_step]
        with disk_errors("metrics.jsonl"):
            write_atomic(path, "".join(map(_line, kept)))
            self._file = open(path, "a", buffering=1)

    def write(self, row: Row) -> None:
        """Appends a row; non-finite numbers become null, as JSON has none."""
        with disk_errors("metrics.jsonl"):
            self._file.write(_line(row))

    def sync(self) -> None:
        """Returns once every row written is on disk."""
        with disk_errors("metrics.jsonl"):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        self._file.close()


def _line(row: Row) -> str:
    return json.dumps({name: _finite(value) for name, value in row.items()}) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
