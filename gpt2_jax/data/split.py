"""Which text trains and which validates: by document, and always the same."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from gpt2_jax.data.manifest import Split
from gpt2_jax.data.sources import Source
from gpt2_jax.data.text import Piece
from gpt2_jax.errors import UserError

Marked = tuple[str, Piece]  # "train" or "val", and the text
_SAMPLE = 20  # held-out documents in the sample that the share is judged by


@dataclass(frozen=True)
class Plan:
    """How a corpus is split.

    Attributes:
      source: the text, or None if there is only validation text.
      val_source: validation text of its own, or None.
      val_fraction: share of the documents of `source` held out where there is no `val_source`.
      separator: string at which both sources are split into documents, or None.
    """

    source: Source | None
    val_source: Source | None
    val_fraction: float
    separator: str | None = None

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

    def check_result(self, train: Split, val: Split) -> None:
        """Refuses a split that came out with nothing on a side that is needed.

        Raises:
          UserError: naming the source or the share that is to blame.
        """
        if self.source is not None and train.tokens == 0:
            raise UserError(f"source {self.source.name} holds no text to train on")
        if val.tokens == 0 and self.val_source is not None:
            raise UserError(f"source {self.val_source.name} holds no text")
        if val.tokens == 0 and self.source is not None:
            raise UserError(
                f"data.val_fraction={self.val_fraction} holds out none of the {train.documents} "
                f"documents of source {self.source.name}; raise it, or give data.val_source"
            )

    def share_note(self, train: Split, val: Split) -> str:
        """Returns a line if the share held out is far from the one asked for, else nothing."""
        if self.source is None or self.val_source is not None:
            return ""
        held_out, documents = val.documents or 0, (train.documents or 0) + (val.documents or 0)
        asked = self.val_fraction * documents
        if asked / 2 <= held_out <= max(2 * asked, 1):
            return ""
        return (
            f"holding out {held_out} of {documents} documents for validation, not a share of "
            f"{self.val_fraction:g}: equal documents stay on one side"
        )


def _held_out(source: Source, fraction: float) -> Iterator[Marked]:
    # Enough documents that a share of them by hash cannot be far from `fraction`.
    enough = round(_SAMPLE / fraction)
    scores = array("d", (_score(text) for text in islice(_first_pieces(source), enough)))
    if not scores:
        raise UserError(f"source {source.name} is empty")
    if len(scores) == 1:
        yield from _cut_by_characters(source, fraction)
        return
    if len(scores) < enough:
        chosen = _lowest(scores, fraction, source.name)
        yield from _by_document(source, lambda text: _score(text) in chosen)
    else:
        # A text that fills more than half of the share by itself would distort it.
        heavy = {score for score, n in Counter(scores).items() if n > _SAMPLE / 2}
        yield from _by_document(
            source, lambda text: (score := _score(text)) <= fraction and score not in heavy
        )


def _lowest(scores: Iterable[float], fraction: float, name: str) -> set[float]:
    """Returns the lowest scores, whole groups of equal ones, as far as they fit into the share.

    If no group fits, the smallest is held out. Without equal documents each group is one.
    """
    groups = Counter(scores)
    if len(groups) == 1:
        raise UserError(
            f"the {groups.total()} documents of source {name} are all the same, and equal "
            "documents stay on one side of the split; give data.val_source"
        )
    room = min(max(1, round(fraction * groups.total())), groups.total() - 1)
    chosen: set[float] = set()
    for score, n in sorted(groups.items()):
        if n <= room:
            chosen.add(score)
            room -= n
    return chosen or {min(groups, key=lambda score: (groups[score], score))}


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
    total = sum(len(piece.text) for piece in source.pieces())
    left = int(total * (1 - fraction))
    if not 0 < left < total:
        raise UserError(
            f"source {source.name} is too short (characters: {total}) to hold out "
            f"data.val_fraction={fraction:g} of it; give more text, or data.val_source"
        )
    for piece in source.pieces():
        train, val = piece.text[:left], piece.text[left:]
        left -= len(train)
        if train:
            yield "train", Piece(train, last=left == 0)
        if val:
            yield "val", Piece(val, last=piece.last)
