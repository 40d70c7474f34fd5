"""Matplotlib as every picture here uses it: without a display, and with text as it is written."""

from __future__ import annotations

import warnings
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
    # A character that the font lacks is drawn as a box, which says enough.
    warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
    return matplotlib


def printable(text: str) -> str:
    """Returns a text with `�` for control characters, and for bytes of a path that are no text."""
    return "".join(c if c.isprintable() else "�" for c in text)
