"""Markdown that shows what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NONE = "–"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns a Markdown table of escaped words and the empty line behind it."""
    line = lambda words: f"| {' | '.join(words)} |"
    return [line(columns), "|---" * len(columns) + "|", *map(line, rows), ""]


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|" else c for c in text)
