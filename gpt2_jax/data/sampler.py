"""Batches as a pure function of (seed, step): shuffled windows without replacement.

Each epoch cuts the tokens into windows of `seq_len` predictions, at its own offset, and takes
them in random order. The order is a keyed permutation, which is evaluated at any position in
constant time and memory, so a run resumes at any step and each process computes only its own rows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.shards import Tokens
from gpt2_jax.errors import UserError, counted

_ROUNDS = 6
PHI = np.uint64(0x9E3779B97F4A7C15)
_SALTS = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * PHI


def mix(x: np.ndarray) -> np.ndarray:
    """Returns 64 well-mixed bits for each uint64 (splitmix64's finalizer, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Returns the images of `index` under the permutation of 0 .. n-1 that `key` selects.

    A Feistel network over the next even number of bits. Images above n-1 are permuted again until
    they are in range (cycle walking; Black & Rogaway 2002, method 3).

    Args:
      index: uint64, below n.
      key: uint64, one per index.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    out = index.copy()
    walking = np.ones(len(index), bool)
    while walking.any():
        left, right = out[walking] >> half, out[walking] & low
        for r in range(_ROUNDS):
            left, right = right, left ^ (mix(right + key[walking] + _SALTS[r]) & low)
        out[walking] = (left << half) | right
        walking &= out >= n
    return out


class Windows(Protocol):
    """A shuffled sequence of windows."""

    def windows(self, index: np.ndarray) -> list[np.ndarray]:
        """Returns the windows with these indices in the order of the run, uint64, as int32 ids."""


class Sampler:
    """Batches of windows from a sequence of tokens.

    Args:
      tokens: the training tokens.
      seq_len: predictions per window; a window has `seq_len + 1` tokens.
      batch_size: windows per batch.
      seed: determines the order.

    Raises:
      UserError: if there are too few tokens.
    """

    def __init__(self, tokens: Tokens, seq_len: int, batch_size: int, seed: int) -> None:
        if len(tokens) <= 2 * seq_len:
            raise UserError(
                f"the training text has {counted(len(tokens), 'token')}, too few for windows of "
                f"data.seq_len={seq_len}; lower data.seq_len, or use more text"
            )
        self._tokens, self._seq_len, self._batch_size = tokens, seq_len, batch_size
        self._seed = np.array([seed], np.uint64)  # an array overflows without a warning
        # One window fewer, so that every offset below seq_len leaves the same number of them.
        self.windows_per_epoch = (len(tokens) - seq_len) // seq_len

    def starts(self, step: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Returns the first token of each window in batch `step`."""
        row = np.arange(self._batch_size, dtype=np.uint64)[rows]
        return self._starts_of(np.uint64(step) * np.uint64(self._batch_size) + row)

    def _starts_of(self, index: np.ndarray) -> np.ndarray:
        n = self.windows_per_epoch
        epoch, in_epoch = index // np.uint64(n), index % np.uint64(n)
        key = mix(mix(self._seed + PHI) + epoch)
        offset = mix(key + PHI) % np.uint64(self._seq_len)
        window = permute(in_epoch, n, key)
        return (window * np.uint64(self._seq_len) + offset).astype(np.int64)

    def windows(self, index: np.ndarray) -> list[np.ndarray]:
        length = self._seq_len + 1
        return [self._tokens.window(i, length) for i in self._starts_of(index).tolist()]

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> Batch:
        """Returns batch `step`, counted from 0, with int32 ids (rows, seq_len + 1).

        Args:
          rows: the rows of this process; the batch is the same for any number of processes.
        """
        length = self._seq_len + 1
        starts = self.starts(step, rows).tolist()
        return Batch(np.stack([self._tokens.window(start, length) for start in starts]))
