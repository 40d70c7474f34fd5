"""Several examples per row, packed once; rows are then shuffled as windows of text are."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt2_jax.data.batch import ExampleBatch
from gpt2_jax.data.layout.assemble import Assembler, Lengths, Row
from gpt2_jax.data.layout.shape import Shape, check_fits, parse_lengths
from gpt2_jax.data.sampler import PHI, mix, permute
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, write_atomic

OPEN_ROWS = 512
_KEY = np.uint64(0x5EED)


def pack(lengths_NS: np.ndarray, capacity: Lengths) -> tuple[np.ndarray, np.ndarray]:
    """Packs examples into rows, first-fit over the last `OPEN_ROWS` rows, in a shuffled order.

    Args:
      lengths_NS: positions that each example takes on each side.
      capacity: positions of a row on each side.

    Returns the examples in the order of rows (n,), and where each row starts (rows + 1,).
    """
    n = len(lengths_NS)
    order = permute(np.arange(n, dtype=np.uint64), n, np.full(n, _KEY)).astype(np.int64)
    space_RS = np.zeros((0, lengths_NS.shape[1]), np.int64)
    rows: list[list[int]] = []
    first = 0  # of the open rows
    for example in order.tolist():
        need = lengths_NS[example]
        fits = np.flatnonzero((space_RS[first : len(rows)] >= need).all(axis=1))
        if len(fits):
            row = first + int(fits[0])
        else:
            row = len(rows)
            rows.append([])
            if row == len(space_RS):
                space_RS = np.concatenate([space_RS, np.tile(capacity, (max(64, row), 1))])
            first = max(first, len(rows) - OPEN_ROWS)
        rows[row].append(example)
        space_RS[row] -= need
    starts = np.cumsum([0, *map(len, rows)])
    return np.array([example for row in rows for example in row], np.int64), starts


class PackedLayout:
    """Shuffled batches of packed rows. In each epoch every row, so every example, occurs once.

    Args:
      assembler: builds the batches; its task must have a target per position.
      lengths: positions per row: a number, or (source, target) for pairs.
      rows: per batch.
      seed: determines the order of the rows.

    Raises:
      UserError: if the task has one target per row, or an example is too long.
    """

    def __init__(
        self, assembler: Assembler, lengths: int | Sequence[int], rows: int, seed: int
    ) -> None:
        if not assembler.packs:
            raise UserError(
                f"data.layout=packed does not work with task.name={assembler.examples.task}, which "
                "has one target per row; use data.layout=padded"
            )
        lengths_NS = assembler.examples.lengths
        (capacity,) = parse_lengths([lengths], lengths_NS.shape[1])
        check_fits(lengths_NS, capacity)
        self._assembler, self._rows = assembler, rows
        self._order, self._starts = _packed_once(assembler.examples.folder, lengths_NS, capacity)
        self._seed = np.array([seed], np.uint64)
        self.shapes = (Shape(rows, capacity),)
        self.rows_per_epoch = len(self._starts) - 1
        self.real_share = float(lengths_NS.sum() / (self.rows_per_epoch * sum(capacity)))

    def shape(self, step: int) -> Shape:
        return self.shapes[0]

    def steps(self, epochs: float) -> int:
        return math.ceil(epochs * self.rows_per_epoch / self._rows)

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> ExampleBatch:
        own = np.arange(self._rows, dtype=np.uint64)[rows]
        index = np.uint64(step) * np.uint64(self._rows) + own
        n = np.uint64(self.rows_per_epoch)
        epoch, in_epoch = index // n, index % n
        key = mix(mix(self._seed + PHI) + epoch)
        packed = permute(in_epoch, self.rows_per_epoch, key).tolist()
        listed = [
            Row(tuple(self._order[self._starts[p] : self._starts[p + 1]].tolist()), e)
            for p, e in zip(packed, epoch.tolist(), strict=True)
        ]
        return self._assembler.batch(listed, self.shapes[0].lengths)


def _packed_once(
    folder: Path | None, lengths_NS: np.ndarray, capacity: Lengths
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the result of `pack`, stored in the folder of the examples if they have one."""
    if folder is None:
        return pack(lengths_NS, capacity)
    facts = hashlib.sha256(lengths_NS.tobytes() + repr((capacity, OPEN_ROWS)).encode())
    path = folder / f"packed_{facts.hexdigest()[:24]}.npz"
    try:
        with np.load(path) as stored:
            return stored["order"], stored["starts"]
    except (OSError, ValueError, KeyError, EOFError):
        pass
    order, starts = pack(lengths_NS, capacity)
    content = io.BytesIO()
    np.savez(content, order=order, starts=starts)
    with disk_errors("the cache (set XDG_CACHE_HOME)"):
        write_atomic(path, content.getvalue())
    return order, starts
