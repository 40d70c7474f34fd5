"""metrics.jsonl: one JSON object per line; the source of all plots, tables and reports."""

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
class RowsDigest:
    """A digest of the rows up to a step, stored in that step's checkpoint.

    Attributes:
      count: number of rows.
      last: step of the last row, -1 if there are none.
      sha256: hash of the rows as written.
    """

    count: int
    last: int
    sha256: str


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a metrics file, except a last line that was truncated by a kill.

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
                    f"{path} line {number + 1} is damaged; restore the line, or remove it if it "
                    "belongs to a step after the last checkpoint"
                ) from None
    return rows


def digest_rows(rows: list[Row], step: int, evaluated: bool) -> RowsDigest:
    """Returns the digest of the rows up to a step.

    Args:
      evaluated: whether the row of the step includes its evaluation. If not, the evaluation may
        be added later, so the digest does not cover it.
    """
    kept = [row for row in rows if row["step"] <= step]
    if kept:
        kept[-1] = _covered(kept[-1], step, evaluated)
    digest = hashlib.sha256("".join(map(_line, kept)).encode()).hexdigest()
    return RowsDigest(len(kept), kept[-1]["step"] if kept else -1, digest)


def _covered(row: Row, step: int, evaluated: bool) -> Row:
    if evaluated or row["step"] != step:
        return row
    return {name: value for name, value in row.items() if not name.startswith("val/")}


def find_fault(rows: list[Row], step: int, evaluated: bool, expected: RowsDigest) -> str | None:
    """Describes how rows differ from those of a step's digest; None if they do not."""
    for number, (before, after) in enumerate(pairwise(rows), 2):
        if after["step"] <= before["step"]:
            return f"row {number}, of step {after['step']}, comes after step {before['step']}"
    found = digest_rows(rows, step, evaluated)
    if found.count != expected.count:
        until = "" if found.last == expected.last else f", and ends at step {found.last}"
        return f"it has {found.count} of the {expected.count} rows up to step {step}{until}"
    return None if found == expected else f"a row up to step {step} was changed"


def is_higher_better(best_by: str) -> bool:
    """Returns whether evaluations with a higher value are better, as by all scores but a loss."""
    return best_by != "loss"


def best_row(rows: list[Row], best_by: str = "loss") -> Row | None:
    """Returns the first of the best evaluations; None if no row has one.

    Args:
      best_by: the `val/*` field that they are compared by. Rows without it are not counted, and one
        that is not finite is the worst.
    """
    scored = [row for row in rows if f"val/{best_by}" in row]
    return min(scored, key=lambda row: _rank(row[f"val/{best_by}"], best_by), default=None)


def _rank(value: float | None, best_by: str) -> float:
    """Returns a number that is lower for a better value."""
    if value is None or not math.isfinite(value):
        return math.inf
    return -value if is_higher_better(best_by) else value


def evaluations_since_best(rows: list[Row], best_by: str = "loss") -> int:
    """Returns the number of evaluations since the best one; the arguments are those of it."""
    scored, best = [row for row in rows if f"val/{best_by}" in row], best_row(rows, best_by)
    return next((i for i, row in enumerate(reversed(scored)) if row is best), 0)


class MetricsFile:
    """Appends rows to a file, after the row of `last_step`.

    Later and truncated rows are removed, because their steps will be repeated.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        kept = [row for row in read_rows(path) if row["step"] <= last_step]
        self._last = kept[-1] if kept else None
        self._count = len(kept)
        before_last = "".join(map(_line, kept[:-1]))
        self._before = hashlib.sha256(before_last.encode())
        with disk_errors("metrics.jsonl"):
            write_atomic(path, "".join(map(_line, kept)))
            self._file = open(path, "a", buffering=1, encoding="utf-8")

    def write(self, row: Row) -> None:
        """Appends a row; non-finite numbers become null, because JSON has none."""
        with disk_errors("metrics.jsonl"):
            self._file.write(_line(row))
        if self._last is not None:
            self._before.update(_line(self._last).encode())
        self._last, self._count = row, self._count + 1

    def replace_last(self, row: Row) -> None:
        """Replaces the last row atomically."""
        kept = read_rows(self._path)[:-1]
        with disk_errors("metrics.jsonl"):
            self._file.close()
            write_atomic(self._path, "".join(map(_line, [*kept, row])))
            self._file = open(self._path, "a", buffering=1, encoding="utf-8")
        self._last = row

    def digest(self, step: int, evaluated: bool) -> RowsDigest:
        """Returns the digest of the rows written so far, all of which are of `step` or earlier."""
        sha256 = self._before.copy()
        if self._last is None:
            return RowsDigest(0, -1, sha256.hexdigest())
        sha256.update(_line(_covered(self._last, step, evaluated)).encode())
        return RowsDigest(self._count, self._last["step"], sha256.hexdigest())

    def sync(self) -> None:
        """Blocks until every row written is on disk."""
        with disk_errors("metrics.jsonl"):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        self._file.close()


class UnwrittenMetrics(MetricsFile):
    """Stands in for the file in processes that do not write it."""

    def __init__(self) -> None: ...

    def write(self, row: Row) -> None:
        """Does nothing."""

    def replace_last(self, row: Row) -> None:
        """Does nothing."""

    def digest(self, step: int, evaluated: bool) -> RowsDigest:
        """Returns an empty digest, which is not saved."""
        return RowsDigest(0, -1, "")

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _line(row: Row) -> str:
    return to_json(row) + "\n"
