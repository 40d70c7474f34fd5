"""A published claim and its measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Numbers = Sequence[float] | np.ndarray


class Part(NamedTuple):
    """One statement of a claim, what was measured, and whether the statement holds."""

    says: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
      title: a few words.
      source: paper and section.
      says: what the paper claims.
      setup: the models measured, and how they differ from the paper's.
      columns, rows: the table of measurements.
      parts: the statements of the claim.
    """

    title: str
    source: str
    says: str
    setup: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    parts: Sequence[Part]

    @property
    def holds(self) -> bool:
        """Whether all statements hold."""
        return all(part.holds for part in self.parts)

    def render(self) -> str:
        """Returns the claim as a section of Markdown."""
        lines = [f"## {self.title}", "", f"{self.source}: {self.says}", "", self.setup, ""]
        lines += [f"| {' | '.join(self.columns)} |", "|---" * len(self.columns) + "|"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in self.rows]
        lines.append("")
        for part in self.parts:
            outcome = "seen" if part.holds else "not seen"
            lines.append(f"- {part.says}: **{outcome}**; {part.found}.")
        return "\n".join(lines)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def spread(values: Numbers) -> str:
    """Returns the mean over seeds, with the minimum and maximum."""
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def slope(depths: Sequence[int], values: Numbers) -> float:
    """Returns the exponent p of the power law values ~ depths^p, fitted to the logarithms."""
    return float(np.polyfit(np.log(depths), np.log(values), 1)[0])


def bend(values: Numbers) -> float:
    """Returns the increase over the second half divided by that over the first; 1 if linear."""
    middle = (len(values) - 1) // 2
    return (values[2 * middle] - values[middle]) / (values[middle] - values[0])
