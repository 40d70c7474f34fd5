"""Reads pairs from two files with a sentence per line: `train.{en,de}.gz`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from gpt2_jax.data.examples.lines import read_lines
from gpt2_jax.data.examples.records import Pair
from gpt2_jax.errors import UserError

_SIDES = re.compile(r"(.*)\{([^{},]*),([^{},]*)\}(.*)", re.DOTALL)


def aligned_paths(spec: str) -> tuple[Path, Path] | None:
    """Returns the source and target files of `PATH.{source,target}`; None for any other text."""
    found = _SIDES.fullmatch(spec)
    if not found:
        return None
    before, source, target, after = found.groups()
    return Path(f"{before}{source}{after}"), Path(f"{before}{target}{after}")


def read_aligned(source: Path, target: Path) -> Iterator[Pair]:
    """Yields the pairs of two files, compressed or not, in order.

    Raises:
      UserError: naming the file and line if a file cannot be read, one is longer than the other, or
        a line is empty.
    """
    for left, right in zip_longest(read_lines(source), read_lines(target)):
        if left is None or right is None:
            short, long, end = (source, target, right) if left is None else (target, source, left)
            raise UserError(
                f"{long} line {end[0]} has no counterpart: {short} has {end[0] - 1} lines; both "
                "files need a sentence per line, in the same order"
            )
        pair = Pair(left[1].strip(), (right[1].strip(),), f"{target} line {right[0]}")
        check_pair(pair, source_where=f"{source} line {left[0]}")
        yield pair


def check_pair(pair: Pair, source_where: str | None = None) -> None:
    """Checks that neither side of a pair is empty.

    Args:
      source_where: file and line of the source, if it is not that of the target.

    Raises:
      UserError: naming the file and line.
    """
    for side, text, where in (
        ("source", pair.source, source_where or pair.where),
        ("target", pair.references[0] if pair.references else "", pair.where),
    ):
        if not text.strip():
            raise UserError(f"{where}: the {side} is empty; remove the pair, or fill it in")
