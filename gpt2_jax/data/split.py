"""Which text trains and which validates: by document, and always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from gpt2_jax.data.sources import Piece, Source
from gpt2_jax.errors import UserError

Marked = tuple[str, Piece]  # "train" or "val", and the text


@dataclass(frozen=True)
class Plan:
    """How a corpus is split.

    Attributes:
      source: the text, or None if there is only validation text.
      val_source: validation text of its own, or None.
      val_fraction: share of the documents of `source` held out where there is no `val_source`.
    """

    source: Source | None
    val_source: Source | None
    val_fraction: float

    def pieces(self) -> Iterator[Marked]:
        """Yields every piece with its split, in the same order at each call.

        Raises:
          UserError: if a side of the split would be empty.
        """
        if self.source is not None:
            if self.val_source is not None:
                yield from (("train", piece) for piece in self.source.pieces())
            else:
                yield from _held_out(self.source, self.val_fraction)
        if self.val_source is not None:
            yield from (("val", piece) for piece in self.val_source.pieces())


def _held_out(source: Source, fraction: float) -> Iterator[Marked]:
    # Enough documents that a share of them by hash cannot be far from `fraction`.
    enough = round(20 / fraction)
    scores = [_score(text) for text in islice(_first_pieces(source), enough)]
    if not scores:
        raise UserError(f"source {source.name} is empty")
    if len(scores) == 1:
        yield from _cut_by_characters(source, fraction)
        return
    if len(scores) < enough:
        threshold = sorted(scores)[max(1, round(fraction * len(scores))) - 1]
    else:
        threshold = fraction
    yield from _by_document(source, lambda text: _score(text) <= threshold)


def _first_pieces(source: Source) -> Iterator[str]:
    first = True
    for piece in source.pieces():
        if first:
            yield piece.text
        first = piece.last


def _score(text: str) -> float:
    """Returns a number in [0, 1) that depends on the text alone: equal texts stay together."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _by_document(source: Source, validates: Callable[[str], bool]) -> Iterator[Marked]:
    first, split = True, "train"
    for piece in source.pieces():
        if first:
            split = "val" if validates(piece.text) else "train"
        yield split, piece
        first = piece.last


def _cut_by_characters(source: Source, fraction: float) -> Iterator[Marked]:
    left = int(sum(len(piece.text) for piece in source.pieces()) * (1 - fraction))
    for piece in source.pieces():
        train, val = piece.text[:left], piece.text[left:]
        left -= len(train)
        if train:
            yield "train", Piece(train, last=left == 0)
        if val:
            yield "val", Piece(val, last=piece.last)
