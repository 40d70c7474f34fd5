"""A batch of training or evaluation data."""

from __future__ import annotations

from typing import Any, NamedTuple


class Tokens(NamedTuple):
    """One side of a batch: rows of one or several examples, then padding.

    Attributes:
      ids_BT: integer ids.
      segments_BT: int32; 0 is padding, and 1, 2, ... are the examples packed into a row, in order
        and contiguous.
      types_BT: token types (BERT's sentence A or B); None if the model has none.
    """

    ids_BT: Any
    segments_BT: Any
    types_BT: Any = None


class Batch(NamedTuple):
    """Token ids and loss weights: a pytree whose leaves all have a leading batch axis.

    Attributes:
      tokens_BT1: integer ids (B, T+1): the inputs and, shifted by one position, the targets.
      weights_BT: float loss weight of each prediction (B, T); None if all weigh the same.

    Leaves are numpy arrays on the host and jax arrays on devices.
    """

    tokens_BT1: Any
    weights_BT: Any = None

    @property
    def inputs_BT(self) -> Any:
        """The ids that the model reads."""
        return self.tokens_BT1[:, :-1]

    @property
    def targets_BT(self) -> Any:
        """The ids that it predicts."""
        return self.tokens_BT1[:, 1:]
