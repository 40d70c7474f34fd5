"""Shapes of batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from gpt2_jax.data.batch import ExampleBatch
from gpt2_jax.data.layout.assemble import Lengths
from gpt2_jax.errors import UserError


class Shape(NamedTuple):
    """The shape of a batch.

    Attributes:
      rows: of the whole batch, of all processes.
      lengths: positions per row: (source, target) of pairs, else one number.
    """

    rows: int
    lengths: Lengths


@runtime_checkable
class Layout(Protocol):
    """The batches of a run, as a pure function of the step.

    Attributes:
      shapes: all shapes that occur, the longest last.
      real_share: share of the positions of an epoch that are not padding.
    """

    real_share: float

    @property
    def shapes(self) -> tuple[Shape, ...]: ...

    def shape(self, step: int) -> Shape:
        """Returns the shape of batch `step`."""

    def steps(self, epochs: float) -> int:
        """Returns how many steps are a number of epochs, rounded up."""

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> ExampleBatch:
        """Returns batch `step`, counted from 0.

        Args:
          rows: the rows of this process; the batch is the same for any number of processes.
        """


def parse_lengths(lengths: Sequence[int | Sequence[int]], sides: int) -> list[Lengths]:
    """Returns bucket lengths in increasing order, with a number for each side.

    Args:
      lengths: a number for all sides, or one for each.

    Raises:
      UserError: if they do not increase, or have another number of sides.
    """
    found = []
    for entry in lengths:
        both = (entry,) * sides if isinstance(entry, int) else tuple(entry)
        if len(both) != sides or min(both) < 1:
            raise UserError(
                f"data.lengths: {entry} must be a positive number"
                + (f", or {sides} of them, for source and target" if sides > 1 else "")
            )
        found.append(both)
    if not found or any(
        a == b or any(x > y for x, y in zip(a, b, strict=True)) for a, b in pairwise(found)
    ):
        raise UserError(f"data.lengths={tuple(lengths)} must increase")
    return found


def check_fits(lengths_NS: np.ndarray, longest: Lengths) -> None:
    """Checks that all examples fit into the longest row.

    Raises:
      UserError: naming the first that does not.
    """
    too_long = np.flatnonzero((lengths_NS > np.array(longest)).any(axis=1))
    if len(too_long):
        found = tuple(lengths_NS[too_long[0]].tolist())
        raise UserError(
            f"example {too_long[0]} has {found} tokens, but rows have {longest}; prepare the data "
            "with these as maximum lengths"
        )
