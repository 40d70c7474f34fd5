"""A published claim beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
      title: a few words. source: paper and place. says: what it claims.
      setup: the models that were measured, and what was adapted.
      columns, rows: of the table. holds: whether the figures agree. verdict: how one sees it.
    """

    title: str
    source: str
    says: str
    setup: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    holds: bool
    verdict: str

    def render(self) -> str:
        """Returns the claim as a section of Markdown."""
        lines = [f"## {self.title}", "", f"{self.source}: {self.says}", "", self.setup, ""]
        lines += [f"| {' | '.join(self.columns)} |", "|---" * len(self.columns) + "|"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in self.rows]
        lines += ["", f"**{'Holds' if self.holds else 'Does not hold as stated'}**: {self.verdict}"]
        return "\n".join(lines)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def slope(depths: Sequence[int], values: Sequence[float]) -> float:
    """Returns the exponent p of the power law values ~ depths^p, least squares in logarithms."""
    return float(np.polyfit(np.log(depths), np.log(values), 1)[0])


def linearity(values: np.ndarray) -> float:
    """Returns R^2 of a straight line through the values, one a block."""
    return float(np.corrcoef(np.arange(len(values)), values)[0, 1] ** 2)
