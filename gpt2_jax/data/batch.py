"""Batches of training or evaluation data.

A batch is a pytree whose leaves have a leading batch axis: numpy arrays on the host, jax arrays on
devices. Axes: B rows, T positions, S positions of the source.
"""

from __future__ import annotations

from typing import Any, NamedTuple


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
    def weights(self) -> Any:
        """The loss weights, None if all are 1."""
        return self.weights_BT

    @property
    def inputs_BT(self) -> Any:
        """The ids that the model reads."""
        return self.tokens_BT1[:, :-1]

    @property
    def targets_BT(self) -> Any:
        """The ids that it predicts."""
        return self.tokens_BT1[:, 1:]


class Tokens(NamedTuple):
    """The token ids of one side of a batch, and which of them belong together.

    Attributes:
      ids_BT: int32 ids (B, T).
      segments_BT: int32 (B, T): 0 for padding, and 1, 2, ... for the examples packed into a row,
        which are contiguous and in order. Positions restart at 0 in each segment.
      types_BT: int32 token types (B, T), such as BERT's sentences A and B; None if the model
        has none.
    """

    ids_BT: Any
    segments_BT: Any
    types_BT: Any = None


class TokenBatch(NamedTuple):
    """A target per position: masked language modeling, tagging, fine-tuning of decoders.

    Attributes:
      inputs: what the model reads.
      targets_BT: int32 token or label ids (B, T); 0 where there is no target.
      weights_BT: float32 loss weights (B, T); 0 for padding and where there is no target.
    """

    inputs: Tokens
    targets_BT: Any
    weights_BT: Any

    @property
    def weights(self) -> Any:
        """The loss weights."""
        return self.weights_BT


class PairBatch(NamedTuple):
    """A source and a target sequence: translation, summarization.

    Attributes:
      source: what the encoder reads (B, S).
      target: what the decoder reads (B, T), which begins with `Specials.start`; a segment has
        the same number as in `source`.
      targets_BT: int32 ids that the decoder predicts (B, T); 0 for padding.
      weights_BT: float32 loss weights (B, T); 0 for padding.
    """

    source: Tokens
    target: Tokens
    targets_BT: Any
    weights_BT: Any

    @property
    def weights(self) -> Any:
        """The loss weights."""
        return self.weights_BT


class LabelBatch(NamedTuple):
    """A label per row: classification.

    Attributes:
      inputs: what the model reads.
      labels_B: int32 label ids (B,).
      weights_B: float32 loss weights (B,); 0 for rows that only fill the batch.
    """

    inputs: Tokens
    labels_B: Any
    weights_B: Any

    @property
    def weights(self) -> Any:
        """The loss weights."""
        return self.weights_B


class SpanBatch(NamedTuple):
    """A span per row: question answering.

    Attributes:
      inputs: what the model reads.
      starts_B, ends_B: int32 positions of the first and last token of the answer (B,); both are 0
        for a question without an answer.
      weights_B: float32 loss weights (B,); 0 for rows that only fill the batch, and where the
        answer was cut off.
    """

    inputs: Tokens
    starts_B: Any
    ends_B: Any
    weights_B: Any

    @property
    def weights(self) -> Any:
        """The loss weights."""
        return self.weights_B


ExampleBatch = TokenBatch | PairBatch | LabelBatch | SpanBatch
