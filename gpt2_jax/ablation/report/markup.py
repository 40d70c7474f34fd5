"""Markdown building blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan

from gpt2_jax.intervals import Interval

NONE = "–"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns a Markdown table, followed by an empty line; cells must already be escaped."""
    line = lambda words: f"| {' | '.join(words)} |"
    return [line(columns), "|---" * len(columns) + "|", *map(line, rows), ""]


def escaped(text: str) -> str:
    """Returns text that Markdown renders literally."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|" else c for c in text)


def signed(difference: Interval) -> str:
    """Formats a difference with its interval, if it has one."""
    middle, low, high = difference
    shown = "undefined" if isnan(middle) else f"{middle:+.4f}"
    return shown if isnan(low) else f"{shown} ({low:+.4f} to {high:+.4f})"
