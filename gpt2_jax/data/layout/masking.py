"""Masks tokens for masked language modeling (Devlin et al. 2019, section 3.1 and appendix A.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.sampler import PHI, mix
from gpt2_jax.errors import UserError

FRACTION = 0.15
_MASKED, _RANDOM = 0.8, 0.9  # 80 % become the mask token, 10 % a random one, 10 % stay


@dataclass(frozen=True)
class Masking:
    """Chooses tokens to predict, as a function of (seed, epoch, example, position).

    Attributes:
      seed: of the run.
      mask: id of the mask token.
      is_special: whether each id is special and never chosen (size,).
      starts_word: whether each id starts a word (size,), to choose whole words; None to choose
        tokens.
      fraction: of the tokens (or words) that are chosen.
    """

    seed: int
    mask: int
    is_special: np.ndarray
    starts_word: np.ndarray | None = None
    fraction: float = FRACTION

    @cached_property
    def _replacements(self) -> np.ndarray:
        return np.flatnonzero(~self.is_special).astype(np.int32)

    def apply(self, ids: np.ndarray, epoch: int, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids that the model reads and whether each is to be predicted.

        Args:
          ids: int32 (n,), of one example.
        """
        bits = self._bits(len(ids), epoch, example)
        chosen = _uniform(bits[self._unit(ids)]) < self.fraction
        chosen &= ~self.is_special[ids]
        second = mix(bits + PHI)
        fate, third = _uniform(second), mix(second + PHI)
        random = self._replacements[(third % np.uint64(len(self._replacements))).astype(np.int64)]
        replaced = np.where(fate < _MASKED, self.mask, np.where(fate < _RANDOM, random, ids))
        return np.where(chosen, replaced, ids).astype(np.int32), chosen

    def _bits(self, n: int, epoch: int, example: int) -> np.ndarray:
        key = mix(np.array([self.seed], np.uint64) + PHI)
        key = mix(mix(key + np.uint64(epoch)) + np.uint64(example))
        return mix(key + np.arange(1, n + 1, dtype=np.uint64) * PHI)

    def _unit(self, ids: np.ndarray) -> np.ndarray:
        """Returns for each position the one that decides whether it is chosen: its word's first."""
        positions = np.arange(len(ids))
        if self.starts_word is None:
            return positions
        special = self.is_special[ids]
        first = self.starts_word[ids] | special | np.append(True, special[:-1])[: len(ids)]
        return np.maximum.accumulate(np.where(first, positions, 0))


def _uniform(bits: np.ndarray) -> np.ndarray:
    """Returns numbers in [0, 1) from 64 random bits each."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def make_masking(
    pieces: PieceEncoder, seed: int, whole_words: bool = False, fraction: float = FRACTION
) -> Masking:
    """Returns the masking for a tokenizer.

    Raises:
      UserError: if it has no mask token.
    """
    special, size = pieces.specials, pieces.tokenizer.size
    if special.mask is None:
        raise UserError(
            f"data.tokenizer={pieces.tokenizer.name} has no mask token ([MASK] or <mask>), which "
            "task.name=mlm needs; use wordpiece:N, bpe:N, or a tokenizer.json with one"
        )
    is_special = np.zeros(size, bool)
    is_special[list(special.all)] = True
    starts_word = pieces.starts_word if whole_words else None
    return Masking(seed, special.mask, is_special, starts_word, fraction)
