"""metrics.jsonl: one JSON object a line, the record that everything else is drawn from."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, to_json, write_atomic

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Returns the whole rows of a metrics file; a last line torn by a kill is left out.

    Raises:
      UserError: if any other line is damaged.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise ValueError
            rows.append(row)
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise UserError(f"{path} line {number} is damaged; remove or mend it") from None
    return rows


def evaluations_since_best(rows: list[Row]) -> int:
    """Returns how many evaluations came after the one of lowest validation loss."""
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    known = [math.inf if loss is None or not math.isfinite(loss) else loss for loss in losses]
    return len(known) - 1 - known.index(min(known)) if known else 0


class MetricsFile:
    """Appends rows to a file, from the one after `last_step` on.

    A row past it, or torn by a kill, belongs to updates that will be done again, and is cut off.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        kept = [row for row in read_rows(path) if row["step"] <= last_step]
        with disk_errors("metrics.jsonl"):
            write_atomic(path, "".join(map(_line, kept)))
            self._file = open(path, "a", buffering=1, encoding="utf-8")

    def write(self, row: Row) -> None:
        """Appends a row; non-finite numbers become null, as JSON has none."""
        with disk_errors("metrics.jsonl"):
            self._file.write(_line(row))

    def replace_last(self, row: Row) -> None:
        """Writes a row in place of the last one; a kill leaves either of them."""
        kept = read_rows(self._path)[:-1]
        with disk_errors("metrics.jsonl"):
            self._file.close()
            write_atomic(self._path, "".join(map(_line, [*kept, row])))
            self._file = open(self._path, "a", buffering=1)

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
    return to_json(row) + "\n"
