"""An example per row, in buckets of similar length; and examples in order, for evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpt2_jax.data.batch import ExampleBatch
from gpt2_jax.data.layout.assemble import Assembler, Lengths, Row
from gpt2_jax.data.layout.shape import Shape, check_fits, parse_lengths
from gpt2_jax.data.sampler import PHI, mix, permute
from gpt2_jax.errors import UserError


class PaddedLayout:
    """Shuffled batches, each of examples from one bucket.

    An example is in the first bucket that is long enough. In each epoch every example occurs once;
    the last batch of each bucket is filled with rows of weight 0. Batches of all buckets are in
    random order.

    Args:
      assembler: builds the batches.
      lengths: of the buckets, in increasing order: a number, or (source, target) for pairs.
      rows: per batch, the same in all buckets, so that every example weighs the same.
      seed: determines the order.

    Raises:
      UserError: if the lengths are not valid or an example is too long.
    """

    def __init__(
        self,
        assembler: Assembler,
        lengths: Sequence[int | Sequence[int]],
        rows: int,
        seed: int,
    ) -> None:
        lengths_NS = assembler.examples.lengths
        buckets = parse_lengths(lengths, lengths_NS.shape[1])
        check_fits(lengths_NS, buckets[-1])
        bucket_of = np.zeros(len(lengths_NS), np.int64)
        for shorter in buckets[:-1]:
            bucket_of += (lengths_NS > np.array(shorter)).any(axis=1)
        used = np.unique(bucket_of).tolist()
        self._assembler = assembler
        self._members = [np.flatnonzero(bucket_of == b) for b in used]
        self.shapes = tuple(Shape(rows, buckets[b]) for b in used)
        n_batches = [
            math.ceil(len(m) / s.rows) for m, s in zip(self._members, self.shapes, strict=True)
        ]
        self._ends = np.cumsum(n_batches)
        self.batches_per_epoch = int(self._ends[-1])
        self._seed = np.array([seed], np.uint64)
        positions = sum(
            n * s.rows * sum(s.lengths) for n, s in zip(n_batches, self.shapes, strict=True)
        )
        self.real_share = float(lengths_NS.sum() / positions)

    def _locate(self, step: int) -> tuple[int, int, int, np.ndarray]:
        """Returns the epoch, the bucket, the batch within it, and the key of the epoch."""
        epoch, in_epoch = divmod(step, self.batches_per_epoch)
        key = mix(mix(self._seed + PHI) + np.uint64(epoch))
        slot = int(permute(np.array([in_epoch], np.uint64), self.batches_per_epoch, key)[0])
        bucket = int(np.searchsorted(self._ends, slot, side="right"))
        start = int(self._ends[bucket - 1]) if bucket else 0
        return epoch, bucket, slot - start, key

    def shape(self, step: int) -> Shape:
        return self.shapes[self._locate(step)[1]]

    def steps(self, epochs: float) -> int:
        return math.ceil(epochs * self.batches_per_epoch)

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> ExampleBatch:
        epoch, bucket, number, key = self._locate(step)
        shape, members = self.shapes[bucket], self._members[bucket]
        index = number * shape.rows + np.arange(shape.rows)[rows]
        is_filler = index >= len(members)
        own = np.repeat(mix(key + np.array([bucket + 1], np.uint64) * PHI), len(index))
        order = permute(np.where(is_filler, 0, index).astype(np.uint64), len(members), own)
        chosen = members[order.astype(np.int64)].tolist()
        listed = [
            Row(() if filler else (example,), epoch)
            for example, filler in zip(chosen, is_filler.tolist(), strict=True)
        ]
        return self._assembler.batch(listed, shape.lengths)


class OrderedLayout:
    """Every example once, in order, one per row; the last batch is filled with rows of weight 0.

    Args:
      lengths: positions per row; as long as the longest example, or (source, target) for pairs.
      rows: per batch.

    Raises:
      UserError: if an example is too long.
    """

    def __init__(self, assembler: Assembler, lengths: int | Sequence[int], rows: int) -> None:
        if rows < 1:
            raise UserError(f"a batch of {rows} rows is empty")
        sides = assembler.examples.lengths.shape[1]
        (self._lengths,) = parse_lengths([lengths], sides)
        check_fits(assembler.examples.lengths, self._lengths)
        self._assembler, self._rows = assembler, rows
        self.shapes = (Shape(rows, self._lengths),)
        self.n_batches = math.ceil(len(assembler.examples) / rows)

    def examples(self, number: int) -> range:
        """Returns which examples are in a batch; they are in its first rows."""
        start = number * self._rows
        return range(start, min(start + self._rows, len(self._assembler.examples)))

    def batch(self, number: int, rows: slice | np.ndarray = slice(None)) -> ExampleBatch:
        """Returns a batch, counted from 0; `rows` are those of this process."""
        own = number * self._rows + np.arange(self._rows)[rows]
        n = len(self._assembler.examples)
        listed = [Row((int(i),) if i < n else (), 0) for i in own]
        return self._assembler.batch(listed, self._lengths)


def longest(assembler: Assembler, multiple: int = 8) -> Lengths:
    """Returns the lengths of the longest example, rounded up to a multiple."""
    found = assembler.examples.lengths.max(axis=0)
    return tuple(int(-(-n // multiple) * multiple) for n in found)
