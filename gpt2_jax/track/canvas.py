"""Matplotlib as every picture here uses it: without a display, and with text as it is written."""

from __future__ import annotations

from typing import Any


def load_matplotlib() -> Any:
    """Returns matplotlib, drawing to files, with `$` in a text as a plain character.

    Names of files, runs and variants are drawn as they are: one with two dollar signs would
    otherwise be read as a formula, and a wrong formula raises an error. Logarithmic axes need a
    formatter of their own, since matplotlib's writes formulas.
    """
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["text.parse_math"] = False
    return matplotlib
