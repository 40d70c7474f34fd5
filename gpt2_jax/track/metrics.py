"""metrics.jsonl: one JSON object per line, the record that everything else is drawn from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, read_file, to_json, write_atomic

Row = dict[str, Any]


@dataclass(frozen=True)
class Seal:
    """What a checkpoint keeps of the rows up to its step, to recognize them.

    Attributes:
      count: of the rows. last: step of the last one, -1 if there are none.
      sha256: of their lines.
    """

    count: int
    last: int
    sha256: str


def read_rows(path: Path) -> list[Row]:
    """Returns the whole rows of a metrics file; a last line torn by a kill is left out.

    Raises:
      UserError: if any other line is damaged, or the file cannot be read.
    """
    content = read_file(path) if os.path.lexists(path) else b""
    lines = content.decode(errors="replace").split("\n")
    last = max((number for number, line in enumerate(lines) if line.strip()), default=0)
    rows: list[Row] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if type(row["step"]) is not int:
                raise ValueError
            rows.append(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < last:
                raise UserError(
                    f"{path} line {number + 1} is damaged; bring the line back, or remove it if it "
                    "belongs to a step after the last checkpoint"
                ) from None
    return rows


def seal(rows: list[Row], step: int, evaluated: bool) -> Seal:
    """Returns the seal of the rows up to a step.

    Args:
      evaluated: whether the step's own evaluation is part of its row; if not, the evaluation may
        be added to the row later, and the seal does not cover it.
    """
    kept = [row for row in rows if row["step"] <= step]
    if kept:
        kept[-1] = _sealed(kept[-1], step, evaluated)
    digest = hashlib.sha256("".join(map(_line, kept)).encode()).hexdigest()
    return Seal(len(kept), kept[-1]["step"] if kept else -1, digest)


def _sealed(row: Row, step: int, evaluated: bool) -> Row:
    if evaluated or row["step"] != step:
        return row
    return {name: value for name, value in row.items() if not name.startswith("val/")}


def find_fault(rows: list[Row], step: int, evaluated: bool, expected: Seal) -> str | None:
    """Returns how rows differ from those that were sealed at a step, None if they do not."""
    for number, (before, after) in enumerate(pairwise(rows), 2):
        if after["step"] <= before["step"]:
            return f"row {number}, of step {after['step']}, comes after step {before['step']}"
    found = seal(rows, step, evaluated)
    if found.count != expected.count:
        return (
            f"it has {found.count} of the {expected.count} rows up to step {step}; "
            f"the last one is of step {found.last} instead of {expected.last}"
        )
    return None if found == expected else f"a row up to step {step} is not the one written then"


def evaluations_since_best(rows: list[Row]) -> int:
    """Returns how many evaluations came after the one of lowest validation loss."""
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    known = [math.inf if loss is None or not math.isfinite(loss) else loss for loss in losses]
    return len(known) - 1 - known.index(min(known)) if known else 0


class MetricsFile:
    """Appends rows to a file, from the one after `last_step` on.

    A row past it, or torn by a kill, belongs to steps that will be done again, and is cut off.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        kept = [row for row in read_rows(path) if row["step"] <= last_step]
        self._last = kept[-1] if kept else None
        self._count = len(kept)
        self._before = hashlib.sha256(
            "".join(map(_line, kept[:-1])).encode()
        )  # of all but the last
        with disk_errors("metrics.jsonl"):
            write_atomic(path, "".join(map(_line, kept)))
            self._file = open(path, "a", buffering=1, encoding="utf-8")

    def write(self, row: Row) -> None:
        """Appends a row; non-finite numbers become null, as JSON has none."""
        with disk_errors("metrics.jsonl"):
            self._file.write(_line(row))
        if self._last is not None:
            self._before.update(_line(self._last).encode())
        self._last, self._count = row, self._count + 1

    def replace_last(self, row: Row) -> None:
        """Writes a row in place of the last one; a kill leaves either of them."""
        kept = read_rows(self._path)[:-1]
        with disk_errors("metrics.jsonl"):
            self._file.close()
            write_atomic(self._path, "".join(map(_line, [*kept, row])))
            self._file = open(self._path, "a", buffering=1, encoding="utf-8")
        self._last = row

    def seal(self, step: int, evaluated: bool) -> Seal:
        """Returns the seal of the rows written so far, of which none is past `step`."""
        digest = self._before.copy()
        if self._last is None:
            return Seal(0, -1, digest.hexdigest())
        digest.update(_line(_sealed(self._last, step, evaluated)).encode())
        return Seal(self._count, self._last["step"], digest.hexdigest())

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
