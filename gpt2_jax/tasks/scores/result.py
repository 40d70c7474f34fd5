"""The result of scoring: values with intervals, tables, and what the values mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_jax.intervals import Interval
from gpt2_jax.tasks.scores.bootstrap import Bootstrap

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
      title: what the rows are.
      columns: names of the columns; the first one names the rows.
      rows: one cell per column; None for a value that is not defined.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def lines(self, decimals: int) -> list[str]:
        """Returns the title and aligned lines of plain text."""
        cells = [self.columns, *([_shown(cell, decimals) for cell in row] for row in self.rows)]
        return [self.title, *("  " + line for line in aligned(cells))]


@dataclass(frozen=True)
class Scores:
    """Scores of predictions for a set of examples.

    Attributes:
      kind: what was scored, such as `entities`.
      unit: what the examples are, such as `sentences`; they are resampled for the intervals.
      n: number of examples.
      values: scores by name, the most important first.
      definitions: what a value means, by its name, or by a part of names that several share.
      bootstrap: how the intervals were computed.
      tables: results by type, class or slot.
      decimals: with which values are shown.
    """

    kind: str
    unit: str
    n: int
    values: Mapping[str, Interval]
    definitions: Mapping[str, str]
    bootstrap: Bootstrap
    tables: tuple[Table, ...] = ()
    decimals: int = 4

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Returns the values without intervals, for metrics.jsonl and wandb."""
        return {prefix + name: value.estimate for name, value in self.values.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for a JSON file; `files.write_json` writes nan as null."""
        return {
            "kind": self.kind,
            "unit": self.unit,
            "n": self.n,
            "values": {name: value._asdict() for name, value in self.values.items()},
            "definitions": dict(self.definitions),
            "interval": {
                "method": "percentile bootstrap",
                "level": self.bootstrap.level,
                "resamples": self.bootstrap.resamples,
                "seed": self.bootstrap.seed,
            },
            "tables": [
                {"title": t.title, "columns": list(t.columns), "rows": [list(r) for r in t.rows]}
                for t in self.tables
            ],
        }

    def text(self) -> str:
        """Returns the values, their definitions and the tables as plain text."""
        boot = self.bootstrap
        how = f", {boot.level:.0%} bootstrap intervals over {self.unit}" if boot.resamples else ""
        rows = [(name, *self._cells(value)) for name, value in self.values.items()]
        lines = [
            f"{self.kind}: {self.n:,} {self.unit}{how}",
            *("  " + one for one in aligned(rows)),
        ]
        for table in self.tables:
            lines += ["", *table.lines(self.decimals)]
        notes = [(name, meaning) for name, meaning in self.definitions.items()]
        width = max((len(name) for name, _ in notes), default=0)
        lines += ["", "definitions", *(f"  {name:<{width}}  {words}" for name, words in notes)]
        return "\n".join(lines)

    def _cells(self, value: Interval) -> tuple[str, ...]:
        estimate, low, high = (_shown(x, self.decimals) for x in value)
        return (estimate,) if math.isnan(value.low) else (estimate, f"{low} to {high}")


def _shown(cell: Cell, decimals: int) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    return f"{cell:.{decimals}f}" if isinstance(cell, float) else f"{cell}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines with aligned columns: the first to the left, the others to the right."""
    n_columns = max((len(row) for row in rows), default=0)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(n_columns)]
    line = lambda row: "  ".join(
        f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(row)
    )
    return [line(row).rstrip() for row in rows]
