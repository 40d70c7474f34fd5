"""What a run needs of its data: text for language modeling, or the examples of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np


class Batches(Protocol):
    """The batches of a run, as a function of the step."""

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> Any:
        """Returns batch `step`, counted from 0.

        Args:
          rows: the rows of this process; the batch is the same for any number of processes.
        """


class RunData(Protocol):
    """The data of a run.

    Attributes:
      labels: label names by id; empty if it has none.
      streams: text that is fetched while training, by name.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def streams(self) -> Mapping[str, Any]: ...

    def content_hash(self) -> str:
        """Returns a hash of the content, which identifies the data of a run."""

    def source_hashes(self) -> dict[str, str]:
        """Returns the hash of each source of a mixture by name; empty for a single source."""

    def check_validation(self) -> None:
        """Checks that there is validation data.

        Raises:
          UserError: naming the source and the fields to change.
        """

    def describe(self) -> str:
        """Returns the size of the data, for the start report."""

    def n_tokens(self, split: str) -> int:
        """Returns the number of tokens of a split."""

    def keep_counts(self, known: dict[str, Any], save: Callable[[Any], None]) -> None:
        """Restores the token counts of streamed files, and saves them whenever they change."""

    def sampler(self, seq_len: int, batch_size: int, seed: int) -> Batches:
        """Returns the batches of training data.

        Raises:
          UserError: if there are too few.
        """
