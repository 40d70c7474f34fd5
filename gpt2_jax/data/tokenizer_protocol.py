"""What a tokenizer does, and the special ids that it puts around texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

END_OF_TEXT = "<|endoftext|>"
SPACE = "\u0120"  # in tokens of byte-level BPE
# Ids that an import keeps with the tokenizer of an encoder-decoder, as config.json names them: what
# the decoder reads before a target, and what a generated target must begin with, and end with at
# the length limit.
TARGET_IDS = START, FORCED_FIRST, FORCED_LAST = (
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def id_dtype(size: int) -> type[np.unsignedinteger]:
    """Returns the smallest type for the ids of a vocabulary: uint16 or uint32."""
    return np.uint16 if size <= 2**16 else np.uint32


@dataclass(frozen=True)
class Specials:
    """The special ids of a tokenizer.

    Attributes:
      pad, bos, eos: end-of-text if the vocabulary has no token for them.
      cls, sep, mask: None if the vocabulary has no token for them.
      all: every special id, which is never masked.
      start: what a decoder reads before the first id of a target: `bos`, unless an imported model
        was trained with another.
    """

    pad: int
    bos: int
    eos: int
    cls: int | None
    sep: int | None
    mask: int | None
    all: frozenset[int]
    start: int


@dataclass(frozen=True)
class Frame:
    """The special ids around one or two sequences: prefix A middle, or prefix A middle B suffix.

    Attributes:
      prefix, single_suffix: around a single sequence.
      pair_prefix, middle, suffix: around and between two.
      second_type: the token type of the second sequence and of `suffix`; the rest have type 0.
    """

    prefix: tuple[int, ...]
    single_suffix: tuple[int, ...]
    pair_prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    second_type: int = 1


@dataclass(frozen=True)
class SideFrame:
    """The special ids around the source of a pair, and likewise around its target.

    Attributes:
      prefix, suffix: around the text.
      forced_first: what the first id of a generated target must be; None for any.
      forced_last: what the last id of a generated target must be if it reaches the length limit;
        None for any.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    forced_first: int | None = None
    forced_last: int | None = None

    def around(self, ids: np.ndarray) -> np.ndarray:
        """Returns the ids of a text (n,) with the special ones, as int64."""
        parts = (self.prefix, ids, self.suffix)
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    def cut(self, framed: np.ndarray, n: int) -> np.ndarray:
        """Returns at most `n` ids of what `around` returns; the suffix remains."""
        if len(framed) <= n:
            return framed
        return np.append(framed[: n - len(self.suffix)], np.array(self.suffix, np.int64))


class Tokenizer(Protocol):
    """Converts between text and token ids.

    Attributes:
      name: as in `data.tokenizer`.
      fingerprint: identifies the mapping from text to ids.
      size: vocabulary size, which is the largest id + 1.
      end_of_text: the id that separates documents.
      content: bytes of its file; None for a built-in tokenizer.
    """

    name: str
    fingerprint: str
    size: int
    end_of_text: int
    content: bytes | None = None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids (n,) of each text; special tokens in a text are encoded as plain text."""

    def encode_targets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids (n,) of each text as the target of a pair."""
        return self.encode(texts)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Returns the text of ids as UTF-8 bytes, without end-of-text."""

    def token(self, i: int) -> str:
        """Returns a token as it is in the vocabulary; empty if there is none."""
        if i == self.end_of_text:
            return END_OF_TEXT
        return self.decode_bytes([i]).decode("utf-8", "replace").replace(" ", SPACE)

    @property
    def specials(self) -> Specials:
        """The special ids."""
        end = self.end_of_text
        return Specials(end, end, end, None, None, None, frozenset({end}), start=end)

    @property
    def frame(self) -> Frame:
        """The special ids around sequences, by default cls and sep if there are any.

        Without sep, two sequences are separated by end-of-text.
        """
        special = self.specials
        cls = () if special.cls is None else (special.cls,)
        sep = () if special.sep is None else (special.sep,)
        return Frame(cls, sep, cls, sep or (special.eos,), sep)

    @property
    def side_frame(self) -> SideFrame:
        """The special ids around the sides of pairs, by default only eos after each."""
        return SideFrame((), (self.specials.eos,))
