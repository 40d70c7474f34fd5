"""An estimate and its confidence interval."""

from __future__ import annotations

from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and its confidence interval; the ends are nan if there are too few values."""

    estimate: float
    low: float
    high: float
