"""Builds the arrays of a batch from the examples in each of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpt2_jax.data.batch import (
    ExampleBatch,
    LabelBatch,
    PairBatch,
    SpanBatch,
    TokenBatch,
    Tokens,
)
from gpt2_jax.data.examples.store import Examples
from gpt2_jax.data.layout.masking import Masking
from gpt2_jax.data.tokenizer_protocol import Specials

Lengths = tuple[int, ...]  # positions of a row: (source, target) of pairs, else one number


class Row(NamedTuple):
    """A row of a batch.

    Attributes:
      examples: the numbers of its examples in order; empty for a row that only fills the batch.
      epoch: which pass over the data this is, from 0; determines masks.
    """

    examples: tuple[int, ...]
    epoch: int


@dataclass(frozen=True)
class Assembler:
    """Builds batches of the examples of one split.

    Attributes:
      specials: ids of padding and of what decoders read before targets.
      with_types: whether the model has token types.
      masking: for masked language modeling; else None.
    """

    examples: Examples
    specials: Specials
    with_types: bool = False
    masking: Masking | None = None

    @property
    def packs(self) -> bool:
        """Whether several examples may be in a row: if there is a target per position."""
        return self.examples.task not in ("classify", "answer")

    def batch(self, rows: Sequence[Row], lengths: Lengths) -> ExampleBatch:
        """Returns the batch with these rows; leaves have `len(rows)` rows.

        Args:
          lengths: positions per row; all examples of a row must fit.
        """
        return _BUILD[self.examples.task](self, rows, lengths)

    def inputs(self, rows: Sequence[Row], length: int, column: str, cut: int = 0) -> Tokens:
        """Returns a column as tokens, without the last `cut` ids of each example."""
        shape = len(rows), length
        ids = np.full(shape, self.specials.pad, np.int32)
        segments = np.zeros(shape, np.int32)
        types = np.zeros(shape, np.int32) if self.with_types else None
        has_types = types is not None and "types" in self.examples.ragged
        for r, start, n, example in _places(rows):
            found = self.examples.ragged[column][example]
            found = found[: len(found) - cut]
            where = slice(start[column], start[column] + len(found))
            start[column] = where.stop
            ids[r, where], segments[r, where] = found, n
            if has_types and types is not None:
                types[r, where] = self.examples.ragged["types"][example]
        return Tokens(ids, segments, types)

    def values(self, rows: Sequence[Row], length: int, column: str, skip: int = 0) -> np.ndarray:
        """Returns a column as int32 (rows, length), without the first `skip` of each example."""
        out = np.zeros((len(rows), length), np.int32)
        for r, start, _, example in _places(rows):
            found = self.examples.ragged[column][example][skip:]
            out[r, start[column] : start[column] + len(found)] = found
            start[column] += len(found)
        return out

    def scalar(self, rows: Sequence[Row], column: str) -> np.ndarray:
        """Returns the integer of each row's only example as int32 (rows,); 0 if it has none."""
        values = self.examples.scalars[column]
        found = [values[row.examples[0]] if row.examples else 0 for row in rows]
        return np.array(found, np.int32)


class _Starts(dict[str, int]):
    """Where the next example of a row starts, by column."""

    def __missing__(self, column: str) -> int:
        return 0


def _places(rows: Sequence[Row]) -> list[tuple[int, _Starts, int, int]]:
    """Returns for each example its row, the starts in that row, its segment, and its number."""
    starts = [_Starts() for _ in rows]
    return [
        (r, starts[r], n, example)
        for r, row in enumerate(rows)
        for n, example in enumerate(row.examples, 1)
    ]


def _pair_batch(build: Assembler, rows: Sequence[Row], lengths: Lengths) -> PairBatch:
    source = build.inputs(rows, lengths[0], "source")
    target = build.inputs(rows, lengths[1], "target")
    weights = (target.segments_BT > 0).astype(np.float32)
    targets = np.where(target.segments_BT > 0, target.ids_BT, 0).astype(np.int32)
    return PairBatch(source, _shifted(target, build.specials.start), targets, weights)


def _shifted(target: Tokens, start: int) -> Tokens:
    """Returns what the decoder reads: start, then all but the last id of each segment."""
    segments = target.segments_BT
    before = np.zeros_like(segments)
    before[:, 1:] = segments[:, :-1]
    ids = np.roll(target.ids_BT, 1, axis=1)
    ids = np.where(segments != before, start, ids)
    ids = np.where(segments > 0, ids, target.ids_BT).astype(np.int32)
    return Tokens(ids, segments, target.types_BT)


def _masked_batch(build: Assembler, rows: Sequence[Row], lengths: Lengths) -> TokenBatch:
    assert build.masking is not None, "masked language modeling needs a masking"
    inputs = build.inputs(rows, lengths[0], "inputs")
    ids = inputs.ids_BT.copy()
    weights = np.zeros(ids.shape, np.float32)
    for r, row in enumerate(rows):
        for n, example in enumerate(row.examples, 1):
            where = np.flatnonzero(inputs.segments_BT[r] == n)
            ids[r, where], chosen = build.masking.apply(ids[r, where], row.epoch, example)
            weights[r, where] = chosen
    targets = np.where(weights > 0, inputs.ids_BT, 0).astype(np.int32)
    return TokenBatch(inputs._replace(ids_BT=ids), targets, weights)


def _tag_batch(build: Assembler, rows: Sequence[Row], lengths: Lengths) -> TokenBatch:
    stored = build.values(rows, lengths[0], "targets")
    weights = (stored > 0).astype(np.float32)
    inputs = build.inputs(rows, lengths[0], "inputs")
    return TokenBatch(inputs, np.maximum(stored - 1, 0), weights)


def _completion_batch(build: Assembler, rows: Sequence[Row], lengths: Lengths) -> TokenBatch:
    inputs = build.inputs(rows, lengths[0], "inputs", cut=1)
    weights = build.values(rows, lengths[0], "learn", skip=1).astype(np.float32)
    targets = build.values(rows, lengths[0], "inputs", skip=1)
    return TokenBatch(inputs, np.where(weights > 0, targets, 0).astype(np.int32), weights)


def _label_batch(build: Assembler, rows: Sequence[Row], lengths: Lengths) -> LabelBatch:
    weights = np.array([len(row.examples) for row in rows], np.float32)
    inputs = build.inputs(rows, lengths[0], "inputs")
    return LabelBatch(inputs, build.scalar(rows, "label"), weights)


def _span_batch(build: Assembler, rows: Sequence[Row], lengths: Lengths) -> SpanBatch:
    starts, ends = build.scalar(rows, "start"), build.scalar(rows, "end")
    weights = (starts > 0).astype(np.float32)
    inputs = build.inputs(rows, lengths[0], "inputs")
    return SpanBatch(inputs, np.maximum(starts - 1, 0), np.maximum(ends - 1, 0), weights)


_BUILD: dict[str, Callable[[Assembler, Sequence[Row], Lengths], ExampleBatch]] = {
    "translate": _pair_batch,
    "mlm": _masked_batch,
    "tag": _tag_batch,
    "sft": _completion_batch,
    "classify": _label_batch,
    "answer": _span_batch,
}
