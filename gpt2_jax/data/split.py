"""Splits a corpus into training and validation text, deterministically and by document."""

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

SplitPiece = tuple[str, Piece]  # "train" or "val", and the text
_SAMPLE = 20  # held-out documents expected in the sample that decides how to split
LEAST_FRACTION = 1e-6  # the sample that decides how to split has 20 / fraction documents


def check_split(fraction: float, val_source: str | None, label: str, val_label: str) -> None:
    """Checks that a fraction of the documents can be held out for validation.

    Args:
      label, val_label: names of the two values in error messages.

    Raises:
      UserError: naming the value to change.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"{label}={fraction:g} must be at least 0 and below 1")
    if val_source is None and fraction < LEAST_FRACTION:
        raise UserError(
            f"{label}={fraction:g} is below {LEAST_FRACTION:g} and needs a {val_label} to validate "
            "on"
        )


@dataclass(frozen=True)
class Plan:
    """The sources of a corpus and how it is split.

    Attributes:
      source: training text; None for validation text only.
      val_source: separate validation text, or None.
      val_fraction: fraction of the documents of `source` held out if there is no `val_source`.
      separator: string at which both sources are split into documents, or None.
    """

    source: Source | None
    val_source: Source | None
    val_fraction: float
    separator: str | None = None

    def pieces(self) -> Iterator[SplitPiece]:
        """Yields every piece with its split, in the same order at each call.

        Raises:
          UserError: if one split would be empty.
        """
        if self.source is not None:
            if self.val_source is not None:
                yield from (("train", piece) for piece in self.source.pieces())
            else:
                yield from _hold_out(self.source, self.val_fraction)
        if self.val_source is not None:
            yield from (("val", piece) for piece in self.val_source.pieces())

    def check_splits(self, train: Split, val: Split) -> None:
        """Checks that no required split is empty.

        Raises:
          UserError: naming the source or field to change.
        """
        if self.source is not None and train.tokens == 0:
            raise UserError(f"source {self.source.name} has no text to train on")
        if val.tokens == 0 and self.val_source is not None:
            raise UserError(f"source {self.val_source.name} has no text")
        if val.tokens == 0 and self.source is not None:
            raise UserError(
                f"data.val_fraction={self.val_fraction} holds out none of the {train.documents} "
                f"documents of source {self.source.name}; increase it, or set data.val_source"
            )

    def val_fraction_note(self, train: Split, val: Split) -> str:
        """Returns a note if the held-out fraction is far from `val_fraction`, else an empty one."""
        if self.source is None or self.val_source is not None:
            return ""
        held_out, documents = val.documents or 0, (train.documents or 0) + (val.documents or 0)
        expected = self.val_fraction * documents
        if expected / 2 <= held_out <= max(2 * expected, 1):
            return ""
        return (
            f"holding out {held_out} of {documents} documents for validation instead of a fraction "
            f"of {self.val_fraction:g}, because identical documents stay together"
        )


def _hold_out(source: Source, fraction: float) -> Iterator[SplitPiece]:
    # With this many documents, hashing holds out close to `fraction` of them.
    enough = round(_SAMPLE / fraction)
    scores = array("d", (_score(text) for text in islice(_first_pieces(source), enough)))
    if not scores:
        raise UserError(f"source {source.name} is empty")
    if len(scores) == 1:
        yield from _split_characters(source, fraction)
        return
    if len(scores) < enough:
        chosen = _lowest_scores(scores, fraction, source.name)
        yield from _split_documents(source, lambda text: _score(text) in chosen)
    else:
        # A text whose copies make up more than half of the held-out documents is not held out.
        frequent = {score for score, n in Counter(scores).items() if n > _SAMPLE / 2}
        yield from _split_documents(
            source, lambda text: (score := _score(text)) <= fraction and score not in frequent
        )


def _lowest_scores(scores: Iterable[float], fraction: float, name: str) -> set[float]:
    """Returns the lowest scores, as many as make up `fraction` of the documents.

    Identical documents have the same score; a group of them that is too large is skipped. At least
    one score is returned, and never all.
    """
    groups = Counter(scores)
    if len(groups) == 1:
        raise UserError(
            f"the {groups.total()} documents of source {name} are identical, and identical "
            "documents stay together; set data.val_source"
        )
    remaining = min(max(1, round(fraction * groups.total())), groups.total() - 1)
    chosen: set[float] = set()
    for score, n in sorted(groups.items()):
        if n <= remaining:
            chosen.add(score)
            remaining -= n
    return chosen or {min(groups, key=lambda score: (groups[score], score))}


def _first_pieces(source: Source) -> Iterator[str]:
    first = True
    for piece in source.pieces():
        if first:
            yield piece.text
        first = piece.last


def _score(text: str) -> float:
    """Returns a hash of the text in [0, 1), so that identical documents are in the same split."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _split_documents(source: Source, is_val: Callable[[str], bool]) -> Iterator[SplitPiece]:
    first, split = True, "train"
    for piece in source.pieces():
        if first:
            split = "val" if is_val(piece.text) else "train"
        yield split, piece
        first = piece.last


def _split_characters(source: Source, fraction: float) -> Iterator[SplitPiece]:
    total = sum(len(piece.text) for piece in source.pieces())
    remaining = int(total * (1 - fraction))
    if not 0 < remaining < total:
        raise UserError(
            f"source {source.name} is too short ({total} characters) to hold out "
            f"data.val_fraction={fraction:g}; add text, or set data.val_source"
        )
    for piece in source.pieces():
        train, val = piece.text[:remaining], piece.text[remaining:]
        remaining -= len(train)
        if train:
            yield "train", Piece(train, last=remaining == 0)
        if val:
            yield "val", Piece(val, last=piece.last)
